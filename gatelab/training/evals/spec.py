"""What can be measured of a trained model, beside what training measures: loss at other lengths, retrieval, tasks."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from gatelab.models.config import ModelConfig

ROPES = ("plain", "ntk", "yarn")


@dataclass(frozen=True)
class EvalSpec:
    """One thing to measure of a trained model."""

    kind: Literal["length", "retrieval", "tasks"]
    """length: loss on held-out text; retrieval: a synthetic task of `retrieval_tasks`; tasks: a task of lm-eval."""
    length: int
    """Tokens of a sequence."""
    rope: str = "plain"
    """plain: as trained; ntk: the base raised until the slowest channel turns as far as in training; yarn: YaRN;
    base-NUMBER: another base."""
    amount: int = 64_000
    """Held-out tokens, or examples; of a task of lm-eval at most so many documents, 0: all."""
    task: str = ""
    """Name of the task."""
    folder: str = ""
    """Where lm-eval finds tasks of one's own."""

    @property
    def stem(self) -> str:
        """Begins the names of its metrics."""
        if self.kind == "tasks":
            return "tasks"
        middle = f"{self.length:06d}/{self.rope}"
        return f"length/{middle}" if self.kind == "length" else f"retrieval/{middle}/{self.task}"


def parse_rope(name: str) -> str:
    """Return the canonical name of a way to extend RoPE. Raises ValueError."""
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


def extend_rope(model: ModelConfig, rope: str, trained: int, length: int) -> ModelConfig:
    """Return the model that reads `length` positions with the weights of one that was trained on `trained`.

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
