"""Journals copied to MLflow: where results are gathered and read.

One mirror per study writes. What it has sent is marked on each run (`gatelab.mirrored`), so that it can stop at any
moment and go on later; a store that was away is caught up, and one that was deleted is rebuilt from the journals.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from gatelab.metrics import Specs, dump_specs, find_spec
from gatelab.results.store.journal import JournalTail
from gatelab.results.store.layout import PAGE, RunsFolder, TrialFolder
from gatelab.results.store.metric_specs import BEFORE_SPECS, specs_of_trials
from gatelab.results.store.records import Outcome, StudyRecord, TrialDescription, TrialRecord
from gatelab.results.store.segment import SCHEMA
from gatelab.results.store.trials import newest_values, provenance, read_description, read_evaluations, read_outcome
from gatelab.results.tracking.client import SPECS_FILE, Run, RunIndex
from gatelab.results.tracking.ui import (
    COMPARISON,
    DESCRIPTION_TAG,
    VIEW_TAG,
    dataset_input,
    saved_view,
    study_description,
)
from gatelab.status import Status

BATCH = 1_000  # most metrics that MLflow takes at once


BUCKETS = 1_000
"""A metric recorded at more steps than this is thinned: of each of this many spans its extremes and its last value
are sent, and a non-finite one if there is one. Journals keep every value."""


OVER = (Status.FINISHED, Status.DIVERGED, Status.FAILED)


FIGURES = (".png", ".svg", ".pdf")
"""Suffixes of figures."""


def kind_of(path: Path) -> str:
    """Return the folder of artifacts that a file goes to."""
    return "figures" if path.suffix in FIGURES else "report" if path.name == PAGE else "tables"


class Mirror:
    """Copies a study's journals to MLflow, call by call."""

    def __init__(self, folder: RunsFolder, record: StudyRecord, tracking_uri: str) -> None:
        self._folder, self._record, self._uri = folder, record, tracking_uri
        self._index: RunIndex | None = None
        self._tails: dict[str, JournalTail] = {}
        self._held: dict[str, pa.Table] = {}  # rows of a span that is not over
        self._done: set[str] = set()
        self._descriptions: dict[str, TrialDescription] = {}
        self._specs = BEFORE_SPECS  # what readers of the store take metrics to be

    def sync(self) -> int:
        """Send what is new; return the number of values sent. Raises what MLflow raises if the store is away."""
        try:
            if self._index is None:
                self._index = self._connect()
            sent = sum(self._sync_trial(self._index, trial) for trial in self._record.trials)
            self._sync_specs(self._index)
            return sent
        except Exception:
            # What was sent is on the runs; start over from there.
            self._index = None
            self._tails.clear()
            self._held.clear()
            self._done.clear()
            self._specs = BEFORE_SPECS
            raise

    def add_files(self, paths: Iterable[Path]) -> None:
        """Put files beside the study's record, figures, tables and pages each in a folder, and show the comparison.

        Raises what MLflow raises.
        """
        if self._index is None:
            self._index = self._connect()
        client, study = self._index.client, self._index.study_run
        assert study is not None
        for path in paths:
            client.log_artifact(study.run_id, str(path), kind_of(path))
            if path.name == COMPARISON:
                described = study_description(self._record, path.read_text(encoding="utf-8"))
                client.set_tag(study.run_id, DESCRIPTION_TAG, described)

    def add_verdicts(self, verdicts: Mapping[str, str]) -> None:
        """Tag each trial with what the comparison says of its variant. Raises what MLflow raises."""
        if self._index is None:
            self._index = self._connect()
        for trial in self._record.trials:
            run, verdict = self._index.runs.get(trial.id), verdicts.get(trial.variant)
            if run is not None and verdict is not None and run.tags.get("gatelab.verdict") != verdict:
                self._index.client.set_tag(run.run_id, "gatelab.verdict", verdict)
                run.tags["gatelab.verdict"] = verdict

    def _connect(self) -> RunIndex:
        # A server knows where its artifacts go; a database does not.
        served = self._uri.startswith(("http://", "https://"))
        index = RunIndex.open_or_create(self._uri, self._record.name, None if served else self._folder.artifacts)
        if index.study_run is None:
            tags = {"gatelab.kind": "study", DESCRIPTION_TAG: study_description(self._record)}
            run = index.client.create_run(index.experiment_id, tags=tags, run_name=f"study {self._record.name}")
            index.study_run = Run(run.info.run_id, tags)
            index.client.set_terminated(run.info.run_id)
        known = index.study_run.tags.get("gatelab.study_hash")
        if known != self._record.hash or VIEW_TAG not in index.experiment_tags:
            # Only then: what people have since made of the view or the description stays.
            index.client.set_experiment_tag(index.experiment_id, VIEW_TAG, saved_view(self._record))
            index.client.set_experiment_tag(index.experiment_id, DESCRIPTION_TAG, study_description(self._record))
            index.client.set_tag(index.study_run.run_id, "gatelab.study_hash", self._record.hash)
        index.client.log_dict(index.study_run.run_id, self._record.to_json(), "study.json")
        return index

    def _sync_trial(self, index: RunIndex, trial: TrialRecord) -> int:
        files = self._folder.trial(trial.id)
        if trial.id in self._done:
            return 0
        # The state is read first: once it is over, the journal is complete.
        outcome = read_outcome(files)
        if outcome.status == Status.WAITING:
            return 0
        over = outcome.status in OVER
        description = read_description(files)
        if description is not None:
            self._descriptions[trial.id] = description
        specs = specs_of_trials([description] if description else [])
        run = index.runs.get(trial.id)
        if run is None:
            run = index.runs[trial.id] = self._create_run(index, trial, description)
        if not run.described:
            self._describe(index.client, run, trial, description)
        tail = self._tails.setdefault(trial.id, JournalTail(files.journal))
        rows = pa.concat_tables([self._held.get(trial.id, SCHEMA.empty_table()), tail.read()])
        span = max(1, math.ceil(self._record.variants[trial.variant].steps / BUCKETS))
        last = int(rows["step"][-1].as_py()) if len(rows) else max(run.mirrored, 0)
        upto = last if over else last // span * span
        steps = rows["step"].to_numpy()
        self._held[trial.id] = rows.slice(int(np.searchsorted(steps, upto, side="right")))
        rows = _mirrored(rows.slice(0, len(rows) - len(self._held[trial.id])), specs)
        sent = self._send(index.client, run, rows, span, upto)
        outcome = outcome if "step" in outcome.model_fields_set else outcome.model_copy(update={"step": last})
        final = {
            name: value for name, value in outcome.metrics.items() if find_spec(name, specs).kind == "outcome"
        }  # the journal has the others, at its last step
        self._update(index.client, run, outcome, provenance(description), final)
        if outcome.status.is_over:  # one that failed may be tried again
            sent += self._send_evaluations(index.client, run, files, outcome, specs)
            self._done.add(trial.id)
            del self._tails[trial.id], self._held[trial.id]
        return sent

    def _sync_specs(self, index: RunIndex) -> None:
        """Put what the study's metrics are beside its record, where that is news."""
        known = [self._descriptions[trial.id] for trial in self._record.trials if trial.id in self._descriptions]
        specs = specs_of_trials(known)
        if specs != self._specs and index.study_run is not None:
            index.client.log_dict(index.study_run.run_id, dump_specs(specs), SPECS_FILE)
            self._specs = specs

    def _create_run(self, index: RunIndex, trial: TrialRecord, description: TrialDescription | None) -> Run:
        started = description.attempts[0].started if description and description.attempts else 0.0
        tags = {
            "gatelab.trial": trial.id,
            "gatelab.study": self._record.name,
            "gatelab.variant": trial.variant,
            "gatelab.seed": str(trial.seed),
            "gatelab.outcome": "running",
            "gatelab.step": "0",
            "gatelab.config": json.dumps(description.config if description else {})[:8000],
            "gatelab.provenance": json.dumps(provenance(description)),
        }
        run = index.client.create_run(
            index.experiment_id,
            start_time=int(started * 1000) or None,
            tags=tags,
            run_name=f"{trial.variant}, seed={trial.seed}",
        )
        return Run(run.info.run_id, tags)

    def _describe(
        self, client: MlflowClient, run: Run, trial: TrialRecord, description: TrialDescription | None
    ) -> None:
        """Give a run its parameters and what it trains on."""
        variant = self._record.variants[trial.variant]
        params = {
            **variant.levels,
            "seed": trial.seed,
            "variant": trial.variant,
            "parameters": variant.parameters,
            "flops_per_token": variant.flops_per_token,
        }
        client.log_batch(run.run_id, params=[Param(name, str(value)) for name, value in params.items()])
        identity = description.attempts[-1].provenance.get("data") if description and description.attempts else None
        if description and identity:
            source = description.config.get("data", {}).get("source", "")
            client.log_inputs(run.run_id, datasets=[dataset_input(self._folder.data, identity, source)])
        run.described = True

    def _send(self, client: MlflowClient, run: Run, rows: pa.Table, span: int, upto: int) -> int:
        metrics = [metric for metric in thin(rows, span) if metric.step > run.mirrored]
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run.run_id, metrics=metrics[start : start + BATCH])
        if upto > run.mirrored:
            run.tags["gatelab.mirrored"] = str(upto)
            client.set_tag(run.run_id, "gatelab.mirrored", str(upto))
        return len(metrics)

    def _send_evaluations(
        self, client: MlflowClient, run: Run, files: TrialFolder, outcome: Outcome, specs: Specs
    ) -> int:
        """Send what was measured after training and is not on the run yet."""
        values = newest_values(read_evaluations(files))
        found = {name: value for name, value in values.items() if find_spec(name, specs).is_mirrored(None)}
        new = {name: value for name, value in found.items() if not _same(run.latest.get(name), value)}
        now = time.time_ns() // 1_000_000
        for start in range(0, len(new), BATCH):
            part = list(new.items())[start : start + BATCH]
            metrics = [Metric(name, value, now, outcome.step) for name, value in part]
            client.log_batch(run.run_id, metrics=metrics)
        run.latest |= new
        return len(new)

    def _update(
        self, client: MlflowClient, run: Run, outcome: Outcome, origin: Mapping[str, str], final: Mapping[str, float]
    ) -> None:
        """Bring what a run says of its trial up to date; `final`: the metrics that only its outcome has."""
        status = outcome.status
        tags = {
            "gatelab.outcome": status.value,
            "gatelab.step": str(outcome.step),
            "gatelab.provenance": json.dumps(origin),
        }
        reason = outcome.reason[:8000]
        if reason or "gatelab.reason" in run.tags:
            tags |= {"gatelab.reason": reason, DESCRIPTION_TAG: reason}
        changed = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        if not changed:
            return
        now = int((outcome.ended or 0) * 1000)
        metrics = [Metric(name, value, now, outcome.step) for name, value in final.items()]
        client.log_batch(run.run_id, metrics=metrics, tags=[RunTag(*item) for item in changed.items()])
        if "gatelab.outcome" in changed and status in OVER:
            client.set_terminated(run.run_id, "FAILED" if status == Status.FAILED else "FINISHED", end_time=now)
        elif "gatelab.outcome" in changed:
            client.update_run(run.run_id, "RUNNING" if status == Status.RUNNING else "KILLED")
        run.tags |= changed


