"""Claims that a study made before it ran, and what its results say of them.

A claim is one-sided: that the metric of some variants is at least a margin lower (or higher) than their baseline's, or
that it differs by less than the margin. It is supported, refuted, or the difference is shown to be within the margin
(equivalent), each by a test at the claim's alpha; or it stays undecided; or its seeds allow no test (not evaluable).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.analysis import tidy, to_jsonable
from gatelab.results.analyses.claim_tests import TESTS, judge
from gatelab.results.analyses.comparison import UNFINISHED, unknown_metric
from gatelab.results.analyses.contrasts import Contrast, contrasts
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.statistics.paired import NO_INTERVAL, Interval
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.preregistration import Registration, read_register
from gatelab.results.store.records import ClaimRecord, StudyRecord
from gatelab.results.store.runs import metrics_of
from gatelab.status import Status


@dataclass(frozen=True)
class ClaimResult:
    """A claim and its verdict."""

    claim: str
    metric: str
    variant: str
    """The variant of which it is, or of several the one that supports it least."""
    variants: int
    statement: str
    """The claim in symbols."""
    test: str
    alpha: float
    delta: Interval
    """Its difference to the baseline, with the interval at 1 - 2 alpha that goes with one-sided tests at alpha."""
    p: float
    """p of the claim's test for it: below alpha it is supported."""
    verdict: Verdict
    reason: str
    """The reason why it is not evaluable, or ''."""
    registered: str
    """When, and what was known by then."""


@dataclass(frozen=True)
class Claims:
    """The claims of a study."""

    study: str
    study_hash: str
    results: tuple[ClaimResult, ...]
    notes: tuple[str, ...]

    def frame(self) -> pa.Table:
        """Return a row for each claim."""
        return tidy(map(_claim_record, self.results), CLAIMS)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values. None: no such number."""
        return {**to_jsonable(self)}


CLAIMS = pa.schema(
    [
        *((name, pa.utf8()) for name in ("claim", "metric", "variant")),
        ("variants", pa.int64()),
        *((name, pa.utf8()) for name in ("statement", "test")),
        *((name, pa.float64()) for name in ("alpha", "p")),
        *((name, pa.utf8()) for name in ("verdict", "reason", "registered")),
        *((name, pa.float64()) for name in ("delta", "delta_low", "delta_high")),
        ("pairs", pa.int64()),
    ]
)
"""Columns of the frame of claims."""


def _claim_record(result: ClaimResult) -> dict[str, Any]:
    delta = result.delta
    numbers = {"delta": delta.mean, "delta_low": delta.low, "delta_high": delta.high, "pairs": delta.n}
    return {**vars(result), **numbers}


def claims_from_record(folder: RunsFolder, record: StudyRecord, runs: pa.Table) -> Claims:
    """Judge the claims of a study's record by its `runs`. Raises AnalysisUnavailable, RegisterChanged."""
    path = folder.study(record.name).claims
    if not record.claims and not path.exists():
        raise AnalysisUnavailable(f"{record.name} makes no claims: state them in its file, under claims")
    return claims(runs, record.claims, read_register(path))


def claims(runs: pa.Table, made: Sequence[ClaimRecord], register: Sequence[Registration]) -> Claims:
    """Judge the claims of a study by its `runs`; the register says when they were made."""
    first = runs.slice(0, 1).to_pylist()[0]
    results = tuple(_result(runs, claim, register) for claim in made)
    return Claims(first["study"], first["study_hash"], results, tuple(_notes(register)))


