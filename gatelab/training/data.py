"""Tokens on disk and the batches drawn from them.

A corpus is tokenised once (`preparation.py`) into memory-mapped files with a manifest, shared by all trials that use
it. Batches are a pure function of the seed and the step.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gatelab.errors import DataError
from gatelab.training.manifest import DOCUMENTS, TOKENIZER, SplitCounts, damaged, read_manifest, verify_files
from gatelab.training.tokenizer import ByteTokenizer, Tokenizer, read_tokenizer


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
    lost_share: float = 0.0
    """Share of the bytes of the whole validation text that its tokens do not give back."""
    lost_shares: tuple[float, ...] = ()
    """The same of each domain."""


class Dataset:
    """Prepared data: training batches and validation windows.

    All files are read once, to see that they are whole; a process remembers those that it has seen. Raises DataError
    if there are none in the folder, and DamagedData if they are not as they were written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        verify_files(folder, self.manifest)
        try:
            self.train = TokenFiles(folder, "train", self.manifest.dtype)
            self.validation = TokenFiles(folder, "validation", self.manifest.dtype)
        except (OSError, ValueError) as error:  # a size that is no number of tokens
            raise damaged(folder, str(error)) from error
        for part, counts in ((self.train, self.manifest.train), (self.validation, self.manifest.validation)):
            if len(part) != counts.tokens:
                raise damaged(folder, f"{len(part)} tokens instead of {counts.tokens}")

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes per token of the validation text: they turn nats per token into nats per byte."""
        return self.manifest.validation.bytes / self.manifest.validation.tokens

    @property
    def _domains(self) -> dict[str, SplitCounts]:
        """What the validation text has of each domain; '': all of it is of one."""
        return self.manifest.domains or {"": self.manifest.validation}

    @cached_property
    def _documents(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(first token, domain) of each validation document, in the order in which they stand."""
        try:
            found = np.load(self.folder / DOCUMENTS)
            lengths, domains = found.T
            total, highest = int(lengths.sum()), int(domains.max())
            whole = found.dtype == np.int64 and found.min() >= 0
            whole = whole and total == len(self.validation) and highest < len(self._domains)
        except Exception as error:  # NumPy raises whatever it met in the header
            raise damaged(self.folder, DOCUMENTS) from error
        if not whole:
            raise damaged(self.folder, DOCUMENTS)
        return np.cumsum(lengths) - lengths, domains

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the text was tokenised with."""
        path = self.folder / TOKENIZER
        return read_tokenizer(path, str(path)) if path.exists() else ByteTokenizer()

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
        counts = self._domains
        return HeldOut(
            windows=np.stack([self.validation.window(int(start), sequence_length + 1) for start in starts]),
            domains=domains[np.searchsorted(firsts, targets, side="right") - 1].astype(np.int16),
            names=tuple(counts),
            bytes_per_token=tuple(count.bytes / count.tokens for count in counts.values()),
            lost_share=self.manifest.validation.lost_share,
            lost_shares=tuple(count.lost_share for count in counts.values()),
        )
