"""A folder of a model, as transformers and gatelab read it: config.json, safetensors, tokenizer.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gatelab.interchange.layout import CannotExchange

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = f"{WEIGHTS}.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ModelFolder:
    """What a folder holds."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    """In float32."""
    tokenizer: str | None
    """Content of tokenizer.json; None: there is none."""


def read_folder(path: Path) -> ModelFolder:
    """Read a folder. Raises CannotExchange where it is not one of a model, naming the file."""
    if not path.is_dir():
        raise CannotExchange(
            f"{path}: is no folder: expected one with {CONFIG} and {WEIGHTS}, as `hf download` makes it"
        )
    config = _read_json(path / CONFIG)
    if not (path / INDEX).exists():
        files = [WEIGHTS]
    else:
        shards = _read_json(path / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CannotExchange(f"{path / INDEX}: has no weight_map")
        files = sorted(set(shards.values()))
    tensors = {name: tensor for file in files for name, tensor in read_tensors(path / Path(file).name).items()}
    file = path / TOKENIZER
    try:
        tokenizer = file.read_text(encoding="utf-8") if file.exists() else None
    except UnicodeDecodeError as error:
        raise CannotExchange(f"{file}: is no UTF-8 text") from error
    return ModelFolder(config, tensors, tokenizer)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, in float32. Raises CannotExchange."""
    if not path.exists():
        raise CannotExchange(f"{path}: is not there: weights are read from safetensors")
    try:
        found = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CannotExchange(f"{path}: is damaged ({str(error).splitlines()[0]})") from error
    for name, tensor in found.items():
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CannotExchange(f"{path}: {name} is of the type {kind}: expected float32, bfloat16 or float16")
    return {name: tensor.float() for name, tensor in found.items()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CannotExchange(f"{path}: is not there: expected a folder of a model, as transformers saves it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CannotExchange(f"{path}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise CannotExchange(f"{path}: expected a mapping")
    return found
