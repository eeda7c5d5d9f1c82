"""How many trials a second a study gets through, and what it is to read thousands: gatelab beside Ray Tune.

    python benchmarks/orchestration.py [--trials 100 1000 10000] [--tune 100 1000] [--workers 2]

A trial trains one step of a model of a few thousand weights, evaluates it and keeps a checkpoint: what it costs beyond
that is what counts. gatelab is the whole command as a user types it, with journals, MLflow and tables. Ray Tune has
actors that it uses again (`reuse_actors`), the same model and step, its own loggers and a checkpoint at the end, and no
MLflow. A rate is the number of trials by the seconds from the first one's start to the last one's end; the start of Ray
is not in it, nor the tail.
"""

import argparse
import contextlib
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
import yaml
from common import progress, report

from gatelab.models.decoder import Decoder, initialize
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import Outcome, TrialDescription
from gatelab.results.store.trials import read_description
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.preparation import prepare

BASE: dict[str, Any] = {
    "model": {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_size": 16},
    "training": {"tokens": 64, "sequence_length": 16, "batch_size": 4},
    "evaluation": {"tokens": 64, "points": 1, "diagnostic_tokens": 0},
}
LOOK_SECONDS = 0.5


@dataclass
class Watch:
    """What is seen of a command from outside while it runs."""

    most_bytes: int = 0
    """Memory of the driver at its most: the command itself, not its workers."""
    synced_at: float = 0.0
    """Seconds since 1970 when the last trial was seen to be in MLflow, whole."""
    memory: list[int] = field(default_factory=list)


def one_step(trial: TrialConfig, dataset: Dataset) -> tuple[Decoder, float]:
    """Train one step and evaluate, as a trial does, in a bare loop; return the model and its validation loss."""
    training = trial.training
    model = Decoder(trial.model)
    initialize(model, trial.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    windows = torch.from_numpy(dataset.held_out(trial.evaluation.tokens, training.sequence_length).windows)
    batch = torch.from_numpy(dataset.batch(trial.seed, 0, training.batch_size, training.sequence_length))
    F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()
    return model, loss


def gatelab(root: Path, trials: int, workers: int) -> list[dict[str, Any]]:
    """Run a study as a user does, look at it, and return what was measured."""
    name = f"study-{trials}"
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "base": BASE, "seeds": trials}))
    folder = RunsFolder(root / f"runs-{trials}")
    command = [sys.executable, "-m", "gatelab"]
    run = [*command, "run", str(path), "--runs", str(folder.root), "--concurrency", str(workers)]
    started, begun = time.perf_counter(), time.time()
    driver = subprocess.Popen(run, stdout=subprocess.DEVNULL)
    watch = Watch()
    watcher = threading.Thread(target=follow, args=(psutil.Process(driver.pid), folder, trials, watch))
    watcher.start()
    if driver.wait():
        sys.exit(f"gatelab run ended with {driver.returncode}")
    wall = time.perf_counter() - started
    watcher.join()
    first, last, over = spans(folder)
    assert over == trials, f"{over} of {trials} trials are finished"
    files = [path for path in folder.trials.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    half = watch.memory[len(watch.memory) // 2] / 2**20
    rows = [
        {"what": "rate", "value": trials / (last - first), "unit": "trials/s", "target": ">= 60"},
        {"what": "from the command to the first trial", "value": first - begun, "unit": "s"},
        {
            "what": "MLflow behind the last trial",
            "value": max(0.0, watch.synced_at - last),
            "unit": "s",
            "target": "< 60",
        },
        {"what": "the whole command", "value": wall, "unit": "s"},
        {"what": "driver's memory, half way", "value": half, "unit": "MiB"},
        {"what": "driver's memory, at its most", "value": watch.most_bytes / 2**20, "unit": "MiB", "target": "< 1000"},
        {"what": "files a trial", "value": len(files) / trials, "unit": "", "target": "<= 3"},
        {"what": "on disk", "value": size / trials / 1000, "unit": "kB/trial"},
    ]
    for look, target in (("status", "< 5"), ("compare", "< 10")):
        started = time.perf_counter()
        subprocess.run([*command, look, name, "--runs", str(folder.root)], check=True, stdout=subprocess.DEVNULL)
        rows.append({"what": look, "value": time.perf_counter() - started, "unit": "s", "target": target})
    return [{**row, "what": f"gatelab, {trials} trials: {row['what']}"} for row in rows]


def follow(driver: psutil.Process, folder: RunsFolder, trials: int, watch: Watch) -> None:
    """Look at a driver's memory and at its store until it ends."""
    while True:
        try:
            watch.memory.append(driver.memory_info().rss)
            if driver.status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        watch.most_bytes = max(watch.most_bytes, watch.memory[-1])
        if not watch.synced_at and in_mlflow(folder.database) >= trials:
            watch.synced_at = time.time()
        time.sleep(LOOK_SECONDS)


def in_mlflow(database: Path) -> int:
    """Count the trials that are in a store, whole."""
    if not database.exists():
        return 0
    found = 0
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
        (found,) = connection.execute("SELECT COUNT(*) FROM tags WHERE key = 'gatelab.files'").fetchone()
    return found


def spans(folder: RunsFolder) -> tuple[float, float, int]:
    """Return when the first trial began and the last one ended, and how many are finished."""
    starts, ends = [], []
    for path in folder.trials.iterdir():
        files = folder.trial(path.name)
        description, outcome = read_description(files), Outcome.read(files.outcome)
        assert isinstance(description, TrialDescription)
        starts.append(description.attempts[0].started)
        if outcome is not None and outcome.ended is not None:
            ends.append(outcome.ended)
    return min(starts), max(ends), len(ends)


def ray_tune(root: Path, trials: int, workers: int, dataset: Dataset) -> list[dict[str, Any]]:
    """Run as many trials in Ray Tune, its actors used again, and return what was measured."""
    import ray
    from ray import tune

    class OneStep(tune.Trainable):  # type: ignore[misc]
        """One trial after another in one process."""

        def setup(self, config: dict[str, Any]) -> None:
            torch.set_num_threads(1)
            self.seed = config["seed"]
            self.dataset = Dataset(Path(config["folder"]))

        def reset_config(self, config: dict[str, Any]) -> bool:
            self.seed = config["seed"]
            return True

        def step(self) -> dict[str, Any]:
            began = time.time()
            self.model, loss = one_step(TrialConfig.model_validate({**BASE, "seed": self.seed}), self.dataset)
            return {"loss": loss, "began": began, "ended": time.time(), "done": True}

        def save_checkpoint(self, folder: str) -> None:
            torch.save(self.model.state_dict(), Path(folder) / "model.pt")

    started = time.perf_counter()
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tuner = tune.Tuner(
        tune.with_resources(OneStep, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(trials))), "folder": str(dataset.folder)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=workers),
        run_config=tune.RunConfig(
            storage_path=str(root / f"tune-{trials}"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )
    results = tuner.fit()
    wall = time.perf_counter() - started
    ray.shutdown()
    found = [result.metrics for result in results if result.metrics is not None]
    assert len(found) == trials, f"{len(found)} of {trials} trials are finished"
    seconds = max(each["ended"] for each in found) - min(each["began"] for each in found)
    rows = [
        {"what": "rate", "value": trials / seconds, "unit": "trials/s"},
        {"what": "the whole command", "value": wall, "unit": "s"},
    ]
    return [{**row, "what": f"Ray Tune, {trials} trials: {row['what']}"} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1_000, 10_000])
    parser.add_argument("--tune", type=int, nargs="*", default=[100, 1_000])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["RAY_AIR_NEW_OUTPUT"] = os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    logging.getLogger("ray").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        dataset = prepare(TrialConfig.model_validate(BASE).data, Path(root) / "data")
        for count in sorted({*arguments.trials, *arguments.tune}):
            if count in arguments.tune:
                rows += ray_tune(Path(root), count, arguments.workers, dataset)
                progress("; ".join(f"{row['what']} {row['value']:.4g} {row['unit']}" for row in rows[-2:]))
            if count in arguments.trials:
                found = gatelab(Path(root), count, arguments.workers)
                progress("\n".join(f"{row['what']} {row['value']:.4g} {row['unit']}" for row in found))
                rows += found
    report("orchestration", rows)


if __name__ == "__main__":
    main()
