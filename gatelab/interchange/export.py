"""Writing a trained model as a folder that Hugging Face transformers loads."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gatelab import __version__
from gatelab.atomic import fsync, make_folder
from gatelab.interchange.families import family_for
from gatelab.interchange.folder import CONFIG, WEIGHTS
from gatelab.interchange.layout import CannotExchange, Family, Weights
from gatelab.interchange.tokenizer_files import tokenizer_files
from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder
from gatelab.training.tokenizer import Tokenizer

OURS = "gatelab"
"""Key of config.json with what only gatelab reads: the model as it was trained, and of which trial it is."""
ROUNDING = "gatelab-rounding.safetensors"
"""What float32 rounds off a gain that is stored as its distance from 1; not there where that is nothing."""


def export_model(
    model: Decoder,
    tokenizer: Tokenizer,
    out: Path,
    family: str = "auto",
    *,
    length: int,
    origin: Mapping[str, Any] | None = None,
) -> Family:
    """Write a model and its tokenizer, in float32, as a folder that appears whole or not at all.

    Args:
        model: the decoder.
        tokenizer: turns text into its tokens.
        out: the folder, which must not be there yet.
        family: the name of one in `FAMILIES`, or auto: one that transformers itself has, where the mathematics allow.
        length: tokens of the sequences that it was trained on.
        origin: of which trial it is, kept in config.json.

    Returns:
        The family that it is written as.

    Raises:
        CannotExchange: the folder is there, or the family cannot hold the model.
    """
    chosen = family_for(model.config, family)
    if out.exists() or out.is_symlink():
        raise CannotExchange(f"{out}: is there already: name a folder that is not, or remove it")
    weights = {name: parameter.detach().float().cpu() for name, parameter in model.named_parameters()}
    tensors = chosen.pack(model.config, weights)
    files = {
        CONFIG: _json(_config(chosen, model.config, tokenizer, length, origin or {})),
        "generation_config.json": _json(_special(tokenizer)),
        **tokenizer_files(tokenizer, length),
    }
    make_folder(out.absolute().parent)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".tmp", dir=out.absolute().parent))
    try:
        building.chmod(0o755)
        for name, text in files.items():
            (building / name).write_text(text, encoding="utf-8")
        if chosen.code:
            shutil.copy(Path(__file__).with_name(chosen.code), building)
        safetensors.torch.save_file(tensors, building / WEIGHTS, {"format": "pt"})
        if lost := _rounding(chosen, model.config, weights, tensors):
            safetensors.torch.save_file(lost, building / ROUNDING, {"format": "pt"})
        for path in building.iterdir():
            fsync(path)
        building.rename(out)
        fsync(out.absolute().parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return chosen


def _config(
    family: Family, model: ModelConfig, tokenizer: Tokenizer, length: int, origin: Mapping[str, Any]
) -> dict[str, Any]:
    longest = length if model.yarn_length is None else round(model.yarn_length * model.yarn_factor)
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "dtype": "float32",
        "max_position_embeddings": max(length, longest),
        **family.config(model),
        **_special(tokenizer),
        OURS: {"version": __version__, **origin, "sequence_length": length, "model": model.model_dump(mode="json")},
    }


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    return {name: tokenizer.separator for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _rounding(family: Family, model: ModelConfig, weights: Weights, tensors: Weights) -> dict[str, Tensor]:
    """Return what is missing from parameters that are read back, of those that are not the same."""
    back = family.unpack(model, tensors)
    lost = {name: weight - back[name].reshape(weight.shape) for name, weight in weights.items()}
    return {name: rest for name, rest in lost.items() if torch.count_nonzero(rest)}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
