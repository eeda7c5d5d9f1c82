"""What a planned study can decide of its claims, by the noise that earlier studies had."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gatelab.ablations.claims import Claim
from gatelab.ablations.matrix import Matrix, Variant, claimed_of
from gatelab.results import statistics
from gatelab.results.folders import RunsFolder
from gatelab.results.noise import KnownNoise, known_noise
from gatelab.training.data import data_identity


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
    """For 80 % power with the expected difference; None where it is not known."""
    obstacle: str
    """Why the claim cannot be supported with so many seeds, or ''."""


def claim_powers(matrix: Matrix, folder: RunsFolder) -> Iterator[ClaimPower]:
    """The power of each claim of a study, at its own variants, seeds and scale."""
    for name, claim in matrix.plan.study.claims.items():
        for_each = [_power(matrix, folder, name, claim, matrix.variant(label)) for label in claimed_of(matrix, claim)]
        if for_each:  # it is claimed of each variant: the one with the least power decides
            yield max(for_each, key=lambda power: power.detectable)


def _power(matrix: Matrix, folder: RunsFolder, name: str, claim: Claim, variant: Variant) -> ClaimPower:
    assert variant.baseline is not None
    baseline = matrix.variant(variant.baseline)
    training = baseline.config.training
    identity, tokens = data_identity(baseline.config.data), training.steps * training.tokens_per_step
    noise = known_noise(folder, claim.metric, identity, baseline.parameters, tokens)
    family = sum(other.baseline == variant.baseline != other.label for other in matrix.variants)
    # Dunnett's test comes close to a t-test at a level shared out over the comparisons.
    level = claim.alpha / family if claim.test == "dunnett" else claim.alpha
    n = sum(trial.variant == variant.label for trial in matrix.trials)
    smallest = statistics.smallest_sign_flip_p(n, "less") if claim.test == "sign-flip" else 0.0
    sd = noise.sd if noise else 1.0
    least, power, needed = math.nan, math.nan, None
    if claim.direction == "equivalent":
        least = statistics.equivalence_margin(sd, n, level)
        if noise:
            power = statistics.equivalence_power(sd, n, claim.margin, level)
    else:
        least = (claim.margin if noise else 0.0) + statistics.detectable(sd, n, level, sides=1)
        if noise and claim.expected is not None:
            beyond = claim.expected - claim.margin
            power = statistics.detection_power(beyond, sd, n, level, sides=1)
            needed = statistics.seeds_needed(beyond / sd, level, sides=1) if sd else None
    obstacle = "a single seed has no test" if n < 2 else ""
    if smallest > claim.alpha:
        obstacle = f"with {n} seeds no sign-flip p is below {smallest:.3g}"
    return ClaimPower(name, claim.metric, n, noise, least, power, needed, obstacle)
