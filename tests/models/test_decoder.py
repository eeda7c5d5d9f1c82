"""The decoder against the equations written out, and its initialisation."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatelab.kernels.gate import ACTIVATIONS
from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, initialize

SHAPE = {"layers": 2, "hidden_size": 64, "query_heads": 8, "kv_heads": 4, "head_dim": 16, "ffn_size": 160}


def model_config(**fields: Any) -> ModelConfig:
    """A model large enough for statistics."""
    return ModelConfig(**{**SHAPE, "vocab_size": 300, **fields})


def rms(x: Tensor, gain: Tensor) -> Tensor:
    """RMSNorm over the last dimension."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def rotate(x: Tensor) -> Tensor:
    """RoPE of `[T, H, D]` as complex numbers (see test_layers)."""
    half = x.shape[-1] // 2
    turn = torch.arange(len(x), dtype=x.dtype)[:, None] * 10_000.0 ** -(torch.arange(half, dtype=x.dtype) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * turn)[:, None, :]
    return torch.cat([turned.real, turned.imag], -1)


def written_out(config: ModelConfig, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits `[T, vocab]` of one sequence: paper section 2 and Qwen3's layer, one head after another."""
    gate, x = config.gate, weights["embedding.weight"][tokens]
    hidden = torch.ones(len(tokens), len(tokens)).triu(1).bool()
    for layer in range(config.layers):
        prefix = f"layers.{layer}."
        w = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        h = rms(x, w["attention_norm.weight"])

        def gated(position: str, y: Tensor, w: dict[str, Tensor] = w, h: Tensor = h) -> Tensor:
            if position not in gate.position.split("+"):
                return y
            rows = (1 if gate.sharing == "shared" else y.shape[1], y.shape[2] if gate.granularity[0] == "e" else 1)
            logits = torch.zeros(len(h), *rows, dtype=h.dtype)
            if gate.input == "hidden":
                weight = w[f"attention.input.blocks.gate_{position}"].reshape(*rows, -1)
                logits = logits + torch.einsum("tc,hdc->thd", h, weight)
            if gate.bias is not None:
                logits = logits + w[f"attention.gate_constants.{position}"].reshape(rows)
            score = ACTIVATIONS[gate.activation].value(logits)
            score = score.mean(1, keepdim=True) if gate.sharing == "averaged" else score
            return y * score if gate.combine == "multiply" else y + score

        q, k, v = (
            gated(name, (h @ w[f"attention.input.blocks.{name}"].T).unflatten(-1, (-1, config.head_dim)))
            for name in ("query", "key", "value")
        )
        if config.qk_norm:
            q, k = rms(q, w["attention.query_norm.weight"]), rms(k, w["attention.key_norm.weight"])
        q, k = rotate(q), rotate(k)
        heads = []
        for head in range(config.query_heads):
            shared = head // (config.query_heads // config.kv_heads)
            logits = q[:, head] @ k[:, shared].T / math.sqrt(config.head_dim)
            heads.append(logits.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, shared])
        y = gated("sdpa", torch.stack(heads, 1))
        if config.sdpa_output == "rmsnorm":
            y = rms(y, w["attention.sdpa_output.weight"])
        y = F.silu(y) if config.sdpa_output == "silu" else y
        y = gated("output", (y.flatten(1) @ w["attention.output.weight"].T)[:, None])[:, 0]
        x = x + (rms(y, w["attention_post_norm.weight"]) if config.sandwich_norm else y)
        h = rms(x, w["ffn_norm.weight"])
        inner = F.silu(h @ w["ffn.input.blocks.left"].T) * (h @ w["ffn.input.blocks.right"].T)
        y = inner @ w["ffn.down.weight"].T
        x = x + (rms(y, w["ffn_post_norm.weight"]) if config.sandwich_norm else y)
    head = weights["embedding.weight" if config.tie_embeddings else "head.weight"]
    return rms(x, weights["norm.weight"]) @ head.T


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_decoder_computes_its_equations(model_configs: st.SearchStrategy[ModelConfig], data: st.DataObject) -> None:
    """Every option, alone and combined, is where the paper puts it: gates see the normed hidden state, precede QK-norm
    and RoPE, modulate key and value heads before they are shared, and so on."""
    config = data.draw(model_configs)
    model, generator = Decoder(config).double(), torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    with torch.no_grad():
        for parameter in model.parameters():  # far from their initial values, so that gains and biases matter
            parameter.normal_(generator=generator)
    tokens = torch.randint(0, config.vocab_size or 0, (2, 5), generator=generator)
    logits, weights = model(tokens), dict(model.named_parameters())
    for sequence in range(2):
        want = written_out(config, weights, tokens[sequence])
        # RoPE's tables are float32.
        torch.testing.assert_close(logits[sequence], want, rtol=1e-4, atol=1e-5 * (1 + want.abs().max().item()))


