"""A study in MLflow: its experiment, its runs and what is written on them."""

import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment, LifecycleStage, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from gatelab.metrics import Specs, load_specs
from gatelab.results.store.layout import NotFound
from gatelab.results.store.metric_specs import BEFORE_SPECS
from gatelab.results.store.records import DamagedRecord, StudyRecord
from gatelab.results.tracking.address import find, reach
from gatelab.text import without_secrets

SPECS_FILE = "metrics.json"
"""The artifact of a study's run that says what its metrics are."""


LEFT = "left"
"""The outcome, in MLflow only, of a trial that the study no longer has."""


CONFIG_TAG = "gatelab.config"
"""Tag with a trial's configuration. It is never read back, and too large to be held for thousands of runs."""


@dataclass
class Run:
    """A trial's run in MLflow."""

    run_id: str
    name: str
    artifact_uri: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)  # metric -> its value at the last step
    has_data: bool = False  # whether it says what it trains on

    @property
    def of_model(self) -> dict[str, float]:
        """The latest values of the whole model."""
        return {name: value for name, value in self.latest.items() if not name.startswith("layer/")}

    @property
    def mirrored(self) -> int:
        """All rows up to this step have been sent."""
        return int(self.tags.get("gatelab.mirrored", "-1"))

    @property
    def outcome(self) -> str | None:
        """How its trial stands, or `LEFT`; None until something of the trial has been sent."""
        return self.tags.get("gatelab.outcome")


@dataclass
class RunIndex:
    """The runs of a study in a tracking store."""

    client: MlflowClient
    tracking_uri: str
    experiment_id: str
    artifact_location: str
    experiment_tags: dict[str, str]
    study_run: Run | None
    runs: dict[str, Run]  # by trial id
    surplus: list[Run]  # of what has another run

    @classmethod
    def open(cls, tracking_uri: str, study: str) -> "RunIndex":
        """Look up a study. Raises NotFound if the store does not have it, StoreUnavailable."""
        find(tracking_uri)
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise NotFound(f"no MLflow experiment {study!r} in {without_secrets(tracking_uri)}")
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise NotFound(
                f"MLflow experiment {study!r} in {without_secrets(tracking_uri)} was deleted there: the next "
                "`gatelab run` of the study brings it back"
            )
        return cls._read(client, tracking_uri, experiment)

    @classmethod
    def open_or_create(cls, tracking_uri: str, study: str, artifacts: Path | None) -> "RunIndex":
        """Look up a study, or create its experiment (a deleted one is brought back)."""
        reach(tracking_uri)
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            location = None if artifacts is None else (artifacts / study).as_uri()
            # The kind decides which of MLflow's page layouts opens: runs and charts, not traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            experiment = client.get_experiment(client.create_experiment(study, location, tags))
        elif experiment.lifecycle_stage == LifecycleStage.DELETED:
            client.restore_experiment(experiment.experiment_id)
        return cls._read(client, tracking_uri, experiment)

    @classmethod
    def _read(cls, client: MlflowClient, tracking_uri: str, experiment: Experiment) -> "RunIndex":
        number, tags = experiment.experiment_id, dict(experiment.tags)
        index = cls(client, tracking_uri, number, experiment.artifact_location, tags, None, {}, [])
        token = None
        while True:
            page = client.search_runs([number], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token)
            for found in page:
                index._add(found)
            token = page.token
            if not token:
                return index

    def _add(self, found: MlflowRun) -> None:
        latest = {name: from_store(value) for name, value in found.data.metrics.items()}
        has_data = bool(found.inputs and found.inputs.dataset_inputs)
        params = dict(found.data.params)
        tags = {name: value for name, value in found.data.tags.items() if name != CONFIG_TAG}
        info = found.info
        run = Run(info.run_id, info.run_name or "", info.artifact_uri, tags, params, latest, has_data)
        if tags.get("gatelab.kind") == "study":
            if self.study_run is None:
                self.study_run = run
            else:
                self.surplus.append(run)
        elif trial := tags.get("gatelab.trial"):
            other = self.runs.setdefault(trial, run)
            if other is not run:  # one was deleted, replaced and brought back
                run, other = sorted((run, other), key=lambda each: each.mirrored)
                self.surplus.append(run)
                self.runs[trial] = other

    def study_record(self) -> StudyRecord:
        """Read the record of the study from its run's artifacts. Raises NotFound, NewerRecord, DamagedRecord."""
        if self.study_run is None:
            raise NotFound(
                f"MLflow experiment {self.experiment_id} in {without_secrets(self.tracking_uri)} has no run of the "
                "study itself: it was deleted there, and the next `gatelab run` brings it back; or gatelab did not "
                "write it"
            )
        record = StudyRecord.read(self._download(self.study_run, "study.json"))
        if record is None:
            raise DamagedRecord(f"study.json of MLflow run {self.study_run.run_id} is no whole JSON object")
        return record

    def metric_specs(self) -> Specs:
        """Read what the study's metrics are, from its run's artifacts; a store of an older version has none there."""
        if self.study_run is None or SPECS_FILE not in {
            file.path for file in self._artifacts(self.study_run).list_artifacts()
        }:
            return BEFORE_SPECS
        return load_specs(json.loads(self._download(self.study_run, SPECS_FILE).read_text(encoding="utf-8")))

    def add_file(self, run: Run, path: Path, folder: str | None = None) -> None:
        """Put a file among the artifacts of a run."""
        self._artifacts(run).log_artifact(str(path), folder)  # type: ignore[no-untyped-call]

    def add_json(self, run: Run, name: str, value: Any) -> None:
        """Put JSON among the artifacts of a run."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(json.dumps(value, indent=2), encoding="utf-8")
            self.add_file(run, path)

    def _download(self, run: Run, name: str) -> Path:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        return Path(self._artifacts(run).download_artifacts(name))  # type: ignore[no-untyped-call]

    def _artifacts(self, run: Run) -> ArtifactRepository:
        """Return where a run keeps its artifacts.

        MLflow's client remembers that by the run alone, which a copy of a store has, too.
        """
        return get_artifact_repository(run.artifact_uri, tracking_uri=self.tracking_uri)


def from_store(value: float) -> float:
    """Return a value as it was recorded: MLflow's SQL stores keep infinities as the largest finite numbers."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
