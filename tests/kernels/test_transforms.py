"""What PyTorch asks beyond a backward: forward-mode derivatives, torch.func, batched gradients, compiled or not."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from gatelab.kernels import apply_gate, gated_attention

GPU = "cuda" if torch.cuda.is_available() else "cpu"
OPERATORS = [
    pytest.param("chunked"),
    pytest.param("triton", marks=pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")),
]
PACKED = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
FORMS: dict[str, dict[str, Any]] = {
    "causal": {},
    "no-mask": {"causal": False},
    "added": {"activation": "silu", "combine": "add"},
    "packed": {"cu_seqlens": PACKED},
    "negative-scale": {"scale": -0.7},
}


def problem(
    seed: int, length: int = 3, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Queries, grouped keys and values, and a headwise gate."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (1, length, 2, 2), (1, length, 1, 2), (1, length, 1, 2), (1, length, 2, 1)
    return [torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def numerical(f: Callable[..., Tensor], at: list[Tensor], along: list[Tensor], step: float = 1e-6) -> Tensor:
    """The directional derivative by central differences."""
    ahead, behind = ([x + sign * step * d for x, d in zip(at, along, strict=True)] for sign in (1, -1))
    return (f(*ahead) - f(*behind)) / (2 * step)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [3, 256])
def test_a_forward_derivative_is_the_slope_along_its_direction(form: str, length: int) -> None:
    """A tangent that an operator drops is a derivative of zero, which nobody notices."""
    options = dict(FORMS[form])
    if "cu_seqlens" in options:
        options["cu_seqlens"] = torch.tensor([0, 2, 2, length], dtype=torch.int32)
    call = partial(gated_attention, **options)
    at, along = problem(1, length), problem(2, length)
    want = numerical(call, at, along)
    value, got = jvp(call, tuple(at), tuple(along))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(value, call(*at))
    for place in range(4):  # a tangent of one input alone, in float32: where `auto` would take each of its operators
        single = [x.float() for x in at]
        with forward_ad.dual_level():
            single[place] = forward_ad.make_dual(single[place], along[place].float())
            tangent = forward_ad.unpack_dual(call(*single)).tangent
        assert tangent is not None
        others = [d if i == place else torch.zeros_like(d) for i, d in enumerate(along)]
        torch.testing.assert_close(tangent.double(), numerical(call, at, others), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_a_forward_derivative_of_a_gate_is_the_slope_along_its_direction(combine: str) -> None:
    """As for attention: a gate on queries, keys, values or the dense output."""
    call = partial(apply_gate, activation="silu", combine=combine)
    x, _, _, gate = problem(3)
    dx, _, _, dgate = problem(4)
    _, got = jvp(call, (x, gate), (dx, dgate))
    torch.testing.assert_close(got, numerical(call, [x, gate], [dx, dgate]), rtol=1e-6, atol=1e-8)
    leaves = [x.requires_grad_(), gate.requires_grad_()]
    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


def test_a_compiled_forward_derivative_is_the_eager_one() -> None:
    """The compiler traces the derivative, not the operator that has none."""
    *inputs, gate = [x.float() for x in problem(5, 256)]
    (direction,) = (torch.ones_like(gate),)

    def slope(gate: Tensor) -> Tensor:
        return jvp(lambda g: apply_gate(gated_attention(*inputs, g), g), (gate,), (direction,))[1]

    torch._dynamo.reset()
    want = slope(gate)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(torch.compile(slope, backend="aot_eager", fullgraph=True)(gate), want)


@pytest.mark.parametrize("backend", [*OPERATORS, pytest.param("sdpa")])
def test_an_operator_without_a_forward_derivative_refuses_one(backend: str) -> None:
    """Asked for by name, a kernel must not answer zero; without a tangent it computes as ever."""
    device = GPU if backend == "triton" else "cpu"
    q, k, v, gate = [x.to(device, torch.float32) for x in problem(6)]
    message = f"'{backend}' cannot compute this attention: it has no forward-mode derivative .backend='reference' has"
    for call in (
        lambda x: jvp(lambda x: gated_attention(q, x, v, gate, backend=backend), (x,), (x,)),
        lambda x: jacfwd(jacrev(lambda x: gated_attention(q, x, v, gate, backend=backend)))(x),
    ):
        with pytest.raises(ValueError, match=message):
            call(k)
    with forward_ad.dual_level():
        gated_attention(q, k, v, gate, backend=backend)
        with pytest.raises(ValueError, match=message):
            gated_attention(q, k, v, forward_ad.make_dual(gate, gate), backend=backend)


@pytest.mark.parametrize("form", FORMS)
def test_reference_has_every_kind_of_derivative(form: str) -> None:
    """Forward, batched, and one derivative after another in either mode: what a study of curvature asks for."""
    call = partial(gated_attention, backend="reference", **FORMS[form])
    leaves = [x.requires_grad_() for x in problem(8)]
    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("length", [3, 256])
def test_second_derivatives_by_any_road_are_differences_of_gradients(length: int) -> None:
    """A tangent of a tangent that is dropped would leave a part of the curvature out."""
    q, k, v, gate = problem(9, length)
    (direction,) = problem(10, length)[3:]

    def loss(gate: Tensor, backend: str = "auto") -> Tensor:
        return apply_gate(gated_attention(q, k, v, gate, backend=backend), gate).sin().sum()

    def along(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda gate: jvp(f, (gate,), (direction,))[1]

    want = numerical(grad(loss), [gate], [direction])
    roads = {
        "forward over reverse": along(grad(loss))(gate),
        "reverse over forward": grad(along(loss))(gate),
        "reverse over reverse": vjp(grad(partial(loss, backend="reference")), gate)[1](direction)[0],
    }
    for road, got in roads.items():
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7, msg=lambda text, road=road: f"{road}: {text}")
    torch.testing.assert_close(along(along(loss))(gate), (want * direction).sum(), rtol=1e-5, atol=1e-7)
    if length == 3:
        curvature = hessian(loss)(gate).reshape(6, 6)
        torch.testing.assert_close(curvature @ direction.flatten(), want.flatten(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("length", [3, 256])
def test_gradients_of_each_sample_are_those_of_a_loop(length: int, backend: str) -> None:
    """torch.func gives the gradient of each sequence, each model of an ensemble: whatever backend `auto` would take."""

    def loss(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return gated_attention(apply_gate(q, gate, activation="tanh"), k, v, gate, backend=backend).square().sum()

    samples = problem(11, length, batch=(2,), dtype=torch.float32)
    together = vmap(grad(loss, argnums=(0, 1, 2, 3)))(*samples)
    shared = vmap(grad(loss, argnums=(0, 3)), in_dims=(0, None, None, 0))(
        samples[0], *(x[0] for x in samples[1:3]), samples[3]
    )
    values = vmap(loss)(*samples)
    for i in range(2):
        leaves = [x[i].clone().requires_grad_() for x in samples]
        value = loss(*leaves)
        torch.testing.assert_close(values[i], value.detach(), rtol=1e-5, atol=1e-5)
        for got, want in zip(together, torch.autograd.grad(value, leaves), strict=True):
            torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-5)
        single = [leaves[0], *(x[0] for x in samples[1:3]), leaves[3]]
        for got, want in zip(shared, torch.autograd.grad(loss(*single), (single[0], single[3])), strict=True):
            torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", OPERATORS)
def test_kernels_say_what_they_have_no_rule_for(backend: str) -> None:
    """A kernel under torch.func is refused with the backend that works, not with PyTorch's notes for authors."""
    *inputs, gate = [x.to(GPU if backend == "triton" else "cpu", torch.float32) for x in problem(12)]

    def call(gate: Tensor) -> Tensor:
        return gated_attention(*inputs, gate, backend=backend).sum()

    for transformed, x in ((grad(call), gate), (vmap(call), gate[None]), (vmap(grad(call)), gate[None])):
        with pytest.raises(ValueError, match=r"no rule for torch.func \(backend='reference' has"):
            transformed(x)


