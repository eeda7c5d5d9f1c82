"""What this machine can do, for `gatelab doctor`."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gatelab.kernels.attention import BACKENDS, Case, choose_backend
from gatelab.orchestrator.provenance import code_version
from gatelab.training.device import choose_device, device_name

PACKAGES = ("torch", "triton", "ray", "mlflow", "pyarrow", "numpy", "tokenizers", "datasets", "flash-attn")

CASES = {
    "training, head_dim 16": {"head_dim": 16},
    "training, head_dim 128": {"head_dim": 128},
    "grouped queries 4:1": {"head_dim": 128, "kv_heads": 4},
    "decoding, 1 query": {"head_dim": 128, "query_length": 1},
}


def describe_machine(runs: Path) -> dict[str, dict[str, Any]]:
    """Findings by section, each a mapping of what to what was found."""
    device = choose_device()
    return {
        "gatelab": {**code_version(), "python": platform.python_version()},
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(device),
        "attention backends": _backends(device),
        "disk": _disk(runs),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices(device: torch.device) -> dict[str, Any]:
    found = {
        "cpu": f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
    }
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, capability {capability}"
    if device.type == "cpu":
        found["cuda"] = f"none that torch {torch.__version__} sees: trials run on the CPU, in float32"
    return found


def _backends(device: torch.device) -> dict[str, str]:
    """Which backend `auto` picks for typical cases, and why others cannot."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = {}
    for what, shape in CASES.items():
        case = Case(
            device=device.type,
            dtype=dtype,
            query_length=shape.get("query_length", 4096),
            key_length=4096,
            query_heads=16,
            kv_heads=shape.get("kv_heads", 16),
            head_dim=shape["head_dim"],
            gated=True,
            causal=True,
        )
        refusals = [f"not {b.name}: {reason}" for b in BACKENDS.values() if (reason := b.refusal(case))]
        found[what] = "; ".join([choose_backend(case).name, *refusals])
    return found


def _disk(runs: Path) -> dict[str, str]:
    existing = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.exists())
    return {
        "runs folder": str(runs.resolve()),
        "free": f"{shutil.disk_usage(existing).free / 1e9:.0f} GB",
        "writable": "yes" if os.access(existing, os.W_OK) else "no",
    }
