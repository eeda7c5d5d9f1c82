"""Models with a sigmoid gate on the output of SDPA, as dense Qwen3.5 whose layers all have full attention.

There the query projection holds the gate: of each head first the rows of its query, then as many of its gate. A gate
with fewer scores has its rows repeated, a bias or a constant gate is part of the projection's bias. All norms store the
distance of their gain from 1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gatelab.interchange import common
from gatelab.interchange.gate_rows import bias_rows, sdpa_gate, sdpa_refusal, weight_rows
from gatelab.interchange.layout import Entry, Family, Part
from gatelab.models.config import ModelConfig

GATE = {"position": "sdpa", "activation": "sigmoid"}


def _refusal(model: ModelConfig) -> str:
    return sdpa_refusal(model, "sigmoid") or common.gateless_refusal(model)


def _config(model: ModelConfig) -> dict[str, Any]:
    sections = {"mrope_section": [11, 11, 10], "mrope_interleaved": True}  # of images and video; text has one position
    return {
        **common.shared_config(model),
        "attention_bias": sdpa_gate(model).has_constant,
        "layer_types": ["full_attention"] * model.layers,
        "rope_parameters": {**common.rope_config(model), "partial_rotary_factor": 1.0, **sections},
    }


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = common.read_shared(config)
    share = {"partial_rotary_factor": config.get("partial_rotary_factor", 0.25)}  # where RoPE does not say
    fields |= common.read_rope({**share, **config}, config.get("rope_parameters") or {})
    return {**fields, "gate": {**GATE, "bias": 0.0 if config.get("attention_bias") else None}}


def _table(model: ModelConfig) -> Iterator[Entry]:
    yield from common.shared_tensors(model, norm_offset=-1.0)
    heads, width, hidden = model.query_heads, model.head_dim, model.hidden_size
    for layer in range(model.layers):
        there, ours = common.block(layer)
        query = Part(f"{ours}.attention.input.blocks.query", (heads, width, hidden), (heads, width, hidden))
        parts = (query, weight_rows(model, layer, width))
        yield Entry(f"{there}.self_attn.q_proj.weight", parts, groups=heads)
        if sdpa_gate(model).has_constant:
            none = Part(None, (heads, width), (heads, width))
            parts = (none, bias_rows(model, layer, width))
            yield Entry(f"{there}.self_attn.q_proj.bias", parts, groups=heads, vector=True)
            keys = model.kv_heads * width
            for letter, rows in (("k", keys), ("v", keys), ("o", hidden)):
                yield Entry(f"{there}.self_attn.{letter}_proj.bias", (Part(None, (rows,), (rows,)),), vector=True)


QWEN3_5 = Family(
    name="qwen3_5",
    about="a sigmoid gate on the output of SDPA: elementwise or headwise, per head or shared, biased or constant",
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    refusal=_refusal,
    config=_config,
    read=_read,
    table=_table,
)
