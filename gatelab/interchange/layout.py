"""How the weights of a decoder lie in a folder of Hugging Face transformers: one table for each family of models.

A table says of each tensor there which parameters of ours it holds, and how. It is read in both directions, so that
what is written is read back.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatelab.errors import GatelabError
from gatelab.models.config import ModelConfig

Shape = tuple[int, ...]
Weights = Mapping[str, Tensor]
"""Name -> tensor: parameters of a decoder, or tensors of a folder."""


class CannotExchange(GatelabError, ValueError):
    """A model that cannot be written or read; the text says what is in the way, and what would be right."""


class NotOfThisModel(CannotExchange):
    """Tensors that do not hold the parameters of a model."""


@dataclass(frozen=True)
class Part:
    """What some rows of a tensor hold: a parameter of ours, or zeros."""

    ours: str | None
    """Name of the parameter; None: zeros."""
    shape: Shape
    """As which it is seen."""
    spread: Shape
    """The shape to which it is repeated: a dimension that is 1 in `shape` may be more here."""
    offset: float = 0.0
    """Added to it."""

    def pack(self, weights: Weights) -> Tensor:
        """Return the rows as they are there, `spread`."""
        if self.ours is None:
            return torch.zeros(self.spread)
        rows = weights[self.ours].reshape(self.shape).expand(self.spread)
        return rows + self.offset if self.offset else rows  # -0.0 stays what it is

    def unpack(self, rows: Tensor) -> Tensor | None:
        """Return the parameter in `shape`; None: there is none. Raises NotOfThisModel where rows are no repetition."""
        if self.ours is None:
            if rows.count_nonzero():
                raise NotOfThisModel("is not zero, as it is without such a bias")
            return None
        first = rows
        for dim, (own, there) in enumerate(zip(self.shape, self.spread, strict=True)):
            if own != there:
                first = first.narrow(dim, 0, 1)
        if first is not rows and not torch.equal(first.expand(self.spread), rows):
            raise NotOfThisModel(f"differs where {self.ours} would be repeated")
        return first - self.offset if self.offset else first


@dataclass(frozen=True)
class Entry:
    """A tensor there: its rows, in `groups` of equal size, each of which has rows of all parts, one after another."""

    name: str
    parts: tuple[Part, ...]
    groups: int = 1
    vector: bool = False
    """True if its rows are numbers."""

    @property
    def shape(self) -> Shape:
        """Its shape there."""
        return (sum(self._rows(part) for part in self.parts) * self.groups, *self._columns)

    @property
    def _columns(self) -> Shape:
        return () if self.vector else self.parts[0].spread[-1:]

    def _rows(self, part: Part) -> int:
        """Return the rows of a part in each group."""
        return math.prod(part.spread) // math.prod(self._columns) // self.groups

    def pack(self, weights: Weights) -> Tensor:
        """Make the tensor from our parameters."""
        rows = [part.pack(weights).reshape(self.groups, self._rows(part), *self._columns) for part in self.parts]
        return torch.cat(rows, 1).flatten(0, 1).contiguous()

    def unpack(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield our parameters that it holds, as they are seen. Raises NotOfThisModel where it cannot hold them."""
        if tuple(tensor.shape) != self.shape:
            raise NotOfThisModel(f"{self.name} is {list(tensor.shape)}, expected {list(self.shape)}")
        grouped = tensor.reshape(self.groups, -1, *self._columns)
        sizes = [self._rows(part) for part in self.parts]
        for part, rows in zip(self.parts, torch.split(grouped, sizes, 1), strict=True):
            try:
                found = part.unpack(rows.reshape(part.spread))
            except NotOfThisModel as error:
                raise NotOfThisModel(f"{self.name} {error}") from error
            if part.ours is not None and found is not None:
                yield part.ours, found


def same(name: str, ours: str, *shape: int, offset: float = 0.0) -> Entry:
    """Return the entry of a tensor that is a parameter of ours, or differs from it by a constant."""
    return Entry(name, (Part(ours, shape, shape, offset),), vector=len(shape) == 1)


@dataclass(frozen=True)
class Family:
    """A family of models of transformers, and how ours are written as its members."""

    name: str
    """What `--as` takes."""
    about: str
    """Which models of ours it holds, in a line."""
    model_type: str
    architecture: str
    """The class that loads it."""
    refusal: Callable[[ModelConfig], str]
    """Why it cannot hold a model of ours; '' if it can."""
    config: Callable[[ModelConfig], dict[str, Any]]
    """The keys of config.json that say what the model is."""
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    """The model of a config.json, as `ModelConfig` takes it. Raises CannotExchange where it is none of ours."""
    table: Callable[[ModelConfig], Iterable[Entry]]
    """Its tensors."""
    code: str | None = None
    """The file of this package that goes with it, without which transformers has no such class."""

    def pack(self, model: ModelConfig, weights: Weights) -> dict[str, Tensor]:
        """Return the tensors of a model's folder."""
        return {entry.name: entry.pack(weights) for entry in self.table(model)}

    def unpack(self, model: ModelConfig, tensors: Weights) -> dict[str, Tensor]:
        """Return the parameters that a folder's tensors hold, each as its table sees it.

        Raises NotOfThisModel where tensors are missing, are too many, or are not of such a model.
        """
        if model.layers > len(tensors):
            raise NotOfThisModel(f"it has {len(tensors)} tensors, too few for {model.layers} layers")
        table = {entry.name: entry for entry in self.table(model)}
        missing, surplus = sorted(table.keys() - tensors.keys()), sorted(tensors.keys() - table.keys())
        for what, names in (("lacks", missing), ("also holds", surplus)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise NotOfThisModel(f"it {what} {names[0]}{more}")
        return dict(found for name, entry in table.items() for found in entry.unpack(tensors[name]))
