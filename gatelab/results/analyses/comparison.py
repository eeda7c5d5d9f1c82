"""The comparison of a study's variants with their baseline: means over seeds, paired differences, tests, verdicts.

Differences are paired by seed: the same seed means the same data order and the same initial weights where two
variants share them. Intervals are Student's t at 95 %; verdicts allow for the number of variants (Dunnett).
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatelab.errors import WrongRequest
from gatelab.metrics import MetricSpec, find_spec
from gatelab.results.analyses.analysis import tidy, to_jsonable
from gatelab.results.analyses.contrasts import (
    Contrast,
    Evidence,
    contrasts,
    evidence,
    finished_values,
    group_by_variant,
    noise_notes,
)
from gatelab.results.analyses.lost_text import incomparable_variants, lost_text_notes
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.statistics import paired
from gatelab.results.statistics.paired import LEVEL, NO_INTERVAL, Interval, t_interval
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.runs import AXIS, STATUSES, SUMMARY, axes_of, metrics_of

DEFAULT_METRIC = "validation/loss"


UNFINISHED = ("running", "interrupted", "waiting")


ENVIRONMENT = ("code", "data", "device", "precision", "threads", "torch", "python")


SPEED = "train/mean_tokens_per_second"


@dataclass(frozen=True)
class ComparisonRow:
    """One variant."""

    variant: str
    levels: dict[str, str | None]
    baseline: str | None
    value: Interval  # over the seeds that finished
    delta: Interval | None  # differences to the baseline; None for the baseline itself or without one
    outcomes: dict[str, int]  # trials by outcome
    reasons: tuple[str, ...]  # why trials diverged or failed
    parameters: int
    added_parameters: int | None
    tokens_per_second: float  # median over trials; nan if unknown
    verdict: Verdict
    """baseline, better, worse, equivalent, undecided or not evaluable; of a metric without a direction lower or higher
    in the place of better and worse."""
    why: str = ""
    """The reason why it is not evaluable."""
    evidence: Evidence | None = None
    best: bool = False

    @property
    def is_baseline(self) -> bool:
        """Return whether others are compared with it."""
        return self.baseline == self.variant


@dataclass(frozen=True)
class Comparison:
    """A study's variants: best first, or in the study's order where the metric has no direction."""

    study: str
    study_hash: str
    metric: str
    margin: float | None  # differences within it do not matter
    axes: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]
    spec: MetricSpec
    """What the metric is."""

    def frame(self) -> pa.Table:
        """Return a row for each variant, with the numbers of its tests and the level of each axis."""
        return tidy(map(self._record, self.rows), frame_schema(self.axes))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values. None: no such number."""
        rows = [{**to_jsonable(row), "is_baseline": row.is_baseline} for row in self.rows]
        whole = {name: value for name, value in to_jsonable(self).items() if name != "spec"}
        return {**whole, "rows": rows}

    def _record(self, row: ComparisonRow) -> dict[str, Any]:
        delta, counts = row.delta or NO_INTERVAL, row.outcomes
        evidence = {"family": 0} if row.evidence is None else asdict(row.evidence)
        return {
            "study": self.study,
            "variant": row.variant,
            "baseline": row.baseline,
            **{axis: row.levels[axis] for axis in self.axes},
            "metric": self.metric,
            **{name: getattr(row.value, name) for name in ("mean", "low", "high", "n")},
            "delta": delta.mean,
            "delta_low": delta.low,
            "delta_high": delta.high,
            "pairs": delta.n,
            "verdict": row.verdict,
            "why": row.why,
            "margin": self.margin,
            **{EVIDENCE.get(name, name): value for name, value in evidence.items()},
            **{name: counts.get(name, 0) for name in ("finished", "diverged", "failed")},
            "unfinished": sum(counts.get(name, 0) for name in UNFINISHED),
            "parameters": row.parameters,
            "added_parameters": row.added_parameters,
            "tokens_per_second": row.tokens_per_second,
        }


