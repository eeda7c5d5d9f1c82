"""The device a trial runs on: its choice, its precision, its description."""

import os
import platform
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from gatelab.training.config import TrainingConfig


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a name; auto: the GPU that is visible to this process, or the CPU.

    Raises ValueError if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", name) is None:
        raise ValueError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    device, there = torch.device(name), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        sees = f"{there} CUDA device{'' if there == 1 else 's'}" if there else "no CUDA device"
        raise ValueError(f"device {name!r}: torch {torch.__version__} sees {sees}")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a device's hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor_name()


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def compute_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products."""
    if config.precision != "auto":
        return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if fast else torch.float32


def precision_context(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Run matrix products in `dtype`, everything else as the weights are."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: on the GPU since the last reset, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Return what a result depends on beside its configuration: recorded with every trial."""
    return {
        "device": device_name(device),
        "device_type": device.type,
        "precision": str(dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node() or os.environ.get("HOSTNAME", ""),
    }
