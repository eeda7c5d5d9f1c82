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

from gatelab.results.analyses.comparison import UNFINISHED, Contrast, contrasts, unknown_metric
from gatelab.results.statistics import paired
from gatelab.results.statistics.paired import Alternative, Interval
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.preregistration import Registered, read_register
from gatelab.results.store.records import ClaimRecord, StudyRecord
from gatelab.results.store.runs import metrics_of

SUPPORTED, REFUTED, EQUIVALENT = "supported", "refuted", "equivalent"


UNDECIDED, NOT_EVALUABLE = "undecided", "not evaluable"


class NoClaims(ValueError):
    """A study that claims nothing, and never did."""


@dataclass(frozen=True)
class ClaimResult:
    """A claim and what became of it."""

    claim: str
    metric: str
    variant: str
    """The variant of which it is, or of several the one that supports it least."""
    variants: int
    statement: str
    """What is claimed, in symbols."""
    test: str
    alpha: float
    delta: Interval
    """Its difference to the baseline, with the interval at 1 - 2 alpha that goes with one-sided tests at alpha."""
    p: float
    """p of the claim's test for it: below alpha it is supported."""
    verdict: str
    reason: str
    """Why it is not evaluable, or ''."""
    registered: str
    """When, and what was known by then."""


@dataclass(frozen=True)
class Claims:
    """The claims of a study."""

    study: str
    study_hash: str
    results: tuple[ClaimResult, ...]
    notes: tuple[str, ...]


def claims_of_record(folder: RunsFolder, record: StudyRecord, runs: pa.Table) -> Claims:
    """What became of the claims of a study's record, by its `runs`. Raises NoClaims, RegisterChanged."""
    path = folder.study(record.name).claims
    if not record.claims and not path.exists():
        raise NoClaims(f"{record.name} makes no claims: say them in its file, under claims")
    return judge(runs, record.claims, read_register(path))


def judge(runs: pa.Table, claims: Sequence[ClaimRecord], register: Sequence[Registered]) -> Claims:
    """Judge claims of a study by its `runs`; the register says when they were made."""
    first = runs.slice(0, 1).to_pylist()[0]
    results = tuple(_judge(runs, claim, register) for claim in claims)
    return Claims(first["study"], first["study_hash"], results, tuple(_notes(register)))


def _judge(runs: pa.Table, claim: ClaimRecord, register: Sequence[Registered]) -> ClaimResult:
    known = metrics_of(runs)
    found = contrasts(runs, claim.metric) if claim.metric in known else {}
    trials = runs.select(["variant", "baseline", "seed", "outcome"]).to_pylist()
    verdicts = [_of_variant(variant, found.get(variant), trials, claim) for variant in claim.variants]
    common: dict[str, Any] = {
        "claim": claim.name,
        "metric": claim.metric,
        "variants": len(verdicts),
        "statement": statement(claim),
        "test": claim.test,
        "alpha": claim.alpha,
        "registered": _since(claim, register),
    }
    if claim.metric not in known or not verdicts:
        reason = "no variant with a baseline is one that it names"
        if claim.metric not in known:
            reason = unknown_metric(claim.metric, known)
        return ClaimResult(**common, variant="–", delta=paired.NO_INTERVAL, p=math.nan, **_cannot(reason))
    # It is claimed of each: the one that supports it least decides.
    worst = max(verdicts, key=lambda verdict: (_SEVERITY.index(verdict["verdict"]), verdict["p"]))
    return ClaimResult(**common, **worst)


_SEVERITY = (SUPPORTED, EQUIVALENT, UNDECIDED, NOT_EVALUABLE, REFUTED)


def _cannot(reason: str) -> dict[str, Any]:
    return {"verdict": NOT_EVALUABLE, "reason": reason}


