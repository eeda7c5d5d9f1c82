"""Gated attention, forward and backward: gatelab's backends against PyTorch's attention with a gate beside it.

    python benchmarks/attention.py [--device auto] [--rounds 7] [--quick] [--json results.json]

Needs torch, and triton on a GPU; nothing else of the project's dependencies. Every candidate is first held against
float64; one that is wrong is not timed. Candidates are timed in turn, round by round, on input sets that rotate, and
one of them is timed twice under two names: how far the two are apart is the noise of the table. Rates follow the
convention of the FlashAttention papers: 4·B·H·T²·D forward, 2.5 times that backward, half of it where causal.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gatelab.kernels import gated_attention
from gatelab.kernels.attention import BACKENDS, Case, choose_backend

Attention = Callable[..., Tensor]


@dataclass(frozen=True)
class Shape:
    """One problem; `granularity` is of the gate: elementwise, headwise, shared or none."""

    dtype: str
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    granularity: str = "elementwise"

    @property
    def name(self) -> str:
        heads = f"H{self.heads}" if self.heads == self.kv_heads else f"H{self.heads}/{self.kv_heads}"
        return f"{self.dtype} B{self.batch} T{self.length} {heads} D{self.head_dim} {self.granularity}"

    @property
    def flops(self) -> float:
        """FLOPs of the causal forward."""
        return 2.0 * self.batch * self.heads * self.length**2 * self.head_dim

    def inputs(self, device: str, seed: int) -> tuple[list[Tensor], Tensor]:
        """Make q, k, v, gate (where there is one), all leaves, and the gradient of the output."""
        generator = torch.Generator(device).manual_seed(seed)
        widths = {"elementwise": (self.heads, self.head_dim), "headwise": (self.heads, 1), "shared": (1, self.head_dim)}
        shapes = [(self.heads, self.head_dim), (self.kv_heads, self.head_dim), (self.kv_heads, self.head_dim)]
        shapes += [widths[self.granularity]] if self.granularity != "none" else []
        shapes.append((self.heads, self.head_dim))
        *leaves, dy = (
            torch.randn(self.batch, self.length, *shape, device=device, generator=generator).to(
                getattr(torch, self.dtype)
            )
            for shape in shapes
        )
        return [leaf.requires_grad_() for leaf in leaves], dy


def sdpa_with_gate(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """Run SDPA, then the gate, as a model without a fused kernel does, in the dtype of its activations."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
    ).transpose(1, 2)
    return out if gate is None else out * torch.sigmoid(gate)


