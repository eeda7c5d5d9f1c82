"""Text that tokenizers throw away: why bits per byte of trials on other data may not be compared."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

PER_BYTE, LOST = "bits_per_byte", "lost_bytes"
"""Parts of the names of metrics: one that compares across tokenizers, and the share of the bytes that theirs lost."""
NEGLIGIBLE = 1e-4
"""Largest share of lost bytes that is only noted: at some eight bits a byte it changes bits per byte by 0.001."""


@dataclass(frozen=True)
class LostText:
    """What the tokenizer of a variant lost of the validation text, and what data it was trained on."""

    share: float
    data: frozenset[str]

    @property
    def reason(self) -> str:
        """Why its bits per byte are not those of the text."""
        return f"its tokenizer loses {100 * self.share:.2g} % of the text"


def lost_text(runs: pa.Table, metric: str) -> dict[str, LostText]:
    """Map each variant of a `runs` frame to the text that it lost, if the metric is one that leaves it out.

    Without such a loss, and for other metrics, the map is empty.
    """
    column = metric.replace(PER_BYTE, LOST)
    if PER_BYTE not in metric or column not in runs.column_names:
        return {}
    shares: dict[str, float] = {}
    data: dict[str, set[str]] = {}
    for trial in runs.select(["variant", "data", column]).to_pylist():
        shares[trial["variant"]] = max(shares.get(trial["variant"], 0.0), trial[column] or 0.0)
        data.setdefault(trial["variant"], set()).update({trial["data"]} - {None})
    return {variant: LostText(share, frozenset(data[variant])) for variant, share in shares.items()}


def incomparable(variant: LostText, baseline: LostText) -> str:
    """Return why two variants do not compare, or ''. On the same data both lose the same."""
    if variant.data == baseline.data:
        return ""
    if variant.share > NEGLIGIBLE:
        return variant.reason
    return f"of its baseline: {baseline.reason}" if baseline.share > NEGLIGIBLE else ""


def incomparable_variants(runs: pa.Table, metric: str) -> dict[str, str]:
    """Map variants that do not compare with the study's others to the reason. All on the same data do."""
    lost = lost_text(runs, metric)
    if len({variant.data for variant in lost.values()}) < 2:
        return {}
    return {label: variant.reason for label, variant in lost.items() if variant.share > NEGLIGIBLE}


def lost_text_notes(runs: pa.Table, metric: str) -> Iterator[str]:
    """Say which variants lost some text, but compare with the others none the less."""
    unfair = incomparable_variants(runs, metric)
    for variant, lost in lost_text(runs, metric).items():
        if lost.share and variant not in unfair:
            yield f"{variant}: {lost.reason}, which bits per byte leave out"
