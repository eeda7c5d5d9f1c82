"""The journal is the truth: what was committed is read back exactly, whatever happens to the process or the disk."""

import math
import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.results.store.journal import Journal, JournalTail, compact, continue_from, mend, read_journal
from gatelab.results.store.segment import SCHEMA, batch_message

Rows = list[tuple[int, int | None, str, float]]

VALUES = st.floats(width=64) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324])
RECORDS = st.lists(
    st.tuples(st.none() | st.integers(0, 300), st.dictionaries(st.text(min_size=1), VALUES, min_size=1, max_size=3)),
    min_size=1,
    max_size=3,
)
STEPS = st.lists(st.tuples(st.integers(1, 5), RECORDS, st.booleans()), max_size=8)  # later by, what, commit after it


def rows_of(table: pa.Table) -> Rows:
    """Without the times."""
    return [(row["step"], row["layer"], row["name"], row["value"]) for row in table.to_pylist()]


def same(left: Rows, right: Rows) -> bool:
    """Equal, NaN included and the zeros told apart."""
    return repr(left) == repr(right)


def write(journal: Journal, steps: Iterable[int], value: float = 0.5) -> Rows:
    """Record a value of the model and one of a layer at each step, and commit."""
    expected: Rows = []
    for step in steps:
        journal.record(step, {"train/loss": value * step})
        journal.record(step, {"gradient_norm": value}, layer=1)
        expected += [(step, None, "train/loss", value * step), (step, 1, "gradient_norm", value)]
    journal.commit()
    return expected


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_what_was_recorded_is_read_back(
    steps: list[tuple[int, list[tuple[int | None, dict[str, float]]], bool]],
) -> None:
    """Every value, NaN and infinities included, in its order, at once or as it grows, and stamped with its time."""
    with tempfile.TemporaryDirectory() as folder:
        journal, tail = Journal(Path(folder)), JournalTail(Path(folder))
        expected: Rows = []
        committed = 0
        grown: list[pa.Table] = []
        step, before = 0, time.time() * 1000 - 1
        for later, records, commit in steps:
            step += later
            for layer, values in records:
                journal.record(step, values, layer)
                expected += [(step, layer, name, value) for name, value in values.items()]
            if commit:
                journal.commit()
                committed = len(expected)
                grown.append(tail.read())
                assert same(rows_of(read_journal(Path(folder))), expected)
        assert len(read_journal(Path(folder))) == committed  # what was not committed is not promised
        journal.close()
        grown.append(tail.read())
        table = read_journal(Path(folder))
        assert table.schema == SCHEMA
        assert same(rows_of(table), expected)
        assert same(rows_of(pa.concat_tables(grown)), expected)
        assert not len(tail.read())
        times = table["time"].cast(pa.int64()).to_pylist()
        assert times == sorted(times)
        assert all(before <= moment <= time.time() * 1000 for moment in times)


@pytest.fixture
def crashed(tmp_path: Path) -> tuple[bytes, list[tuple[int, Rows]]]:
    """A segment as a killed process leaves it, and after each batch its size and all rows so far."""
    journal = Journal(tmp_path / "written")
    path = next((tmp_path / "written").iterdir())
    rows: Rows = []
    sizes = []
    for first in (1, 6, 11):
        rows = rows + write(journal, range(first, first + 5))
        sizes.append((path.stat().st_size, rows))
    return path.read_bytes(), sizes


def read_bytes(folder: Path, content: bytes) -> Rows:
    """The rows of a journal whose only segment has this content."""
    folder.mkdir(exist_ok=True)
    (folder / "0000.arrows").write_bytes(content)
    return rows_of(read_journal(folder))


def test_a_torn_tail_costs_its_batch_and_no_more(crashed: tuple[bytes, list[tuple[int, Rows]]], tmp_path: Path) -> None:
    """Wherever in the last batch a write was cut off, all batches before it are there, and nothing is made up."""
    content, sizes = crashed
    (before, kept), (end, everything) = sizes[1:]
    assert end == len(content)
    for cut in range(before, end):
        assert read_bytes(tmp_path / "torn", content[:cut]) == kept
    assert read_bytes(tmp_path / "torn", content) == everything
    for cut in range(0, before, 7):
        assert read_bytes(tmp_path / "torn", content[:cut]) == next((r for s, r in sizes[::-1] if s <= cut), [])


