"""What a trial costs beside its training: the same model in a bare loop and as a trial in a Ray worker, in turn.

    python benchmarks/step_overhead.py [--rounds 5] [--steps 100]

Both sides run on one thread, in a process of their own that is kept, one at a time. A trial's side is the wall time of
the whole task: folder, lock, journal, checkpoint, outcome. Its training time is what the trial itself reports.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch
from common import bare_training, progress, report, spread, tiny_trial

from gatelab.orchestrator.pool import WorkerSetup
from gatelab.orchestrator.worker import Task, TrialWorker
from gatelab.results.store.layout import RunsFolder
from gatelab.training.data import Dataset
from gatelab.training.preparation import prepare


class BareWorker:
    """A process with one thread, as a trial's."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def run(self, steps: int, seed: int, folder: str) -> float:
        return bare_training(tiny_trial(steps, seed), Dataset(Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    dataset = prepare(tiny_trial(1).data, root / "data")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    bare = ray.remote(BareWorker).remote()
    worker = ray.remote(TrialWorker).remote(WorkerSetup(threads=1))
    bare_times, task_times, training_times = [], [], []
    for number in range(-1, arguments.rounds):  # the first round warms up
        times = [ray.get(bare.run.remote(arguments.steps, number + 1, str(dataset.folder)))]
        trial = tiny_trial(arguments.steps, number + 1)
        task = Task(f"{number + 1:064x}", trial, dataset.manifest.identity, RunsFolder(root), root / "never", 60.0)
        started = time.perf_counter()
        outcome = ray.get(worker.run.remote(task))
        times += [time.perf_counter() - started, outcome.metrics["train/seconds"]]
        progress(f"round {number}: bare {times[0]:.3f} s, trial {times[1]:.3f} s (training alone {times[2]:.3f} s)")
        if number >= 0:
            for collected, value in zip((bare_times, task_times, training_times), times, strict=True):
                collected.append(value)
    ratios = [task / alone for task, alone in zip(task_times, bare_times, strict=True)]
    progress(f"whole trial / bare loop, pair by pair: {spread(ratios)}")
    report(
        "step_overhead",
        [
            {"what": "bare loop", "value": 1000 * statistics.median(bare_times) / arguments.steps, "unit": "ms/step"},
            {"what": "whole trial", "value": 1000 * statistics.median(task_times) / arguments.steps, "unit": "ms/step"},
            {"what": "whole trial / bare loop", "value": statistics.median(ratios), "unit": "", "target": "<= 1.03"},
        ],
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
