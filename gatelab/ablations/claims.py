"""Claims: what a study is expected to show, said before it runs, and how that will be judged."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gatelab.configuration import Config, reject_combination


class Claim(Config):
    """The expectation that some variants differ from their baseline in a metric, or that they do not."""

    metric: str = "validation/loss"
    """A summary metric."""
    variant: dict[str, Any] = {}
    """Axis -> a level or a list of levels: of which variants it is claimed, of each of them. By default of all that
    have a baseline."""
    direction: Literal["lower", "higher", "equivalent"] = "lower"
    """On which side of the baseline's the metric lies, or that it is the same."""
    margin: float = Field(0.0, ge=0)
    """By at least how much it is lower or higher, in the metric's unit; a difference within it is none."""
    test: Literal["t", "sign-flip", "dunnett"] = "t"
    """t: Student's, of the differences at equal seeds; sign-flip: exact, without a normal distribution; dunnett: allows
    for all variants that are compared with the same baseline."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of each one-sided test."""
    expected: Annotated[float, Field(gt=0)] | None = None
    """The size of the difference that is expected, for the power that `gatelab plan` shows."""

    @model_validator(mode="after")
    def _margin_of_equivalence(self) -> "Claim":
        if self.direction == "equivalent" and not self.margin:
            reject_combination("equivalent needs a margin: within which differences is it the same?")
        if self.expected is not None and self.direction != "equivalent" and self.expected <= self.margin:
            reject_combination(
                f"expected ({self.expected:g}) must exceed the margin ({self.margin:g}) to support the claim"
            )
        return self

    def levels(self, axis: str) -> list[Any]:
        """Return the levels that `variant` names of an axis, as they are written."""
        named = self.variant[axis]
        return named if isinstance(named, list) else [named]
