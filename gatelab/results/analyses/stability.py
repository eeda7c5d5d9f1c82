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
import pyarrow.compute as pc

from gatelab.results.analyses.comparison import UNFINISHED
from gatelab.results.analyses.divergence import Autopsy, autopsies
from gatelab.results.statistics.series import Curve, extremes
from gatelab.results.statistics.spikes import spike_score
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metrics import each_journal, named, together
from gatelab.results.store.records import TrialRecord
from gatelab.results.store.runs import runs_of_record
from gatelab.results.store.trials import Descriptions, study_descriptions
from gatelab.thresholds import MIN_VALUES

AUTOPSY_FIGURES = 4
"""Trials whose autopsy is drawn."""


PANELS = ("train/gradient_norm", "attention/max_logit", "activation/ffn_residual", "attention/first_token_share")


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


GATES = "weight_norm/gate_"


SERIES = ("train/loss", "train/gradient_norm", "attention/max_logit", "attention/first_token_share")
"""Metrics of the whole model that scores are made of."""


READ = {*SERIES, *PANELS, f"{GATES}*", "autopsy/*"}
"""All that is read of journals, as patterns."""


COUNTERS = {"train/loss": "train/loss", "train/gradient_norm": "train/gradient"}
"""Series -> begin of the names of its robust counters."""


class NoSteps(ValueError):
    """A study whose trials have not trained yet."""


@dataclass(frozen=True)
class Settings:
    """What a trial's configuration says of its steps."""

    tokens_per_step: int
    clip_norm: float | None


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
    """A study's variants in its order, and the autopsies of its trials."""

    study: str
    study_hash: str
    variants: tuple[VariantStability, ...]
    autopsies: tuple[Autopsy, ...]
    notes: tuple[str, ...]


def stability(runs: pa.Table, metrics: pa.Table, settings: Mapping[str, Settings] | None = None) -> Stability:
    """How stable each variant's trials were, those that diverged included.

    Args:
        runs: a frame of `runs_from_journals`.
        metrics: a frame of `metrics_from_journals`, every step in it.
        settings: of each trial by id (see `settings_of`); tokens and clipping are left out where there are none.

    Raises NoSteps if no trial has trained yet.
    """
    settings = settings or {}
    found = []
    for trial in runs.to_pylist():
        rows = metrics.filter(pc.equal(metrics["trial"], trial["trial"]))
        found.append(_measured(trial, rows, settings.get(trial["trial"])))
    return _joined(runs, found)


def read_stability(
    folder: RunsFolder, study: str, variants: Collection[str] = ()
) -> tuple[pa.Table, pa.Table, Stability]:
    """A study, or some of its variants: its `runs`, what figures show of its values, and how stable it was.

    Reads one journal after the other; the values of all may be more than fit in memory. Raises NotFound, NoSteps.
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
    """What figures show of the values of trials, and how stable these were.

    Args:
        folder: where the trials lie; the journals of those whose autopsy is drawn are read once more.
        trials: entries of a study's record.
        runs: of these trials, in their order.
        settings: of each trial that has begun, by id.
        journals: the values of each trial, of `READ` or more, in their order; see `each_journal`.

    Raises NoSteps.
    """
    found, drawn = [], []
    for trial, rows in zip(runs.to_pylist(), journals, strict=True):
        found.append(_measured(trial, rows, settings.get(trial["trial"])))
        drawn.append(_extremes(rows))
    joined = _joined(runs, found)
    events = {one.trial for one in is_drawn(joined.autopsies)}
    of_events = [trial for trial in trials if trial.id in events]
    return together([*drawn, *each_journal(folder, of_events, ("train/loss", "autopsy/*"))]), joined


@dataclass(frozen=True)
class _Measured:
    """One trial that has trained."""

    trial: Mapping[str, Any]
    scores: dict[str, float]
    end: int | None  # step at which it diverged, if it did
    tokens: int | None  # trained on by then
    autopsies: tuple[Autopsy, ...]


def _measured(trial: Mapping[str, Any], rows: pa.Table, settings: Settings | None) -> _Measured | None:
    """The numbers of a trial, a row of `runs`, from its own values; None if it has not trained yet."""
    series = _series(rows)
    if not COUNTERS.keys() <= series.keys():
        return None
    layers = rows.filter(pc.is_valid(rows["layer"]))
    at_layers = {"activation/ffn_residual": _over_layers(layers, "activation/ffn_residual", "max")}
    at_layers |= {name: _over_layers(layers, name, "mean") for name in _gates(layers)}
    end = _end(trial, series) if trial["outcome"] == "diverged" else None
    return _Measured(
        trial,
        dict(_scores(trial, series, at_layers, settings)),
        end,
        None if end is None or settings is None else end * settings.tokens_per_step,
        tuple(autopsies([trial], rows)),
    )


def _joined(runs: pa.Table, found: Iterable[_Measured | None]) -> Stability:
    """The numbers of trials as those of their variants."""
    trained = [one for one in found if one is not None]
    if not trained:
        raise NoSteps("no trial has trained yet: there is nothing to show of its stability")
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
        autopsies=tuple(autopsy for one in trained for autopsy in one.autopsies),
        notes=tuple(stability_notes(runs)),
    )


def settings_from(descriptions: Descriptions) -> dict[str, Settings]:
    """What the configurations of a study's trials, as far as they have begun, say of their steps, by id."""
    found = {}
    for trial, description in descriptions.items():
        training = description.config["training"]
        tokens = training["batch_size"] * training["sequence_length"]
        found[trial] = Settings(tokens, training["optimizer"]["clip_norm"])
    return found