EVIDENCE = {
    "sd": "delta_sd",
    "p": "p_t",
    "sign_flip": "p_sign_flip",
    "sign_flip_smallest": "p_sign_flip_smallest",
    "dunnett": "p_dunnett",
    "family": "dunnett_variants",
    "q": "q_benjamini_hochberg",
    "equivalence": "p_equivalence",
}
"""Field of `Evidence` -> its column in a comparison's frame, where that has another name."""


def frame_schema(axes: Sequence[str]) -> pa.Schema:
    """Return the columns of a comparison's frame, for a study with these axes."""
    texts = ("study", "variant", "baseline", *axes, "metric")
    counts = ("finished", "diverged", "failed", "unfinished", "parameters", "added_parameters")
    tests = [EVIDENCE.get(field.name, field.name) for field in fields(Evidence)]
    return pa.schema(
        [
            *((name, pa.utf8()) for name in texts),
            *((name, pa.float64()) for name in ("mean", "low", "high")),
            ("n", pa.int64()),
            *((name, pa.float64()) for name in ("delta", "delta_low", "delta_high")),
            ("pairs", pa.int64()),
            *((name, pa.utf8()) for name in ("verdict", "why")),
            ("margin", pa.float64()),
            *((name, pa.int64() if name == "dunnett_variants" else pa.float64()) for name in tests),
            *((name, pa.int64()) for name in counts),
            ("tokens_per_second", pa.float64()),
        ]
    )


def compare(runs: pa.Table, metric: str = DEFAULT_METRIC, margin: float | None = None) -> Comparison:
    """Compare the variants of a `runs` frame by a summary metric: best mean first, if the metric has a direction.

    Trials that diverged, failed or have not finished have no value: they are counted beside the mean, never in it. A
    difference within `margin`, in the metric's unit, counts as none. Raises WrongRequest for an unknown metric.
    """
    known = metrics_of(runs)
    if metric not in known:
        raise WrongRequest(unknown_metric(metric, known))
    fixed = [name for name in runs.column_names if name not in known]
    trials = runs.select([*fixed, *{metric: None, SPEED: None}]).to_pylist()
    by_variant = group_by_variant(trials)
    found = contrasts(runs, metric)
    axes, spec = axes_of(runs), find_spec(metric, specs_of(runs))
    rows = [_row(variant, members, metric, axes, found.get(variant), margin) for variant, members in by_variant.items()]
    rows = _with_q_values(rows)
    several = not one_family(rows)
    rows = [_with_verdict(row, spec.better, found.get(row.variant), several) for row in rows]
    if spec.better:
        sign = -1.0 if spec.better == "higher" else 1.0
        rows.sort(key=lambda row: (not math.isfinite(row.value.mean), sign * row.value.mean))
        # A mean over fewer seeds than others have, those that did not diverge, say, is the best of nothing.
        most = max((row.value.n for row in rows), default=0)
        unfair = incomparable_variants(runs, metric)
        whole = (
            place
            for place, row in enumerate(rows)
            if row.value.n == most and math.isfinite(row.value.mean) and row.variant not in unfair
        )
        if (best := next(whole, None)) is not None:
            rows[best] = replace(rows[best], best=True)
    return Comparison(
        study=trials[0]["study"],
        study_hash=trials[0]["study_hash"],
        metric=metric,
        margin=margin,
        axes=axes,
        rows=tuple(rows),
        notes=(*_notes(runs, rows), *lost_text_notes(runs, metric), *noise_notes(found)),
        spec=spec,
    )


@dataclass(frozen=True)
class Comparisons:
    """A study compared by several metrics."""

    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    """Notes that hold for all of them."""

    @property
    def study(self) -> str:
        """The study's name."""
        return self.comparisons[0].study

    @property
    def baselines(self) -> dict[str, str | None]:
        """Each variant and its baseline."""
        return {row.variant: row.baseline for row in self.comparisons[0].rows}

    def frame(self) -> pa.Table:
        """Return the rows of each comparison below each other."""
        return pa.concat_tables([comparison.frame() for comparison in self.comparisons])

    def to_dict(self) -> dict[str, Any]:
        """Return each comparison as JSON values."""
        return {"comparisons": [comparison.to_dict() for comparison in self.comparisons]}