def test_a_tail_of_zeros_costs_its_batch_and_no_more(
    crashed: tuple[bytes, list[tuple[int, Rows]]], tmp_path: Path
) -> None:
    """After a power cut a file may have its new length but zeros for content."""
    content, ((_, _), (before, kept), (end, _)) = crashed
    for cut in range(before, end, 5):
        torn = content[:cut] + bytes(end - cut)
        assert torn == content or read_bytes(tmp_path / "torn", torn) == kept
    assert read_bytes(tmp_path / "torn", content + bytes(4096)) == crashed[1][-1][1]


def test_garbage_after_the_last_batch_is_left_out(
    crashed: tuple[bytes, list[tuple[int, Rows]]], tmp_path: Path
) -> None:
    """Bytes that are no batch end a segment; they neither stop its readers nor become values."""
    content, sizes = crashed
    generator = random.Random(0)
    for length in [*range(1, 40), 200, 1000]:
        noise = generator.randbytes(length)
        for garbage in (noise, b"\xff" * 4 + noise, length.to_bytes(4, "little") + noise):
            assert read_bytes(tmp_path / "noisy", content + garbage) == sizes[-1][1]


def test_a_batch_that_is_being_written_is_read_once_it_is_whole(
    crashed: tuple[bytes, list[tuple[int, Rows]]], tmp_path: Path
) -> None:
    """A reader meets a live writer at any byte: it must neither skip the batch nor read it twice."""
    content, sizes = crashed
    for cut in range(sizes[0][0], len(content), 37):
        shutil.rmtree(tmp_path / "live", ignore_errors=True)
        first = read_bytes(tmp_path / "live", content[:cut])
        tail = JournalTail(tmp_path / "live")
        assert rows_of(tail.read()) == first
        with (tmp_path / "live" / "0000.arrows").open("ab") as file:
            file.write(content[cut:])
        assert first + rows_of(tail.read()) == sizes[-1][1]


@pytest.mark.parametrize(("rows", "most"), [(4, 700), (1_000, 20_000)])
def test_a_batch_takes_little_space(rows: int, most: int) -> None:
    """Compression makes long batches shorter, and short ones longer."""
    columns = [[0] * rows, [None] * rows, ["train/loss"] * rows, [random.random() for _ in range(rows)], [0] * rows]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    assert len(batch_message(pa.record_batch(arrays, schema=SCHEMA), 0)) < most


