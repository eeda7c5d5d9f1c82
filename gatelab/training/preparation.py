"""Tokenising a corpus, once: its identity, its split into training and validation, its files."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import filelock
import numpy as np

from gatelab.atomic import fsync
from gatelab.errors import DataError
from gatelab.training.config import DataConfig
from gatelab.training.corpus import Document, read_corpus, source_digest, validation_names
from gatelab.training.data import Dataset
from gatelab.training.manifest import (
    DOCUMENTS,
    TOKENIZER,
    Manifest,
    SplitCounts,
    file_checksums,
    read_manifest,
    write_manifest,
)
from gatelab.training.source_files import Skipped
from gatelab.training.tokenizer import Tokenizer, encode_document, load_tokenizer, tokenizer_digest

PREPARATION_VERSION = 2  # part of the data's identity: raise it when equal text would give other tokens
SHARD_TOKENS = 1 << 27
TEMPORARY = ".tmp"
"""Ends the name of a folder in which data are being prepared."""
UNNAMED = "other"
"""The domain of text that names none, or one with too little text, beside text that does."""
MOST_DOMAINS = 64
"""A domain is one by itself if it has at least 1/64 of the bytes: so there are never more."""


def data_identity(config: DataConfig) -> str:
    """Return the SHA-256 that names the tokens of a configuration: of the source's content, tokenizer and split.

    Where files lie does not enter; what they hold does. Raises DataError or ValueError if they cannot be read.
    """
    return _identity(config, source_digest(config), tokenizer_digest(config))


def _identity(config: DataConfig, source: str, tokenizer: str) -> str:
    parts = {
        "version": PREPARATION_VERSION,
        "source": source,
        "text_field": config.text_field,
        "domain_field": config.domain_field,
        "tokenizer": tokenizer,
        "validation_fraction": config.validation_fraction,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prepare(config: DataConfig, root: Path, identity: str | None = None) -> Dataset:
    """Return the dataset of a configuration, tokenising it into a folder under `root` if it is not there yet.

    What is there but damaged is made anew. Processes that ask at once wait for the one that prepares; a folder appears
    whole or not at all. The dataset names the source and tokenizer of this configuration, whoever prepared it.
    Raises DataError if the source cannot be used or the folder cannot be written.
    """
    identity = identity or data_identity(config)
    folder = root / identity
    dataset = _open(folder)
    if dataset is None:
        try:
            dataset = _prepare(config, identity, folder)
        except OSError as error:
            raise DataError(f"data cannot be prepared in {root} ({error.strerror or error})") from error
    dataset.manifest = replace(dataset.manifest, source=config.source, tokenizer=config.tokenizer)
    return dataset


def _open(folder: Path) -> Dataset | None:
    """Return prepared data; None where there are none, or damaged ones."""
    try:
        return Dataset(folder)
    except DataError:
        return None


def _prepare(config: DataConfig, identity: str, folder: Path) -> Dataset:
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    with filelock.FileLock(root / f"{identity}.lock"):
        if (dataset := _open(folder)) is not None:
            return dataset
        building = Path(tempfile.mkdtemp(prefix=f"{identity}-", suffix=TEMPORARY, dir=root))
        try:
            building.chmod(0o755)  # others on a shared disk may read it
            _build(config, identity, building)
            for path in building.iterdir():
                fsync(path)
            if folder.exists():
                _check_replacement(folder, building)
                folder.rename(building.with_name(f"{building.stem}-damaged{TEMPORARY}"))  # open files stay readable
            building.rename(folder)
            fsync(root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    _sweep(root)
    return Dataset(folder)


def _sweep(root: Path) -> None:
    """Remove what processes that were killed while they prepared have left: folders whose lock nobody holds."""
    for leftover in root.glob(f"*{TEMPORARY}"):
        name = leftover.name.partition("-")[0]  # of the data, or its beginning
        with contextlib.suppress(filelock.Timeout), contextlib.ExitStack() as locks:
            for lock in root.glob(f"{name}*.lock"):
                locks.enter_context(filelock.FileLock(lock, timeout=0))
            shutil.rmtree(leftover, ignore_errors=True)


def _check_replacement(folder: Path, building: Path) -> None:
    """Raise DataError if data that are made anew are not those that trials were trained on.

    As where another version of a library trains another tokenizer.
    """
    try:
        before = read_manifest(folder)
    except DataError:
        return
    now = read_manifest(building)
    same = before.tokenizer_digest == now.tokenizer_digest and before.train.tokens == now.train.tokens
    if not same or before.checksums not in (None, now.checksums):
        raise DataError(
            f"the prepared data in {folder} are damaged, and made anew here they have other tokens, as with another "
            "version of the tokenizers library: restore that folder, or delete it to train on the new ones"
        )


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
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    train = _count(_write_tokens(documents(validation=False), tokenizer, folder, "train", dtype))
    validation = list(_write_tokens(documents(validation=True), tokenizer, folder, "validation", dtype))
    names = sorted({entry.domain or UNNAMED for entry in validation})
    by_domain = {name: [entry for entry in validation if (entry.domain or UNNAMED) == name] for name in names}
    lengths = [(entry.tokens, names.index(entry.domain or UNNAMED)) for entry in validation]
    np.save(folder / DOCUMENTS, np.array(lengths, dtype=np.int64).reshape(-1, 2))
    if tokenizer.description() != "bytes":
        (folder / TOKENIZER).write_text(tokenizer.description(), encoding="utf-8")
    digest = source_digest(config)
    if _identity(config, digest, tokenizer_digest(config)) != identity:
        raise DataError(f"data.source {config.source!r} changed while it was prepared: run again")
    manifest = Manifest(
        identity=identity,
        source=config.source,
        source_digest=digest,
        tokenizer=config.tokenizer,
        tokenizer_digest=hashlib.sha256(tokenizer.description().encode()).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
        train=train,
        validation=_count(validation),
        domains={name: _count(entries) for name, entries in by_domain.items()} if len(names) > 1 else {},
        skipped=skipped,
        checksums=file_checksums(folder.iterdir()),
    )
    write_manifest(folder, manifest)


def _merge_small(
    sizes: dict[str, dict[str, int]], domains: dict[str, str]
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Merge domains with too little text to be held out and reported for themselves into the unnamed one."""
    least = sum(sum(own.values()) for own in sizes.values()) / MOST_DOMAINS
    kept = {domain: own for domain, own in sizes.items() if sum(own.values()) >= least}
    rest = {name: size for domain, own in sizes.items() if domain not in kept for name, size in own.items()}
    if not rest:
        return sizes, domains
    kept[""] = kept.get("", {}) | rest
    return kept, {name: domain if domain in kept else "" for name, domain in domains.items()}


