"""The hand-written backward: the reference against finite differences, the table of derivatives against autograd."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gatelab.kernels import gated_attention
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS, gate_backward, gate_forward, keeps_output

POSITIVE = [name for name, entry in ACTIVATIONS.items() if entry.positive]
SHAPES = {"elementwise": (2, 2), "headwise": (2, 1), "shared": (1, 2), "scalar": (1, 1)}  # heads and channels


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal float64 values, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def differentiates(inputs: list[Tensor], **options: Any) -> bool:
    """Whether finite differences agree with the reference's first and second derivatives."""

    def call(*args: Tensor) -> Tensor:
        return gated_attention(*args, **options, backend="reference")

    leaves = [x.requires_grad_() for x in inputs]
    if len(inputs) > 3:
        assert inputs[3].abs().min() > 1e-3  # away from relu's kink
    (direction,) = tensors(9, inputs[0].shape)
    return gradcheck(call, leaves) and gradgradcheck(call, leaves, [direction.requires_grad_()])


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("granularity", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_has_first_and_second_derivatives(activation: str, granularity: str, combine: str) -> None:
    """Every backend is held to the reference: its own gradients are those of its output, twice over."""
    row, kv = (1, 2, 2, 2), (1, 2, 1, 2)
    inputs = tensors(5, row, kv, kv, (1, 2, *SHAPES[granularity]))
    assert differentiates(inputs, activation=activation, combine=combine)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        pytest.param(((2, 3, 2, 1), (2, 3, 2, 1), (2, 3, 2, 1)), {}, id="ungated"),
        pytest.param(((1, 2, 3, 2), (1, 2, 1, 2), (1, 2, 1, 2), (1, 2, 3, 2)), {}, id="multi-query"),
        pytest.param(((1, 2, 4, 1), (1, 2, 2, 1), (1, 2, 2, 1), (1, 2, 4, 1)), {"scale": 0.7}, id="grouped"),
        pytest.param(((1, 2, 1, 2), (1, 4, 1, 2), (1, 4, 1, 2), (1, 2, 1, 2)), {}, id="more-keys"),
        pytest.param(((1, 3, 2, 2), (1, 2, 1, 2), (1, 2, 1, 2), (1, 3, 1, 2)), {"causal": False}, id="no-mask"),
        pytest.param(
            ((1, 4, 2, 2), (1, 4, 1, 2), (1, 4, 1, 2), (1, 4, 2, 1)),
            {"cu_seqlens": torch.tensor([0, 3, 3, 4], dtype=torch.int32)},
            id="packed",
        ),
        pytest.param(
            ((1, 4, 1, 2), (1, 4, 1, 2), (1, 4, 1, 2), (1, 4, 1, 2)),
            {"cu_seqlens": torch.tensor([0, 1, 4], dtype=torch.int32), "causal": False},
            id="packed-no-mask",
        ),
    ],
)
def test_reference_differentiates_every_form_of_attention(
    shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]
) -> None:
    """Groups of heads, masks and packing all pass through the same hand-written backward."""
    assert differentiates(tensors(6, *shapes), **options)


