"""The parts of the decoder against torch's own, or against another way to write them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatelab.models.config import ModelConfig
from gatelab.models.layers import FeedForward, JointLinear, Rotary, rotary_frequencies


def normal(seed: int, *shape: int) -> Tensor:
    """Normal float64 values, the same for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_joint_linear_equals_separate_linears() -> None:
    """One matrix product for speed must not mix its projections, forward or backward, nor depend on their order."""
    rows = {"query": 6, "gate_sdpa": 1, "key": 4, "value": 4}
    joint = JointLinear(5, rows).double()
    weights = {name: normal(i, n, 5).requires_grad_() for i, (name, n) in enumerate(rows.items())}
    with torch.no_grad():
        for name, weight in weights.items():
            joint.blocks[name].copy_(weight)
    x, y = (normal(9, 2, 3, 5).requires_grad_() for _ in range(2))
    got, want = joint(x), {name: F.linear(y, weight) for name, weight in weights.items()}
    assert list(got) == list(rows)
    for outputs in (got, want):
        sum((out * normal(i, *out.shape)).sum() for i, out in enumerate(outputs.values())).backward()
    for name in rows:
        torch.testing.assert_close(got[name], want[name])
        torch.testing.assert_close(joint.blocks[name].grad, weights[name].grad)
    torch.testing.assert_close(x.grad, y.grad)


def rope(head_dim: int, base: float = 10_000.0, **fields: float) -> Rotary:
    """A model's rotary embedding."""
    return Rotary(ModelConfig(head_dim=head_dim, rope_base=base, **fields))


def complex_rotation(x: Tensor, base: float, start: int = 0) -> Tensor:
    """RoPE as complex numbers: channels (i, i + D/2) are one number, turned by position x base^(-2i/D)."""
    half = x.shape[-1] // 2
    frequency = base ** -(torch.arange(half, dtype=torch.float64) * 2 / x.shape[-1])
    turn = (torch.arange(start, start + x.shape[1], dtype=torch.float64)[:, None] * frequency)[:, None, :]
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(turn), turn)
    return torch.cat([turned.real, turned.imag], -1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 40), st.sampled_from([100.0, 10_000.0, 1e6]), st.integers(0, 99))
def test_rotary_is_a_rotation_by_position(half: int, length: int, base: float, seed: int) -> None:
    """It agrees with complex multiplication and keeps every norm, so QK-norm before it stays a norm after it."""
    x = normal(seed, 2, length, 3, 2 * half)
    got = rope(2 * half, base)(x)
    # Tables are float32: a cosine is off by at most 2^-24, relative to its channel pair.
    torch.testing.assert_close(got, complex_rotation(x, base), rtol=0, atol=2**-23 * x.abs().max().item())
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


def test_rotary_scores_depend_on_distance_alone() -> None:
    """The same query and key, equally far apart anywhere in the sequence, have the same logit; another distance not."""
    query, key = (normal(seed, 1, 1, 1, 8).expand(1, 64, 1, 8) for seed in (0, 1))
    rotary = rope(8)
    logits = (rotary(query) * 1.0).squeeze() @ rotary(key).squeeze().T
    for distance in (0, 1, 17, 40):
        diagonal = logits.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert (logits[20, 20] - logits[20, 19]).abs() > 0.01


def test_rotary_is_unchanged_by_what_it_rotated_before() -> None:
    """Its tables are kept between calls: another length, dtype or no-grad evaluation must not leak into the next."""
    x, rotary = normal(3, 1, 12, 2, 6), rope(6)
    with torch.no_grad():
        rotary(x[:, :5].float()), rotary(x.bfloat16())
    tracked = x.clone().requires_grad_()
    out = rotary(tracked)
    assert torch.equal(out, rope(6)(x))
    out.sum().backward()
    assert tracked.grad is not None


def test_yarn_stretches_slow_channels_and_leaves_fast_ones_alone() -> None:
    """Worked by hand from the paper's equations, for D 128, base 10,000, training length 4,096 and factor 8.

    Channel d turns 4096 / (2 pi 10000^(2d/128)) times: 32 times at d = 20.9, once at d = 45.03.
    """
    model = {"head_dim": 128, "yarn_factor": 8.0, "yarn_length": 4096}
    frequencies, scale = rotary_frequencies(ModelConfig(**model))
    plain, one = rotary_frequencies(ModelConfig(head_dim=128))
    ratio = frequencies / plain
    assert torch.equal(ratio[:21], torch.ones(21, dtype=torch.float64))
    torch.testing.assert_close(ratio[46:], torch.full((18,), 1 / 8, dtype=torch.float64))
    assert ratio[33].item() == pytest.approx(1 - (33 - 20) / (46 - 20) * (1 - 1 / 8))
    assert (scale, one) == (pytest.approx(0.1 * math.log(8) + 1), 1.0)
    assert ModelConfig(head_dim=128, yarn_length=4096) == ModelConfig(head_dim=128)  # a factor of 1 stretches nothing
    with pytest.raises(ValueError, match=r"yarn_factor \(4\) needs yarn_length"):
        ModelConfig(yarn_factor=4)


def test_yarn_lets_logits_grow_by_its_temperature() -> None:
    """Position 0 is not turned, so its logits show the factor (0.1 ln s + 1)^2 alone."""
    query, key = (normal(seed, 1, 1, 1, 8) for seed in (0, 1))
    stretched = rope(8, yarn_factor=4.0, yarn_length=128)
    got, want = ((one(query) * one(key)).sum() for one in (stretched, rope(8)))
    torch.testing.assert_close(got, want * (0.1 * math.log(4) + 1) ** 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ffn_size", [1, 7, 32])
def test_feed_forward_is_swiglu(ffn_size: int) -> None:
    """`down(silu(left x) * right x)`: swapping the two branches would go unnoticed in a loss curve."""
    layer = FeedForward(ModelConfig(hidden_size=6, ffn_size=ffn_size)).double()
    left, right, down = normal(0, ffn_size, 6), normal(1, ffn_size, 6), normal(2, 6, ffn_size)
    with torch.no_grad():
        layer.input.blocks["left"].copy_(left)
        layer.input.blocks["right"].copy_(right)
        layer.down.weight.copy_(down)
    x = normal(4, 3, 6)
    inner = x @ left.T
    torch.testing.assert_close(layer(x), (inner / (1 + (-inner).exp()) * (x @ right.T)) @ down.T)


@pytest.mark.parametrize("head_dim", [2, 6, 16, 128])
@pytest.mark.parametrize("fields", [{}, {"yarn_factor": 4.0, "yarn_length": 128}], ids=["plain", "yarn"])
def test_tables_do_not_depend_on_the_longest_that_was_asked_for(head_dim: int, fields: dict[str, float]) -> None:
    """A short sequence after a long one turns by the same bits, and tables of one length only are kept."""
    longest, cpu = rope(head_dim, **fields), torch.device("cpu")
    longest.tables(4099, cpu)
    for length in (1, 2, 3, 7, 16, 33, 129, 1000, 2048, 4098):
        for cut, alone in zip(longest.tables(length, cpu), rope(head_dim, **fields).tables(length, cpu), strict=True):
            assert torch.equal(cut, alone)
    assert [len(cos) for cos, _ in longest._tables.values()] == [4099]
    assert [len(table) for table in longest.tables(5000, cpu)] == [5000, 5000]
