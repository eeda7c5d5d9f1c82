"""What a trial can be judged by is what it measures."""

import fnmatch
from collections.abc import Callable
from pathlib import Path

import pytest

from gatelab.training.config import TrialConfig
from gatelab.training.evals.retrieval import Scores
from gatelab.training.evals.spec import EvalSpec
from gatelab.training.loop import train
from gatelab.training.metric_specs import summary_metrics

Tiny = Callable[..., TrialConfig]


@pytest.mark.parametrize(("gate", "diagnostic_tokens"), [("none", 64), ("sdpa", 64), ("key+value", 64), ("sdpa", 0)])
def test_the_metrics_of_an_outcome_are_those_that_are_announced(
    gate: str, diagnostic_tokens: int, tiny: Tiny, tmp_path: Path
) -> None:
    """A claim is refused if no trial can have its metric: none that there is may be refused, nor any other be taken."""
    evaluation = {"tokens": 256, "points": 1, "diagnostic_tokens": diagnostic_tokens}
    trial = tiny(model={"gate": {"position": gate}}, training={"tokens": 3 * 64}, evaluation=evaluation)
    measured = set(train(trial, None, tmp_path, "cpu").metrics)
    announced = set(summary_metrics(trial))
    for name in measured:
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in announced), name
    of_a_lossy_tokenizer = {"validation/lost_bytes"}
    assert {name for name in announced if "*" not in name} - of_a_lossy_tokenizer <= measured


def test_the_metrics_of_evaluations_are_announced(tiny: Tiny) -> None:
    """A claim may be about other lengths, retrieval and tasks, which are asked about after training."""
    announced = list(summary_metrics(tiny()))
    retrieval = EvalSpec("retrieval", 256, task="copy")
    names = [f"{EvalSpec('length', 256, 'yarn').stem}/{name}" for name in ("loss", "bits_per_byte", "loss/code")]
    names += [f"{retrieval.stem}/{name}" for name in Scores.__annotations__]
    for name in (*names, "tasks/arc_easy/acc"):
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in announced), name
    for name in ("length/256/plain/loss", "train/loss", "gradient_norm", "validation/los"):
        assert not any(fnmatch.fnmatchcase(name, pattern) for pattern in announced), name
