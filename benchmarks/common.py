"""What the benchmarks share: the trial that they time, the machine's name, and how results are printed."""

import json
import platform
import statistics
import sys
import time
from datetime import date
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F

from gatelab.models.decoder import Decoder, initialize
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.device import device_name
from gatelab.training.optimizer import learning_rate


def tiny_trial(steps: int, seed: int = 0) -> TrialConfig:
    """Return a trial of the quickstart's model on the standard library's sources."""
    model = {"hidden_size": 64, "layers": 4, "kv_heads": 4, "init_std": 0.12, "gate": {"position": "sdpa"}}
    training = {"tokens": steps * 16 * 128, "optimizer": {"learning_rate": 1e-2}}
    # Diagnostics have a benchmark of their own: the bare loop has none.
    evaluation = {"tokens": 8192, "points": 2, "diagnostic_tokens": 0}
    return TrialConfig.model_validate({"model": model, "training": training, "evaluation": evaluation, "seed": seed})


def bare_training(trial: TrialConfig, dataset: Dataset) -> float:
    """Return the seconds to train and evaluate a trial's model in a bare loop, written out as in a notebook."""
    training = trial.training
    model = Decoder(trial.model)
    initialize(model, trial.seed)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    windows = torch.from_numpy(dataset.held_out(trial.evaluation.tokens, training.sequence_length).windows)
    evaluate_at = {training.steps // 2, training.steps}
    started = time.perf_counter()
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        batch = torch.from_numpy(dataset.batch(trial.seed, step, training.batch_size, training.sequence_length))
        optimizer.zero_grad()
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step + 1 in evaluate_at:
            with torch.no_grad():
                for part in windows.split(training.batch_size):
                    F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()).item()
    return time.perf_counter() - started


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print results as a table, then as one line of JSON with the machine, the versions and the date."""
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        target = f"   target {row['target']}" if "target" in row else ""
        print(f"{row['what']:<{width}}  {row['value']:>12,.4g} {row['unit']:<10}{target}")
    machine = {
        "cpu": device_name(torch.device("cpu")),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "ray", "mlflow", "pyarrow")},
    }
    print(json.dumps({"benchmark": name, "date": date.today().isoformat(), "machine": machine, "rows": rows}))


def spread(values: list[float]) -> str:
    """Format the median and the range."""
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"


def progress(text: str) -> None:
    """Say on standard error what is going on."""
    print(text, file=sys.stderr, flush=True)
