"""How stable training was: spike scores, divergence and what led to it, of all trials of a study.

Trials that diverged have no loss to compare, and a comparison leaves them out; here they are the point.
docs/stability.md defines each number.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.analysis import tidy, to_jsonable
from gatelab.results.analyses.comparison import UNFINISHED
from gatelab.results.analyses.divergence import DivergenceTrace
from gatelab.results.analyses.trial_stability import (
    GATES,
    READ,
    Settings,
    TrialStability,
    extreme_rows,
    settings_from,
    trial_stability,
)
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metrics import each_journal, split, together
from gatelab.results.store.records import TrialRecord
from gatelab.results.store.runs import runs_of_record
from gatelab.results.store.trials import study_descriptions
from gatelab.thresholds import MIN_VALUES

TRACE_FIGURES = 4
"""Trials whose divergence trace is drawn."""


SCORES = {
    "train/loss_spike_score": "loss: spike score of OLMo 2 [% of steps]",
    "train/gradient_norm_spike_score": "gradient norm: spike score of OLMo 2 [% of steps]",
    "train/loss_spike_share": "loss: spikes, robust [% of steps]",
    "train/gradient_norm_spike_share": "gradient norm: spikes, robust [% of steps]",
    "train/loss_nonfinite_share": "loss: not finite [% of steps]",
    "train/gradient_norm_nonfinite_share": "gradient norm: not finite [% of steps]",
    "train/gradient_norm_p99.9": "gradient norm before clipping: 99.9 % quantile",
    "train/clipped_share": "gradient norm: over its bound, clipped [% of steps]",
    "attention/max_logit": "attention/max_logit: largest over training",
    "activation/ffn_residual": "activation/ffn_residual: largest over layers and training",
    "attention/first_token_share": "attention/first_token_share: last evaluation",
}
"""Number of a trial -> its row in the table. weight_norm/gate_POSITION follow."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the lowest and the highest of them."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class VariantStability:
    """One variant."""

    variant: str
    baseline: str | None
    trials: int  # that have trained
    diverged: int
    steps_to_divergence: float  # median over those that diverged; nan: none did
    tokens_to_divergence: float
    scores: dict[str, Spread]


