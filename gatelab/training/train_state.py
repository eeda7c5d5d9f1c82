"""One optimiser step: the model, its optimiser and what happens between a batch and new weights."""

import torch
from torch import Tensor, nn

from gatelab.models.decoder import Decoder, initialize
from gatelab.training.config import TrialConfig
from gatelab.training.device import compute_dtype, precision_context
from gatelab.training.evaluation import language_model_loss
from gatelab.training.optimizer import build_optimizer, learning_rate


class TrainState:
    """A model, freshly initialised from a trial's seed, and its optimiser, on a device."""

    def __init__(self, trial: TrialConfig, device: torch.device) -> None:
        self.training, self.device = trial.training, device
        self.dtype = compute_dtype(trial.training, device)
        model = Decoder(trial.model)
        initialize(model, trial.seed)
        self.model = model.to(device).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, trial.training.optimizer)
        self.gradient_norms = torch.empty(0)
        """Norms of the gradients of the last step, before clipping: one for each parameter that has a gradient."""

    def step(self, step: int, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Do step number `step` (from 0) on `windows [batch, T + 1]` (int64).

        Returns the loss (mean, nats per token) and the gradient norm before clipping, as scalars on the device:
        nothing here waits for it.
        """
        accumulation, clip_norm = self.training.accumulation, self.training.optimizer.clip_norm
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.training, step)
        loss = torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        for part in windows.chunk(accumulation):
            with precision_context(self.dtype, self.device):
                part_loss = language_model_loss(self.model, part) / accumulation
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        # What get_total_norm does, and the norms that it does not return.
        self.gradient_norms = torch.stack(torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None]))
        norm = torch.linalg.vector_norm(self.gradient_norms)
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, clip_norm, norm)
        self.optimizer.step()
        return loss, norm
