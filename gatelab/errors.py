"""What all of gatelab's exceptions have in common, and the value that stands where there is none."""

from dataclasses import dataclass


class GatelabError(Exception):
    """Base of the exceptions that gatelab raises for people: its text says what is wrong and what would be right."""


class AnalysisUnavailable(GatelabError):
    """An analysis has nothing to show for a study; its text says why."""


@dataclass(frozen=True)
class Unavailable:
    """Stands where a value cannot be had."""

    reason: str
    """Why, for people."""