@dataclass(frozen=True)
class Stability:
    """A study's variants in its order, and the divergence traces of its trials."""

    study: str
    study_hash: str
    variants: tuple[VariantStability, ...]
    traces: tuple[DivergenceTrace, ...]
    notes: tuple[str, ...]

    def frame(self) -> pa.Table:
        """Return a row for each score of each variant."""
        return tidy((row for variant in self.variants for row in _score_rows(variant)), SCORE_COLUMNS)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values. None: no such number."""
        known = to_jsonable(self)
        traces = [{**trace, "sentence": of.sentence} for trace, of in zip(known["traces"], self.traces, strict=True)]
        return {
            "autopsies" if name == "traces" else name: value for name, value in (known | {"traces": traces}).items()
        }


_COUNTS = ("trials", "diverged", "steps_to_divergence", "tokens_to_divergence")


SCORE_COLUMNS = pa.schema(
    [
        ("variant", pa.utf8()),
        *((name, pa.int64()) for name in _COUNTS[:2]),
        *((name, pa.float64()) for name in _COUNTS[2:]),
        ("measure", pa.utf8()),
        *((name, pa.float64()) for name in ("mean", "low", "high")),
        ("n", pa.int64()),
    ]
)
"""Columns of the frame of stability scores."""


def _score_rows(variant: VariantStability) -> Iterator[dict[str, Any]]:
    counts = {name: getattr(variant, name) for name in _COUNTS}
    for name, spread in variant.scores.items():
        yield {"variant": variant.variant, **counts, "measure": name, **vars(spread)}


def stability(runs: pa.Table, metrics: pa.Table, settings: Mapping[str, Settings] | None = None) -> Stability:
    """Score how stable each variant's trials were, those that diverged included.

    Args:
        runs: a frame of `runs_from_journals`.
        metrics: a frame of `metrics_from_journals`, every step in it.
        settings: of each trial by id (see `settings_of`); tokens and clipping are left out where there are none.

    Raises AnalysisUnavailable if no trial has trained yet.
    """
    settings = settings or {}
    found = []
    of_trials = split(metrics, "trial")
    for trial in runs.to_pylist():
        rows = of_trials.get(trial["trial"], metrics.slice(0, 0))
        found.append(trial_stability(trial, rows, settings.get(trial["trial"])))
    return _joined(runs, found)


def read_stability(
    folder: RunsFolder, study: str, variants: Collection[str] = ()
) -> tuple[pa.Table, pa.Table, Stability]:
    """Read a study, or some of its variants: its `runs`, what figures show of its values, and how stable it was.

    Reads one journal after the other; the values of all may be more than fit in memory. Raises NotFound,
    AnalysisUnavailable.
    """
    record = folder.study(study).read()
    trials = [trial for trial in record.trials if not variants or trial.variant in variants]
    descriptions = study_descriptions(folder, record)
    runs = runs_of_record(folder, record.restricted_to(trials), None, descriptions)
    journals = each_journal(folder, trials, READ)
    return runs, *stability_of_journals(folder, trials, runs, settings_from(descriptions), journals)


def stability_of_journals(
    folder: RunsFolder,
    trials: Sequence[TrialRecord],
    runs: pa.Table,
    settings: Mapping[str, Settings],
    journals: Iterable[pa.Table],
) -> tuple[pa.Table, Stability]:
    """Score trials from their journals; return the values that figures show, and the scores.

    Args:
        folder: where the trials lie; the journals of those whose trace is drawn are read once more.
        trials: entries of a study's record.
        runs: of these trials, in their order.
        settings: of each trial that has begun, by id.
        journals: the values of each trial, of `READ` or more, in their order; see `each_journal`.

    Raises AnalysisUnavailable.
    """
    found, drawn = [], []
    for trial, rows in zip(runs.to_pylist(), journals, strict=True):
        found.append(trial_stability(trial, rows, settings.get(trial["trial"])))
        drawn.append(extreme_rows(rows))
    joined = _joined(runs, found)
    events = {one.trial for one in drawn_traces(joined.traces)}
    of_events = [trial for trial in trials if trial.id in events]
    return together([*drawn, *each_journal(folder, of_events, ("train/loss", "autopsy/*"))]), joined


def _joined(runs: pa.Table, found: Iterable[TrialStability | None]) -> Stability:
    """Gather the scores of trials by variant."""
    trained = [one for one in found if one is not None]
    if not trained:
        study = runs["study"][0].as_py() if len(runs) else "the study"
        raise AnalysisUnavailable(f"{study}: no trial has trained yet: there is nothing to show of its stability")
    gates = sorted({name for one in trained for name in one.scores if name.startswith(GATES)})
    variants = []
    for variant in dict.fromkeys(one.trial["variant"] for one in trained):
        members = [one for one in trained if one.trial["variant"] == variant]
        names = [name for name in (*SCORES, *gates) if any(name in one.scores for one in members)]
        ends = [one.end for one in members if one.end is not None]
        tokens = [one.tokens for one in members if one.tokens is not None]
        variants.append(
            VariantStability(
                variant=variant,
                baseline=members[0].trial["baseline"],
                trials=len(members),
                diverged=len(ends),
                steps_to_divergence=float(np.median(ends)) if ends else math.nan,
                tokens_to_divergence=float(np.median(tokens)) if tokens else math.nan,
                scores={name: _spread([one.scores[name] for one in members if name in one.scores]) for name in names},
            )
        )
    return Stability(
        study=trained[0].trial["study"],
        study_hash=trained[0].trial["study_hash"],
        variants=tuple(variants),
        traces=tuple(trace for one in trained for trace in one.traces),
        notes=tuple(stability_notes(runs)),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(min(values)), float(max(values)), len(values))


def stability_notes(runs: pa.Table) -> Iterator[str]:
    """Say which trials of a `runs` frame have not finished or failed."""
    outcomes = runs["outcome"].to_pylist()
    if unfinished := sum(outcome in UNFINISHED for outcome in outcomes):
        yield f"{unfinished} trials have not finished: the table will change"
    if failed := outcomes.count("failed"):
        yield f"{failed} trials failed: what they recorded before counts"


def drawn_traces(found: Iterable[DivergenceTrace]) -> list[DivergenceTrace]:
    """Return the traces that are drawn, one of each trial, those of divergences first."""
    chosen: dict[str, DivergenceTrace] = {}
    for one in found:
        if one.steps >= MIN_VALUES and (one.diverged or one.trial not in chosen):
            chosen[one.trial] = one
    return sorted(chosen.values(), key=lambda one: not one.diverged)[:TRACE_FIGURES]
