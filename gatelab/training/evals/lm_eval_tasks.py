"""Downstream tasks of EleutherAI's lm-evaluation-harness, run on a model in memory. Needs the extra `evaluation`.

The harness owns prompts, metrics and data. It is imported inside functions, so that all else works without it.
"""

import contextlib
import difflib
import functools
import io
import logging
import numbers
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gatelab.metrics import BITS
from gatelab.models.decoder import Decoder
from gatelab.training.evals.token_scorer import TokenScorer
from gatelab.training.tokenizer import Tokenizer

SPECS = {"*bits_per_byte*": BITS}
"""The metrics of tasks that are known here; their names are the harness's."""


def run_tasks(
    names: Sequence[str],
    model: Decoder,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: torch.dtype,
    *,
    max_length: int,
    batch_size: int,
    limit: int | None = None,
    include: Path | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluate a model on tasks, groups or tags of the harness, or on those of YAML files in the folder `include`.

    Results are named `TASK/METRIC`, or `TASK/METRIC:FILTER` where answers pass a named filter; `TASK/samples` is how
    many documents were seen (`limit` at most). Few-shot examples are as many as the task says, drawn by `seed`.
    Global random states and the model's mode are left as they were.

    Raises ValueError if the harness is missing, a task is unknown, cannot be loaded (its data must be at hand or
    downloadable) or samples.
    """
    _require_harness()
    from lm_eval.evaluator import simple_evaluate

    from gatelab.training.evals.lm_eval_model import LmEvalModel

    training = model.training
    with _quiet(), _random_states_kept(device):
        manager, tasks = _load_tasks(names, include)
        adapter = LmEvalModel(TokenScorer(model, tokenizer, device, dtype, max_length, batch_size))
        model.eval()
        try:
            results = simple_evaluate(
                adapter,
                tasks=tasks,
                task_manager=manager,  # it would index all files again
                limit=limit,
                bootstrap_iters=0,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        finally:
            model.train(training)
    if adapter.cut:
        warnings.warn(
            f"{adapter.cut} requests of {', '.join(names)} were longer than {max_length} tokens: "
            "their contexts lost their beginnings",
            stacklevel=2,
        )
    cut = {f"{names[0]}/cut": float(adapter.cut)} if adapter.cut and len(names) == 1 else {}
    return {**_flat(results["results"]), **cut}


def check_tasks(names: Sequence[str], include: Path | None = None) -> None:
    """Raise the ValueError that `run_tasks` would raise for these tasks before it evaluates anything."""
    _require_harness()
    with _quiet():
        _load_tasks(names, include)


def _require_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ValueError(f"evaluation on tasks needs: pip install 'gatelab[evaluation]' ({error})") from error


def _load_tasks(names: Sequence[str], include: Path | None) -> tuple[Any, list[Any]]:
    """Return the task manager, and tasks and groups with their data, before any is evaluated.

    Raises ValueError if one is unknown or cannot be had.
    """
    from lm_eval.tasks import TaskManager

    from gatelab.training.evals.lm_eval_model import greedy_settings

    if include is not None and not include.is_dir():
        raise ValueError(f"{str(include)!r} is no folder of task files")
    manager = TaskManager(include_path=include, include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=include) if include else _harness_manager()
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists those that there are"
            raise ValueError(f"unknown task {name!r}: {hint}")
    tasks: list[Any] = []
    for name in names:
        try:
            loaded = manager.load([name])
            for task in loaded["tasks"].values():
                if task.OUTPUT_TYPE == "generate_until":
                    greedy_settings(task.config.generation_kwargs or {})
        except Exception as error:  # tasks run code of their own, and the ways in which a download fails are many
            first = str(error).strip().partition("\n")[0]
            raise ValueError(f"task {name!r} cannot be loaded: {type(error).__name__}: {first}") from error
        tasks += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    return manager, tasks


@functools.cache
def _harness_manager() -> Any:
    """Return the manager of the harness's own tasks, whose thousands of files take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the harness's results as `TASK/METRIC[:FILTER]`, without those that are no numbers."""
    flat = {}
    for task, entries in results.items():
        for name, value in entries.items():
            metric, comma, filter_name = name.partition(",")
            if comma and isinstance(value, numbers.Real):
                flat[f"{task}/{metric}" + ("" if filter_name == "none" else f":{filter_name}")] = float(value)
        if "sample_len" in entries:
            flat[f"{task}/samples"] = float(entries["sample_len"])
    return flat


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness's remarks and the progress bars of all that it calls (some cannot be turned off)."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """Restore every global random state, which the harness seeds, for a caller in the middle of something."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
