"""The executor in this process: one task after another, without Ray, where a debugger can stop."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Generic

from gatelab.errors import Unavailable
from gatelab.orchestrator.pool import (
    POLL_SECONDS,
    Pool,
    Result,
    Task,
    Worker,
    WorkerSetup,
    do_nothing,
    never,
)


@dataclass(frozen=True)
class InlineExecutor:
    """Run tasks in this process, with as many threads as torch has here.

    An interrupt (KeyboardInterrupt) ends the task where it is: a trial goes on from its last checkpoint.
    """

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    raise_errors: bool = False
    """Raise what goes wrong in a trial. By default it is recorded as failed, and the next one runs."""

    @property
    def concurrency(self) -> int:
        """One."""
        return 1

    def session(self) -> AbstractContextManager[None]:
        """Hold nothing."""
        return nullcontext()

    @contextmanager
    def open_pool(
        self, worker: type[Worker[Task, Result]], tasks: int, spoils: Callable[[Result], bool] = never
    ) -> Iterator[Pool[Task, Result]]:
        """Yield a pool of one worker, an object in this process."""
        yield _InlinePool(worker, WorkerSetup(device=self.device, raise_errors=self.raise_errors), spoils)


class _InlinePool(Generic[Task, Result]):
    """One worker, made for the first task; it runs within `wait`."""

    concurrency = 1

    def __init__(
        self, worker: type[Worker[Task, Result]], setup: WorkerSetup, spoils: Callable[[Result], bool]
    ) -> None:
        self._make, self._setup, self._spoils = worker, setup, spoils
        self._worker: Worker[Task, Result] | None = None
        self._submitted: list[Task] = []

    @property
    def busy(self) -> int:
        return len(self._submitted)

    def submit(self, task: Task) -> None:
        self._submitted.append(task)

    def wait(self, meanwhile: Callable[[], None] = do_nothing) -> list[tuple[Task, Result | Unavailable]]:
        if not self._submitted:
            return []
        task = self._submitted.pop(0)  # before it runs: after an interrupt there is nothing to wait for
        worker = self._worker or self._make(self._setup)
        self._worker = None
        try:
            result = worker.run(task, _every(POLL_SECONDS, meanwhile))
        except Exception as error:
            if self._setup.raise_errors:
                raise
            return [(task, Unavailable(str(error).strip() or repr(error)))]
        if not self._spoils(result):
            self._worker = worker
        return [(task, result)]


def _every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """Return a function that passes a call on if the last one was so long ago."""
    due = time.monotonic() + seconds

    def call_if_due() -> None:
        nonlocal due
        if time.monotonic() >= due:
            call()
            due = time.monotonic() + seconds

    return call_if_due
