"""Counts in closed form against the paper, real models, torch's FLOP counter and what autograd keeps."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gatelab.models.accounting import count_parameters, flops_per_token, training_memory
from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder
from gatelab.models.gates import gates_of

COMMON = {"head_dim": 128, "vocab_size": 151_936, "qk_norm": True}
# Paper table 7. Of the MoE only the attention matters here: one expert stands for all.
MOE = COMMON | {"layers": 24, "hidden_size": 2048, "query_heads": 32, "kv_heads": 4, "ffn_size": 768}
MOE |= {"tie_embeddings": False}
DENSE_28 = COMMON | {"layers": 28, "hidden_size": 2048, "query_heads": 16, "kv_heads": 8, "ffn_size": 6144}
DENSE_48 = COMMON | {"layers": 48, "hidden_size": 1536, "query_heads": 16, "kv_heads": 8, "ffn_size": 4608}


def built_parameters(config: ModelConfig) -> dict[str, int]:
    """Sizes of the parameters of a real decoder, tied ones once, without memory for them."""
    with torch.device("meta"):
        return {name: p.numel() for name, p in Decoder(config).named_parameters()}


def added(base: dict[str, Any], change: dict[str, Any]) -> int:
    """Parameters that a change adds, counted in closed form and on built models, which must agree."""
    before, after = ModelConfig(**base), ModelConfig(**{**base, **change})
    counted = count_parameters(after).total - count_parameters(before).total
    assert counted == sum(built_parameters(after).values()) - sum(built_parameters(before).values())
    return counted


def gate(position: str, **fields: Any) -> dict[str, Any]:
    """A change that adds a gate."""
    return {"gate": {"position": position, **fields}}


HEADWISE, AVERAGED, ADDITIVE = {"granularity": "headwise"}, {"sharing": "averaged"}, {"combine": "add"}


@pytest.mark.parametrize(
    ("change", "exact", "printed"),
    [
        pytest.param({"kv_heads": 8}, 2 * 2048 * 4 * 128 * 24, "50", id="row-2-k8"),
        pytest.param({"query_heads": 48}, 2 * 2048 * 16 * 128 * 24, "201", id="row-3-q48"),
        pytest.param(gate("sdpa"), 2048 * 32 * 128 * 24, "201", id="row-5-sdpa"),
        pytest.param(gate("value"), 2048 * 4 * 128 * 24, "25", id="row-6-value"),
        pytest.param(gate("key"), 2048 * 4 * 128 * 24, "25", id="row-7-key"),
        pytest.param(gate("query"), 2048 * 32 * 128 * 24, "201", id="row-8-query"),
        pytest.param(gate("output"), 2048 * 2048 * 24, "100", id="row-9-output"),
        pytest.param(gate("sdpa", **HEADWISE), 2048 * 32 * 24, "1.6", id="row-10-sdpa-headwise"),
        pytest.param(gate("value", **HEADWISE), 2048 * 4 * 24, "0.2", id="row-11-value-headwise"),
        pytest.param(gate("sdpa", **AVERAGED), 2048 * 32 * 128 * 24, "201", id="row-12-sdpa-head-shared"),
        pytest.param(gate("value", **AVERAGED), 2048 * 4 * 128 * 24, "25", id="row-13-value-head-shared"),
        pytest.param(gate("sdpa", activation="silu", **ADDITIVE), 2048 * 32 * 128 * 24, "201", id="row-14-additive"),
        pytest.param(gate("sdpa", activation="silu"), 2048 * 32 * 128 * 24, "201", id="row-15-silu"),
        pytest.param({"sdpa_output": "rmsnorm"}, 128 * 24, "0.003", id="table-3-row-5-rmsnorm"),
        pytest.param({"sdpa_output": "silu"}, 0, "0", id="table-3-row-6-silu"),
        pytest.param(gate("sdpa", input="constant"), 32 * 128 * 24, "0.098", id="table-4-row-6-constant"),
        pytest.param(gate("sdpa", sharing="shared"), 2048 * 128 * 24, "6.3", id="truly-shared"),
    ],
)
def test_added_parameters_are_those_of_the_paper(change: dict[str, Any], exact: int, printed: str) -> None:
    """Tables 1, 3 and 4: a replication compares models of the sizes that the paper compared."""
    millions = added(MOE, change) / 1e6
    assert millions * 1e6 == exact
    decimals = len(printed.partition(".")[2])
    assert abs(millions - float(printed)) < 10**-decimals  # the paper rounds some and cuts others (100.66 is 100)


@pytest.mark.parametrize(
    ("base", "total", "elementwise", "headwise"),
    [
        # By hand, a layer of the first: attention 2·2048·128·(16+8), FFN 3·2048·6144, norms 2·2048 + 2·128.
        pytest.param(DENSE_28, 1_720_574_976, 117_440_512, 917_504, id="28-layers"),
        pytest.param(DENSE_48, 1_705_735_680, 150_994_944, 1_179_648, id="48-layers"),
    ],
)
def test_dense_models_have_the_paper_sizes(base: dict[str, Any], total: int, elementwise: int, headwise: int) -> None:
    """Both "1.7B" models of table 7, and what a gate costs there (tables 1 and 2: d·q·d_k·L, d·q·L and so on)."""
    config = ModelConfig(**base)
    assert count_parameters(config).total == sum(built_parameters(config).values()) == total
    assert added(base, gate("sdpa")) == added(base, gate("query")) == elementwise
    assert added(base, gate("value")) == added(base, gate("key")) == elementwise // 2
    assert added(base, gate("output")) == config.layers * config.hidden_size**2
    assert added(base, gate("sdpa", **HEADWISE)) == 2 * added(base, gate("value", **HEADWISE)) == headwise
    assert added(base, gate("value+sdpa")) == elementwise * 3 // 2


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_counted_parameters_are_real(model_configs: st.SearchStrategy[ModelConfig], data: st.DataObject) -> None:
    """Parameter matching and every table rest on these counts, for every gate, control and tying."""
    config = data.draw(model_configs)
    parts = dict.fromkeys(("embedding", "attention", "gate", "ffn", "norm"), 0)
    for name, size in built_parameters(config).items():
        if name.startswith(("embedding.", "head.")):
            part = "embedding"
        elif "gate_" in name:
            part = "gate"
        elif ".ffn." in name:
            part = "ffn"
        else:
            part = "norm" if "norm" in name or "sdpa_output" in name else "attention"
        parts[part] += size
    counted = count_parameters(config)
    assert {name: getattr(counted, name) for name in parts} == parts
    assert counted.total == sum(parts.values())


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 9))
def test_flops_are_those_that_torch_counts(
    model_configs: st.SearchStrategy[ModelConfig],
    build: Callable[..., Decoder],
    data: st.DataObject,
    length: int,
) -> None:
    """FLOP matching and time estimates rest on these counts, forward and backward.

    torch counts matrix products only, and with explicit ("math") attention the whole T x T square. We count its causal
    half and one operation to combine each gated channel: add the other half, take the combining away.
    """
    config = data.draw(model_configs)
    queries = config.query_heads * config.head_dim
    channels = {
        "query": queries,
        "key": config.kv_heads * config.head_dim,
        "value": config.kv_heads * config.head_dim,
        "sdpa": queries,
        "output": config.hidden_size,
    }
    combined = sum(channels[position] for position in config.gate.positions)
    model, tokens = build(config), torch.zeros(2, length, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    other_half = 2 * 2 * (length / 2) * queries  # QKᵀ and PV, a multiply-add each
    per_token = flops_per_token(config, length) + 3 * config.layers * (other_half - combined)
    assert counter.get_total_flops() == per_token * tokens.numel()


def saved_bytes(model: Decoder, tokens: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of the language-model loss, each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps their addresses theirs

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


EVERYWHERE = "query+key+value+sdpa+output"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"qk_norm": False},
        {"sandwich_norm": True},
        {"sdpa_output": "rmsnorm"},
        {"sdpa_output": "silu"},
        gate("sdpa"),
        gate("sdpa", activation="identity", **ADDITIVE),
        gate("value+sdpa", **HEADWISE),
        gate("value+sdpa", **AVERAGED),
        gate(EVERYWHERE),
        gate(EVERYWHERE, activation="silu"),
        {"layers": 8, "hidden_size": 32},
        {"layers": 1, "vocab_size": 3000},
        {"ffn_size": 8},
        {"ffn_size": 800},
    ],
    ids=str,
)
def test_training_memory_is_what_autograd_keeps(build: Callable[..., Decoder], change: dict[str, Any]) -> None:
    """A plan that underestimates sends trials to die; one that overestimates leaves a GPU half empty: within 20 %.

    Logits and their gradient are alive in the loss beside the log-softmax that autograd keeps. AdamW in float32 holds
    16 bytes a parameter: weight, gradient, two moments.
    """
    shape = {"layers": 2, "hidden_size": 64, "head_dim": 16, "ffn_size": 176, "vocab_size": 256, **change}
    config = ModelConfig(**shape)
    sequences, length = 4, 128
    model = build(config)
    tokens = torch.zeros(sequences, length + 1, dtype=torch.int64)
    real = saved_bytes(model, tokens) + 2 * 4 * sequences * length * shape["vocab_size"]
    state = 16 * sum(p.numel() for p in model.parameters())
    assert training_memory(config, length, sequences) - state == pytest.approx(real, rel=0.2)


def test_counting_needs_a_vocabulary() -> None:
    """A plan made before the tokenizer is known says so, instead of counting a model without embeddings."""
    for count in (
        count_parameters,
        lambda model: flops_per_token(model, 8),
        lambda model: training_memory(model, 8, 1),
    ):
        with pytest.raises(ValueError, match="vocab_size is not known yet: it comes from the tokenizer"):
            count(ModelConfig())


def test_plans_are_counted_without_loading_torch() -> None:
    """`gatelab plan` of a thousand variants stays instant: configuration and counts must not import torch."""
    code = (
        "import sys; from gatelab.models.accounting import *; from gatelab.models.config import *;"
        "m = ModelConfig(vocab_size=9, gate={'position': 'value+sdpa'});"
        "count_parameters(m), flops_per_token(m, 8), training_memory(m, 8, 1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("fields", "logit_shape", "score_shape"),
    [
        ({}, (6, 4), (6, 4)),
        (HEADWISE, (6, 1), (6, 1)),
        (AVERAGED, (6, 4), (1, 4)),
        ({"sharing": "shared"}, (1, 4), (1, 4)),
        (HEADWISE | AVERAGED, (6, 1), (1, 1)),
        (HEADWISE | {"sharing": "shared"}, (1, 1), (1, 1)),
    ],
    ids=str,
)
def test_score_shapes_are_those_of_the_paper(
    fields: dict[str, str], logit_shape: tuple[int, int], score_shape: tuple[int, int]
) -> None:
    """Table 1, column "score shape": n x q x d_k, n x q, n x d_k."""
    config = ModelConfig(query_heads=6, kv_heads=3, head_dim=4, **gate("sdpa", **fields))
    (only,) = gates_of(config).values()
    assert only.logit_shape == logit_shape
    scores, _ = only.pre_activation(torch.zeros(2, 5, only.logits))
    assert scores.shape == (2, 5, *score_shape)
