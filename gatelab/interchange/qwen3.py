"""Models without a gate, as Qwen3."""

from collections.abc import Iterator, Mapping
from typing import Any

from gatelab.interchange import common
from gatelab.interchange.layout import Entry, Family
from gatelab.models.config import ModelConfig

FIXED = {"attention_bias": False, "use_sliding_window": False}


def _refusal(model: ModelConfig) -> str:
    if model.gate.positions:
        return f"it has no gate (model.gate.position is {model.gate.position})"
    return common.gateless_refusal(model)


def _config(model: ModelConfig) -> dict[str, Any]:
    return {**common.shared_config(model), **FIXED, "rope_parameters": common.rope_config(model)}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**common.read_shared(config, **FIXED), **common.read_rope(config, config.get("rope_parameters"))}


def _table(model: ModelConfig) -> Iterator[Entry]:
    yield from common.shared_tensors(model)
    for layer in range(model.layers):
        yield common.query_entry(model, layer)


QWEN3 = Family(
    name="qwen3",
    about="no gate",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    refusal=_refusal,
    config=_config,
    read=_read,
    table=_table,
)
