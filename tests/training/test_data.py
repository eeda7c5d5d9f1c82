import errno
import json
import multiprocessing
import operator
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import filelock
import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from gatelab.errors import DataError
from gatelab.training import preparation
from gatelab.training.config import DataConfig
from gatelab.training.data import Dataset
from gatelab.training.manifest import Manifest, SplitCounts
from gatelab.training.preparation import data_identity, prepare
from gatelab.training.tokenizer import ByteTokenizer, load_tokenizer


def positions(folder: Path, train: int, validation: int = 1000) -> Dataset:
    """A dataset whose tokens are their own positions, so that every window shows where it was cut."""
    for part, tokens in (("train", train), ("validation", validation)):
        np.arange(tokens, dtype="uint32").tofile(folder / f"{part}-000.bin")
    counts = {"train": SplitCounts(1, train, train), "validation": SplitCounts(1, validation, validation)}
    manifest = Manifest("", "", "", "", "", 1 << 20, "uint32", domains={}, skipped=[], **counts)
    np.save(folder / "validation-documents.npy", np.array([[validation, 0]]))
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest)))
    return Dataset(folder)


def documents(dataset: Dataset, part: str) -> list[bytes]:
    """The documents of one part, read from the files on disk (byte tokens)."""
    files = sorted(dataset.folder.glob(f"{part}-*.bin"))
    tokens = np.concatenate([np.fromfile(path, dataset.manifest.dtype) for path in files])
    assert tokens[-1] == 256
    return [bytes(piece[:-1].tolist()) for piece in np.split(tokens, np.flatnonzero(tokens == 256) + 1)[:-1]]


def folders(root: Path) -> list[str]:
    """What lies under a data root, locks aside."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_the_parts_are_disjoint_whole_and_counted(corpus: Path, tmp_path: Path) -> None:
    """No held-out document is trained on, no text is lost, and the manifest tells the truth about the files."""
    (corpus / "photo.jpg").write_bytes(b"x")
    dataset = prepare(DataConfig(source=str(corpus), validation_fraction=0.3), tmp_path / "data")
    parts = {part: documents(dataset, part) for part in ("train", "validation")}
    assert sorted(parts["train"] + parts["validation"]) == sorted(path.read_bytes() for path in corpus.glob("*.py"))
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    for part, texts in parts.items():
        size = sum(map(len, texts))
        assert texts
        assert manifest[part] == {"documents": len(texts), "bytes": size, "tokens": size + len(texts), "lost_bytes": 0}
        assert len(getattr(dataset, part)) == size + len(texts)
    assert [entry["name"] for entry in manifest["skipped"]] == ["photo.jpg"]
    assert (manifest["vocab_size"], manifest["dtype"]) == (257, "uint16")
    held = parts["validation"]
    assert dataset.bytes_per_token == sum(map(len, held)) / (sum(map(len, held)) + len(held))


def test_a_single_document_is_cut_and_its_tail_held_out(tmp_path: Path) -> None:
    """One long file is a usable corpus: both parts together are the file, the second a tail of the asked share."""
    text = "".join(f"line {i}\n" for i in range(500))
    (tmp_path / "book.txt").write_text(text)
    dataset = prepare(DataConfig(source=str(tmp_path / "book.txt"), validation_fraction=0.2), tmp_path / "data")
    (head,), (tail,) = documents(dataset, "train"), documents(dataset, "validation")
    assert (head + tail).decode() == text
    assert len(tail) == pytest.approx(0.2 * len(text), abs=1)


def test_preparing_again_reads_what_is_there(corpus: Path, tmp_path: Path) -> None:
    """A corpus is tokenised once, however many trials ask for it."""
    config = DataConfig(source=str(corpus))
    folder = prepare(config, tmp_path / "data").folder
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(config, tmp_path / "data").folder == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert folders(tmp_path / "data") == [folder.name] == [data_identity(config)]


@pytest.mark.parametrize("documents_before_the_crash", [0, 3, 5])
def test_a_crash_while_preparing_leaves_nothing_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents_before_the_crash: int
) -> None:
    """Half a corpus is never taken for a whole one; the next attempt succeeds."""
    tokens, done = ByteTokenizer.tokens, []

    def fails(self: ByteTokenizer, text: str) -> npt.NDArray[np.int64]:
        if len(done) == documents_before_the_crash:
            raise MemoryError
        done.append(text)
        return tokens(self, text)

    config = DataConfig(source=str(corpus))
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(ByteTokenizer, "tokens", fails)
        prepare(config, tmp_path / "data")
    assert folders(tmp_path / "data") == []
    assert len(prepare(config, tmp_path / "data").train) > 10_000


FILES = ("train-000000.bin", "validation-000000.bin", "validation-documents.npy", "tokenizer.json", "manifest.json")


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file, as a bad disk would: size and time of change stay."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # a process remembers files that it has seen


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_damaged_files_are_never_trained_on_and_made_anew(corpus: Path, tmp_path: Path, name: str, damage: str) -> None:
    """A flipped bit or a copy that broke off is no other corpus: it is told, and mended where the source is at hand."""
    config = DataConfig(source=str(corpus), tokenizer="bpe:260")
    folder = prepare(config, tmp_path / "data").folder
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        flip(path)
    else:
        path.write_bytes(path.read_bytes()[:-2] if damage == "cut" else b"")
    with pytest.raises(DataError, match=f"{folder}.*gatelab data STUDY prepares them"):
        Dataset(folder)
    assert len(prepare(config, tmp_path / "data").train) > 10_000
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert folders(tmp_path / "data") == [folder.name]


def test_data_that_would_become_others_are_not_made_anew(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of a study keep their tokens: where a library would train another tokenizer today, the user decides."""
    config = DataConfig(source=str(corpus), tokenizer="bpe:300")
    folder = prepare(config, tmp_path / "data").folder
    flip(folder / "train-000000.bin")
    trained = preparation.load_tokenizer
    monkeypatch.setattr(
        preparation, "load_tokenizer", lambda config, texts: trained(DataConfig(tokenizer="bpe:299"), texts)
    )
    before = (folder / "train-000000.bin").read_bytes()
    with pytest.raises(DataError, match=f"{folder}.*other tokens.*delete it"):
        prepare(config, tmp_path / "data")
    assert (folder / "train-000000.bin").read_bytes() == before
    assert folders(tmp_path / "data") == [folder.name]