def unknown_metric(metric: str, known: Sequence[str]) -> str:
    """Return the message for a metric that no trial has."""
    near = difflib.get_close_matches(metric, known, n=3) or known[: len(SUMMARY)]  # those that every trial has
    return f"no trial has {metric!r}, but for example {', '.join(near)}"


def _row(
    variant: str,
    members: Sequence[Mapping[str, Any]],
    metric: str,
    axes: Sequence[str],
    contrast: Contrast | None,
    margin: float | None,
) -> ComparisonRow:
    first = members[0]
    speeds = [speed for trial in members if (speed := trial[SPEED]) is not None]
    return ComparisonRow(
        variant=variant,
        levels={axis: first[AXIS + axis] for axis in axes},
        baseline=first["baseline"],
        value=t_interval(list(finished_values(members, metric).values())),
        delta=None if contrast is None else contrast.difference.interval(),
        outcomes={
            outcome: count for outcome in STATUSES if (count := sum(trial["outcome"] == outcome for trial in members))
        },
        reasons=tuple(f"seed {trial['seed']}: {trial['reason']}" for trial in members if trial["reason"]),
        parameters=first["parameters"],
        added_parameters=first["added_parameters"],
        tokens_per_second=float(np.median(speeds)) if speeds else math.nan,
        verdict=Verdict.UNDECIDED,
        why="" if contrast is None else contrast.obstacle,
        evidence=None if contrast is None else evidence(contrast, margin),
    )


def _with_q_values(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Return rows with the q-values that their p-values have together."""
    p_values = [row.evidence.p if row.evidence and not row.why else math.nan for row in rows]
    q_values = paired.benjamini_hochberg(p_values)
    return [
        replace(row, evidence=replace(row.evidence, q=q)) if row.evidence else row
        for row, q in zip(rows, q_values, strict=True)
    ]


def one_family(rows: Sequence[ComparisonRow]) -> bool:
    """Return whether Dunnett's test allows for all comparisons of a table that can be tested.

    It does where they have one baseline, and enough seeds in common.
    """
    tested = [row for row in rows if row.evidence is not None and not row.why]
    return len({row.baseline for row in tested}) < 2 and all(
        row.evidence.family >= len(tested) for row in tested if row.evidence
    )


def _with_verdict(row: ComparisonRow, better: str, contrast: Contrast | None, several: bool) -> ComparisonRow:
    """Return a row with its verdict; `several`: there are families in the table, for which Dunnett's test does not
    allow."""
    if row.is_baseline:
        return replace(row, verdict=Verdict.BASELINE)
    if contrast is None or row.evidence is None or row.why:
        return replace(row, verdict=Verdict.NOT_EVALUABLE, why=row.why or "no baseline")
    evidence = row.evidence
    if evidence.equivalence <= LEVEL:
        return replace(row, verdict=Verdict.EQUIVALENT)
    adjusted = [evidence.p, evidence.q] if math.isnan(evidence.dunnett) else [evidence.p, evidence.dunnett]
    if max(*adjusted, evidence.q if several else 0.0) > LEVEL:
        return replace(row, verdict=Verdict.UNDECIDED)
    side = Verdict.LOWER if contrast.difference.value < 0 else Verdict.HIGHER
    return replace(row, verdict=side if not better else Verdict.BETTER if side == better else Verdict.WORSE)


def environment_notes(runs: pa.Table) -> Iterator[str]:
    """Say where trials of a `runs` frame differ in code, data or machine, which they should have in common."""
    for name in ENVIRONMENT:
        kinds = [value for value in pc.unique(runs[name]).to_pylist() if value is not None]
        if len(kinds) > 1:
            yield f"trials differ in {name}: {', '.join(sorted(kinds))}"


def _notes(runs: pa.Table, rows: Sequence[ComparisonRow]) -> Iterator[str]:
    yield from environment_notes(runs)
    unfinished = sum(count for row in rows for name, count in row.outcomes.items() if name in UNFINISHED)
    if unfinished:
        yield f"{unfinished} trials have not finished: the table will change"
    for row in rows:
        for reason in row.reasons:
            yield f"{row.variant}, {reason}"
