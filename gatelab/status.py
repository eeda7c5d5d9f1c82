"""The states of a trial, from waiting to over."""

from enum import StrEnum


class Status(StrEnum):
    """The state of a trial."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    """Its loss became non-finite or left its bound: an outcome, not a failure."""
    FAILED = "failed"
    """It could not be carried out, retries included. The next run tries it again."""
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """Begun, and no process is at work on it: it goes on from its checkpoint when the study is run again."""
    STOPPED = "stopped"
    """Asked to stop before its end: it can go on from its checkpoint."""
    BUSY = "busy"
    """Another process is at work on it."""
    WAITING = "waiting"
    """Not begun."""

    @property
    def is_over(self) -> bool:
        """Return whether the trial need not run again."""
        return self in (Status.FINISHED, Status.DIVERGED)
