"""Trials that failed, as a table."""

from gatelab.results.analyses.failures import Failures
from gatelab.results.views.table import Column, Table

NAMED = 3
"""Trials of a group that are named."""


def tables(failures: Failures) -> tuple[Table, ...]:
    """Return one table, a row for each group; beneath it the first reason and log of each."""
    columns = (Column("failure"), Column("trials", True), Column("which"), Column("cause"))
    rows = []
    notes = []
    for group in failures.groups:
        more = len(group.trials) - NAMED
        which = "; ".join(group.trials[:NAMED]) + (f"; {more} more" if more > 0 else "")
        rows.append((group.kind or "unknown", str(len(group.trials)), which, group.cause or "–"))
        notes.append(f"{group.trials[0]}: {group.reason}" + (f"\n  log: {group.log}" if group.log else ""))
    count = sum(len(group.trials) for group in failures.groups)
    title = f"{count} failed trial{'' if count == 1 else 's'}"
    return (Table(title, columns, tuple(rows), notes=tuple(notes)),)
