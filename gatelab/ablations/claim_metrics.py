"""Whether a claim can be judged: a metric that no trial can have would be registered, and trained for, in vain."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable

from gatelab.ablations.matrix import Matrix
from gatelab.training.config import TrialConfig


def check_claim_metrics(matrix: Matrix, measured: Callable[[TrialConfig], Iterable[str]]) -> None:
    """Refuse claims about metrics that none of a matrix's trials can have. Raises StudyError.

    `measured` yields the metrics that can sum a trial up, as patterns of `fnmatch`.
    """
    patterns = dict.fromkeys(pattern for variant in matrix.variants for pattern in measured(variant.config))
    source, problems = matrix.plan.source, []
    for name, claim in matrix.plan.study.claims.items():
        if not any(fnmatch.fnmatchcase(claim.metric, pattern) for pattern in patterns):
            message = f"no trial of this study can have this metric as its result; {_hint(claim.metric, patterns)}"
            problems.append(source.problem(("claims", name, "metric"), message, claim.metric))
    if problems:
        raise matrix.plan.error(*problems)


def _hint(metric: str, patterns: Iterable[str]) -> str:
    names = [pattern.replace("[0-9]" * 6, "000256") for pattern in patterns if not pattern.endswith("*")]
    near = difflib.get_close_matches(metric, names, n=1) or [name for name in names if name.endswith(f"/{metric}")]
    return f"did you mean {near[0]}?" if near else f"some are {', '.join(COMMON)}"


COMMON = ("validation/loss", "validation/bits_per_byte", "train/final_loss", "train/mean_tokens_per_second")
