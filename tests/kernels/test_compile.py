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


WIDTHS: dict[str, tuple[int, list[int], list[str] | None]] = {  # capability, head dimensions, kinds of gate (None: all)
    "hopper-128-all-gates": (90, [128], None),
    "hopper": (90, [16, 32, 64], HARDEST),
    "ampere": (80, [64, 128], HARDEST[1:]),
}
SCRIPT = """
import json, runpy, sys
import torch
found = runpy.run_path(sys.argv[1])
rows = {}
for name, (capability, widths, cases) in json.loads(sys.argv[2]).items():
    rows[name] = found["report"](capability, widths, [torch.bfloat16], cases or list(found["CASES"]))
    assert all(row["shared"] <= found["SHARED_LIMIT"][capability] for row in rows[name])
print(json.dumps(rows))
"""


def run(*arguments: str) -> Any:
    """What a Python process prints as JSON. In a process of its own: in this one the kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[dict[str, Any]]]:
    """Rows of the report for each name in WIDTHS, from one process: it takes seconds to load PyTorch and Triton."""
    found: dict[str, list[dict[str, Any]]] = run("-c", SCRIPT, str(REPORT), json.dumps(WIDTHS))
    return found


@pytest.mark.parametrize("name", WIDTHS)
def test_no_kernel_spills_and_all_products_use_tensor_cores(
    name: str, compiled: dict[str, list[dict[str, Any]]]
) -> None:
    """A spilled register costs more than a fused gate saves; a product without tensor cores, ten times that."""
    rows = compiled[name]
    assert {row["kernel"] for row in rows} >= {"forward", "query pass", "key pass"}
    assert {row["head_dim"] for row in rows} == set(WIDTHS[name][1])
    for row in rows:
        print(row)
        assert row["spilled"] == 0, row
        assert row["tensor"] > 0 or row["kernel"] == "gate backward", row


def test_consumer_gpus_have_enough_shared_memory() -> None:
    """Launches that need more than 99 KiB per block fail on an RTX 3090 or 4090."""
    found = run(str(REPORT), "--json", "--capability", "86", "--head-dims", "128", "--cases", "elementwise sigmoid")
    assert found["rows"]
    for row in found["rows"]:
        print(row)
        assert row["shared"] <= found["shared_limit"]
