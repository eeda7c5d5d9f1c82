"""A comparison as tables: of one metric, of its tests, and of several metrics side by side."""

import math
from collections.abc import Sequence

from gatelab.results.analyses.comparison import Comparison, ComparisonRow, one_family
from gatelab.results.analyses.contrasts import Evidence
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.statistics.blocks import pairing_gain
from gatelab.results.statistics.paired import LEVEL
from gatelab.results.store.runs import short_axes
from gatelab.results.views import format
from gatelab.results.views.format import DASH, number, or_dash, with_unit
from gatelab.results.views.table import Column, Table


def comparison_table(comparison: Comparison) -> Table:
    """Lay out a comparison for people: every variant, what is missing or diverged spelled out."""
    shown_axes = [axis for axis in comparison.axes if any(row.levels[axis] is not None for row in comparison.rows)]
    names = short_axes(shown_axes)
    columns = [Column(names[axis]) for axis in shown_axes] or [Column("variant")]
    columns += [
        Column(with_unit(comparison.metric, comparison.spec), numeric=True),
        Column("Δ to baseline", numeric=True),
        Column("95 % interval", numeric=True),
        Column("p", numeric=True),
        Column("verdict"),
        Column("seeds", numeric=True),
        Column("parameters", numeric=True),
        Column("added", numeric=True),
        Column("tokens/s", numeric=True),
    ]
    rows, several = [], not one_family(comparison.rows)
    for row in comparison.rows:
        levels = [format.level(row.levels[axis]) for axis in shown_axes] or [row.variant]
        rows.append((*levels, *_cells(row, several)))
    return Table(
        f"{comparison.study}: {comparison.metric}",
        tuple(columns),
        tuple(rows),
        tuple(row.best for row in comparison.rows),
        (*_legend(comparison), *comparison.notes),
    )


def tables(comparison: Comparison) -> list[Table]:
    """Return the one table; `tests_table` shows more of its tests."""
    return [comparison_table(comparison)]


def _legend(comparison: Comparison) -> list[str]:
    """Say what the numbers of a comparison are, and what they cannot say."""
    directed = bool(comparison.spec.better)
    tested = [row for row in comparison.rows if row.evidence is not None and not row.why]
    evidence = [row.evidence for row in tested if row.evidence]
    families = sorted({of.family for of in evidence if of.family})
    several = not one_family(comparison.rows)
    smallest = max((of.sign_flip_smallest for of in evidence), default=0.0)
    pairs = min((row.delta.n for row in tested if row.delta), default=0)
    sizes = [of.detectable for of in evidence if math.isfinite(of.detectable)]
    least, most = (f"{bound(sizes, default=math.nan):.2g}" for bound in (min, max))

    best_first = ", best first and in bold" if directed else ""
    adjusted = f"Dunnett test, adjusted for {' or '.join(map(str, families))} comparisons"
    test = adjusted if families[-1:] > [1] else "t-test"  # of one comparison they are the same
    over_all = f", q ≤ 0.05 over all {len(tested)} comparisons of the table" if several else ""
    margin = comparison.margin
    equal = "" if margin is None else f"; equivalent: within ±{margin:g} by two t-tests at 5 %"
    legend = [  # whether it applies, and the text
        (
            True,
            f"Mean over seeds{best_first}; Δ: mean of the differences from the baseline, paired by seed, with "
            "Student's t-interval.",
        ),
        (
            bool(tested),
            f"p: two-sided {test}. Verdict: {'better or worse' if directed else 'lower or higher'} where p ≤ "
            f"0.05{over_all} and the interval excludes 0{equal}; else undecided.",
        ),
        (
            several,
            "Dunnett's test is adjusted for the variants of one baseline, at the seeds that they have in common; q is "
            "Benjamini and Hochberg's, for all (--tests shows it; in p's place where there is no such test).",
        ),
        (
            smallest > 0.05,
            f"With {pairs} pairs the exact sign-flip test cannot give a p below {smallest:.3g}; the t-test assumes "
            "normal differences.",
        ),
        (
            bool(sizes),
            f"Detectable with these seeds: a difference of {least if least == most else f'{least} to {most}'} (80 % "
            "power at 5 %, one comparison).",
        ),
    ]
    lost = [row for row in comparison.rows if row.why and row.why != "no baseline"]
    return [
        *(text for applies, text in legend if applies),
        *(f"† not evaluable: {row.variant}: {row.why}." for row in lost),
    ]


