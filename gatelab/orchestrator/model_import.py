"""A model of Hugging Face transformers as a study that has been run: of one variant, whose trials have its weights.

Whatever looks for trained models finds it: a study that continues it, evaluation, attention maps. It is evaluated once,
with the diagnostics of training, so that tables have it, too.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatelab.ablations.loading import make_study
from gatelab.ablations.matrix import Matrix, Trial
from gatelab.ablations.study import StudyPlan
from gatelab.atomic import replacing
from gatelab.errors import WrongRequest
from gatelab.interchange.folder import TOKENIZER
from gatelab.interchange.layout import CannotExchange
from gatelab.interchange.reading import ReadModel, read_model
from gatelab.metrics import dump_specs
from gatelab.names import can_name_a_study
from gatelab.orchestrator.planning import plan_study
from gatelab.orchestrator.preregistration import register_claims
from gatelab.orchestrator.provenance import code_version
from gatelab.orchestrator.study_manifest import study_record, write_record, write_study_file
from gatelab.results.store.journal import Journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import acquire
from gatelab.results.store.records import Attempt, Outcome, TrialDescription
from gatelab.results.store.trials import is_over, write_end
from gatelab.status import Status
from gatelab.training.checkpoint import save_checkpoint
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.device import choose_device, compute_dtype, environment
from gatelab.training.evaluator import Evaluation, Evaluator
from gatelab.training.metric_specs import trial_metric_specs
from gatelab.training.preparation import prepare
from gatelab.training.progress import Progress
from gatelab.training.train_state import TrainState

LONGEST = 1024
"""Tokens of the sequences that an imported model is evaluated on, unless it is made for shorter ones."""
TOKENS = 8192
"""Tokens at a time, in evaluations."""


@dataclass(frozen=True)
class ImportedStudy:
    """A model that was imported."""

    matrix: Matrix
    read: ReadModel
    metrics: dict[str, float]
    """What its evaluation found, by name."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.matrix.plan.study.name


def import_model(
    path: Path, folder: RunsFolder, name: str, seeds: int = 1, overrides: Mapping[str, Any] | None = None
) -> ImportedStudy:
    """Bring a model into a runs folder, as a study.

    Args:
        path: the folder of the model, as transformers saves it.
        folder: the runs folder.
        name: of the study, which must not be there yet.
        seeds: how many trials have the weights: a study that continues it may have as many seeds.
        overrides: dotted path -> value in the configuration: its data, its evaluation, its training, not its model.

    Raises:
        CannotExchange: the folder holds no model that gatelab reads.
        WrongRequest: there is such a study, or it cannot have that name.
        StudyError: the overrides are wrong. DataError: the data cannot be used.
    """
    if not can_name_a_study(name):
        raise WrongRequest(f"--name {name!r}: expected letters, digits, '.', '_' and '-', a letter or digit first")
    study = folder.study(name)
    if study.record.exists():
        raise WrongRequest(f"--name {name!r}: there is such a study in {folder.root}: choose another name")
    read = read_model(path)
    given = path / TOKENIZER
    matrix = plan_study(_plan(read, path, name, seeds, overrides or {}, given))  # before anything is written
    trial = matrix.trials[0]
    dataset = prepare(trial.config.data, folder.data, trial.data_id)
    dataset.require(trial.config.training.sequence_length)
    state = TrainState(trial.config, choose_device())
    read.load_into(state.model)
    found = _evaluate(state, trial.config, dataset, path)
    if read.tokenizer is not None:
        own = study.path / TOKENIZER
        with replacing(own) as temporary:
            temporary.write_text(read.tokenizer, encoding="utf-8")
        matrix = plan_study(_plan(read, path, name, seeds, overrides or {}, own))
    for trial in matrix.trials:
        if not is_over(folder.trial(trial.id)):
            _write(trial, folder, state, found, path)
    write_record(folder, study_record(matrix))
    write_study_file(folder, matrix.plan)
    register_claims(folder, matrix)
    return ImportedStudy(matrix, read, found.summary)


def _plan(
    read: ReadModel, path: Path, name: str, seeds: int, overrides: Mapping[str, Any], tokenizer: Path
) -> StudyPlan:
    """Make the study; its training is a formality of one step, after which its trials have the weights."""
    wrong = [key for key in overrides if key.partition(".")[0] == "model" or key == "data.tokenizer"]
    if wrong:
        raise WrongRequest(f"--set {wrong[0]}: the model and its tokenizer are those of {path}")
    length = overrides.get("training.sequence_length", min(read.longest or LONGEST, LONGEST))
    batch = max(1, TOKENS // length) if isinstance(length, int) else 1
    raw = {
        "name": name,
        "question": f"A model that was imported from {path}.",
        "imported": read.digest,
        "base": {
            "model": read.model.model_dump(mode="json"),
            "training": {
                "sequence_length": length,
                "batch_size": batch,
                "accumulation": 1,
                "tokens": batch * length if isinstance(length, int) else 1,
            },
            "data": {"tokenizer": "bytes" if read.tokenizer is None else str(tokenizer)},
            "evaluation": {"points": 1},
        },
        "seeds": seeds,
    }
    return make_study(raw, "import-model", overrides)


def _evaluate(state: TrainState, config: TrialConfig, dataset: Dataset, path: Path) -> Evaluation:
    found = Evaluator(config, dataset).evaluate(state)
    loss = found.summary["validation/loss"]
    if not loss < float("inf"):
        raise CannotExchange(f"{path}: its loss on held-out text is {loss}: the weights are not those of such a model")
    layers = [
        {name: value for name, value in layer.items() if not name.startswith("gradient_norm")} for layer in found.layers
    ]
    return Evaluation(found.summary, found.positions, layers)


def _write(trial: Trial, folder: RunsFolder, state: TrainState, found: Evaluation, path: Path) -> None:
    """Write a trial as one that has finished, the outcome last."""
    files, step, now = folder.trial(trial.id), trial.config.training.steps, time.time()
    machine = environment(state.device, compute_dtype(trial.config.training, state.device))
    origin = {**code_version(), "data": trial.data_id, **machine, "imported": str(path.resolve())}
    with acquire(files.path) as lease:
        shutil.rmtree(files.journal, ignore_errors=True)  # of an import that was killed
        description = TrialDescription(
            id=trial.id,
            config=trial.config.model_dump(mode="json"),
            parent=trial.parent,
            attempts=[Attempt(started=now, provenance=origin)],
            metrics=dump_specs(trial_metric_specs(trial.config)),
        )
        with Journal(files.journal, trial=trial.id, fence=lease.check) as journal:
            journal.record(step, {**found.summary, **found.positions})
            for layer, values in enumerate(found.layers):
                journal.record(step, values, layer)
            journal.commit()
        progress = Progress(step, metrics=dict(found.summary))
        save_checkpoint(files.checkpoints, step, state.model, state.optimizer, progress.state())
        lease.check()
        outcome = Outcome(status=Status.FINISHED, trial=trial.id, step=step, metrics=found.summary, ended=time.time())
        write_end(files, outcome, description)
