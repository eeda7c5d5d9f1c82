"""Checkpoints that are whole or not there.

A checkpoint is a safetensors file and, written after it, a small JSON file with its SHA-256: the JSON commits it.
Both appear by rename, after fsync. The newest two are kept, so that one can be damaged.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gatelab.atomic import replacing

KEPT = 2

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write the checkpoint of `step`; `state` is what else must survive, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    with replacing(folder / f"step-{step:09d}.safetensors") as path:
        path.write_bytes(content)
    commit = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), "state": state}
    with replacing(folder / f"step-{step:09d}.json") as path:
        path.write_text(json.dumps(commit), encoding="utf-8")
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest whole checkpoint and return its step and state; None if there is none.

    Damaged or half-written ones are passed over with a warning.
    """
    newest = _newest(folder)
    if newest is None:
        return None
    commit, tensors = newest
    _restore_model(tensors, model)
    _restore_optimizer(tensors, optimizer)
    return commit["step"], commit["state"]


def is_written(folder: Path) -> bool:
    """Return whether there is a checkpoint that was written to its end, damaged since or not."""
    return any(folder.glob("step-*.json"))


def load_weights(folder: Path, model: nn.Module, step: int | None = None) -> int:
    """Restore only a model, from the newest whole checkpoint; return its step.

    Raises FileNotFoundError if there is none, or if it is not of the step that is asked for; ValueError if it is of a
    model of other shapes.
    """
    newest = _newest(folder)
    if newest is None:
        raise FileNotFoundError(f"there is no whole checkpoint in {folder}")
    commit, tensors = newest
    if step is not None and commit["step"] != step:
        raise FileNotFoundError(f"the newest whole checkpoint in {folder} is of step {commit['step']}, not {step}")
    own = {f"model.{name}": parameter.shape for name, parameter in model.named_parameters()}
    kept = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model.")}
    if own != kept:
        name = min(name for name in own.keys() | kept.keys() if own.get(name) != kept.get(name))
        shapes = (list(shape) if shape is not None else "nothing" for shape in (own.get(name), kept.get(name)))
        raise ValueError("{} is {} in this model and {} in the checkpoint in {}".format(name, *shapes, folder))
    _restore_model(tensors, model)
    found: int = commit["step"]
    return found


def _newest(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read the newest whole checkpoint: what commits it, and its tensors."""
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            commit = json.loads(path.read_bytes())
            content = path.with_suffix(".safetensors").read_bytes()
            whole = hashlib.sha256(content).hexdigest() == commit["sha256"]
        except (OSError, ValueError, KeyError) as error:
            logger.warning("checkpoint %s passed over: %r", path, error)
            continue
        if whole:
            return commit, safetensors.torch.load(content)
        logger.warning("checkpoint %s passed over: its content does not match its SHA-256", path)
    return None


@torch.no_grad()
def _restore_model(tensors: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[f"model.{name}"])


def _restore_optimizer(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
