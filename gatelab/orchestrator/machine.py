"""What this machine can do, for `gatelab doctor`."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gatelab.kernels.attention import BACKENDS, Case, choose_backend, gated_attention
from gatelab.orchestrator.provenance import code_version
from gatelab.training.device import choose_device, device_name

PACKAGES = ("torch", "triton", "ray", "mlflow", "pyarrow", "numpy", "tokenizers", "datasets", "lm-eval", "flash-attn")

CASES: dict[str, dict[str, Any]] = {
    "float32, T 128": {"dtype": torch.float32, "query_length": 128, "key_length": 128},
    "float32, T 512": {"dtype": torch.float32, "query_length": 512, "key_length": 512},
    "bfloat16, T 512": {"dtype": torch.bfloat16, "query_length": 512, "key_length": 512},
    "bfloat16, T 4,096": {"dtype": torch.bfloat16},
    "bfloat16, T 32,768": {"dtype": torch.bfloat16, "batch": 1, "query_length": 32768, "key_length": 32768},
    "bfloat16, head_dim 256": {"dtype": torch.bfloat16, "head_dim": 256},
    "bfloat16, packed (B 1)": {"dtype": torch.bfloat16, "batch": 1},
    "decoding, 1 query": {"query_length": 1},
}


def describe_machine(runs: Path) -> dict[str, dict[str, Any]]:
    """Return findings by section, each a mapping of what to what was found."""
    device = choose_device()
    return {
        "gatelab": {**code_version(), "python": platform.python_version()},
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(device),
        "attention backends": _backends(device),
        "attention, by case": _choices(device),
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


def _case(device: torch.device, shape: dict[str, Any]) -> Case:
    """Build a case that differs by `shape` from a usual one.

    Usual are B 2, T 4096 and 16 query heads on 4 key heads of width 128, in the dtype that trials use here.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    usual: dict[str, Any] = {"batch": 2, "query_length": 4096, "key_length": 4096, "query_heads": 16, "kv_heads": 4}
    usual |= {"head_dim": 128, "dtype": dtype}
    return Case(device=device.type, capability=capability, **{**usual, **shape})


def _backends(device: torch.device) -> dict[str, str]:
    """Say what each backend is, and whether it computes a small problem correctly here."""
    return {name: f"{_trial(device, name)} ({backend.what})" for name, backend in BACKENDS.items()}


SMALL = {"batch": 1, "query_length": 96, "key_length": 96, "head_dim": 64}


def _trial(device: torch.device, backend: str) -> str:
    case = _case(device, SMALL)
    if reason := BACKENDS[backend].refusal(case):
        return f"not here: {reason}"
    generator = torch.Generator(device).manual_seed(0)
    leaves = [
        torch.randn(1, 96, heads, 64, device=device, generator=generator).to(case.dtype).requires_grad_()
        for heads in (16, 4, 4, 16)
    ]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    try:
        got, truth = (
            [out, *torch.autograd.grad(out.sum(), inputs)]
            for inputs, name in ((leaves, backend), (wide, "reference"))
            for out in [gated_attention(*inputs, backend=name)]
        )
    except Exception as error:  # whatever a driver or a package raises is what doctor is asked for
        return f"FAILS: {type(error).__name__}: {str(error).splitlines()[0]}"
    worst = max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, truth, strict=True))
    right = worst < (1e-5 if case.dtype == torch.float32 else 2e-2)
    return f"{'correct to' if right else 'WRONG by'} {worst:.0e} against float64"


def _choices(device: torch.device) -> dict[str, str]:
    """Say which backend `auto` takes for typical cases, and why none that it would rather take."""
    here = [name for name, backend in BACKENDS.items() if backend.refusal(_case(device, SMALL)) is None]
    found = {}
    for what, shape in CASES.items():
        case = _case(device, shape)
        chosen = choose_backend(case).name
        passed = here[: here.index(chosen)] if chosen in here else []
        reasons = [f"not {name}: {BACKENDS[name].refusal(case) or BACKENDS[name].reluctance(case)}" for name in passed]
        found[what] = "; ".join([chosen, *reasons])
    return found


def _disk(runs: Path) -> dict[str, str]:
    existing = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.exists())
    return {
        "runs folder": str(runs.resolve()),
        "free": f"{shutil.disk_usage(existing).free / 1e9:.0f} GB",
        "writable": "yes" if os.access(existing, os.W_OK) else "no",
    }
