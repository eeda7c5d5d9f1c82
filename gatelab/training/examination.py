"""What a trained model does beyond its training: at other lengths, under another RoPE, on tasks.

A question names one thing to measure; its answer is a set of metrics with names of their own. No weight changes.
"""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, set_rope
from gatelab.training.checkpoint import load_weights
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.device import choose_device, compute_dtype
from gatelab.training.evaluation import loss_metrics, position_losses, token_losses
from gatelab.training.harness import run_tasks
from gatelab.training.retrieval import Example, make_examples, score

HAYSTACK = 1 << 22  # tokens of the held-out text that synthetic tasks are hidden in, at most
ROPES = ("plain", "ntk", "yarn")


@dataclass(frozen=True)
class Question:
    """One thing to measure of a trained model."""

    kind: Literal["length", "retrieval", "tasks"]
    """length: loss on held-out text; retrieval: a synthetic task of `gatelab.training.retrieval`; tasks: a task of
    lm-eval."""
    length: int
    """Tokens of a sequence."""
    rope: str = "plain"
    """plain: as trained; ntk: the base raised until the slowest channel turns as far as in training; yarn: YaRN;
    base-NUMBER: another base."""
    amount: int = 64_000
    """Held-out tokens, or examples; of a harness's task at most so many, 0: all."""
    task: str = ""
    """Which task."""
    folder: str = ""
    """Where lm-eval finds tasks of one's own."""

    @property
    def stem(self) -> str:
        """Begins the names of its metrics."""
        if self.kind == "tasks":
            return "tasks"
        middle = f"{self.length:06d}/{self.rope}"
        return f"length/{middle}" if self.kind == "length" else f"retrieval/{middle}/{self.task}"


def check_rope(name: str) -> str:
    """The canonical name of a way to stretch RoPE. Raises ValueError."""
    if name in ROPES:
        return name
    match = re.fullmatch(r"base[-=:](.+)", name)
    try:
        base = float(match[1]) if match else math.nan
    except ValueError:
        base = math.nan
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"expected {', '.join(ROPES)} or base=NUMBER (got {name!r})")
    return f"base-{base:.12g}".replace("+", "")  # 1e6, not 1e+06: MLflow has no plus in a name


def stretched(model: ModelConfig, rope: str, trained: int, length: int) -> ModelConfig:
    """The model that reads `length` positions with the weights of one that was trained on `trained`.

    Up to the length of its training, plain, ntk and yarn are the same. ntk raises the base by s^(D/(D-2)) with
    s = length / trained, so that the slowest channel turns as far over `length` as it did over `trained`.
    Raises ValueError if YaRN is asked for on a model that has it already.
    """
    factor = max(1.0, length / trained)
    if rope.startswith("base-"):
        return model.model_copy(update={"rope_base": float(rope.removeprefix("base-"))})
    if rope == "plain" or factor == 1:
        return model
    if rope == "ntk":
        exponent = model.head_dim / max(model.head_dim - 2, 1)
        return model.model_copy(update={"rope_base": model.rope_base * factor**exponent})
    if model.yarn_length is not None:
        raise ValueError(f"the model was trained with YaRN (yarn_factor {model.yarn_factor:g}): ask for plain or ntk")
    return model.model_copy(update={"yarn_factor": factor, "yarn_length": trained})


class Examinee:
    """A trial's model with its final weights, on a device. Raises FileNotFoundError without them."""

    def __init__(self, trial: TrialConfig, checkpoints: Path, dataset: Dataset, device: str = "auto") -> None:
        self.trial, self.dataset, self.device = trial, dataset, choose_device(device)
        self.dtype = compute_dtype(trial.training, self.device)
        self.model = Decoder(trial.model)
        self.step = load_weights(checkpoints, self.model, trial.training.steps)
        self.model.to(self.device).eval()

    def answer(self, question: Question) -> dict[str, float]:
        """The metrics of a question, by name. Raises ValueError or DataError if it cannot be answered."""
        training = self.trial.training
        set_rope(self.model, stretched(self.trial.model, question.rope, training.sequence_length, question.length))
        in_training = training.batch_size // training.accumulation * training.sequence_length
        batch = max(1, in_training // question.length)  # as many tokens at a time as training had
        answers = {"length": self._length, "retrieval": self._retrieval, "tasks": self._tasks}
        found = answers[question.kind](question, batch)
        return {f"{question.stem}/{name}": value for name, value in found.items()}

    def _length(self, question: Question, batch: int) -> dict[str, float]:
        held_out = self.dataset.held_out(question.amount, question.length)
        losses = token_losses(self.model, held_out, batch, self.device, self.dtype)
        return {**loss_metrics(losses, held_out, self.dataset.bytes_per_token), **position_losses(losses)}

    def _retrieval(self, question: Question, batch: int) -> dict[str, float]:
        return asdict(score(self.model, _examples(question, self.dataset), self.device, self.dtype, batch))

    def _tasks(self, question: Question, batch: int) -> dict[str, float]:
        return run_tasks(
            [question.task],
            self.model,
            self.dataset.tokenizer,
            self.device,
            self.dtype,
            max_length=question.length,
            batch_size=batch,
            limit=question.amount or None,
            include=Path(question.folder) if question.folder else None,
            seed=0,
        )


def refusal(question: Question, trial: TrialConfig, dataset: Dataset) -> str:
    """Why a question cannot be asked of a trial on its data, or ''. Tasks of lm-eval are not looked at."""
    try:
        stretched(trial.model, question.rope, trial.training.sequence_length, question.length)
        if question.kind == "length":
            dataset.held_out(1, question.length)
        elif question.kind == "retrieval":
            _examples(question, dataset)
    except ValueError as error:
        return str(error)
    return ""


def _examples(question: Question, dataset: Dataset) -> list[Example]:
    haystack = dataset.validation.window(0, min(len(dataset.validation), HAYSTACK))
    seed = 0  # the same examples for every trial: differences are paired
    return make_examples(question.task, question.length, question.amount, dataset.tokenizer, haystack, seed)
