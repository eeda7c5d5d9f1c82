"""The table of numbers that fits and searches give, a row for each: laws, compute-equivalent gains, learning rates."""

import pyarrow as pa

FITS = pa.schema(
    [
        ("law", pa.utf8()),
        ("arm", pa.utf8()),
        ("baseline", pa.utf8()),
        ("rung", pa.utf8()),
        ("quantity", pa.utf8()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("bound", pa.utf8()),
        ("n", pa.int64()),
        ("unit", pa.utf8()),
    ]
)
"""Columns of `fits`."""
