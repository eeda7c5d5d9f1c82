"""Tokens on disk and the batches drawn from them.

A corpus is tokenised once (`preparation.py`) into memory-mapped files with a manifest, shared by all trials that use
it. Batches are a pure function of the seed and the step.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gatelab.training.corpus import DataError, Skipped
from gatelab.training.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

DOCUMENTS = "validation-documents.npy"
"""File of the validation documents, `[documents, 2]` int64: tokens, and index of the domain in alphabetical order."""


@dataclass(frozen=True)
class SplitCounts:
    """Size of one part of the data."""

    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """What prepared data is made of."""

    identity: str
    source: str
    source_digest: str
    tokenizer: str
    tokenizer_digest: str
    vocab_size: int
    dtype: str
    train: SplitCounts
    validation: SplitCounts
    domains: dict[str, SplitCounts]  # of the validation part; empty where all text is of one domain
    skipped: list[Skipped]


class TokenFiles:
    """The tokens of one part, as a sequence over memory-mapped files."""

    def __init__(self, folder: Path, part: str, dtype: str) -> None:
        paths = [path for path in sorted(folder.glob(f"{part}-*.bin")) if path.stat().st_size]
        self._shards = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Return `length` tokens from `start` on, as int64. Raises IndexError beyond the end."""
        if start < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)}")
        pieces = []
        while length > 0:
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            offset = start - int(self._starts[shard])
            piece = self._shards[shard][offset : offset + length]
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return np.concatenate(pieces).astype(np.int64)


@dataclass(frozen=True)
class HeldOut:
    """Windows to evaluate on, and of which domain each of their targets is."""

    windows: npt.NDArray[np.int64]
    """`[N, T + 1]`"""
    domains: npt.NDArray[np.int16]
    """`[N, T]`: index into `names` for the targets 1 … T of each window."""
    names: tuple[str, ...]
    bytes_per_token: tuple[float, ...]
    """Bytes per token of each domain's whole validation text: they turn nats per token into nats per byte."""


class Dataset:
    """Prepared data: training batches and validation windows. Raises DataError if its files are not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.train = TokenFiles(folder, "train", self.manifest.dtype)
        self.validation = TokenFiles(folder, "validation", self.manifest.dtype)
        if (len(self.train), len(self.validation)) != (self.manifest.train.tokens, self.manifest.validation.tokens):
            raise DataError(
                f"the prepared data in {folder} are damaged: delete that folder, and they are prepared anew"
            )

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes per token of the validation text: they turn nats per token into nats per byte."""
        return self.manifest.validation.bytes / self.manifest.validation.tokens

    @cached_property
    def _documents(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(first token, domain) of each validation document, in the order in which they stand."""
        lengths, domains = np.load(self.folder / DOCUMENTS).T
        return np.cumsum(lengths) - lengths, domains

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the text was tokenised with."""
        trained = self.folder / "tokenizer.json"
        return FileTokenizer(trained.read_text(encoding="utf-8")) if trained.exists() else ByteTokenizer()

    def require(self, sequence_length: int) -> None:
        """Raise DataError unless both parts hold at least one sequence of this length."""
        if self._training_windows(sequence_length) < 1 or self._validation_windows(sequence_length) < 1:
            raise DataError(
                f"data.source {self.manifest.source!r} is too small for training.sequence_length {sequence_length}: "
                f"{len(self.train)} tokens to train on, {len(self.validation)} to evaluate on "
                "(data.validation_fraction divides them)"
            )

    def _training_windows(self, sequence_length: int) -> int:
        # One window less than fit, for the offset at which an epoch begins.
        return (len(self.train) - 1) // sequence_length - 1

    def _validation_windows(self, sequence_length: int) -> int:
        return (len(self.validation) - 1) // sequence_length

    def batch(self, seed: int, step: int, batch_size: int, sequence_length: int) -> npt.NDArray[np.int64]:
        """Training windows `[batch_size, sequence_length + 1]` of a step (from 0), a pure function of its arguments.

        Each epoch visits all windows once, in an order and from an offset of its own.
        """
        windows = self._training_windows(sequence_length)
        out = np.empty((batch_size, sequence_length + 1), dtype=np.int64)
        for row in range(batch_size):
            epoch, index = divmod(step * batch_size + row, windows)
            order, offset = self._epoch(seed, epoch, windows, sequence_length)
            out[row] = self.train.window(int(order[index]) * sequence_length + offset, sequence_length + 1)
        return out

    def _epoch(self, seed: int, epoch: int, windows: int, sequence_length: int) -> tuple[npt.NDArray[np.int64], int]:
        key = (seed, epoch, windows, sequence_length)
        cached: dict[Any, tuple[npt.NDArray[np.int64], int]] = self.__dict__.setdefault("_epochs", {})
        if key not in cached:
            rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
            while len(cached) >= 2:  # a batch spans two epochs at most, unless the corpus is tiny
                cached.pop(next(iter(cached)))
            cached[key] = (rng.permutation(windows), int(rng.integers(sequence_length)))
        return cached[key]

    def held_out(self, tokens: int, sequence_length: int) -> HeldOut:
        """Return evenly spaced windows of the validation text, of about `tokens` tokens: one at least, at most all.

        Raises DataError if not one fits.
        """
        available = self._validation_windows(sequence_length)
        if available < 1:
            raise DataError(
                f"data.source {self.manifest.source!r} holds out {len(self.validation)} tokens: "
                f"too few for a sequence of {sequence_length}"
            )
        count = min(available, max(1, tokens // sequence_length))
        starts = np.arange(count) * available // count * sequence_length
        firsts, domains = self._documents
        targets = starts[:, None] + np.arange(1, sequence_length + 1)
        counts = self.manifest.domains or {"": self.manifest.validation}
        return HeldOut(
            windows=np.stack([self.validation.window(int(start), sequence_length + 1) for start in starts]),
            domains=domains[np.searchsorted(firsts, targets, side="right") - 1].astype(np.int16),
            names=tuple(counts),
            bytes_per_token=tuple(count.bytes / count.tokens for count in counts.values()),
        )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of prepared data. Raises DataError if there are none in the folder."""
    try:
        raw = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there are no prepared data in {folder}: gatelab data STUDY prepares them") from error
    if "domains" not in raw:
        raise DataError(f"an older version prepared the data in {folder}: gatelab data STUDY prepares them anew")
    raw["train"], raw["validation"] = SplitCounts(**raw["train"]), SplitCounts(**raw["validation"])
    raw["domains"] = {name: SplitCounts(**counts) for name, counts in raw["domains"].items()}
    raw["skipped"] = [Skipped(**entry) for entry in raw["skipped"]]
    return Manifest(**raw)
