"""Planning, journals and MLflow: how fast records are made and moved.

    python benchmarks/records.py

The peer of each figure is measured beside it: a journal against MLflow's own `log_metric`, the mirror against
`log_batch` called by hand with the same values.
"""

import tempfile
import time
from pathlib import Path

from common import progress, report
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from gatelab.ablations.loading import make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.results.store.journal import Journal, read_journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import StudyRecord, write_json
from gatelab.results.tracking.sync import Mirror

ROWS = 100_000


def planning() -> float:
    """Return the seconds to plan 10,000 trials: 3,600 combinations, some impossible, matched, three seeds, and more."""
    axes = {
        "model.gate.position": ["none", "query", "key", "value", "sdpa", "output"],
        "model.gate.granularity": ["elementwise", "headwise"],
        "model.gate.activation": ["sigmoid", "silu", "tanh", "relu", "softplus"],
        "model.gate.sharing": ["per_head", "averaged", "shared"],
        "training.optimizer.learning_rate": [1e-3 * 1.3**i for i in range(12)],
        "model.layers": [2, 3, 4, 6],
    }
    started = time.perf_counter()
    baseline = {"model.gate.position": "none"}
    plan = make_study(
        {"name": "large", "axes": axes, "seeds": 3, "match": "parameters", "baseline": baseline}, "benchmark"
    )
    matrix = build_matrix(plan, lambda config: "data")
    elapsed = time.perf_counter() - started
    made = f"{matrix.combinations} combinations, {len(matrix.variants)} variants, {len(matrix.trials)} trials"
    progress(f"{made}: {elapsed:.2f} s")
    return elapsed * 10_000 / len(matrix.trials)


def journal(folder: Path) -> tuple[float, float]:
    """Return (rows written, rows read) per second: 20 values a step, flushed every 2 s and fsynced as in training."""
    values = {f"metric/{index}": float(index) for index in range(20)}
    started = time.perf_counter()
    with Journal(folder) as writer:
        for step in range(1, ROWS // 20 + 1):
            writer.record(step, values)
            writer.flush()
    written = time.perf_counter() - started
    started = time.perf_counter()
    assert len(read_journal(folder)) == ROWS
    return ROWS / written, ROWS / (time.perf_counter() - started)


def mirror(folder: RunsFolder) -> tuple[float, int]:
    """Return (seconds, values sent) to mirror 100,000 rows: 100 trials of 1,000 rows."""
    ids = [f"{number:064x}" for number in range(100)]
    for trial in ids:
        with Journal(folder.trial(trial).journal) as writer:
            for step in range(1, 501):
                writer.record(step, {"train/loss": 1.0 / step, "train/gradient_norm": float(step)})
        write_json(folder.trial(trial).description, {"id": trial, "config": {}, "attempts": []})
        write_json(
            folder.trial(trial).outcome, {"status": "finished", "step": 500, "metrics": {}, "ended": time.time()}
        )
    variant = {
        "levels": {},
        "baseline": "base",
        "steps": 500,
        "parameters": 1,
        "added_parameters": 0,
        "flops_per_token": 1,
    }
    record = {
        "name": "mirror",
        "hash": "0",
        "axes": [],
        "variants": {"base": variant},
        "trials": [{"id": trial, "variant": "base", "seed": seed} for seed, trial in enumerate(ids)],
    }
    folder.study("mirror").path.mkdir(parents=True)
    copy = Mirror(folder, StudyRecord.from_json(record, "mirror"), folder.tracking_uri)
    started = time.perf_counter()
    sent = copy.sync()
    return time.perf_counter() - started, sent


def by_hand(folder: Path) -> tuple[float, float]:
    """Return the values per second of `log_metric`, and of `log_batch` with 1,000 values, on a store of their own."""
    client = MlflowClient(f"sqlite:///{folder}/by-hand.db")
    experiment = client.create_experiment("by hand", artifact_location=folder.as_uri())
    run = client.create_run(experiment).info.run_id
    started = time.perf_counter()
    for step in range(200):
        client.log_metric(run, "one", 1.0, step=step)
    single = 200 / (time.perf_counter() - started)
    started = time.perf_counter()
    for start in range(0, 20_000, 1000):
        client.log_batch(run, metrics=[Metric("batch", 1.0, start + i, start + i) for i in range(1000)])
    return single, 20_000 / (time.perf_counter() - started)


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    plan_seconds = planning()
    written, read = journal(folder / "journal")
    single, batch = by_hand(folder)
    seconds, sent = mirror(RunsFolder(folder / "runs"))
    assert sent == ROWS
    report(
        "records",
        [
            {"what": "planning 10,000 trials", "value": plan_seconds, "unit": "s", "target": "<= 2"},
            {"what": "journal: rows written", "value": written, "unit": "rows/s", "target": ">= 100,000"},
            {"what": "journal: rows read", "value": read, "unit": "rows/s"},
            {"what": "MLflow by hand: log_metric", "value": single, "unit": "values/s"},
            {"what": "MLflow by hand: log_batch of 1,000", "value": batch, "unit": "values/s"},
            {"what": "mirror of 100,000 rows, 100 runs", "value": seconds, "unit": "s", "target": "<= 60"},
        ],
    )


if __name__ == "__main__":
    main()