def _part_of_only_document(document: Document, fraction: float, validation: bool) -> Document:
    """Cut a document that is the only one of its domain: its tail is held out."""
    cut = min(round(len(document.text) * (1 - fraction)), max(1, len(document.text) - 1))  # some text in either part
    return replace(document, text=document.text[cut:] if validation else document.text[:cut])


@dataclass(frozen=True)
class _Written:
    """One document as it was written."""

    domain: str
    bytes: int
    tokens: int
    lost_bytes: int


def _count(written: Iterable[_Written]) -> SplitCounts:
    documents = size = tokens = lost = 0
    for entry in written:
        documents, size, tokens = documents + 1, size + entry.bytes, tokens + entry.tokens
        lost += entry.lost_bytes
    return SplitCounts(documents, size, tokens, lost)


def _write_tokens(
    documents: Iterator[Document], tokenizer: Tokenizer, folder: Path, part: str, dtype: str
) -> Iterator[_Written]:
    """Write documents one behind another into shards, and say of each what it was."""
    shard, shard_tokens, file = 0, 0, (folder / f"{part}-000000.bin").open("wb")
    try:
        for document in documents:
            if shard_tokens >= SHARD_TOKENS:
                file.close()
                shard, shard_tokens = shard + 1, 0
                file = (folder / f"{part}-{shard:06d}.bin").open("wb")
            tokens = encode_document(tokenizer, document.text)
            file.write(tokens.astype(dtype).tobytes())
            shard_tokens += len(tokens)
            lost = tokenizer.lost_bytes(document.text, tokens[:-1].tolist())
            yield _Written(document.domain, len(document.text.encode()), len(tokens), lost)
    finally:
        file.close()
