"""The gate's arithmetic: activations, combinations, precision."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.kernels import apply_gate
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS, gate_score

TORCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "relu": F.relu,
    "softplus": lambda x: F.softplus(x, threshold=100),
    "identity": lambda x: x,
    "ns_sigmoid": lambda x: 0.5 + 0.5 * torch.sigmoid(x),  # paper eq. 9
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_and_its_gradient_agree_with_torch(name: str) -> None:
    """A study of activations compares the functions that its labels name, also far from zero."""
    x = torch.cat([torch.linspace(-30, 30, 241), torch.tensor([-1000.0, 1000.0])]).double()
    x = x[x != 0].requires_grad_()  # relu has a kink there
    got, want = ACTIVATIONS[name].value(x), TORCH_ACTIVATIONS[name](x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (got, want)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


def test_softplus_has_its_true_slope_at_zero() -> None:
    """A gate whose weights start at zero trains: a max-based softplus would have slope 0 or 1 there."""
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gate_score(x, "softplus").sum(), x)
    assert slope.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_saturated_16_bit_gate_keeps_its_gradient(dtype: torch.dtype) -> None:
    """In 16 bits sigmoid(12) is 1 and its gradient 0: an open gate could never close again."""
    logits = torch.tensor([-12.0, 0.5, 8.0, 12.0], dtype=dtype, requires_grad=True)
    assert torch.sigmoid(logits)[-1] == 1
    score = gate_score(logits, "sigmoid")
    assert score.dtype == torch.float32
    assert torch.equal(score, torch.sigmoid(logits.float()))
    ones = torch.ones(1, 1, 1, 4, dtype=dtype)
    (gradient,) = torch.autograd.grad(apply_gate(ones, logits.view(1, 1, 1, 4)).sum(), logits)
    exact = torch.sigmoid(logits.double()) * torch.sigmoid(-logits.double())
    torch.testing.assert_close(gradient.double(), exact, rtol=2 ** (-7 if dtype == torch.bfloat16 else -9), atol=0)


def test_scores_keep_float64() -> None:
    """Float64 is the truth of other tests: a score rounded to float32 on the way would spoil it unseen."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(gate_score(logits, "sigmoid"), 1 / (1 + (-logits).exp()), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 4, 1), (2, 3, 1, 6), (2, 3, 1, 1)], ids=str)
def test_gate_combines_channel_by_channel_in_the_dtype_of_what_it_gates(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """A gate neither widens the residual stream nor mixes up heads and channels when its scores are shared."""
    generator = torch.Generator().manual_seed(1)
    x, logits = (torch.randn(s, generator=generator).to(dtype) for s in ((2, 3, 4, 6), shape))
    for combine, operator in {"multiply": torch.mul, "add": torch.add}.items():
        got = apply_gate(x, logits, activation="tanh", combine=combine)
        assert got.dtype == dtype
        exact = operator(x.double(), torch.tanh(logits.double()).expand(x.shape))  # rounded once
        torch.testing.assert_close(got, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert set(COMBINATIONS) == {"multiply", "add"}
