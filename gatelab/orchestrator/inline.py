"""The executor in this process: one task after another, without Ray, where a debugger can stop."""

import signal
import threading
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

    An interrupt (Ctrl-C) lets a trial write a checkpoint, from which it goes on; a second one ends it at once.
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
        interrupt = _Interrupt()
        setup = WorkerSetup(device=self.device, should_stop=interrupt.is_set, raise_errors=self.raise_errors)
        yield _InlinePool(worker, setup, spoils, interrupt)


class _Interrupt:
    """A first Ctrl-C, kept until the task in hand has stopped."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the end, or at once for a second one.

        Does nothing where Python would not have raised it: in other threads, and where the signal has another handler.
        """
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def interrupt(*_: object) -> None:
            if self._set:
                raise KeyboardInterrupt
            self._set = True

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._set:
            raise KeyboardInterrupt


class _InlinePool(Generic[Task, Result]):
    """One worker, made for the first task; it runs within `wait`."""

    concurrency = 1

    def __init__(
        self,
        worker: type[Worker[Task, Result]],
        setup: WorkerSetup,
        spoils: Callable[[Result], bool],
        interrupt: _Interrupt,
    ) -> None:
        self._make, self._setup, self._spoils, self._interrupt = worker, setup, spoils, interrupt
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
            with self._interrupt.deferred():
                result = worker.run(task, _every(POLL_SECONDS, meanwhile))
        except Exception as error:
            if self._setup.raise_errors:
                raise
            return [(task, Unavailable(str(error).strip() or repr(error)))]
        if not self._spoils(result):
            self._worker = worker
        return [(task, result)]

    def abandon(self, unwanted: Callable[[Task], bool]) -> None:
        self._submitted = [task for task in self._submitted if not unwanted(task)]


def _every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """Return a function that passes a call on if the last one was so long ago."""
    due = time.monotonic() + seconds

    def call_if_due() -> None:
        nonlocal due
        if time.monotonic() >= due:
            call()
            due = time.monotonic() + seconds

    return call_if_due
