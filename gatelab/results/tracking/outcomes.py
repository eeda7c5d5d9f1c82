"""What MLflow gets of a trial beside its journal: how it stands, what sums it up, what was measured after training."""

import json
import math
import time

from mlflow.entities import Metric

from gatelab.results.store.layout import TrialFolder
from gatelab.results.store.records import Outcome, TrialDescription
from gatelab.results.store.trials import newest_values, provenance, read_evaluations
from gatelab.results.tracking.client import Run
from gatelab.results.tracking.thinning import KnownSpecs
from gatelab.results.tracking.ui import DESCRIPTION_TAG


def files_state(files: TrialFolder) -> str:
    """Return what tells the files of a trial that is over from those that it had before; '' while it is not over."""
    try:
        outcome = files.outcome.stat()
    except FileNotFoundError:
        return ""
    try:
        evaluations = files.evaluations.stat().st_mtime_ns
    except FileNotFoundError:
        evaluations = 0
    return f"{outcome.st_mtime_ns} {outcome.st_size} {evaluations}"


def outcome_tags(outcome: Outcome, description: TrialDescription | None, run: Run | None) -> dict[str, str]:
    """Return what a run says of how its trial stands."""
    tags = {
        "gatelab.outcome": outcome.status.value,
        "gatelab.step": str(outcome.step),
        "gatelab.provenance": json.dumps(provenance(description)),
    }
    reason = outcome.reason[:8000]
    if reason or (run is not None and "gatelab.reason" in run.tags):
        tags |= {"gatelab.reason": reason, DESCRIPTION_TAG: reason}
    return tags


def final_metrics(outcome: Outcome, specs: KnownSpecs) -> list[Metric]:
    """Return the metrics that only an outcome has; the journal has the others, at its last step."""
    now = int((outcome.ended or 0) * 1000)
    found = {name: value for name, value in outcome.metrics.items() if specs[name].kind == "outcome"}
    return [Metric(name, value, now, outcome.step) for name, value in found.items()]


def evaluated_metrics(files: TrialFolder, run: Run | None, outcome: Outcome, specs: KnownSpecs) -> list[Metric]:
    """Return what was measured after training and is not on the run yet."""
    known = {} if run is None else run.latest
    values = newest_values(read_evaluations(files))
    new = {name: value for name, value in values.items() if specs[name].is_mirrored(None)}
    now = time.time_ns() // 1_000_000
    return [Metric(name, value, now, outcome.step) for name, value in new.items() if not _same(known.get(name), value)]


def _same(one: float | None, other: float) -> bool:
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))
