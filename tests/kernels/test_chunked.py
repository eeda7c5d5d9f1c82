"""The CPU's backend: chunks of rows against float64, what it keeps in memory, and when it is passed over."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatelab.kernels import gated_attention
from gatelab.kernels.attention import PROBABILITIES_LIMIT, Case, choose_backend
from gatelab.kernels.chunked import chunks, probabilities_sizes
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def tensors(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normal values, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def problem(length: int, keys: int, heads: int = 2, kv_heads: int = 2, width: int = 8, batch: int = 1) -> list[Tensor]:
    """Queries, keys, values, an elementwise gate and a direction for the output."""
    rows, columns = (batch, length, heads, width), (batch, keys, kv_heads, width)
    return tensors(length + keys, rows, columns, columns, rows, rows)


def everything(call: Callable[..., Tensor], inputs: list[Tensor], direction: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradient of every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)]


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    *,
    activation: str = "sigmoid",
    combine: str = "multiply",
    causal: bool = True,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Attention and gate as PyTorch operations in the dtype of the inputs, differentiated by autograd."""
    if cu_seqlens is not None:
        parts = [slice(a, b) for a, b in pairwise(cu_seqlens.tolist()) if b > a]
        options = {"activation": activation, "combine": combine, "causal": causal}
        return torch.cat([plain_attention(*(x[:, part] for x in (q, k, v, gate)), **options) for part in parts], 1)
    group = q.shape[2] // k.shape[2]
    columns, values = (x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    logits = q.transpose(1, 2) @ columns.mT * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(k.shape[1] - q.shape[1] + 1)
        logits = logits.masked_fill(future, float("-inf"))
    return COMBINATIONS[combine]((logits.softmax(-1) @ values).transpose(1, 2), ACTIVATIONS[activation].value(gate))


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def check(inputs: list[Tensor], direction: Tensor, dtype: torch.dtype, **options: Any) -> None:
    """Output and gradients against float64 on the same rounded inputs: at most half more error than plain operations.

    The gradient of a gate may come from the rounded output: 0.5 % is right where the operations happen to be exact.
    """
    inputs, direction = [x.to(dtype) for x in inputs], direction.to(dtype)
    wide = [x.double() for x in inputs]
    truth = everything(plain_attention, wide, direction.double(), **options)
    got = everything(gated_attention, inputs, direction, backend="chunked", **options)
    plain = everything(plain_attention, inputs, direction, **options)
    assert [x.dtype for x in got] == [dtype] * len(got)
    errors = [rms(a.double() - x) for a, x in zip(got, truth, strict=True)]
    bars = [1.5 * rms(p.double() - x) + 1e-7 for p, x in zip(plain, truth, strict=True)]
    if dtype == torch.bfloat16:
        bars[4] = max(bars[4], 5e-3 * rms(truth[4]))
    assert all(error <= bar for error, bar in zip(errors, bars, strict=True)), (errors, bars)


@DTYPES
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 300])
def test_lengths_around_the_chunks_agree_with_float64(length: int, dtype: torch.dtype) -> None:
    """The last chunk is rarely full, and the first row of a chunk sees all chunks before it."""
    *inputs, direction = problem(length, length)
    check(inputs, direction, dtype)


@DTYPES
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gate_agrees_with_float64(activation: str, combine: str, dtype: torch.dtype) -> None:
    """Some gates are differentiated from the gated output alone, some from the output before: both over chunks."""
    *inputs, direction = problem(130, 130)
    check(inputs, direction, dtype, activation=activation, combine=combine)


SHAPES: dict[str, dict[str, Any]] = {
    "more-keys": {"length": 70, "keys": 140},
    "one-query": {"length": 1, "keys": 140, "heads": 4},
    "grouped": {"length": 130, "keys": 130, "heads": 4, "batch": 2},
    "multi-query": {"length": 130, "keys": 150, "heads": 3, "kv_heads": 1},
    "odd-width": {"length": 66, "keys": 66, "width": 5},
}


