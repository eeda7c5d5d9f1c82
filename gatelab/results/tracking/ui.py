"""How a study looks in MLflow's pages: the view of its runs, its dataset, its description, the addresses.

MLflow's pages open on what language models are traced with, and its table of runs without a parameter or a metric: so
each experiment gets a saved view, which its page offers under Views and which an address opens.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.validation import MAX_DATASET_NAME_SIZE, MAX_TAG_VAL_LENGTH

from gatelab.results.store.records import DamagedRecord, DataRecord, StudyRecord
from gatelab.results.tracking.address import check_address, find, logging_to, quick_to_give_up, reporting

VIEW = "gatelab"


VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of an experiment with the saved view of that name."""


TRAINING = "workflowType=machine_learning"
"""Part of an address: pages for those who train models."""


DESCRIPTION_TAG = "mlflow.note.content"
"""Tag of a run or an experiment that is shown as Markdown."""


COMPARISON = "comparison.md"


SORTED_BY = "validation/loss"


CURVES = (SORTED_BY, "train/loss", "train/gradient_norm")


DIGEST = 12
"""Digits of a data identity that MLflow's pages show; MLflow would take 36."""


def saved_view(record: StudyRecord) -> str:
    """Return the view of a study's trials, best first: loss, levels of the axes, seed, outcome, verdict; losses lead
    the charts. It has the form in which MLflow's pages save views themselves; they leave out what they do not know.
    """
    columns = {
        "metrics": (SORTED_BY,),
        "params": (*record.axes, "seed"),
        "tags": ("gatelab.outcome", "gatelab.verdict"),
    }
    state = {
        "selectedColumns": [f"{kind}.`{name}`" for kind, names in columns.items() for name in names],
        "orderByKey": f"metrics.`{SORTED_BY}`",
        "orderByAsc": True,
        "compareRunSections": [{"uuid": VIEW, "name": "losses", "display": True, "isReordered": True}],
        "compareRunCharts": [*map(_curve, CURVES), _parallel(record.axes)],
        "isAccordionReordered": True,  # sections of all other metrics follow
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    return json.dumps({"name": "trials", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _curve(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"{VIEW} {metric}",
        "metricSectionId": VIEW,
        "runsCountToCompare": 20,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _parallel(axes: Iterable[str]) -> dict[str, Any]:
    return {
        "type": "PARALLEL",
        "uuid": f"{VIEW} axes",
        "metricSectionId": VIEW,
        "runsCountToCompare": 100,
        "selectedParams": list(axes),
        "selectedMetrics": [SORTED_BY],
    }


def study_description(record: StudyRecord, comparison: str = "") -> str:
    """Describe a study's question and, if it fits in, its findings: Markdown for the top of its page."""
    whole = "\n\n".join(part for part in (record.question, comparison) if part)
    return whole if len(whole) <= MAX_TAG_VAL_LENGTH else record.question[:MAX_TAG_VAL_LENGTH]


def dataset_input(data: Path, identity: str, source: str) -> DatasetInput:
    """Return the data of a trial as MLflow keeps it: the whole identity is in its profile.

    `data` is the folder of prepared data, which may be gone, or damaged.
    """
    try:
        record = DataRecord.read(data / identity / "manifest.json") or DataRecord()
    except DamagedRecord:
        record = DataRecord()
    parts = {"train": record.train, "validation": record.validation}
    sizes = {f"{part} {what}": number for part, counts in parts.items() for what, number in counts.items()}
    profile = {
        "identity": identity,
        **sizes,
        **record.model_dump(include={"tokenizer", "vocab_size"}, exclude_unset=True),
    }
    kind, where = ("hugging_face", "path") if source.startswith("hf:") else ("local", "uri")
    dataset = Dataset(
        name=source[-MAX_DATASET_NAME_SIZE:],
        digest=identity[:DIGEST],
        source_type=kind,
        source=json.dumps({where: source.removeprefix("hf:")}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "train")])


def study_pages(tracking_uri: str) -> dict[str, str]:
    """Map each study to the address of its view within an MLflow server, newest first.

    Raises NotFound, StoreUnavailable, WrongRequest.
    """
    check_address(tracking_uri)
    quick_to_give_up()
    with logging_to(None), reporting(tracking_uri):
        find(tracking_uri)
        client = MlflowClient(tracking_uri)
        return {
            experiment.name: f"/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey={VIEW}&{TRAINING}"
            for experiment in client.search_experiments(order_by=["last_update_time DESC"])
            if VIEW_TAG in experiment.tags
        }
