"""The rows of a journal that MLflow gets, and in what form."""

import math

import pyarrow as pa
from mlflow.entities import Metric

from gatelab.metrics import MetricSpec, Specs, find_spec


class KnownSpecs:
    """What metrics are, each looked up once."""

    def __init__(self, specs: Specs) -> None:
        self.specs = specs
        self._found: dict[str, MetricSpec] = {}

    def __getitem__(self, name: str) -> MetricSpec:
        """Return what a metric is."""
        if name not in self._found:
            self._found[name] = find_spec(name, self.specs)
        return self._found[name]


def mirrored(rows: pa.Table, specs: KnownSpecs) -> pa.Table:
    """Return the rows of a journal that MLflow gets."""
    names, layers = rows["name"].to_pylist(), rows["layer"].to_pylist()
    wanted = [specs[name].is_mirrored(layer) for name, layer in zip(names, layers, strict=True)]
    return rows.filter(pa.array(wanted, pa.bool_()))


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
