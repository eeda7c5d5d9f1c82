import errno
import gzip
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.errors import DataError
from gatelab.training.config import DataConfig
from gatelab.training.corpus import read_corpus, source_digest, validation_names
from gatelab.training.source_files import READ, Skipped


def read(source: Path | str, **fields: Any) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(name, text) of each document of a source, and the reasons for what was skipped, by name."""
    skipped: list[Skipped] = []
    documents = list(read_corpus(DataConfig(source=str(source), **fields), skipped.append))
    return [(document.name, document.text) for document in documents], {item.name: item.reason for item in skipped}


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_the_standard_library_is_whole_on_a_supported_python() -> None:
    """The default corpus exists everywhere: megabytes of text, the same list of files on every supported version."""
    documents, skipped = read("stdlib")
    assert sum(len(text) for _, text in documents) > 4_000_000
    assert {"argparse.py", "json/decoder.py"} <= {name for name, _ in documents}
    assert not any("test" in Path(name).parts for name, _ in documents)
    assert set(skipped.values()) <= {"empty", "not UTF-8 text"}


def test_only_pinned_files_of_the_standard_library_are_read_and_missing_ones_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Site-specific files never enter the corpus, and a stripped installation is not passed off as a whole one."""
    write(tmp_path, {"bisect.py": "b", "json/decoder.py": "d", "sitecustomize.py": "mine"})
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    documents, skipped = read("stdlib")
    assert documents == [("bisect.py", "b"), ("json/decoder.py", "d")]
    assert "not part of this Python" in skipped["argparse.py"]
    assert len(skipped) > 300
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match="library sources"):
        read("stdlib")


def test_a_folder_gives_its_text_files_in_a_fixed_order_and_says_what_it_left_out(tmp_path: Path) -> None:
    """Text below any folder is found, by a name that does not depend on where the folder lies."""
    folder = write(
        tmp_path / ".cache" / "corpus",  # hidden above the source: no reason to ignore it
        {
            "z.txt": "last",
            "a/b.md": "héllo",
            "a/B.py": "first",
            "latin.txt": b"caf\xe9",
            "image.png": "x",
            "LICENSE": "x",
            "empty.txt": "",
            ".hidden.txt": "x",
            ".git/config.txt": "x",
            "a/.venv/lib/x.py": "x",
        },
    )
    documents, skipped = read(folder)
    assert documents == [("a/B.py", "first"), ("a/b.md", "héllo"), ("z.txt", "last")]
    assert skipped.keys() == {"latin.txt", "image.png", "LICENSE", "empty.txt"}
    assert "UTF-8" in skipped["latin.txt"]
    assert ".png" in skipped["image.png"]


def test_a_single_file_is_a_corpus_whatever_its_suffix(tmp_path: Path) -> None:
    """`data.source: notes` works: a file that is named explicitly is meant."""
    write(tmp_path, {"notes": "text"})
    assert read(tmp_path / "notes") == ([("notes", "text")], {})


