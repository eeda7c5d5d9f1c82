"""The Triton kernels compiled for GPUs that need not be there: no spills, tensor cores in use, shared memory in limits.

Compiling a launch takes a second or two, and each kernel, width and kind of gate is one: hence the time this takes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

REPORT = Path(__file__).parents[2] / "benchmarks" / "compile_report.py"
HARDEST = ["headwise sigmoid", "elementwise silu", "elementwise sigmoid, grouped"]


def report(*arguments: str) -> list[dict[str, Any]]:
    """Rows of the report. In a process of its own: in this one the kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(REPORT), "--json", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    for row in found["rows"]:
        print(row)
        assert row["shared"] <= found["shared_limit"]
    return list(found["rows"])


@pytest.mark.parametrize(
    ("capability", "widths", "cases"),
    [
        pytest.param(90, [128], [], id="hopper-128-all-gates"),
        pytest.param(90, [16, 32, 64], HARDEST, id="hopper"),
        pytest.param(80, [64, 128], HARDEST[1:], id="ampere"),
    ],
)
def test_no_kernel_spills_and_all_products_use_tensor_cores(
    capability: int, widths: list[int], cases: list[str]
) -> None:
    """A spilled register costs more than a fused gate saves; a product without tensor cores, ten times that."""
    arguments = ["--capability", str(capability), "--head-dims", *map(str, widths)]
    rows = report(*arguments, *(["--cases", *cases] if cases else []))
    assert {row["kernel"] for row in rows} >= {"forward", "query pass", "key pass"}
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["tensor"] > 0 or row["kernel"] == "gate backward", row


def test_consumer_gpus_have_enough_shared_memory() -> None:
    """Launches that need more than 99 KiB per block fail on an RTX 3090 or 4090."""
    assert report("--capability", "86", "--head-dims", "128", "--cases", "elementwise sigmoid")
