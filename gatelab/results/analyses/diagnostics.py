"""What the diagnostics of a study show: by layer, over training, by position, and in a table of paired differences."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from gatelab.errors import AnalysisUnavailable
from gatelab.metrics import find_spec
from gatelab.results.analyses.comparison import Comparisons, compare
from gatelab.results.analyses.curves import binned_rows
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.metrics import metrics_from_journals, named
from gatelab.results.store.runs import metrics_of

LAYER_PANELS = (
    "attention/first_token_share",
    "attention/first_token_share_top_head",
    "attention/entropy",
    "attention/max_logit",
    "activation/attention_residual",
    "activation/ffn_output",
    "activation/ffn_residual",
    "sdpa/mean_abs",
    "sdpa/below_1e-2",
)


TRAINING_PANELS = (
    "attention/first_token_share_late",
    "attention/first_token_share_top_head",
    "attention/entropy",
    "attention/max_logit",
    "activation/ffn_residual",
    "sdpa/below_1e-2",
)


GATE_PANELS = ("mean", "below_0.1")  # of each position that has a gate


TABLE = (
    "validation/loss",
    "attention/first_token_share",
    "attention/first_token_share_late",
    "attention/first_token_share_top_head",
    "attention/entropy",
    "attention/max_logit",
    "activation/ffn_residual",
    "sdpa/mean_abs",
    "sdpa/below_1e-2",
    *("train/loss_spikes", "train/gradient_spikes"),
)


GATE_TABLE = ("mean", "below_0.1", "first_token_mean")


AT_LAST = ("histogram/gate/*", "validation/position/*")
"""Metrics, as patterns, of which figures show the last evaluation, by layer or of the whole model."""


DRAWN = {*LAYER_PANELS, *TRAINING_PANELS, "attention/*_uniform", "gate/*", "weight_norm/gate_*", *AT_LAST}
"""All that figures show."""


def read_diagnostics(folder: RunsFolder, study: str, last: int) -> pa.Table:
    """Read what the figures show of a study's values, in long form; see `drawn_rows`. Raises NotFound."""
    return metrics_from_journals(folder, study, DRAWN, keep=lambda rows: drawn_rows(rows, last))


def drawn_rows(rows: pa.Table, last: int) -> pa.Table:
    """Keep what the figures show of a trial's values of metrics in `DRAWN`.

    Of layers, histograms and positions its last evaluation; of the whole model all evaluations, or means over spans of
    the steps up to `last`, the last one that any trial has reached, where they are many.
    """
    parts, rest = [], rows
    for pattern in AT_LAST:
        mine = named(rest, pattern)
        parts.append(_of_last_step(rest.filter(mine)))
        rest = rest.filter(pc.invert(mine))
    of_layers = pc.is_valid(rest["layer"])
    parts.append(_of_last_step(rest.filter(of_layers)))
    return pa.concat_tables([*parts, binned_rows(rest.filter(pc.invert(of_layers)), last)])


def _of_last_step(rows: pa.Table) -> pa.Table:
    """Return the rows of one trial's last step."""
    return rows.filter(pc.equal(rows["step"], pc.max(rows["step"])))


def diagnostics(runs: pa.Table) -> Comparisons:
    """Compare a study by each diagnostic that its trials have. Raises AnalysisUnavailable."""
    known = set(metrics_of(runs))
    positions = sorted({name.split("/")[1] for name in known if name.startswith("gate/")})
    gates = (f"gate/{position}/{kind}" for position in positions for kind in GATE_TABLE)
    names = [name for name in (*TABLE, *gates) if name in known]
    if "attention/entropy" not in known:
        raise no_diagnostics()
    return Comparisons(tuple(compare(runs, name) for name in names), tuple(_notes(runs)))


def no_diagnostics() -> AnalysisUnavailable:
    """Return the error for a study that has recorded none."""
    return AnalysisUnavailable("no trial has recorded diagnostics yet, or evaluation.diagnostic_tokens is 0")


def _notes(runs: pa.Table) -> Iterator[str]:
    yield "Of each trial's last evaluation, the mean over layers (attention/max_logit: the largest)."
    if lengths := _values(runs, "attention/sequence_length"):
        yield f"Sequences of {lengths} tokens."
    specs = specs_of(runs)
    floors = [f"{name} {values}" for name in TABLE if (values := _values(runs, find_spec(name, specs).floor))]
    if floors:
        yield f"Attention uniform over the past would show: {', '.join(floors)}."


def _values(runs: pa.Table, name: str) -> str:
    """Format the distinct values of a metric for people."""
    known = runs[name].to_pylist() if name in runs.column_names else []
    return " or ".join(f"{value:.4g}" for value in sorted({value for value in known if value is not None}))
