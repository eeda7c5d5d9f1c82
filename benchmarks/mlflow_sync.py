"""How fast finished trials reach MLflow, and what it costs to find that there is nothing new.

    python benchmarks/mlflow_sync.py

The trials are short, so that what each costs beside its values is what counts. `again` is the cost of a sync that has
nothing to send: by the process that sent everything, and by a new one.
"""

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from common import progress, report

from gatelab.metrics import dump_specs
from gatelab.results.store.journal import Journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metric_specs import BEFORE_SPECS
from gatelab.results.store.records import StudyRecord, write_json
from gatelab.results.store.trials import PROVENANCE
from gatelab.results.tracking.sync import Mirror
from gatelab.training.config import TrialConfig

COUNTS = (100, 1_000)
EVALUATED = ("loss", "bits_per_byte", "first_loss", "last_loss")
SUMS = ("train/final_loss", "train/initial_loss", "train/seconds", "memory/peak_bytes")
SERIES = ("train/loss", "train/gradient_norm", "train/learning_rate", "train/tokens_per_second")
LAYERS = 4


def study(folder: RunsFolder, name: str, count: int) -> StudyRecord:
    """Write the records of finished one-step trials, each with 40 values, and return their study's."""
    ids = [f"{name}{number:032x}" for number in range(count)]
    config = TrialConfig().model_dump(mode="json")
    origin = {each: f"this {each}" for each in PROVENANCE} | {"data": "ab" * 32}
    specs = dump_specs(BEFORE_SPECS)
    for number, trial in enumerate(ids):
        files, now = folder.trial(trial), time.time()
        with Journal(files.journal) as journal:
            journal.record(1, {metric: 1.0 + number for metric in SERIES})
            journal.record(1, {f"validation/{metric}": 1.0 + number for metric in EVALUATED})
            for layer in range(LAYERS):
                journal.record(1, {f"activation/{index}": 1.0 * index for index in range(6)}, layer)
                journal.record(1, {"gradient_norm": 1.0, "attention/max_logit": 2.0}, layer)
        attempts = [{"started": now - 1, "provenance": origin}]
        write_json(files.description, {"id": trial, "config": config, "attempts": attempts, "metrics": specs})
        metrics = {f"validation/{metric}": 1.0 + number for metric in EVALUATED} | dict.fromkeys(SUMS, 1.0)
        write_json(files.outcome, {"status": "finished", "step": 1, "metrics": metrics, "ended": now})
    variant = {"baseline": None, "steps": 1, "parameters": 1, "added_parameters": 0, "flops_per_token": 1}
    levels = {"model.gate.position": "none", "training.optimizer.learning_rate": "0.001"}
    record: dict[str, Any] = {
        "name": name,
        "hash": "0",
        "axes": list(levels),
        "variants": {"base": variant | {"levels": levels}},
        "trials": [{"id": trial, "variant": "base", "seed": seed} for seed, trial in enumerate(ids)],
    }
    return StudyRecord.from_json(record, name)


def mirror(folder: RunsFolder, count: int) -> list[dict[str, Any]]:
    """Return what it costs to send so many trials, and to find that all has been sent."""
    record = study(folder, f"trials-{count}", count)
    rows: list[dict[str, Any]] = []

    def timed(what: str, keeper: Mirror, unit: str) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        sent = keeper.sync()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rate = count / wall if unit == "trials/s" else wall
        rows.append({"what": f"{count} trials: {what}", "value": rate, "unit": unit, "cpu_seconds": cpu, "sent": sent})
        progress(f"{rows[-1]['what']}: {wall:.2f} s, of which {cpu:.2f} s of processor; {sent} values")

    keeper = Mirror(folder, record, folder.tracking_uri)
    timed("sent", keeper, "trials/s")
    timed("again, same process", keeper, "s")
    timed("again, new process", Mirror(folder, record, folder.tracking_uri), "s")
    return rows


def main() -> None:
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        folder = RunsFolder(Path(root) / "runs")
        folder.root.mkdir()
        mirror(folder, 1)  # creates the store
        for count in COUNTS:
            rows += mirror(folder, count)
    report("mlflow_sync", rows)


if __name__ == "__main__":
    main()