def _of_variant(
    variant: str, contrast: Contrast | None, trials: Sequence[Mapping[str, Any]], claim: ClaimRecord
) -> dict[str, Any]:
    """The verdict on one of the variants of which something is claimed."""
    if contrast is None:
        return {"variant": variant, "delta": paired.NO_INTERVAL, "p": math.nan, **_cannot("it has no baseline")}
    alpha, margin = claim.alpha, claim.margin
    shown = {"variant": variant, "delta": contrast.difference.interval(2 * alpha)}
    needed = {variant, contrast.baseline}
    if claim.test == "dunnett":  # which is of all that are compared with the baseline
        needed |= {trial["variant"] for trial in trials if trial["baseline"] == contrast.baseline}
    missing = [trial for trial in trials if trial["variant"] in needed and trial["outcome"] != "finished"]
    obstacle = contrast.obstacle or _missing(missing)
    if not obstacle and claim.test == "sign-flip":
        smallest = paired.smallest_sign_flip_p(len(contrast.pairs), "less")
        if smallest > alpha:
            obstacle = f"{len(contrast.pairs)} pairs: a sign-flip test cannot give a p below {smallest:.3g}"
    if not obstacle and claim.test == "dunnett" and (not contrast.noise or len(contrast.noise.variants) < len(needed)):
        obstacle = "Dunnett's test needs two seeds that all variants finished"
    if obstacle:
        return {**shown, "p": math.nan, **_cannot(obstacle)}

    def p(null: float, alternative: Alternative) -> float:
        """Of the hypothesis that the difference is `null`, against one that is less or greater."""
        if claim.test == "sign-flip":
            return paired.sign_flip_p(list(contrast.pairs.values()), null, alternative)
        if claim.test == "dunnett":
            return contrast.dunnett_p(null, alternative)
        return contrast.difference.p(null, alternative)

    within = max(p(-margin, "greater"), p(margin, "less")) if margin else 1.0
    if claim.direction == "equivalent":
        support, against = within, 2 * min(p(-margin, "less"), p(margin, "greater"))
    elif claim.direction == "lower":
        support, against = p(-margin, "less"), p(-margin, "greater")
    else:
        support, against = p(margin, "greater"), p(margin, "less")
    verdict = UNDECIDED
    # A claim of several variants is supported by all of them, but any of them may refute it: that needs an allowance.
    against *= len(claim.variants)
    for word, evidence in ((SUPPORTED, support), (EQUIVALENT, within), (REFUTED, against)):
        if evidence <= alpha:
            verdict = word
            break
    return {**shown, "p": support, "verdict": verdict, "reason": ""}


def _missing(trials: Sequence[Mapping[str, Any]]) -> str:
    """What keeps a claim from being judged on what there is: a study is judged whole."""
    counts = {
        "not finished": sum(trial["outcome"] in UNFINISHED for trial in trials),
        "failed": sum(trial["outcome"] == "failed" for trial in trials),
        "diverged": sum(trial["outcome"] == "diverged" for trial in trials),
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    return f"of the trials that it needs: {', '.join(parts)}" if parts else ""


def statement(claim: ClaimRecord) -> str:
    """What is claimed, in symbols."""
    margin = claim.margin
    if claim.direction == "equivalent":
        return f"|Δ| < {margin:g}"
    if claim.direction == "lower":
        return f"Δ < {-margin:g}" if margin else "Δ < 0"
    return f"Δ > {margin:g}"


def _since(claim: ClaimRecord, register: Sequence[Registered]) -> str:
    """When a claim was made as it is now, and how much was known by then."""
    entry = next((entry for entry in reversed(register) if claim.name in entry.changes), None)
    if entry is None:
        return "not registered"
    word = "registered" if entry.changes[claim.name] == "new" else "amended"
    return f"{word} {entry.at[:10]}, {entry.knowing}"


def _notes(register: Sequence[Registered]) -> Iterator[str]:
    for entry in register[1:]:
        changes = "; ".join(f"{name}: {change}" for name, change in entry.changes.items())
        yield f"Amended {entry.at[:16].replace('T', ' ')} UTC, {entry.knowing}: {changes}."


def stated_margin(record: StudyRecord, metric: str) -> float | None:
    """The margin within which a study's record claims that some variants do not differ in a metric, the smallest of
    several; None where it claims no such thing."""
    margins = (c.margin for c in record.claims if (c.metric, c.direction) == (metric, "equivalent"))
    return min(margins, default=None)