def by_kernel(backend: SDPBackend, attention: Attention) -> Attention:
    """Return `attention` with PyTorch's choice of a kernel taken away."""

    def run(*inputs: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return attention(*inputs)

    return run


def compiled_flex() -> Attention:
    """Return FlexAttention and a gate, compiled together."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    masks: dict[int, Any] = {}

    def run(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, mask: Any) -> Tensor:
        out = flex_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            block_mask=mask,
            enable_gqa=q.shape[2] != k.shape[2],
        ).transpose(1, 2)
        return out if gate is None else out * torch.sigmoid(gate)

    compiled = torch.compile(run, dynamic=False)

    def attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
        length = q.shape[1]
        if length not in masks:
            masks[length] = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=q.device)
        return compiled(q, k, v, gate, masks[length])

    return attention


def candidates(device: str, shape: Shape) -> dict[str, Attention]:
    """Return peers, then ours; the others are compared with the first."""
    found: dict[str, Attention] = {}
    if device == "cuda":
        flash = by_kernel(SDPBackend.FLASH_ATTENTION, sdpa_with_gate)
        found["torch flash + eager gate"] = flash
        found["torch flash + compiled gate"] = by_kernel(
            SDPBackend.FLASH_ATTENTION, torch.compile(sdpa_with_gate, dynamic=False)
        )
        found["torch cudnn + compiled gate"] = by_kernel(
            SDPBackend.CUDNN_ATTENTION, torch.compile(sdpa_with_gate, dynamic=False)
        )
        found["flex + gate, compiled"] = compiled_flex()
        found["torch flash + eager gate, again"] = flash
    else:
        found["torch sdpa + gate"] = sdpa_with_gate
        found["torch sdpa + gate, again"] = sdpa_with_gate
    case = Case(
        device=device,
        dtype=getattr(torch, shape.dtype),
        batch=shape.batch,
        query_length=shape.length,
        key_length=shape.length,
        query_heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        activation=None if shape.granularity == "none" else "sigmoid",
        capability=torch.cuda.get_device_capability() if device == "cuda" else None,
    )
    for name, backend in BACKENDS.items():
        interpreted = name == "triton" and device == "cpu"
        if name != "reference" and not interpreted and backend.refusal(case) is None:
            found[f"gatelab {name}"] = lambda *inputs, name=name: gated_attention(*inputs, backend=name)
    chosen = choose_backend(case).name
    found[f"gatelab auto ({chosen})"] = gated_attention
    return found


def relative_errors(attention: Attention, shape: Shape, device: str) -> dict[str, float]:
    """Return the relative L2 error of the output and of every gradient against float64, on a short like problem."""
    short = Shape(**{**asdict(shape), "batch": 1, "length": min(shape.length, 320)})
    leaves, dy = short.inputs(device, 0)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = gated_attention(*wide, backend="reference")
    truths = [truth, *torch.autograd.grad(truth, wide, dy.double())]
    out = attention(*leaves)
    got = [out, *torch.autograd.grad(out, leaves, dy)]
    names = ("y", "dq", "dk", "dv", "dgate")
    return {name: ((a.double() - b).norm() / b.norm()).item() for name, a, b in zip(names, got, truths, strict=False)}


def seconds(run: Callable[[], Any], device: str) -> float:
    """Return the duration of one call in seconds; on a GPU between events around it."""
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000)  # the launches queue up behind it: Python's time is not the kernels'
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def measure(shape: Shape, device: str, rounds: int) -> list[dict[str, Any]]:
    """Return rows for all candidates on one problem."""
    limits = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
    torch._dynamo.reset()  # or the compiled peers would soon run eagerly: there is a limit to recompilation
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Attention] = {}
    for name, attention in candidates(device, shape).items():
        row = rows[name] = {"problem": shape.name, "candidate": name}
        try:
            row["errors"] = relative_errors(attention, shape, device)
            if max(row["errors"].values()) > limits[shape.dtype]:
                row["skipped"] = f"wrong: {row['errors']}"
            else:
                ready[name] = attention
        except (RuntimeError, NotImplementedError, ValueError) as error:
            row["skipped"] = str(error).splitlines()[0][:120]
    sets = [shape.inputs(device, seed) for seed in range(3)]
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in ready}
    for turn in range(-1, rounds):  # the first round warms up and compiles
        leaves, dy = sets[turn % len(sets)]
        for name, attention in ready.items():

            def forward(attention: Attention = attention, leaves: list[Tensor] = leaves) -> None:
                with torch.no_grad():
                    attention(*leaves)

            def both(attention: Attention = attention, leaves: list[Tensor] = leaves, dy: Tensor = dy) -> None:
                torch.autograd.grad(attention(*leaves), leaves, dy)

            for what, run in (("forward", forward), ("both", both)):
                taken = seconds(run, device)
                if turn >= 0:
                    times[name][what].append(taken)
    baseline = next(iter(rows))
    for name, measured in times.items():
        row, flops = rows[name], shape.flops
        for what, factor in (("forward", 1.0), ("both", 3.5)):
            middle = statistics.median(measured[what])
            row[f"{what}_ms"], row[f"{what}_tflops"] = 1000 * middle, factor * flops / middle / 1e12
            if baseline in times:
                pairs = zip(times[baseline][what], measured[what], strict=True)
                row[f"{what}_speedup"] = statistics.median(theirs / ours for theirs, ours in pairs)
    return list(rows.values())


def problems(device: str, quick: bool) -> list[Shape]:
    """Return problems of constant work per table: as many tokens at every length."""
    if device == "cpu":
        lengths = [(8, 64, 4, 64), (16, 128, 4, 16), (8, 256, 4, 64), (4, 512, 8, 64), (2, 512, 8, 128)]
        lengths += [] if quick else [(1, 2048, 8, 64), (1, 4096, 4, 64)]
        shapes = [Shape(dtype, b, t, h, h, d) for dtype in ("float32", "bfloat16") for b, t, h, d in lengths]
        extra = [Shape("bfloat16", 4, 512, 8, 2, 64), Shape("float32", 4, 512, 8, 2, 64)]
        return shapes + extra + [Shape("float32", 8, 256, 4, 4, 64, kind) for kind in ("headwise", "none")]
    shapes = []
    for head_dim in (64, 128):
        heads = 2048 // head_dim
        for length in (1024, 4096) if quick else (1024, 2048, 4096, 16384):
            shapes.append(Shape("bfloat16", 32768 // length, length, heads, heads, head_dim))
            if length in (1024, 4096):
                shapes += [
                    Shape("bfloat16", 32768 // length, length, heads, heads, head_dim, kind)
                    for kind in ("none", "headwise", "shared")
                ]
                shapes.append(Shape("bfloat16", 32768 // length, length, heads, heads // 4, head_dim))
    return shapes


def ceilings() -> dict[str, float]:
    """Measure the limits of this GPU: a large bfloat16 matrix product (TFLOP/s) and a large copy (TB/s)."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    product = min(seconds(lambda: torch.mm(a, b, out=c), "cuda") for _ in range(10))
    copy = min(seconds(lambda: target.copy_(source), "cuda") for _ in range(10))
    return {"matmul_tflops": 2 * 8192**3 / product / 1e12, "copy_tb_per_s": 2 * 2**30 / copy / 1e12}


def saved_memory(shape: Shape) -> dict[str, int]:
    """Return the bytes on the GPU between forward and backward, inputs apart, fused and by separate operations."""
    leaves, _ = shape.inputs("cuda", 0)
    found = {}
    for name, attention in (("gatelab triton", gated_attention), ("separate", sdpa_with_gate)):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        out = attention(*leaves)
        found[name] = torch.cuda.memory_allocated() - before
        del out
    return found


def machine(device: str) -> dict[str, Any]:
    """Describe the machine and software that the numbers belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = None
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton_version,
        "date": date.today().isoformat(),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of one problem as a table."""
    print(f"\n{rows[0]['problem']}")
    print(f"  {'candidate':<34} {'fwd ms':>8} {'x':>5} {'TFLOP/s':>8} {'fwd+bwd ms':>11} {'x':>5} {'TFLOP/s':>8}"
          f" {'worst error':>12}")  # fmt: skip
    for row in rows:
        if "skipped" in row:
            print(f"  {row['candidate']:<34} {row['skipped']}")
            continue
        speedups = (f"{row.get(f'{what}_speedup', float('nan')):.2f}" for what in ("forward", "both"))
        forward, both = speedups
        print(f"  {row['candidate']:<34} {row['forward_ms']:>8.3f} {forward:>5} {row['forward_tflops']:>8.3g}"
              f" {row['both_ms']:>11.3f} {both:>5} {row['both_tflops']:>8.3g}"
              f" {max(row['errors'].values()):>12.1e}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of the CPU; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer problems")
    parser.add_argument("--json", type=Path, help="write everything there")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"benchmark": "attention", "machine": machine(device), "rows": []}
    print(result["machine"])
    if device == "cuda":
        result["ceilings"] = ceilings()
        print(result["ceilings"])
    for shape in problems(device, arguments.quick):
        rows = measure(shape, device, arguments.rounds)
        result["rows"] += rows
        show(rows)
        sys.stdout.flush()
    if device == "cuda":
        result["saved_bytes"] = saved_memory(Shape("bfloat16", 8, 4096, 16, 16, 128))
        print(f"\nkept for the backward, in bytes: {result['saved_bytes']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
