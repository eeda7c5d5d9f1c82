"""Tokenising a corpus, once: its identity, its split into training and validation, its files."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import filelock
import numpy as np

from gatelab.atomic import fsync
from gatelab.training.config import DataConfig
from gatelab.training.corpus import Document, Skipped, read_corpus, source_digest, validation_names
from gatelab.training.data import DOCUMENTS, Dataset, Manifest, SplitCounts
from gatelab.training.tokenizer import Tokenizer, encode_document, load_tokenizer, tokenizer_digest

PREPARATION_VERSION = 2  # part of the data's identity: raise it when equal text would give other tokens
SHARD_TOKENS = 1 << 27
UNNAMED = "other"
"""The domain of text that names none, or one with too little text, beside text that does."""
MOST_DOMAINS = 64
"""A domain is one by itself if it has at least 1/64 of the bytes: so there are never more."""


def data_identity(config: DataConfig) -> str:
    """Return the SHA-256 that names the tokens of a configuration: of the source's content, tokenizer and split.

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


def prepare(config: DataConfig, root: Path, identity: str | None = None) -> Dataset:
    """Return the dataset of a configuration, tokenising it into a folder under `root` if it is not there yet.

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