def test_a_manifest_of_an_older_version_is_accepted(corpus: Path, tmp_path: Path) -> None:
    """Data that were prepared before there were checksums are used as they are; of them only sizes are known."""
    config = DataConfig(source=str(corpus))
    folder = prepare(config, tmp_path / "data").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"], manifest["checksums"], manifest["train"]["lost_bytes"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare(config, tmp_path / "data").manifest.train.lost_bytes is None
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    (folder / "train-000000.bin").write_bytes(b"odd")
    with pytest.raises(DataError, match="damaged"):
        Dataset(folder)


def test_what_a_killed_process_left_is_swept_and_what_another_writes_is_not(corpus: Path, tmp_path: Path) -> None:
    """A kill in the middle of preparing leaves a folder; it must neither fill the disk nor be torn from a live one."""
    root = tmp_path / "data"
    dead, alive, old = (root / f"{name}.tmp" for name in ("a" * 64 + "-x1", "b" * 64 + "-x2", "c" * 12 + "-x3"))
    for folder in (dead, alive, old):
        folder.mkdir(parents=True)
        (folder / "train-000000.bin").write_bytes(b"half")
    with filelock.FileLock(root / ("b" * 64 + ".lock")):
        folder = prepare(DataConfig(source=str(corpus)), root).folder
        assert folders(root) == sorted([alive.name, folder.name])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written is told with the folder, and half of it does not keep the disk full."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=rf"{tmp_path}.*No space left on device"):
        prepare(DataConfig(source=str(corpus)), tmp_path / "data")
    assert folders(tmp_path / "data") == []