def _result(runs: pa.Table, claim: ClaimRecord, register: Sequence[Registration]) -> ClaimResult:
    known = metrics_of(runs)
    found = contrasts(runs, claim.metric) if claim.metric in known else {}
    trials = runs.select(["variant", "baseline", "seed", "outcome"]).to_pylist()
    judged = [_judged(variant, found.get(variant), trials, claim) for variant in claim.variants]
    # It is claimed of each: the one that supports it least decides.
    worst = max(judged, key=lambda each: (SEVERITY.index(each.verdict), each.p), default=None)
    if claim.metric not in known:
        worst = Judged("–", NO_INTERVAL, math.nan, Verdict.NOT_EVALUABLE, unknown_metric(claim.metric, known))
    elif worst is None:
        reason = "no variant with a baseline is one that it names"
        worst = Judged("–", NO_INTERVAL, math.nan, Verdict.NOT_EVALUABLE, reason)
    return ClaimResult(
        claim=claim.name,
        metric=claim.metric,
        variant=worst.variant,
        variants=len(judged),
        statement=statement(claim),
        test=claim.test,
        alpha=claim.alpha,
        delta=worst.delta,
        p=worst.p,
        verdict=worst.verdict,
        reason=worst.reason,
        registered=_since(claim, register),
    )


SEVERITY = (Verdict.SUPPORTED, Verdict.EQUIVALENT, Verdict.UNDECIDED, Verdict.NOT_EVALUABLE, Verdict.REFUTED)
"""Verdicts of the variants of one claim: the last of them is the claim's."""


@dataclass(frozen=True)
class Judged:
    """One of the variants in a claim."""

    variant: str
    delta: Interval
    p: float
    verdict: Verdict
    reason: str = ""


def _judged(variant: str, contrast: Contrast | None, trials: Sequence[Mapping[str, Any]], claim: ClaimRecord) -> Judged:
    if contrast is None:
        return Judged(variant, NO_INTERVAL, math.nan, Verdict.NOT_EVALUABLE, "it has no baseline")
    test = TESTS[claim.test](contrast)
    needed = {variant, contrast.baseline}
    if test.needs_family:  # which is all that are compared with the baseline
        needed |= {trial["variant"] for trial in trials if trial["baseline"] == contrast.baseline}
    missing = [trial for trial in trials if trial["variant"] in needed and trial["outcome"] != "finished"]
    delta = contrast.difference.interval(2 * claim.alpha)
    obstacle = contrast.obstacle or _missing(missing) or test.obstacle(claim.alpha, len(needed))
    if obstacle:
        return Judged(variant, delta, math.nan, Verdict.NOT_EVALUABLE, obstacle)
    # A claim of several variants is supported by all of them, but any of them may refute it: that needs an allowance.
    verdict, p = judge(test, claim.direction, claim.margin, claim.alpha, allowance=len(claim.variants))
    return Judged(variant, delta, p, verdict)


def _missing(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return which trials a claim still needs, or '': a study is judged whole."""
    counts = {
        "not finished": sum(trial["outcome"] in UNFINISHED for trial in trials),
        "failed": sum(trial["outcome"] == Status.FAILED for trial in trials),
        "diverged": sum(trial["outcome"] == Status.DIVERGED for trial in trials),
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    return f"of the trials that it needs: {', '.join(parts)}" if parts else ""


def statement(claim: ClaimRecord) -> str:
    """Return what is claimed, in symbols."""
    margin = claim.margin
    if claim.direction == "equivalent":
        return f"|Δ| < {margin:g}"
    if claim.direction == "lower":
        return f"Δ < {-margin:g}" if margin else "Δ < 0"
    return f"Δ > {margin:g}"


def _since(claim: ClaimRecord, register: Sequence[Registration]) -> str:
    """Return when a claim was made as it is now, and how much was known by then."""
    entry = next((entry for entry in reversed(register) if claim.name in entry.changes), None)
    if entry is None:
        return "not registered"
    word = "registered" if entry.changes[claim.name] == "new" else "amended"
    return f"{word} {entry.at[:10]}, {entry.state_of_evidence}"


def _notes(register: Sequence[Registration]) -> Iterator[str]:
    for entry in register[1:]:
        changes = "; ".join(f"{name}: {change}" for name, change in entry.changes.items())
        yield f"Amended {entry.at[:16].replace('T', ' ')} UTC, {entry.state_of_evidence}: {changes}."


def stated_margin(record: StudyRecord, metric: str) -> float | None:
    """Return the margin within which a study's record claims that some variants do not differ in a metric.

    The smallest of several; None where it claims no such thing.
    """
    margins = (c.margin for c in record.claims if (c.metric, c.direction) == (metric, "equivalent"))
    return min(margins, default=None)
