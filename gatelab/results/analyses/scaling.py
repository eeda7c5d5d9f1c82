"""How a study's arms scale: the rungs of its ladder, laws fitted to them, what they say of arms.

Some of a study's axes make the ladder (size, tokens); the levels of the others make the arms that are compared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from gatelab.errors import AnalysisUnavailable
from gatelab.metrics import MetricSpec, find_spec
from gatelab.results.analyses.analysis import tidy, to_jsonable
from gatelab.results.analyses.comparison import DEFAULT_METRIC, compare
from gatelab.results.analyses.fits import FITS
from gatelab.results.analyses.scaling_fit import (
    BEYOND,
    COMPUTE,
    FORMULAS,
    ArmFit,
    Estimate,
    Fit,
    Gains,
    Rung,
    fit_ladder,
)
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import STATUSES, arm_of, axes_of
from gatelab.status import Status

NO_LADDER = "no axis sets a size of the model or training.tokens, but for those that the baseline names"

BOOTSTRAPS = 4000
"""Replicates behind the intervals."""


@dataclass(frozen=True)
class Scaling:
    """A study's ladder."""

    study: str
    study_hash: str
    ladder: tuple[str, ...]
    bootstraps: int
    baselines: dict[str, str | None]
    """Arm -> the arm that it is compared with: itself, if it is a baseline."""
    rungs: tuple[Rung, ...]
    """Baselines first, each arm from the least compute on."""
    fit: Fit | None
    notes: tuple[str, ...]
    spec: MetricSpec
    """What the loss is."""

    def frame(self) -> pa.Table:
        """Return a row for each rung of each arm."""
        return tidy((_rung_record(self, rung) for rung in self.rungs), RUNGS)

    def fits(self) -> pa.Table:
        """Return the numbers of the law and the gains at each rung, in `FITS`; no rows without a law."""
        return tidy(_fit_rows(self), FITS)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values. None: no such number."""
        names = ("study", "study_hash", "ladder", "bootstraps", "baselines", "notes")
        known = {name: to_jsonable(getattr(self, name)) for name in names}
        notes = known.pop("notes")
        rungs = [{**to_jsonable(rung), "verdict": rung.row.verdict} for rung in self.rungs]
        return {**known, "rungs": rungs, "fit": None if self.fit is None else _fit_dict(self.fit), "notes": notes}


def _fit_dict(fit: Fit) -> dict[str, Any]:
    shared = {name: to_jsonable(estimate) for name, estimate in fit.shared.items()}
    return {
        "kind": fit.kind,
        "formula": FORMULAS[fit.kind],
        "caveat": fit.caveat,
        "shared": {**shared, "E": {**shared["E"], "determined": not fit.caveat}},
        "arms": [{**to_jsonable(arm), "better": _better(arm)} for arm in fit.arms],
    }


def _better(arm: ArmFit) -> dict[str, float] | None:
    return None if arm.better is None else {f"{at}x": share for at, share in zip(BEYOND, arm.better, strict=True)}


_ENDS = ("", "_low", "_high")


RUNGS = pa.schema(
    [
        *((name, pa.utf8()) for name in ("arm", "rung", "baseline")),
        *((name, pa.int64()) for name in ("parameters", "tokens")),
        *((name, pa.float64()) for name in ("compute", "tokens_per_second")),
        *((name, pa.int64()) for name in STATUSES),
        ("verdict", pa.utf8()),
        *((name + end, pa.float64()) for name in ("loss", "delta", "gain", "gain_in_time") for end in _ENDS),
    ]
)
"""Columns of the frame of rungs."""


def _rung_record(found: Scaling, rung: Rung) -> dict[str, Any]:
    row = rung.row
    means = {"loss": row.value, "delta": row.delta}
    estimates = {"gain": rung.gain, "gain_in_time": rung.gain_in_time}
    numbers = {name: (of.mean, of.low, of.high) for name, of in means.items() if of is not None}
    numbers |= {name: (of.value, of.low, of.high) for name, of in estimates.items() if of is not None}
    return {
        "arm": rung.arm,
        "rung": rung.rung,
        "baseline": found.baselines[rung.arm],
        "parameters": row.parameters,
        "tokens": rung.tokens,
        "compute": rung.compute,
        "tokens_per_second": row.tokens_per_second,
        **{name: row.outcomes.get(name, 0) for name in STATUSES},
        "verdict": row.verdict,
        **{name + end: value for name, own in numbers.items() for end, value in zip(_ENDS, own, strict=True)},
    }


def _fit_rows(found: Scaling) -> Iterator[dict[str, Any]]:
    """Yield the rows of a scaling report: shared numbers have no arm, those of a rung have one."""
    fit = found.fit
    if fit is None:
        return
    common = {"law": FORMULAS[fit.kind], "n": found.bootstraps}
    for name, estimate in fit.shared.items():
        bound = "?" if name == "E" and fit.caveat else ""
        yield {
            **common,
            "quantity": ASCII.get(name, name),
            "bound": bound,
            **_numbers(estimate),
            "unit": UNITS.get(name, ""),
        }
    for arm in fit.arms:
        own = {**common, "arm": arm.arm, "baseline": found.baselines[arm.arm], "bound": ""}
        quantities = (
            ("A", arm.scale, ""),
            ("alpha", arm.exponent, ""),
            ("alpha, difference", arm.exponent_difference, ""),
            ("own E, difference", arm.offset_difference, "nats/token"),
            ("crossover", arm.crossover, "FLOPs"),
        )
        for name, own_part, unit in quantities:
            if own_part is not None:
                yield {**own, "quantity": name, **_numbers(own_part), "unit": unit}
        for multiple, share in zip(BEYOND, arm.better or (), strict=False):
            yield {**own, "quantity": f"P(lower loss) at {multiple}x", "value": share, "unit": "share"}
    for rung in found.rungs:
        own = {**common, "arm": rung.arm, "baseline": found.baselines[rung.arm], "rung": rung.rung, "bound": ""}
        for name, gain in (("gain", rung.gain), ("gain in time", rung.gain_in_time)):
            if gain is not None:
                yield {**own, "quantity": name, **_numbers(gain), "unit": "x"}


ASCII = {"α": "alpha", "β": "beta"}


UNITS = {"E": "nats/token"}


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def scaling(runs: pa.Table, ladder: Sequence[str], *, bootstraps: int = BOOTSTRAPS, seed: int = 0) -> Scaling:
    """Return the scaling report of a `runs` frame in which the axes `ladder` make the ladder.

    The law is one in parameters and tokens where the rungs of all arms tell both apart, else one in compute. Arms that
    support no fit are shown with their rungs alone. Raises AnalysisUnavailable.
    """
    known, study = axes_of(runs), runs["study"][0].as_py()
    if not ladder or not set(ladder) <= set(known):
        lacks = f"it has no axis {', '.join(sorted(set(ladder) - set(known)))}" if ladder else NO_LADDER
        raise AnalysisUnavailable(f"{study} has no scaling ladder: {lacks} (its axes: {', '.join(known) or 'none'})")
    rungs, notes = _rungs(runs, ladder)
    measured = [rung for rung in rungs if rung.losses]
    if not measured:
        outcomes = runs["outcome"].to_pylist()
        counts = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
        raise AnalysisUnavailable(f"{study}: no trial has finished with a loss yet ({counts})")
    arms = {rung.row.variant: rung.arm for rung in rungs}
    baselines: dict[str, str | None] = {}
    for rung in rungs:
        baselines[rung.arm] = baselines.get(rung.arm) or arms.get(rung.row.baseline or "")
    fit, gains, reasons = fit_ladder(measured, baselines, bootstraps, seed)
    report = Scaling(
        study=study,
        study_hash=runs["study_hash"][0].as_py(),
        ladder=tuple(ladder),
        bootstraps=bootstraps,
        baselines=baselines,
        rungs=tuple(_with_gain(rung, rungs, gains) for rung in rungs),
        fit=fit,
        notes=(),
        spec=find_spec(DEFAULT_METRIC, specs_of(runs)),
    )
    return replace(report, notes=(*_notes(report, reasons), *notes))


def scaling_from_record(record: StudyRecord, runs: pa.Table, bootstraps: int = BOOTSTRAPS) -> Scaling:
    """Return the scaling report of a study's record, with its learning rates. Raises AnalysisUnavailable."""
    report = scaling(runs, record.ladder, bootstraps=bootstraps)
    return replace(report, notes=(*report.notes, _learning_rates(record)))


