"""What all of gatelab's exceptions have in common, and the value that stands where there is none."""

from dataclasses import dataclass


class GatelabError(Exception):
    """Base of the exceptions that gatelab raises for people: its text says what is wrong and what would be right."""


class WrongRequest(GatelabError, ValueError):
    """An argument that cannot be met, such as a metric that no trial has; its text says what could be."""


class DataError(GatelabError, ValueError):
    """The data that a study names cannot be used; the message says which and why."""


class AnalysisUnavailable(GatelabError):
    """An analysis has nothing to show for a study; its text says why."""


class DamagedFile(UserWarning):
    """A file that is not as gatelab wrote it; the text says what is missing, and how it is made again."""


@dataclass(frozen=True)
class Unavailable:
    """Stands where a value cannot be had."""

    reason: str
    """Why, for people."""
