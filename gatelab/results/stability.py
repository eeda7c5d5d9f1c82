"""How stable training was: spike scores, divergence and what led to it, of all trials of a study.

Trials that diverged have no loss to compare, and a comparison leaves them out; here they are the point.
docs/stability.md defines each number.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelab.results.autopsies import NEEDED, Autopsy, autopsies, plot_autopsy
from gatelab.results.comparison import UNFINISHED
from gatelab.results.figures import Curve, Variants, curves_by_seed, draw_curves, line_style, panels
from gatelab.results.folders import RunsFolder, read_json
from gatelab.results.measures import with_unit
from gatelab.results.tables import Column, Grid, finite

Series = npt.NDArray[np.float64]

WINDOW = 1000
"""Values before one that OLMo 2's score judges it by."""
THRESHOLD = 7.0
"""Standard deviations from their mean at which it is a spike."""
CHUNK = 4096  # windows in memory at a time

AUTOPSY_FIGURES = 4
"""Trials whose autopsy is drawn."""
SPANS = 200
"""Points of a line over training: of a metric recorded at more steps the largest of each span is shown."""
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
COUNTERS = {"train/loss": "train/loss", "train/gradient_norm": "train/gradient"}
"""Series -> begin of the names of its robust counters."""

MOST_COLUMNS = 6
"""Variants beside each other in the table."""
MOST_LINES = 12
"""Variants in a figure over training."""


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


def spike_score(values: Series) -> float:
    """OLMo 2's spike score (arXiv 2501.00656, section 3.1): the percentage of values that are at least 7 standard
    deviations away from the mean of the last 1,000.

    Of the last 1,000 finite values before it, or of those there are if they are 32 or more; before that none is a
    spike. Values that are not finite are no spikes, count among all and enter no window. nan if there are no values.
    """
    if not len(values):
        return math.nan
    return 100.0 * float(_spikes(values[np.isfinite(values)]).sum()) / len(values)


def _spikes(values: Series) -> npt.NDArray[np.bool_]:
    """Which of the values, all finite, are spikes."""
    means, deviations = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for end in range(NEEDED, min(WINDOW, len(values))):
        means[end], deviations[end] = values[:end].mean(), values[:end].std()
    if len(values) > WINDOW:
        # Sums that are carried along would lose all precision at the first huge value.
        windows = np.lib.stride_tricks.sliding_window_view(values, WINDOW)[:-1]
        for begin in range(0, len(windows), CHUNK):
            part = slice(WINDOW + begin, WINDOW + begin + CHUNK)
            means[part] = windows[begin : begin + CHUNK].mean(1)
            deviations[part] = windows[begin : begin + CHUNK].std(1)
    away = np.abs(values - means)
    spikes: npt.NDArray[np.bool_] = (away >= THRESHOLD * deviations) & (away > 0)  # false where nothing is judged
    return spikes


def stability(runs: pa.Table, metrics: pa.Table, settings: Mapping[str, Settings] | None = None) -> Stability:
    """How stable each variant's trials were, those that diverged included.

    Args:
        runs: a frame of `runs_from_journals`.
        metrics: a frame of `metrics_from_journals`, every step in it.
        settings: of each trial by id (see `settings_of`); tokens and clipping are left out where there are none.

    Raises NoSteps if no trial has trained yet.
    """
    settings = settings or {}
    of_trials = _by_trial(metrics)
    trials = [trial for trial in runs.to_pylist() if "train/loss" in of_trials.get(trial["trial"], {})]
    if not trials:
        raise NoSteps("no trial has trained yet: there is nothing to show of its stability")
    layers = metrics.filter(pc.is_valid(metrics["layer"]))
    at_layers = {"activation/ffn_residual": _over_layers(layers, "activation/ffn_residual", "max")}
    gates = sorted(name for name in pc.unique(layers["name"]).to_pylist() if name.startswith(GATES))
    at_layers |= {name: _over_layers(layers, name, "mean") for name in gates}
    variants = []
    for variant in dict.fromkeys(trial["variant"] for trial in trials):
        members = [trial for trial in trials if trial["variant"] == variant]
        found = [
            dict(_scores(trial, of_trials[trial["trial"]], at_layers, settings.get(trial["trial"])))
            for trial in members
        ]
        names = [name for name in (*SCORES, *gates) if any(name in one for one in found)]
        ends = [(trial, _end(trial, of_trials[trial["trial"]])) for trial in members if trial["outcome"] == "diverged"]
        tokens = [end * settings[trial["trial"]].tokens_per_step for trial, end in ends if trial["trial"] in settings]
        variants.append(
            VariantStability(
                variant=variant,
                baseline=members[0]["baseline"],
                trials=len(members),
                diverged=len(ends),
                steps_to_divergence=float(np.median([end for _, end in ends])) if ends else math.nan,
                tokens_to_divergence=float(np.median(tokens)) if tokens else math.nan,
                scores={name: _spread([one[name] for one in found if name in one]) for name in names},
            )
        )
    return Stability(
        study=trials[0]["study"],
        study_hash=trials[0]["study_hash"],
        variants=tuple(variants),
        autopsies=tuple(autopsies(trials, metrics)),
        notes=tuple(_notes(runs)),
    )


