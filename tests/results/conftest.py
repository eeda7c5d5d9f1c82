"""A laboratory: a runs folder with a study in it, whose trials are carried out by hand."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gatelab.ablations.loading import make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.metrics import Specs, dump_specs
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.results.store.journal import Journal
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.lease import Lease, acquire
from gatelab.results.store.records import write_json
from gatelab.results.store.runs import SUMMARY
from gatelab.results.store.trials import PROVENANCE

_numbers = itertools.count()


def loss(variant: int, seed: int, step: int) -> float:
    """A curve that falls, differs between variants, and more between seeds."""
    return 5 / math.sqrt(step) + 1.0 + 0.03125 * variant + 0.25 * seed


class Laboratory:
    """A study in a runs folder; its variants are those of the given gate positions, the first being the baseline."""

    loss = staticmethod(loss)

    def __init__(self, root: Path, positions: Iterable[str], seeds: Any, steps: int, **study: Any) -> None:
        self.folder = RunsFolder(root)
        self.name = f"study-{next(_numbers)}"
        raw = {
            "name": self.name,
            "question": "Which gate?",
            "base": {"training": {"tokens": 2 * steps, "batch_size": 1, "sequence_length": 2}},
            "axes": {"model.gate.position": list(positions)},
            "seeds": seeds,
            **study,
        }
        # The name makes trials of their own of those that other laboratories in this folder have, too.
        self.matrix = build_matrix(make_study(raw, "test"), lambda config: self.name)
        self.record = study_record(self.matrix)
        write_record(self.folder, self.record)
        self.variants = [variant.label for variant in self.matrix.variants]
        self.steps = steps
        self.specs: Specs | None = None
        """What trials that begin record of their metrics; None: nothing, as in older versions."""

    def trial(self, variant: int, seed: int) -> TrialFolder:
        """The folder of a trial."""
        return self.folder.trial(self.id(variant, seed))

    def id(self, variant: int, seed: int) -> str:
        """The id of a trial."""
        label = self.variants[variant]
        return next(trial.id for trial in self.matrix.trials if (trial.variant, trial.seed) == (label, seed))

    def begin(self, variant: int, seed: int, **provenance: str) -> None:
        """Describe an attempt, as a worker does before it trains."""
        files = self.trial(variant, seed)
        attempts = json.loads(files.description.read_text())["attempts"] if files.description.exists() else []
        origin = {name: f"this {name}" for name in PROVENANCE} | provenance
        attempts.append({"started": 1_700_000_000.0 + len(attempts), "provenance": origin})
        config = next(t.config for t in self.matrix.trials if t.id == self.id(variant, seed)).model_dump(mode="json")
        specs = {} if self.specs is None else {"metrics": dump_specs(self.specs)}
        write_json(files.description, {"id": self.id(variant, seed), "config": config, "attempts": attempts} | specs)

    def write(self, variant: int, seed: int, steps: Iterable[int], also: Mapping[int, float] | None = None) -> None:
        """Record steps in a segment of their own: the loss, every 5 steps an evaluation and a value of a layer."""
        with Journal(self.trial(variant, seed).journal) as journal:
            for step in steps:
                value = (also or {}).get(step, loss(variant, seed, step))
                journal.record(step, {"train/loss": value})
                if step % 5 == 0:
                    journal.record(step, {"validation/loss": value + 0.125, "validation/bits_per_byte": value * 1.5})
                    journal.record(step, {"gradient_norm": value / 2}, layer=1)

    def plant(
        self, variant: int, seed: int, values: Mapping[int, Mapping[int | None, Mapping[str, float]]], status: str = ""
    ) -> None:
        """Carry out a trial that records these values, by step and by layer (None: the whole model), and no others.

        With a status it is over, and the whole model's values at the last step sum it up.
        """
        self.begin(variant, seed)
        with Journal(self.trial(variant, seed).journal) as journal:
            for step, layers in sorted(values.items()):
                for layer, named in layers.items():
                    journal.record(step, named, layer)
        if status:
            last = max(values)
            self.end(variant, seed, status, last, metrics=values[last].get(None, {}))

    def answer(
        self,
        variant: int,
        seed: int,
        question: str,
        evaluated: float,
        metrics: Mapping[str, float],
        amount: int = 64,
        **provenance: str,
    ) -> None:
        """Keep what was found of a trained model, at a time."""
        entry = {
            "question": {"kind": next(iter(metrics)).partition("/")[0], "amount": amount},
            "step": self.steps,
            "evaluated": evaluated,
            "provenance": {"code": "this code", "device": "this device"} | provenance,
            "metrics": dict(metrics),
        }
        write_json(self.trial(variant, seed).evaluations / f"{question}.json", entry)

    def end(
        self,
        variant: int,
        seed: int,
        status: str,
        step: int,
        reason: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write an outcome."""
        outcome = {"status": status, "step": step, "metrics": metrics or {}, "reason": reason, "ended": 1_700_000_100.0}
        write_json(self.trial(variant, seed).outcome, outcome)

    def finish(self, variant: int, seed: int, **provenance: str) -> None:
        """Carry a trial out to its end."""
        self.begin(variant, seed, **provenance)
        self.write(variant, seed, range(1, self.steps + 1))
        metrics = {name: 100.0 * index + seed + variant / 8 for index, name in enumerate(SUMMARY)}
        last = loss(variant, seed, self.steps)
        metrics |= {"validation/loss": last + 0.125, "validation/bits_per_byte": last * 1.5}
        self.end(variant, seed, "finished", self.steps, "", metrics)

    def hold(self, variant: int, seed: int) -> Lease:
        """The lease of the process that is at work on a trial."""
        return acquire(self.trial(variant, seed).path)


@pytest.fixture
def laboratory(tmp_path: Path) -> Callable[..., Laboratory]:
    """A laboratory in a folder of its own."""

    def build(positions: Iterable[str] = ("none", "sdpa"), seeds: Any = 2, steps: int = 20, **study: Any) -> Laboratory:
        return Laboratory(tmp_path / "runs", positions, seeds, steps, **study)

    return build


@pytest.fixture(scope="session")
def tracked_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A runs folder whose MLflow store is shared: a SQLite store takes seconds to create. `blank.db` is a new one."""
    from mlflow.tracking import MlflowClient

    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        MlflowClient(RunsFolder(root).tracking_uri).search_experiments()
        shutil.copy(root / "mlflow.db", root / "blank.db")
        yield root


@pytest.fixture
def tracked(tracked_root: Path) -> Callable[..., Laboratory]:
    """A laboratory in the folder with the shared store."""

    def build(positions: Iterable[str] = ("none", "sdpa"), seeds: Any = 2, steps: int = 20, **study: Any) -> Laboratory:
        return Laboratory(tracked_root, positions, seeds, steps, **study)

    return build


@pytest.fixture
def blank_store(tracked_root: Path, tmp_path: Path) -> str:
    """The address of a new, empty store."""
    shutil.copy(tracked_root / "blank.db", tmp_path / "store.db")
    return f"sqlite:///{tmp_path / 'store.db'}"
