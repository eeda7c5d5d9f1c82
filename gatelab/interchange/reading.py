"""Reading a model of Hugging Face transformers as one of gatelab's."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gatelab.interchange.export import OURS, ROUNDING
from gatelab.interchange.families import family_of
from gatelab.interchange.folder import TOKENIZER, ModelFolder, read_folder, read_tensors
from gatelab.interchange.layout import CannotExchange, Family, NotOfThisModel, Weights
from gatelab.interchange.tokenizer_files import is_bytes
from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder
from gatelab.training.vocabulary import read_vocabulary


@dataclass(frozen=True)
class ReadModel:
    """A model that was read from a folder."""

    family: Family
    model: ModelConfig
    weights: dict[str, Tensor]
    """Parameters of its decoder, by name, in float32."""
    tokenizer: str | None
    """Content of its tokenizer.json; None: its tokens are bytes."""
    longest: int
    """Tokens of the longest sequences that it is made for."""
    note: str
    """What a reader should know of how it was read; '' where there is nothing."""

    def load_into(self, decoder: Decoder) -> None:
        """Give a decoder of its configuration its weights."""
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                parameter.copy_(self.weights[name])

    @property
    def digest(self) -> str:
        """SHA-256 of its weights, in hexadecimal, however they were stored."""
        found = hashlib.sha256()
        for name in sorted(self.weights):
            found.update(f"{name} {list(self.weights[name].shape)}\n".encode())
            found.update(self.weights[name].contiguous().numpy().tobytes())
        return found.hexdigest()


def read_model(path: Path) -> ReadModel:
    """Read a folder of a model.

    Raises CannotExchange where it is of a family that gatelab does not read, tensors or keys are missing or are not of
    such a model, or its tokenizer does not go with it.
    """
    try:
        return _read(path, read_folder(path))
    except NotOfThisModel as error:
        raise CannotExchange(f"{path}: the weights are not those of its config.json: {error}") from error
    except CannotExchange as error:
        said = str(error)
        raise CannotExchange(said if said.startswith(str(path)) else f"{path}: {said}") from error


def _read(path: Path, folder: ModelFolder) -> ReadModel:
    family = family_of(folder.config)
    config = {"tie_word_embeddings": "lm_head.weight" not in folder.tensors, **folder.config}
    said = _model(family.read(config))
    tensors = _own_tensors(folder.tensors, said)
    ours: Any = folder.config.get(OURS)
    ours = ours if isinstance(ours, dict) else {}
    model, found, note = said, None, ""
    if isinstance(ours.get("model"), dict):
        try:
            model, found = _as_trained(family, config, ours["model"], path, tensors)
        except CannotExchange as error:
            note = f"{path}: read as its config.json says, not as gatelab wrote it ({error})"
    if found is None:
        model, found = said, family.unpack(said, tensors)
    shapes = {name: parameter.shape for name, parameter in _skeleton(model).named_parameters()}
    longest = ours.get("sequence_length") or folder.config.get("max_position_embeddings") or 0
    return ReadModel(
        family=family,
        model=model,
        weights={name: found[name].reshape(shape).contiguous() for name, shape in shapes.items()},
        tokenizer=_tokenizer(path, folder.tokenizer, model),
        longest=longest if isinstance(longest, int) else 0,
        note=note,
    )


def _as_trained(
    family: Family, config: Mapping[str, Any], ours: Mapping[str, Any], path: Path, tensors: Weights
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model as gatelab trained it, and its parameters.

    Raises CannotExchange where config.json or the weights have become those of another one.
    """
    model = _model(ours)
    if reason := family.refusal(model):
        raise CannotExchange(reason)
    for key, value in family.config(model).items():
        if key in config and key not in ("rope_parameters", "auto_map") and config[key] != value:
            raise CannotExchange(f"{key} is {config[key]!r}, of the model that was trained it was {value!r}")
    again = _model(family.read({**config, **family.config(model)}))
    if again != _model(family.read(config)):
        raise CannotExchange("its RoPE is another than that of the model that was trained")
    found = family.unpack(model, tensors)
    if (path / ROUNDING).exists():
        for name, rest in read_tensors(path / ROUNDING).items():
            if name in found:
                found[name] = found[name] + rest.reshape(found[name].shape)
    return model, found


def _model(fields: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CannotExchange(f"config.json: {place + ': ' if place else ''}{first['msg']}") from error


def _skeleton(model: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(model)


def _own_tensors(tensors: Weights, model: ModelConfig) -> dict[str, Tensor]:
    """Leave out what says nothing: tables of RoPE, and a head that is the embedding once more."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    head, embedding = kept.get("lm_head.weight"), kept.get("model.embed_tokens.weight")
    if model.tie_embeddings and head is not None and embedding is not None and torch.equal(head, embedding):
        del kept["lm_head.weight"]
    return kept


def _tokenizer(path: Path, content: str | None, model: ModelConfig) -> str | None:
    """Check that a tokenizer goes with a model; return its content, None: bytes. Raises CannotExchange."""
    file, size = path / TOKENIZER, model.vocab_size or 0
    if content is None:
        raise CannotExchange(
            f"{file}: is not there: gatelab needs the tokenizer in the format of the tokenizers library"
        )
    try:
        needed, _ = read_vocabulary(content)
        bytes_only = is_bytes(content)
    except ValueError as error:
        raise CannotExchange(f"{file}: {error}") from error
    if needed > size:
        raise CannotExchange(
            f"{file}: is of another model: it has {needed:,} tokens with the document separator, and config.json says "
            f"vocab_size {size:,}"
        )
    return None if bytes_only else content
