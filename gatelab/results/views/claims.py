"""The verdicts on a study's claims, as a table."""

from collections.abc import Iterator

from gatelab.results.analyses.claims import Claims
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.views import format
from gatelab.results.views.table import Column, Table


def tables(claims: Claims) -> list[Table]:
    """Return the one table."""
    return [claims_table(claims)]


def claims_table(claims: Claims) -> Table:
    """Lay out claims and verdicts for people."""
    columns = (
        Column("claim"),
        Column("metric"),
        Column("claimed"),
        Column("Δ", True),
        Column("interval", True),
        Column("test"),
        Column("p", True),
        Column("verdict"),
        Column("made"),
    )
    rows = tuple(
        (
            result.claim,
            result.metric,
            f"{result.statement}, α = {result.alpha:g}",
            format.delta(result.delta),
            format.interval(result.delta),
            result.test,
            format.p(result.p),
            result.verdict,
            result.registered,
        )
        for result in claims.results
    )
    supported = tuple(result.verdict == Verdict.SUPPORTED for result in claims.results)
    return Table(f"{claims.study}: claims", columns, rows, supported, tuple(_notes(claims)))


def _notes(claims: Claims) -> Iterator[str]:
    if claims.results:
        yield (
            "Each test is one-sided at α; Δ with Student's interval at 1 - 2 α, p of the claim's own test. Supported: "
            "that test places Δ where the claim says; equivalent: within the margin; refuted: where the claim fails."
        )
    for result in claims.results:
        if result.variants > 1:
            yield (
                f"{result.claim}: claimed of {result.variants} variants; the "
                f"{'weaker' if result.variants == 2 else 'weakest'} is shown: {result.variant}."
            )
    for result in claims.results:
        if result.reason:
            yield f"{result.claim}: not evaluable: {result.reason}."
    yield from claims.notes
