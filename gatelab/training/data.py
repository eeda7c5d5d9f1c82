"""Tokens on disk and the batches drawn from them.

A corpus is tokenised once into memory-mapped files with a manifest, shared by all trials that use it. Batches are a
pure function of the seed and the step.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from gatelab.atomic import fsync
from gatelab.training.config import DataConfig
from gatelab.training.corpus import (
    DataError,
    Document,
    Skipped,
    read_corpus,
    source_digest,
    validation_names,
)
from gatelab.training.tokenizer import (
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    encode_document,
    load_tokenizer,
    tokenizer_digest,
)

PREPARATION_VERSION = 2  # part of the data's identity: raise it when equal text would give other tokens
SHARD_TOKENS = 1 << 27
DOCUMENTS = "validation-documents.npy"
"""Of the validation part, `[documents, 2]` int64: tokens, and index of the domain in alphabetical order."""
UNNAMED = "other"
"""The domain of text that names none, or one with too little text, beside text that does."""
MOST_DOMAINS = 64
"""A domain is one by itself if it has at least 1/64 of the bytes: so there are never more."""


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


def data_identity(config: DataConfig) -> str:
    """SHA-256 that names the tokens a configuration yields: the source's content, the tokenizer and the split.

    Where files lie does not enter; what they hold does. Raises DataError or ValueError if they cannot be read.
    """
    parts = {
        "version": PREPARATION_VERSION,
        "source": source_digest(config),
        "text_field": config.text_field,
        "domain_field": config.domain_field,
        "tokenizer": tokenizer_digest(config),
        "validation_fraction": config.validation_fraction,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TokenFiles:
    """The tokens of one part, as a sequence over memory-mapped files."""

    def __init__(self, folder: Path, part: str, dtype: str) -> None:
        paths = [path for path in sorted(folder.glob(f"{part}-*.bin")) if path.stat().st_size]
        self._shards = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """`length` tokens from `start` on, as int64. Raises IndexError beyond the end."""
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
    """Of each domain's whole validation text: turns nats per token into nats per byte."""


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
        """Of the validation text: turns nats per token into nats per byte."""
        return self.manifest.validation.bytes / self.manifest.validation.tokens

    @cached_property
    def _documents(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(first token, domain) of each validation document, in the order in which they stand."""
        lengths, domains = np.load(self.folder / DOCUMENTS).T
        return np.cumsum(lengths) - lengths, domains

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What the text was tokenised with."""
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
        """Evenly spaced windows of the validation text that hold about `tokens` tokens: one at least, at most all.

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
    """The manifest of prepared data. Raises DataError if there are none in the folder."""
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


def prepare(config: DataConfig, root: Path, identity: str | None = None) -> Dataset:
    """The dataset of a configuration, tokenised into a folder under `root` if it is not there yet.

    Processes that ask at once wait for the one that prepares; a folder appears whole or not at all.
    Raises DataError if the source cannot be used.
    """
    identity = identity or data_identity(config)
    folder = root / identity
    if (folder / "manifest.json").exists():
        return Dataset(folder)
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / f"{identity}.lock"):
        if not (folder / "manifest.json").exists():
            building = Path(tempfile.mkdtemp(prefix=f"{identity[:12]}-", suffix=".tmp", dir=root))
            try:
                building.chmod(0o755)  # others on a shared disk may read it
                _build(config, identity, building)
                for path in building.iterdir():
                    fsync(path)
                building.rename(folder)
                fsync(root)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return Dataset(folder)


def _build(config: DataConfig, identity: str, folder: Path) -> None:
    """Tokenise a corpus into `folder`, the manifest last. Reads the corpus once more for each thing it must know."""
    skipped: list[Skipped] = []
    domains: dict[str, str] = {}  # of each name: one that stands in several is of the first
    sizes: dict[str, dict[str, int]] = {}  # by domain and name
    for document in read_corpus(config, skipped.append):
        own = sizes.setdefault(domains.setdefault(document.name, document.domain), {})
        own[document.name] = own.get(document.name, 0) + len(document.text.encode())
    sizes, domains = _merge_small(sizes, domains)
    held = {name for own in sizes.values() for name in validation_names(own, config.validation_fraction)}

    def documents(validation: bool) -> Iterator[Document]:
        for document in read_corpus(config, lambda _: None):
            document = replace(document, domain=domains[document.name])
            if len(sizes[document.domain]) == 1:
                yield _part_of_only_document(document, config.validation_fraction, validation)
            elif (document.name in held) == validation:
                yield document

    tokenizer = load_tokenizer(config, (document.text for document in documents(validation=False)))
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    train = _count(_write_tokens(documents(validation=False), tokenizer, folder, "train", dtype))
    validation = list(_write_tokens(documents(validation=True), tokenizer, folder, "validation", dtype))
    names = sorted({entry.domain or UNNAMED for entry in validation})
    by_domain = {name: [entry for entry in validation if (entry.domain or UNNAMED) == name] for name in names}
    lengths = [(entry.tokens, names.index(entry.domain or UNNAMED)) for entry in validation]
    np.save(folder / DOCUMENTS, np.array(lengths, dtype=np.int64).reshape(-1, 2))
    manifest = Manifest(
        identity=identity,
        source=config.source,
        source_digest=source_digest(config),
        tokenizer=config.tokenizer,
        tokenizer_digest=hashlib.sha256(tokenizer.description().encode()).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
        train=train,
        validation=_count(validation),
        domains={name: _count(entries) for name, entries in by_domain.items()} if len(names) > 1 else {},
        skipped=skipped,
    )
    if tokenizer.description() != "bytes":
        (folder / "tokenizer.json").write_text(tokenizer.description(), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")


def _merge_small(
    sizes: dict[str, dict[str, int]], domains: dict[str, str]
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Domains with too little text to be held out and reported for themselves are one: the unnamed one."""
    least = sum(sum(own.values()) for own in sizes.values()) / MOST_DOMAINS
    kept = {domain: own for domain, own in sizes.items() if sum(own.values()) >= least}
    rest = {name: size for domain, own in sizes.items() if domain not in kept for name, size in own.items()}
    if not rest:
        return sizes, domains
    kept[""] = kept.get("", {}) | rest
    return kept, {name: domain if domain in kept else "" for name, domain in domains.items()}


def _part_of_only_document(document: Document, fraction: float, validation: bool) -> Document:
    """A document that is the only one of its domain is cut: its tail is held out."""
    cut = min(round(len(document.text) * (1 - fraction)), max(1, len(document.text) - 1))  # some text in either part
    return replace(document, text=document.text[cut:] if validation else document.text[:cut])


@dataclass(frozen=True)
class _Written:
    """One document as it was written."""

    domain: str
    bytes: int
    tokens: int


def _count(written: Iterable[_Written]) -> SplitCounts:
    documents = size = tokens = 0
    for entry in written:
        documents, size, tokens = documents + 1, size + entry.bytes, tokens + entry.tokens
    return SplitCounts(documents, size, tokens)


def _write_tokens(
    documents: Iterator[Document], tokenizer: Tokenizer, folder: Path, part: str, dtype: str
) -> Iterator[_Written]:
    """Write documents one behind another into shards, and say of each what it was."""
    shard, shard_tokens, file = 0, 0, (folder / f"{part}-000000.bin").open("wb")
    for document in documents:
        if shard_tokens >= SHARD_TOKENS:
            file.close()
            shard, shard_tokens = shard + 1, 0
            file = (folder / f"{part}-{shard:06d}.bin").open("wb")
        tokens = encode_document(tokenizer, document.text)
        file.write(tokens.astype(dtype).tobytes())
        shard_tokens += len(tokens)
        yield _Written(document.domain, len(document.text.encode()), len(tokens))
    file.close()
