"""What a model configuration accepts, folds and refuses."""

from itertools import chain, combinations
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gatelab.configuration import INVALID_COMBINATION
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS
from gatelab.models.config import POSITIONS, GateConfig, ModelConfig

SUBSETS = list(chain.from_iterable(combinations(POSITIONS, n) for n in range(1, 6)))
gate_fields = st.fixed_dictionaries(
    {
        "granularity": st.sampled_from(["elementwise", "headwise"]),
        "sharing": st.sampled_from(["per_head", "averaged", "shared"]),
        "activation": st.sampled_from(["sigmoid", "silu", "tanh"]),
        "combine": st.sampled_from(["multiply", "add"]),
        "input": st.sampled_from(["hidden", "constant"]),
        "init_scale": st.floats(0, 10),
        "bias": st.none() | st.floats(-10, 10),
    }
)


@given(gate_fields)
def test_no_position_folds_all_other_fields(fields: dict[str, Any]) -> None:
    """Ungated variants of a study are one trial, not one for each granularity, activation, ... of the matrix."""
    folded = GateConfig(position="none", **fields)
    assert folded == GateConfig()
    assert folded.model_dump_json() == GateConfig().model_dump_json()
    assert folded.positions == ()


@given(gate_fields)
def test_a_constant_gate_folds_only_what_it_ignores(fields: dict[str, Any]) -> None:
    """It has no weights to scale and always a starting value; what does matter stays as written."""
    gate = GateConfig(position="sdpa", **{**fields, "input": "constant"})
    assert gate.model_dump() == {
        **fields,
        "position": "sdpa",
        "input": "constant",
        "init_scale": 1.0,
        "bias": fields["bias"] or 0.0,
    }
    hidden = GateConfig(position="sdpa", **{**fields, "input": "hidden"})
    assert hidden.model_dump() == {**fields, "position": "sdpa", "input": "hidden"}


@given(st.sampled_from(SUBSETS).flatmap(st.permutations), st.sampled_from(["+", " + ", "+ "]))
def test_positions_are_a_set(names: list[str], plus: str) -> None:
    """`sdpa+value` and `value+sdpa` are the same model and must be the same trial."""
    written, canonical = GateConfig(position=plus.join(names)), tuple(p for p in POSITIONS if p in names)
    assert written.positions == canonical
    assert written == GateConfig(position="+".join(canonical))


@pytest.mark.parametrize(
    "position", ["sdpa+sdpa", "none+value", "value+", "", "SDPA", "middle", "value,sdpa", None, 5, ["value"]], ids=str
)
def test_a_wrong_position_is_refused_with_the_right_ones(position: Any) -> None:
    """A misspelt position never trains the ungated model under a gated name."""
    with pytest.raises(ValidationError, match="none, or one or more of query, key, value, sdpa, output, joined by"):
        GateConfig.model_validate({"position": position})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("activation", "sigmod", "expected one of sigmoid, silu, tanh, relu, softplus, identity, ns_sigmoid"),
        ("combine", "divide", "expected one of multiply, add"),
        ("granularity", "channelwise", "'elementwise' or 'headwise'"),
        ("sharing", "none", "'per_head', 'averaged' or 'shared'"),
        ("init_scale", -1, "greater than or equal to 0"),
    ],
)
def test_a_wrong_gate_field_is_refused_even_without_a_gate(field: str, value: Any, message: str) -> None:
    """Folding must not hide a mistake that the gated half of a study would meet later."""
    with pytest.raises(ValidationError, match=message):
        GateConfig.model_validate({"position": "none", field: value})


HEADWISE, SHARED = {"granularity": "headwise"}, {"sharing": "shared"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"query_heads": 6, "kv_heads": 4}, r"query_heads \(6\) must be a multiple of kv_heads \(4\)"),
        (
            {"gate": {"position": "output", **HEADWISE}},
            r"no heads.*elementwise and per_head \(got headwise, per_head\)",
        ),
        ({"gate": {"position": "sdpa+output", **SHARED}}, r"no heads.*\(got elementwise, shared\)"),
        ({"gate": {"position": "output", "sharing": "averaged"}}, "no heads"),
        ({"gate": {"position": "query", **HEADWISE}}, "QK-norm undoes a headwise scale"),
        ({"gate": {"position": "key+sdpa", **HEADWISE, **SHARED}}, "QK-norm undoes a headwise scale"),
        ({"gate": {"position": "sdpa"}, "sdpa_output": "rmsnorm"}, "sdpa_output: rmsnorm is a control without a gate"),
        ({"gate": {"position": "value+sdpa"}, "sdpa_output": "silu"}, "sdpa_output: silu is a control"),
    ],
)
def test_impossible_models_say_why(model: dict[str, Any], reason: str) -> None:
    """The matrix lists them with this reason instead of training something that was not asked for."""
    with pytest.raises(ValidationError, match=reason) as caught:
        ModelConfig.model_validate(model)
    assert [error["type"] for error in caught.value.errors()] == [INVALID_COMBINATION]


@pytest.mark.parametrize(
    "model",
    [
        {"gate": {"position": "query+key", **HEADWISE}, "qk_norm": False},
        {"gate": {"position": "query+key", **SHARED}},
        {"gate": {"position": "value+sdpa", **HEADWISE, **SHARED}},
        {"gate": {"position": "value+output"}, "sdpa_output": "rmsnorm"},
        {"gate": {"position": "none", **HEADWISE}, "sdpa_output": "silu"},
        {"query_heads": 6, "kv_heads": 1},
    ],
    ids=str,
)
def test_neighbours_of_the_impossible_are_possible(model: dict[str, Any]) -> None:
    """A refusal that is too wide would silently shrink a study."""
    ModelConfig.model_validate(model)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_model_survives_a_round_trip(model_configs: st.SearchStrategy[ModelConfig], data: st.DataObject) -> None:
    """A journal's configuration is read back as the model that was trained."""
    model = data.draw(model_configs)
    assert ModelConfig.model_validate_json(model.model_dump_json()) == model


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("activation", [*ACTIVATIONS], ["sigmod", "", "sigmoid "]),
        ("combine", [*COMBINATIONS], ["sum"]),
        ("position", ["none", *POSITIONS, "value+sdpa", "sdpa + value"], ["sdpa+none", "v", "+sdpa", "sdpa+"]),
    ],
)
def test_editors_complete_the_names_that_a_gate_takes(field: str, good: list[str], bad: list[str]) -> None:
    """The schema lists the names that the code takes and refuses others."""
    schema = GateConfig.model_json_schema()["properties"][field]
    for value in good:
        jsonschema.validate(value, schema)
        GateConfig.model_validate({field: value})
    for value in bad:
        assert not jsonschema.Draft202012Validator(schema).is_valid(value)
        with pytest.raises(ValueError, match="expected"):
            GateConfig.model_validate({field: value})
