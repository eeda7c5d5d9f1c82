"""The verdicts that comparisons, claims and effects come to."""

from enum import StrEnum


class Verdict(StrEnum):
    """Verdict of the trials on a difference, a claim or an effect, as tables and JSON write it."""

    BASELINE = "baseline"
    """Others are compared with it."""
    BETTER = "better"
    WORSE = "worse"
    LOWER = "lower"
    """For a metric that has no better."""
    HIGHER = "higher"
    EQUIVALENT = "equivalent"
    """The difference lies within the margin."""
    EFFECT = "effect"
    """For an axis or an interaction: its levels differ."""
    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NOT_EVALUABLE = "not evaluable"
    """The seeds allow no test."""


DIFFERENT = (Verdict.LOWER, Verdict.HIGHER, Verdict.BETTER, Verdict.WORSE)
"""Verdicts that there is a difference."""
