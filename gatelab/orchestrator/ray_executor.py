"""The executor on Ray: one of our own on this machine, or a cluster. Ray is imported when it is first used.

Ray places workers and limits them by resources; workers are kept between tasks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic

from gatelab.errors import Unavailable
from gatelab.orchestrator.executor import CannotRun
from gatelab.orchestrator.failures import FailureKind, Lost
from gatelab.orchestrator.pool import POLL_SECONDS, Pool, Result, Task, Worker, WorkerSetup, do_nothing, never
from gatelab.orchestrator.ray_connection import cluster, has_lost_gcs, own_ray

NODES_SECONDS = 5.0
"""Between two looks at whether the cluster is alive."""


@dataclass(frozen=True)
class RayExecutor:
    """Run tasks on Ray, several at a time."""

    address: str | None = None
    """HOST:PORT of a Ray cluster's head, seen from one of its nodes, or "auto" on one; None: the Ray that this process
    has, or one started here, which only this machine reaches, and stopped at the end."""
    gpus_per_trial: float | None = None
    """GPUs of each task, or a part of one; None: 1 where Ray has GPUs, else 0."""
    concurrency: int | None = None
    """Tasks at a time; None: one for each core, or as many as the GPUs hold."""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Stay connected. Raises CannotRun where no cluster answers at the address."""
        import ray

        if ray.is_initialized():
            yield
            return
        with cluster(self.address) if self.address and self.address != "local" else own_ray():
            yield

    @contextmanager
    def open_pool(
        self, worker: type[Worker[Task, Result]], tasks: int, spoils: Callable[[Result], bool] = never
    ) -> Iterator[Pool[Task, Result]]:
        """Yield a pool of actors, which end with it.

        Raises CannotRun as `session` does, and if there are no GPUs where some are asked for.
        """
        with self.session():
            pool = _RayPool(worker, allocate(self.concurrency, self.gpus_per_trial, tasks), spoils)
            try:
                yield pool
            finally:
                pool.close()


@dataclass(frozen=True)
class WorkerResources:
    """How many workers a cluster has, and what each gets of it."""

    concurrency: int
    threads: int
    cpus: float
    """Below 1 where there are more workers than cores."""
    gpus: float


def allocate(concurrency: int | None, gpus_per_trial: float | None, tasks: int) -> WorkerResources:
    """Divide the connected cluster among tasks: `concurrency` at a time, or as many as it holds.

    Raises CannotRun if it has nowhere for one to run.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    cores = sum(node.get("CPU", 0.0) for node in nodes)
    wanted = (1.0 if gpus else 0.0) if gpus_per_trial is None else gpus_per_trial
    if wanted and not gpus:
        raise CannotRun(f"--gpus-per-trial {wanted:g}: this Ray has no GPUs")
    fitting = int(gpus / wanted + 1e-9) if wanted else int(cores)
    concurrency = concurrency or max(1, min(fitting, tasks))
    if wanted:
        concurrency = min(concurrency, fitting)
    most = max(node.get("CPU", 0.0) for node in nodes)  # a worker runs on one node
    threads = max(1, int(min(cores / concurrency, most)))
    return WorkerResources(concurrency, threads, min(float(threads), cores / concurrency), wanted)


class _RayPool(Generic[Task, Result]):
    """Actors, each made when a task first needs one."""

    def __init__(
        self,
        worker: type[Worker[Task, Result]],
        resources: WorkerResources,
        spoils: Callable[[Result], bool],
    ) -> None:
        self.concurrency = resources.concurrency
        self._worker, self._resources, self._spoils = worker, resources, spoils
        self._running: dict[Any, tuple[Any, Task]] = {}  # reference to a result -> the actor and its task
        self._idle: list[Any] = []
        self._looked_at = time.monotonic()

    @property
    def busy(self) -> int:
        return len(self._running)

    def submit(self, task: Task) -> None:
        actor = self._idle.pop() if self._idle else self._start()
        self._running[actor.run.remote(task)] = actor, task

    def wait(self, meanwhile: Callable[[], None] = do_nothing) -> list[tuple[Task, Result | Unavailable]]:
        import ray

        if not self._running:
            return []
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_SECONDS)
        self._look_at_nodes()
        return [self._collect(reference) for reference in ready]

    def abandon(self, unwanted: Callable[[Task], bool]) -> None:
        import ray

        for reference, (actor, task) in list(self._running.items()):
            if unwanted(task):
                del self._running[reference]
                ray.kill(actor)

    def _look_at_nodes(self) -> None:
        """Raise CannotRun if no node is alive, on which Ray would wait for ever, or our own Ray has fallen apart."""
        import ray

        if time.monotonic() - self._looked_at < NODES_SECONDS:
            return
        self._looked_at = time.monotonic()
        if has_lost_gcs():
            lost = "its control process (gcs)"
        elif not any(node["Alive"] for node in ray.nodes()):
            lost = "its last node"
        else:
            return
        raise CannotRun(f"Ray has lost {lost}: what is finished is kept, and the same command goes on from here")

    def close(self) -> None:
        """End all actors, and what they are still at, and free what they hold."""
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._running.values())]:
            ray.kill(actor)

    def _start(self) -> Any:
        import ray

        actor = ray.remote(self._worker).options(num_cpus=self._resources.cpus, num_gpus=self._resources.gpus)
        return actor.remote(WorkerSetup(threads=self._resources.threads, own_process=True))

    def _collect(self, reference: Any) -> tuple[Task, Result | Unavailable]:
        import ray

        actor, task = self._running.pop(reference)
        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayError as error:
            # The process is gone: out of memory, a lost machine, a crash below Python.
            ray.kill(actor)
            memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            kind = FailureKind.MEMORY if memory else FailureKind.MACHINE
            return task, Lost(str(error).strip() or repr(error), kind)
        if self._spoils(result):
            ray.kill(actor)  # what a failure leaves behind is nobody's business
        else:
            self._idle.append(actor)
        return task, result
