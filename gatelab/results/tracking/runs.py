"""The `runs` frame of a study, read from MLflow."""

import json
from typing import Any

import pyarrow as pa

from gatelab.results.store.runs import SUMMED_UP, run_row, runs_frame


def runs_from_mlflow(tracking_uri: str, study: str) -> pa.Table:
    """`runs` of a study from a tracking store. Raises NotFound."""
    from gatelab.results.tracking.client import RunIndex  # MLflow takes seconds to import

    index = RunIndex.open(tracking_uri, study)
    record = index.study_record()
    rows = []
    for trial in record["trials"]:
        run = index.runs.get(trial["id"])
        outcome: dict[str, Any] = {"status": "waiting"}
        origin: dict[str, Any] = {}
        if run is not None:
            outcome = {
                "status": run.tags["gatelab.outcome"],
                "reason": run.tags.get("gatelab.reason"),
                "step": int(run.tags["gatelab.step"]),
                "metrics": run.of_model if run.tags["gatelab.outcome"] in SUMMED_UP else {},
            }
            origin = json.loads(run.tags["gatelab.provenance"])
        rows.append(run_row(record, trial, outcome, origin))
    return runs_frame(record, rows)
