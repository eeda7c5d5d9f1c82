"""What a forward pass on held-out text shows of attention, activations and gates, layer by layer.

Nothing in the model is there for this: hooks on its modules see what passes, and what a fused kernel does not write
(attention probabilities, the output before the gate) is computed again here, in chunks of rows. Definitions follow
section 4 of the paper (arXiv 2505.06708), made exact in docs/diagnostics.md.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gatelab.kernels import gated_attention
from gatelab.metrics import SHARE, SIZE, MetricSpec
from gatelab.models.decoder import Block, Decoder
from gatelab.models.layers import Attention
from gatelab.training.device import precision_context
from gatelab.training.running_stats import RunningStats

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Attention probabilities that exist at a time: as many as a CPU's cache holds, or as keep a GPU busy."""
FLOAT_COUNTS = 1 << 24  # up to here float32 counts one by one
BINS = 20
"""Bins of the histogram of gate scores over [0, 1]; what lies outside counts in the bin at its end."""
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}

SCORES = ("mean", "std", "min", "max", "first_token_mean", *QUANTILES)
SPECS = {
    "attention/first_token_share": MetricSpec(
        "share", mirrored_by_layer=True, floor="attention/first_token_share_uniform"
    ),
    "attention/first_token_share_late": MetricSpec("share", floor="attention/first_token_share_late_uniform"),
    "attention/first_token_share_top_head": MetricSpec("share", floor="attention/first_token_share_uniform"),
    "attention/first_token_share_uniform": SHARE,
    "attention/first_token_share_late_uniform": SHARE,
    "attention/entropy": MetricSpec("nats", floor="attention/entropy_uniform"),
    "attention/entropy_uniform": MetricSpec("nats"),
    "attention/max_logit": MetricSpec(logarithmic=True, mirrored_by_layer=True),
    "attention/sequence_length": MetricSpec("tokens"),
    "activation/attention_output": SIZE,
    "activation/attention_residual": SIZE,
    "activation/ffn_output": SIZE,
    "activation/ffn_residual": MetricSpec(logarithmic=True, mirrored_by_layer=True),
    "sdpa/mean_abs": SIZE,
    "sdpa/below_*": SHARE,
    "sdpa_ungated/mean_abs": SIZE,
    "sdpa_ungated/below_*": SHARE,
    "gate/*/mean": MetricSpec(mirrored_by_layer=True),
    **{f"gate/*/{name}": MetricSpec() for name in SCORES if name != "mean"},
    "gate/*/below_*": SHARE,
    "histogram/gate/*": MetricSpec(kind="detail"),
}
"""Metrics that `diagnose` measures."""
NORM_SPECS = {
    "gradient_norm": MetricSpec(mirrored_by_layer=True),
    "gradient_norm/*": SIZE,
    "weight_norm/*": SIZE,
}
"""Metrics that `norms` measures."""

Values = dict[str, float]


@torch.no_grad()
def diagnose(
    model: Decoder, windows: npt.NDArray[np.int64], batch_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Values, list[Values]]:
    """Measure `windows [N, T + 1]`: (values of the whole model, values of each layer), by name.

    Of a layer:
        attention/first_token_share: attention that goes to the first token, mean over heads, sequences and queries;
            attention/first_token_share_late: of queries in the second half only, whose mechanical floor is low;
            attention/first_token_share_top_head: of the head with the largest mean.
        attention/entropy: of each query's distribution, in nats, mean over the same.
        attention/max_logit: the largest scaled logit of a query and a key that it sees.
        activation/attention_output, /attention_residual, /ffn_output, /ffn_residual: largest magnitude of what a
            sub-layer adds to the residual stream, and of the stream after it.
        sdpa/…: mean_abs, below_1e-2 and below_1e-3 (shares of magnitudes) of what attention puts out, its gate
            applied; sdpa_ungated/…: the same before that gate.
        gate/POSITION/…: mean, std, min, max, quantiles, first_token_mean, below_0.1 and below_0.01 (shares of
            magnitudes) of the scores; histogram/gate/POSITION/NN: the share of scores in each of 20 bins over [0, 1].
    Of the whole model: the mean over layers of each (the largest for attention/max_logit, and no histograms);
    attention/sequence_length, T; and attention/…_uniform: what attention that is uniform over the past would show.
    """
    by_layer = [RunningStats() for _ in model.layers]
    model.eval()
    with _watching(model, by_layer):
        for start in range(0, len(windows), batch_size):
            batch = torch.from_numpy(windows[start : start + batch_size, :-1]).to(device)
            for stats in by_layer:
                stats.weight = len(batch)
            with precision_context(dtype, device):
                model.hidden(batch)
    model.train()
    layers = [stats.values() for stats in by_layer]
    return {**_of_model(layers), **uniform_attention(windows.shape[1] - 1)}, layers


