"""Checkpoints that are whole or not there.

A checkpoint is one safetensors file: the weights, the optimiser's state and, in the file's metadata, all else that must
survive and the SHA-256 of the whole file. It appears by rename, after fsync. While training goes on the newest two are
kept, so that one can be damaged. Older versions kept the SHA-256, of the tensors alone, in a JSON file beside it.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gatelab.atomic import names_in, remove_temporaries, replacing

KEPT = 2

_KEY, _SEAL, _DIGITS = "gatelab", "sha256:", 64

logger = logging.getLogger(__name__)


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not as it was written, or is of another model."""


@dataclass(frozen=True)
class Checkpoint:
    """What a whole checkpoint holds."""

    step: int
    """Optimiser steps done."""
    state: dict[str, Any]
    """What else was saved, as JSON."""
    tensors: dict[str, Tensor]
    """model.NAME, optimizer.INDEX.KEY, and others by the names that they were saved under."""

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore a model and its optimiser, or neither. Raises DamagedCheckpoint where it is of another model."""
        self.check(model)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, values in state.items():
            shapes = {tuple(value.shape) for value in values.values()}
            if number >= len(parameters) or not shapes <= {tuple(parameters[number].shape), ()}:
                raise DamagedCheckpoint(f"the optimiser's state is of another model: parameter {number}")
        self.restore_model(model)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    @torch.no_grad()
    def restore_model(self, model: nn.Module) -> None:
        """Restore a model. Raises DamagedCheckpoint where it is of another model."""
        self.check(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(self.tensors[f"model.{name}"])

    def check(self, model: nn.Module) -> None:
        """Raise DamagedCheckpoint unless the checkpoint has the weights of such a model, and no others."""
        own = {f"model.{name}": parameter.shape for name, parameter in model.named_parameters()}
        kept = {name: tensor.shape for name, tensor in self.tensors.items() if name.startswith("model.")}
        if own != kept:
            name = min(name for name in own.keys() | kept.keys() if own.get(name) != kept.get(name))
            shapes = (list(shape) if shape is not None else "nothing" for shape in (own.get(name), kept.get(name)))
            raise DamagedCheckpoint("{} is {} in this model and {} in the checkpoint".format(name, *shapes))


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    others: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint of `step`; `state` is what else must survive, as JSON, and `others` as tensors.

    Older ones are removed, and so are those of later steps: training has gone back behind them.
    """
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors |= others or {}
    said = json.dumps({"seal": _SEAL + "0" * _DIGITS, "step": step, "state": state})
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, {_KEY: said})
    place = content.index((_SEAL + "0" * _DIGITS).encode()) + len(_SEAL)
    with replacing(_path(folder, step)) as path, path.open("wb") as file:
        file.write(content[:place])
        file.write(hashlib.sha256(content).hexdigest().encode())
        file.write(memoryview(content)[place + _DIGITS :])
    _keep(folder, [path for path in _files(folder) if path.stem <= _path(folder, step).stem][:KEPT])


def keep_newest(folder: Path) -> None:
    """Remove all checkpoints but the newest: training goes on from none of them any more."""
    _keep(folder, _files(folder)[:1])


def whole_checkpoints(folder: Path, last: int | None = None) -> Iterator[Checkpoint]:
    """Yield the whole checkpoints of a folder up to a step, the newest first.

    Damaged ones, and those of later steps, are passed over with a warning in the log.
    """
    for path in _files(folder):
        try:
            found = _read(path)
            if last is not None and found.step > last:
                raise DamagedCheckpoint(f"the journal holds only steps up to {last}")
        except Exception as error:  # of other libraries, too, which raise whatever they come upon in damaged bytes
            logger.warning("checkpoint %s passed over: %s", path, error or repr(error))
            continue
        yield found


def is_written(folder: Path) -> bool:
    """Return whether there is a checkpoint that was written to its end, damaged since or not."""
    return any(map(_is_written, _files(folder)))


def sweep(folder: Path) -> None:
    """Remove what saves that were killed have left. For the only process that saves checkpoints there."""
    remove_temporaries(folder)
    for path in _files(folder):
        if not _is_written(path):
            path.unlink()


def load_weights(folder: Path, model: nn.Module, step: int | None = None) -> int:
    """Restore only a model, from the newest whole checkpoint; return its step.

    Raises FileNotFoundError if there is none, or if it is not of the step that is asked for; ValueError if it is of a
    model of other shapes.
    """
    newest = next(whole_checkpoints(folder), None)
    if newest is None:
        raise FileNotFoundError(f"there is no whole checkpoint in {folder}")
    if step is not None and newest.step != step:
        raise FileNotFoundError(f"the newest whole checkpoint in {folder} is of step {newest.step}, not {step}")
    try:
        newest.restore_model(model)
    except DamagedCheckpoint as error:
        raise ValueError(f"{error} in {folder}") from error
    return newest.step


def _keep(folder: Path, kept: list[Path]) -> None:
    for path in set(_files(folder)) - set(kept):
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"


def _files(folder: Path) -> list[Path]:
    """Return the files of checkpoints, the newest first."""
    parts = (name.rpartition(".") for name in names_in(folder) if name.startswith("step-"))
    stems = {stem for stem, _, suffix in parts if suffix in ("safetensors", "json")}
    return [folder / f"{stem}.safetensors" for stem in sorted(stems, reverse=True)]


def _is_written(path: Path) -> bool:
    if path.with_suffix(".json").exists():
        return True
    with path.open("rb") as file:
        return _SEAL.encode() in file.read(int.from_bytes(file.read(8), "little"))


def _read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises DamagedCheckpoint, or anything else where it is damaged."""
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    place = header.find(_SEAL.encode()) + 8 + len(_SEAL)
    if place < 8 + len(_SEAL):
        if not path.with_suffix(".json").exists():
            raise DamagedCheckpoint("it has no SHA-256")
        said = json.loads(path.with_suffix(".json").read_bytes())
        whole = hashlib.sha256(content).hexdigest() == said["sha256"]
    else:
        found = hashlib.sha256(content[:place] + b"0" * _DIGITS)
        found.update(memoryview(content)[place + _DIGITS :])
        whole = found.hexdigest().encode() == content[place : place + _DIGITS]
        said = json.loads(json.loads(header)["__metadata__"][_KEY]) if whole else {}
    if not whole:
        raise DamagedCheckpoint("its content does not match its SHA-256")
    step, state = said["step"], said["state"]
    if path.stem != _path(path.parent, step).stem or not isinstance(state, dict):
        raise DamagedCheckpoint(f"it says that it is of step {step}")
    return Checkpoint(step, state, safetensors.torch.load(content))
