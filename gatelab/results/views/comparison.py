"""Tables for people: a grid of texts, and its forms for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from gatelab.results.analyses.comparison import Comparison, ComparisonRow, Evidence, comparison_records, one_family
from gatelab.results.statistics.blocks import pairing_gain
from gatelab.results.store.metric_specs import measure, with_unit
from gatelab.results.store.runs import short_axes
from gatelab.results.views.table import Column, Grid, finite, number, or_dash, p_text


def comparison_grid(comparison: Comparison) -> Grid:
    """A comparison for people: every variant, what is missing or diverged spelled out."""
    shown_axes = [axis for axis in comparison.axes if any(row.levels[axis] is not None for row in comparison.rows)]
    names = short_axes(shown_axes)
    columns = [Column(names[axis]) for axis in shown_axes] or [Column("variant")]
    columns += [
        Column(with_unit(comparison.metric), numeric=True),
        Column("Δ to baseline", numeric=True),
        Column("95 % interval", numeric=True),
        Column("p", numeric=True),
        Column("verdict"),
        Column("seeds", numeric=True),
        Column("parameters", numeric=True),
        Column("added", numeric=True),
        Column("tokens/s", numeric=True),
    ]
    rows = []
    for row in comparison.rows:
        levels = [row.levels[axis] or "–" for axis in shown_axes] or [row.variant]
        rows.append((*levels, *_cells(row)))
    return Grid(
        f"{comparison.study}: {comparison.metric}",
        tuple(columns),
        tuple(rows),
        tuple(row.best for row in comparison.rows),
        (*_legend(comparison), *comparison.notes),
    )


def _legend(comparison: Comparison) -> Iterator[str]:
    """What the numbers of a comparison are, and what they cannot say."""
    directed = measure(comparison.metric).better
    yield (
        f"Mean over seeds{', best first and in bold' if directed else ''}; Δ: mean of the differences to the baseline "
        "at equal seeds, with Student's t-interval."
    )
    tested = [row for row in comparison.rows if row.evidence is not None and not row.why]
    if tested:
        families = sorted({row.evidence.family for row in tested if row.evidence and row.evidence.family})
        allowing = f", which allows for {' or '.join(map(str, families))} variants," if families[-1:] > [1] else ""
        words = "better or worse" if directed else "lower or higher"
        equal = (
            "" if comparison.margin is None else f"; equivalent: within ±{comparison.margin:g} by two t-tests at 5 %"
        )
        several = not one_family(comparison.rows)
        over_all = f", q ≤ 0.05 over all {len(tested)} comparisons of the table" if several else ""
        yield (
            f"p: Dunnett's test{allowing} two-sided. Verdict: {words} where p ≤ 0.05{over_all} and the interval leaves "
            f"out 0{equal}; else undecided."
        )
        if over_all:
            yield (
                "Dunnett's test allows for the variants of one baseline, at the seeds that they have in common; q is "
                "Benjamini and Hochberg's, for all (--tests shows it; in p's place where there is no such test)."
            )
        smallest = max(row.evidence.sign_flip_smallest for row in tested if row.evidence)
        if smallest > 0.05:
            pairs = min(row.delta.n for row in tested if row.delta)
            yield (
                f"With {pairs} pairs the exact sign-flip test cannot give a p below {smallest:.3g}: the t-test takes "
                "differences to be normal."
            )
        sizes = [row.evidence.detectable for row in tested if row.evidence and math.isfinite(row.evidence.detectable)]
        if sizes:
            low, high = (f"{size:.2g}" for size in (min(sizes), max(sizes)))
            yield (
                f"Detectable with these seeds: a difference of {low if low == high else f'{low} to {high}'} (80 % "
                "power at 5 %, one comparison)."
            )
    for row in comparison.rows:
        if row.why and row.why != "no baseline":
            yield f"† not evaluable: {row.variant}: {row.why}."


def tests_grid(comparison: Comparison) -> Grid:
    """What was tested of each variant's difference to its baseline, test by test."""
    headings = ["pairs", "Δ", "sd of Δ", "p (t)", "p (sign flip)", "smallest", "p (Dunnett)", "for", "q (BH)"]
    if comparison.margin is not None:
        headings.append(f"p (within ±{comparison.margin:g})")
    columns = [Column("variant"), *(Column(name, True) for name in (*headings, "detectable", "correlation", "gain"))]
    rows = []
    for row in comparison.rows:
        if row.evidence is None or row.delta is None:
            continue
        evidence = row.evidence
        margin = [] if comparison.margin is None else [p_text(evidence.equivalence)]
        gain = pairing_gain(evidence.correlation)
        rows.append(
            (
                row.variant,
                str(row.delta.n),
                or_dash(row.delta.mean, "+.4f"),
                or_dash(evidence.sd, ".2g"),
                *(p_text(p) for p in (evidence.p, evidence.sign_flip, evidence.sign_flip_smallest, evidence.dunnett)),
                str(evidence.family or "–"),
                p_text(evidence.q),
                *margin,
                *(or_dash(value, ".2g") for value in (evidence.detectable, evidence.correlation, gain)),
            )
        )
    notes = (
        "Δ and its p by Student's t, two-sided; sign flip: exact over pairs, with the smallest p that it could give; "
        "Dunnett: allows for so many variants against one baseline; q: Benjamini and Hochberg over the table.",
        "detectable: the true difference that so many pairs detect with 80 % power at 5 %; correlation: of variants "
        "over seeds; gain: how many times as many seeds an unpaired comparison would need.",
    )
    title = f"{comparison.study}: tests of {comparison.metric}"
    return Grid(title, tuple(columns), tuple(rows), (False,) * len(rows), notes)


