"""The gate on the output of SDPA, as families store it: rows for each head, repeated where ours has fewer."""

from gatelab.interchange.common import block
from gatelab.interchange.layout import Part
from gatelab.models.config import ModelConfig
from gatelab.models.gates import Gate, gates_of


def sdpa_gate(model: ModelConfig) -> Gate:
    """Return the gate at `sdpa` of a model that has one."""
    return gates_of(model)["sdpa"]


def sdpa_refusal(model: ModelConfig, activation: str) -> str:
    """Say why a gate is none that multiplies the output of SDPA by an activation; '' if it is one."""
    gate = model.gate
    if gate.position != "sdpa":
        return f"its gate is at sdpa (model.gate.position is {gate.position})"
    for field, value, wanted in (
        ("activation", gate.activation, (activation,)),
        ("combine", gate.combine, ("multiply",)),
        ("sharing", gate.sharing, ("per_head", "shared")),
    ):
        if value not in wanted:
            return f"of model.gate.{field} it has {' and '.join(wanted)} (not {value})"
    return ""


def weight_rows(model: ModelConfig, layer: int, width: int) -> Part:
    """Return the gate's rows of a projection, `[heads, width, hidden]`; zeros where the gate is a constant."""
    gate = sdpa_gate(model)
    spread = (model.query_heads, width, model.hidden_size)
    if not gate.projected:
        return Part(None, spread, spread)
    ours = f"{block(layer)[1]}.attention.input.blocks.gate_sdpa"
    return Part(ours, (*gate.logit_shape, model.hidden_size), spread)


def bias_rows(model: ModelConfig, layer: int, width: int) -> Part:
    """Return the gate's part of the projection's bias, `[heads, width]`."""
    ours = f"{block(layer)[1]}.attention.gate_constants.sdpa"
    return Part(ours, sdpa_gate(model).logit_shape, (model.query_heads, width))