@DTYPES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_agrees_with_float64(shape: str, causal: bool, dtype: torch.dtype) -> None:
    """Heads that share keys are rows of one matrix: masks and gradients must follow that layout."""
    *inputs, direction = problem(**SHAPES[shape])
    check(inputs, direction, dtype, causal=causal)


@DTYPES
def test_without_a_mask_there_may_be_fewer_keys_than_queries(dtype: torch.dtype) -> None:
    """Cross-attention has as many keys as it likes."""
    *inputs, direction = problem(70, 20)
    check(inputs, direction, dtype, causal=False)


@DTYPES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [[70, 1, 129], [0, 0, 64, 0, 65, 0], [200], [1] * 5], ids=str)
def test_packed_sequences_are_computed_one_by_one(lengths: list[int], causal: bool, dtype: torch.dtype) -> None:
    """No token sees another document: output and gradients are those of separate calls."""
    *inputs, direction = problem(sum(lengths), sum(lengths), heads=4)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    check(inputs, direction, dtype, causal=causal, cu_seqlens=bounds)


@DTYPES
@pytest.mark.parametrize("lengths", [None, [70, 0, 80]], ids=["one", "packed"])
def test_keeping_for_the_backward_changes_no_bit_of_the_output(lengths: list[int] | None, dtype: torch.dtype) -> None:
    """Evaluation runs without gradients: it must report the model that was trained."""
    inputs = [x.to(dtype) for x in problem(150, 150)[:4]]
    bounds = None if lengths is None else torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    leaves = [x.clone().requires_grad_() for x in inputs]
    trained = gated_attention(*leaves, cu_seqlens=bounds, backend="chunked")
    assert trained.requires_grad
    with torch.no_grad():
        assert torch.equal(gated_attention(*leaves, cu_seqlens=bounds, backend="chunked"), trained)
    with torch.inference_mode():
        assert torch.equal(gated_attention(*leaves, cu_seqlens=bounds, backend="chunked"), trained)
    assert torch.equal(gated_attention(*inputs, cu_seqlens=bounds, backend="chunked"), trained)


def test_what_inference_mode_has_cached_can_be_trained_with() -> None:
    """A mask made under inference mode would be refused by a later backward: evaluation may come first."""
    *inputs, direction = problem(37, 37, heads=3, kv_heads=1)  # a mask of no other test
    with torch.inference_mode():
        gated_attention(*inputs, backend="chunked")
    check(inputs, direction, torch.float64)


