"""What is known of each metric, asked for the names that a real trial records and that real questions answer with."""

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from gatelab.metrics import dump_specs, find_spec, load_specs
from gatelab.results.store.metric_specs import BEFORE_SPECS
from gatelab.results.views.format import with_unit
from gatelab.training.config import TrialConfig
from gatelab.training.evals.spec import EvalSpec
from gatelab.training.evals.trained_model import TrainedModel
from gatelab.training.loop import train
from gatelab.training.metric_specs import trial_metric_specs
from gatelab.training.preparation import prepare

DECLARED = trial_metric_specs(TrialConfig())

KNOWN = {
    # The first pattern that fits -> its unit and which way is better, as docs and tables state them.
    "*bits_per_byte*": ("bits/byte", "lower"),
    "*lost_bytes*": ("share", ""),
    "train/loss": ("nats/token", "lower"),
    "train/final_loss": ("nats/token", "lower"),
    "train/initial_loss": ("nats/token", ""),
    "validation/loss*": ("nats/token", "lower"),
    "validation/position/*": ("nats/token", "lower"),
    "length/*/loss*": ("nats/token", "lower"),
    "length/*/position/*": ("nats/token", "lower"),
    "retrieval/*/loss": ("nats/token", "lower"),
    "retrieval/*/gain": ("nats/token", "higher"),
    "retrieval/*/accuracy": ("share", "higher"),
    "train/seconds": ("s", "lower"),
    "train/*tokens_per_second": ("tokens/s", "higher"),
    "memory/peak_bytes": ("bytes", "lower"),
    "train/*_spikes": ("", "lower"),
    "train/*_steps": ("", "lower"),
    "attention/entropy*": ("nats", ""),
    "attention/first_token_share*": ("share", ""),
    "attention/sequence_length": ("tokens", ""),
    "*/below_*": ("share", ""),
    # Numbers without a unit: logits, activations, scores, norms, rates and counts.
    "attention/max_logit": ("", ""),
    "activation/*": ("", ""),
    "sdpa*/mean_abs": ("", ""),
    "gate/*": ("", ""),
    "histogram/gate/*": ("", ""),
    "gradient_norm*": ("", ""),
    "weight_norm/*": ("", ""),
    "train/gradient_norm": ("", ""),
    "train/learning_rate": ("", ""),
    "retrieval/*/n": ("", ""),
}


class Names:
    """A recorder that keeps the names, of the whole model and of layers."""

    def __init__(self) -> None:
        self.whole: set[str] = set()
        self.of_layers: set[str] = set()

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        (self.whole if layer is None else self.of_layers).update(values)

    def flush(self) -> None:
        pass

    def commit(self) -> None:
        pass


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Names, set[str], set[str]]:
    """What a trial with a gate, on text of two domains, records; what its outcome has; what questions answer with."""
    folder = tmp_path_factory.mktemp("measures")
    for index in range(30):
        for domain in ("code", "prose"):
            (folder / "text" / domain).mkdir(parents=True, exist_ok=True)
            (folder / "text" / domain / f"{index}.txt").write_text(f"{domain} {index} " * 30)
    trial = TrialConfig.model_validate(
        {
            "model": {"layers": 1, "hidden_size": 8, "query_heads": 1, "kv_heads": 1, "head_dim": 8, "ffn_size": 8}
            | {"gate": {"position": "value+sdpa"}},
            "training": {"tokens": 128, "sequence_length": 16, "batch_size": 4},
            "evaluation": {"tokens": 512, "points": 1},
            "data": {"source": str(folder / "text"), "validation_fraction": 0.2},
        }
    )
    dataset, names = prepare(trial.data, folder / "data"), Names()
    dataset.manifest = replace(dataset.manifest, validation=replace(dataset.manifest.validation, lost_bytes=1))
    outcome = train(trial, names, folder, "cpu", dataset=dataset)
    model = TrainedModel(trial, folder / "checkpoints", dataset, "cpu")
    questions = (EvalSpec("length", 32, "yarn", 512), EvalSpec("retrieval", 256, "base-1e12", 4, "needle"))
    return names, set(outcome.metrics), {name for question in questions for name in model.evaluate(question)}


def test_every_metric_has_its_unit_and_direction(recorded: tuple[Names, set[str], set[str]]) -> None:
    """A new metric must be entered: a loss without a direction would be listed worst first, without a word."""
    names, outcome, answers = recorded
    everything = names.whole | names.of_layers | outcome | answers
    assert len(everything) > 100
    for name in everything:
        fitting = [entry for pattern, entry in KNOWN.items() if fnmatch.fnmatchcase(name, pattern)]
        assert fitting, f"{name}: say beside the code that measures it what it is, and here"
        for specs in (DECLARED, BEFORE_SPECS):
            found = find_spec(name, specs)
            assert (found.unit, found.better) == fitting[0], name
            assert with_unit(name, found) == (f"{name} [{fitting[0][0]}]" if fitting[0][0] else name)
    for pattern in KNOWN:  # nothing here is a leftover
        assert fnmatch.filter(everything, pattern), pattern