def settings_of(folder: RunsFolder, study: str) -> dict[str, Settings]:
    """What the configurations of a study's trials, as far as they have begun, say of their steps. Raises NotFound."""
    found = {}
    for trial in folder.study(study).read()["trials"]:
        description = read_json(folder.trial(trial["id"]).description)
        if description is not None:
            training = description["config"]["training"]
            tokens = training["batch_size"] * training["sequence_length"]
            found[trial["id"]] = Settings(tokens, training["optimizer"]["clip_norm"])
    return found


def _by_trial(metrics: pa.Table) -> dict[str, dict[str, Curve]]:
    """Of each trial the series of the whole model that scores are made of, by name: steps and values."""
    names = ("train/loss", "train/gradient_norm", "attention/max_logit", "attention/first_token_share")
    rows = metrics.filter(pc.and_(pc.is_null(metrics["layer"]), pc.is_in(metrics["name"], pa.array(names))))
    found: dict[str, dict[str, Curve]] = {}
    for trial in pc.unique(rows["trial"]).to_pylist():
        mine = rows.filter(pc.equal(rows["trial"], trial))
        for name in pc.unique(mine["name"]).to_pylist():
            own = mine.filter(pc.equal(mine["name"], name))
            found.setdefault(trial, {})[name] = own["step"].to_numpy(), own["value"].to_numpy()
    return found


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


def _notes(runs: pa.Table) -> Iterator[str]:
    outcomes = runs["outcome"].to_pylist()
    if unfinished := sum(outcome in UNFINISHED for outcome in outcomes):
        yield f"{unfinished} trials have not finished: the table will change"
    if failed := outcomes.count("failed"):
        yield f"{failed} trials failed: what they recorded before counts"


def stability_grid(found: Stability) -> Grid:
    """The table for people: a row for each number, a column for each variant, the baseline first; the other way round
    where there are many variants."""
    variants = sorted(found.variants, key=lambda one: one.baseline != one.variant)
    rows = [
        ("trials diverged", *(f"{one.diverged} of {one.trials}" for one in variants)),
        ("steps to divergence, median", *(_number(one.steps_to_divergence) for one in variants)),
        ("tokens to divergence, median", *(_number(one.tokens_to_divergence) for one in variants)),
    ]
    if not any(one.diverged for one in variants):
        rows = rows[:1]
    known = dict.fromkeys(name for one in variants for name in one.scores)
    zeros = []
    for name in (*SCORES, *sorted(known.keys() - SCORES)):
        if name not in known:
            continue
        spreads = [one.scores.get(name) for one in variants]
        label = SCORES.get(name, f"{name}: last evaluation, mean over layers")
        if all(spread is None or spread.high == 0 for spread in spreads):
            zeros.append(label)
        else:
            rows.append((label, *(_spread_cell(one, spread) for one, spread in zip(variants, spreads, strict=True))))
    notes = [
        "Mean over all seeds that trained, those that diverged included (lowest to highest seed); n: of fewer seeds.",
        *([f"0 for every variant and seed: {'; '.join(zeros)}."] if zeros else []),
        *found.notes,
    ]
    if len(variants) > MOST_LINES:
        notes.append("Too many variants for a figure over training: choose some with --variant.")
    wide = len(variants) > MOST_COLUMNS
    table = [("variant" if wide else "measure", *(one.variant for one in variants)), *rows]
    if wide:
        table = list(zip(*table, strict=True))
    head, *body = table
    columns = (Column(head[0]), *(Column(name, numeric=True) for name in head[1:]))
    return Grid(f"{found.study}: stability", columns, tuple(body), (False,) * len(body), tuple(notes))


def stability_dict(found: Stability) -> dict[str, Any]:
    """All of it as JSON values; numbers that are not finite are None."""
    sentences = [{**asdict(one), "sentence": one.sentence} for one in found.autopsies]
    whole: dict[str, Any] = finite({**asdict(found), "autopsies": sentences})
    return whole