class Outputs(TorchDispatchMode):
    """Elements of what the forward operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.gatelab.chunked_attention.default:
            y, o, kept = out
            self.seen.append([y.numel(), o.numel(), sum(x.numel() for x in kept)])
        return out


def test_it_keeps_probabilities_only_for_a_backward() -> None:
    """Long evaluations fit in memory: nothing grows with T² without gradients, and a sigmoid needs no O."""
    *inputs, _ = problem(130, 130)
    size = sum(probabilities_sizes(1, 130, 130, 2, True, torch.float64))
    assert 130 * 131 / 2 * 2 < size < 130 * 130 * 2  # the half below the diagonal, and a little
    leaves = [x.requires_grad_() for x in inputs]
    with Outputs() as mode:
        gated_attention(*leaves, backend="chunked")
        gated_attention(*leaves, activation="silu", backend="chunked")
        with torch.no_grad():
            gated_attention(*leaves, backend="chunked")
        gated_attention(*(x.detach() for x in leaves), backend="chunked")
    elements = 130 * 2 * 8
    assert mode.seen == [[elements, 0, size], [elements, elements, size], [elements, 0, 0], [elements, 0, 0]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bounds", [None, [0, 70, 70, 71, 300]], ids=["one", "packed"])
def test_chunks_hold_every_visible_pair_once(bounds: list[int] | None, causal: bool) -> None:
    """The chunks together are all queries in order, each with the keys of its own sequence that it may see."""
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int32)
    covered = torch.zeros(300, 300, dtype=torch.int64)
    rows: list[int] = []
    kept = 0
    for chunk in chunks(300, 300, causal, 64, cu_seqlens):
        covered[chunk.begin : chunk.end, chunk.first : chunk.last] += 1
        rows += range(chunk.begin, chunk.end)
        kept += (chunk.end - chunk.begin) * (chunk.last - chunk.first)
    assert rows == list(range(300))
    sequence = torch.searchsorted(torch.tensor(bounds or [0, 300]), torch.arange(300), right=True)
    visible = sequence[:, None] == sequence[None, :]
    if causal:
        visible &= torch.ones(300, 300, dtype=torch.bool).tril()
    assert (covered[visible] == 1).all()
    assert covered.max() == 1
    assert kept <= sum(probabilities_sizes(1, 300, 300, 1, causal, torch.float32))  # what the operator sets aside


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_second_run_has_the_same_bits(dtype: torch.dtype) -> None:
    """A repeated run is the same run."""
    *inputs, direction = [x.to(dtype) for x in problem(200, 200, heads=4)]
    first, second = (everything(gated_attention, inputs, direction, backend="chunked") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@DTYPES
def test_later_tokens_never_change_earlier_outputs(dtype: torch.dtype) -> None:
    """A language model that sees one bit of the future is no language model, within a chunk and across them."""
    inputs = [x.to(dtype) for x in problem(200, 200)[:4]]
    before = gated_attention(*inputs, backend="chunked")
    for kept in (1, 63, 64, 65, 150, 199):
        changed = [torch.cat([x[:, :kept], 9 - 3 * x[:, kept:]], 1) for x in inputs]
        after = gated_attention(*changed, backend="chunked")
        assert torch.equal(after[:, :kept], before[:, :kept])
        assert not torch.equal(after[:, kept:], before[:, kept:])


@DTYPES
def test_auto_passes_it_over_where_it_would_keep_too_much(dtype: torch.dtype) -> None:
    """Memory grows with T²: beyond the limit the slower backend is taken, unless this one is asked for by name."""
    each = sum(probabilities_sizes(1, 1024, 1024, 8, True, dtype)) * dtype.itemsize
    batch = PROBABILITIES_LIMIT // each
    assert batch >= 1
    fits, exceeds = (Case("cpu", dtype, rows, 1024, 1024, 8, 8, 64) for rows in (batch, batch + 1))
    assert choose_backend(fits).name == "chunked"
    assert choose_backend(exceeds).name == "sdpa"
    assert choose_backend(exceeds, "chunked").name == "chunked"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "chunked"),
        ({"query_length": 128, "key_length": 128}, "sdpa"),
        ({"query_length": 2048, "key_length": 2048}, "sdpa"),
        ({"query_length": 2048, "key_length": 2048, "dtype": torch.bfloat16}, "chunked"),
        ({"causal": False}, "sdpa"),
        ({"causal": False, "dtype": torch.bfloat16}, "chunked"),
        ({"dtype": torch.float16}, "sdpa"),
        ({"dtype": torch.float64}, "sdpa"),
        ({"query_length": 64, "key_length": 64}, "sdpa"),
        ({"query_length": 64, "key_length": 64, "dtype": torch.bfloat16}, "chunked"),
        ({"query_length": 2048, "key_length": 2048}, "sdpa"),
        ({"query_length": 32}, "chunked"),
        ({"query_length": 32, "dtype": torch.float64}, "reference"),
    ],
    ids=str,
)
def test_auto_takes_it_where_it_was_measured_to_be_faster(change: dict[str, Any], name: str) -> None:
    """`auto` follows measurements; where the plain backend cannot align a cache, this one or the reference must."""
    case = {
        "device": "cpu",
        "dtype": torch.float32,
        "batch": 1,
        "query_length": 512,
        "key_length": 512,
        "query_heads": 2,
        "kv_heads": 2,
        "head_dim": 16,
    }
    assert choose_backend(Case(**{**case, **change})).name == name
