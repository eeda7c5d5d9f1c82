"""Every diagnostic against a case that was worked out by hand, or against the whole matrix of attention weights."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.kernels.reference import attention_weights
from gatelab.models.decoder import Decoder, initialize
from gatelab.training import diagnostics
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.diagnostics import attention_statistics, diagnose, norms, uniform_attention
from gatelab.training.loop import train
from gatelab.training.preparation import prepare
from gatelab.training.recorder import NullRecorder
from gatelab.training.train_state import TrainState

CPU = torch.device("cpu")
Tiny = Callable[..., TrialConfig]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(tiny: Tiny, **model: Any) -> Decoder:
    """A model of two layers, freshly initialised."""
    config = tiny(model={"layers": 2, "init_std": 0.3, "vocab_size": 257, **model}).model
    decoder = Decoder(config)
    initialize(decoder, 0)
    return decoder


def windows(count: int = 3, length: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 257, (count, length + 1))


def statistics(query: torch.Tensor, key: torch.Tensor) -> dict[str, float]:
    """The statistics as numbers, of the heads the largest."""
    return {name: value.max().item() for name, value in attention_statistics(query, key).items()}


def measure(model: Decoder, batch: int = 2, count: int = 3) -> tuple[dict[str, float], list[dict[str, float]]]:
    return diagnose(model, windows(count), batch, CPU, torch.float32)


@pytest.mark.parametrize(("length", "share"), [(1, 1.0), (8, 2.7178571428571425 / 8), (512, 6.816516534549722 / 512)])
def test_uniform_attention_has_the_mechanical_floor(length: int, share: float) -> None:
    """Keys that are all alike show H_n / n (paper.md: 0.34 at 8 tokens, 0.0133 at 512) and no sink."""
    query, key = normal(0, 2, length, 4, 8), torch.zeros(2, length, 2, 8)
    found = statistics(query, key)
    floor = uniform_attention(length)
    assert found["first_token_share"] == pytest.approx(share, rel=1e-5)
    assert floor["attention/first_token_share_uniform"] == pytest.approx(share, rel=1e-12)
    for name in ("first_token_share_late", "entropy"):
        assert found[name] == pytest.approx(floor[f"attention/{name}_uniform"], rel=1e-5, abs=1e-7)
    assert found["first_token_share_top_head"] == pytest.approx(share, rel=1e-5)
    assert found["max_logit"] == 0


def test_a_planted_sink_is_found_where_it_is() -> None:
    """One head of four sends all but nothing to the first token: the mean says a quarter, the top head all of it."""
    length, logit = 64, 40.0
    query, key = torch.zeros(1, length, 4, 4), torch.zeros(1, length, 4, 4)
    query[:, :, 2, 0] = 1.0
    key[:, 0, 2, 0] = logit * 2.0  # scaled by 1 / sqrt(4)
    found = statistics(query, key)
    rest = uniform_attention(length)["attention/first_token_share_uniform"]
    assert found["max_logit"] == pytest.approx(logit)
    assert found["first_token_share_top_head"] == pytest.approx(1.0, abs=1e-6)
    assert found["first_token_share"] == pytest.approx((1 + 3 * rest) / 4, rel=1e-5)
    late = np.mean(1 / np.arange(length // 2 + 1, length + 1))
    assert found["first_token_share_late"] == pytest.approx((1 + 3 * late) / 4, rel=1e-5)
    assert found["entropy"] == pytest.approx(0.75 * np.mean(np.log(np.arange(1, length + 1))), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 33), st.sampled_from([1, 2, 4]), st.sampled_from([1, 7, 64, 1 << 18]), st.integers(0, 99))
def test_statistics_in_chunks_equal_those_of_the_whole_matrix(
    length: int, kv_heads: int, elements: int, seed: int
) -> None:
    """Chunks save memory and change nothing, for any length, grouping of heads and chunk, large logits included."""
    query, key = 5 * normal(seed, 2, length, 4, 8), normal(seed + 1, 2, length, kv_heads, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "CHUNK_ELEMENTS", {"cpu": elements})
        found = statistics(query, key)
    weights = attention_weights(query.double(), key.double())
    first = weights[..., 0]
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key.repeat_interleave(4 // kv_heads, 2)).tril() / math.sqrt(8)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    expected = {
        "first_token_share": first.mean(),
        "first_token_share_late": first[..., length // 2 :].mean(),
        "first_token_share_top_head": first.mean((0, 2)).max(),
        "entropy": torch.special.entr(weights).sum(-1).mean(),
        "max_logit": logits[..., seen].max(),
    }
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4, abs=2e-6)


def test_a_planted_massive_activation_is_found_where_it_enters(tiny: Tiny) -> None:
    """A feed-forward layer that writes 1000 into one channel shows there and in the stream from there on."""
    model = built(tiny)
    with torch.no_grad():
        quiet, _ = measure(model)
        block = model.layers[0]
        block.ffn.register_forward_hook(lambda module, inputs, out: out + 1000.0 * torch.eye(out.shape[-1])[3])
        whole, layers = measure(model)
    sizes = [{name.removeprefix("activation/"): value for name, value in layer.items()} for layer in layers]
    assert sizes[0]["attention_residual"] < 100
    for place in (sizes[0]["ffn_output"], sizes[0]["ffn_residual"], sizes[1]["attention_residual"]):
        assert place == pytest.approx(1000, rel=0.05)
    assert sizes[1]["attention_output"] < 100
    mean = np.mean([layer["ffn_residual"] for layer in sizes])  # the paper's M-Act
    assert whole["activation/ffn_residual"] == pytest.approx(mean)
    assert quiet["activation/ffn_residual"] < 100


@pytest.mark.parametrize("position", ["query", "key", "value", "sdpa", "output", "value+sdpa"])
def test_a_gate_of_known_mean_shows_it(tiny: Tiny, position: str) -> None:
    """A constant gate of sigmoid(-3) = 0.0474 has that mean everywhere, no spread, and lies below 0.1, not 0.01."""
    model = built(tiny, gate={"position": position, "input": "constant", "bias": -3.0}, qk_norm=False)
    score = 1 / (1 + math.exp(3))
    whole, layers = measure(model)
    for values in (whole, *layers):
        for name in position.split("+"):
            gate = {key.removeprefix(f"gate/{name}/"): v for key, v in values.items() if key.startswith(f"gate/{name}")}
            assert gate.pop("std") == pytest.approx(0, abs=1e-4)
            assert (gate.pop("below_0.1"), gate.pop("below_0.01")) == (1, 0)
            assert set(gate) == {"mean", "min", "max", "first_token_mean", "q05", "q25", "median", "q75", "q95"}
            assert all(value == pytest.approx(score, rel=1e-5) for value in gate.values())
    for layer in layers:
        bins = [layer[f"histogram/gate/{position.split('+')[0]}/{index:02d}"] for index in range(20)]
        assert bins == [1.0] + [0.0] * 19
    assert not any(name.startswith("histogram") for name in whole)
    if "sdpa" in position:
        ratio = whole["sdpa/mean_abs"] / whole["sdpa_ungated/mean_abs"]
        assert ratio == pytest.approx(score, rel=1e-4)
        assert whole["sdpa/below_1e-2"] > 2 * whole["sdpa_ungated/below_1e-2"]
    else:
        assert "sdpa_ungated/mean_abs" not in whole


@pytest.mark.parametrize("sharing", ["per_head", "averaged", "shared"])
@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_gate_statistics_are_those_of_the_scores(tiny: Tiny, sharing: str, activation: str) -> None:
    """Against numpy on scores computed from the weights: any batch size, sharing and range."""
    gate = {"position": "sdpa", "sharing": sharing, "activation": activation, "init_scale": 5.0}
    model = built(tiny, gate=gate, layers=1)
    inputs: list[torch.Tensor] = []
    model.layers[0].attention.input.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        model(torch.from_numpy(windows()[:, :-1]))
    logits = inputs[0].double() @ model.layers[0].attention.input.blocks["gate_sdpa"].double().T
    logits = logits.view(3, 16, -1, 8)
    scores = logits.sigmoid() if activation == "sigmoid" else logits * logits.sigmoid()
    if sharing == "averaged":
        scores = scores.mean(2)
    flat = scores.detach().numpy().ravel()
    expected = {
        "mean": flat.mean(),
        "std": flat.std(),
        "min": flat.min(),
        "max": flat.max(),
        "first_token_mean": scores[:, 0].mean().item(),
        "below_0.1": np.mean(np.abs(flat) < 0.1),
        "below_0.01": np.mean(np.abs(flat) < 0.01),
        **{name: np.quantile(flat, q) for name, q in diagnostics.QUANTILES.items()},
    }
    histogram = np.histogram(flat.clip(0, 1), 20, (0, 1))[0] / flat.size
    for batch in (1, 2, 3):
        whole, (layer,) = measure(model, batch)
        for name, value in expected.items():
            assert layer[f"gate/sdpa/{name}"] == whole[f"gate/sdpa/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6)
        bins = [layer[f"histogram/gate/sdpa/{index:02d}"] for index in range(20)]
        assert bins == pytest.approx(histogram.tolist(), abs=2e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_is_breaking_can_be_measured(tiny: Tiny, bad: float) -> None:
    """What has become non-finite shows as such, in the layers it has reached and in the whole; nothing is raised."""
    model = built(tiny, gate={"position": "sdpa"})
    with torch.no_grad():
        model.layers[0].ffn.down.weight[0, 0] = bad
    whole, layers = measure(model)
    assert math.isfinite(layers[0]["attention/max_logit"])
    assert math.isfinite(layers[0]["activation/attention_residual"])
    for name in ("attention/max_logit", "activation/ffn_residual", "gate/sdpa/mean", "gate/sdpa/median"):
        assert not math.isfinite(layers[1][name])
        assert not math.isfinite(whole[name])


@pytest.mark.parametrize("gate", ["none", "value+sdpa"])
def test_measuring_does_not_depend_on_batches_and_leaves_no_trace(tiny: Tiny, gate: str) -> None:
    """The same windows give the same values however they are batched; the model computes on as before."""
    model = built(tiny, gate={"position": gate}).train()
    tokens = torch.from_numpy(windows()[:, :-1])
    before = model(tokens)
    one, other = measure(model, 1), measure(model, 3)
    for got, want in zip([one[0], *one[1]], [other[0], *other[1]], strict=True):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(tokens), before)


def test_diagnostics_are_what_the_model_did_not_change(tiny: Tiny, corpus: Any, tmp_path: Any) -> None:
    """A trial trains to the same weights whether it is measured or not."""
    finals = []
    for tokens in (0, 512):
        trial = tiny(evaluation={"tokens": 256, "points": 3, "diagnostic_tokens": tokens})
        folder = tmp_path / str(tokens)
        outcome = train(trial, NullRecorder(), folder, "cpu", dataset=_dataset(trial, tmp_path))
        final = safetensors.torch.load_file(folder / "checkpoints" / "step-000000020.safetensors")
        final.pop("history", None)
        finals.append(safetensors.torch.save(final))
        assert ("attention/entropy" in outcome.metrics) == bool(tokens)
    assert finals[0] == finals[1]


def _dataset(trial: TrialConfig, folder: Any) -> Dataset:
    return prepare(trial.data, folder / "data")


def test_norms_by_part_add_up(tiny: Tiny) -> None:
    """Each parameter of a layer belongs to one part; together they are the layer's gradient."""
    model = {"gate": {"position": "value+sdpa", "bias": 0.1}, "sandwich_norm": True}
    state = TrainState(tiny(model=model), CPU)
    state.step(0, torch.from_numpy(windows(4)))
    (found,) = norms(state.model)
    parts = {name.partition("/")[2] for name in found if "/" in name}
    assert parts == {"query", "key", "value", "gate_value", "gate_sdpa", "attention_output", "ffn", "norms"}
    for kind, tensors in (
        ("weight_norm", list(state.model.layers[0].parameters())),
        ("gradient_norm", [p.grad for p in state.model.layers[0].parameters()]),
    ):
        total = math.sqrt(sum(found[f"{kind}/{part}"] ** 2 for part in parts))
        assert total == pytest.approx(math.sqrt(sum(t.double().square().sum().item() for t in tensors)), rel=1e-5)
    weight = state.model.layers[0].attention.input.blocks["query"]
    assert found["weight_norm/query"] == pytest.approx(weight.norm().item(), rel=1e-6)
    assert found["gradient_norm"] == pytest.approx(
        math.sqrt(sum(found[f"gradient_norm/{part}"] ** 2 for part in parts)), rel=1e-5
    )
