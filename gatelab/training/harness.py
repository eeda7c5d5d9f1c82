"""Downstream tasks of EleutherAI's lm-evaluation-harness, run on a model in memory. Needs the extra `evaluation`.

The harness owns prompts, metrics and data; here is what it asks of a model: log-likelihoods and greedy continuations.
It is imported inside functions, so that all else works without it.
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
from torch import Tensor

from gatelab.models.decoder import Decoder
from gatelab.training.device import precision_context
from gatelab.training.tokenizer import Tokenizer

PAD_MULTIPLE = 64  # lengths are rounded up to it: a model keeps rotary tables for every length that it has seen
Window = tuple[list[int], list[int]]
"""(inputs, predicted): the tokens a model reads, and those that it should predict after the last of them."""


class Scorer:
    """Scores and continues tokens with a model, in batches of equal-length rows; rows are padded on the right.

    A causal model never sees the padding, so the batch size changes results by rounding only.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        device: torch.device,
        dtype: torch.dtype,
        max_length: int,
        batch_size: int,
    ) -> None:
        self.model, self.tokenizer, self.device, self.dtype = model, tokenizer, device, dtype
        self.max_length, self.batch_size = max_length, batch_size

    @torch.no_grad()
    def score(self, windows: Sequence[Window]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether each token was the likeliest) of what each window predicts."""
        scores = [(0.0, True)] * len(windows)
        for batch in self._batches([inputs for inputs, _ in windows]):
            logits = self._logits([windows[index][0] for index in batch])
            for index, row in zip(batch, logits, strict=True):
                inputs, predicted = windows[index]
                last = row[len(inputs) - len(predicted) : len(inputs)].float()
                wanted = torch.tensor(predicted, device=self.device)
                chosen = last.log_softmax(-1).gather(-1, wanted.unsqueeze(-1))
                scores[index] = (chosen.double().sum().item(), bool(last.argmax(-1).equal(wanted)))
        return scores

    @torch.no_grad()
    def continuations(
        self, prompts: Sequence[list[int]], stops: Sequence[list[str]], limits: Sequence[int]
    ) -> list[str]:
        """The greedy continuation of each prompt, as text, up to its first stop string, separator or limit of tokens.

        There is no cache of keys and values: each token is a forward pass over the last `max_length` tokens before it.
        """
        texts = [""] * len(prompts)
        for batch in self._batches(prompts):
            growing = {index: list(prompts[index]) for index in batch if limits[index] > 0}
            while growing:
                rows = [tokens[-self.max_length :] for tokens in growing.values()]
                logits = self._logits(rows)
                ends = torch.tensor([len(row) - 1 for row in rows], device=self.device)
                likeliest = logits[torch.arange(len(rows), device=self.device), ends].argmax(-1).tolist()
                for index, token in zip(list(growing), likeliest, strict=True):
                    growing[index].append(token)
                    generated = growing[index][len(prompts[index]) :]
                    text = self.tokenizer.text(generated)
                    found = [text.index(stop) for stop in stops[index] if stop in text]
                    if found or token == self.tokenizer.separator or len(generated) == limits[index]:
                        texts[index] = text[: min(found)] if found else text
                        del growing[index]
        return texts

    def _batches(self, rows: Sequence[list[int]]) -> Iterator[list[int]]:
        """Indices of rows of similar length, the longest first: what does not fit into memory fails at once."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _logits(self, rows: Sequence[list[int]]) -> Tensor:
        """Logits `[B, T, vocab]` of rows of at most `max_length` tokens; what follows a row's end means nothing."""
        longest = max(len(row) for row in rows)
        length = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self.max_length)
        tokens = torch.zeros(len(rows), length, dtype=torch.int64)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = torch.tensor(row)
        with precision_context(self.dtype, self.device):
            logits: Tensor = self.model(tokens.to(self.device))
        return logits