def test_a_source_that_changes_while_it_is_prepared_is_told(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are never kept under the name of other text."""
    config = DataConfig(source=str(corpus))
    identity = data_identity(config)
    (corpus / "heapq.py").write_text("changed after the plan")
    with pytest.raises(DataError, match="changed while it was prepared"):
        prepare(config, tmp_path / "data", identity)
    assert folders(tmp_path / "data") == []


def test_the_source_that_is_named_is_this_studys(corpus: Path, tmp_path: Path) -> None:
    """Equal data are prepared once; whoever uses them reads the path that they gave themselves."""
    prepare(DataConfig(source=str(corpus)), tmp_path / "data")
    copy = corpus.rename(tmp_path / "copy")
    dataset = prepare(DataConfig(source=str(copy)), tmp_path / "data")
    assert dataset.manifest.source == str(copy)
    with pytest.raises(DataError, match=rf"'{copy}' is too small"):
        dataset.require(1_000_000)


@pytest.mark.parametrize(
    ("make", "text", "lost"),
    [
        (lambda: words({"<unk>": 0, "a": 1, "b": 2}), "a b nk", 3),
        (lambda: with_normalizer(words({"<unk>": 0, "a": 1}), normalizers.Lowercase()), "a A a", 1),
        (lambda: with_normalizer(words({"<unk>": 0, "cafe": 1}), accents()), "café", 2),
        (lambda: words({"<unk>": 0, "a": 1, "b": 2}), "a\nb\t a", 2),
        (lambda: byte_level(), "any text, \n\t 日本 <|endoftext|>!", len("<|endoftext|>")),
        (lambda: byte_level(), "any text", 0),
    ],
    ids=["unknown-words", "lower-case", "accents", "white-space", "separator-in-text", "byte-level"],
)
def test_bytes_that_a_tokenizer_throws_away_are_counted(
    tmp_path: Path, make: Callable[[], tokenizers.Tokenizer], text: str, lost: int
) -> None:
    """Bits per byte reward a tokenizer for what it does not encode: how much that is must be known."""
    make().save(str(tmp_path / "tokenizer.json"))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(text)
    dataset = prepare(DataConfig(source=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json")), tmp_path / "data")
    for counts in (dataset.manifest.train, dataset.manifest.validation):
        assert (counts.lost_bytes, counts.lost_share) == (lost, lost / len(text.encode()))
    assert dataset.held_out(1, 1).lost_share == lost / len(text.encode())


def words(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """A tokenizer of whole words, which white space separates."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def with_normalizer(tokenizer: tokenizers.Tokenizer, normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    tokenizer.normalizer = normalizer
    return tokenizer


def accents() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])


def byte_level() -> tokenizers.Tokenizer:
    """The tokenizer that bpe:N trains."""
    return tokenizers.Tokenizer.from_str(load_tokenizer(DataConfig(tokenizer="bpe:300"), iter(["text"])).description())


def test_processes_that_prepare_at_once_make_one_dataset(corpus: Path, tmp_path: Path) -> None:
    """Trials that start together neither collide nor differ, and a trained tokenizer is the same in every process."""
    config = DataConfig(source=str(corpus), tokenizer="bpe:300")
    spawn = multiprocessing.get_context("spawn")
    start = operator.methodcaller("wait")
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=start, initargs=(spawn.Barrier(2),)) as pool:
        jobs = [pool.submit(prepare, config, tmp_path / "shared") for _ in range(2)]
        prepared = [job.result(timeout=120) for job in jobs]
    here = prepare(config, tmp_path / "here")
    assert folders(tmp_path / "shared") == [here.folder.name]
    for dataset in prepared:
        assert dataset.folder == tmp_path / "shared" / here.folder.name
        for path in here.folder.iterdir():
            assert (dataset.folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("documents", [5, 1100])
def test_several_files_hold_the_same_tokens_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: int
) -> None:
    """How large a file may grow is no part of the data: windows cross file borders, however many there are."""
    source = tmp_path / "corpus"
    source.mkdir()
    for i in range(documents):
        (source / f"{i:04d}.txt").write_text(f"document {i:04d}\n")
    config = DataConfig(source=str(source))
    whole = prepare(config, tmp_path / "one").train
    monkeypatch.setattr(preparation, "SHARD_TOKENS", 1)
    cut = prepare(config, tmp_path / "several").train
    assert len(list((tmp_path / "several").glob("*/train-*.bin"))) > documents // 2
    assert len(cut) == len(whole)
    assert np.array_equal(cut.window(0, len(cut)), whole.window(0, len(whole)))
    starts = np.random.default_rng(0).integers(len(whole) - 40, size=50).tolist()
    assert all(np.array_equal(cut.window(start, 40), whole.window(start, 40)) for start in starts)