def test_what_training_says_of_a_metric_is_what_tables_know(recorded: tuple[Names, set[str], set[str]]) -> None:
    """Each metric is declared where it is measured, and as the table for older trials has it; JSON keeps it all."""
    names, outcome, answers = recorded
    specs = load_specs(json.loads(json.dumps(dump_specs(DECLARED))))
    assert list(specs.items()) == list(DECLARED.items())
    seen = set()
    for name in names.whole | names.of_layers | outcome | answers | {"tasks/wikitext/bits_per_byte"}:
        fitting = [pattern for pattern in specs if fnmatch.fnmatchcase(name, pattern)]
        assert fitting, f"{name}: declare it beside the code that measures it"
        seen.update(fitting)
        spec, table = specs[fitting[0]], find_spec(name, BEFORE_SPECS)
        assert {specs[pattern] for pattern in fitting} == {spec}, name  # the order of patterns decides nothing
        assert spec == table, name
        assert not spec.floor or spec.floor in names.whole
    assert {pattern for pattern in specs if pattern not in seen and not pattern.startswith("autopsy/")} == set()
    assert {name for name in outcome if find_spec(name, specs).kind == "outcome"} == outcome - names.whole


def test_sizes_are_plotted_on_logarithmic_axes(recorded: tuple[Names, set[str], set[str]]) -> None:
    """What massive activations multiply by thousands is logarithmic; shares, entropies, losses and scores are not."""
    names, outcome, answers = recorded
    for name in names.whole | names.of_layers | outcome | answers:
        size = name.startswith(("activation/", "weight_norm/", "gradient_norm/")) or name.endswith("mean_abs")
        assert find_spec(name, DECLARED).logarithmic == (size or name == "attention/max_logit"), name


def test_a_column_of_runs_is_one_number_for_each_trial(recorded: tuple[Names, set[str], set[str]]) -> None:
    """All that an outcome sums up is a column; what is recorded at each step or as points of a curve is none."""
    names, outcome, answers = recorded
    per_step = {"train/loss", "train/gradient_norm", "train/learning_rate", "train/tokens_per_second"}
    assert all(find_spec(name, DECLARED).sums_up for name in outcome)
    assert not any(find_spec(name, DECLARED).sums_up for name in per_step)
    curves = {name for name in names.whole | answers if "/position/" in name}
    assert curves
    assert {name for name in names.whole | answers if not find_spec(name, DECLARED).sums_up} == per_step | curves
    assert names.whole - curves - per_step <= outcome


def test_mlflow_gets_what_its_pages_can_show(recorded: tuple[Names, set[str], set[str]]) -> None:
    """Every number of the whole model, and of layers the few that tell a sink, a massive activation or a dead gate."""
    names, outcome, answers = recorded
    for name in names.whole | outcome | answers:
        assert find_spec(name, DECLARED).is_mirrored(None) == ("/position/" not in name), name
    assert {name for name in names.of_layers if find_spec(name, DECLARED).is_mirrored(0)} == {
        "gradient_norm",
        "attention/first_token_share",
        "attention/max_logit",
        "activation/ffn_residual",
        "gate/value/mean",
        "gate/sdpa/mean",
    }
    assert any(name.startswith("histogram/") for name in names.of_layers)


def test_names_are_ones_that_mlflow_takes(recorded: tuple[Names, set[str], set[str]]) -> None:
    """One name that it refuses would keep a whole study from being mirrored."""
    from mlflow.entities import Metric
    from mlflow.utils.validation import _validate_batch_log_data

    names, outcome, answers = recorded
    for name in names.whole | names.of_layers | outcome | answers:
        _validate_batch_log_data([Metric(name, 0.0, 0, 0)], [], [])


@pytest.mark.parametrize(
    ("name", "unit", "better"),
    [
        ("tasks/wikitext/bits_per_byte", "bits/byte", "lower"),
        ("tasks/hellaswag/acc_norm", "", ""),
        ("anything/else", "", ""),
    ],
)
def test_what_others_name(name: str, unit: str, better: str) -> None:
    """Tasks of the harness have names of their own: nothing is claimed of those that nothing is known of."""
    for spec in (find_spec(name, DECLARED), find_spec(name, BEFORE_SPECS)):
        assert (spec.unit, spec.better) == (unit, better)
        assert spec.sums_up
        assert spec.is_mirrored(None)
