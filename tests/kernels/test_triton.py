"""The Triton kernels against float64: in Triton's interpreter, or compiled where there is a CUDA device."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import cycle, product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatelab.kernels import gate as arithmetic
from gatelab.kernels import gated_attention
from gatelab.kernels.attention import Case, choose_backend
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS

triton = pytest.importorskip("triton")
tl = import_module("triton.language")
triton_attention = import_module("gatelab.kernels.triton_attention")
triton_gate = import_module("gatelab.kernels.triton_gate")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRANULARITIES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "elementwise": lambda heads, width: (heads, width),
    "headwise": lambda heads, width: (heads, 1),
    "shared": lambda heads, width: (1, width),
    "scalar": lambda heads, width: (1, 1),
}
POSITIVE = [name for name, entry in ACTIVATIONS.items() if entry.positive]
HALF = torch.finfo(torch.float16).eps


def tensors(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normal values, the same for each seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for s in shapes]


def problem(
    length: int, keys: int, heads: int, kv_heads: int, width: int, granularity: str | None, batch: int = 1
) -> list[Tensor]:
    """Queries, keys, values, a gate of twice the spread (unless `granularity` is None), a direction for the output."""
    rows, kv = (batch, length), (batch, keys, kv_heads, width)
    shapes = [(*rows, heads, width), kv, kv]
    if granularity is not None:
        shapes.append((*rows, *GRANULARITIES[granularity](heads, width)))
    *inputs, direction = tensors(length + 7 * width, *shapes, (*rows, heads, width))
    inputs[3:] = [gate * 2 for gate in inputs[3:]]
    return [*inputs, direction]


def everything(call: Callable[..., Tensor], inputs: list[Tensor], direction: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradient of every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]  # keeps the strides
    out = call(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)]


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None = None,
    *,
    activation: str = "sigmoid",
    combine: str = "multiply",
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Attention and gate as PyTorch operations in the dtype of the inputs, differentiated by autograd."""
    group = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    logits = q.transpose(1, 2) @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(k.shape[1] - q.shape[1] + 1)
        logits = logits.masked_fill(future, float("-inf"))
    out = (logits.softmax(-1) @ values).transpose(1, 2)
    return out if gate is None else COMBINATIONS[combine](out, ACTIVATIONS[activation].value(gate))


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def check(
    inputs: list[Tensor], direction: Tensor, dtype: torch.dtype, *, cancelled: float = 3e-7, **options: Any
) -> None:
    """Output and gradients in `dtype` against float64 on the same rounded inputs.

    In float32 to a few units of its precision; in float16 as near as PyTorch's own operations in float16, half as much
    again allowed. `cancelled` is what may be left where the terms of a gradient cancel.
    """
    inputs, direction = [x.to(dtype) for x in inputs], direction.to(dtype)
    wide = [x.double() for x in inputs]
    truth = everything(gated_attention, wide, direction.double(), backend="reference", **options)
    got = everything(gated_attention, inputs, direction, backend="triton", **options)
    assert [x.dtype for x in got] == [dtype] * len(got)
    assert [x.shape for x in got] == [x.shape for x in truth]
    if dtype == torch.float32:
        bars = [1e-6 * rms(x) + cancelled for x in truth]
    else:
        plain = everything(plain_attention, inputs, direction, **options)
        bars = [1.5 * rms(p.double() - x) + 0.2 * HALF * rms(x) + 1e-4 for p, x in zip(plain, truth, strict=True)]
    errors = [rms(a.double() - x) for a, x in zip(got, truth, strict=True)]
    assert all(error <= bar for error, bar in zip(errors, bars, strict=True)), (errors, bars)


def tiled(table: Any, own: int, loop: int) -> Any:
    """A table of tiles, however nested, with all its tiles of one size."""
    if isinstance(table, dict):
        return {key: tiled(value, own, loop) for key, value in table.items()}
    return replace(table, own=own, loop=loop)