def tests_table(comparison: Comparison) -> Table:
    """Show each test of each variant's difference to its baseline."""
    headings = ["pairs", "Δ", "sd of Δ", "p (t)", "p (sign flip)", "smallest", "p (Dunnett)", "comparisons", "q (BH)"]
    if comparison.margin is not None:
        headings.append(f"p (within ±{comparison.margin:g})")
    headings += ["detectable", "correlation", "seed savings"]
    columns = [Column("variant"), *(Column(name, True) for name in headings)]
    rows = []
    for row in comparison.rows:
        if row.evidence is None or row.delta is None:
            continue
        evidence = row.evidence
        margin = [] if comparison.margin is None else [format.p(evidence.equivalence)]
        gain = pairing_gain(evidence.correlation)
        rows.append(
            (
                row.variant,
                str(row.delta.n),
                or_dash(row.delta.mean, "+.4f"),
                or_dash(evidence.sd, ".2g"),
                *(format.p(p) for p in (evidence.p, evidence.sign_flip, evidence.sign_flip_smallest, evidence.dunnett)),
                str(evidence.family or DASH),
                format.p(evidence.q),
                *margin,
                *(or_dash(value, ".2g") for value in (evidence.detectable, evidence.correlation, gain)),
            )
        )
    notes = (
        "Δ and its p by Student's t, two-sided; sign flip: exact over pairs, with the smallest p that it could give; "
        "Dunnett: adjusted for so many comparisons with one baseline; q: Benjamini and Hochberg over the table.",
        "detectable: the true difference that so many pairs detect with 80 % power at 5 %; correlation: of variants "
        "over seeds; seed savings from pairing: the factor of seeds that an unpaired comparison would need.",
    )
    title = f"{comparison.study}: tests of {comparison.metric}"
    return Table(title, tuple(columns), tuple(rows), notes=notes)


def metrics_table(title: str, comparisons: Sequence[Comparison], notes: Sequence[str]) -> Table:
    """Put several comparisons of one study in one table: a row for each measure, a column for each variant.

    A cell holds the mean and, in parentheses, the paired difference from the baseline with half the width of its
    interval, and the verdict where there is one.
    """
    variants = {row.variant: row for row in comparisons[0].rows}
    order = sorted(variants, key=lambda variant: not variants[variant].is_baseline)
    rows = []
    zeros = [comparison.metric for comparison in comparisons if all(row.value.mean == 0 for row in comparison.rows)]
    for comparison in comparisons:
        cells = {row.variant: _mean_and_difference(row) for row in comparison.rows}
        if comparison.metric not in zeros:
            rows.append((with_unit(comparison.metric, comparison.spec), *(cells[variant] for variant in order)))
    seeds = sorted({row.value.n for row in variants.values()})
    legend = (
        f"Mean over {' or '.join(map(str, seeds))} seeds (difference from the baseline, paired by seed, ± half of its "
        "95 % t-interval, and the verdict if there is one: at 5 %, adjusted for the variants, not for the measures)."
    )
    if zeros:
        notes = [*notes, f"0 for every variant and seed: {', '.join(zeros)}."]
    columns = [Column("measure"), *(Column(variant, numeric=True) for variant in order)]
    title = f"{comparisons[0].study}: {title}"
    return Table(title, tuple(columns), tuple(rows), notes=(legend, *notes))


def _mean_and_difference(row: ComparisonRow) -> str:
    if row.value.n == 0:
        return DASH
    mean = f"{row.value.mean:.{5 if abs(row.value.mean) >= 0.1 else 2}g}"
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        return mean
    if row.delta.n == 1:
        return f"{mean} ({row.delta.mean:+.2g})"
    half = (row.delta.high - row.delta.low) / 2
    verdict = f", {row.verdict}" if row.verdict not in (Verdict.UNDECIDED, Verdict.NOT_EVALUABLE) else ""
    return f"{mean} ({row.delta.mean:+.2g} ± {half:.2g}{verdict})"


def _cells(row: ComparisonRow, several: bool) -> list[str]:
    difference = None if row.is_baseline else row.delta
    added = DASH if row.added_parameters is None else f"{row.added_parameters:+,}" if row.added_parameters else "0"
    return [
        DASH if math.isnan(row.value.mean) else number(row.value.mean),
        format.delta(difference),
        format.interval(difference),
        DASH if row.evidence is None or row.why else _adjusted_p(row.evidence),
        f"{row.verdict}{'†' if row.why and row.baseline else ''}{_unlike_p(row, several)}",
        format.seeds(row.value.n, row.outcomes),
        f"{row.parameters:,}",
        added,
        DASH if math.isnan(row.tokens_per_second) else f"{row.tokens_per_second:,.0f}",
    ]


def _adjusted_p(evidence: Evidence) -> str:
    return format.p(evidence.dunnett) if not math.isnan(evidence.dunnett) else f"{format.p(evidence.q)} (q)"


def _unlike_p(row: ComparisonRow, several: bool) -> str:
    """Say why a difference is undecided whose p in the table says otherwise."""
    if row.verdict != Verdict.UNDECIDED or row.evidence is None or row.why:
        return ""
    evidence = row.evidence
    shown = evidence.q if math.isnan(evidence.dunnett) else evidence.dunnett
    if not shown <= LEVEL:
        return ""
    if evidence.p > LEVEL:
        return ": its own interval contains 0"
    return f": q = {format.p(evidence.q)} over the table" if several and evidence.q > LEVEL else ""