def test_tokens_beyond_16_bits_are_kept(tmp_path: Path) -> None:
    """A tokenizer of more than 65536 entries is stored with all its ids."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(70_000)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("w69999 w65536 w3")
    dataset = prepare(DataConfig(source=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json")), tmp_path / "data")
    assert dataset.train.window(0, 4).tolist() == [69_999, 65_536, 3, 70_000]
    assert dataset.manifest.vocab_size == 70_001


def test_windows_are_contiguous_text(corpus: Path, tmp_path: Path) -> None:
    """What the model reads is the corpus, not a shuffle of it: every window is found in the training text."""
    dataset = prepare(DataConfig(source=str(corpus)), tmp_path / "data")
    text = b"\xff".join([*documents(dataset, "train"), b""])  # \xff, never part of UTF-8, for the separator
    for window in dataset.batch(seed=3, step=7, batch_size=16, sequence_length=64):
        assert np.where(window == 256, 0xFF, window).astype(np.uint8).tobytes() in text


def test_batches_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    """A resumed trial, or another variant, sees the batch of a step whatever was drawn before it."""
    used = positions(tmp_path, 600)
    asked = [(seed, step) for seed in (0, 1, 2**32) for step in range(30)] * 2
    np.random.default_rng(0).shuffle(asked)
    seen = {}
    for seed, step in asked:
        batch = used.batch(seed, step, 4, 16)
        assert np.array_equal(batch, Dataset(tmp_path).batch(seed, step, 4, 16))
        seen[seed, step] = batch.tobytes()
    assert len(set(seen.values())) == len(seen)


@settings(deadline=None, max_examples=40)
@given(tokens=st.integers(40, 500), length=st.integers(2, 16), batch=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_each_epoch_visits_each_window_once(tokens: int, length: int, batch: int, seed: int) -> None:
    """Every token but those at the ragged ends counts once an epoch, in an order of its own; batches span epochs."""
    windows = (tokens - 1) // length - 1  # that fit at every offset
    with tempfile.TemporaryDirectory() as folder:
        dataset = positions(Path(folder), tokens)
        rows = np.concatenate([dataset.batch(seed, step, batch, length) for step in range(-(-3 * windows // batch))])
    assert (np.diff(rows) == 1).all()
    assert rows.min() >= 0
    assert rows.max() < tokens
    for epoch in range(3):
        visited = np.sort(rows[epoch * windows : (epoch + 1) * windows, 0])
        assert (np.diff(visited) == length).all()
        assert windows * length >= tokens - 2 * length  # all but the ends


def test_epochs_differ_in_order_and_offset(tmp_path: Path) -> None:
    """A second epoch is not a repetition of the first."""
    dataset = positions(tmp_path, 2000)
    epochs = np.array([dataset.batch(0, step, 1, 16)[0, 0] for step in range(3 * 123)]).reshape(3, 123)
    assert len({tuple(epoch // 16) for epoch in epochs}) == 3
    assert len({epoch[0] % 16 for epoch in epochs}) > 1
    assert all(len({start % 16 for start in epoch}) == 1 for epoch in epochs)


@settings(deadline=None, max_examples=40)
@given(tokens=st.integers(2, 3000), held=st.integers(20, 1000), length=st.integers(2, 16))
def test_validation_windows_are_evenly_spaced(tokens: int, held: int, length: int) -> None:
    """The evaluation budget covers the whole held-out text, without overlap and without running over its end."""
    with tempfile.TemporaryDirectory() as folder:
        windows = positions(Path(folder), 100, held).held_out(tokens, length).windows
    assert (np.diff(windows) == 1).all()
    available = (held - 1) // length
    assert len(windows) == max(1, min(available, tokens // length))
    starts = windows[:, 0]
    gaps = np.diff([*starts, available * length])
    assert starts[0] == 0
    assert gaps.min() >= length
    assert gaps.max() - gaps.min() <= length
    assert windows.max() < held


@pytest.mark.parametrize(("train", "held"), [(60, 33), (65, 32)], ids=["train", "validation"])
def test_a_corpus_too_small_for_a_sequence_is_an_error(tmp_path: Path, train: int, held: int) -> None:
    """The smallest corpus that works, works; one token less is told, with what there is and what is asked."""
    smallest = positions(tmp_path, 65, 33)
    smallest.require(32)
    assert smallest.batch(0, 5, 2, 32).shape == (2, 33)
    assert smallest.held_out(1000, 32).windows.shape == (1, 33)
    with pytest.raises(DataError, match=rf"sequence_length 32: {train} tokens to train on, {held} to evaluate on"):
        positions(tmp_path, train, held).require(32)


def test_the_identity_follows_what_the_tokens_depend_on(corpus: Path, tmp_path: Path) -> None:
    """Two trials share data exactly if they would train on the same tokens, wherever the files lie."""
    moved = tmp_path / "elsewhere" / "text"
    moved.parent.mkdir()
    config = DataConfig(source=str(corpus))
    identities = [data_identity(config)]
    corpus.rename(moved)
    base = {"source": str(moved)}
    assert data_identity(DataConfig(**base)) == identities[0]
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "t.json"))
    (tmp_path / "copy.json").write_text((tmp_path / "t.json").read_text())
    with_file = [data_identity(DataConfig(**base, tokenizer=str(tmp_path / name))) for name in ("t.json", "copy.json")]
    assert with_file[0] == with_file[1]
    identities += [
        with_file[0],
        data_identity(DataConfig(**base, tokenizer="bpe:300")),
        data_identity(DataConfig(**base, validation_fraction=0.06)),
    ]
    with (moved / "heapq.py").open("a") as file:
        file.write("#")
    identities.append(data_identity(DataConfig(**base)))
    assert len(set(identities)) == 5
