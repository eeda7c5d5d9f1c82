"""Journals copied to MLflow: where results are gathered and read.

One mirror per study writes. What it has sent is marked on each run (`gatelab.mirrored`), so that it can stop at any
moment and go on later; a store that was away is caught up, and one that was deleted is rebuilt from the journals.
"""

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from gatelab.metrics import Specs, dump_specs, load_specs
from gatelab.results.store.journal import JournalTail
from gatelab.results.store.layout import PAGE, RunsFolder
from gatelab.results.store.metric_specs import BEFORE_SPECS, specs_of_trials
from gatelab.results.store.records import Outcome, StudyRecord, TrialDescription, TrialRecord
from gatelab.results.store.segment import SCHEMA
from gatelab.results.store.trials import (
    provenance,
    read_description,
    read_outcome,
    study_descriptions,
)
from gatelab.results.tracking import own_store
from gatelab.results.tracking.address import StoreUnavailable
from gatelab.results.tracking.client import CONFIG_TAG, SPECS_FILE, Run, RunIndex
from gatelab.results.tracking.following import VERDICT_TAG, follow, missing_params, run_name
from gatelab.results.tracking.outcomes import evaluated_metrics, files_state, final_metrics, outcome_tags
from gatelab.results.tracking.thinning import KnownSpecs, mirrored, thin
from gatelab.results.tracking.ui import (
    COMPARISON,
    DESCRIPTION_TAG,
    VIEW_TAG,
    dataset_input,
    saved_view,
    study_description,
)
from gatelab.status import Status
from gatelab.text import without_secrets

BATCH = 1_000  # most metrics that MLflow takes at once


BUCKETS = 1_000
"""A metric recorded at more steps than this is thinned: of each of this many spans its extremes and its last value
are sent, and a non-finite one if there is one. Journals keep every value."""


OVER = (Status.FINISHED, Status.DIVERGED, Status.FAILED)


STATE_TAG = "gatelab.files"
"""Tag with what tells the files of a trial that is over, all of which has been sent, from those it had before."""


FIGURES = (".png", ".svg", ".pdf")
"""Suffixes of figures."""


def kind_of(path: Path) -> str:
    """Return the folder of artifacts that a file goes to."""
    return "figures" if path.suffix in FIGURES else "report" if path.name == PAGE else "tables"


