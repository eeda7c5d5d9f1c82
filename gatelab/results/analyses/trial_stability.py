"""How stable the training of one trial was: its scores, where it diverged, and the lines that are drawn of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatelab.results.analyses.divergence import DivergenceTrace, divergence_traces
from gatelab.results.statistics.series import Curve, extremes
from gatelab.results.statistics.spikes import spike_score
from gatelab.results.store.metrics import named
from gatelab.results.store.trials import Descriptions
from gatelab.status import Status

PANELS = ("train/gradient_norm", "attention/max_logit", "activation/ffn_residual", "attention/first_token_share")


GATES = "weight_norm/gate_"


SERIES = ("train/loss", "train/gradient_norm", "attention/max_logit", "attention/first_token_share")
"""Metrics of the whole model that scores are made of."""


READ = {*SERIES, *PANELS, f"{GATES}*", "autopsy/*"}
"""All that is read of journals, as patterns."""


COUNTERS = {"train/loss": "train/loss", "train/gradient_norm": "train/gradient"}
"""Series -> begin of the names of its robust counters."""


@dataclass(frozen=True)
class Settings:
    """Step size and clipping of a trial."""

    tokens_per_step: int
    clip_norm: float | None


def settings_from(descriptions: Descriptions) -> dict[str, Settings]:
    """Read step size and clipping of each started trial from its configuration."""
    found = {}
    for trial, description in descriptions.items():
        training = description.config["training"]
        tokens = training["batch_size"] * training["sequence_length"]
        found[trial] = Settings(tokens, training["optimizer"]["clip_norm"])
    return found


@dataclass(frozen=True)
class TrialStability:
    """One trial that has trained."""

    trial: Mapping[str, Any]
    scores: dict[str, float]
    end: int | None  # step at which it diverged, if it did
    tokens: int | None  # trained on by then
    traces: tuple[DivergenceTrace, ...]


def trial_stability(trial: Mapping[str, Any], rows: pa.Table, settings: Settings | None) -> TrialStability | None:
    """Return the numbers of a trial, a row of `runs`, from its own values; None if it has not trained yet."""
    series = _series(rows)
    if not COUNTERS.keys() <= series.keys():
        return None
    layers = rows.filter(pc.is_valid(rows["layer"]))
    at_layers = {"activation/ffn_residual": _over_layers(layers, "activation/ffn_residual", "max")}
    at_layers |= {name: _over_layers(layers, name, "mean") for name in _gates(layers)}
    end = _end(trial, series) if trial["outcome"] == Status.DIVERGED else None
    return TrialStability(
        trial,
        dict(_scores(trial, series, at_layers, settings)),
        end,
        None if end is None or settings is None else end * settings.tokens_per_step,
        tuple(divergence_traces([trial], rows)),
    )


def _series(rows: pa.Table) -> dict[str, Curve]:
    """Return the series of the whole model that scores are made of, by name: steps and values of one trial."""
    rows = rows.filter(pc.and_(pc.is_null(rows["layer"]), named(rows, *SERIES)))
    found = {}
    for name in pc.unique(rows["name"]).to_pylist():
        own = rows.filter(pc.equal(rows["name"], name))
        found[name] = own["step"].to_numpy(), own["value"].to_numpy()
    return found


def _gates(rows: pa.Table) -> list[str]:
    """Return the names of the gates' weight norms that were recorded."""
    return sorted(name for name in pc.unique(rows["name"]).to_pylist() if name.startswith(GATES))


def lines_of(metrics: pa.Table) -> dict[str, tuple[pa.Table, pa.Table]]:
    """Return each measure that is drawn over training: its values, and their line, joined over layers."""
    layers, whole = metrics.filter(pc.is_valid(metrics["layer"])), metrics.filter(pc.is_null(metrics["layer"]))
    joined = {"activation/ffn_residual": "max"} | dict.fromkeys(_gates(layers), "mean")
    found = {}
    for name in dict.fromkeys((*PANELS, *joined)):
        of = layers if name in joined else whole
        own = of.filter(pc.equal(of["name"], name))
        if len(own):
            found[name] = own, _over_layers(own, name, joined[name]) if name in joined else own
    return found


def extreme_rows(rows: pa.Table) -> pa.Table:
    """Keep those of one trial's values that its lines over training need to show all extremes."""
    parts = [rows.schema.empty_table()]  # an empty slice would keep all of them in memory
    for own, line in lines_of(rows).values():
        steps = line["step"].to_numpy()
        kept = steps[extremes((steps, line["value"].to_numpy()))]
        parts.append(own.filter(pc.is_in(own["step"], pa.array(kept))))
    return pa.concat_tables(parts)


def _over_layers(layers: pa.Table, name: str, how: str) -> pa.Table:
    """Reduce a measure of layers to one value per evaluation, its largest or its mean, as of the whole model."""
    mine = layers.filter(pc.equal(layers["name"], name))
    joint = mine.group_by(["trial", "variant", "seed", "step"]).aggregate([("value", how)])
    return joint.rename_columns(["trial", "variant", "seed", "step", "value"]).sort_by("step")


def _scores(
    trial: Mapping[str, Any],
    series: Mapping[str, Curve],
    at_layers: Mapping[str, pa.Table],
    settings: Settings | None,
) -> Iterator[tuple[str, float]]:
    """Yield the numbers of one trial."""
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


def _end(trial: Mapping[str, Any], series: Mapping[str, Curve]) -> int:
    """Return the step of divergence: its first non-finite loss, or the check that found it out of bounds."""
    steps, losses = series["train/loss"]
    lost = steps[~np.isfinite(losses)]
    return int(lost[0]) if len(lost) else int(trial["step"])
