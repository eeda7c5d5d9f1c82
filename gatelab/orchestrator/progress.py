"""How far a study is, while it runs."""

import time
from dataclasses import dataclass, field

from gatelab.ablations.matrix import Trial
from gatelab.status import Status


@dataclass
class TrialProgress:
    """How far a trial is."""

    trial: Trial
    state: Status = Status.WAITING
    """waiting, running, finished, diverged or failed."""
    step: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    reason: str = ""
    kind: str = ""
    """What kind of failure it was, of one that failed."""
    log: str = ""
    held: str = ""
    """The process that is at work on it, and since when, if that is another one."""

    @property
    def seconds_left(self) -> float | None:
        """Estimate the time to its end; None where its speed is not known."""
        training = self.trial.config.training
        if not self.tokens_per_second:
            return None
        return (training.steps - self.step) * training.tokens_per_step / self.tokens_per_second


@dataclass
class Progress:
    """How far a study is, trial by trial."""

    trials: dict[str, TrialProgress]  # by id
    concurrency: int = 1
    tracking_problem: str = ""
    disk_problem: str = ""
    """What could not be written, and why."""
    halted: str = ""
    """Why the study was stopped before its end, if an error of several trials was the reason."""
    """The problem that keeps MLflow from being up to date, or ''."""
    tracking_lines: list[str] = field(default_factory=list)
    """What there is to say of MLflow, each once: it went away, it is back. The list grows."""
    stopping: bool = False
    """True if it was interrupted."""
    started: float = field(default_factory=time.monotonic)

    def count(self, state: str) -> int:
        """Count the trials in a state."""
        return sum(trial.state == state for trial in self.trials.values())

    @property
    def is_over(self) -> bool:
        """Return whether no trial is waiting or running."""
        return not any(trial.state in (Status.WAITING, Status.RUNNING) for trial in self.trials.values())

    def __str__(self) -> str:
        counts = {state: self.count(state) for state in Status}
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        left = self.seconds_left
        return f"of {len(self.trials)} trials {told}" + ("" if left is None else f"; about {left / 60:.0f} min left")

    @property
    def running(self) -> list[TrialProgress]:
        """The trials that are being trained."""
        return [trial for trial in self.trials.values() if trial.state is Status.RUNNING]

    @property
    def seconds_left(self) -> float | None:
        """Estimate the time to the end of the study from the speed of what runs; None where nothing does."""
        speeds = [trial.tokens_per_second for trial in self.running if trial.tokens_per_second]
        if not speeds:
            return None
        left = sum(
            (trial.trial.config.training.steps - trial.step) * trial.trial.config.training.tokens_per_step
            for trial in self.trials.values()
            if trial.state in (Status.WAITING, Status.RUNNING)
        )
        return left / (sum(speeds) / len(speeds)) / self.concurrency
