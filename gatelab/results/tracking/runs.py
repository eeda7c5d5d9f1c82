"""The `runs` frame of a study, read from MLflow."""

import json

import pyarrow as pa

from gatelab.results.store.records import Outcome
from gatelab.results.store.runs import run_row, runs_frame
from gatelab.status import Status


def runs_from_mlflow(tracking_uri: str, study: str) -> pa.Table:
    """Read `runs` of a study from a tracking store. Raises NotFound, StoreUnavailable, WrongRequest."""
    from gatelab.results.tracking import address  # MLflow takes seconds to import
    from gatelab.results.tracking.client import LEFT, RunIndex

    address.check_address(tracking_uri)
    address.quick_to_give_up()
    with address.logging_to(None), address.reporting(tracking_uri):
        index = RunIndex.open(tracking_uri, study)
        record = index.study_record()
        rows = []
        for trial in record.trials:
            run = index.runs.get(trial.id)
            outcome = Outcome(status=Status.WAITING)
            origin: dict[str, str] = {}
            if run is not None and run.outcome not in (None, LEFT):
                status = Status(run.tags["gatelab.outcome"])
                outcome = Outcome(
                    status=status,
                    reason=run.tags.get("gatelab.reason", ""),
                    step=int(run.tags["gatelab.step"]),
                    metrics=run.of_model if status.is_over else {},
                )
                origin = json.loads(run.tags["gatelab.provenance"])
            rows.append(run_row(record, trial, outcome, origin))
        return runs_frame(record, rows, index.metric_specs())
