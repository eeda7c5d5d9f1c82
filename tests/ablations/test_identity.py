"""Trial ids: equal work has an equal name everywhere, other work has another."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.ablations.identity import canonical_json, canonical_variant, trial_id
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.paths import get_path, leaf_paths, merge
from gatelab.training.config import TrialConfig

# A configuration in which every field means something, and for each of them another value that is valid beside it.
BASE = {
    "model.gate.position": "sdpa",
    "model.gate.bias": 0.5,
    "model.yarn_factor": 2.0,
    "model.yarn_length": 128,
    "training.schedule.kind": "wsd",
}
OTHER: dict[str, Any] = {
    "model.layers": 5,
    "model.hidden_size": 32,
    "model.query_heads": 8,
    "model.kv_heads": 4,
    "model.head_dim": 8,
    "model.ffn_size": 177,
    "model.vocab_size": 300,
    "model.tie_embeddings": False,
    "model.qk_norm": False,
    "model.rope_base": 20_000.0,
    "model.yarn_factor": 3.0,
    "model.yarn_length": 64,
    "model.norm_eps": 1e-5,
    "model.init_std": 0.03,
    "model.depth_scaled_init": False,
    "model.gate.position": "value",
    "model.gate.granularity": "headwise",
    "model.gate.sharing": "shared",
    "model.gate.activation": "tanh",
    "model.gate.combine": "add",
    "model.gate.input": "constant",
    "model.gate.init_scale": 0.0,
    "model.gate.bias": None,
    "model.sdpa_output": "silu",
    "model.sandwich_norm": True,
    "training.tokens": 2_000_001,
    "training.sequence_length": 64,
    "training.batch_size": 8,
    "training.accumulation": 2,
    "training.optimizer.learning_rate": 3.000001e-3,
    "training.optimizer.beta1": 0.8,
    "training.optimizer.beta2": 0.99,
    "training.optimizer.eps": 1e-9,
    "training.optimizer.weight_decay": 0.0,
    "training.optimizer.clip_norm": None,
    "training.schedule.kind": "cosine",
    "training.schedule.warmup": 0.1,
    "training.schedule.final": 0.0,
    "training.schedule.decay": 0.3,
    "training.precision": "float32",
    "training.log_every": 20,
    "training.loss_bound": 4.0,
    "evaluation.tokens": 65_537,
    "evaluation.points": 11,
    "evaluation.diagnostic_tokens": 4095,
    "seed": 1,
}
GOLDEN = "818bb39e249c429abf5f2834ac62dc6d2779a5446c31b949175167142bba6e6f"
BY_IDENTITY = {
    "data.source",
    "data.split",
    "data.text_field",
    "data.domain_field",
    "data.tokenizer",
    "data.validation_fraction",
}


def identify(changes: dict[str, Any], data: str = "x") -> str:
    """The id of a trial of BASE with changes."""
    tree = merge({}, BASE | changes)
    if "model.sdpa_output" in changes:  # a control without a gate at sdpa
        tree = merge(tree, {"model.gate.position": "value"})
    config = TrialConfig.model_validate(tree)
    for path, value in changes.items():
        assert get_path(config, path) == value
    return trial_id(canonical_variant(config, data), config.seed)


def test_the_id_of_the_default_trial_stays() -> None:
    """Finished trials are found by their ids: an id that changes by accident runs every old trial again."""
    # If work itself changed, SCHEMA_VERSION must be raised with this; if a field was added, this alone changes.
    assert trial_id(canonical_variant(TrialConfig(), "x"), 0) == GOLDEN


def test_every_field_of_a_trial_enters_its_id() -> None:
    """A field that does not enter would let a finished trial answer for one that was never run."""
    assert OTHER.keys() | BY_IDENTITY == set(leaf_paths())
    ids = {path: identify({path: value}) for path, value in OTHER.items()}
    ids |= {"nothing": identify({}), "other data": identify({}, "y")}
    assert len(set(ids.values())) == len(ids)


def test_data_enter_by_what_they_are_not_by_where_they_lie() -> None:
    """The same corpus in another folder, or on another machine, is the same work."""
    here, there = TrialConfig(), TrialConfig.model_validate({"data": {"source": "/elsewhere/corpus"}})
    assert canonical_variant(here, "x") == canonical_variant(there, "x")
    assert canonical_variant(here, "x") != canonical_variant(there, "y")


def test_fields_that_mean_nothing_do_not_enter() -> None:
    """Without a gate, its activation changes nothing; without wsd, neither does the length of its decay."""
    plain = trial_id(canonical_variant(TrialConfig(), "x"), 0)
    for path, value in (("model.gate.activation", "tanh"), ("model.gate.bias", 2.0), ("training.schedule.decay", 0.4)):
        config = TrialConfig.model_validate(merge({}, {path: value}))
        assert trial_id(canonical_variant(config, "x"), 0) == plain


def test_ids_do_not_depend_on_how_a_study_is_written(plan: Callable[..., Matrix]) -> None:
    """Trials are shared between studies: order of keys and axes, names, labels and counts written short are layout."""

    def ids(text: str) -> set[str]:
        return {trial.id for trial in plan(text).trials}

    first = ids(
        "base: {model: {layers: 2, ffn_size: 32}, training: {tokens: 300k}}\nseeds: 2\n"
        "axes: {model.gate.position: [none, sdpa], training.optimizer.learning_rate: [0.001, 2e-3]}\n"
    )
    second = ids(
        "name: other\nseeds: [1, 0]\naxes:\n  training.optimizer.learning_rate: [2.0e-3, 1e-3]\n"
        "  gate: {off: {model.gate: {position: none}}, on: {model.gate: {position: sdpa}}}\n"
        "base:\n  training.tokens: 300000\n  model: {ffn_size: 32, layers: 2}\n"
    )
    assert len(first) == 8
    assert first == second


def test_a_study_that_grows_keeps_its_trials(plan: Callable[..., Matrix]) -> None:
    """Another level or seed adds trials and leaves the others as they are: only what is new is run."""
    small = plan("seeds: 2\naxes: {model.gate.position: [none, sdpa]}\n")
    grown = plan("seeds: 3\naxes: {model.gate.position: [none, value, sdpa]}\n")
    assert {trial.id for trial in small.trials} < {trial.id for trial in grown.trials}
    assert (len(small.trials), len(grown.trials)) == (4, 9)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), JSON, max_size=4), st.randoms())
def test_canonical_json_depends_on_the_value_only(value: dict[str, Any], random: Any) -> None:
    """Equal values have one text whatever the order of their keys, and the text is the value."""
    keys = list(value)
    random.shuffle(keys)
    text = canonical_json(value)
    assert canonical_json({key: value[key] for key in keys}) == text
    assert json.loads(text) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_without_a_text_are_refused(value: float) -> None:
    """JSON has no NaN: a name made of one would differ between writers."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})
