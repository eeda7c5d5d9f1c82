"""What every launch of the Triton kernels compiles to, without a GPU: registers, spills, shared memory, tensor cores.

    python benchmarks/compile_report.py [--capability 90] [--head-dims 64 128] [--json]

Compiles what `forward` and `backward` launch, for a GPU that need not be there, with the assembler and the disassembler
that Triton ships. Local memory ("spilled") is registers that did not fit.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gatelab.kernels import triton_attention

SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes per block, CUDA guide table 30
CASES = {  # gate shape, activation, combine, query heads per key head
    "none": (None, "identity", "none", 1),
    "elementwise sigmoid": ("elementwise", "sigmoid", "multiply", 1),
    "headwise sigmoid": ("headwise", "sigmoid", "multiply", 1),
    "elementwise silu": ("elementwise", "silu", "multiply", 1),
    "elementwise tanh, added": ("elementwise", "tanh", "add", 1),
    "elementwise sigmoid, grouped": ("elementwise", "sigmoid", "multiply", 4),
    "shared sigmoid": ("shared", "sigmoid", "multiply", 1),
}


KERNELS = ("forward", "query pass", "key pass")


class AbsentGpu:
    """The part of a Triton driver that compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_only(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Make launches compile and go no further; yield the list that (kernel's name, compiled kernel) is added to."""
    compiled: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.__name__.strip("_").replace("_", " "), kernel))
        return kernel

    of_device = triton_attention.architecture
    driver.set_active(AbsentGpu(capability))
    JITFunction.run = compile_only
    triton_attention.architecture = lambda device: "hopper" if capability // 10 in (9, 10) else "ampere"
    try:
        yield compiled
    finally:
        JITFunction.run = run
        triton_attention.architecture = of_device


def resources(kernel: Any) -> dict[str, int]:
    """Return registers per thread, spilled bytes per thread, shared memory per block, tensor-core instructions."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        dumps = [
            subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout
            for what in ("--dump-resource-usage", "--dump-sass")
        ]
    found = re.search(r"REG:(\d+) STACK:(\d+)", dumps[0])
    assert found is not None
    return {
        "registers": int(found[1]),
        "spilled": int(found[2]),
        "shared": kernel.metadata.shared,
        "tensor": len(re.findall(r"\bHG?MMA\b", dumps[1])),
    }


def compile_case(case: str, head_dim: int, dtype: torch.dtype, capability: int, causal: bool = True) -> list[dict]:
    """Compile one forward and backward; a row for each launch."""
    kind, activation, combine, group = CASES[case]
    batch, length, heads = 2, 64, 4
    q, dy = (torch.zeros(batch, length, heads, head_dim, dtype=dtype) for _ in range(2))
    k, v = (torch.zeros(batch, length, heads // group, head_dim, dtype=dtype) for _ in range(2))
    shapes = {"elementwise": (heads, head_dim), "headwise": (heads, 1), "shared": (1, head_dim)}
    gate = torch.zeros(batch, length, *shapes[kind], dtype=dtype) if kind else None
    rows = []
    with compiling_only(capability) as compiled:
        options = (None, activation, combine, causal, head_dim**-0.5)
        y, o, lse = triton_attention.forward(q, k, v, gate, *options)
        triton_attention.backward(dy, q, k, v, gate, y, o, lse, *options)
        launches = [
            (name, kernel, triton_attention.tiles_for(name, q) if name in KERNELS else None)
            for name, kernel in compiled
        ]
    for name, kernel, tiles in launches:
        rows.append(
            {
                "kernel": name if tiles else "gate backward",
                "case": case,
                "head_dim": head_dim,
                "dtype": str(dtype).removeprefix("torch."),
                "tiles": f"{tiles.own}x{tiles.loop}" if tiles else "",
                "warps": kernel.metadata.num_warps,
                "stages": kernel.metadata.num_stages,
                **resources(kernel),
            }
        )
    return rows


def report(capability: int, head_dims: list[int], dtypes: list[torch.dtype], cases: list[str]) -> list[dict[str, Any]]:
    """Return rows for all cases."""
    rows = []
    for head_dim, dtype, case in itertools.product(head_dims, dtypes, cases):
        rows += compile_case(case, head_dim, dtype, capability)
        print(f"compiled head_dim {head_dim}, {dtype}, {case}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int, default=90, help="80: A100, 90: H100")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    dtypes = [getattr(torch, name) for name in arguments.dtypes]
    rows = report(arguments.capability, arguments.head_dims, dtypes, arguments.cases)
    limit = SHARED_LIMIT[arguments.capability]
    if arguments.json:
        machine = {"triton": triton.__version__, "torch": torch.__version__}
        print(json.dumps({"capability": arguments.capability, "shared_limit": limit, **machine, "rows": rows}))
        return
    print(f"compute capability {arguments.capability}, Triton {triton.__version__}; at most {limit:,} B shared memory")
    print(f"{'kernel':<14} {'case':<30} {'D':>4} {'dtype':<9} {'tiles':<8} {'warps':>5} {'stages':>6}"
          f" {'registers':>9} {'spilled':>8} {'shared':>9} {'MMA':>5}")  # fmt: skip
    for row in rows:
        print(f"{row['kernel']:<14} {row['case']:<30} {row['head_dim']:>4} {row['dtype']:<9} {row['tiles']:<8}"
              f" {row['warps']:>5} {row['stages']:>6} {row['registers']:>9} {row['spilled']:>6} B {row['shared']:>7,} B"
              f" {row['tensor']:>5}")  # fmt: skip


if __name__ == "__main__":
    main()
