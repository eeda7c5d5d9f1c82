import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gatelab.configuration import INVALID_COMBINATION
from gatelab.training.config import DataConfig, ScheduleConfig, TrainingConfig, TrialConfig


def error_of(config: dict[str, Any]) -> dict[str, Any]:
    """The one error that a trial's configuration raises."""
    with pytest.raises(ValidationError) as caught:
        TrialConfig.model_validate(config)
    (error,) = caught.value.errors()
    return dict(error)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("10_000", 10_000),
        ("300k", 300_000),
        (" 3 K ", 3000),
        ("2M", 2_000_000),
        ("2.5m", 2_500_000),
        ("1.5B", 1_500_000_000),
        ("3.5T", 3_500_000_000_000),
        ("4.1M", 4_100_000),
        ("1.001k", 1001),
    ],
    ids=str,
)
def test_counts_with_suffixes_mean_powers_of_ten(written: str | int, meant: int) -> None:
    """A budget of 2M tokens must train on two million, not on 2 x 2^20 and not on two."""
    assert TrainingConfig(tokens=written).tokens == meant


@pytest.mark.parametrize("written", ["", "lots", "2MM", "k", "1.5", "1.0005k", "-5", "0", 0, 2.5, None], ids=repr)
def test_bad_counts_are_refused(written: Any) -> None:
    """A typo in a budget stops the study instead of training on something else."""
    error = error_of({"training": {"tokens": written}})
    assert error["loc"] == ("training", "tokens")
    assert error["type"] != INVALID_COMBINATION  # a wrong field, not a combination that a matrix may pass over


@pytest.mark.parametrize(
    "name",
    [
        "byte",
        "bpe",
        "bpe:",
        "bpe:256",
        "bpe:1e4",
        "bpe:-300",
        "bpe:²",
        "bpe:99999999999",
        f"bpe:{9:05000}",
        "a.txt",
        None,
    ],
)
def test_bad_tokenizers_are_refused_with_what_would_be_right(name: Any) -> None:
    """A BPE vocabulary that cannot hold all bytes, or that no memory can, is told before anything is prepared."""
    error = error_of({"data": {"tokenizer": name}})
    assert error["loc"] == ("data", "tokenizer")
    assert all(right in error["msg"] for right in ("bytes", "bpe:N", "257", "tokenizer.json"))


@pytest.mark.parametrize(
    ("tokens", "steps"), [(1, 1), (63, 1), (64, 1), (65, 2), (1000, 16), (1024, 16), (1025, 17)], ids=str
)
def test_budget_is_rounded_up_to_whole_steps(tokens: int, steps: int) -> None:
    """No trial sees fewer tokens than its budget."""
    assert TrainingConfig(tokens=tokens, sequence_length=16, batch_size=4).steps == steps


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.05, 5), (0.5, 50), (0.999, 100), (1, 1), (7, 7), (250, 250)], ids=str
)
def test_warmup_is_a_fraction_below_one_and_a_number_of_steps_from_one_on(warmup: float, steps: int) -> None:
    """`warmup: 1` is one step, `warmup: 0.05` is 5 % of them."""
    config = TrainingConfig(tokens=100 * 64, sequence_length=16, batch_size=4, schedule={"warmup": warmup})
    assert config.warmup_steps == steps


@pytest.mark.parametrize(("tokenizer", "vocabulary"), [("bytes", 257), ("bpe:257", 257), ("bpe:4096", 4096)])
def test_vocabulary_is_taken_from_the_tokenizer(tokenizer: str, vocabulary: int) -> None:
    """The model's embedding fits its data without the user counting."""
    assert TrialConfig(data={"tokenizer": tokenizer}).model.vocab_size == vocabulary


