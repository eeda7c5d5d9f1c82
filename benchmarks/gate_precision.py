"""The gradient of a bfloat16 gate, by how far the gate is open: relative error against float64.

    python benchmarks/gate_precision.py [--device auto]

Plain operations save the rounded score s and form s·(1 - s), which is nothing once s has rounded to 1.
"""

import argparse

import torch
from torch import Tensor

from gatelab.kernels import apply_gate, gated_attention

BANDS = [(-80.0, -16.0), (-16.0, -8.0), (-8.0, -4.0), (-4.0, 0.0), (0.0, 4.0), (4.0, 8.0), (8.0, 12.0), (12.0, 16.0)]


def errors(band: tuple[float, float], device: str, seed: int = 0) -> dict[str, float]:
    """Return the relative L2 error of dG for gates drawn evenly from a band, for each way of computing it."""
    generator = torch.Generator(device).manual_seed(seed)
    q, k, v, dy = (torch.randn(1, 512, 8, 64, device=device, generator=generator).bfloat16() for _ in range(4))
    low, high = band
    gate = (torch.rand(q.shape, device=device, generator=generator) * (high - low) + low).bfloat16().requires_grad_()
    wide = gate.detach().double().requires_grad_()
    out = gated_attention(q.double(), k.double(), v.double(), wide, backend="reference")
    (truth,) = torch.autograd.grad(out, wide, dy.double())
    ungated = gated_attention(q, k, v)
    found = {
        "plain operations": ungated * torch.sigmoid(gate),
        "gated_attention": gated_attention(q, k, v, gate),
        "apply_gate": apply_gate(ungated, gate),
    }

    def error(out: Tensor) -> float:
        (got,) = torch.autograd.grad(out, gate, dy)
        return ((got.double() - truth).norm() / truth.norm()).item()

    return {name: error(out) for name, out in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    device = parser.parse_args().device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"relative error of dG in bfloat16, {device}, torch {torch.__version__}")
    for number, band in enumerate(BANDS):
        found = errors(band, device)
        if number == 0:
            print(f"{'gate':>12}" + "".join(f"{name:>20}" for name in found))
        print(f"{f'{band[0]:g} … {band[1]:g}':>12}" + "".join(f"{value:>20.1e}" for value in found.values()))


if __name__ == "__main__":
    main()
