"""What looking at results costs: fits of scaling laws, and the tables, files and pages of a large study.

    python benchmarks/results.py fits [--bootstraps 4000] [--single 20]
    python benchmarks/results.py study [--trials 1000] [--points 1000]

fits: thousands of bootstrap fits in one batch, against a plain loop of single fits. Three arms, three seeds; five sizes
for the law in compute, and five sizes with three numbers of tokens each for the law in parameters and tokens. The loops
fit a resample at a time, from the law itself as the batch does, with SciPy and exact derivatives of the same objective:
by least_squares with its Huber loss, and by L-BFGS-B at the tight tolerances of published fits. All are timed in turn;
the loops on fewer resamples, and their time scaled to as many as the batch has. The batch must find fits as good as
theirs before anything is timed.

study: 50 variants at 20 seeds whose journals hold 20 metrics at 1,000 points each, eight of them by layer, as `run`
leaves them, in batches of 50 points. Each command runs in a process of its own, so that its time has all imports in it
and its peak of memory is its own; the files are in the page cache. Peers are what one would write by hand with pandas
and PyArrow, in a process of their own, too.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import progress, report
from scipy.optimize import least_squares, minimize

from gatelab.ablations.loading import make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.results.statistics.law_bootstrap import bootstrap
from gatelab.results.statistics.law_fit import HUBER, fit
from gatelab.results.statistics.power_law import Cells, Floats, Law
from gatelab.results.store.journal import Journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import write_json
from gatelab.results.store.trials import PROVENANCE

LAWS = {
    "compute": Law(np.array([1.6]), np.array([60.0, 60.5, 66.0]), np.array([0.09, 0.0906, 0.092])),
    "parameters and tokens": Law(
        np.array([1.69]), np.array([406.4, 380.0, 420.0]), np.array([0.34, 0.337, 0.342]), np.array([410.7, 0.28])
    ),
}


def measured(law: Law, noise: float = 0.002, seeds: int = 3) -> Cells:
    """Simulate a study of a law: every arm at every rung.

    Log losses carry noise; half of its variance is shared by paired seeds.
    """
    sizes = np.geomspace(5e7, 1e10, 5) if law.data is not None else np.geomspace(1e17, 1e21, 5)
    budgets = np.geomspace(1e9, 2e11, 3) if law.data is not None else np.ones(1)
    arm, size, budget = (grid.ravel() for grid in np.indices((3, len(sizes), len(budgets))))
    tokens = None if law.data is None else budgets[budget]
    rng, rung = np.random.default_rng(0), size * len(budgets) + budget
    shared = rng.normal(0, noise / np.sqrt(2), (rung.max() + 1, seeds))
    own = rng.normal(0, noise / np.sqrt(2), (len(arm), seeds))
    return Cells(
        arm, rung, sizes[size], law.losses(arm, sizes[size], tokens)[:, None] * np.exp(shared[rung] + own), tokens
    )


def residuals(theta: Floats, cells: Cells, logs: Floats) -> tuple[Floats, Floats]:
    """Return the differences of log losses and their derivatives, as one would write them for a single fit."""
    rows, arms = np.arange(len(logs)), cells.arms
    x = np.log(cells.x) - np.log(cells.x).mean()
    power = np.exp(theta[1 + cells.arm] - theta[1 + arms + cells.arm] * x)
    jacobian = np.zeros((len(logs), len(theta)))
    jacobian[:, 0], jacobian[rows, 1 + cells.arm], jacobian[rows, 1 + arms + cells.arm] = 1, power, -power * x
    total = theta[0] + power
    if cells.tokens is not None:
        d = np.log(cells.tokens) - np.log(cells.tokens).mean()
        data = np.exp(theta[-2] - theta[-1] * d)
        jacobian[:, -2], jacobian[:, -1], total = data, -data * d, total + data
    return np.log(total) - logs, jacobian / total[:, None]


def objective(theta: Floats, cells: Cells, logs: Floats) -> tuple[float, Floats]:
    """Return the sum of Huber losses and its gradient."""
    misses, jacobian = residuals(theta, cells, logs)
    size = np.abs(misses)
    cost = float(np.sum(np.where(size < HUBER, size**2 / 2, HUBER * (size - HUBER / 2))))
    return cost, np.clip(misses, -HUBER, HUBER) @ jacobian


def as_theta(law: Law, cells: Cells) -> Floats:
    """Return E, log A, alpha, log B, beta for x and tokens over their geometric means."""
    parts = [law.offset, np.log(law.scale) - law.exponent * np.log(cells.x).mean(), law.exponent]
    if law.data is not None and cells.tokens is not None:
        parts.append(np.array([np.log(law.data[0]) - law.data[1] * np.log(cells.tokens).mean(), law.data[1]]))
    return np.concatenate(parts)


def by_lbfgs(cells: Cells, start: Floats, logs: Floats) -> float:
    """Return the least cost of one resample, by L-BFGS."""
    bounds = [(0, None)] + [(None, None)] * (len(start) - 1)
    options = {"ftol": 0, "gtol": 1e-10, "maxiter": 10_000, "maxfun": 100_000}
    return float(minimize(objective, start, (cells, logs), "L-BFGS-B", jac=True, bounds=bounds, options=options).fun)


def by_least_squares(cells: Cells, start: Floats, logs: Floats) -> float:
    """Return the least cost of one resample, by `least_squares`."""
    low = np.where(np.arange(len(start)) == 0, 0, -np.inf)
    return float(
        least_squares(
            lambda theta: residuals(theta, cells, logs)[0],
            start,
            lambda theta: residuals(theta, cells, logs)[1],
            bounds=(low, np.inf),
            loss="huber",
            f_scale=HUBER,
            x_scale="jac",
            xtol=1e-7,
            ftol=1e-10,
            gtol=None,
        ).cost
    )


LOOPS = {"least_squares": by_least_squares, "L-BFGS-B": by_lbfgs}


def assert_as_good(cells: Cells, law: Law, count: int) -> Floats:
    """Check the batch's fits of `count` resamples against the loops' and return the resamples."""
    # With single seeds, what a bootstrap draws is all of its noise, so that the loops can be given the same.
    one = Cells(cells.arm, cells.rung, cells.x, np.exp(cells.mean)[:, None], cells.tokens)
    replicates, noise = bootstrap(one, law, count, np.random.default_rng(0))
    targets: Floats = np.log(law.losses(cells.arm, cells.x, cells.tokens)) + noise
    for index, logs in enumerate(targets):
        data = None if replicates.data is None else replicates.data[index]
        mine = as_theta(Law(replicates.offset[index], replicates.scale[index], replicates.exponent[index], data), one)
        best = min(fit_one(one, as_theta(law, cells), logs) for fit_one in LOOPS.values())
        assert objective(mine, one, logs)[0] < 1.001 * best, f"resample {index}: a loop found a better fit"
    return targets


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(name: str, truth: Law, bootstraps: int, single: int, rounds: int) -> list[dict[str, Any]]:
    """Return medians over rounds in which batch and loops take turns."""
    cells = measured(truth)
    law = fit(cells)
    start, targets = as_theta(law, cells), assert_as_good(cells, law, single)
    times: dict[str, list[float]] = {"batch": [], **{loop: [] for loop in LOOPS}}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        times["batch"].append(seconds(lambda: bootstrap(cells, law, bootstraps, rng)))
        for loop, fit_one in LOOPS.items():
            spent = seconds(lambda fit_one=fit_one: [fit_one(cells, start, logs) for logs in targets])
            times[loop].append(spent * bootstraps / single)
        progress(f"{name}: " + ", ".join(f"{side} {values[-1]:.3g} s" for side, values in times.items()))
    batch, *loops = (statistics.median(values) for values in times.values())
    what = f"law in {name}"
    first = statistics.median(seconds(lambda: fit(cells)) for _ in range(rounds))
    rows: list[dict[str, Any]] = [{"what": f"{what}: one fit with its starts", "value": 1e3 * first, "unit": "ms"}]
    rows.append({"what": f"{what}: {bootstraps} fits, batch", "value": batch, "unit": "s", "target": "< 10 s"})
    for loop, spent in zip(LOOPS, loops, strict=True):
        rows.append({"what": f"{what}: {bootstraps} fits, loop of {loop}", "value": spent, "unit": "s"})
        rows.append({"what": f"{what}: {loop} / batch", "value": spent / batch, "unit": "x"})
    return rows


WHOLE = (
    *("train/loss", "train/gradient_norm", "train/learning_rate", "train/tokens_per_second"),
    *("validation/loss", "validation/bits_per_byte", "attention/entropy", "attention/max_logit"),
    *("attention/first_token_share", "attention/first_token_share_late", "attention/first_token_share_top_head"),
    "sdpa/below_1e-2",
)
OF_LAYERS = ("attention/entropy", "attention/max_logit", "activation/ffn_residual", "attention/first_token_share")
LAYERS = 2
AT_ONCE = 50  # points between two commits of a journal

CHILD = """
import sys, time
started = time.perf_counter()
try:
    {work}