@pytest.fixture(params=["own-32-loop-16", "own-16-loop-32"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that short sequences take several turns of every loop."""
    _, own, _, loop = request.param.split("-")
    monkeypatch.setattr(triton_attention, "TILES", tiled(triton_attention.TILES, int(own), int(loop)))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "TILES", tiled(triton_attention.TILES, 16, 16))


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel allocates and does not write is NaN, never the right answer of the test before."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def empty(*args: Any, **options: Any) -> Tensor:
            out = allocate(*args, **options)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return empty

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
    assert torch.empty(3).isnan().all()


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_gate_agrees_with_float64(activation: str, granularity: str, combine: str, small_tiles: None) -> None:
    """Each kind of gate takes its own path through the backward: none may be wrong, in the output or a gradient."""
    *inputs, direction = problem(20, 24, 2, 1, 5, granularity)
    check(inputs, direction, torch.float32, activation=activation, combine=combine)


HALF_GRID = [
    pytest.param(activation, granularity, combine, id=f"{activation}-{granularity}-{combine}")
    for (activation, granularity), combine in zip(product(ACTIVATIONS, GRANULARITIES), cycle(COMBINATIONS))
    if (list(ACTIVATIONS).index(activation) + list(GRANULARITIES).index(granularity) // 2) % 2 == 0
]


@pytest.mark.parametrize(("activation", "granularity", "combine"), HALF_GRID)
def test_every_gate_in_float16_is_as_accurate_as_plain_operations(
    activation: str, granularity: str, combine: str, small_tiles: None
) -> None:
    """Training in 16 bits through the kernels loses no more than through PyTorch's own operations."""
    *inputs, direction = problem(20, 20, 2, 1, 16, granularity)
    check(inputs, direction, torch.float16, activation=activation, combine=combine)


SHAPES = {
    "one-token": {"shape": (1, 1, 2, 2, 3)},
    "one-query-many-keys": {"shape": (1, 50, 4, 2, 16)},
    "multi-query": {"shape": (17, 17, 4, 1, 16)},
    "grouped": {"shape": (24, 24, 4, 2, 8), "batch": 2},
    "more-keys": {"shape": (17, 50, 2, 2, 24), "scale": 0.3},
    "odd-77": {"shape": (77, 77, 2, 1, 40)},
    "odd-60": {"shape": (60, 60, 1, 1, 48), "causal": False},
    "odd-50": {"shape": (50, 50, 1, 1, 3)},
    "fewer-keys": {"shape": (40, 19, 2, 1, 80), "causal": False, "scale": 0.2},
    "one-channel": {"shape": (33, 48, 2, 2, 1)},
    "negative-scale": {"shape": (17, 20, 2, 1, 8), "scale": -0.7},
    "uniform": {"shape": (17, 20, 2, 1, 8), "scale": 0.0},
    "wide-head": {"shape": (18, 18, 1, 1, 136)},
}


@pytest.mark.parametrize(
    ("activation", "granularity", "dtype"),
    [
        pytest.param("sigmoid", "elementwise", torch.float32, id="elementwise-float32"),
        pytest.param("silu", "headwise", torch.float32, id="headwise-float32"),
        pytest.param("sigmoid", "headwise", torch.float16, id="headwise-float16"),
    ],
)
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_agrees_with_float64(
    name: str, activation: str, granularity: str, dtype: torch.dtype, small_tiles: None
) -> None:
    """Tiles rarely fit a problem: odd ends, groups of heads, shifted masks and padded channels are all computed."""
    options = dict(SHAPES[name])
    *inputs, direction = problem(*options.pop("shape"), granularity, batch=options.pop("batch", 1))
    check(inputs, direction, dtype, activation=activation, **options)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_combination_agrees_with_float64(data: st.DataObject, tiles: None) -> None:
    """What no table of cases pairs up: any shape with any gate, mask, scale and tiles."""
    length, kv_heads, group = (data.draw(st.integers(1, n)) for n in (36, 2, 2))
    causal, width = data.draw(st.booleans()), data.draw(st.sampled_from([1, 2, 3, 16, 20]))
    keys = data.draw(st.integers(length if causal else 1, length + 20))
    granularity = data.draw(st.sampled_from([None, *GRANULARITIES]))
    *inputs, direction = problem(
        length, keys, kv_heads * group, kv_heads, width, granularity, data.draw(st.integers(1, 2))
    )
    check(
        inputs,
        direction,
        torch.float32,
        activation=data.draw(st.sampled_from(list(ACTIVATIONS))),
        combine=data.draw(st.sampled_from(list(COMBINATIONS))),
        causal=causal,
        scale=data.draw(st.sampled_from([None, 0.3, 2.0, 0.0, -0.7])),
        cancelled=3e-6,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("width", [16, 64, 128, 256])
def test_the_shipped_tiles_agree_with_float64(width: int, dtype: torch.dtype) -> None:
    """The tiles that users run are the ones in the table, not the small ones of these tests."""
    *inputs, direction = problem(150, 150, 1, 1, width, "elementwise")
    check(inputs, direction, dtype)


@pytest.mark.parametrize("causal", [True, False])
def test_plain_attention_needs_no_gate(causal: bool, tiles: None) -> None:
    """Ungated baselines run through the same kernels."""
    *inputs, direction = problem(37, 53, 2, 1, 16, None)
    check(inputs, direction, torch.float32, causal=causal)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads-of-a-wider-projection": lambda x: torch.cat([x, x + 1], 2)[:, :, : x.shape[2]],
    "half-of-a-doubled-projection": lambda x: torch.cat([x + 1, x], 3).chunk(2, -1)[1],
    "heads-before-time": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "channels-not-last": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "odd-offset": lambda x: torch.cat([x[..., :1], x], 3)[..., 1:],
    "every-other-token": lambda x: torch.stack([x, x + 1], 2).flatten(1, 2)[:, ::2],
}


@pytest.mark.parametrize(("layout", "granularity"), list(zip(LAYOUTS, cycle(["elementwise", "headwise", "shared"]))))
def test_strides_change_nothing(layout: str, granularity: str, small_tiles: None) -> None:
    """Models hand over slices and transposed views: each gives the bits of its contiguous copy, so do its gradients."""
    *inputs, direction = [x.half() for x in problem(18, 18, 2, 1, 16, granularity, batch=2)]
    strided = [LAYOUTS[layout](x) for x in inputs]
    assert all(torch.equal(a, b) for a, b in zip(strided, inputs, strict=True))
    assert not strided[0].is_contiguous()
    want = everything(gated_attention, inputs, direction, backend="triton")
    got = everything(gated_attention, strided, LAYOUTS[layout](direction), backend="triton")
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_expanded_tensors_are_read_through_strides_of_zero(activation: str, small_tiles: None) -> None:
    """A constant gate, one sequence for a whole batch, and the gradient of `y.sum()` all have strides of 0."""
    q, k, v, _ = tensors(1, (2, 19, 2, 8), (1, 19, 2, 8), (1, 19, 1, 8), (), dtype=torch.float32)
    gate = torch.tensor(0.7, device=DEVICE)
    expanded = [q, k.expand(2, -1, -1, -1), v.expand(2, -1, 2, -1), gate.expand(q.shape)]
    direction = torch.ones((), device=DEVICE).expand(q.shape)
    assert 0 in expanded[1].stride() and 0 in expanded[2].stride()
    assert set(expanded[3].stride()) == set(direction.stride()) == {0}
    copies = [x.contiguous() for x in expanded]
    options = {"activation": activation, "backend": "triton"}
    want = everything(gated_attention, copies, direction.contiguous(), **options)
    for a, b in zip(everything(gated_attention, expanded, direction, **options), want, strict=True):
        assert torch.equal(a, b)
    check(copies, direction.contiguous(), torch.float32, activation=activation)


def test_a_float32_gate_on_float16_attention_keeps_its_range_and_digits(small_tiles: None) -> None:
    """A gate outside autocast is not rounded to the dtype of what it gates, nor is its gradient."""
    *inputs, direction = problem(35, 35, 2, 1, 16, "elementwise")
    q, k = (x.half() for x in inputs[:2])
    v, direction = inputs[2].mul(3000).half(), direction.mul(500).half()
    gate = inputs[3].mul(1e-7).float()
    assert rms(gate.half().double() - gate) > 1e-2 * rms(gate)  # float16 has no such numbers
    options = {"activation": "identity"}
    got = everything(gated_attention, [q, k, v, gate], direction, backend="triton", **options)
    wide = [x.double() for x in (q, k, v, gate)]
    truth = everything(gated_attention, wide, direction.double(), backend="reference", **options)
    assert got[4].dtype == torch.float32
    assert truth[4].abs().max() > torch.finfo(torch.float16).max
    for a, b in ((got[0], truth[0]), (got[4], truth[4])):
        assert rms(a.double() - b) <= HALF * rms(b)


LENGTHS = {
    "several": [17, 1, 9],
    "empty-at-both-ends": [0, 0, 20, 1, 0, 1, 16, 0],
    "one-sequence": [35],
    "all-short": [1] * 5,
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("granularity", ["elementwise", "headwise", "shared"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_sequences_are_computed_one_by_one(
    lengths: str, granularity: str, causal: bool, small_tiles: None
) -> None:
    """No token sees another document, whatever the lengths: output and gradients are those of separate calls."""
    sizes = LENGTHS[lengths]
    total = sum(sizes)
    *inputs, direction = [x.float() for x in problem(total, total, 2, 1, 8, granularity)]
    bounds = torch.tensor([0, *torch.tensor(sizes).cumsum(0)], dtype=torch.int32, device=DEVICE)
    got = everything(gated_attention, inputs, direction, cu_seqlens=bounds, causal=causal, backend="triton")
    pieces = [
        everything(gated_attention, [x.double() for x in parts], step.double(), causal=causal, backend="reference")
        for *parts, step in zip(*(x.split(sizes, 1) for x in (*inputs, direction)), strict=True)
        if step.shape[1]
    ]
    for a, parts in zip(got, zip(*pieces, strict=True), strict=True):
        truth = torch.cat(parts, 1)
        assert rms(a.double() - truth) <= 1e-6 * rms(truth) + 3e-7


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_second_run_has_the_same_bits(granularity: str, small_tiles: None) -> None:
    """A repeated run is the same run: no sum depends on the order in which programs finish."""
    *inputs, direction = [x.half() for x in problem(24, 24, 4, 2, 16, granularity)]
    first, second = (everything(gated_attention, inputs, direction, backend="triton") for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_later_tokens_never_change_earlier_outputs(dtype: torch.dtype, tiles: None) -> None:
    """A language model that sees one bit of the future is no language model."""
    *inputs, _ = [x.to(dtype) for x in problem(50, 50, 1, 1, 16, "elementwise")]
    before = gated_attention(*inputs, backend="triton")
    for kept in (1, 15, 16, 31, 33, 49):
        changed = [torch.cat([x[:, :kept], 9 - 3 * x[:, kept:]], 1) for x in inputs]
        after = gated_attention(*changed, backend="triton")
        assert torch.equal(after[:, :kept], before[:, :kept])
        assert not torch.equal(after[:, kept:], before[:, kept:])


@pytest.mark.parametrize("granularity", ["elementwise", "headwise", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_a_gate_of_one_is_no_gate(dtype: torch.dtype, granularity: str, small_tiles: None) -> None:
    """The gated and the ungated arm of a study differ by the gate alone: with a gate of 1, by no bit."""
    *inputs, gate, direction = [x.to(dtype) for x in problem(37, 45, 2, 1, 16, granularity)]
    gated = everything(
        gated_attention, [*inputs, torch.ones_like(gate)], direction, activation="identity", backend="triton"
    )
    ungated = everything(gated_attention, inputs, direction, backend="triton")
    for a, b in zip(gated, ungated, strict=False):  # the gate's own gradient has no counterpart
        assert torch.equal(a, b)


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_a_headwise_gate_is_an_elementwise_one_with_repeated_logits(
    activation: str, combine: str, small_tiles: None
) -> None:
    """The head-wise backward takes a shortcut (it never writes dO): it must be the same function."""
    *inputs, gate, direction = [x.float() for x in problem(37, 37, 2, 1, 16, "headwise")]
    options = {"activation": activation, "combine": combine, "backend": "triton"}
    got = everything(gated_attention, [*inputs, gate], direction, **options)
    want = everything(gated_attention, [*inputs, gate.expand_as(direction).contiguous()], direction, **options)
    want[4] = want[4].sum(3, keepdim=True)
    for a, b in zip(got, want, strict=True):
        assert rms(a.double() - b.double()) <= 5e-7 * rms(b) + 1e-7


@pytest.mark.parametrize("granularity", ["elementwise", "headwise", "shared"])
@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [
        *((name, *span) for name in (*POSITIVE, "silu") for span in ((4, 8), (12, 16), (-80, -20))),
        ("tanh", 4, 8),
        ("tanh", 12, 16),
        ("tanh", -16, -12),
    ],
)
def test_a_saturated_gate_has_its_true_gradient(
    activation: str, low: float, high: float, granularity: str, small_tiles: None
) -> None:
    """Written as s(1 - s), the gradient of an open gate is lost to rounding, and it can never close again."""
    *inputs, gate, direction = [x.float() for x in problem(9, 9, 2, 2, 8, granularity)]
    gate = torch.linspace(low, high, gate.numel(), device=DEVICE).view_as(gate)
    wide = [x.double() for x in (*inputs, gate)]
    got = everything(gated_attention, [*inputs, gate], direction, activation=activation, backend="triton")[4]
    truth = everything(gated_attention, wide, direction.double(), activation=activation, backend="reference")[4]
    slope = ACTIVATIONS[activation].slope(wide[3])  # divided by it, large and tiny gradients count alike
    assert rms(got.double() / slope - truth / slope) <= 1e-5 * rms(truth / slope)


def test_auto_leaves_the_interpreter_to_tests() -> None:
    """Minutes per step: with the interpreter on, `auto` still picks a backend made for the CPU."""
    if DEVICE == "cuda":
        pytest.skip("kernels are compiled here")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        case = Case("cpu", dtype, 1, 64, 64, 2, 2, 16)
        assert choose_backend(case).name in ("chunked", "sdpa")
        assert choose_backend(case, "triton").name == "triton"


X_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"contiguous": lambda x: x, **LAYOUTS}
WIDTHS = {
    "narrow": (2, 19, 3, 5),
    "several-tiles": (1, 70, 2, 64),
    "wide": (2, 7, 1, 1100),
    "one-channel": (1, 9, 4, 1),
}


@pytest.mark.parametrize(
    ("layout", "activation", "combine"), list(zip(X_LAYOUTS, ACTIVATIONS, cycle(COMBINATIONS), strict=False))
)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", WIDTHS)
def test_gate_kernels_agree_with_float64(
    shape: str, granularity: str, layout: str, activation: str, combine: str
) -> None:
    """A gate sits on queries, keys, values or a whole residual stream, in whatever strides these have."""
    batch, length, heads, width = WIDTHS[shape]
    x, logits, dy = tensors(
        3, WIDTHS[shape], (batch, length, *GRANULARITIES[granularity](heads, width)), WIDTHS[shape], dtype=torch.float32
    )
    views = [X_LAYOUTS[layout](t) for t in (x, logits, dy)]
    wide = [t.double() for t in (x, logits, dy)]
    y = triton_gate.gate_forward(*views[:2], activation, combine)
    dx, dg, delta = triton_gate.gate_backward(views[2], *views[:2], activation, combine)
    want_dx, want_dg = arithmetic.gate_backward(wide[2], *wide[:2], activation, combine)
    assert delta is None
    for got, want in (
        (y, arithmetic.gate_forward(*wide[:2], activation, combine)),
        (dx, want_dx),
        (dg, want_dg),
    ):
        assert got.shape == want.shape
        assert rms(got.double() - want) <= 1e-6 * rms(want) + 1e-7


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("activation", "combine", "gated_x"),
    [
        *((name, "multiply", True) for name in POSITIVE),
        ("silu", "multiply", False),
        ("tanh", "multiply", False),
        ("silu", "add", False),
    ],
)
def test_gate_kernel_makes_delta_for_attention(activation: str, combine: str, gated_x: bool, granularity: str) -> None:
    """Where heads share a gate, attention's backward starts from this kernel's rowsum(dO·O), from O or from Y alone."""
    x, logits, dy = tensors(5, (2, 19, 3, 24), (2, 19, *GRANULARITIES[granularity](3, 24)), (2, 19, 3, 24))
    saved = arithmetic.gate_forward(x, logits, activation, combine) if gated_x else x
    dx, dg, delta = triton_gate.gate_backward(
        dy.float(), saved.float(), logits.float(), activation, combine, gated_x=gated_x, with_delta=True
    )
    want_dx, want_dg = arithmetic.gate_backward(dy, x, logits, activation, combine)
    want_delta = (want_dx * x).sum(-1).transpose(1, 2)
    for got, want in ((dx, want_dx), (dg, want_dg), (delta, want_delta)):
        assert got.shape == want.shape
        assert rms(got.double() - want) <= 1e-6 * rms(want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
def test_gate_kernels_round_once(dtype: torch.dtype) -> None:
    """In 16 bits the result is the exact one, rounded: nothing between is."""
    x, logits = tensors(6, (2, 9, 3, 16), (2, 9, 3, 16), dtype=dtype)
    for combine in COMBINATIONS:
        exact = arithmetic.gate_forward(x.double(), logits.double(), "sigmoid", combine)
        got = triton_gate.gate_forward(x, logits, "sigmoid", combine)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, rtol=0.51 * HALF if dtype == torch.float16 else 5e-7, atol=5e-8)


@triton.jit
def _evaluate(X, VALUE, SLOPE, LOG_SLOPE, N, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(X + at, mask=at < N, other=0.0)
    tl.store(VALUE + at, triton_gate.activate(x, ACTIVATION), mask=at < N)
    tl.store(SLOPE + at, triton_gate.slope(x, ACTIVATION), mask=at < N)
    if LOG_SLOPE is not None:
        tl.store(LOG_SLOPE + at, triton_gate.log_slope(x, ACTIVATION), mask=at < N)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # inf is right: sigmoid(-100) is 0 in float32
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_in_triton_are_those_of_the_table(activation: str) -> None:
    """Activations are written twice, for PyTorch and for Triton: both are one function, from -100 to 100 and near 0."""
    tiny = torch.tensor([1e-38, 1e-30, 1e-20, 1e-10, 1e-7, 1e-5, 1e-3, 0.09999, 0.1, 0.10001, 88.0, 88.5])
    x = torch.cat([torch.linspace(-100, 100, 1001), tiny, -tiny, torch.zeros(1)]).to(DEVICE)
    if activation == "silu":
        x = x[(x + 1.2784645).abs() > 0.1]  # its slope is zero there: no relative precision
    entry = ACTIVATIONS[activation]
    wanted = [entry.value, entry.slope, entry.log_slope]
    out = [torch.empty_like(x) if f is not None else None for f in wanted]
    _evaluate[(1,)](x, *out, x.numel(), triton.next_power_of_2(x.numel()), activation)
    for got, f in zip(out, wanted, strict=True):
        if f is not None:
            torch.testing.assert_close(got.double(), f(x.double()), rtol=5e-6, atol=1e-36)
