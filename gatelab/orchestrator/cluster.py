"""The Ray that trials run on: one of our own or a cluster, and what each worker gets of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray


class CannotRun(RuntimeError):
    """What is asked for is sound, but it cannot be run here and now; the message says why."""


@dataclass(frozen=True)
class Share:
    """What each worker gets of a cluster."""

    concurrency: int
    threads: int
    cpus: float  # below 1 where there are more trials at a time than cores
    gpus: float


def share(concurrency: int | None, gpus_per_trial: float | None, trials: int) -> Share:
    """Divide the connected cluster among trials: `concurrency` at a time, or as many as it holds.

    Raises CannotRun if it has nowhere for one to run.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    cores = sum(node.get("CPU", 0.0) for node in nodes)
    wanted = (1.0 if gpus else 0.0) if gpus_per_trial is None else gpus_per_trial
    if wanted and not gpus:
        raise CannotRun(f"--gpus-per-trial {wanted:g}: this Ray has no GPUs")
    fitting = int(gpus / wanted + 1e-9) if wanted else int(cores)
    concurrency = concurrency or max(1, min(fitting, trials))
    if wanted:
        concurrency = min(concurrency, fitting)
    most = max(node.get("CPU", 0.0) for node in nodes)  # a trial runs on one node
    threads = max(1, int(min(cores / concurrency, most)))
    return Share(concurrency, threads, min(float(threads), cores / concurrency), wanted)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """The Ray that this process has, or a connection to a cluster, or one of our own for as long as it is needed."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = {} if address else {"include_dashboard": False, "object_store_memory": 100_000_000}
    ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    try:
        yield
    finally:
        ray.shutdown()
