"""The tests that a claim can name, and the verdict that one of them gives."""

from dataclasses import dataclass
from typing import Protocol

from gatelab.results.analyses.contrasts import Contrast
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.statistics.paired import Alternative, sign_flip_p, smallest_sign_flip_p


class ClaimTest(Protocol):
    """A test of a variant's difference to its baseline."""

    @property
    def needs_family(self) -> bool:
        """Return whether it needs every variant that is compared with the baseline."""

    def obstacle(self, alpha: float, family: int) -> str:
        """Return why it cannot be made at level alpha, of so many variants with their baseline; '': it can."""

    def p(self, null: float, alternative: Alternative) -> float:
        """Return the p-value of a difference of `null`, against one that is less or greater."""


@dataclass(frozen=True)
class StudentTest:
    """Student's t-test of the differences at equal seeds."""

    contrast: Contrast
    needs_family = False

    def obstacle(self, alpha: float, family: int) -> str:
        """Return '': what prevents it prevents any verdict."""
        return ""

    def p(self, null: float, alternative: Alternative) -> float:
        """Return the p-value of Student's t."""
        return self.contrast.difference.p(null, alternative)


@dataclass(frozen=True)
class SignFlipTest:
    """The exact sign-flip test of the differences at equal seeds."""

    contrast: Contrast
    needs_family = False

    def obstacle(self, alpha: float, family: int) -> str:
        """Return whether there are too few pairs for a p as small as alpha."""
        pairs = len(self.contrast.pairs)
        smallest = smallest_sign_flip_p(pairs, "less")
        return f"{pairs} pairs: a sign-flip test cannot give a p below {smallest:.3g}" if smallest > alpha else ""

    def p(self, null: float, alternative: Alternative) -> float:
        """Return the share of sign flips that are as extreme."""
        return sign_flip_p(list(self.contrast.pairs.values()), null, alternative)


@dataclass(frozen=True)
class DunnettTest:
    """Dunnett's test, which allows for all variants that are compared with the baseline."""

    contrast: Contrast
    needs_family = True

    def obstacle(self, alpha: float, family: int) -> str:
        """Return whether the variants lack common seeds."""
        noise = self.contrast.noise
        lacking = noise is None or len(noise.variants) < family
        return "Dunnett's test needs two seeds that all variants finished" if lacking else ""

    def p(self, null: float, alternative: Alternative) -> float:
        """Return the p-value that allows for the whole family."""
        return self.contrast.dunnett_p(null, alternative)


TESTS: dict[str, type[StudentTest] | type[SignFlipTest] | type[DunnettTest]] = {
    "t": StudentTest,
    "sign-flip": SignFlipTest,
    "dunnett": DunnettTest,
}
"""Name of a claim's test -> the test."""


def judge(test: ClaimTest, direction: str, margin: float, alpha: float, allowance: int) -> tuple[Verdict, float]:
    """Return the verdict on a claim, and the p-value of its test for it.

    Args:
        test: that the claim names.
        direction: lower, higher or equivalent, as it is claimed.
        margin: by at least how much, or within which difference.
        alpha: level of each one-sided test.
        allowance: how many variants may refute the claim; refutation is tested at alpha over this number.
    """
    within = max(test.p(-margin, "greater"), test.p(margin, "less")) if margin else 1.0
    if direction == "equivalent":
        support, against = within, 2 * min(test.p(-margin, "less"), test.p(margin, "greater"))
    elif direction == "lower":
        support, against = test.p(-margin, "less"), test.p(-margin, "greater")
    else:
        support, against = test.p(margin, "greater"), test.p(margin, "less")
    reached = {Verdict.SUPPORTED: support, Verdict.EQUIVALENT: within, Verdict.REFUTED: against * allowance}
    return next((verdict for verdict, p in reached.items() if p <= alpha), Verdict.UNDECIDED), support
