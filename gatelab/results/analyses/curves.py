"""Curves of a study's trials over training, read from their journals and thinned."""

import difflib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gatelab.errors import AnalysisUnavailable
from gatelab.results.statistics.series import Curve, bin_means
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metrics import each_journal, metrics_from_journals, split

MOST_NAMED = 16
"""Metrics that an error names."""

Variants = Mapping[str, str | None]
"""Variant -> its baseline, in the order of the legend."""


def read_curves(folder: RunsFolder, study: str, metric: str, last: int) -> pa.Table:
    """Read a metric of the whole model in long form, as `plot_curves` shows it, of all trials of a study.

    Of a trial that recorded it at many steps up to `last`, the last one that any trial has reached, means over spans:
    all values of all trials may be more than fit in memory. Raises NotFound, and AnalysisUnavailable, which names the
    metrics that there are.
    """
    rows = metrics_from_journals(folder, study, [metric], False, lambda rows: binned_rows(rows, last))
    if not len(rows):
        every = each_journal(folder, folder.study(study).read().trials, layers=False)
        raise unknown_metric(metric, {name for rows in every for name in pc.unique(rows["name"]).to_pylist()})
    return rows


def unknown_metric(metric: str, known: set[str]) -> AnalysisUnavailable:
    """Return the error that names the metrics that there are."""
    every = sorted(known)
    near = difflib.get_close_matches(metric, every, n=1)
    meant = f", did you mean {near[0]}?" if near else ""
    listed = ", ".join(every[:MOST_NAMED]) + (f", … ({len(every)} in all)" if len(every) > MOST_NAMED else "")
    return AnalysisUnavailable(f"metric {metric!r} was not recorded{meant} (there are: {listed or 'none yet'})")


def binned_rows(rows: pa.Table, last: int) -> pa.Table:
    """Average one trial's values of the whole model over spans of steps, metric by metric.

    What is not finite is left out, but for the last value of a metric that has no other.
    """
    parts = [rows.schema.empty_table()]  # an empty slice would keep all of them in memory
    for name in pc.unique(rows["name"]).to_pylist():
        whole = rows.filter(pc.equal(rows["name"], name))
        own = whole.filter(pc.is_finite(whole["value"]))
        if not len(own):
            parts.append(whole.slice(len(whole) - 1))
            continue
        before = own["step"].to_numpy()
        steps, values = bin_means((before, own["value"].to_numpy()), last)
        own = own.take(np.searchsorted(before, steps, side="right") - 1)  # a span has the time of its last value
        for column, found in (("step", steps), ("value", values)):
            own = own.set_column(own.schema.get_field_index(column), column, pa.array(found))
        parts.append(own)
    return pa.concat_tables(parts)


def curves_by_seed(rows: pa.Table, abscissa: str = "step", value: str = "value") -> dict[int, Curve]:
    """Return the curve of each seed, of rows in long form.

    Non-finite values are left out, and seeds that have no other.
    """
    curves = {}
    for seed, mine in sorted(split(rows, "seed").items()):
        where, values = mine[abscissa].to_numpy(), mine[value].to_numpy()
        finite = np.isfinite(values)
        if finite.any():
            curves[seed] = where[finite], values[finite]
    return curves