def test_records_of_jsonl_and_parquet_are_documents(tmp_path: Path) -> None:
    """Each record is a document; those without text are reported by their number, in both formats."""
    texts = ["one\ntwo", "", None, "three", "one\ntwo", "☃"]
    rows = [{"body": text, "text": "no"} for text in texts]
    write(tmp_path, {"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows) + '["one"]\n'})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=2)
    for name in ("a.jsonl", "b.parquet"):
        documents, skipped = read(tmp_path / name, text_field="body")
        assert [text for _, text in documents] == ["one\ntwo", "three", "one\ntwo", "☃"]
        assert documents[0] == documents[2]  # equal texts have one name: they stay on one side of the split
        assert len({name for name, _ in documents}) == 3
        assert "'body'" in skipped[f"{name}:3"]
    assert "a.jsonl:7" in read(tmp_path / "a.jsonl", text_field="body")[1]


def test_lone_surrogates_of_json_become_text_that_can_be_encoded(tmp_path: Path) -> None:
    """JSON can hold half a character; tokenising it must not fail hours later."""
    write(tmp_path, {"a.jsonl": r'{"text": "a\ud800b"}'})
    (((_, text),), _) = read(tmp_path / "a.jsonl")
    assert text.encode().decode() == "a?b"


@pytest.mark.parametrize(
    ("files", "source", "words"),
    [
        ({}, "missing", ["missing", "no such file", "hf:NAME"]),
        ({"x.bin": "x"}, ".", ["no text"]),
        ({"a.txt": "", "b.txt": b"\xff\xfe"}, ".", ["no text"]),
        ({"a.jsonl": '{"text": "x"}\n{"text": \n'}, ".", ["a.jsonl:2", "JSON"]),
        ({"a.jsonl": b'{"text": "\xff"}'}, ".", ["a.jsonl"]),
        ({"a.parquet": "not Parquet"}, ".", ["a.parquet"]),
    ],
    ids=["missing", "no-known-suffix", "all-empty", "bad-json", "jsonl-not-utf8", "damaged-parquet"],
)
def test_sources_that_cannot_be_used_are_errors_that_say_where(
    tmp_path: Path, files: dict[str, str | bytes], source: str, words: list[str]
) -> None:
    """The person learns which file to repair; no trial starts on half a corpus."""
    write(tmp_path, files)
    with pytest.raises(DataError) as caught:
        read(tmp_path / source)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_wrong_text_field_of_parquet_lists_the_right_ones(tmp_path: Path) -> None:
    """The columns that are there are the answer to the question."""
    pq.write_table(pa.table({"content": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'text'.*data\.text_field.*content, url"):
        read(tmp_path)


def test_the_digest_follows_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    """Equal data has an equal name on every machine, and changed data never passes for the old."""
    files: dict[str, str | bytes] = {"a.txt": "one", "b/c.txt": "two"}

    def digest(folder: str, files: dict[str, str | bytes]) -> str:
        return source_digest(DataConfig(source=str(write(tmp_path / folder, files))))

    original = digest("original", files)
    assert digest("moved/far", files) == original
    assert digest("unread", {**files, ".hidden.txt": "x", "image.png": "x"}) == original
    changed = [
        digest("content", {**files, "a.txt": "One"}),
        digest("name", {"A.txt": "one", "b/c.txt": "two"}),
        digest("swapped", {"a.txt": "two", "b/c.txt": "one"}),
        digest("more", {**files, "d.txt": "three"}),
    ]
    assert len({original, *changed}) == 5


@settings(deadline=None)
@given(
    sizes=st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 1000), min_size=2, max_size=20),
    fractions=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)).map(sorted),
    order=st.randoms(use_true_random=False),
)
def test_the_validation_part_is_a_law_of_names_and_sizes(
    sizes: dict[str, int], fractions: list[float], order: random.Random
) -> None:
    """What is held out depends on neither order nor chance, holds its share, and grows without exchanging documents."""
    smaller, larger = (validation_names(sizes, fraction) for fraction in fractions)
    shuffled = list(sizes.items())
    order.shuffle(shuffled)
    assert validation_names(dict(shuffled), fractions[0]) == smaller
    assert 1 <= len(smaller) < len(sizes)
    assert smaller <= larger <= sizes.keys()
    held, wanted = [sizes[name] for name in smaller], fractions[0] * sum(sizes.values())
    assert sum(held) >= wanted or len(held) == len(sizes) - 1
    assert sum(held) - max(held) < wanted  # no more than one document too many


def test_the_validation_part_does_not_follow_the_order_of_names() -> None:
    """Names that sort together (one author, one topic) are spread over both parts."""
    sizes = {f"doc{i:04d}": 10 for i in range(1000)}
    indices = sorted(int(name[3:]) for name in validation_names(sizes, 0.2))
    assert len(indices) == 200
    assert 400 < sum(indices) / 200 < 600


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face dataset on disk, with a default and a named configuration."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = pytest.importorskip("datasets.config")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"text {i}", "url": f"u{i}"} for i in range(5)]
    return write(
        tmp_path / "hub",
        {
            "all.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "few.jsonl": "".join(json.dumps(row) + "\n" for row in rows[:2]),
            "README.md": "---\nconfigs:\n"
            "- {config_name: all, data_files: all.jsonl, default: true}\n"
            "- {config_name: few, data_files: few.jsonl}\n---\n",
        },
    )


def test_a_hugging_face_dataset_is_read(hub_folder: Path) -> None:
    """`hf:NAME` and `hf:NAME:CONFIGURATION` give the records' texts, and each has an identity of its own."""
    source = f"hf:{hub_folder}"
    assert [text for _, text in read(source)[0]] == [f"text {i}" for i in range(5)]
    assert [text for _, text in read(f"{source}:few")[0]] == ["text 0", "text 1"]
    assert [text for _, text in read(source, text_field="url")[0]] == [f"u{i}" for i in range(5)]
    digests = [source_digest(DataConfig(source=name)) for name in (source, source, f"{source}:few")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("suffix", "fields", "words"),
    [
        ("", {"text_field": "body"}, ["'body'", "data.text_field", "text, url"]),
        ("", {"split": "test"}, ["'test'", "train"]),
        (":none", {}, ["none", "few"]),
        ("/nowhere", {}, ["nowhere"]),
    ],
    ids=["field", "split", "configuration", "name"],
)
def test_a_hugging_face_dataset_that_is_not_as_named_is_an_error_that_says_what_is(
    hub_folder: Path, suffix: str, fields: dict[str, str], words: list[str]
) -> None:
    """A typo in a dataset's name, configuration, split or field is told as such."""
    with pytest.raises(DataError) as caught:
        read(f"hf:{hub_folder}{suffix}", **fields)
    assert all(word in str(caught.value) for word in words), caught.value


def test_without_the_datasets_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional; needing it is not a crash."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    for use in (lambda: read("hf:wikitext"), lambda: source_digest(DataConfig(source="hf:wikitext"))):
        with pytest.raises(DataError, match=r"pip install 'gatelab\[datasets\]'"):
            use()


def test_linked_folders_are_read_and_what_leads_nowhere_is_told(tmp_path: Path) -> None:
    """Clusters link domains into a corpus: text behind a link is no less part of it, and a loop has an end."""
    write(tmp_path / "big", {"x.txt": "far", "deep/y.txt": "deeper"})
    corpus = write(tmp_path / "corpus", {"own.txt": "near"})
    (corpus / "code").symlink_to(tmp_path / "big")
    (corpus / "one.txt").symlink_to(tmp_path / "big" / "x.txt")
    (corpus / "code" / "back").symlink_to(corpus)
    (corpus / "self").symlink_to(".")
    (corpus / "gone.txt").symlink_to("nowhere")
    (corpus / "gone").symlink_to("nowhere")
    os.mkfifo(corpus / "pipe.txt")
    documents, skipped = read(corpus)
    names = ["code/deep/y.txt", "code/x.txt", "one.txt", "own.txt"]
    assert [name for name, _ in documents] == names
    assert skipped.keys() == {"code/back", "self", "gone.txt", "gone", "pipe.txt"}
    assert {skipped["code/back"], skipped["self"]} == {"a link to a folder that it lies in"}
    assert {skipped["gone.txt"], skipped["gone"]} == {"a link to nothing"}
    # The same files without links are the same data.
    plain = {"own.txt": "near", "one.txt": "far", "code/x.txt": "far", "code/deep/y.txt": "deeper"}
    copied = write(tmp_path / "copy", dict(plain))
    assert source_digest(DataConfig(source=str(copied))) == source_digest(DataConfig(source=str(corpus)))


@pytest.mark.parametrize("name", ["d.jsonl", "d.JSONL", "d.ndjson", "d.jsonlines", "d.jsonl.gz", "D.NDJSON.GZ"])
def test_records_are_known_by_their_suffix_in_a_folder_and_alone(tmp_path: Path, name: str) -> None:
    """A model must not be trained on the braces and keys of records because a suffix is written otherwise."""
    content = b'{"text": "one"}\n\n{"text": "two"}\n'
    write(tmp_path / "corpus", {name: gzip.compress(content) if name.lower().endswith("gz") else content})
    for source in (tmp_path / "corpus", tmp_path / "corpus" / name):
        assert [text for _, text in read(source)[0]] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("d.json", "record on each line"),
        ("d.JSON", "record on each line"),
        ("d.csv", "table"),
        ("d.tsv", "table"),
        ("d.csv.gz", "table"),
        ("d.arrow", "table"),
        ("d.jsonl.zst", "compressed"),
        ("d.txt.xz", "compressed"),
        ("d.tar.gz", "compressed"),
        ("d.parquet.gz", "compressed"),
    ],
)
def test_what_would_not_be_read_as_it_is_meant_is_refused(tmp_path: Path, name: str, word: str) -> None:
    """A table or an archive is no text: alone it is refused, in a folder it is listed, with what would be right."""
    write(tmp_path, {name: "x,y", "a.txt": "text"})
    with pytest.raises(DataError, match=rf"{name}.*{word}"):
        read(tmp_path / name)
    documents, skipped = read(tmp_path)
    assert documents == [("a.txt", "text")]
    assert word in skipped[name]


