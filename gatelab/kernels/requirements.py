"""What optional packages and this machine's GPU allow."""

import importlib.util
import os
from collections.abc import Callable
from typing import TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., object])


def _constant(function: _Function) -> _Function:
    """Mark what torch.compile need not look into: it holds for as long as the process runs.

    `torch.compiler.assume_constant_result` does the same once it has imported the compiler: a second and 150 MB, which
    a driver, that never compiles, need not spend.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# Activations that the Triton kernels know; any other is left to the backends that take it from the table.
FUSED_ACTIVATIONS = ("sigmoid", "silu", "tanh", "relu", "softplus", "identity", "ns_sigmoid")


_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


@_constant
def triton_missing() -> str | None:
    """Say why Triton kernels cannot be built here, or return None."""
    if not _TRITON_INSTALLED:
        return "the package triton is not installed"
    if torch.version.hip is not None:
        return "its tiles are made for NVIDIA GPUs"
    return None


@_constant
def interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter, on the CPU: slow, for tests (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@_constant
def capability(device_index: int) -> tuple[int, int]:
    """Return the compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device_index)