def stability_csv(found: Stability) -> str:
    """The table for spreadsheets, a line for each variant and number; numbers that do not exist are empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    counts = ("trials", "diverged", "steps_to_divergence", "tokens_to_divergence")
    writer.writerow(["variant", *counts, "measure", "mean", "low", "high", "n"])
    for one in found.variants:
        own = [getattr(one, name) for name in counts]
        for name, spread in one.scores.items():
            cells = [one.variant, *own, name, spread.mean, spread.low, spread.high, spread.n]
            writer.writerow(["" if cell != cell else cell for cell in cells])
    return out.getvalue()


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _spread_cell(variant: VariantStability, spread: Spread | None) -> str:
    if spread is None:
        return "–"
    fewer = f"; n={spread.n}" if spread.n < variant.trials else ""
    if spread.n == 1 or spread.low == spread.high:
        return f"{spread.mean:.3g}" + (f" ({fewer.removeprefix('; ')})" if fewer else "")
    return f"{spread.mean:.3g} ({spread.low:.3g} to {spread.high:.3g}{fewer})"


def plot_stability(runs: pa.Table, metrics: pa.Table, variants: Variants, title: str) -> Figure:
    """Gradient norm, largest logit and activation, first token's share and gates' norms over training.

    Lines and bands are of the trials that did not diverge; those that did are thin lines up to a cross at their end.
    """
    layers = metrics.filter(pc.is_valid(metrics["layer"]))
    whole = metrics.filter(pc.is_null(metrics["layer"]))
    frames = {
        name: _over_layers(layers, name, "max")
        if name == "activation/ffn_residual"
        else whole.filter(pc.equal(whole["name"], name))
        for name in PANELS
    }
    gates = sorted(name for name in pc.unique(layers["name"]).to_pylist() if name.startswith(GATES))
    frames |= {name: _over_layers(layers, name, "mean") for name in gates}
    shown = {name: rows for name, rows in frames.items() if len(rows)}
    diverged = {trial["trial"] for trial in runs.to_pylist() if trial["outcome"] == "diverged"}
    headings = {
        "activation/ffn_residual": "activation/ffn_residual, largest layer",
        **{name: f"{name}, mean over layers" for name in gates},
    }

    def draw(axes: Axes, name: str) -> None:
        rows = shown[name].sort_by("step")
        lost = pc.is_in(rows["trial"], pa.array(sorted(diverged), pa.utf8()))
        for index, variant in enumerate(variants):
            mine = pc.equal(rows["variant"], variant)
            ended, survived = (
                _thinned(curves_by_seed(rows.filter(pc.and_(mine, those)))) for those in (lost, pc.invert(lost))
            )
            draw_curves(axes, index, survived, variant, "" if name.startswith("train/") else "o")
            _draw_lost(axes, index, ended, "" if survived else variant)
        axes.set_title(headings.get(name, with_unit(name)), fontsize=8)
        values = rows["value"].to_numpy()
        values = values[np.isfinite(values)]
        if len(values) and 0 < 10 * values.min() < values.max():
            axes.set_yscale("log")

    return panels(list(shown), draw, "step", title)


def _draw_lost(axes: Axes, index: int, curves: Mapping[int, Curve], label: str) -> None:
    """Trials that diverged, each by itself; `label` names the first line where no other line does."""
    for steps, values in curves.values():
        axes.plot(steps, values, **line_style(index), linewidth=0.8, label=label or None)
        axes.plot(steps[-1:], values[-1:], color="black", marker="x", markersize=6, linestyle="none", label="diverged")
        label = ""


def _thinned(curves: Mapping[int, Curve]) -> dict[int, Curve]:
    """Curves of many points as the largest of each span: what a mean would hide is what matters here."""
    thin = {}
    for seed, (steps, values) in curves.items():
        span = math.ceil(int(steps[-1]) / SPANS)
        starts = np.flatnonzero(np.diff((steps - 1) // span, prepend=-1))
        thin[seed] = (steps, values) if len(steps) <= SPANS else (steps[starts], np.maximum.reduceat(values, starts))
    return thin


def plot_all(runs: pa.Table, metrics: pa.Table, found: Stability) -> dict[str, Figure]:
    """The figures of a study's stability by the names of their files: over training, and of the first trials with an
    autopsy that of their divergence, or of their first spike."""
    variants = {one.variant: one.baseline for one in found.variants}
    chosen: dict[str, Autopsy] = {}
    for one in found.autopsies:
        if one.steps >= NEEDED and (one.diverged or one.trial not in chosen):
            chosen[one.trial] = one
    ranked = sorted(chosen.values(), key=lambda one: not one.diverged)[:AUTOPSY_FIGURES]
    training = (
        {}
        if len(variants) > MOST_LINES
        else {"stability-training": plot_stability(runs, metrics, variants, found.study)}
    )
    return {
        **training,
        **{f"stability-autopsy-{one.trial[:12]}-{one.found}": plot_autopsy(metrics, one) for one in ranked},
    }
