"""The layout of the models that the authors of gated attention released: Qwen3 with a gate in the query projection.

It is read by the modelling code of that release, which goes with none of transformers' own classes. For each KV head
the projection holds the query rows of its heads, then their gate rows: one each, or as many as a head has channels.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gatelab.interchange import common, qwen3
from gatelab.interchange.gate_rows import sdpa_gate, sdpa_refusal, weight_rows
from gatelab.interchange.layout import CannotExchange, Entry, Family, Part
from gatelab.models.config import ModelConfig

FIXED = {**qwen3.FIXED, "qkv_bias": False}
FLAGS = {"headwise": "headwise_attn_output_gate", "elementwise": "elementwise_attn_output_gate"}
"""Granularity -> the key of config.json that is true."""
SIGNS = {*FLAGS.values(), *FIXED.keys() - qwen3.FIXED.keys(), "use_qk_norm"}
"""Keys of config.json by which its models are told from those of transformers, whose type they have."""


def _refusal(model: ModelConfig) -> str:
    gate = sdpa_refusal(model, "sigmoid") if model.gate.positions else ""
    if reason := gate or common.shape_refusal(model):
        return reason
    if not model.gate.positions:
        return ""
    return "its gate has no bias" if sdpa_gate(model).has_constant else ""


def _config(model: ModelConfig) -> dict[str, Any]:
    own = model.gate.granularity if model.gate.positions else None
    flags = {key: granularity == own for granularity, key in FLAGS.items()}
    # The release is older than `rope_parameters`.
    rope: dict[str, Any] = {"rope_theta": model.rope_base, "rope_scaling": None}
    if model.yarn_length is not None:
        rope["rope_scaling"] = {key: value for key, value in common.rope_config(model).items() if key != "rope_theta"}
    return {**common.shared_config(model), **FIXED, "use_qk_norm": model.qk_norm, **flags, **rope}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = common.read_shared(config, **FIXED) | {"qk_norm": config.get("use_qk_norm", True)}
    fields |= common.read_rope(config, config.get("rope_parameters"))
    on = [granularity for granularity, key in FLAGS.items() if config.get(key)]
    if len(on) > 1:
        raise CannotExchange(f"config.json: {' and '.join(FLAGS.values())} are both true: a model has one gate")
    return {**fields, "gate": {"position": "sdpa", "granularity": on[0]}} if on else fields


def _table(model: ModelConfig) -> Iterator[Entry]:
    yield from common.shared_tensors(model)
    heads, width, hidden = model.query_heads, model.head_dim, model.hidden_size
    for layer in range(model.layers):
        there, ours = common.block(layer)
        parts = [Part(f"{ours}.attention.input.blocks.query", (heads, width, hidden), (heads, width, hidden))]
        if model.gate.positions:
            parts.append(weight_rows(model, layer, sdpa_gate(model).logit_shape[1]))
        yield Entry(f"{there}.self_attn.q_proj.weight", tuple(parts), groups=model.kv_heads)


AUTHORS = Family(
    name="authors",
    about="no gate, or a sigmoid gate on the output of SDPA without a bias, for the authors' own code",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    refusal=_refusal,
    config=_config,
    read=_read,
    table=_table,
)
