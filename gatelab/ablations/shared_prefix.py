"""Trials that are the same up to a step: several token budgets share the trunk of the longest.

Under a warm-up in steps and the schedule wsd, a shorter trial is the longer one until its own decay begins: same
weights, same batches, same learning rates. It may fork from the longer one there instead of training from the start,
and its result is the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gatelab.ablations.identity import canonical_json
from gatelab.ablations.matrix import Trial
from gatelab.training.config import TrainingConfig


@dataclass(frozen=True)
class Fork:
    """Where a trial leaves a longer one."""

    trunk: str
    """Id of the longer trial, which keeps a fork checkpoint there."""
    step: int
    """Optimiser steps that the two have in common, a multiple of `log_every`."""


def forks(trials: Iterable[Trial]) -> dict[str, Fork]:
    """Map each trial that is a prefix of a longer one, by id, to the step at which it leaves the longest."""
    ladders: dict[str, list[Trial]] = {}
    for trial in trials:
        training = trial.config.training
        if training.schedule.kind == "wsd" and training.warmup_steps <= training.decay_start:
            config = trial.config.model_dump(mode="json")
            del config["training"]["tokens"]
            key = canonical_json([config, training.warmup_steps, trial.parent])
            ladders.setdefault(key, []).append(trial)
    found = {}
    for ladder in ladders.values():
        trunk = max(ladder, key=lambda trial: trial.config.training.steps)
        for trial in ladder:
            step = shared_steps(trial.config.training)
            if trial.config.training.steps < trunk.config.training.steps and step:
                found[trial.id] = Fork(trunk.id, step)
    return found


def shared_steps(training: TrainingConfig) -> int:
    """Count the steps that wsd training has in common with a longer one, down to a multiple of `log_every`.

    Trials look at their metrics there, whatever their length.
    """
    return training.decay_start // training.log_every * training.log_every
