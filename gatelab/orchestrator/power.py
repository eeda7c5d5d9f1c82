"""What a planned study can decide of its claims, by the noise that earlier studies had."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gatelab.ablations.claims import Claim
from gatelab.ablations.matrix import Matrix, Variant, claimed_of
from gatelab.results.analyses.contrasts import ENOUGH
from gatelab.results.analyses.noise_ledger import KnownNoise, known_noise
from gatelab.results.statistics import blocks, dunnett, paired, power
from gatelab.results.store.layout import RunsFolder


@dataclass(frozen=True)
class ClaimPower:
    """A claim before anything has run."""

    claim: str
    metric: str
    seeds: int
    noise: KnownNoise | None
    detectable: float
    """The smallest true difference (of a claim of equivalence: the smallest margin) with which the claim is supported
    with 80 % power; in standard deviations of differences where the noise is not known; nan with a single seed."""
    power: float
    """With the expected difference (of a claim of equivalence: with none); nan where it or the noise is not known."""
    seeds_needed: int | None
    """For 80 % power with the expected difference; None where it is not known, or more than a thousand."""
    obstacle: str
    """Why the claim cannot be supported with so many seeds, or ''."""


def claim_powers(matrix: Matrix, folder: RunsFolder) -> Iterator[ClaimPower]:
    """Compute the power of each claim of a study, at its own variants, seeds and scale."""
    known = functools.cache(functools.partial(known_noise, folder))
    for name, claim in matrix.plan.study.claims.items():
        for_each = [_power(matrix, known, name, claim, matrix.variant(label)) for label in claimed_of(matrix, claim)]
        if for_each:  # it is claimed of each variant: the one with the least power is shown
            yield max(for_each, key=lambda power: power.detectable)


def _power(
    matrix: Matrix,
    known: Callable[[str, str, int, int], KnownNoise | None],
    name: str,
    claim: Claim,
    variant: Variant,
) -> ClaimPower:
    assert variant.baseline is not None
    baseline = matrix.variant(variant.baseline)
    training = baseline.config.training
    tokens = training.steps * training.tokens_per_step
    noise = known(claim.metric, baseline.data_id, baseline.parameters, tokens)
    seeds = Counter(trial.variant for trial in matrix.trials)
    n = seeds[variant.label]
    family = sum(other.baseline == variant.baseline != other.label for other in matrix.variants)
    test = _Test(claim, n, seeds[baseline.label], family, noise.correlation if noise else 0.0)
    smallest = paired.smallest_sign_flip_p(n, "less") if claim.test == "sign-flip" else 0.0
    obstacle = "a single seed has no test" if n < 2 else ""
    if smallest > claim.alpha:
        obstacle = f"with {n} seeds no sign-flip p is below {smallest:.3g}"
    if obstacle:
        return ClaimPower(name, claim.metric, n, noise, math.nan, math.nan, None, obstacle)
    least = power.smallest_with_power(test.power)
    if noise is None or not noise.sd:
        return ClaimPower(name, claim.metric, n, None, least, math.nan, None, "")
    equivalent = claim.direction == "equivalent"
    effect = claim.margin if equivalent else None if claim.expected is None else claim.expected - claim.margin
    return ClaimPower(
        claim=name,
        metric=claim.metric,
        seeds=n,
        noise=noise,
        detectable=noise.sd * least + (0.0 if equivalent else claim.margin),
        power=math.nan if effect is None else test.power(effect / noise.sd),
        seeds_needed=None if effect is None or equivalent else test.seeds_needed(effect / noise.sd),
        obstacle="",
    )


@dataclass(frozen=True)
class _Test:
    """A claim's test before there are data; effects are in standard deviations of paired differences."""

    claim: Claim
    seeds: int
    baseline_seeds: int
    family: int
    correlation: float

    @property
    def sd(self) -> float:
        """Ratio of the standard error with the baseline's further seeds to that of pairs alone."""
        if self.family * (self.seeds - 1) < ENOUGH:
            return 1.0
        return math.sqrt(blocks.variance_share(self.correlation, self.seeds, self.baseline_seeds))

    def power(self, effect: float) -> float:
        """Return the power with a true difference; of a claim of equivalence: with none, and this margin."""
        n, alpha, sd = self.seeds, self.claim.alpha, self.sd
        shared = blocks.correlation_of_differences(self.correlation, n, self.baseline_seeds)
        df = self.family * (n - 1)
        if self.claim.direction == "equivalent":
            if self.claim.test != "dunnett":
                return power.equivalence_power(sd, n, effect, alpha)
            critical = dunnett.dunnett_critical(alpha, self.family, df, shared)
            return power.equivalence_power(sd, n, effect, alpha, df, critical)
        if self.claim.test == "dunnett":
            return power.dunnett_power(effect * math.sqrt(n) / sd, self.family, df, shared, alpha)
        if self.claim.test == "sign-flip":  # which is of the pairs alone
            return power.sign_flip_power(effect, 1.0, n, alpha)
        return power.detection_power(effect, sd, n, alpha, sides=1)

    def seeds_needed(self, effect: float) -> int | None:
        """Count the seeds that 80 % power takes; None if they are more than a thousand."""
        step = self.baseline_seeds / self.seeds

        def enough(n: int) -> bool:
            return replace(self, seeds=n, baseline_seeds=round(step * n)).power(effect) >= power.POWER

        if not enough(1000):  # asked first: a thousand critical values take seconds
            return None
        return next(n for n in range(2, 1001) if enough(n))
