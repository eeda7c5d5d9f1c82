"""When training has diverged, and the last steps before it, layer by layer.

The steps are measured as the model trains: hooks on its modules see what passes, and nothing waits for the device
until an event makes the history be written. docs/stability.md defines each measurement.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.metrics import MetricSpec
from gatelab.models.decoder import Block, Decoder
from gatelab.models.gates import gates_of
from gatelab.thresholds import HISTORY_STEPS
from gatelab.training.config import TrialConfig
from gatelab.training.recorder import Recorder

TRACED_SPIKES = 3
"""Loss spikes of a trial, its first ones, at which the history is written. At its divergence it always is."""
PLACES = ("attention_output", "ffn_output", "ffn_residual")

SPECS = {
    # By layer, in the order of the forward pass; the last part of a name is the number of steps before.
    "autopsy/gate/*/mean/*": MetricSpec(kind="detail"),
    "autopsy/attention/logit_bound/*": MetricSpec(logarithmic=True, kind="detail"),
    **{f"autopsy/activation/{place}/*": MetricSpec(logarithmic=True, kind="detail") for place in PLACES},
    "autopsy/gradient_norm/*": MetricSpec(kind="detail"),
}
"""Metrics that `StepHistory` writes."""


def divergence_reason(trial: TrialConfig, losses: Sequence[float], mean: float, first: int) -> str:
    """Say why training has diverged by its losses of the steps from `first` on, with their mean; or return ''."""
    for step, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            return f"the training loss was {loss} at step {step}"
    assert trial.model.vocab_size is not None
    bound, last = trial.training.loss_bound * math.log(trial.model.vocab_size), first + len(losses) - 1
    if mean > bound:
        return f"the training loss averaged {mean:.3g} over steps {first}-{last}, above its bound {bound:.3g}"
    return ""


class StepHistory:
    """Measurements of every layer in each of the last `HISTORY_STEPS` training steps of a model, on its device.

    By layer: gate/POSITION/mean of each gate, attention/logit_bound, the largest magnitudes
    activation/attention_output, activation/ffn_output and activation/ffn_residual, and gradient_norm, before clipping.
    Non-finite values are kept as they are.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._gates = gates_of(model.config)
        self._rows: Tensor | None = None  # [HISTORY_STEPS, values of a step: parts of its batch, gradient norms]
        self._steps: deque[int] = deque(maxlen=HISTORY_STEPS)
        self._written = 0  # the last step that was
        self._parts: list[Tensor] = []  # of this step
        # Of this part: what its layers have passed. Of gates, queries and keys its first sequence says enough; autograd
        # keeps them, too, so that all layers can be done at once.
        self._logits: list[dict[str, Tensor]] = []
        self._queries: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._extremes: list[Tensor] = []
        for block in model.layers:
            assert isinstance(block, Block)
            block.attention.input.register_forward_hook(_in_training(self._see_gates(block)))
            block.attention.sdpa.register_forward_hook(_in_training(self._see_attention))
            for module in (block.attention_post_norm, block.ffn_post_norm, block):
                module.register_forward_hook(_in_training(self._see_output))
        model.register_forward_hook(_in_training(self._end_part))

    def take(self, step: int, gradient_norms: Tensor) -> None:
        """Keep what passed in this step, the `step`-th, and the norms of its gradients (see `TrainState`)."""
        row = torch.cat([*self._parts, gradient_norms])
        self._parts.clear()
        if self._rows is None:
            self._rows = torch.full((HISTORY_STEPS, len(row)), torch.nan, device=row.device)
        self._rows[step % HISTORY_STEPS] = row
        self._steps.append(step)

    def state(self) -> tuple[dict[str, Any], Tensor]:
        """Return what a history that goes on from here is made from: as JSON, and the kept rows `[steps, values]`."""
        steps = list(self._steps)
        rows = torch.empty(0, 0) if self._rows is None else self._rows[[step % HISTORY_STEPS for step in steps]]
        return {"steps": steps, "written": self._written}, rows

    def restore(self, state: dict[str, Any] | None, rows: Tensor | None) -> None:
        """Go on from what `state` returned; from nothing where a checkpoint of an older version has none."""
        if state is None or rows is None or not state["steps"]:
            return
        device = next(self._model.parameters()).device
        self._rows = torch.full((HISTORY_STEPS, rows.shape[1]), torch.nan, device=device)
        self._rows[[step % HISTORY_STEPS for step in state["steps"]]] = rows.to(device)
        self._steps.extend(state["steps"])
        self._written = state["written"]

    def write(self, recorder: Recorder, step: int) -> None:
        """Record the kept steps that have not been recorded yet, under `step`, at which something was found.

        autopsy/NAME/NNN is what NAME was NNN steps before: under their own steps they would come too late, for those
        of a journal never decrease.
        """
        fresh = [own for own in self._steps if own > self._written]
        for layer, columns in enumerate(self._by_layer()):
            named = {
                f"autopsy/{name}/{step - own:03d}": column[own % HISTORY_STEPS]
                for own in fresh
                for name, column in columns.items()
            }
            recorder.record(step, named, layer)
        self._written = step

    def _see_gates(self, block: Block) -> Callable[..., None]:
        def see(module: nn.Module, inputs: tuple[Tensor], output: dict[str, Tensor]) -> None:
            logits = block.attention.gate_logits(output, inputs[0])
            self._logits.append({position: own.detach()[0] for position, own in logits.items()})

        return see

    def _see_attention(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._queries.append(inputs[0].detach()[0])
        self._keys.append(inputs[1].detach()[0])

    def _see_output(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._extremes += torch.aminmax(output.detach())  # twice as fast as the largest magnitude, and no copy

    def _end_part(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        means = [
            gate.scores(torch.stack([own[position] for own in self._logits])).flatten(1).mean(1)
            for position, gate in self._gates.items()
        ]
        lengths = [
            torch.linalg.vector_norm(torch.stack(own), dim=-1, dtype=torch.float32).flatten(1).amax(1)
            for own in (self._queries, self._keys)
        ]
        self._parts.append(torch.cat([*means, *lengths, torch.stack(self._extremes)]))
        for seen in (self._logits, self._queries, self._keys, self._extremes):
            seen.clear()

    def _by_layer(self) -> Iterator[dict[str, list[float]]]:
        """Yield of each layer the measurements by name, each `[HISTORY_STEPS]`."""
        assert self._rows is not None
        layers, gates = len(self._model.layers), len(self._gates)
        owners = [_layer_of(name) for name, p in self._model.named_parameters() if p.grad is not None]
        rows = self._rows.double().cpu()  # no square of a float32 overflows in float64
        parts, gradients = torch.split(rows, [rows.shape[1] - len(owners), len(owners)], 1)
        parts = parts.reshape(HISTORY_STEPS, -1, layers * (gates + 2 + 2 * len(PLACES)))
        means, lengths, extremes = torch.split(parts, [layers * n for n in (gates, 2, 2 * len(PLACES))], 2)
        means = means.mean(1).view(HISTORY_STEPS, gates, layers)
        query, key = lengths.amax(1).view(HISTORY_STEPS, 2, layers).unbind(1)
        largest = extremes.abs().amax(1).view(HISTORY_STEPS, layers, len(PLACES), 2).amax(3)
        for layer in range(layers):
            columns = {f"gate/{name}/mean": means[:, index, layer] for index, name in enumerate(self._gates)}
            # Cauchy and Schwarz: no query times no key is larger than the longest times the longest.
            columns["attention/logit_bound"] = query[:, layer] * key[:, layer] * self._model.config.head_dim**-0.5
            columns |= {f"activation/{place}": largest[:, layer, index] for index, place in enumerate(PLACES)}
            own = gradients[:, [owner == layer for owner in owners]]
            columns["gradient_norm"] = torch.linalg.vector_norm(own, dim=1)
            yield {name: column.tolist() for name, column in columns.items()}


def _in_training(hook: Callable[..., None]) -> Callable[..., None]:
    """Make a hook that does nothing in an evaluation."""

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            hook(module, inputs, output)

    return see


def _layer_of(parameter: str) -> int:
    """Return the layer that a decoder's parameter belongs to; -1: none."""
    return int(parameter.split(".")[1]) if parameter.startswith("layers.") else -1
