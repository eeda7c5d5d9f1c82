"""What a study found, in sentences: how many variants have which verdict, which they are, by how much they differ."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from gatelab.results.analyses.claims import Claims
from gatelab.results.analyses.comparison import UNFINISHED, Comparison, ComparisonRow
from gatelab.results.analyses.learning_rates import LearningRates
from gatelab.results.analyses.scaling import Scaling
from gatelab.results.analyses.verdicts import DIFFERENT, Verdict
from gatelab.results.statistics.paired import LEVEL
from gatelab.results.store.preregistration import RegisterChanged
from gatelab.results.views.format import number, signed
from gatelab.results.views.learning_rates import sentences

MOST_NAMED = 8
"""Variants that are named if no more are compared, and arms that are described."""


DECIDED = (*DIFFERENT, Verdict.EQUIVALENT)
"""Verdicts that say something of a difference: they are told first."""


def summary(
    runs: pa.Table,
    comparison: Comparison,
    claims: Claims | RegisterChanged | None = None,
    learning_rates: LearningRates | None = None,
    scaling: Scaling | None = None,
) -> list[str]:
    """Return the verdicts of a study in a paragraph or a few. Words between backticks are names."""
    claimed = [f"Claims: {_claims(claims)}."] if isinstance(claims, Claims) else []
    verdicts = [" ".join(_verdicts(comparison))]
    arms = []
    if learning_rates is not None:
        told = list(sentences(learning_rates))
        arms += [f"Learning rates of {line.replace(']*', ']')}." for line in told[:MOST_NAMED]]
    if scaling is not None:
        arms += [f"{line}." for line in list(_largest_rungs(scaling))[:MOST_NAMED]]
    # Of a search or a ladder the arms are the answer; what its many variants are says little.
    return [
        *claimed,
        *(arms + verdicts if len(_compared(comparison)) > MOST_NAMED else verdicts + arms),
        *_incomplete(runs),
    ]


def _claims(claims: Claims) -> str:
    """Count the claims by verdict and name them, with when they were made if not before anything was known."""
    groups: dict[Verdict, list[str]] = {}
    for result in claims.results:
        made = result.registered.rpartition(", ")[2]  # without its date
        late = "" if made.startswith("before") else f", made {made}" if made.startswith("after") else f", {made}"
        groups.setdefault(result.verdict, []).append(f"`{result.claim}`{late}")
    return "; ".join(f"{len(names)} {verdict} ({'; '.join(names)})" for verdict, names in groups.items())


def _compared(comparison: Comparison) -> list[ComparisonRow]:
    return [row for row in comparison.rows if row.baseline is not None and not row.is_baseline]


def _has_difference(row: ComparisonRow) -> bool:
    """Return whether the row has an evaluable difference."""
    return row.verdict != Verdict.NOT_EVALUABLE and row.delta is not None and row.delta.n > 0


def short_names(rows: Iterable[ComparisonRow]) -> dict[str, str]:
    """Name variants by their levels alone, where these are words that tell them apart; else by their labels."""
    levels = {row.variant: [level for level in row.levels.values() if level is not None] for row in rows}
    words = all(level[:1].isalpha() and level not in ("true", "false") for own in levels.values() for level in own)
    names = {variant: " ".join(own) for variant, own in levels.items()}
    told_apart = len(set(names.values())) == len(names) and all(names.values())
    return names if words and told_apart else {variant: variant for variant in levels}


def _verdicts(comparison: Comparison) -> Iterator[str]:
    """Count the variants by verdict and name them; then tell the best mean."""
    names = short_names(comparison.rows)
    compared = _compared(comparison)
    baselines = [row for row in comparison.rows if row.is_baseline]
    unit = comparison.spec.unit
    by = f"`{comparison.metric}`{f' ({unit})' if unit else ''}"
    against = f"`{names[baselines[0].variant]}`" if len(baselines) == 1 else "their baselines"
    if len(compared) == 1:
        [row] = compared
        change = f" ({signed(row.delta.mean)})" if row.delta and _has_difference(row) else ""
        change = f" ({row.why})" if row.why else change
        yield f"`{names[row.variant]}` compared with {against} by {by}: {row.verdict}{change}."
    elif compared:
        groups: dict[Verdict, list[ComparisonRow]] = {}
        for row in sorted(compared, key=lambda row: row.verdict not in DECIDED):
            groups.setdefault(row.verdict, []).append(row)
        counts = [f"{len(rows)} {verdict}" for verdict, rows in groups.items()]
        if len(compared) <= MOST_NAMED:
            each = (", ".join(_change(row, names) for row in rows) for rows in groups.values())
            counts = [f"{count} ({them})" for count, them in zip(counts, each, strict=True)]
        yield f"Of {len(compared)} variants compared with {against} by {by}: {'; '.join(counts)}."
        yield from _families(compared)
        if len(compared) > MOST_NAMED and (known := [row for row in compared if _has_difference(row)]):
            known.sort(key=lambda row: row.delta.mean if row.delta else 0)
            yield f"Differences reach from {_change(known[0], names)} to {_change(known[-1], names)}."
    best = next((row for row in comparison.rows if row.best), None)
    if best is not None:
        seeds = f"{best.value.n} seed{'' if best.value.n == 1 else 's'}"
        other = baselines[0] if len(baselines) == 1 and baselines[0] is not best and baselines[0].value.n else None
        than = f"; the baseline's is {number(other.value.mean)}" if other else ""
        yield f"Best mean: {names[best.variant]}, {number(best.value.mean)} over {seeds}{than}."
    elif not any(row.value.n for row in comparison.rows):
        yield f"No trial has finished with a value of {by}."


def _change(row: ComparisonRow, names: Mapping[str, str]) -> str:
    """Return a variant and by how much it differs."""
    name = names[row.variant]
    return f"{name} {signed(row.delta.mean)}" if row.delta and _has_difference(row) else name


def _families(compared: Iterable[ComparisonRow]) -> Iterator[str]:
    """Count the differences that hold over all families, where there are several baselines: some do by chance."""
    tested = [row for row in compared if row.evidence is not None and row.verdict != Verdict.NOT_EVALUABLE]
    baselines = len({row.baseline for row in tested})
    if baselines > 1:
        differ = sum(row.verdict in DIFFERENT and row.evidence.q <= LEVEL for row in tested if row.evidence)
        yield (
            f"Each of {baselines} baselines is a family of its own: over all {len(tested)} comparisons together "
            f"{differ} differ{'s' if differ == 1 else ''} with q ≤ {LEVEL:g}."
        )


def _largest_rungs(found: Scaling) -> Iterator[str]:
    """Tell each arm's difference and gain at the most compute at which it has one."""
    for arm in found.baselines:
        rungs = [rung for rung in found.rungs if rung.arm == arm and not rung.row.is_baseline]
        paired = [(rung, rung.row.delta) for rung in rungs if rung.row.delta is not None and rung.row.delta.n]
        if paired:
            rung, delta = max(paired, key=lambda pair: pair[0].compute)
            if not _has_difference(rung.row):
                yield f"At the largest rung, {rung.rung}: {arm} {rung.row.verdict} ({rung.row.why})"
                continue
            interval = f" [{signed(delta.low)}, {signed(delta.high)}]" if delta.n > 1 else ""
            told = f"At the largest rung, {rung.rung}: {arm} {signed(delta.mean)}{interval}, {rung.row.verdict}"
            if (gain := rung.gain) is not None:
                told += f", compute-equivalent gain {gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
            yield told


def _incomplete(runs: pa.Table) -> Iterator[str]:
    """Count the trials that have no result."""
    counts = Counter(runs["outcome"].to_pylist())
    missing = [f"{counts[outcome]} {outcome}" for outcome in ("diverged", "failed") if counts[outcome]]
    if unfinished := sum(counts[outcome] for outcome in UNFINISHED):
        missing.append(f"{unfinished} not finished yet")
    if missing:
        yield f"Of {runs.num_rows} trials, {', '.join(missing)}: they are counted beside the means, never in them."
