"""How a training loop reports: a protocol, so that it knows nothing of journals, MLflow or who runs it."""

from collections.abc import Mapping
from typing import Protocol


class Recorder(Protocol):
    """Takes what a trial reports."""

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        """Record named values after `step` optimiser steps, of one layer or of the whole model."""

    def flush(self) -> None:
        """Called between steps, when there is something to see: a chance to write what was recorded."""

    def commit(self) -> None:
        """Return when everything recorded so far is on disk."""


class NullRecorder:
    """Records nothing."""

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        """Drop the values."""

    def flush(self) -> None:
        """Do nothing."""

    def commit(self) -> None:
        """Do nothing."""
