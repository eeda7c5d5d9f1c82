"""What a metric is: said by the code that measures it, recorded with each trial, read by tables, plots and MLflow."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class MetricSpec:
    """A kind of metric."""

    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    """The direction that is better; '': neither by itself, as a share of attention."""
    logarithmic: bool = False
    """True if plots show it on a logarithmic axis."""
    kind: Literal["summary", "outcome", "series", "detail"] = "summary"
    """summary: one number sums a trial up, that of its last evaluation. outcome: one number sums a trial up, and only
    its outcome has it. series: recorded as training goes on, and no single number sums it up. detail: a point of a
    curve or a bar of a histogram, which plots show as a whole."""
    mirrored_by_layer: bool = False
    """True if MLflow gets the values of each layer. Journals and Parquet have those of all metrics; its pages would be
    lost in them."""
    floor: str = ""
    """The metric that says what attention that is uniform over the past would show."""

    @property
    def sums_up(self) -> bool:
        """True if a metric of the whole model is one number for each trial."""
        return self.kind in ("summary", "outcome")

    def is_mirrored(self, layer: int | None) -> bool:
        """Return whether MLflow gets the values of a layer, or those of the whole model."""
        return self.kind != "detail" if layer is None else self.mirrored_by_layer


Specs = Mapping[str, MetricSpec]
"""Pattern of a name, as `fnmatch` reads it -> what it is. The first pattern that fits holds."""

UNKNOWN = MetricSpec()
NATS = MetricSpec("nats/token", "lower")
BITS = MetricSpec("bits/byte", "lower")
SPEED = MetricSpec("tokens/s", "higher")
SHARE = MetricSpec("share")
SIZE = MetricSpec(logarithmic=True)


def find_spec(name: str, specs: Specs) -> MetricSpec:
    """Return what a metric is; one without a unit or a direction where nothing is known of it."""
    return next((spec for pattern, spec in specs.items() if fnmatch.fnmatchcase(name, pattern)), UNKNOWN)


def prefixed(prefix: str, specs: Specs) -> dict[str, MetricSpec]:
    """Return the specs of metrics whose names begin with a prefix, itself a pattern."""
    return {f"{prefix}{pattern}": spec for pattern, spec in specs.items()}


def dump_specs(specs: Specs) -> dict[str, dict[str, Any]]:
    """Return specs as JSON, in their order, without what is at its default."""
    defaults = vars(UNKNOWN)
    return {
        pattern: {name: value for name, value in vars(spec).items() if value != defaults[name]}
        for pattern, spec in specs.items()
    }


def load_specs(content: Mapping[str, Mapping[str, Any]]) -> dict[str, MetricSpec]:
    """Return the specs that `dump_specs` wrote. What only a newer version knows of a metric is left out."""
    known = {field.name for field in fields(MetricSpec)}
    return {
        pattern: MetricSpec(**{name: value for name, value in given.items() if name in known})
        for pattern, given in content.items()
    }
