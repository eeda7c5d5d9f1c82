"""How stable training was: spike scores, divergence and what led to it, of all trials of a study.

Trials that diverged have no loss to compare, and a comparison leaves them out; here they are the point.
docs/stability.md defines each number.
"""

import csv
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from gatelab.results.figures import SPANS, Curve, Variants, curves_by_seed, draw_curves, extremes, line_style, panels
from gatelab.results.folders import RunsFolder
from gatelab.results.frames import Descriptions, each_journal, named, runs_of_record, study_descriptions, together
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
    for end in _suspects(values[:WINDOW]):
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


def _suspects(values: Series) -> npt.NDArray[np.intp]:
    """Places of values that may be spikes among all before them: the windows of all others need not be looked at."""
    ends = np.arange(NEEDED, len(values))
    if not len(ends):
        return ends
    offsets = values - np.median(values)
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.cumsum(offsets)[ends - 1] / ends
        squares = np.cumsum(offsets**2)[ends - 1] / ends
        variances = squares - means**2
        near = np.abs(offsets[ends] - means) < 0.9 * THRESHOLD * np.sqrt(np.maximum(variances, 0))
        exact = variances > 1e-9 * squares  # else rounding may have left nothing of it; neither if it is not a number
    return ends[~(near & exact)]


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
    trials = [trial for trial in record["trials"] if not variants or trial["variant"] in variants]
    descriptions = study_descriptions(folder, record)
    runs = runs_of_record(folder, {**record, "trials": trials}, None, descriptions)
    journals = each_journal(folder, trials, READ)
    return runs, *stability_of_journals(folder, trials, runs, settings_from(descriptions), journals)


def stability_of_journals(
    folder: RunsFolder,
    trials: Sequence[Mapping[str, Any]],
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
    events = {one.trial for one in _drawn(joined.autopsies)}
    of_events = [trial for trial in trials if trial["id"] in events]
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
        training = description["config"]["training"]
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


def _lines(metrics: pa.Table) -> dict[str, tuple[pa.Table, pa.Table]]:
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
    for own, line in _lines(rows).values():
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
    shown = {name: line for name, (_, line) in _lines(metrics).items()}
    diverged = {trial["trial"] for trial in runs.to_pylist() if trial["outcome"] == "diverged"}
    headings = {
        "activation/ffn_residual": "activation/ffn_residual, largest layer",
        **{name: f"{name}, mean over layers" for name in shown if name.startswith(GATES)},
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
        begins = (steps[starts] - 1) // span * span + 1  # the same for all seeds, whatever is left of a span
        thin[seed] = (steps, values) if len(steps) <= SPANS else (begins, np.maximum.reduceat(values, starts))
    return thin


def plot_all(runs: pa.Table, metrics: pa.Table, found: Stability) -> dict[str, Figure]:
    """The figures of a study's stability by the names of their files: over training, and of the first trials with an
    autopsy that of their divergence, or of their first spike."""
    variants = {one.variant: one.baseline for one in found.variants}
    training = (
        {}
        if len(variants) > MOST_LINES
        else {"stability-training": plot_stability(runs, metrics, variants, found.study)}
    )
    return {
        **training,
        **{
            f"stability-autopsy-{one.trial[:12]}-{one.found}": plot_autopsy(metrics, one)
            for one in _drawn(found.autopsies)
        },
    }


def _drawn(found: Iterable[Autopsy]) -> list[Autopsy]:
    """The autopsies that are drawn, one of each trial, those of divergences first."""
    chosen: dict[str, Autopsy] = {}
    for one in found:
        if one.steps >= NEEDED and (one.diverged or one.trial not in chosen):
            chosen[one.trial] = one
    return sorted(chosen.values(), key=lambda one: not one.diverged)[:AUTOPSY_FIGURES]
