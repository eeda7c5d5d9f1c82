"""A study in MLflow: its experiment, its runs and what is written on them."""

import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from gatelab.metrics import Specs, load_specs
from gatelab.results.store.layout import NotFound
from gatelab.results.store.metric_specs import BEFORE_SPECS
from gatelab.results.store.records import DamagedRecord, StudyRecord

SPECS_FILE = "metrics.json"
"""The artifact of a study's run that says what its metrics are."""


@dataclass
class Run:
    """A trial's run in MLflow."""

    run_id: str
    tags: dict[str, str]
    latest: dict[str, float] = field(default_factory=dict)  # metric -> its value at the last step
    described: bool = False  # whether its parameters and its dataset are there

    @property
    def of_model(self) -> dict[str, float]:
        """The latest values of the whole model."""
        return {name: value for name, value in self.latest.items() if not name.startswith("layer/")}

    @property
    def mirrored(self) -> int:
        """All rows up to this step have been sent."""
        return int(self.tags.get("gatelab.mirrored", "-1"))


@dataclass
class RunIndex:
    """The runs of a study in a tracking store."""

    client: MlflowClient
    experiment_id: str
    experiment_tags: dict[str, str]
    study_run: Run | None
    runs: dict[str, Run]  # by trial id

    @classmethod
    def open(cls, tracking_uri: str, study: str) -> "RunIndex":
        """Look up a study. Raises NotFound if the store does not have it."""
        database = tracking_uri.removeprefix("sqlite:///")
        if database != tracking_uri and not Path(database).exists():
            raise NotFound(f"no tracking store {tracking_uri}")  # where MLflow would create an empty one
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            raise NotFound(f"no MLflow experiment {study!r} in {tracking_uri}")
        return cls._read(client, experiment.experiment_id, experiment.tags)

    @classmethod
    def open_or_create(cls, tracking_uri: str, study: str, artifacts: Path | None) -> "RunIndex":
        """Look up a study, or create its experiment (a deleted one is brought back)."""
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        known: dict[str, str] = {} if experiment is None else experiment.tags
        if experiment is None:
            location = None if artifacts is None else (artifacts / study).as_uri()
            # The kind decides which of MLflow's page layouts opens: runs and charts, not traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            experiment_id = client.create_experiment(study, artifact_location=location, tags=tags)
        else:
            experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment_id)
        return cls._read(client, experiment_id, known)

    @classmethod
    def _read(cls, client: MlflowClient, experiment_id: str, tags: dict[str, str]) -> "RunIndex":
        index = cls(client, experiment_id, dict(tags), None, {})
        token = None
        while True:
            page = client.search_runs(
                [experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token
            )
            for run in page:
                if run.data.tags.get("gatelab.kind") == "study":
                    index.study_run = Run(run.info.run_id, dict(run.data.tags))
                elif trial := run.data.tags.get("gatelab.trial"):
                    latest = {name: _from_store(value) for name, value in run.data.metrics.items()}
                    described = bool(run.data.params and run.inputs and run.inputs.dataset_inputs)
                    index.runs[trial] = Run(run.info.run_id, dict(run.data.tags), latest, described)
            token = page.token
            if not token:
                return index

    def study_record(self) -> StudyRecord:
        """Read the record of the study from its run's artifacts. Raises NotFound, NewerRecord, DamagedRecord."""
        if self.study_run is None:
            raise NotFound(f"MLflow experiment {self.experiment_id} was not written by gatelab")
        record = StudyRecord.read(self._download(self.study_run, "study.json"))
        if record is None:
            raise DamagedRecord(f"study.json of MLflow run {self.study_run.run_id} is no whole JSON object")
        return record

    def metric_specs(self) -> Specs:
        """Read what the study's metrics are, from its run's artifacts; a store of an older version has none there."""
        if self.study_run is None or SPECS_FILE not in {
            file.path for file in self.client.list_artifacts(self.study_run.run_id)
        }:
            return BEFORE_SPECS
        return load_specs(json.loads(self._download(self.study_run, SPECS_FILE).read_text(encoding="utf-8")))

    def _download(self, run: Run, name: str) -> Path:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        return Path(self.client.download_artifacts(run.run_id, name))


def _from_store(value: float) -> float:
    """Return a value as it was recorded: MLflow's SQL stores keep infinities as the largest finite numbers."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
