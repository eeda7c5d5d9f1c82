"""Which trained models a command is about, and how they are loaded."""

from typing import TYPE_CHECKING

from gatelab.cli import arguments as args
from gatelab.cli.console import fail
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import TrialRecord

if TYPE_CHECKING:
    from gatelab.orchestrator.evaluation import EvalJob
    from gatelab.training.evals.trained_model import TrainedModel


def trained(folder: RunsFolder, study: str, variants: list[str]) -> "list[EvalJob]":
    """Return the finished trials of a study, or of some of its variants. Exit if there are none."""
    from gatelab.orchestrator.evaluation import eval_jobs

    args.check_variants(folder, study, variants)

    def wanted(trial: TrialRecord) -> bool:
        return not variants or trial.variant in variants

    found = eval_jobs(folder, study, wanted)
    if not found:
        fail(f"no trial of study {study!r} has finished yet")
    return found


def of_one_seed(jobs: "list[EvalJob]", seed: int | None) -> "list[EvalJob]":
    """Return the trials of a seed, by default the first. Exit if there are none."""
    seeds = sorted({job.config.seed for job in jobs})
    wanted = seeds[0] if seed is None else seed
    if wanted not in seeds:
        fail(f"--seed {wanted}: finished are {', '.join(map(str, seeds))}")
    return [job for job in jobs if job.config.seed == wanted]


def load(folder: RunsFolder, job: "EvalJob") -> "TrainedModel":
    """Load a trained model. Exit if its weights or data are gone, or are not its own."""
    from gatelab.orchestrator.evaluation import load_model

    try:
        return load_model(folder, job)
    except (FileNotFoundError, ValueError) as error:  # deleted to save space, or of another model
        fail(f"{job.name}: {error}", error)
