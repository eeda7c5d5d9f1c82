"""Workers that carry out one task after another, wherever they run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gatelab.errors import Unavailable

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

POLL_SECONDS = 0.5
"""Between two looks at what runs."""


def do_nothing() -> None:
    """Do nothing."""


def never(*arguments: object) -> bool:
    """Return False."""
    return False


@dataclass(frozen=True)
class WorkerSetup:
    """What an executor tells each of its workers."""

    threads: int | None = None
    """Threads of torch; None: as many as the process has."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    should_stop: Callable[[], bool] = never
    """Is asked between the steps of a long task: when it says yes, the task is left where it can go on."""
    own_process: bool = False
    """True if the worker has a process of its own."""
    raise_errors: bool = False
    """True if an error in a task is raised, for a debugger, instead of being the task's result."""


class Worker(Protocol[Task_contra, Result_co]):
    """Carries out tasks, one after another, in one process."""

    def __init__(self, setup: WorkerSetup) -> None: ...

    def run(self, task: Task_contra, meanwhile: Callable[[], None] = do_nothing) -> Result_co:
        """Carry out a task and return its result; call `meanwhile` now and then, where the task is long."""


class Pool(Protocol[Task, Result]):
    """Workers that are kept from task to task, and replaced where one dies."""

    @property
    def concurrency(self) -> int:
        """Most tasks at a time."""

    @property
    def busy(self) -> int:
        """Tasks that were submitted and have not been returned by `wait`."""

    def submit(self, task: Task) -> None:
        """Give a task to a free worker. The caller submits no more than `concurrency` at a time."""

    def wait(self, meanwhile: Callable[[], None] = do_nothing) -> list[tuple[Task, Result | Unavailable]]:
        """Wait for tasks to end and return those that have, each with its result, or why it has none.

        Workers in processes of their own are waited for `POLL_SECONDS` at most, so the list may be empty. A worker in
        this process runs its task to the end, and calls `meanwhile` every `POLL_SECONDS`.
        """

    def abandon(self, unwanted: Callable[[Task], bool]) -> None:
        """End the workers of submitted tasks that nobody waits for any more, and forget the tasks."""