@pytest.mark.parametrize("tie", [True, False])
def test_tied_embeddings_are_one_tensor(build: Callable[..., Decoder], tie: bool) -> None:
    """A tie must outlive copies and casts: otherwise the two drift apart and the parameter count is wrong."""
    for model in (build(model_config(tie_embeddings=tie)), build(model_config(tie_embeddings=tie)).double()):
        for decoder in (model, copy.deepcopy(model)):
            shared = decoder.head.weight.untyped_storage().data_ptr() == decoder.embedding.weight.data_ptr()
            assert shared == tie
            assert ("head.weight" in dict(decoder.named_parameters())) != tie


def test_a_model_needs_a_vocabulary() -> None:
    """A configuration without a vocabulary is for planning; building it says what is missing."""
    with pytest.raises(ValueError, match="vocab_size must be set to build a model"):
        Decoder(ModelConfig())


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 2**40))
def test_initialisation_sets_everything_from_seed_and_name(
    model_configs: st.SearchStrategy[ModelConfig], data: st.DataObject, seed: int
) -> None:
    """Paired differences: what two variants share starts bit-equal, whatever gates, controls or ties they add.

    And all of it depends on the seed alone: not on what memory held before, nor on torch's global generator, which
    is left as it was.
    """
    one, other = data.draw(model_configs), data.draw(model_configs)
    keep = ("layers", "hidden_size", "query_heads", "kv_heads", "head_dim", "ffn_size", "vocab_size")
    shape = {name: getattr(one, name) for name in (*keep, "depth_scaled_init")}
    variants = [one, ModelConfig.model_validate({**other.model_dump(), **shape})]
    states = []
    for number, config in enumerate(variants):
        model = Decoder(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        torch.manual_seed(number)
        before = torch.get_rng_state()
        initialize(model, seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(dict(model.named_parameters()))
    assert all(parameter.isfinite().all() for state in states for parameter in state.values())
    common = [name for name in states[0].keys() & states[1].keys() if "gate_" not in name]
    assert len(common) >= 2 + 9 * one.layers  # embedding, norm; query, key, value, output, left, right, down, 2 norms
    for name in common:
        assert torch.equal(states[0][name], states[1][name]), name


def test_gates_start_equal_wherever_they_are_equal(build: Callable[..., Decoder]) -> None:
    """The value gate of `value` and of `value+sdpa` is the same gate, also with another activation or a bias."""
    alone, both = (
        dict(build(model_config(gate=gate)).named_parameters())
        for gate in ({"position": "value"}, {"position": "value+sdpa", "activation": "silu", "bias": 1.0})
    )
    names = [name for name in alone if "gate_" in name]
    assert len(names) == 2
    assert all(torch.equal(alone[name], both[name]) for name in names)


def test_another_seed_is_another_start(build: Callable[..., Decoder]) -> None:
    """Seeds are independent repetitions: no random weight is the same under two of them, or in two places."""
    config = model_config(gate={"position": "value+sdpa"}, tie_embeddings=False)
    draws = [
        parameter.detach().flatten()[:4000]
        for seed in (0, 1)
        for parameter in build(config, seed).parameters()
        if parameter.dim() > 1
    ]
    assert len(draws) == 2 * (2 + 2 * 9)
    correlation = torch.corrcoef(torch.stack([draw[:2048] for draw in draws])) - torch.eye(len(draws))
    assert correlation.abs().max() < 6 / math.sqrt(2048)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_a_narrower_feed_forward_is_the_first_part_of_the_wider(hidden: int, one: int, other: int) -> None:
    """Matching parameters narrows the feed-forward layer: the units that remain start as they would have."""
    narrow, wide = sorted((one, other))
    states = []
    for ffn_size in (narrow, wide):
        model = Decoder(ModelConfig(layers=1, hidden_size=hidden, ffn_size=ffn_size, vocab_size=2))
        initialize(model, 5)
        states.append(dict(model.layers[0].ffn.named_parameters()))
    for name in ("input.blocks.left", "input.blocks.right"):
        assert torch.equal(states[0][name], states[1][name][:narrow])
    assert torch.equal(states[0]["down.weight"], states[1]["down.weight"][:, :narrow])


@pytest.mark.parametrize("depth_scaled", [True, False])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_weights_are_normal_with_the_configured_deviation(
    build: Callable[..., Decoder], std: float, depth_scaled: bool
) -> None:
    """The start of every trial: N(0, std), gates too, divided by sqrt(2 x layers) where a layer writes its output."""
    config = model_config(layers=3, init_std=std, depth_scaled_init=depth_scaled, gate={"position": "sdpa"})
    for name, parameter in build(config).named_parameters():
        if parameter.dim() == 1:
            assert parameter.eq(1).all(), name
            continue
        writes = name.endswith(("attention.output.weight", "ffn.down.weight"))
        want = std / math.sqrt(6) if depth_scaled and writes else std
        values, noise = parameter.detach().double() / want, 5 / math.sqrt(parameter.numel())  # five standard errors
        assert abs(values.mean()) < noise, name
        assert abs(values.square().mean() - 1) < noise * math.sqrt(2), name
        assert abs(values.abs().lt(1).double().mean() - math.erf(math.sqrt(0.5))) < noise, name


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_init_scale_scales_gate_weights_alone(build: Callable[..., Decoder], scale: float) -> None:
    """A study of gate initialisation must not move any other weight."""
    scaled, plain = (
        dict(build(model_config(gate={"position": "value+output", "init_scale": s})).named_parameters())
        for s in (scale, 1.0)
    )
    for name, parameter in scaled.items():
        torch.testing.assert_close(parameter, plain[name] * (scale if "gate_" in name else 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("source", ["hidden", "constant"])
def test_a_bias_starts_where_it_is_told(build: Callable[..., Decoder], source: str) -> None:
    """A gate that starts open or closed is one field; a constant gate starts at zero by itself, as in the paper."""
    for bias, start in ((2.5, 2.5), (0.0, 0.0), *([(None, 0.0)] if source == "constant" else [])):
        model = build(model_config(gate={"position": "key+sdpa", "input": source, "bias": bias}))
        constants = [p for name, p in model.named_parameters() if "gate_constants" in name]
        assert [p.numel() for p in constants] == [4 * 16, 8 * 16] * 2
        assert all(p.eq(start).all() for p in constants)
    none = build(model_config(gate={"position": "key+sdpa"}))
    assert not [name for name, _ in none.named_parameters() if "gate_constants" in name]


def test_every_parameter_learns(build: Callable[..., Decoder]) -> None:
    """A parameter that no gradient reaches is counted, matched and decayed but does nothing."""
    for gate in (
        {"position": "query+key+value+sdpa+output", "bias": 0.1},
        {"position": "key+sdpa", "input": "constant"},
    ):
        model = build(model_config(gate=gate, sandwich_norm=True, tie_embeddings=False))
        tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
