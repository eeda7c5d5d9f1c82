"""What became of a study's claims, as a table."""

import csv
import io
import json
import math
from dataclasses import asdict, fields

from gatelab.results.analyses.claims import SUPPORTED, ClaimResult, Claims
from gatelab.results.views.table import Column, Grid, finite, p_text


def claims_grid(claims: Claims) -> Grid:
    """Claims and verdicts for people."""
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
    rows = []
    for result in claims.results:
        interval = f"[{result.delta.low:+.4f}, {result.delta.high:+.4f}]" if result.delta.n > 1 else "–"
        rows.append(
            (
                result.claim,
                result.metric,
                f"{result.statement}, α = {result.alpha:g}",
                "–" if math.isnan(result.delta.mean) else f"{result.delta.mean:+.4f}",
                interval,
                result.test,
                p_text(result.p),
                result.verdict,
                result.registered,
            )
        )
    several = [result for result in claims.results if result.variants > 1]
    notes = [
        "Each test is one-sided at α; Δ with Student's interval at 1 - 2 α, p of the claim's own test. Supported: that "
        "test places Δ where the claim says; equivalent: within the margin; refuted: where the claim fails."
    ]
    if not claims.results:
        notes = []
    notes += [
        f"{r.claim}: of {r.variants} variants the one that supports it least is shown: {r.variant}." for r in several
    ]
    notes += [f"{result.claim}: not evaluable: {result.reason}." for result in claims.results if result.reason]
    title = f"{claims.study}: claims"
    supported = tuple(result.verdict == SUPPORTED for result in claims.results)
    return Grid(title, columns, tuple(rows), supported, (*notes, *claims.notes))


def claims_csv(claims: Claims) -> str:
    """Claims and verdicts for spreadsheets; numbers that do not exist are empty."""
    out = io.StringIO()
    names = [field.name for field in fields(ClaimResult) if field.name != "delta"]
    writer = csv.writer(out)
    writer.writerow([*names, "delta", "delta_low", "delta_high", "pairs"])
    for result in claims.results:
        numbers = [result.delta.mean, result.delta.low, result.delta.high, result.delta.n]
        cells = [*(getattr(result, name) for name in names), *numbers]
        writer.writerow(["" if cell != cell else cell for cell in cells])
    return out.getvalue()


def claims_json(claims: Claims) -> str:
    """Claims and verdicts for programs; numbers that do not exist are null."""
    return json.dumps(finite(asdict(claims)), indent=1)