def test_text_may_be_packed(tmp_path: Path) -> None:
    """A text that is packed is the text, and one that was cut off is told."""
    packed = gzip.compress(b"one\r\ntwo\n" * 100)
    write(tmp_path, {"a.txt.gz": packed})
    assert read(tmp_path)[0] == [("a.txt.gz", "one\ntwo\n" * 100)]
    for damaged in (packed[:-12], b"no gzip", packed[:20] + b"\xff" * 9 + packed[29:]):
        write(tmp_path, {"a.txt.gz": damaged})
        with pytest.raises(DataError, match=r"a\.txt\.gz: "):
            read(tmp_path)


def test_what_gatelab_wrote_is_no_text_of_a_source(tmp_path: Path) -> None:
    """A source that holds a runs folder, anywhere, is the same data before, during and after a study."""
    own = ("notes.md", "data/own.txt", f"data/{'e' * 64}.txt", f"data/{'e' * 64}/a.txt", "studies/own.md", "sub/a.py")
    source = write(tmp_path, dict.fromkeys(own, "mine"))
    before, digest = read(source), source_digest(DataConfig(source=str(source)))
    of_gatelab = {
        f"data/{'a' * 64}/manifest.json": "{}",
        f"data/{'a' * 64}/train-000000.bin": "tokens",
        f"data/{'a' * 64}.lock": "",
        f"data/{'a' * 64}-xyz.tmp/notes.txt": "half",
        f"trials/{'b' * 64}/lock": "",
        f"trials/{'b' * 64}/log.txt": "log",
        "studies/mine/study.json": "{}",
        "studies/mine/comparison.md": "a table",
        "studies/mine/parquet/runs.parquet": "no column of text",
        "noise.parquet": "no column of text",
        "mlflow-artifacts/1/report.html": "a page",
    }
    for place in ("", "gatelab-runs/", "sub/other-runs/"):
        write(source, {place + name: content for name, content in of_gatelab.items()})
    documents, skipped = read(source)
    assert (documents, source_digest(DataConfig(source=str(source)))) == (before[0], digest)
    assert skipped == dict.fromkeys([".", "gatelab-runs", "sub/other-runs"], "of a gatelab runs folder")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "x", "n": ' + "1" * 5000 + "}", "number of too many digits"),
        ('{"text": "x", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"text": "x"', "not JSON"),
    ],
    ids=["digits", "depth", "cut"],
)
def test_lines_that_python_cannot_read_are_told_by_number(tmp_path: Path, line: str, reason: str) -> None:
    """One line of a million ends the preparation in a sentence that names it, not in a traceback."""
    write(tmp_path, {"d.jsonl": '{"text": "fine"}\n' + line + "\n"})
    with pytest.raises(DataError, match=rf"d\.jsonl:2: .*{reason}"):
        read(tmp_path)


