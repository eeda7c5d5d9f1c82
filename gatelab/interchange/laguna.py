"""Models with a softplus gate on the output of SDPA, as Laguna without experts and without a sliding window."""

from collections.abc import Iterator, Mapping
from typing import Any

from gatelab.interchange import common
from gatelab.interchange.gate_rows import sdpa_gate, sdpa_refusal, weight_rows
from gatelab.interchange.layout import CannotExchange, Entry, Family
from gatelab.models.config import ModelConfig

GRANULARITY = {"headwise": "per-head", "elementwise": "per-element"}
"""Ours -> its `gating`."""


def _refusal(model: ModelConfig) -> str:
    if reason := sdpa_refusal(model, "softplus") or common.gateless_refusal(model):
        return reason
    return "its gate has no bias" if sdpa_gate(model).has_constant else ""


def _config(model: ModelConfig) -> dict[str, Any]:
    rope = {**common.rope_config(model), "partial_rotary_factor": 1.0}
    return {
        **common.shared_config(model),
        "attention_bias": False,
        "gating": GRANULARITY[model.gate.granularity],
        "layer_types": ["full_attention"] * model.layers,
        "mlp_layer_types": ["dense"] * model.layers,
        "num_attention_heads_per_layer": [model.query_heads] * model.layers,
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
    }


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = common.read_shared(config, attention_bias=False)
    kinds = {"mlp_layer_types": ["sparse"], **config}
    common.check_same(kinds, "mlp_layer_types", "dense", "gatelab's models have no experts")
    heads = "layers of gatelab's models have equal numbers of heads"
    common.check_same(config, "num_attention_heads_per_layer", fields["query_heads"], heads)
    found = config.get("gating", True)
    known = {there: ours for ours, there in GRANULARITY.items()} | {True: "headwise"}
    if not isinstance(found, bool | str) or found not in known:
        raise CannotExchange(f"config.json: gating is {found!r}, expected {' or '.join(GRANULARITY.values())}")
    rope = config.get("rope_parameters")
    rope = rope.get("full_attention") if isinstance(rope, Mapping) else None
    rope = {"partial_rotary_factor": 0.5} if rope is None else rope
    gate = {"position": "sdpa", "activation": "softplus", "granularity": known[found]}
    return {**fields, **common.read_rope({}, rope), "gate": gate}


def _table(model: ModelConfig) -> Iterator[Entry]:
    yield from common.shared_tensors(model)
    width = sdpa_gate(model).logit_shape[1]
    for layer in range(model.layers):
        yield common.query_entry(model, layer)
        yield Entry(f"{common.block(layer)[0]}.self_attn.g_proj.weight", (weight_rows(model, layer, width),))


LAGUNA = Family(
    name="laguna",
    about="a softplus gate on the output of SDPA: elementwise or headwise, per head or shared, without a bias",
    model_type="laguna",
    architecture="LagunaForCausalLM",
    refusal=_refusal,
    config=_config,
    read=_read,
    table=_table,
)
