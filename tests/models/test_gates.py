"""Identities that every gate must satisfy, at every position."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatelab.kernels.gate import ACTIVATIONS
from gatelab.models.config import POSITIONS, GateConfig, ModelConfig
from gatelab.models.decoder import Decoder
from gatelab.models.gates import SITES, Gate

SHAPE = {"layers": 2, "hidden_size": 20, "query_heads": 6, "kv_heads": 3, "head_dim": 4, "ffn_size": 24}
WITH_HEADS = ("query", "key", "value", "sdpa")
PLACES = [*POSITIONS, "value+sdpa", "+".join(POSITIONS)]


def small(position: str, *, qk_norm: bool = True, **fields: Any) -> ModelConfig:
    """A small model with a gate."""
    return ModelConfig(**SHAPE, vocab_size=29, qk_norm=qk_norm, gate={"position": position, **fields})


def tokens(length: int = 7) -> Tensor:
    """Two sequences of random tokens."""
    return torch.randint(0, 29, (2, length), generator=torch.Generator().manual_seed(0))


def outcome(model: Decoder) -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter that has nothing to do with gates."""
    logits = model(tokens())
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "gate_" not in name and p.grad is not None}
    return {"logits": logits.detach(), **gradients}


def copy_weights(source: Decoder, target: Decoder, change: Callable[[str, Tensor], Tensor]) -> None:
    """Give `target` the weights of `source`; those of gates as `change(position, weight [logits, ...])` makes them."""
    values = source.state_dict()
    for name in values:
        if "gate_constants." in name or ".blocks.gate_" in name:
            values[name] = change(name.rpartition(".")[2].removeprefix("gate_"), values[name])
    target.load_state_dict(values)


@pytest.mark.parametrize("neutral", [("multiply", 1.0), ("add", 0.0)], ids=["times-1", "plus-0"])
@pytest.mark.parametrize(
    ("position", "granularity", "sharing"),
    [
        (position, granularity, sharing)
        for position in PLACES
        for granularity in ("elementwise", "headwise")
        for sharing in ("per_head", "averaged", "shared")
        if "output" not in position or (granularity, sharing) == ("elementwise", "per_head")  # it has no heads
    ],
)
def test_a_neutral_gate_is_the_ungated_model_bit_for_bit(
    build: Callable[..., Decoder], neutral: tuple[str, float], position: str, granularity: str, sharing: str
) -> None:
    """A difference between gated and ungated is the gate's alone: multiplied by 1 or added 0, nothing differs."""
    combine, start = neutral
    fields = {"granularity": granularity, "sharing": sharing, "combine": combine, "activation": "identity"}
    gated = small(position, qk_norm=False, input="constant", bias=start, **fields)
    got, want = outcome(build(gated)), outcome(build(small("none", qk_norm=False)))
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("position", PLACES)
def test_a_gate_that_is_not_neutral_changes_the_model(build: Callable[..., Decoder], position: str) -> None:
    """The identities above mean something only if a gate reaches the logits from where it sits."""
    ungated = build(small("none"))(tokens())
    for fields in ({}, {"input": "constant", "bias": 0.7}, {"combine": "add", "activation": "silu"}):
        if {"query", "key"} >= set(position.split("+")) and fields.get("bias"):
            continue  # one scale for a whole head: QK-norm undoes it
        assert not torch.allclose(build(small(position, **fields))(tokens()), ungated)


@pytest.mark.parametrize("sharing", ["per_head", "averaged", "shared"])
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("position", [*WITH_HEADS, "value+sdpa"])
def test_headwise_is_elementwise_with_tied_weights(
    build: Callable[..., Decoder], position: str, combine: str, sharing: str
) -> None:
    """Granularity changes how many scores there are and nothing else: one row repeated for the channels of its head."""
    fields = {"combine": combine, "sharing": sharing, "bias": 0.3, "qk_norm": False}
    headwise = build(small(position, granularity="headwise", **fields)).double()
    elementwise = build(small(position, granularity="elementwise", **fields)).double()
    copy_weights(headwise, elementwise, lambda _, weight: weight.repeat_interleave(4, dim=0))
    torch.testing.assert_close(elementwise(tokens()), headwise(tokens()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tied", ["per_head", "averaged"])
@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
@pytest.mark.parametrize("position", [*WITH_HEADS, "key+sdpa"])
def test_shared_is_per_head_or_averaged_with_tied_heads(
    build: Callable[..., Decoder], position: str, granularity: str, tied: str
) -> None:
    """One projection for all heads equals one for each where all are the same, and so does their average."""
    fields = {"granularity": granularity, "activation": "silu", "bias": -0.2, "qk_norm": False}
    shared = build(small(position, sharing="shared", **fields)).double()
    other = build(small(position, sharing=tied, **fields)).double()

    def repeat(name: str, weight: Tensor) -> Tensor:
        heads = 6 if name in ("query", "sdpa") else 3
        return torch.cat([weight] * heads)

    copy_weights(shared, other, repeat)
    torch.testing.assert_close(other(tokens()), shared(tokens()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
def test_averaged_applies_the_mean_of_the_scores(granularity: str, activation: str) -> None:
    """The paper's "head-shared" averages scores, not pre-activations: sigmoid(mean) is another gate."""
    generator = torch.Generator().manual_seed(4)
    heads, width = 5, 3 if granularity == "elementwise" else 1
    x = torch.randn(2, 4, heads, 3, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 4, heads * width, generator=generator, dtype=torch.float64) * 3
    fields = {"position": "sdpa", "granularity": granularity, "activation": activation}
    averaged = Gate(GateConfig(sharing="averaged", **fields), "sdpa", heads, 3, 16)
    score = ACTIVATIONS[activation].value(logits.unflatten(-1, (heads, width)))
    mean = sum(score[:, :, head] for head in range(heads)) / heads
    torch.testing.assert_close(averaged.apply(x, logits), x * mean[:, :, None, :])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_later_token_never_changes_an_earlier_output(
    model_configs: st.SearchStrategy[ModelConfig], build: Callable[..., Decoder], data: st.DataObject
) -> None:
    """A leak of the future, through attention or a gate, makes every loss of a study worthless: for every position."""
    config = data.draw(model_configs)
    model = build(config, 3)
    before = torch.randint(0, config.vocab_size or 0, (1, 6), generator=torch.Generator().manual_seed(1))
    first = model(before)
    for position in range(1, 6):
        after = before.clone()
        after[0, position:] = (after[0, position:] + 1) % (config.vocab_size or 0)
        assert torch.equal(model(after)[:, :position], first[:, :position])


def test_every_position_is_a_site() -> None:
    """A position that a configuration accepts but no site describes would fail when the first trial starts."""
    assert set(SITES) == set(POSITIONS)