@pytest.mark.parametrize("cut", [slice(4, 60), slice(60, 400)], ids=["first-page", "pages"])
def test_damaged_pages_of_parquet_are_told_by_file(tmp_path: Path, cut: slice) -> None:
    """Header and footer may be sound and the text between them not: the file is named."""
    pq.write_table(pa.table({"text": [f"text {i} " * 9 for i in range(99)]}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[cut] = b"\xff" * (cut.stop - cut.start)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: a damaged Parquet file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([b"x"], "binary"), ([["x"]], "list"), ([{"a": "x"}], "struct"), ([1], "int64")],
    ids=["binary", "list", "struct", "number"],
)
def test_a_column_that_holds_no_text_is_told_with_what_it_holds(tmp_path: Path, values: list[Any], kind: str) -> None:
    """The person learns that it is the column's type, rather than that there is no text."""
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: column 'text' \(data\.text_field\) holds {kind}.*string"):
        read(tmp_path)


def test_text_of_any_arrow_type_is_read(tmp_path: Path) -> None:
    """Large, dictionary-encoded and all-null columns are written by common tools."""
    kinds = (pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string())
    for index, kind in enumerate(kinds):
        pq.write_table(pa.table({"text": pa.array(["one", None], kind)}), tmp_path / f"{index}.parquet")
    documents, skipped = read(tmp_path)
    assert [text for _, text in documents] == ["one"] * 3
    assert set(skipped) == {f"{index}.parquet:2" for index in range(3)}


