"""A plan before anything runs: the matrix, what is done already, and how long the rest would take here."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gatelab.ablations.claim_metrics import check_claim_metrics
from gatelab.ablations.errors import Problem
from gatelab.ablations.learning_rates import LEARNING_RATE, searched_kind
from gatelab.ablations.matrix import Matrix, Variant
from gatelab.ablations.pipeline import Optimum, build_matrix, not_searched
from gatelab.ablations.shared_prefix import forks
from gatelab.ablations.study import StudyPlan
from gatelab.errors import DataError, Unavailable
from gatelab.names import SEARCH_SUFFIX
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import DamagedRecord, SearchFindings, read_json, write_json
from gatelab.results.store.runs import SUMMARY
from gatelab.results.store.trials import is_over
from gatelab.training.config import DataConfig, TrialConfig
from gatelab.training.manifest import Manifest
from gatelab.training.preparation import data_identity, prepare

MEASURED_STEPS = 5
MEASURED_TOKENS = 16_384  # at most, in a step


def plan_study(
    plan: StudyPlan, optimum: Optimum = not_searched, identify: Callable[[DataConfig], str] = data_identity
) -> Matrix:
    """Plan a study on the data that it names; `optimum` knows what searches found, `identify` names data.

    Raises StudyError.
    """
    try:
        matrix = build_matrix(plan, identify, optimum)
    except DataError as error:
        raise plan.error(Problem("data", str(error))) from error
    if {claim.metric for claim in plan.study.claims.values()} - set(SUMMARY):
        from gatelab.training.metric_specs import summary_metrics  # loads torch: plans alone do without

        check_claim_metrics(matrix, summary_metrics)
    return matrix


def plan_search(plan: StudyPlan, optimum: Optimum = not_searched) -> Matrix:
    """Plan a study whose learning rates are to be searched, at the given ones.

    `optimum` is for the studies that it continues. Raises StudyError.
    """
    for axis in plan.axes:
        if LEARNING_RATE in axis.paths:
            message = "varies the learning rate, which is to be searched: leave it out"
            raise plan.error(plan.source.problem(("axes", axis.name), message))
    return plan_study(replace(plan, study=plan.study.model_copy(update={"learning_rate": "given"})), optimum)


def given_rate(plan: StudyPlan, variant: Variant) -> float:
    """Return the rate that a study gives: an `Optimum` for whom the rate does not matter."""
    return variant.config.training.optimizer.learning_rate


def searched(folder: RunsFolder) -> Optimum:
    """Look up what finished searches in a runs folder found, of the study's own name and configuration.

    A variant that was not searched at its own token budget takes the optimum at the largest that was.
    """

    def optimum_of(plan: StudyPlan, variant: Variant) -> float | Unavailable:
        study = folder.study(plan.study.name + SEARCH_SUFFIX)
        try:
            found = SearchFindings.read(study.located)
        except DamagedRecord as error:
            return Unavailable(f"{error}; gatelab lr-tolerance writes it anew, and trains nothing again")
        if found is None:
            begun = study.record.exists()
            return Unavailable("its search has not come to its end") if begun else not_searched(plan, variant)
        kind = searched_kind(variant.canonical)
        same = [entry for entry in found.variants if entry.kind == kind]
        if not same:
            return Unavailable("the search of this study was of another configuration or other data: search again")
        exact = [entry for entry in same if entry.tokens == variant.config.training.tokens]
        rate = (exact or sorted(same, key=lambda entry: entry.tokens))[-1].rate
        return Unavailable("its search found only a bound: widen tolerance.rates") if rate is None else rate

    return optimum_of


def searched_or_given(folder: RunsFolder, reasons: dict[str, None]) -> Optimum:
    """Look up the same, and take the given rate where a search found none; `reasons` collects why."""
    found = searched(folder)

    def optimum_of(plan: StudyPlan, variant: Variant) -> float:
        rate = found(plan, variant)
        if isinstance(rate, Unavailable):
            reasons[rate.reason] = None
            return given_rate(plan, variant)
        return rate

    return optimum_of


def prepare_study(plan: StudyPlan, folder: RunsFolder) -> list[Manifest]:
    """Prepare all data that a study trains on; return what they are made of. Raises StudyError, DataError."""
    ids = {variant.config.data: variant.data_id for variant in plan_study(plan, given_rate).variants}
    return [prepare(config, folder.data, data_id).manifest for config, data_id in ids.items()]


def check_data(matrix: Matrix, folder: RunsFolder) -> None:
    """Prepare all data of a matrix, and see that they suffice. Raises DataError."""
    for data, data_id, length in {
        (variant.config.data, variant.data_id, variant.config.training.sequence_length) for variant in matrix.variants
    }:
        prepare(data, folder.data, data_id).require(length)


@dataclass(frozen=True)
class Estimate:
    """How long a study would take on this machine."""

    device: str
    concurrency: int
    reason: str  # why nothing could be measured
    seconds: dict[str, float]  # variant -> of one trial
    total_seconds: float | None  # of all trials that are still to run, `concurrency` at a time
    device_hours: float | None  # of the same, summed
    remaining: int  # trials still to run


def estimate(matrix: Matrix, folder: RunsFolder, concurrency: int | None = None) -> Estimate:
    """Time real training steps of the first variant here, and scale by FLOPs. Raises StudyError over budget.

    The measurement is kept in the runs folder, by device and model.
    """
    import torch  # loaded only where it is needed: plans alone do without

    from gatelab.training.device import choose_device, device_name

    device = choose_device()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    units = torch.cuda.device_count() if device.type == "cuda" else cores
    concurrency = concurrency or max(1, min(units, len(matrix.trials)))
    threads = max(1, cores // concurrency)
    remaining = [trial for trial in matrix.trials if not is_over(folder.trial(trial.id))]
    name = device_name(device) if device.type == "cuda" else f"{device_name(device)}, {threads} of {cores} cores"
    speed = _speed(matrix, folder, device, threads, name)
    seconds = {}
    if not isinstance(speed, Unavailable):
        for variant in matrix.variants:
            training = variant.config.training
            tokens = training.steps * training.tokens_per_step
            forward = variant.config.evaluation.points * variant.config.evaluation.tokens / 3
            seconds[variant.label] = variant.flops_per_token * (tokens + forward) / speed
    shared = {id: fork.step for id, fork in forks(matrix.trials).items()}
    total = None
    if not isinstance(speed, Unavailable):
        own = (1 - shared.get(trial.id, 0) / trial.config.training.steps for trial in remaining)
        total = sum(seconds[trial.variant] * share for trial, share in zip(remaining, own, strict=True))
    hours = matrix.plan.study.budget.hours
    if hours is not None and total is not None and total / 3600 > hours:
        problem = Problem("budget.hours", f"the trials still to run are estimated at {total / 3600:.1f} h", hours)
        raise matrix.plan.error(problem)
    return Estimate(
        device=name,
        concurrency=concurrency,
        reason=speed.reason if isinstance(speed, Unavailable) else "",
        seconds=seconds,
        total_seconds=None if total is None else total / concurrency,
        device_hours=None if total is None else total / 3600,
        remaining=len(remaining),
    )


def _speed(matrix: Matrix, folder: RunsFolder, device: Any, threads: int, name: str) -> float | Unavailable:
    """Return the FLOP/s of one trial, or why they cannot be measured."""
    first = matrix.variants[0]
    available = _memory(device)
    if first.memory > 0.8 * available:
        needed = f"a trial needs about {first.memory / 1e9:.0f} GB"
        return Unavailable(f"{needed}, this device has {available / 1e9:.0f} GB")
    path = folder.root / "speeds.json"
    known = read_json(path) or {}
    training = first.config.training
    key = f"{name}; {first.flops_per_token} FLOPs x {training.batch_size} x {training.sequence_length}"
    speed = known.get(key)
    if not isinstance(speed, float) or not 0 < speed < math.inf:
        speed = _measure(first.config, device, threads) * first.flops_per_token
        with contextlib.suppress(OSError):  # a folder of somebody else: measured anew each time
            write_json(path, {**known, key: speed})
    return speed


def _memory(device: Any) -> float:
    import torch

    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _measure(config: TrialConfig, device: Any, threads: int) -> float:
    """Measure tokens per second of training steps on random tokens, after a warm-up."""
    import torch

    from gatelab.training.train_state import TrainState

    training = config.training
    sequences = min(training.batch_size // training.accumulation, max(1, MEASURED_TOKENS // training.sequence_length))
    whole = training.model_copy(update={"batch_size": sequences, "accumulation": 1})
    vocab = config.model.vocab_size or 2
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        learner = TrainState(config.model_copy(update={"training": whole}), device)
        windows = torch.randint(vocab, (sequences, training.sequence_length + 1), device=device)
        learner.step(0, windows)[0].item()
        started = time.perf_counter()
        for step in range(1, 1 + MEASURED_STEPS):
            loss, _ = learner.step(step, windows)
        loss.item()  # waits for the device
        elapsed = time.perf_counter() - started
    finally:
        torch.set_num_threads(before)
    return MEASURED_STEPS * sequences * training.sequence_length / elapsed