def _learning_rates(record: StudyRecord) -> str:
    """Say at which learning rates a study's sizes were trained, and why at these."""
    axis = record.ladder[0]
    levels: dict[float, set[str]] = {}
    for variant in record.variants.values():
        if variant.learning_rate is not None:
            levels.setdefault(variant.learning_rate, set()).add(variant.levels.get(axis, "–"))
    rules = {"given": "as given", "search": "each the optimum of a search"}
    each = "; ".join(f"{rate:g} ({', '.join(sorted(of))})" for rate, of in levels.items())
    return f"Learning rates, {rules.get(record.learning_rate, record.learning_rate)}: {each}."


def _rungs(runs: pa.Table, ladder: Sequence[str]) -> tuple[list[Rung], tuple[str, ...]]:
    """Return every variant as a rung of its arm, and the notes that apply to all trials."""
    trials: dict[str, list[dict[str, Any]]] = {}
    for trial in runs.to_pylist():
        trials.setdefault(trial["variant"], []).append(trial)
    compared = [axis for axis in axes_of(runs) if axis not in ladder]
    arms = {variant: arm_of(members[0], ladder) for variant, members in trials.items()}
    names = {variant: arm_of(members[0], compared) for variant, members in trials.items()}
    # A baseline may be of one rung only; each variant is compared with the baseline's arm at its own.
    at = {(arms[variant], names[variant]): variant for variant in trials}
    pairs = zip(runs["variant"].to_pylist(), runs["baseline"].to_pylist(), strict=True)
    paired = [at.get((arms[baseline], names[variant])) if baseline in arms else None for variant, baseline in pairs]
    place = runs.schema.get_field_index("baseline")
    comparison = compare(runs.set_column(place, runs.schema.field(place), pa.array(paired, pa.utf8())))
    rungs = []
    for row in comparison.rows:
        members = trials[row.variant]
        tokens, flops = members[0]["tokens"], members[0]["flops_per_token"]
        if not tokens or not flops:
            lacks = f"{row.variant}: the record of the study lacks its tokens or its FLOPs per token"
            raise AnalysisUnavailable(f"{comparison.study}: {lacks}")
        losses = {
            trial["seed"]: trial[DEFAULT_METRIC]
            for trial in members
            if trial["outcome"] == Status.FINISHED and 0 < (trial[DEFAULT_METRIC] or math.nan) < math.inf
        }
        rungs.append(Rung(arms[row.variant], names[row.variant], row, tokens, float(tokens * flops), losses))
    first = {rung.arm for rung in rungs if rung.row.is_baseline}
    order = list(dict.fromkeys(arms.values()))
    rungs.sort(key=lambda rung: (rung.arm not in first, order.index(rung.arm), rung.compute, rung.rung))
    return rungs, comparison.notes