def uniform_attention(length: int) -> Values:
    """Return what attention that is uniform over the tokens it sees shows at a length: the mechanical floor."""
    seen = np.arange(1, length + 1)
    return {
        "attention/sequence_length": float(length),
        "attention/first_token_share_uniform": float(np.mean(1 / seen)),
        "attention/first_token_share_late_uniform": float(np.mean(1 / seen[length // 2 :])),
        "attention/entropy_uniform": float(np.mean(np.log(seen))),
    }


def _of_model(layers: list[Values]) -> Values:
    names = [name for name in layers[0] if not name.startswith("histogram/")]
    columns = {name: [layer[name] for layer in layers] for name in names}
    return {
        # NumPy's maximum of anything and NaN is NaN, whichever comes first.
        name: float(np.max(values)) if name == "attention/max_logit" else math.fsum(values) / len(values)
        for name, values in columns.items()
    }


@contextmanager
def _watching(model: Decoder, by_layer: list[RunningStats]) -> Iterator[None]:
    """Have each layer's stats fed by what passes through the layer."""
    handles = [
        handle
        for block, stats in zip(model.layers, by_layer, strict=True)
        if isinstance(block, Block)
        for handle in _hooks(block, stats)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(block: Block, stats: RunningStats) -> Iterator[Any]:
    attention = block.attention

    def seen(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: stats.largest(f"activation/{name}", output.abs().amax())

    yield attention.input.register_forward_hook(partial(_see_gates, stats, attention))
    yield attention.sdpa.register_forward_hook(partial(_see_attention, stats))
    yield block.attention_post_norm.register_forward_hook(seen("attention_output"))
    yield block.ffn_norm.register_forward_pre_hook(
        lambda module, inputs: stats.largest("activation/attention_residual", inputs[0].abs().amax())
    )
    yield block.ffn_post_norm.register_forward_hook(seen("ffn_output"))
    yield block.register_forward_hook(seen("ffn_residual"))


def _see_gates(
    stats: RunningStats, attention: Attention, module: nn.Module, inputs: tuple[Tensor], parts: dict[str, Tensor]
) -> None:
    for position, logits in attention.gate_logits(parts, inputs[0]).items():
        scores = attention.gates[position].scores(logits).float()
        name = f"gate/{position}"
        stats.moments(name, scores)
        stats.smallest(f"{name}/min", scores.amin())
        stats.largest(f"{name}/max", scores.amax())
        stats.mean(f"{name}/first_token_mean", scores[:, 0].mean())
        _see_small(stats, name, scores, ("0.1", "0.01"))
        stats.quantiles(name, scores, QUANTILES)
        counted = scores.double() if scores.numel() > FLOAT_COUNTS else scores
        shares = torch.histc(counted.clamp(0, 1), BINS, 0, 1) / scores.numel()
        for index, share in enumerate(shares):
            stats.mean(f"histogram/{name}/{index:02d}", share)


def _see_attention(
    stats: RunningStats, module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor
) -> None:
    query, key, value, logits = inputs
    with torch.autocast(query.device.type, enabled=False):  # products in float32, whatever the model computes in
        statistics = attention_statistics(query, key)
    for name, statistic in statistics.items():
        (stats.largest if name == "max_logit" else stats.mean)(f"attention/{name}", statistic)
    outputs = {"sdpa": output}
    if logits is not None:
        outputs["sdpa_ungated"] = gated_attention(query, key, value)
    for name, tensor in outputs.items():
        stats.mean(f"{name}/mean_abs", tensor.abs().mean(dtype=torch.float32))
        _see_small(stats, name, tensor, ("1e-2", "1e-3"))


def _see_small(stats: RunningStats, name: str, values: Tensor, bounds: tuple[str, ...]) -> None:
    """Take the shares of values whose magnitude is below each bound."""
    magnitudes = values.abs()
    for bound in bounds:
        stats.mean(f"{name}/below_{bound}", (magnitudes < float(bound)).count_nonzero() / values.numel())


def attention_statistics(query: Tensor, key: Tensor) -> dict[str, Tensor]:
    """Measure causal attention of `query [B, T, Hq, D]` to `key [B, T, Hkv, D]`, in float32.

    first_token_share, first_token_share_late, entropy (nats) and max_logit are scalars, first_token_share_top_head
    is the share of each head, `[Hq]`: see `diagnose`. Probabilities exist for a chunk of queries at a time, never as
    `[B, H, T, T]` at a large T.
    """
    length, heads = query.shape[1], query.shape[2]
    keys = key.float().repeat_interleave(heads // key.shape[2], 2).permute(0, 2, 3, 1)  # [B, H, D, T]
    rows = max(1, CHUNK_ELEMENTS.get(query.device.type, CHUNK_ELEMENTS["cpu"]) // (query.shape[0] * heads * length))
    shares, entropies, largest = [], [], []
    for begin in range(0, length, rows):
        end = min(begin + rows, length)
        queries = query[:, begin:end].float().transpose(1, 2)
        logits = (queries @ keys[..., :end]) * query.shape[3] ** -0.5  # [B, H, rows, end]
        future = torch.ones(end - begin, end, dtype=torch.bool, device=query.device).triu_(begin + 1)
        logits.masked_fill_(future, torch.finfo(torch.float32).min)  # finite: 0 x it is 0 in the entropy
        probabilities = logits.softmax(-1)
        peaks = logits.amax(-1)
        shares.append(probabilities[..., 0])
        # ln sum exp(logits) follows from any one logit and its probability: the largest has one that is not 0.
        entropies.append(peaks - probabilities.amax(-1).log() - torch.linalg.vecdot(probabilities, logits))
        largest.append(peaks.amax())
    share = torch.cat(shares, -1)  # [B, H, T]
    return {
        "first_token_share": share.mean(),
        "first_token_share_late": share[..., length // 2 :].mean(),
        "first_token_share_top_head": share.mean((0, 2)),
        "entropy": torch.cat(entropies, -1).mean(),
        "max_logit": torch.stack(largest).amax(),
    }


def norms(model: Decoder) -> list[Values]:
    """Measure each layer's gradient_norm of the last step, after clipping, and weight_norm/PART, gradient_norm/PART.

    Parts are query, key, value, gate_POSITION, attention_output, ffn and norms.
    """
    found = []
    for layer in model.layers:
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in layer.named_parameters():
            parts.setdefault(_part(name), []).append(parameter)
        values = {"gradient_norm": nn.utils.get_total_norm([p.grad for p in layer.parameters() if p.grad is not None])}
        for part, parameters in parts.items():
            values[f"weight_norm/{part}"] = nn.utils.get_total_norm(parameters)
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                values[f"gradient_norm/{part}"] = nn.utils.get_total_norm(gradients)
        found.append(dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)))
    return found


def _part(name: str) -> str:
    """Return the part of a layer that a parameter belongs to."""
    if ".blocks." in name and name.startswith("attention."):
        return name.rpartition(".")[2]
    if name.startswith("attention.gate_constants."):
        return "gate_" + name.rpartition(".")[2]
    if "norm" in name or name == "attention.sdpa_output.weight":
        return "norms"
    return "attention_output" if name.startswith("attention.output.") else "ffn"