def test_records_without_text_are_named_by_their_line_and_say_why(tmp_path: Path) -> None:
    """A blank line does not shift the numbers, and the reason says what would be found there."""
    lines = ['{"text": ""}', "", '{"body": "x", "url": 1}', '{"text": ["x"]}', '"x"', '{"text": null}', '{"text": "y"}']
    write(tmp_path, {"d.jsonl": "\n".join(lines)})
    documents, skipped = read(tmp_path)
    assert [text for _, text in documents] == ["y"]
    assert skipped == {
        "d.jsonl:1": "empty",
        "d.jsonl:3": "no field 'text' (data.text_field); it has 'body', 'url'",
        "d.jsonl:4": "field 'text' holds a list, expected text",
        "d.jsonl:5": "a value, expected an object with the field 'text'",
        "d.jsonl:6": "field 'text' holds null, expected text",
    }


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    """A file keeps its text whatever encoding its name is in; the name is shown with escapes."""
    for name in (b"caf\xe9.txt", b"caf\xe9.png"):
        (tmp_path / os.fsdecode(name)).write_text("text")
    documents, skipped = read(tmp_path)
    assert documents == [(r"caf\xe9.txt", "text")]
    assert list(skipped) == [r"caf\xe9.png"]
    assert validation_names({name: 1 for name, _ in documents}, 0.5) == set()
    source_digest(DataConfig(source=str(tmp_path)))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Half of a corpus is never taken for all of it because some of it belongs to somebody else."""
    write(tmp_path, {"a.txt": "text", "sub/b.txt": "text"})
    denied = OSError(errno.EACCES, os.strerror(errno.EACCES), "sub")

    def deny(*_: Any, **__: Any) -> Any:
        raise denied

    monkeypatch.setattr(*((Path, "open") if what == "file" else (os, "scandir")), deny)
    for use in (lambda: read(tmp_path), lambda: source_digest(DataConfig(source=str(tmp_path)))):
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
            use()


def test_the_documentation_lists_what_is_read() -> None:
    """Which suffixes make text stands where a user looks, not in the code alone."""
    documented = (Path(__file__).parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    assert [suffix for suffix in sorted(READ) if f"`{suffix}`" not in documented] == []