except SystemExit as end:
    assert not end.code, end.code
seconds = time.perf_counter() - started
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"{{seconds}} {{time.process_time()}} {{peak}}", file=sys.stderr)
"""
COMMAND = "sys.argv = {arguments}; from gatelab.cli.main import main; main()"
BY_HAND = {
    "compare": """
    import json, pathlib, pandas
    root = pathlib.Path({root!r})
    rows = []
    for trial in json.loads((root / "studies" / {study!r} / "study.json").read_text())["trials"]:
        outcome = json.loads((root / "trials" / trial["id"] / "outcome.json").read_text())
        rows.append(trial | outcome["metrics"])
    wide = pandas.DataFrame(rows).pivot_table(index="seed", columns="variant", values="validation/loss")
    print(wide.mean().sort_values(), wide.sub(wide.iloc[:, 0], axis=0).agg(["mean", "sem"]).T)
    """,
    "export": """
    import json, pathlib, pyarrow as pa, pyarrow.parquet as pq
    root = pathlib.Path({root!r})
    tables = []
    for trial in json.loads((root / "studies" / {study!r} / "study.json").read_text())["trials"]:
        for path in sorted((root / "trials" / trial["id"] / "journal").glob("*.arrows")):
            with pa.OSFile(str(path)) as file:
                table = pa.ipc.open_stream(file).read_all()
            for name in ("id", "variant", "seed"):
                table = table.append_column(name, pa.repeat(pa.scalar(trial[name]), len(table)))
            tables.append(table)
    pq.write_table(pa.concat_tables(tables), {target!r} + "/by-hand.parquet", compression="zstd")
    """,
}
"""Command -> the same by hand: means and paired differences of one metric; one table of all values, written."""


def fabricate(root: Path, trials: int, points: int) -> str:
    """Write a study of so many trials as its workers would have left it; return its name."""
    seeds = max(1, trials // 50)
    axes = {"model.gate.position": ["none", "query", "key", "value", "sdpa"], "model.layers": list(range(1, 11))}
    base = {"training": {"tokens": 2 * points, "batch_size": 1, "sequence_length": 2}}
    baseline = {"model.gate.position": "none"}
    raw = {"name": "large", "base": base, "axes": axes, "seeds": seeds, "baseline": baseline}
    matrix = build_matrix(make_study(raw, "benchmark"), lambda config: "data")
    folder, rng = RunsFolder(root), np.random.default_rng(0)
    write_record(folder, study_record(matrix))
    for trial in matrix.trials:
        files = folder.trial(trial.id)
        noise = rng.normal(0, 0.05, (points, len(WHOLE) + LAYERS * len(OF_LAYERS))).tolist()
        with Journal(files.journal, flush_seconds=math.inf) as journal:
            for step in range(1, points + 1):
                values = [1 + 5 / math.sqrt(step) + each for each in noise[step - 1]]
                journal.record(step, dict(zip(WHOLE, values, strict=False)))
                for layer in range(LAYERS):
                    begin = len(WHOLE) + layer * len(OF_LAYERS)
                    journal.record(step, dict(zip(OF_LAYERS, values[begin:], strict=False)), layer)
                if step % AT_ONCE == 0:
                    journal.commit()
        metrics = {"train/mean_tokens_per_second": 1e4, "train/final_loss": values[0], "train/seconds": 60.0}
        metrics |= dict(zip(WHOLE[4:], values[4:], strict=False)) | {"memory/peak_bytes": 1e9}
        attempts = [{"started": 1.7e9, "provenance": {name: f"this {name}" for name in PROVENANCE}}]
        config = trial.config.model_dump(mode="json")
        write_json(files.description, {"id": trial.id, "config": config, "attempts": attempts})
        outcome = {"status": "finished", "step": points, "metrics": metrics, "reason": "", "ended": 1.7e9 + 60}
        write_json(files.outcome, outcome)
    return "large"


def in_a_process(work: str) -> tuple[float, float, float]:
    """Run some Python in a process of its own. Return seconds, processor seconds and peak resident memory in GB."""
    done = subprocess.run([sys.executable, "-c", CHILD.format(work=work)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    took, worked, peak = done.stderr.splitlines()[-1].split()
    return float(took), float(worked), int(peak) / 1e6


def study(trials: int, points: int, rounds: int) -> list[dict[str, Any]]:
    """Return medians over rounds in which commands and what is written by hand take turns."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        name = fabricate(root / "runs", trials, points)
        values = trials * points * (len(WHOLE) + LAYERS * len(OF_LAYERS))
        progress(f"{trials} trials, {values:,} values; load {os.getloadavg()[0]:.1f}")
        commands = {
            "compare": (["compare", name, "--format", "csv"], "< 5 s"),
            "compare --from parquet": (["compare", name, "--format", "csv", "--from", "parquet"], ""),
            "curves": (["curves", name, "--metric", "train/loss", "-o", f"{root}/curves"], ""),
            "export": (["export", name], "< 20 s"),
            "report": (["report", name], "< 30 s"),
        }
        found: dict[str, list[tuple[float, float, float]]] = {}
        in_a_process(COMMAND.format(arguments=["gatelab", "export", name, "--runs", f"{root}/runs"]))
        for _ in range(rounds):
            for what, (arguments, _) in commands.items():
                line = COMMAND.format(arguments=["gatelab", *arguments, "--runs", f"{root}/runs"])
                found.setdefault(what, []).append(in_a_process(line))
                if what in BY_HAND:
                    line = BY_HAND[what].format(root=f"{root}/runs", study=name, target=place)
                    found.setdefault(f"{what} by hand", []).append(in_a_process(line))
            progress(", ".join(f"{what} {each[-1][0]:.2f} s" for what, each in found.items()))
    rows = []
    for what, measured in found.items():
        took, worked, peak = (statistics.median(each[part] for each in measured) for part in range(3))
        target = commands.get(what, ((), ""))[1]
        rows.append({"what": what, "value": took, "unit": "s", **({"target": target} if target else {})})
        rows.append({"what": f"{what}: of the processor", "value": worked, "unit": "s"})
        rows.append({"what": f"{what}: peak memory", "value": peak, "unit": "GB"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["fits", "study"], nargs="?", default="fits")
    parser.add_argument("--bootstraps", type=int, default=4000)
    parser.add_argument("--single", type=int, default=20)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    if given.what == "study":
        report("results: study", study(given.trials, given.points, given.rounds or 3))
        return
    sizes = (given.bootstraps, given.single, given.rounds or 5)
    report("results", [row for name, law in LAWS.items() for row in measure(name, law, *sizes)])


if __name__ == "__main__":
    main()
