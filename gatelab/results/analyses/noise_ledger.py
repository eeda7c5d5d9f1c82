"""The noise ledger: how metrics scattered over seeds in earlier studies, and so what a planned one can detect.

A row for each study, baseline and metric, in the runs folder: studies that follow are planned with the noise of those
before, pooled over what was trained on the same data at about the same scale.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gatelab.atomic import replacing
from gatelab.results.analyses.contrasts import contrasts
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.runs import metrics_of

SCHEMA = pa.schema(
    [
        ("study", pa.utf8()),
        ("baseline", pa.utf8()),
        ("metric", pa.utf8()),
        ("data", pa.utf8()),  # its identity
        ("parameters", pa.int64()),  # of the baseline
        ("tokens", pa.int64()),  # to train on
        ("sd_of_seeds", pa.float64()),  # of one variant
        ("sd_of_differences", pa.float64()),  # of a variant to its baseline at the same seed
        ("correlation", pa.float64()),  # of two variants over seeds
        ("df", pa.int64()),
        ("variants", pa.int64()),
        ("seeds", pa.int64()),
        ("written", pa.utf8()),  # ISO 8601, UTC
    ]
)


logger = logging.getLogger(__name__)


NEAR = 0.5
"""Decades of compute within which studies are pooled."""


@dataclass(frozen=True)
class KnownNoise:
    """Noise of a metric at a scale, by the ledger."""

    sd: float
    """Standard deviation of paired differences."""
    correlation: float
    df: int
    studies: tuple[str, ...]
    decades: float
    """Between the compute of these studies and that which was asked for; 0: within half a decade."""
    same_data: bool

    def __str__(self) -> str:
        named = f"{', '.join(self.studies[:3])}{', …' if len(self.studies) > 3 else ''}"
        caveats = [] if self.same_data else ["other data"]
        if self.decades:
            caveats.append(f"{10 ** abs(self.decades):.3g} times {'more' if self.decades > 0 else 'less'} compute")
        but = f" ({'; '.join(caveats)})" if caveats else ""
        return f"sd of differences {self.sd:.2g} in {named}{but}"


def update_ledger(folder: RunsFolder, runs: pa.Table) -> None:
    """Put the noise of a study into the ledger, in the place of what it said of this study before."""
    rows = list(_rows(runs))
    study = runs["study"][0].as_py()
    folder.root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.noise.with_suffix(".lock")):
        known = _ledger(folder)
        others = known.filter(pc.not_equal(known["study"], study))
        with replacing(folder.noise) as temporary:
            pq.write_table(pa.concat_tables([others, pa.Table.from_pylist(rows, SCHEMA)]), temporary)


def known_noise(folder: RunsFolder, metric: str, data: str, parameters: int, tokens: int) -> KnownNoise | None:
    """Return the noise of a metric from the nearest studies: on the same data, if there are any, and in compute."""
    rows = [row for row in _ledger(folder).to_pylist() if row["metric"] == metric and row["df"] > 0]
    same = [row for row in rows if row["data"] == data]
    candidates = same or rows
    if not candidates:
        return None

    def decades(row: dict[str, Any]) -> float:
        return math.log10(int(row["parameters"]) * int(row["tokens"])) - math.log10(parameters * tokens)

    near = [row for row in candidates if abs(decades(row)) <= NEAR]
    nearest = min(candidates, key=lambda row: abs(decades(row)))
    pooled = near or [row for row in candidates if abs(decades(row) - decades(nearest)) < 0.01]
    df = sum(int(row["df"]) for row in pooled)

    def mean(values: Iterator[tuple[float, int]]) -> float:
        return math.fsum(value * weight for value, weight in values) / df

    return KnownNoise(
        sd=math.sqrt(mean((row["sd_of_differences"] ** 2, row["df"]) for row in pooled)),
        correlation=mean((row["correlation"], row["df"]) for row in pooled),
        df=df,
        studies=tuple(dict.fromkeys(row["study"] for row in pooled)),
        decades=0.0 if near else decades(nearest),
        same_data=bool(same),
    )


def _ledger(folder: RunsFolder) -> pa.Table:
    """Read the ledger, or return an empty one. A file that cannot be read is one less to plan by, no reason to stop."""
    if not folder.noise.exists():
        return SCHEMA.empty_table()
    try:
        return pq.read_table(folder.noise).cast(SCHEMA)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        logger.warning("%s cannot be read, and starts anew: %s", folder.noise, error)
        return SCHEMA.empty_table()


def _rows(runs: pa.Table) -> Iterator[dict[str, Any]]:
    fixed = ["study", "variant", "data", "parameters", "tokens"]
    of_variant = {row["variant"]: row for row in runs.select(fixed).to_pylist() if all(row.values())}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for metric in metrics_of(runs):
        found = {contrast.baseline: contrast.noise for contrast in contrasts(runs, metric).values() if contrast.noise}
        for baseline, noise in found.items():
            first = of_variant.get(baseline)
            if first is None:
                continue
            yield {
                **{name: first[name] for name in ("study", "data", "parameters", "tokens")},
                "baseline": baseline,
                "metric": metric,
                "sd_of_seeds": noise.sd_of_seeds,
                "sd_of_differences": noise.sd,
                "correlation": noise.correlation,
                "df": noise.df,
                "variants": len(noise.variants),
                "seeds": len(noise.seeds),
                "written": now,
            }
