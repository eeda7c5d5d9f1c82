"""Files are there whole or not at all, and what is missing is named."""

import math
import threading
from pathlib import Path
from typing import Any

import pytest

from gatelab.results.store.layout import NotFound, RunsFolder
from gatelab.results.store.records import read_json, write_json


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Outcomes are read while they are written: a torn one would be taken for a trial that is not over."""
    path = tmp_path / "a.json"
    values = [{"kind": kind, "rows": [kind] * 20_000} for kind in (1, 2)]
    write_json(path, values[0])
    over = threading.Event()

    def write() -> None:
        for turn in range(30):
            write_json(path, values[turn % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not over.is_set():
        seen.append(read_json(path))
    writer.join()
    assert all(value in values for value in seen)
    assert read_json(path) == values[1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """A record must survive an attempt to replace it that breaks off half-way."""
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"new": [1, 2, {1, 2}]})
    assert read_json(path) == {"old": True}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Outcomes of diverged trials hold numbers that JSON alone does not have; folders are made on the way."""
    value = {"nan": math.nan, "inf": [math.inf, -math.inf], "text": "Δ–é", "small": 5e-324, "none": None}
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, value)
    assert repr(read_json(path)) == repr(value)


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"[1]", b"\xff\xfe"], ids=repr)
def test_a_file_that_holds_no_object_is_none(content: bytes | None, tmp_path: Path) -> None:
    """Whatever a crash or a stranger left there, the trial counts as not described, and is not an error."""
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) is None


def test_a_missing_study_is_answered_with_what_there_is(laboratory: Any, tmp_path: Path) -> None:
    """A typing mistake, or a look into the wrong folder, is recognised from the message."""
    first, second = laboratory(seeds=1), laboratory(seeds=1)
    with pytest.raises(NotFound) as caught:
        first.folder.study("gates").read()
    assert str(first.folder.root) in str(caught.value)
    assert "no study 'gates'" in str(caught.value)
    assert f"there are: {first.name}, {second.name}" in str(caught.value)
    assert first.folder.study(second.name).read() == second.record
    with pytest.raises(NotFound, match="there is none yet: gatelab run"):
        RunsFolder(tmp_path / "elsewhere").study("gates").read()