def test_a_segment_with_nothing_new_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study looks at its running trials twice a second: neither a head alone nor an ended segment is read twice."""
    with Journal(tmp_path):
        tail = JournalTail(tmp_path)
        tail.read()
        with monkeypatch.context() as patched:
            patched.delattr(pa, "OSFile")
            assert len(tail.read()) == 0
    tail.read()
    assert tail.torn is None
    monkeypatch.delattr(pa, "OSFile")
    assert len(tail.read()) == 0


def test_steps_that_are_trained_again_are_not_repeated(tmp_path: Path) -> None:
    """An attempt resumes before the point that the last one had reached: each step must count once, not twice."""
    tail = JournalTail(tmp_path)
    seen = []
    attempts = [(range(1, 11), 1.0), (range(6, 9), 2.0), (range(6, 14), 3.0), (range(13, 16), 4.0)]
    for steps, value in attempts:
        journal = Journal(tmp_path)
        write(journal, steps, value)  # in one batch: parts of it are new
        seen += rows_of(tail.read())
    expected: Rows = []
    for steps, value in ((range(1, 11), 1.0), (range(11, 14), 3.0), (range(14, 16), 4.0)):
        for step in steps:
            expected += [(step, None, "train/loss", value * step), (step, 1, "gradient_norm", value)]
    assert rows_of(read_journal(tmp_path)) == seen == expected


def test_an_attempt_after_a_torn_one_is_read(crashed: tuple[bytes, list[tuple[int, Rows]]], tmp_path: Path) -> None:
    """The torn end of one segment must not hide the next; the steps that it lost are those of the next."""
    content, sizes = crashed
    kept = read_bytes(tmp_path / "torn", content[: sizes[2][0] - 3])
    with Journal(tmp_path / "torn") as journal:
        write(journal, range(9, 13), 2.0)
    found = rows_of(read_journal(tmp_path / "torn"))
    assert found[: len(kept)] == kept
    assert [row for row in found[len(kept) :] if row[1] is None] == [(s, None, "train/loss", 2.0 * s) for s in (11, 12)]


@pytest.mark.parametrize("content", [None, b""], ids=["no segment", "empty segment"])
def test_a_journal_without_a_batch_is_empty(content: bytes | None, tmp_path: Path) -> None:
    """A trial that has just begun is no error."""
    if content is not None:
        (tmp_path / "0000.arrows").write_bytes(content)
    for folder in (tmp_path, tmp_path / "absent"):
        table = read_journal(folder)
        assert (len(table), table.schema) == (0, SCHEMA)


def test_values_reach_the_disk_when_they_are_due(tmp_path: Path) -> None:
    """`flush` keeps its promise of at most so many seconds, and `commit` its of now, while the journal stays open."""
    patient, prompt = Journal(tmp_path / "a", flush_seconds=1e6), Journal(tmp_path / "b", flush_seconds=0.0)
    for journal in (patient, prompt):
        journal.record(1, {"train/loss": 1.0})
        journal.flush()
    assert (len(read_journal(tmp_path / "a")), len(read_journal(tmp_path / "b"))) == (0, 1)
    patient.commit()
    patient.commit()
    assert len(read_journal(tmp_path / "a")) == 1


def test_nothing_is_dropped_in_silence_after_the_end(tmp_path: Path) -> None:
    """A value that comes after `close` cannot be kept: its writer must hear of it."""
    with Journal(tmp_path) as journal:
        expected = write(journal, range(3))
    journal.record(3, {"train/loss": 1.0})
    with pytest.raises(ValueError, match="closed"):
        journal.commit()
    assert rows_of(read_journal(tmp_path)) == expected


def test_each_writer_has_its_own_segment(tmp_path: Path) -> None:
    """Two attempts at once, or one after the other, never write into one another's file."""
    first, second = Journal(tmp_path), Journal(tmp_path)
    write(first, range(1, 4), 1.0)
    write(second, range(1, 6), 2.0)
    first.close()
    Journal(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.arrows", "0001.arrows", "0002.arrows"]
    assert [row[0] for row in rows_of(read_journal(tmp_path)) if row[1] is None] == [1, 2, 3, 4, 5]


def test_a_segment_is_a_plain_arrow_stream(tmp_path: Path) -> None:
    """Without gatelab, PyArrow alone reads it."""
    with Journal(tmp_path) as journal:
        expected = write(journal, range(1, 4))
    with pa.OSFile(str(tmp_path / "0000.arrows")) as file:
        assert rows_of(pa.ipc.open_stream(file).read_all()) == expected


def test_a_branch_begins_with_what_its_trunk_recorded_of_training(tmp_path: Path) -> None:
    """No step of a branch is missing or there twice, whatever an earlier attempt at it left."""
    with Journal(tmp_path / "trunk") as trunk:
        for step in range(1, 41):
            trunk.record(step, {"train/loss": float(step), "validation/loss": 0.0})
    for left in (0, 10, 30):
        folder = tmp_path / f"branch-{left}"
        if left:
            with Journal(folder) as own:
                for step in range(1, left + 1):
                    own.record(step, {"train/loss": float(step)})
        continue_from(folder, tmp_path / "trunk", 25)
        continue_from(folder, tmp_path / "trunk", 25)
        rows = read_journal(folder)
        assert rows["step"].to_pylist() == list(range(1, max(left, 25) + 1))
        assert set(rows["name"].to_pylist()) == {"train/loss"}  # evaluations are of another budget's moments


def test_a_step_that_an_exception_cut_short_is_not_kept(tmp_path: Path) -> None:
    """Half of a step would hide, for good, what the next attempt records of it; whole steps before it stay."""
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path, flush_seconds=1e6) as journal:
        for step in (1, 2, 3):
            journal.record(step, {"train/loss": float(step)})
            if step == 3:
                raise KeyboardInterrupt
            journal.flush()
    with Journal(tmp_path) as journal:
        journal.record(3, {"train/loss": 3.0})
        journal.record(3, {"validation/loss": 3.5})
    expected = [(1, "train/loss", 1.0), (2, "train/loss", 2.0), (3, "train/loss", 3.0), (3, "validation/loss", 3.5)]
    assert [(step, name, value) for step, _, name, value in rows_of(read_journal(tmp_path))] == expected