def _series(rows: pa.Table) -> dict[str, Curve]:
    """Of one trial the series of the whole model that scores are made of, by name: steps and values."""
    rows = rows.filter(pc.and_(pc.is_null(rows["layer"]), named(rows, *SERIES)))
    found = {}
    for name in pc.unique(rows["name"]).to_pylist():
        own = rows.filter(pc.equal(rows["name"], name))
        found[name] = own["step"].to_numpy(), own["value"].to_numpy()
    return found


def _gates(rows: pa.Table) -> list[str]:
    """Norms of gates' weights that there are."""
    return sorted(name for name in pc.unique(rows["name"]).to_pylist() if name.startswith(GATES))


def lines_of(metrics: pa.Table) -> dict[str, tuple[pa.Table, pa.Table]]:
    """Measures that are drawn over training: of each its values, and the line that they make, joined over layers."""
    layers, whole = metrics.filter(pc.is_valid(metrics["layer"])), metrics.filter(pc.is_null(metrics["layer"]))
    joined = {"activation/ffn_residual": "max"} | dict.fromkeys(_gates(layers), "mean")
    found = {}
    for name in dict.fromkeys((*PANELS, *joined)):
        of = layers if name in joined else whole
        own = of.filter(pc.equal(of["name"], name))
        if len(own):
            found[name] = own, _over_layers(own, name, joined[name]) if name in joined else own
    return found


def _extremes(rows: pa.Table) -> pa.Table:
    """Of one trial's values those that its lines over training need to show all extremes."""
    parts = [rows.schema.empty_table()]  # an empty slice would keep all of them in memory
    for own, line in lines_of(rows).values():
        steps = line["step"].to_numpy()
        kept = steps[extremes((steps, line["value"].to_numpy()))]
        parts.append(own.filter(pc.is_in(own["step"], pa.array(kept))))
    return pa.concat_tables(parts)


def _over_layers(layers: pa.Table, name: str, how: str) -> pa.Table:
    """A measure of layers at each evaluation, its largest or its mean over layers, as of the whole model."""
    mine = layers.filter(pc.equal(layers["name"], name))
    joint = mine.group_by(["trial", "variant", "seed", "step"]).aggregate([("value", how)])
    return joint.rename_columns(["trial", "variant", "seed", "step", "value"]).sort_by("step")


def _scores(
    trial: Mapping[str, Any],
    series: Mapping[str, Curve],
    at_layers: Mapping[str, pa.Table],
    settings: Settings | None,
) -> Iterator[tuple[str, float]]:
    """The numbers of one trial."""
    for name, counters in COUNTERS.items():
        _, values = series[name]
        yield f"{name}_spike_score", spike_score(values)
        yield f"{name}_nonfinite_share", 100.0 * float(np.mean(~np.isfinite(values)))
        counted = trial.get(f"{counters}_spike_steps")
        if counted is not None:
            yield f"{name}_spike_share", 100.0 * counted / len(values)
    norms = series["train/gradient_norm"][1]
    finite = norms[np.isfinite(norms)]
    if len(finite):
        yield "train/gradient_norm_p99.9", float(np.quantile(finite, 0.999))
    if settings is not None and settings.clip_norm is not None:
        yield "train/clipped_share", 100.0 * float(np.sum(finite > settings.clip_norm)) / len(norms)
    if "attention/max_logit" in series:
        yield "attention/max_logit", float(np.fmax.reduce(series["attention/max_logit"][1]))
    if "attention/first_token_share" in series:
        yield "attention/first_token_share", float(series["attention/first_token_share"][1][-1])
    for name, rows in at_layers.items():
        own = rows.filter(pc.equal(rows["trial"], trial["trial"]))["value"].to_numpy()
        if len(own):
            yield name, float(own[-1] if name.startswith(GATES) else np.fmax.reduce(own))


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(min(values)), float(max(values)), len(values))


def _end(trial: Mapping[str, Any], series: Mapping[str, Curve]) -> int:
    """The step at which a trial diverged: its first non-finite loss, or the look that found its loss out of bounds."""
    steps, losses = series["train/loss"]
    lost = steps[~np.isfinite(losses)]
    return int(lost[0]) if len(lost) else int(trial["step"])


def stability_notes(runs: pa.Table) -> Iterator[str]:
    """What of a `runs` frame is not as it will be, or not as it should be."""
    outcomes = runs["outcome"].to_pylist()
    if unfinished := sum(outcome in UNFINISHED for outcome in outcomes):
        yield f"{unfinished} trials have not finished: the table will change"
    if failed := outcomes.count("failed"):
        yield f"{failed} trials failed: what they recorded before counts"


def is_drawn(found: Iterable[Autopsy]) -> list[Autopsy]:
    """The autopsies that are drawn, one of each trial, those of divergences first."""
    chosen: dict[str, Autopsy] = {}
    for one in found:
        if one.steps >= MIN_VALUES and (one.diverged or one.trial not in chosen):
            chosen[one.trial] = one
    return sorted(chosen.values(), key=lambda one: not one.diverged)[:AUTOPSY_FIGURES]
