"""The learning rate of a study: given, following a rule, or the optimum of a search; and how the search is made."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gatelab.ablations.identity import digest
from gatelab.configuration import Config, Count
from gatelab.errors import Unavailable
from gatelab.models.accounting import count_parameters
from gatelab.training.config import TrialConfig

LEARNING_RATE = "training.optimizer.learning_rate"
DIGITS = 3
"""Significant digits of a learning rate that gatelab chooses: it is part of a trial's identity, and people read it."""


def _ascending(rates: list[float]) -> list[float]:
    rates = [rounded(rate) for rate in rates]
    if len(rates) < 3 or rates != sorted(set(rates)):
        raise ValueError(f"expected at least three learning rates, ascending, to {DIGITS} digits each")
    return rates


class ToleranceConfig(Config):
    """How `gatelab lr-tolerance` searches and judges."""

    rates: Annotated[list[Annotated[float, Field(gt=0)]], AfterValidator(_ascending)] = [
        *(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ]
    """The window: every variant is trained at each of these learning rates (the default: that of arXiv 2309.14322)."""
    extend: int = Field(3, ge=0, le=30)
    """Most learning rates beyond the window on each side, in steps like its own: for an optimum near its border."""
    margin: float = Field(0.02, gt=0, lt=1)
    """A learning rate is tolerated whose loss exceeds the best by at most this share of it."""
    resolution: float = Field(0.15, gt=0)
    """Decades within which optimum and edges are located."""

    @property
    def lattice(self) -> list[float]:
        """Return the window and `extend` learning rates on each side, ascending; steps alternate as in it: 1, 3, 10."""
        below, above = list(self.rates), list(self.rates)
        for _ in range(self.extend):
            below.insert(0, rounded(below[1] / (below[2] / below[0])))
            above.append(rounded(above[-2] * (above[-1] / above[-3])))
        return [*below[: self.extend], *above]


class RateRule(Config):
    """The learning rate as a power of the size of a trial: rate x (size / reference) ^ exponent."""

    per: Literal["hidden_size", "layers", "parameters", "tokens"]
    """What it follows."""
    exponent: float
    reference: Count = Field(gt=0)
    """The size at which the given learning rate holds."""

    def rate(self, config: TrialConfig) -> float | Unavailable:
        """Return the learning rate of a trial, to three significant digits; Unavailable where it is no such number."""
        sizes = {
            "hidden_size": config.model.hidden_size,
            "layers": config.model.layers,
            "parameters": count_parameters(config.model).total,
            "tokens": config.training.tokens,
        }
        given = config.training.optimizer.learning_rate
        try:
            rate = rounded(given * (sizes[self.per] / self.reference) ** self.exponent)
        except OverflowError:
            rate = math.inf
        return rate if 0 < rate < math.inf else Unavailable(f"the rule ({self}) gives {rate:g}")

    def __str__(self) -> str:
        return f"as {self.per} ^ {self.exponent:g}, from the given one at {self.reference:,}"


def searched_kind(variant: Mapping[str, Any]) -> str:
    """Hash a canonical variant without its learning rate, token budget and evaluation.

    Variants with equal hashes share an optimum.
    """
    config = variant["config"]
    training = {name: value for name, value in config["training"].items() if name not in ("optimizer", "tokens")}
    optimizer = {**config["training"]["optimizer"], "learning_rate": None}
    return digest({**variant, "config": {"model": config["model"], "training": {**training, "optimizer": optimizer}}})


def rounded(rate: float) -> float:
    """Round a learning rate to three significant digits."""
    return float(f"{rate:.{DIGITS}g}")


def with_rate(config: TrialConfig, rate: float) -> TrialConfig:
    """Return a configuration at another learning rate."""
    optimizer = config.training.optimizer.model_copy(update={"learning_rate": rate})
    return config.model_copy(update={"training": config.training.model_copy(update={"optimizer": optimizer})})