class Mirror:
    """Copies a study's journals to MLflow, call by call. Its caller holds the study's lock."""

    def __init__(self, folder: RunsFolder, record: StudyRecord, tracking_uri: str) -> None:
        self.store = without_secrets(tracking_uri)
        """The store, for people."""
        self.notes: list[str] = []
        """What became of the default store, for people: it grows."""
        self._folder, self._record, self._uri = folder, record, tracking_uri
        self._study = folder.study(record.name)
        self._is_own = tracking_uri == folder.tracking_uri
        self._has_mended = False
        self._file: int | None = None  # the default store as it was when it was last looked at
        self._forget()

    def _forget(self) -> None:
        """Start over from what is on the runs in MLflow."""
        self._index: RunIndex | None = None
        self._tails: dict[str, JournalTail] = {}
        self._held: dict[str, pa.Table] = {}  # rows of a span that is not over
        self._done: set[str] = set()
        self._news: set[str] = set()  # what trials recorded of their metrics, as JSON, since that was last looked at
        self._specs: Specs | None = None  # what readers of the store take metrics to be

    def sync(self) -> int:
        """Send what is new; return the number of values sent. Raises what MLflow raises if the store is away."""
        try:
            return self._sync()
        except Exception as error:
            if not self._is_own or self._has_mended or not own_store.is_damage(error):
                raise
            self._has_mended = True
            self.notes.append(own_store.replace_damaged(self._folder, error))
            return self._sync()

    def _sync(self) -> int:
        with self._keeping() as index:
            sent = sum(self._sync_trial(index, trial) for trial in self._record.trials if trial.id not in self._done)
            self._sync_specs(index)
            return sent

    def add_files(self, paths: Iterable[Path]) -> None:
        """Put files beside the study's record, figures, tables and pages each in a folder, and show the comparison.

        Raises what MLflow raises.
        """
        with self._keeping() as index:
            study = index.study_run
            assert study is not None
            for path in paths:
                index.add_file(study, path, kind_of(path))
                if path.name == COMPARISON:
                    described = study_description(self._record, path.read_text(encoding="utf-8"))
                    index.client.set_tag(study.run_id, DESCRIPTION_TAG, described)

    def add_verdicts(self, verdicts: Mapping[str, str]) -> None:
        """Tag each trial with what the comparison says of its variant. Raises what MLflow raises."""
        with self._keeping() as index:
            for trial in self._record.trials:
                run, verdict = index.runs.get(trial.id), verdicts.get(trial.variant)
                if run is not None and verdict is not None and run.tags.get(VERDICT_TAG) != verdict:
                    index.client.set_tag(run.run_id, VERDICT_TAG, verdict)
                    run.tags[VERDICT_TAG] = verdict

    @contextmanager
    def _keeping(self) -> Iterator[RunIndex]:
        """Yield the study's runs; the default store is made or mended if need be, and is on disk in the end."""
        try:
            if self._is_own:
                self._keep_store()
            if self._index is None:
                self._index = self._connect()
            yield self._index
            if self._is_own:
                own_store.stop_writing(self._folder, self._study)
        except Exception:
            self._forget()  # what was sent is on the runs
            raise

    def _keep_store(self) -> None:
        found = own_store.file_id(self._folder.database)
        if found is None or found != self._file:
            self._forget()
            self.notes += own_store.keep(self._folder, self._study)
            self._file = own_store.file_id(self._folder.database)
        own_store.start_writing(self._folder, self._study)

    def _connect(self) -> RunIndex:
        # A server knows where its artifacts go; a database does not.
        served = self._uri.startswith(("http://", "https://"))
        index = RunIndex.open_or_create(self._uri, self._record.name, None if served else self._folder.artifacts)
        if not served and own_store.elsewhere(index.artifact_location, self._folder.artifacts):
            raise StoreUnavailable(
                f"experiment {self._record.name!r} in {self.store} keeps its artifacts in another runs folder, "
                f"{index.artifact_location}: name another store, or give the study another name"
            )
        if index.study_run is None:
            tags = {"gatelab.kind": "study", DESCRIPTION_TAG: study_description(self._record)}
            name = f"study {self._record.name}"
            run = index.client.create_run(index.experiment_id, tags=tags, run_name=name)
            index.study_run = Run(run.info.run_id, name, run.info.artifact_uri, tags)
            index.client.set_terminated(run.info.run_id)
        for surplus in index.surplus:
            index.client.delete_run(surplus.run_id)
        follow(index, self._record)
        known = index.study_run.tags.get("gatelab.study_hash")
        if known != self._record.hash or VIEW_TAG not in index.experiment_tags:
            # Only then: what people have since made of the view or the description stays.
            index.client.set_experiment_tag(index.experiment_id, VIEW_TAG, saved_view(self._record))
            index.client.set_experiment_tag(index.experiment_id, DESCRIPTION_TAG, study_description(self._record))
            index.client.set_tag(index.study_run.run_id, "gatelab.study_hash", self._record.hash)
        index.add_json(index.study_run, "study.json", self._record.to_json())
        return index

    def _sync_trial(self, index: RunIndex, trial: TrialRecord) -> int:
        files, run = self._folder.trial(trial.id), index.runs.get(trial.id)
        state = files_state(files)
        if run is not None and state and run.tags.get(STATE_TAG) == state and run.outcome in OVER:
            return 0  # nothing of it has changed since it was sent
        # The outcome is read first: once it is over, the journal is complete.
        outcome = read_outcome(files)
        if outcome.status == Status.WAITING:
            return 0
        over = outcome.status in OVER
        description = read_description(files)
        recorded = json.dumps(description.metrics if description else None)
        if description is not None:
            self._news.add(recorded)
        specs = _known_specs(recorded)
        tail = self._tails.setdefault(trial.id, JournalTail(files.journal))
        rows = pa.concat_tables([self._held.get(trial.id, SCHEMA.empty_table()), tail.read()])
        mirrored_upto = -1 if run is None else run.mirrored
        span = max(1, math.ceil(self._record.variants[trial.variant].steps / BUCKETS))
        last = int(rows["step"][-1].as_py()) if len(rows) else max(mirrored_upto, 0)
        upto = last if over else last // span * span
        self._held[trial.id] = rows.slice(int(np.searchsorted(rows["step"].to_numpy(), upto, side="right")))
        rows = mirrored(rows.slice(0, len(rows) - len(self._held[trial.id])), specs)
        metrics = [metric for metric in thin(rows, span) if metric.step > mirrored_upto]
        if "step" not in outcome.model_fields_set:
            outcome = outcome.model_copy(update={"step": last})
        evaluated = evaluated_metrics(files, run, outcome, specs) if outcome.status.is_over else []
        tags = outcome_tags(outcome, description, run)
        if upto > mirrored_upto:
            tags["gatelab.mirrored"] = str(upto)
        if over:
            tags[STATE_TAG] = state
        final = [] if run is not None and run.outcome == outcome.status else final_metrics(outcome, specs)
        if run is None:
            run = index.runs[trial.id] = self._create_run(index, trial, description)
        self._write(index.client, run, trial, description, outcome, metrics + evaluated + final, tags)
        run.latest |= {metric.key: metric.value for metric in evaluated}
        if outcome.status.is_over:  # one that failed may be tried again
            self._done.add(trial.id)
            del self._tails[trial.id], self._held[trial.id]
        return len(metrics) + len(evaluated)

    def _write(
        self,
        client: MlflowClient,
        run: Run,
        trial: TrialRecord,
        description: TrialDescription | None,
        outcome: Outcome,
        metrics: list[Metric],
        tags: Mapping[str, str],
    ) -> None:
        """Bring a run up to date in as few calls as there can be. What marks it as such is written last."""
        identity = description.attempts[-1].provenance.get("data") if description and description.attempts else None
        if description and identity and not run.has_data:
            source = description.config.get("data", {}).get("source", "")
            client.log_inputs(run.run_id, datasets=[dataset_input(self._folder.data, identity, source)])
            run.has_data = True
        if run.outcome != outcome.status:
            _set_status(client, run, outcome)
        params = missing_params(run, self._record, trial)
        changed = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        room = max(0, BATCH - len(params) - len(changed))
        while len(metrics) > room:
            client.log_batch(run.run_id, metrics=metrics[:BATCH])
            metrics = metrics[BATCH:]
        client.log_batch(
            run.run_id,
            metrics=metrics,
            params=[Param(*item) for item in params.items()],
            tags=[RunTag(*item) for item in changed.items()],
        )
        run.params |= params
        run.tags |= changed

    def _create_run(self, index: RunIndex, trial: TrialRecord, description: TrialDescription | None) -> Run:
        started = description.attempts[0].started if description and description.attempts else 0.0
        tags = {
            "gatelab.trial": trial.id,
            "gatelab.study": self._record.name,
            "gatelab.variant": trial.variant,
            "gatelab.seed": str(trial.seed),
            "gatelab.provenance": json.dumps(provenance(description)),
        }
        name = run_name(trial)
        start = int(started * 1000) or None
        config = {CONFIG_TAG: json.dumps(description.config if description else {})[:8000]}
        run = index.client.create_run(index.experiment_id, start_time=start, tags=tags | config, run_name=name)
        return Run(run.info.run_id, name, run.info.artifact_uri, tags)

    def _sync_specs(self, index: RunIndex) -> None:
        """Put what the study's metrics are beside its record, where that is news."""
        if not self._news or index.study_run is None:
            return
        if self._specs is None:
            self._specs = index.metric_specs()
        if self._news != {json.dumps(dump_specs(self._specs))}:
            everyone = study_descriptions(self._folder, self._record)
            specs = specs_of_trials(everyone.values())
            if specs != self._specs:
                index.add_json(index.study_run, SPECS_FILE, dump_specs(specs))
                self._specs = specs
        self._news.clear()


@functools.lru_cache(maxsize=64)
def _known_specs(metrics: str) -> KnownSpecs:
    """Return what a trial's metrics are, given what it recorded of them, as JSON; most trials recorded the same."""
    recorded = json.loads(metrics)
    return KnownSpecs(load_specs(recorded) if recorded else BEFORE_SPECS)


def _set_status(client: MlflowClient, run: Run, outcome: Outcome) -> None:
    if outcome.status in OVER:
        ended = int((outcome.ended or 0) * 1000)
        client.set_terminated(run.run_id, "FAILED" if outcome.status == Status.FAILED else "FINISHED", end_time=ended)
    elif outcome.status != Status.RUNNING or run.outcome is not None:
        client.update_run(run.run_id, "RUNNING" if outcome.status == Status.RUNNING else "KILLED")
