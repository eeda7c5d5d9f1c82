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

from gatelab.results.statistics import blocks, paired, power
from gatelab.results.statistics.blocks import Noise
from gatelab.results.statistics.paired import LEVEL, NO_INTERVAL, Alternative, Interval, Mean, mean_of, t_interval
from gatelab.results.store.metric_specs import measure
from gatelab.results.store.runs import AXIS, STATUSES, SUMMARY, axes_of, metrics_of

DEFAULT_METRIC = "validation/loss"


UNFINISHED = ("running", "interrupted", "waiting")


ENVIRONMENT = ("code", "data", "device", "precision", "threads", "torch", "python")


SPEED = "train/mean_tokens_per_second"


ENOUGH = 8
"""Degrees of freedom from which on the correlation over seeds is known well enough to weigh unpaired seeds by it."""


UNEQUAL = 0.01
"""p-value of Bartlett's test below which a table says that its variants scatter differently."""


@dataclass(frozen=True)
class Evidence:
    """What is tested of a variant's difference to its baseline; nan where its seeds do not allow it."""

    sd: float
    """Standard deviation of the paired differences."""
    p: float
    """Of the two-sided t-test of the difference."""
    sign_flip: float
    """p of the exact two-sided sign-flip test of the paired differences."""
    sign_flip_smallest: float
    """The smallest p that this test can have with so many pairs."""
    dunnett: float
    """p of Dunnett's two-sided test, which allows for all variants that are compared with the same baseline."""
    family: int
    """How many these are; 0 where Dunnett's test could not be made."""
    q: float = math.nan
    """p of the t-test, adjusted by Benjamini and Hochberg for all rows of the table."""
    equivalence: float = math.nan
    """p of two one-sided t-tests that the difference lies within the margin."""
    detectable: float = math.nan
    """The smallest true difference that so many pairs detect with 80 % power at 5 %, two-sided: from the noise of all
    variants that are compared with the same baseline, or else from the variant's own."""
    correlation: float = math.nan
    """Over seeds, of the variants that are compared with the same baseline."""


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
    verdict: str
    """baseline, better, worse, equivalent, undecided or not evaluable; of a metric without a direction lower or higher
    in the place of better and worse."""
    why: str = ""
    """Why it is not evaluable."""
    evidence: Evidence | None = None
    best: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether others are compared with it."""
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


def compare(runs: pa.Table, metric: str = DEFAULT_METRIC, margin: float | None = None) -> Comparison:
    """Compare the variants of a `runs` frame by a summary metric: best mean first, if the metric has a direction.

    Trials that diverged, failed or have not finished have no value: they are counted beside the mean, never in it. A
    difference within `margin`, in the metric's unit, counts as none. Raises ValueError for an unknown metric.
    """
    known = metrics_of(runs)
    if metric not in known:
        raise ValueError(unknown_metric(metric, known))
    fixed = [name for name in runs.column_names if name not in known]
    trials = runs.select([*fixed, *{metric: None, SPEED: None}]).to_pylist()
    by_variant = _by_variant(trials)
    found = contrasts(runs, metric)
    axes, better = axes_of(runs), measure(metric).better
    rows = [_row(variant, members, metric, axes, found.get(variant), margin) for variant, members in by_variant.items()]
    rows = _adjusted(rows)
    several = not one_family(rows)
    rows = [_judged(row, better, found.get(row.variant), several) for row in rows]
    if better:
        sign = -1.0 if better == "higher" else 1.0
        rows.sort(key=lambda row: (not math.isfinite(row.value.mean), sign * row.value.mean))
        # A mean over fewer seeds than others have, those that did not diverge, say, is the best of nothing.
        most = max((row.value.n for row in rows), default=0)
        whole = (place for place, row in enumerate(rows) if row.value.n == most and math.isfinite(row.value.mean))
        if (best := next(whole, None)) is not None:
            rows[best] = replace(rows[best], best=True)
    return Comparison(
        study=trials[0]["study"],
        study_hash=trials[0]["study_hash"],
        metric=metric,
        margin=margin,
        axes=axes,
        rows=tuple(rows),
        notes=(*_notes(runs, rows), *_noise_notes(found)),
    )


def unknown_metric(metric: str, known: Sequence[str]) -> str:
    """What to say of a metric that no trial has."""
    near = difflib.get_close_matches(metric, known, n=3) or known[: len(SUMMARY)]  # those that every trial has
    return f"no trial has {metric!r}, but for example {', '.join(near)}"


@dataclass(frozen=True)
class Contrast:
    """A variant beside its baseline, seed by seed."""

    baseline: str
    pairs: dict[int, float]
    """seed -> difference, of the seeds that both finished."""
    difference: Mean
    """Their mean; where the baseline was given seeds of its own, with what these add."""
    noise: Noise | None
    """Of all variants that are compared with the baseline; None if this one is not among them, or nothing is known."""
    tested: float
    """The difference of which Dunnett's variance is: over the seeds that all have; with what the baseline's further
    seeds add, if `difference` has that."""
    baseline_seeds: int
    """From how many seeds the baseline's part of that is."""
    obstacle: str
    """Why nothing can be said of the difference, or ''."""

    def dunnett_p(self, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
        """p of Dunnett's test against a difference of `null`; nan where it cannot be made."""
        if self.noise is None:
            return math.nan
        return self.noise.dunnett_p(self.tested - null, self.baseline_seeds, alternative)


def contrasts(runs: pa.Table, metric: str) -> dict[str, Contrast]:
    """Each variant of a `runs` frame that is compared with another, beside that one."""
    columns = ["variant", "baseline", "seed", "outcome", metric]
    by_variant = _by_variant(runs.select(columns).to_pylist())
    values = {variant: _values(members, metric) for variant, members in by_variant.items()}
    groups: dict[str, dict[str, dict[int, float]]] = {}  # baseline -> those that are compared with it
    for variant, members in by_variant.items():
        baseline = members[0]["baseline"]
        # Of one that diverged nothing is tested, and its missing seeds would be missing for all.
        if baseline in by_variant and (variant == baseline or all(t["outcome"] != "diverged" for t in members)):
            groups.setdefault(baseline, {})[variant] = values[variant]
    noise = {baseline: blocks.noise_of(members, baseline) for baseline, members in groups.items()}
    found = {}
    for variant, members in by_variant.items():
        baseline = members[0]["baseline"]
        if baseline in by_variant and baseline != variant:
            found[variant] = _contrast(
                members, by_variant[baseline], values[variant], values[baseline], noise.get(baseline)
            )
    return found


def _contrast(
    members: Sequence[Mapping[str, Any]],
    base: Sequence[Mapping[str, Any]],
    own: Mapping[int, float],
    other: Mapping[int, float],
    noise: Noise | None,
) -> Contrast:
    pairs = {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}
    difference = mean_of(
        list(pairs.values()), max((max(abs(own[seed]), abs(other[seed])) for seed in pairs), default=0.0)
    )
    if noise is not None and members[0]["variant"] not in noise.variants:
        noise = None
    tested, baseline_seeds = math.nan, 0
    if noise is not None:
        # Dunnett's variance is of as many pairs for every variant; a difference over others would not have it.
        tested, baseline_seeds = mean_of([pairs[seed] for seed in noise.seeds]).value, len(noise.seeds)
    planned, planned_base = ({trial["seed"] for trial in trials} for trials in (members, base))
    if planned < planned_base and noise is not None and noise.df >= ENOUGH:
        difference = blocks.augmented_difference(own, other, noise.correlation)
        tested, baseline_seeds = difference.value, len(other)
    obstacle = _obstacle(members, base, difference)
    return Contrast(members[0]["baseline"], pairs, difference, noise, tested, baseline_seeds, obstacle)


def _obstacle(members: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], difference: Mean) -> str:
    """Why nothing can be said of a difference, or ''."""
    # The seeds that are left would be those that did not diverge: a choice in favour of what diverges.
    lost, lost_base = ([t["seed"] for t in trials if t["outcome"] == "diverged"] for trials in (members, base))
    if lost:
        return f"{len(lost)} of {len(members)} seeds diverged"
    if lost_base:
        return f"its baseline diverged at seed {', '.join(map(str, lost_base))}"
    if difference.n < 2:
        return "single seed" if difference.n else "no pairs"
    if not math.isfinite(difference.value) or not math.isfinite(difference.error):
        return "a value is not a number"
    return "" if difference.error > 0 else "the same difference at every seed: there is no scatter to test it against"


