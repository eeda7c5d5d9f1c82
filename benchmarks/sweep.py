"""How much of a sweep is training: wall time of `gatelab run` against bare training spread over the same workers.

    python benchmarks/sweep.py [--trials 32] [--steps 130] [--workers 2]

First the same trainings in bare loops, `workers` at a time in kept processes (a quarter of them, scaled up), then the
whole command as a user types it, cold start and tables included.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml
from common import bare_training, progress, report, tiny_trial

from gatelab.training.data import Dataset
from gatelab.training.preparation import prepare


def bare(steps: int, seed: int, folder: str) -> float:
    torch.set_num_threads(1)
    return bare_training(tiny_trial(steps, seed), Dataset(Path(folder)))


def gaps(root: Path) -> list[float]:
    """Return the seconds between the end of a trial and the start of the next one, for a single worker."""
    outcomes = [json.loads(path.read_text()) for path in root.glob("trials/*/outcome.json")]
    spans = sorted((outcome["description"]["attempts"][0]["started"], outcome["ended"]) for outcome in outcomes)
    return [start - end for (_, end), (start, _) in itertools.pairwise(spans)]


def run_study(root: Path, trials: int, steps: int, workers: int) -> float:
    """Return the wall seconds of the command."""
    trial = tiny_trial(steps)
    study = {
        "name": "sweep",
        "base": trial.model_dump(mode="json", include={"model", "training", "evaluation"}),
        "seeds": trials,
    }
    path = root.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "gatelab", "run", str(path), "--runs", str(root), "--concurrency", str(workers)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--steps", type=int, default=130)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    dataset = prepare(tiny_trial(1).data, folder / "data")

    sample = max(arguments.workers, arguments.trials // 4)

    def bare_mean() -> float:
        with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
            list(
                pool.map(
                    bare, [2] * arguments.workers, range(arguments.workers), [str(dataset.folder)] * arguments.workers
                )
            )
            tasks = [arguments.steps] * sample, range(sample), [str(dataset.folder)] * sample
            return statistics.mean(pool.map(bare, *tasks))

    before = bare_mean()
    progress(f"bare training: {before:.2f} s a trial, {arguments.workers} at a time, mean of {sample}")
    wall = run_study(folder / "sweep", arguments.trials, arguments.steps, arguments.workers)
    progress(f"gatelab run: {wall:.1f} s for {arguments.trials} trials")
    after = bare_mean()
    progress(f"bare training again: {after:.2f} s a trial")
    cold = run_study(folder / "cold", 1, 1, 1)
    run_study(folder / "warm", 24, 10, 1)
    ideal = (before + after) / 2 * arguments.trials / arguments.workers
    report(
        "sweep",
        [
            {"what": "bare training, spread over the workers", "value": ideal, "unit": "s"},
            {"what": "gatelab run, everything included", "value": wall, "unit": "s"},
            {"what": "gatelab run / bare training", "value": wall / ideal, "unit": "", "target": "<= 1.10"},
            {"what": "cold start: a study of one trial of one step", "value": cold, "unit": "s"},
            {
                "what": "from one trial's end to the next one's start",
                "value": 1000 * statistics.median(gaps(folder / "warm")),
                "unit": "ms",
                "target": "<= 20",
            },
        ],
    )


if __name__ == "__main__":
    main()
