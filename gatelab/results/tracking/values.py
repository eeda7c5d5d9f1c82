"""All that a tracking store holds of a study, as it is: what is there twice is there twice."""

from dataclasses import dataclass

from mlflow.entities import ViewType

from gatelab.results.tracking.client import RunIndex, from_store


@dataclass(frozen=True)
class StoredRun:
    """A run of a trial."""

    trial: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    values: tuple[tuple[str, int, float], ...]
    """(name, step, value) of each metric at each step."""


def stored_runs(tracking_uri: str, study: str) -> list[StoredRun]:
    """Read the runs of a study's trials. Raises NotFound if the store does not have it."""
    index = RunIndex.open(tracking_uri, study)
    client, found = index.client, []
    token = None
    while True:
        page = client.search_runs([index.experiment_id], run_view_type=ViewType.ACTIVE_ONLY, page_token=token)
        for run in page:
            tags = run.data.tags
            if "gatelab.trial" not in tags:
                continue
            values = tuple(
                (name, metric.step, from_store(metric.value))
                for name in run.data.metrics
                for metric in client.get_metric_history(run.info.run_id, name)
            )
            found.append(StoredRun(tags["gatelab.trial"], run.info.status, tags, run.data.params, values))
        token = page.token
        if not token:
            return found