def _mirrored(rows: pa.Table, specs: Specs) -> pa.Table:
    """Return the rows of a journal that MLflow gets."""
    names = rows["name"].to_pylist()
    known = {name: find_spec(name, specs) for name in set(names)}
    layers = rows["layer"].to_pylist()
    wanted = [known[name].is_mirrored(layer) for name, layer in zip(names, layers, strict=True)]
    return rows.filter(pa.array(wanted, pa.bool_()))


def _same(one: float | None, other: float) -> bool:
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))


def thin(rows: pa.Table, span: int) -> list[Metric]:
    """Convert rows of a journal to MLflow metrics. Of several values of a metric in a span of steps, keep only the
    extremes, the last and the first non-finite one. Metrics of a layer are named layer/NN/name.
    """
    steps, values = rows["step"].to_numpy(), rows["value"].to_numpy()
    times = rows["time"].cast(pa.int64()).to_numpy()
    names = [
        name if layer is None else f"layer/{layer:02d}/{name}"
        for name, layer in zip(rows["name"].to_pylist(), rows["layer"].to_pylist(), strict=True)
    ]
    groups: dict[tuple[str, int], list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault((name, (int(steps[row]) - 1) // span), []).append(row)
    kept: set[int] = set()
    for members in groups.values():
        kept.add(members[-1])
        finite = [row for row in members if math.isfinite(values[row])]
        if finite:
            kept |= {min(finite, key=lambda row: values[row]), max(finite, key=lambda row: values[row])}
        if len(finite) < len(members):
            kept.add(next(row for row in members if not math.isfinite(values[row])))
    return [Metric(names[row], float(values[row]), int(times[row]), int(steps[row])) for row in sorted(kept)]