def harness_model(
    model: Decoder,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: torch.dtype,
    *,
    max_length: int,
    batch_size: int,
) -> Any:
    """What the harness evaluates: an `lm_eval.api.model.LM` around a model in evaluation mode.

    A context that does not fit into `max_length` tokens with its continuation loses its beginning; `cut` counts these
    requests. A continuation that is longer by itself is scored in windows, like a text whose perplexity is asked for:
    every token once. Generation is greedy; a request to sample raises ValueError.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows

    scorer = Scorer(model, tokenizer, device, dtype, max_length, batch_size)

    class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness ships no types
        """A decoder that answers the harness's requests."""

        def __init__(self) -> None:
            super().__init__()
            self.cut = 0

        @property
        def eot_token_id(self) -> int:
            """What stands before a text without context."""
            return tokenizer.separator

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """Tokens of a text; none are ever added."""
            tokens: list[int] = tokenizer.tokens(string).tolist()
            return tokens

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            """(log-likelihood in nats, whether greedy) of each continuation after its context."""
            scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return scores

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True
        ) -> list[tuple[float, bool]]:
            self.cut += sum(len(context) + len(rest) - 1 > max_length for _, context, rest in requests)
            return self._score([(context, rest) for _, context, rest in requests])

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            """Log-likelihood in nats of each whole text, its last window full of context."""
            return [total for total, _ in self._score([([], self.tok_encode(request.args[0])) for request in requests])]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            """The greedy continuation of each context."""
            prompts = [self.tok_encode(request.args[0]) or [tokenizer.separator] for request in requests]
            settings = [_greedy_settings(request.args[1]) for request in requests]
            self.cut += sum(len(prompt) > max_length for prompt in prompts)
            return scorer.continuations(prompts, [stops for stops, _ in settings], [limit for _, limit in settings])

        def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
            """Scores of (context, continuation) pairs, each the sum over its windows."""
            windows: list[Window] = []
            owners: list[int] = []
            for owner, (known, continuation) in enumerate(pairs):
                context = known or [tokenizer.separator]
                if 0 < len(continuation) <= max_length:
                    parts = [((context + continuation)[:-1][-max_length:], continuation)]
                else:
                    parts = list(get_rolling_token_windows(continuation, context[-1], max_length, 1))
                windows += parts
                owners += [owner] * len(parts)
            totals, greedy = [0.0] * len(pairs), [True] * len(pairs)
            for owner, (total, likeliest) in zip(owners, scorer.score(windows), strict=True):
                totals[owner] += total
                greedy[owner] &= likeliest
            return list(zip(totals, greedy, strict=True))

    return HarnessModel()


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

    training = model.training
    with _quiet(), _random_states_kept(device):
        manager, tasks = _load_tasks(names, include)
        harness = harness_model(model, tokenizer, device, dtype, max_length=max_length, batch_size=batch_size)
        model.eval()
        try:
            results = simple_evaluate(
                harness,
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
    if harness.cut:
        warnings.warn(
            f"{harness.cut} requests of {', '.join(names)} were longer than {max_length} tokens: "
            "their contexts lost their beginnings",
            stacklevel=2,
        )
    cut = {f"{names[0]}/cut": float(harness.cut)} if harness.cut and len(names) == 1 else {}
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
    """The task manager, and tasks and groups with their data, before any is evaluated.

    Raises ValueError if one is unknown or cannot be had.
    """
    from lm_eval.tasks import TaskManager

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
                    _greedy_settings(task.config.generation_kwargs or {})
        except Exception as error:  # tasks run code of their own, and the ways in which a download fails are many
            first = str(error).strip().partition("\n")[0]
            raise ValueError(f"task {name!r} cannot be loaded: {type(error).__name__}: {first}") from error
        tasks += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    return manager, tasks


@functools.cache
def _harness_manager() -> Any:
    """The manager of the harness's own tasks: it takes seconds to read their thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _greedy_settings(arguments: Mapping[str, Any]) -> tuple[list[str], int]:
    """(stop strings, limit of tokens) of a request to generate. Raises ValueError if it is not greedy."""
    from lm_eval.models.utils import normalize_gen_kwargs

    settings = normalize_gen_kwargs(dict(arguments))
    sampled = settings["do_sample"] and arguments.get("temperature", 1.0) > 0
    if sampled or arguments.get("num_beams", 1) > 1:
        raise ValueError(f"generation is greedy here (do_sample: false, one beam); the task asks for {dict(arguments)}")
    return [stop for stop in settings["until"] if stop], settings["max_gen_toks"]


def _flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The harness's results as `TASK/METRIC[:FILTER]`; what is not a number is left out."""
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
    """Without the harness's remarks and the progress bars of all that it calls (some cannot be turned off)."""
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
    """The harness seeds every global generator; whoever evaluates in the middle of something goes on with theirs."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
