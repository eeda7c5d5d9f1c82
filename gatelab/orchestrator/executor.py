"""Executors: where the tasks of a study run, as opposed to what they are."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from gatelab.errors import GatelabError
from gatelab.orchestrator.pool import Pool, Result, Task, Worker, never


class CannotRun(GatelabError, RuntimeError):
    """A request is sound, but cannot be run here and now; the message says why."""


class Executor(Protocol):
    """Places tasks on workers: in this process, on the cores and GPUs of this machine, on a cluster.

    Nothing of it enters a trial's identity.
    """

    @property
    def concurrency(self) -> int | None:
        """Most tasks at a time; None: as many as fit where they run."""

    def session(self) -> AbstractContextManager[None]:
        """Hold for several pools what each of them needs, such as a connection."""

    def open_pool(
        self,
        worker: type[Worker[Task, Result]],
        tasks: int,
        spoils: Callable[[Result], bool] = never,
    ) -> AbstractContextManager[Pool[Task, Result]]:
        """Open a pool of workers.

        Args:
            worker: the class whose instances carry tasks out. It can be imported where they run.
            tasks: how many tasks there are in all; resources are divided among at most so many.
            spoils: whether a worker that returned such a result is replaced before the next task.

        Raises:
            CannotRun: there is nowhere to run a task.
        """