def test_packing_is_the_same_for_all_that_vmap_maps_over() -> None:
    """Boundaries are read, not computed with: mapped over, they are refused in words."""
    inputs = problem(13)
    mapped = vmap(lambda q, bounds: gated_attention(q, *inputs[1:], cu_seqlens=bounds), in_dims=(None, 0))
    with pytest.raises(ValueError, match="cu_seqlens must be the same for all that vmap maps over"):
        mapped(inputs[0], PACKED[None])
    alike = vmap(lambda q: gated_attention(q, *inputs[1:], cu_seqlens=PACKED))(inputs[0][None])
    torch.testing.assert_close(alike[0], gated_attention(*inputs, cu_seqlens=PACKED, backend="reference"))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("backend", [*OPERATORS, pytest.param("sdpa"), pytest.param("reference")])
def test_a_gradient_of_one_input_alone_is_its_part_of_all(backend: str, place: int) -> None:
    """Frozen projections: what needs no gradient changes none of the others."""
    inputs = [x.to(GPU if backend == "triton" else "cpu", torch.float32) for x in problem(14)]

    def gradients(places: tuple[int, ...]) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_(i in places) for i, x in enumerate(inputs)]
        return torch.autograd.grad(gated_attention(*leaves, backend=backend).sin().sum(), [leaves[i] for i in places])

    assert torch.equal(gradients((place,))[0], gradients((0, 1, 2, 3))[place])


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_derivatives_under_autocast_are_those_of_rounded_inputs(mode: str) -> None:
    """Mixed precision and torch.func together: the same rounding as without."""
    q, k, v, gate = problem(15, dtype=torch.float32)

    def call(gate: Tensor) -> Tensor:
        return gated_attention(q, k, v, gate)

    def derivative() -> Tensor:
        if mode == "forward":
            return jvp(call, (gate,), (gate,))[1]
        return grad(lambda g: call(g).float().sum())(gate)

    with torch.autocast("cpu", torch.bfloat16):
        got = derivative()
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    want = derivative()
    assert got.dtype == want.dtype == (torch.bfloat16 if mode == "forward" else torch.float32)
    assert torch.equal(got, want)