def test_vocabulary_of_a_tokenizer_file_counts_its_added_separator(tmp_path: Path) -> None:
    """A file without an end-of-text token needs one more embedding than it has entries."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1, "c": 7}}}))
    assert TrialConfig(data={"tokenizer": str(path)}).model.vocab_size == 9


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("null", "no model with a vocabulary"),
        ("[]", "no model with a vocabulary"),
        ("{}", "no 'model'"),
        ('{"model": {"vocab": {}}}', "no model with a vocabulary"),
        ('{"model": {"vocab": {"a": -1}}}', "an id is a whole number from 0 on"),
    ],
)
def test_a_tokenizer_file_of_another_form_is_refused_in_words(content: str, wrong: str, tmp_path: Path) -> None:
    """Not in those of Python: the plan names the file, and what of it is missing."""
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    message = error_of({"data": {"tokenizer": str(path)}})["msg"]
    assert message.startswith(f"tokenizer '{path}': not in the tokenizer.json format ({wrong}")


def test_a_larger_vocabulary_is_kept_and_a_smaller_one_is_impossible() -> None:
    """Padding the embedding is allowed; tokens without an embedding are not."""
    assert TrialConfig(model={"vocab_size": 320}).model.vocab_size == 320
    error = error_of({"model": {"vocab_size": 256}})
    assert error["type"] == INVALID_COMBINATION
    assert "256" in error["msg"]
    assert "257" in error["msg"]


@pytest.mark.parametrize(("batch", "parts"), [(16, 3), (4, 8)])
def test_a_batch_that_cannot_be_cut_evenly_is_impossible(batch: int, parts: int) -> None:
    """Uneven parts would weigh sequences unequally; the matrix lists such a variant with its reason."""
    error = error_of({"training": {"batch_size": batch, "accumulation": parts}})
    assert error["type"] == INVALID_COMBINATION
    assert str(batch) in error["msg"]
    assert str(parts) in error["msg"]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"kind": "cosine", "decay": 0.5}, {"kind": "cosine"}, True),
        ({"kind": "constant", "final": 0.3, "decay": 0.5}, {"kind": "constant"}, True),
        ({"kind": "constant", "warmup": 0.3}, {"kind": "constant"}, False),
        ({"kind": "cosine", "final": 0.3}, {"kind": "cosine"}, False),
        ({"kind": "wsd", "decay": 0.5}, {"kind": "wsd"}, False),
        ({"kind": "wsd", "final": 0.5}, {"kind": "wsd"}, False),
    ],
    ids=["cosine-decay", "constant-final", "constant-warmup", "cosine-final", "wsd-decay", "wsd-final"],
)
def test_schedule_fields_that_mean_nothing_do_not_distinguish_trials(
    one: dict[str, Any], other: dict[str, Any], equal: bool
) -> None:
    """Equal work is done once; unequal work is never folded together."""
    dumps = [ScheduleConfig.model_validate(fields).model_dump() for fields in (one, other)]
    assert (dumps[0] == dumps[1]) == equal


@pytest.mark.parametrize(
    "path", ["", "model", "model.gate", "training", "training.optimizer", "training.schedule", "data", "evaluation"]
)
def test_unknown_keys_are_refused_at_every_level(path: str) -> None:
    """A misspelt key must not silently leave its default in force."""
    config: dict[str, Any] = {}
    section = config
    for name in path.split(".") if path else []:
        section = section.setdefault(name, {})
    section["lerning_rate"] = 1
    error = error_of(config)
    assert error["type"] == "extra_forbidden"
    assert error["loc"] == (*(path.split(".") if path else []), "lerning_rate")


def test_configurations_cannot_be_changed() -> None:
    """A trial's id stays true: what it hashes cannot change afterwards."""
    trial = TrialConfig()
    for section, name in ((trial, "seed"), (trial.training.optimizer, "learning_rate"), (trial.model.gate, "position")):
        with pytest.raises(ValidationError):
            setattr(section, name, getattr(section, name))


@settings(deadline=None)
@given(
    batch=st.integers(1, 8),
    tokens=st.integers(1, 10**7),
    warmup=st.floats(0, 50),
    kind=st.sampled_from(["cosine", "wsd", "constant"]),
    tokenizer=st.sampled_from(["bytes", "bpe:300"]),
)
def test_a_resolved_configuration_is_read_back_unchanged(
    batch: int, tokens: int, warmup: float, kind: str, tokenizer: str
) -> None:
    """What a run folder holds reproduces the trial: writing and reading add nothing and lose nothing."""
    trial = TrialConfig.model_validate(
        {
            "training": {"batch_size": batch, "tokens": tokens, "schedule": {"kind": kind, "warmup": warmup}},
            "data": {"tokenizer": tokenizer},
        }
    )
    assert TrialConfig.model_validate(trial.model_dump()) == trial
    assert TrialConfig.model_validate_json(trial.model_dump_json()) == trial
    assert (trial.training.steps - 1) * trial.training.tokens_per_step < tokens <= trial.training.steps * batch * 128


def test_the_vocabulary_of_a_missing_tokenizer_file_is_an_error_that_names_it() -> None:
    """A wrong path is told when the study is read."""
    assert "nowhere.json" in error_of({"data": {"tokenizer": "nowhere.json"}})["msg"]
    assert DataConfig(tokenizer="nowhere.json").tokenizer == "nowhere.json"


def test_a_recorded_configuration_needs_no_file(tmp_path: Path) -> None:
    """A trial that exists is read wherever its tokenizer has gone since, and whatever lies there now."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    trial = TrialConfig(data={"tokenizer": str(path)})
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 100}}}))
    assert TrialConfig.read_recorded(trial.model_dump(mode="json")) == trial
    path.unlink()
    assert TrialConfig.read_recorded(trial.model_dump(mode="json")) == trial
    assert pickle.loads(pickle.dumps(trial)) == trial
    with pytest.raises(ValidationError, match="lerning_rate"):
        TrialConfig.read_recorded({**trial.model_dump(mode="json"), "lerning_rate": 1})


@pytest.mark.parametrize("given", [{}, {"vocab_size": 300}], ids=["taken", "given"])
def test_a_tokenizer_that_cannot_be_read_is_told_at_its_own_key(given: dict[str, int]) -> None:
    """The message names the key and the file, and does not print the whole configuration."""
    error = error_of({"model": given, "data": {"tokenizer": "nowhere.json"}})
    assert (error["loc"], error["input"]) == (("data", "tokenizer"), "nowhere.json")
    assert error["type"] != INVALID_COMBINATION  # no variant that a matrix may pass over
