"""Loss on held-out text."""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.training.device import precision_context


def language_model_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy, in nats per token, of `windows [B, T + 1]` (int64): each token from those before it."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validation_metrics(
    model: nn.Module,
    windows: npt.NDArray[np.int64],
    batch_size: int,
    bytes_per_token: float,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Loss in nats per token and bits per byte over `windows [N, T + 1]`.

    Bits per byte compare across tokenizers: loss / ln 2 / (bytes per token of the whole validation text).
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, len(windows), batch_size):
        batch = torch.from_numpy(windows[start : start + batch_size]).to(device)
        with precision_context(dtype, device):
            total += language_model_loss(model, batch).double() * len(batch)
    model.train()
    loss = total.item() / len(windows)
    return {"validation/loss": loss, "validation/bits_per_byte": loss / math.log(2) / bytes_per_token}