def _by_variant(trials: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        by_variant.setdefault(trial["variant"], []).append(trial)
    return by_variant


def _values(members: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """seed -> value of the trials that finished."""
    return {
        trial["seed"]: trial[metric]
        for trial in members
        if trial["outcome"] == "finished" and trial[metric] is not None
    }


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
        value=t_interval(list(_values(members, metric).values())),
        delta=None if contrast is None else contrast.difference.interval(),
        outcomes={
            outcome: count for outcome in STATUSES if (count := sum(trial["outcome"] == outcome for trial in members))
        },
        reasons=tuple(f"seed {trial['seed']}: {trial['reason']}" for trial in members if trial["reason"]),
        parameters=first["parameters"],
        added_parameters=first["added_parameters"],
        tokens_per_second=float(np.median(speeds)) if speeds else math.nan,
        verdict="",
        why="" if contrast is None else contrast.obstacle,
        evidence=None if contrast is None else _evidence(contrast, margin),
    )


def _evidence(contrast: Contrast, margin: float | None) -> Evidence:
    """The tests of a difference, but for what the whole table adjusts."""
    pairs, noise = list(contrast.pairs.values()), contrast.noise
    n, sd = len(pairs), mean_of(pairs).error * math.sqrt(len(pairs))
    return Evidence(
        sd=sd,
        p=contrast.difference.p(),
        sign_flip=paired.sign_flip_p(pairs),
        sign_flip_smallest=paired.smallest_sign_flip_p(n) if n else math.nan,
        dunnett=contrast.dunnett_p(),
        family=len(noise.variants) - 1 if noise else 0,
        equivalence=math.nan if margin is None else paired.equivalence_p(contrast.difference, margin),
        detectable=power.detectable(noise.sd if noise else sd, n),
        correlation=noise.correlation if noise else math.nan,
    )


def _adjusted(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Rows with the q-values that their p-values have together."""
    p_values = [row.evidence.p if row.evidence and not row.why else math.nan for row in rows]
    q_values = paired.benjamini_hochberg(p_values)
    return [
        replace(row, evidence=replace(row.evidence, q=q)) if row.evidence else row
        for row, q in zip(rows, q_values, strict=True)
    ]


def one_family(rows: Sequence[ComparisonRow]) -> bool:
    """Whether Dunnett's test allows for all comparisons of a table that can be tested: they have one baseline, and
    enough seeds in common."""
    tested = [row for row in rows if row.evidence is not None and not row.why]
    return len({row.baseline for row in tested}) < 2 and all(
        row.evidence.family >= len(tested) for row in tested if row.evidence
    )


def _judged(row: ComparisonRow, better: str, contrast: Contrast | None, several: bool) -> ComparisonRow:
    """A row with its verdict; `several`: there are families in the table, for which Dunnett's test does not allow."""
    if row.is_baseline:
        return replace(row, verdict="baseline")
    if contrast is None or row.evidence is None or row.why:
        return replace(row, verdict="not evaluable", why=row.why or "no baseline")
    evidence = row.evidence
    if evidence.equivalence <= LEVEL:
        return replace(row, verdict="equivalent")
    adjusted = [evidence.p, evidence.q] if math.isnan(evidence.dunnett) else [evidence.p, evidence.dunnett]
    if max(*adjusted, evidence.q if several else 0.0) > LEVEL:
        return replace(row, verdict="undecided")
    side = "lower" if contrast.difference.value < 0 else "higher"
    return replace(row, verdict=side if not better else "better" if side == better else "worse")


def environment_notes(runs: pa.Table) -> Iterator[str]:
    """In what the trials of a `runs` frame differ that they should have in common."""
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


def _noise_notes(found: Mapping[str, Contrast]) -> Iterator[str]:
    """What Dunnett's test assumes, where it does not hold."""
    groups: dict[str, list[Contrast]] = {}
    for contrast in found.values():
        if contrast.noise is not None:
            groups.setdefault(contrast.baseline, []).append(contrast)
    for baseline, members in groups.items():
        named = f" (baseline {baseline})" if len(groups) > 1 else ""
        seeds = members[0].noise.seeds if members[0].noise else ()
        # Of a difference with a baseline's further seeds all seeds count.
        plain = [contrast for contrast in members if contrast.baseline_seeds == len(seeds)]
        dropped = sorted({seed for contrast in plain for seed in contrast.pairs} - set(seeds))
        if dropped:
            yield (
                f"Dunnett's test leaves out seed {', '.join(map(str, dropped))}, which not all variants finished{named}"
            )
        if paired.unequal_variances_p([list(contrast.pairs.values()) for contrast in members]) < UNEQUAL:
            yield f"variants scatter differently over seeds, which Dunnett's test takes to be alike{named}"


def comparison_records(comparison: Comparison) -> list[dict[str, Any]]:
    """A comparison as flat rows, with full precision: those of CSV and of the Parquet table `comparisons`."""
    rows = []
    for row in comparison.rows:
        delta, counts = row.delta or NO_INTERVAL, row.outcomes
        evidence = (
            asdict(row.evidence)
            if row.evidence
            else {field.name: math.nan for field in fields(Evidence)} | {"family": 0}
        )
        rows.append(
            {
                "study": comparison.study,
                "variant": row.variant,
                "baseline": row.baseline,
                **{axis: row.levels[axis] for axis in comparison.axes},
                "metric": comparison.metric,
                **{name: getattr(row.value, name) for name in ("mean", "low", "high", "n")},
                **{f"delta{end}": getattr(delta, name) for end, name in _DELTA.items()},
                "pairs": delta.n,
                "verdict": row.verdict,
                "why": row.why,
                "margin": math.nan if comparison.margin is None else comparison.margin,
                **{_TESTS.get(name, name): value for name, value in evidence.items()},
                **{name: counts.get(name, 0) for name in ("finished", "diverged", "failed")},
                "unfinished": sum(counts.get(name, 0) for name in UNFINISHED),
                "parameters": row.parameters,
                "added_parameters": row.added_parameters,
                "tokens_per_second": row.tokens_per_second,
            }
        )
    return rows


_DELTA = {"": "mean", "_low": "low", "_high": "high"}


_TESTS = {
    "sd": "delta_sd",
    "p": "p_t",
    "sign_flip": "p_sign_flip",
    "sign_flip_smallest": "p_sign_flip_smallest",
    "dunnett": "p_dunnett",
    "family": "dunnett_variants",
    "q": "q_benjamini_hochberg",
    "equivalence": "p_equivalence",
}
