"""Attempts at the trials of a study: which are tried again, when, and whether an error has ended enough of them."""

import random
import time

from gatelab.orchestrator.failures import FailureKind, retries

SAME_ERRORS = 2
"""So many trials that the same error has ended are enough to stop a study."""


class Attempts:
    """What is known of the attempts at the trials of a study.

    Args:
        retries: how often a trial is tried again after an error.
        seed: of the jitter in the waits.
    """

    def __init__(self, retries: int, seed: str) -> None:
        self._retries = retries
        self._failures: dict[str, int] = {}  # trial -> how many of its attempts have failed
        self._not_before: dict[str, float] = {}  # trial -> when it may be tried again
        self._ended: dict[str, list[str]] = {}  # error -> the trials that it has ended
        self._jitter = random.Random(seed)

    def is_due(self, trial: str) -> bool:
        """Return whether a trial may be tried now."""
        return time.monotonic() >= self._not_before.get(trial, 0.0)

    def put_off(self, trial: str, seconds: float) -> None:
        """Let a trial wait for so long."""
        self._not_before[trial] = time.monotonic() + seconds

    def fail(self, trial: str, kind: FailureKind) -> bool:
        """Note that an attempt has failed. Returns whether there is to be another, which is put off for a while."""
        count = self._failures[trial] = self._failures.get(trial, 0) + 1
        allowed = retries(kind, self._retries)
        if count > allowed.times:
            return False
        self.put_off(trial, allowed.delay(count, self._jitter))
        return True

    def end(self, name: str, cause: str) -> str:
        """Note that an error has ended a trial. Returns why the study should stop, or ''.

        Args:
            name: the trial, for people.
            cause: which error, and where it was raised.
        """
        same = self._ended.setdefault(cause, [])
        same.append(name)
        return f"the same error has ended {' and '.join(same)}: {cause}" if len(same) == SAME_ERRORS else ""
