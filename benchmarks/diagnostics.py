"""What diagnostics cost: a training step and a diagnosis of the same model, and steps with and without the ring of
an autopsy, measured in turn.

    python benchmarks/diagnostics.py [--rounds 20] [--threads 1]

For the quickstart's variants and for the base small-dense: medians of both, and the share of a trial's training time
that diagnoses take at the default frequency, points x diagnosis / (steps x step). Norms of weights and gradients,
which are taken at the same moments, count as diagnosis. The target is 2 %. Of the ring, by how much the median step
of a model that has one exceeds that of an equal model without; the target is 1 %.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from common import progress, report

from gatelab.ablations.presets import bases
from gatelab.training.config import TrialConfig
from gatelab.training.device import choose_device
from gatelab.training.diagnostics import diagnose, norms
from gatelab.training.divergence import StepHistory
from gatelab.training.train_state import TrainState

GATES: dict[str, dict[str, Any]] = {
    "none": {"position": "none"},
    "sdpa elementwise": {"position": "sdpa"},
    "sdpa headwise": {"position": "sdpa", "granularity": "headwise"},
    "value": {"position": "value"},
}
SCALES: dict[str, tuple[str, dict[str, Any]]] = {
    "quickstart": ("tiny-dense", {"training": {"tokens": 600_000}, "evaluation": {"points": 5}}),
    "tiny-dense": ("tiny-dense", {}),
    "small-dense": ("small-dense", {}),
}


def trial_of(base: str, changes: dict[str, Any], gate: dict[str, Any]) -> TrialConfig:
    tree = bases()[base].tree
    merged = {section: {**tree.get(section, {}), **changes.get(section, {})} for section in {*tree, *changes}}
    merged["model"] = {**merged["model"], "gate": gate}
    return TrialConfig.model_validate(merged)


def measure(trial: TrialConfig, rounds: int) -> tuple[float, float]:
    """Return (seconds of a step, seconds of a diagnosis), medians of measurements in turn."""
    device = choose_device()
    state = TrainState(trial, device)
    training, rng = trial.training, np.random.default_rng(0)
    tokens = rng.integers(0, 257, (training.batch_size, training.sequence_length + 1))
    batch = torch.from_numpy(tokens).to(device)
    sequences = max(1, trial.evaluation.diagnostic_tokens // training.sequence_length)
    probes = rng.integers(0, 257, (sequences, training.sequence_length + 1))
    steps, diagnoses = [], []
    for number in range(-1, rounds):  # the first round warms up
        started = time.perf_counter()
        state.step(0, batch)[0].item()
        between = time.perf_counter()
        diagnose(state.model, probes, training.batch_size // training.accumulation, device, state.dtype)
        norms(state.model)
        if number >= 0:
            steps.append(between - started)
            diagnoses.append(time.perf_counter() - between)
    return statistics.median(steps), statistics.median(diagnoses)


def measure_ring(trial: TrialConfig, rounds: int) -> float:
    """Return the median step with a ring / without, measured in turn on two equal models."""
    device = choose_device()
    plain, watched = TrainState(trial, device), TrainState(trial, device)
    ring = StepHistory(watched.model)
    training = trial.training
    tokens = np.random.default_rng(0).integers(0, 257, (training.batch_size, training.sequence_length + 1))
    batch = torch.from_numpy(tokens).to(device)
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(-1, rounds):
        for has_ring in (False, True) if number % 2 else (True, False):
            started = time.perf_counter()
            loss, _ = (watched if has_ring else plain).step(0, batch)
            if has_ring:
                ring.take(number + 2, watched.gradient_norms)
            loss.item()
            if number >= 0:
                times[has_ring].append(time.perf_counter() - started)
    return statistics.median(times[True]) / statistics.median(times[False])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for scale, (base, changes) in SCALES.items():
        for name, gate in GATES.items():
            trial = trial_of(base, changes, gate)
            step, diagnosis = measure(
                trial, arguments.rounds if base == "tiny-dense" else max(3, arguments.rounds // 5)
            )
            share = trial.evaluation.points * diagnosis / (trial.training.steps * step)
            progress(f"{scale}, {name}: step {step * 1e3:.1f} ms, diagnosis {diagnosis * 1e3:.1f} ms")
            rows.append({"what": f"{scale}, {name}", "value": 100 * share, "unit": "%", "target": "<= 2 %"})
    for name, gate in GATES.items():
        ratio = measure_ring(trial_of("tiny-dense", {}, gate), 5 * arguments.rounds)
        progress(f"ring of an autopsy, tiny-dense, {name}: {ratio:.4f}")
        rows.append({"what": f"ring, tiny-dense, {name}", "value": 100 * (ratio - 1), "unit": "%", "target": "<= 1 %"})
    report("diagnostics", rows)


if __name__ == "__main__":
    main()