def test_what_was_raised_first_is_what_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full as well, the end of the journal does not hide the reason of the end."""

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(RuntimeError, match="first"), journal:
        journal.record(1, {"train/loss": 1.0})
        raise RuntimeError("first")


def test_other_files_in_its_folder_are_no_reason_to_fail(tmp_path: Path) -> None:
    """What a person or an editor puts there is not a segment; more than 9,999 segments are in order."""
    (tmp_path / "notes.arrows").write_text("mine")
    with Journal(tmp_path) as journal:
        expected = write(journal, (1, 2))
    assert rows_of(read_journal(tmp_path)) == expected
    (tmp_path / "9999.arrows").touch()
    with Journal(tmp_path) as journal:
        expected += write(journal, (3,))
    assert (tmp_path / "10000.arrows").exists()
    assert rows_of(read_journal(tmp_path)) == expected


def test_the_name_of_a_segment_is_on_disk_before_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a checkpoint must not be there without the segment that says how it was reached."""
    synced: list[bool] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with Journal(tmp_path / "journal") as journal:
        write(journal, (1,))
    assert synced[:2] == [True, True]
    assert not all(synced)


def steps_of(folder: Path) -> list[int]:
    """The steps of the values of the whole model."""
    return [row[0] for row in rows_of(read_journal(folder)) if row[1] is None]


def losses_of(folder: Path) -> list[tuple[str, int, int | None]]:
    """What a reader finds to be lost."""
    tail = JournalTail(folder)
    tail.read()
    return [(loss.path.name, loss.first, loss.last) for loss in tail.lost]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A journal of one segment of six batches of five steps, properly ended, its folder named as a trial's."""
    with Journal(tmp_path / "trial" / "journal", trial="trial") as journal:
        for first in range(1, 31, 5):
            write(journal, range(first, first + 5))
    return tmp_path / "trial" / "journal"


def test_a_flipped_bit_anywhere_is_the_same_values_or_a_named_loss(ended: Path) -> None:
    """No damage is another number, a crash, or a silent hole in a curve."""
    path, expected = ended / "0000.arrows", rows_of(read_journal(ended))
    content = path.read_bytes()
    assert losses_of(ended) == []
    for place in range(0, len(content), 7):
        flip(path, place)
        found = rows_of(read_journal(ended))
        assert set(found) <= set(expected)
        assert found == expected or losses_of(ended)
        path.write_bytes(content)