def test_packed_reference_equals_separate_calls() -> None:
    """Packing is tested against the reference elsewhere, so the reference itself must keep documents apart."""
    lengths = [3, 0, 1, 5]
    inputs = tensors(7, (1, 9, 4, 3), (1, 9, 2, 3), (1, 9, 2, 3), (1, 9, 4, 1))
    bounds = torch.tensor([0, 3, 3, 4, 9], dtype=torch.int32)
    for causal in (True, False):
        got = gated_attention(*inputs, cu_seqlens=bounds, causal=causal, backend="reference")
        parts = [part for part in zip(*(x.split(lengths, 1) for x in inputs), strict=True) if part[0].shape[1]]
        want = torch.cat([gated_attention(*part, causal=causal, backend="reference") for part in parts], 1)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", POSITIVE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_positive_gate_is_differentiated_from_its_output_alone(shape: tuple[int, int], activation: str) -> None:
    """The memory that fused kernels save rests on dG = dY·Y·(ln a)'(G): it must be dY·O·a'(G), down to tiny scores."""
    dy, o, spread = tensors(8, (2, 30, 2, 2), (2, 30, 2, 2), (2, 30, *shape))
    for gate in (spread, 8 * spread, -60 - 8 * spread, 30 + spread):
        y = gate_forward(o, gate, activation, "multiply")
        want = gate_backward(dy, o, gate, activation, "multiply")
        got = gate_backward(dy, y, gate, activation, "multiply", gated_x=True)
        for a, b, size in zip(got, want, (1.0, ACTIVATIONS[activation].slope(gate)), strict=True):
            torch.testing.assert_close(a / size, b / size, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_output_before_the_gate_is_kept_where_it_cannot_be_recovered(activation: str) -> None:
    """Dropping O under a gate that can be 0 would lose its gradient; keeping it under any other would waste memory."""
    x = torch.linspace(-30, 30, 1201, dtype=torch.float64)
    positive = bool((ACTIVATIONS[activation].value(x) > 0).all())
    assert ACTIVATIONS[activation].positive == positive
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert keeps_output(activation, "multiply", dtype) == (not positive)
        assert keeps_output(activation, "add", dtype)
    assert keeps_output(activation, "multiply", torch.float16)  # the gated output underflows


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_table_of_derivatives_agrees_with_autograd(activation: str) -> None:
    """The derivatives are written out by hand: each is the one of its own activation."""
    entry = ACTIVATIONS[activation]
    x = torch.linspace(-30, 30, 1202, dtype=torch.float64, requires_grad=True)  # 0, relu's kink, is not among them
    value = entry.value(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    got = entry.slope(x.detach())
    assert got.shape == x.shape
    torch.testing.assert_close(got, slope, rtol=1e-11, atol=1e-15)
    if entry.log_slope is not None:
        assert (value > 0).all()
        torch.testing.assert_close(entry.log_slope(x.detach()), slope / value.detach(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    ("activation", "which", "x", "exact"),
    [
        ("sigmoid", "slope", 40.0, math.exp(-40)),
        ("sigmoid", "slope", -40.0, math.exp(-40)),
        ("sigmoid", "log_slope", 40.0, math.exp(-40)),
        ("sigmoid", "log_slope", 700.0, math.exp(-700)),
        ("ns_sigmoid", "slope", 40.0, math.exp(-40) / 2),
        ("ns_sigmoid", "log_slope", 40.0, math.exp(-40) / 2),
        ("tanh", "slope", 25.0, 4 * math.exp(-50)),
        ("softplus", "log_slope", -30.0, 1 - math.exp(-30) / 2),
        ("softplus", "log_slope", -700.0, 1.0),
        ("softplus", "value", -40.0, math.exp(-40)),
    ],
)
def test_derivatives_are_exact_where_one_minus_sigmoid_is_zero(
    activation: str, which: str, x: float, exact: float
) -> None:
    """Beyond 37, 1 - sigmoid(x) is 0 in float64: every gradient of an open gate rests on the form that is not."""
    function = getattr(ACTIVATIONS[activation], which)
    assert function(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(exact, rel=1e-12, abs=0)


@pytest.mark.parametrize("activation", POSITIVE)
def test_log_slopes_are_continuous_over_their_branches(activation: str) -> None:
    """A formula that changes at some x (softplus at -20) must not jump there, nor pass on a NaN of the other branch."""
    x = torch.linspace(-200, 200, 4001, dtype=torch.float64)
    log_slope = ACTIVATIONS[activation].log_slope
    assert log_slope is not None
    assert log_slope(x).isfinite().all()
    below, above = (log_slope(torch.tensor(-20.0 + step, dtype=torch.float64)) for step in (-1e-9, 1e-9))
    torch.testing.assert_close(below, above, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("low", "high", "naive_error"), [(4, 8, 0.1), (12, 16, 0.99)])
def test_a_16_bit_gate_has_its_gradient_where_naive_autograd_has_not(
    low: float, high: float, naive_error: float
) -> None:
    """The trap that the fused backward avoids is still set: PyTorch's bfloat16 gradient of an open gate is wrong."""
    inputs = [x.bfloat16() for x in tensors(11, (2, 24, 2, 16), (2, 24, 2, 16), (2, 24, 2, 16), (2, 24, 2, 16))]
    q, k, v, direction = inputs
    gate = torch.linspace(low, high, q.numel()).view_as(q).bfloat16()

    def gradient(backend: str, dtype: torch.dtype) -> Tensor:
        logits = gate.to(dtype).requires_grad_()
        out = gated_attention(*(x.to(dtype) for x in (q, k, v)), logits, backend=backend)
        return torch.autograd.grad(out, logits, direction.to(dtype))[0].double()

    truth = gradient("reference", torch.float64)
    logits = gate.clone().requires_grad_()
    o = gated_attention(q, k, v, backend="sdpa")
    (naive,) = torch.autograd.grad(o * torch.sigmoid(logits), logits, direction)
    assert (gradient("chunked", torch.bfloat16) - truth).norm() <= 5e-3 * truth.norm()
    assert (naive.double() - truth).norm() > naive_error * truth.norm()


@pytest.mark.parametrize("backend", ["chunked", "sdpa"])
@pytest.mark.parametrize("activation", POSITIVE)
@pytest.mark.parametrize(("low", "high"), [(4, 8), (12, 16), (-80, -20)])
def test_a_saturated_gate_has_its_true_gradient(low: float, high: float, activation: str, backend: str) -> None:
    """In float32 too the gradient of a gate that is open or shut keeps its digits, on the backends that a CPU runs."""
    q, k, v, direction = [x.float() for x in tensors(12, *itertools.repeat((1, 24, 2, 8), 4))]
    gate = torch.linspace(low, high, q.numel()).view_as(q)

    def gradient(name: str, dtype: torch.dtype) -> Tensor:
        logits = gate.to(dtype).requires_grad_()
        out = gated_attention(*(x.to(dtype) for x in (q, k, v)), logits, activation=activation, backend=name)
        return torch.autograd.grad(out, logits, direction.to(dtype))[0].double()

    slope = ACTIVATIONS[activation].slope(gate.double())  # divided by it, large and tiny gradients count alike
    truth = gradient("reference", torch.float64) / slope
    assert (gradient(backend, torch.float32) / slope - truth).norm() <= 1e-5 * truth.norm()
