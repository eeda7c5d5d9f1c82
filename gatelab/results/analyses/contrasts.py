"""Each variant beside its baseline, seed by seed.

Differences are paired by seed: the same seed means the same data order and the same initial weights where two
variants share them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from gatelab.results.analyses.lost_text import incomparable, lost_text
from gatelab.results.statistics import blocks, paired, power
from gatelab.results.statistics.blocks import Noise
from gatelab.results.statistics.paired import Alternative, Mean, mean_of
from gatelab.status import Status

ENOUGH = 8
"""Degrees of freedom from which on the correlation over seeds is known well enough to weigh unpaired seeds by it."""


@dataclass(frozen=True)
class Contrast:
    """A variant beside its baseline, seed by seed."""

    baseline: str
    pairs: dict[int, float]
    """seed -> difference, of the seeds that both finished."""
    difference: Mean
    """Their mean; where the baseline was given seeds of its own, with what these add."""
    noise: Noise | None
    """Noise of all variants that are compared with the baseline; None if this one is not among them, or if unknown."""
    tested: float
    """The difference of which Dunnett's variance is: over the seeds that all have; with what the baseline's further
    seeds add, if `difference` has that."""
    baseline_seeds: int
    """From how many seeds the baseline's part of that is."""
    obstacle: str
    """The reason why the difference cannot be judged, or ''."""

    def dunnett_p(self, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
        """Return p of Dunnett's test against a difference of `null`; nan where it cannot be made."""
        if self.noise is None:
            return math.nan
        return self.noise.dunnett_p(self.tested - null, self.baseline_seeds, alternative)


def contrasts(runs: pa.Table, metric: str) -> dict[str, Contrast]:
    """Compare each variant of a `runs` frame with its baseline."""
    columns = ["variant", "baseline", "seed", "outcome", metric]
    by_variant = group_by_variant(runs.select(columns).to_pylist())
    values = {variant: finished_values(members, metric) for variant, members in by_variant.items()}
    groups: dict[str, dict[str, dict[int, float]]] = {}  # baseline -> those that are compared with it
    for variant, members in by_variant.items():
        baseline = members[0]["baseline"]
        # Of one that diverged nothing is tested, and its missing seeds would be missing for all.
        if baseline in by_variant and (variant == baseline or all(t["outcome"] != "diverged" for t in members)):
            groups.setdefault(baseline, {})[variant] = values[variant]
    noise = {baseline: blocks.noise_of(members, baseline) for baseline, members in groups.items()}
    lost = lost_text(runs, metric)
    found = {}
    for variant, members in by_variant.items():
        baseline = members[0]["baseline"]
        if baseline in by_variant and baseline != variant:
            contrast = _contrast(members, by_variant[baseline], values[variant], values[baseline], noise.get(baseline))
            if lost and (reason := incomparable(lost[variant], lost[baseline])):
                contrast = replace(contrast, obstacle=reason)
            found[variant] = contrast
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
    """Return why a difference cannot be judged, or ''."""
    # The seeds that are left would be those that did not diverge: a choice in favour of what diverges.
    lost, lost_base = ([t["seed"] for t in trials if t["outcome"] == Status.DIVERGED] for trials in (members, base))
    if lost:
        return f"{len(lost)} of {len(members)} seeds diverged"
    if lost_base:
        return f"its baseline diverged at seed {', '.join(map(str, lost_base))}"
    if difference.n < 2:
        return "single seed" if difference.n else "no pairs"
    if not math.isfinite(difference.value) or not math.isfinite(difference.error):
        return "a value is not a number"
    return "" if difference.error > 0 else "the same difference at every seed: there is no scatter to test it against"


def group_by_variant(trials: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the trials of each variant."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        by_variant.setdefault(trial["variant"], []).append(trial)
    return by_variant


def finished_values(members: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """Map each seed to its value, for the trials that finished."""
    return {
        trial["seed"]: trial[metric]
        for trial in members
        if trial["outcome"] == Status.FINISHED and trial[metric] is not None
    }


@dataclass(frozen=True)
class Evidence:
    """The tests of a variant's difference to its baseline; nan where its seeds do not allow one."""

    sd: float
    """Standard deviation of the paired differences."""
    p: float
    """p of the two-sided t-test of the difference."""
    sign_flip: float
    """p of the exact two-sided sign-flip test of the paired differences."""
    sign_flip_smallest: float
    """The smallest p that this test can have with so many pairs."""
    dunnett: float
    """p of Dunnett's two-sided test, which allows for all variants that are compared with the same baseline."""
    family: int
    """Number of these variants; 0 where Dunnett's test could not be made."""
    q: float = math.nan
    """p of the t-test, adjusted by Benjamini and Hochberg for all rows of the table."""
    equivalence: float = math.nan
    """p of two one-sided t-tests that the difference lies within the margin."""
    detectable: float = math.nan
    """The smallest true difference that so many pairs detect with 80 % power at 5 %, two-sided: from the noise of all
    variants that are compared with the same baseline, or else from the variant's own."""
    correlation: float = math.nan
    """Over seeds, of the variants that are compared with the same baseline."""


def evidence(contrast: Contrast, margin: float | None) -> Evidence:
    """Test a difference, but for what the whole table adjusts."""
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


UNEQUAL = 0.01
"""p-value of Bartlett's test below which a table says that its variants scatter differently."""


def noise_notes(found: Mapping[str, Contrast]) -> Iterator[str]:
    """Say where the assumptions of Dunnett's test do not hold."""
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