def test_a_damaged_batch_costs_its_steps_and_names_them(ended: Path) -> None:
    """Every other step stays, and the message says which file and which steps."""
    path = ended / "0000.arrows"
    flip(path, path.read_bytes().index(b"gatelab seal", path.stat().st_size // 2))
    (loss,) = (tail := JournalTail(ended), tail.read(), tail.lost)[2]
    assert steps_of(ended) == [step for step in range(1, 31) if not loss.first <= step <= (loss.last or 0)]
    assert (loss.last or 0) - loss.first == 4
    assert str(loss).startswith(f"{path} is damaged")
    assert f"of steps {loss.first} to {loss.last} are lost" in str(loss)
    assert tail.whole_steps == loss.first - 1


def test_the_end_of_a_segment_that_ended_is_missed(ended: Path) -> None:
    """A crash leaves a torn end and no mark after it: that is no damage. Rows lost before the mark are."""
    path = ended / "0000.arrows"
    content = path.read_bytes()
    last = content.rindex(b"gatelab seal")
    path.write_bytes(content[: last + 40])
    assert (losses_of(ended), steps_of(ended)) == ([], [*range(1, 26)])
    path.write_bytes(content)
    flip(path, last + 40)
    assert (losses_of(ended), steps_of(ended)) == ([("0000.arrows", 26, None)], [*range(1, 26)])
    Journal(ended, trial="trial").close()  # an attempt that has nothing left to do
    assert losses_of(ended) == [("0000.arrows", 26, None)]
    with Journal(ended, trial="trial") as journal:
        write(journal, range(24, 31))
    assert (losses_of(ended), steps_of(ended)) == ([], [*range(1, 31)])


def test_segments_that_are_missing_or_exchanged_are_missed(ended: Path) -> None:
    """A segment knows its trial and its number: another one in its place is not taken for it."""
    with Journal(ended, trial="trial") as journal:
        write(journal, range(31, 41))
    with Journal(ended, trial="trial") as journal:
        write(journal, range(41, 46))
    first, second = sorted(ended.iterdir())[:2]
    second.rename(ended / "aside")
    assert losses_of(ended) == [("0002.arrows", 31, 40)]
    shutil.copy(first, second)
    assert losses_of(ended) == [("0002.arrows", 31, 40)]
    shutil.copytree(ended.parent, ended.parent.parent / "other")
    assert losses_of(ended.parent.parent / "other" / "journal") == [("0002.arrows", 1, None)]


def test_a_damaged_journal_is_mended_up_to_its_damage(ended: Path) -> None:
    """What is lost is trained again, so nothing after it may stay, and what is damaged is set aside, not deleted."""
    assert mend(ended, "trial") == 30
    expected = rows_of(read_journal(ended))
    with Journal(ended, trial="trial") as journal:
        write(journal, range(28, 36))
    path = ended / "0000.arrows"
    flip(path, path.read_bytes().index(b"gatelab seal", path.stat().st_size // 2))
    content = path.read_bytes()
    whole = mend(ended, "trial")
    assert 0 < whole < 25
    assert mend(ended, "trial") == whole
    assert losses_of(ended) == []
    assert rows_of(read_journal(ended)) == expected[: 2 * whole]
    assert sorted(each.name for each in ended.iterdir()) == [
        "0000.arrows.damaged",
        "0001.arrows.damaged",
        "0002.arrows",
    ]
    assert (ended / "0000.arrows.damaged").read_bytes() == content


def attempts(folder: Path) -> Path:
    """A journal of three attempts: the second went back, the third ended twice as far."""
    for steps in (range(1, 11), range(6, 16), range(14, 31)):
        with Journal(folder, trial=folder.parent.name) as journal:
            write(journal, steps)
    return folder


def test_segments_become_one_with_the_same_rows(tmp_path: Path) -> None:
    """Also for a reader that has read a part of them before."""
    folder = attempts(tmp_path / "trial" / "journal")
    tail, late = JournalTail(folder), JournalTail(folder)
    expected = rows_of(read_journal(folder))
    before = rows_of(tail.read())
    times = read_journal(folder)["time"].to_pylist()
    compact(folder, "trial")
    assert [path.name for path in folder.iterdir()] == ["0003.arrows"]
    assert rows_of(read_journal(folder)) == before + rows_of(tail.read()) == rows_of(late.read()) == expected
    assert read_journal(folder)["time"].to_pylist() == times
    assert losses_of(folder) == [] == tail.lost
    compact(folder, "trial")
    assert [path.name for path in folder.iterdir()] == ["0003.arrows"]


@pytest.mark.parametrize("left", range(4))
def test_a_kill_while_segments_become_one_costs_no_row(left: int, tmp_path: Path) -> None:
    """Old segments may be left beside the new one, or the new one be torn."""
    folder = attempts(tmp_path / "trial" / "journal")
    expected = rows_of(read_journal(folder))
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    compact(folder, "trial")
    new = folder / "0003.arrows"
    for name in sorted(old)[:left]:
        (folder / name).write_bytes(old[name])
    assert (rows_of(read_journal(folder)), losses_of(folder)) == (expected, [])
    if left == 3:
        new.write_bytes(new.read_bytes()[:-40])
        assert (rows_of(read_journal(folder)), losses_of(folder)) == (expected, [])
    compact(folder, "trial")
    assert len(list(folder.iterdir())) == 1
    assert rows_of(read_journal(folder)) == expected


def test_segments_that_vanish_while_they_are_read_are_read_in_their_successor(tmp_path: Path) -> None:
    """A table that is made while a trial ends has all of its rows."""
    folder = attempts(tmp_path / "trial" / "journal")
    expected = rows_of(read_journal(folder))
    batches = (tail := JournalTail(folder)).batches()
    found = [next(batches)]
    compact(folder, "trial")
    found += batches
    assert rows_of(pa.Table.from_batches(found)) == expected
    assert tail.lost == []


def test_damaged_segments_stay_apart(tmp_path: Path) -> None:
    """What is lost is named with its file, and what can still be read is not thrown away."""
    folder = attempts(tmp_path / "trial" / "journal")
    flip(folder / "0001.arrows", (folder / "0001.arrows").stat().st_size // 2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert losses_of(folder)
    compact(folder, "trial")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_branch_takes_nothing_from_behind_the_damage_of_its_trunk(ended: Path, tmp_path: Path) -> None:
    """A checkpoint that the values before it do not reach must not be gone on from."""
    path = ended / "0000.arrows"
    flip(path, path.read_bytes().index(b"gatelab seal", path.stat().st_size // 2))
    whole = continue_from(tmp_path / "branch", ended, 25)
    assert whole < 20
    assert steps_of(tmp_path / "branch") == [*range(1, whole + 1)]


def test_a_write_that_fails_leaves_no_part_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was full for a moment costs no row, and what comes after is read."""
    journal = Journal(tmp_path)

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, content: memoryview) -> int:
            self._file.write(content[:50])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    expected = write(journal, (1, 2))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(journal, "_file", Full(journal._file))
        write(journal, (3,))
    journal.commit()
    expected += write(journal, (4,))
    journal.close()
    steps = [row[0] for row in rows_of(read_journal(tmp_path)) if row[1] is None]
    assert (steps, losses_of(tmp_path)) == ([1, 2, 3, 4], [])


def older_segment(path: Path, batches: Iterable[range]) -> list[int]:
    """A segment of version 1, without seals; the size after each batch."""
    schema = SCHEMA.with_metadata({"gatelab.journal": "1"})
    sizes = []
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file, pa.ipc.new_stream(file, schema, options=options) as stream:
        for steps in batches:
            rows = [{"step": s, "layer": None, "name": "train/loss", "value": s / 2, "time": 0} for s in steps]
            stream.write_batch(pa.RecordBatch.from_pylist(rows, schema))
            file.flush()
            sizes.append(path.stat().st_size)
    return sizes


def test_segments_of_older_versions_are_read(tmp_path: Path) -> None:
    """They go on as they were, torn ends left out, whatever else is damaged found as far as Arrow finds it."""
    path = tmp_path / "j" / "0000.arrows"
    sizes = older_segment(path, [range(1, 6), range(6, 11), range(11, 16)])
    content = path.read_bytes()
    assert (steps_of(path.parent), losses_of(path.parent)) == ([*range(1, 16)], [])
    path.write_bytes(content[: sizes[2] - 9])
    with Journal(path.parent) as journal:
        write(journal, range(9, 13))
    assert (steps_of(path.parent), losses_of(path.parent)) == ([*range(1, 13)], [])
    (path.parent / "0001.arrows").unlink()
    path.write_bytes(
        content[: sizes[0]] + b"\xff" * 4 + content[sizes[0] + 4 : sizes[0] + 8] + bytes(300) + content[sizes[1] :]
    )
    assert (steps_of(path.parent), losses_of(path.parent)) == (
        [*range(1, 6), *range(11, 16)],
        [("0000.arrows", 6, 10)],
    )
    for cut in range(0, len(content), 11):
        path.write_bytes(content[:cut])
        assert len(steps_of(path.parent)) == 5 * sum(size <= cut for size in sizes)