def measures_grid(title: str, comparisons: Sequence[Comparison], notes: Sequence[str]) -> Grid:
    """Several comparisons of one study in one table: a row for each measure, a column for each variant.

    A cell holds the mean and, in parentheses, the paired difference to the baseline with half the width of its
    interval, and the verdict where there is one.
    """
    variants = {row.variant: row for row in comparisons[0].rows}
    order = sorted(variants, key=lambda variant: not variants[variant].is_baseline)
    rows = []
    zeros = [comparison.metric for comparison in comparisons if all(row.value.mean == 0 for row in comparison.rows)]
    for comparison in comparisons:
        cells = {row.variant: _mean_and_difference(row) for row in comparison.rows}
        if comparison.metric not in zeros:
            rows.append((with_unit(comparison.metric), *(cells[variant] for variant in order)))
    seeds = sorted({row.value.n for row in variants.values()})
    legend = (
        f"Mean over {' or '.join(map(str, seeds))} seeds (difference to the baseline at equal seeds ± half of its 95 % "
        "t-interval, and the verdict if there is one: at 5 %, allowing for the variants, not for how many measures)."
    )
    if zeros:
        notes = [*notes, f"0 for every variant and seed: {', '.join(zeros)}."]
    columns = [Column("measure"), *(Column(variant, numeric=True) for variant in order)]
    title = f"{comparisons[0].study}: {title}"
    return Grid(title, tuple(columns), tuple(rows), (False,) * len(rows), (legend, *notes))


def _mean_and_difference(row: ComparisonRow) -> str:
    if row.value.n == 0:
        return "–"
    mean = f"{row.value.mean:.{5 if abs(row.value.mean) >= 0.1 else 2}g}"
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        return mean
    if row.delta.n == 1:
        return f"{mean} ({row.delta.mean:+.2g})"
    half = (row.delta.high - row.delta.low) / 2
    verdict = f", {row.verdict}" if row.verdict not in ("undecided", "not evaluable") else ""
    return f"{mean} ({row.delta.mean:+.2g} ± {half:.2g}{verdict})"


def comparison_json(comparison: Comparison) -> str:
    """A comparison for programs, with full precision; numbers that do not exist are null."""
    return json.dumps(comparison_dict(comparison), indent=1)


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON values; numbers that do not exist are None."""
    rows = [{**asdict(row), "is_baseline": row.is_baseline} for row in comparison.rows]
    whole: dict[str, Any] = finite({**asdict(comparison), "rows": rows})
    return whole


def comparison_csv(*comparisons: Comparison) -> str:
    """Comparisons of one study for spreadsheets, with full precision; numbers that do not exist are empty."""
    out = io.StringIO()
    rows = [row for comparison in comparisons for row in comparison_records(comparison)]
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if cell is None or cell != cell else cell for name, cell in row.items()})
    return out.getvalue()


def _cells(row: ComparisonRow) -> list[str]:
    value = "–" if math.isnan(row.value.mean) else number(row.value.mean)
    if row.is_baseline or row.delta is None or row.delta.n == 0:
        delta, interval = "–", "–"
    else:
        delta = f"{row.delta.mean:+.4f}"
        interval = "–" if row.delta.n == 1 else f"[{row.delta.low:+.4f}, {row.delta.high:+.4f}]"
    added = "–" if row.added_parameters is None else f"{row.added_parameters:+,}" if row.added_parameters else "0"
    speed = "–" if math.isnan(row.tokens_per_second) else f"{row.tokens_per_second:,.0f}"
    p = "–" if row.evidence is None or row.why else _adjusted_p(row.evidence)
    verdict = f"{row.verdict}{'†' if row.why and row.baseline else ''}"
    return [value, delta, interval, p, verdict, _seeds(row), f"{row.parameters:,}", added, speed]


def _adjusted_p(evidence: Evidence) -> str:
    return p_text(evidence.dunnett) if not math.isnan(evidence.dunnett) else f"{p_text(evidence.q)} (q)"


def _seeds(row: ComparisonRow) -> str:
    """'3', or '2 + 1 diverged' where not all finished."""
    others = [f"{count} {name}" for name, count in row.outcomes.items() if name != "finished"]
    return " + ".join([str(row.value.n), *others])
