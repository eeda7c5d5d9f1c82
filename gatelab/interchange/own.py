"""Models of any gate, as a family of gatelab's own, whose code goes with the weights: `modeling_gatelab.py`."""

from collections.abc import Iterator, Mapping
from typing import Any

from gatelab.interchange import common
from gatelab.interchange.layout import CannotExchange, Entry, Family, Part, same
from gatelab.models.config import ModelConfig
from gatelab.models.gates import gates_of

FIELDS = ("qk_norm", "sandwich_norm", "sdpa_output", "rope_base", "yarn_factor", "yarn_length")
"""Our fields that config.json has under their own names."""
GATE = ("position", "granularity", "sharing", "activation", "combine", "input")
"""Fields of a gate that decide what it computes; `bias` there says whether it has one."""
CODE = "modeling_gatelab"


def _config(model: ModelConfig) -> dict[str, Any]:
    gate: dict[str, Any] = {name: getattr(model.gate, name) for name in GATE}
    own = {name: getattr(model, name) for name in FIELDS}
    classes = {"AutoConfig": "GatelabConfig", "AutoModelForCausalLM": "GatelabForCausalLM"}
    return {
        **common.shared_config(model),
        **own,
        "gate": {**gate, "bias": any(each.has_constant for each in gates_of(model).values())},
        "auto_map": {auto: f"{CODE}.{name}" for auto, name in classes.items()},
    }


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = common.read_shared(config)
    config = {"yarn_length": None, **config}  # transformers may leave out what is null
    missing = [name for name in (*FIELDS, "gate") if name not in config]
    if missing:
        raise CannotExchange(f"config.json lacks {', '.join(missing)}")
    if not isinstance(config["gate"], dict):
        raise CannotExchange("config.json: gate: expected a mapping")
    gate = {**config["gate"], "bias": 0.0 if config["gate"].get("bias") else None}
    return {**fields, **{name: config[name] for name in FIELDS}, "gate": gate}


def _table(model: ModelConfig) -> Iterator[Entry]:
    yield from common.shared_tensors(model)
    for layer in range(model.layers):
        there, ours = common.block(layer)
        yield common.query_entry(model, layer)
        for position, gate in gates_of(model).items():
            if gate.projected:
                name = f"{ours}.attention.input.blocks.gate_{position}"
                yield same(f"{there}.self_attn.gates.{position}.weight", name, gate.logits, model.hidden_size)
            if gate.has_constant:
                part = Part(f"{ours}.attention.gate_constants.{position}", (gate.logits,), (gate.logits,))
                yield Entry(f"{there}.self_attn.gates.{position}.bias", (part,), vector=True)
        if model.sdpa_output == "rmsnorm":
            yield same(f"{there}.self_attn.sdpa_norm.weight", f"{ours}.attention.sdpa_output.weight", model.head_dim)
        if model.sandwich_norm:
            for name, own in (("attention_post_norm", "attention_post_norm"), ("mlp_post_norm", "ffn_post_norm")):
                yield same(f"{there}.{name}.weight", f"{ours}.{own}.weight", model.hidden_size)


OWN = Family(
    name="gatelab",
    about="any model, with a file of Python that transformers loads with trust_remote_code",
    model_type="gatelab",
    architecture="GatelabForCausalLM",
    refusal=lambda model: "",
    config=_config,
    read=_read,
    table=_table,
    code=f"{CODE}.py",
)