def _with_gain(rung: Rung, rungs: Sequence[Rung], gains: Gains) -> Rung:
    """Return a rung with its gain in compute and in time."""
    if (rung.arm, rung.rung) not in gains:
        return rung
    gain = gains[rung.arm, rung.rung]
    baseline = next(other.row for other in rungs if other.row.variant == rung.row.baseline)
    speed = rung.row.tokens_per_second / baseline.tokens_per_second
    in_time = None if math.isnan(speed) else Estimate(*(speed * each for each in (gain.value, gain.low, gain.high)))
    return replace(rung, gain=gain, gain_in_time=in_time)


def _notes(report: Scaling, reasons: Mapping[str, str]) -> Iterator[str]:
    fit, rungs = report.fit, report.rungs
    measured = [rung for rung in rungs if rung.losses]
    if fit is not None:
        yield (
            f"Law: {FORMULAS[fit.kind]}; arms share {', '.join(fit.shared)}. Its intervals are 95 % percentiles of "
            f"{report.bootstraps:,} bootstrap replicates; what lies beyond the measured rungs is extrapolated."
        )
        if fit.caveat:
            yield f"{fit.caveat}."
        if all(len(rung.losses) == 1 for rung in measured):
            yield "A single seed at every rung: fits know no noise between seeds, only how far the law is missed."
        ratios = [rung.tokens / rung.row.parameters for rung in measured]
        kinds = [len({rung.row.parameters for rung in measured}), len({rung.tokens for rung in measured})]
        if fit.kind == COMPUTE and min(kinds) > 1 and max(ratios) > 1.5 * min(ratios):
            yield (
                f"Tokens per parameter go from {min(ratios):.3g} to {max(ratios):.3g}, and the law in compute does "
                f"not know of them: {fit.why_compute}."
            )
    for arm in report.baselines:
        if arm in reasons:
            yield f"{arm}: no fit, {reasons[arm]}."
    if not any(report.baselines.values()):
        yield "The study has no baseline, so that nothing is compared."
    elif len(report.baselines) == 1:
        yield "There is one arm only, so that nothing is compared."
    for rung in rungs:
        if not rung.losses:
            counts = ", ".join(f"{count} {name}" for name, count in rung.row.outcomes.items())
            yield f"{rung.arm}, {rung.rung}: left out of the fit, as no trial has a loss ({counts})."
    censored = [rung for rung in measured if "diverged" in rung.row.outcomes]
    if censored:
        where = "; ".join(f"{rung.arm}, {rung.rung}" for rung in censored)
        yield f"Some seeds diverged, and the loss is that of the others: {where}."
