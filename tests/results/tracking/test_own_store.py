"""The default store is a copy in the runs folder: whatever happens to it, it is mended, and never anybody else's."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from gatelab.orchestrator.tracking import add_to_mlflow
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.tracking import own_store
from gatelab.results.tracking.address import StoreUnavailable
from gatelab.results.tracking.own_store import check_place
from gatelab.results.tracking.runs import runs_from_mlflow
from gatelab.results.tracking.sync import Mirror


def agrees(folder: RunsFolder, study: str) -> bool:
    """Whether MLflow gives the frame that the trials give."""
    return runs_from_mlflow(folder.tracking_uri, study).equals(runs_from_journals(folder, study))


def mirror_of(root: Path, study: str) -> Mirror:
    """The mirror of a study in a folder."""
    folder = RunsFolder(root)
    return Mirror(folder, folder.study(study).read(), folder.tracking_uri)


def files_of(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def locations(folder: RunsFolder) -> set[str]:
    """Where the experiments and runs of a store keep their artifacts."""
    with closing(sqlite3.connect(folder.database)) as database:
        found = database.execute("SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs")
        return {location for (location,) in found}


def copied(lab: Any, how: str, root: Path) -> None:
    """Put a copy of a runs folder somewhere else."""
    if how == "archive":
        archive = shutil.make_archive(str(root.parent / "archive"), "tar", lab.folder.root)
        shutil.unpack_archive(archive, root, filter="data")
    elif how == "hard links":
        shutil.copytree(lab.folder.root, root, copy_function=os.link)
    else:
        shutil.copytree(lab.folder.root, root)


@pytest.mark.parametrize("how", ["copy", "archive", "hard links"])
def test_a_copy_of_a_runs_folder_leaves_the_first_one_alone(how: str, own: Any, mirror: Any, tmp_path: Path) -> None:
    """What a copy sends to MLflow stays in the copy: its own database, its own artifacts, notes of people included."""
    lab = own(seeds=2)
    lab.finish(0, 0)
    mirror(lab).sync()
    client = MlflowClient(lab.folder.tracking_uri)
    client.set_experiment_tag(client.get_experiment_by_name(lab.name).experiment_id, "note", "mine")
    other = RunsFolder(tmp_path / "elsewhere" / "runs")
    copied(lab, how, other.root)
    before = {name: files_of(lab.folder.root / name) for name in ("studies", "mlflow-artifacts")}
    database = lab.folder.database.read_bytes()
    copy = mirror_of(other.root, lab.name)
    copy.sync()
    copy.add_files([other.study(lab.name).record])
    assert agrees(other, lab.name)
    assert {name: files_of(lab.folder.root / name) for name in before} == before
    assert lab.folder.database.read_bytes() == database
    assert all(location.startswith(other.artifacts.as_uri()) for location in locations(other))
    there = MlflowClient(other.tracking_uri)
    assert there.get_experiment_by_name(lab.name).tags["note"] == "mine"
    assert agrees(lab.folder, lab.name)


@pytest.mark.parametrize("how", ["moved", "another mount point"])
def test_a_folder_that_is_elsewhere_is_read_and_written_where_it_is(
    how: str, own: Any, mirror: Any, tmp_path: Path
) -> None:
    """Reading corrects where artifacts lie, before anything is run; the place where they were is not made again."""
    lab = own()
    lab.finish(0, 0)
    mirror(lab).sync()
    other = RunsFolder(tmp_path / "new" / "runs")
    other.root.parent.mkdir()
    lab.folder.root.rename(other.root)
    if how == "another mount point":
        lab.folder.root.symlink_to(other.root)  # the folder is still to be seen where it was, too
        other = lab.folder
    check_place(other)
    assert agrees(other, lab.name)
    mirror_of(other.root, lab.name).sync()
    assert agrees(other, lab.name)
    assert all(location.startswith(other.artifacts.as_uri()) for location in locations(other))
    assert lab.folder.root.is_symlink() == (how == "another mount point")
    assert lab.folder.root.exists() == (how == "another mount point")


def test_a_moved_folder_that_cannot_be_written_is_refused(own: Any, mirror: Any, tmp_path: Path) -> None:
    """A link to the store of another runs folder is not followed: that store is the other one's."""
    lab = own()
    lab.finish(0, 0)
    mirror(lab).sync()
    other = RunsFolder(tmp_path / "linked")
    shutil.copytree(lab.folder.root, other.root)
    other.database.unlink()
    other.database.symlink_to(lab.folder.database)
    before = lab.folder.database.read_bytes()
    with pytest.raises(StoreUnavailable, match="is a link to the store of another runs folder"):
        check_place(other)
    assert "is a link" in add_to_mlflow(other, lab.name, None, [])
    assert lab.folder.database.read_bytes() == before


def test_a_named_store_of_another_folder_is_refused(own: Any, blank_store: str, tmp_path: Path, mirror: Any) -> None:
    """A database that people name is not corrected; nor does a copy write into the artifacts of the first folder."""
    lab = own()
    lab.finish(0, 0)
    mirror(lab, blank_store).sync()
    other = tmp_path / "copy"
    shutil.copytree(lab.folder.root, other)
    before = files_of(lab.folder.artifacts), Path(blank_store.removeprefix("sqlite:///")).read_bytes()
    problem = add_to_mlflow(RunsFolder(other), lab.name, blank_store, [])
    assert "keeps its artifacts in another runs folder" in problem
    assert str(lab.folder.artifacts) in problem
    assert (files_of(lab.folder.artifacts), Path(blank_store.removeprefix("sqlite:///")).read_bytes()) == before


def garbage(database: Path) -> None:
    """No database at all."""
    database.write_bytes(b"not a database" * 1000)


def half(database: Path) -> None:
    """The first half of the file."""
    content = database.read_bytes()
    database.write_bytes(content[: len(content) // 2])


def half_a_schema(database: Path) -> None:
    """What a migration leaves that was broken off by a full disk."""
    with closing(sqlite3.connect(database)) as half_made, half_made:
        half_made.execute("CREATE TABLE _alembic_tmp_model_versions (name TEXT)")
        half_made.execute("UPDATE alembic_version SET version_num = '2b4d017a5e9b'")
        half_made.execute("DROP TABLE trace_info")


def other_tables(database: Path) -> None:
    """A database of something else."""
    database.unlink()
    with closing(sqlite3.connect(database)) as other, other:
        other.execute("CREATE TABLE notes (text TEXT)")


@pytest.mark.parametrize("harm", [garbage, half, half_a_schema, other_tables])
def test_a_broken_store_is_put_aside_and_made_again(harm: Callable[[Path], None], own: Any) -> None:
    """One sentence says so; everything is back from the journals, and the broken file is kept."""
    lab = own(seeds=2)
    for seed in (0, 1):
        lab.finish(0, seed)
    harm(lab.folder.database)
    broken = lab.folder.database.read_bytes()
    told = add_to_mlflow(lab.folder, lab.name, None, [])
    assert told.count("\n") == 0
    assert "it is kept as mlflow.db.broken-1, and made again from the journals" in told
    assert agrees(lab.folder, lab.name)
    assert len(lab.folder.database.with_name("mlflow.db.broken-1").read_bytes()) >= min(len(broken), 4096)
    assert add_to_mlflow(lab.folder, lab.name, None, []) == ""


@pytest.mark.parametrize("harm", [garbage, half_a_schema])
def test_a_broken_store_that_people_named_is_left_as_it_is(
    harm: Callable[[Path], None], own: Any, blank_store: str
) -> None:
    """It may hold what no journal has: the problem is told, nothing is moved or written."""
    lab = own()
    lab.finish(0, 0)
    database = Path(blank_store.removeprefix("sqlite:///"))
    harm(database)
    names = sorted(path.name for path in database.parent.iterdir())
    assert add_to_mlflow(lab.folder, lab.name, blank_store, []).startswith("MLflow is not up to date: sqlite:")
    assert sorted(path.name for path in database.parent.iterdir()) == names


def test_a_store_that_is_deleted_meanwhile_is_back_at_the_next_sync(own: Any, mirror: Any) -> None:
    """The process that has the file open notices; it does not go on writing into what nobody can find."""
    lab = own(seeds=2)
    lab.finish(0, 0)
    keeper = mirror(lab)
    keeper.sync()
    lab.folder.database.unlink()
    lab.finish(0, 1)
    keeper.sync()
    assert agrees(lab.folder, lab.name)
    assert keeper.notes == []


def test_a_store_is_made_anew_after_the_machine_went_down(
    own: Any, mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions do not wait for the disk: after a power cut what the file holds is not relied on."""
    boots = tmp_path / "boot_id"
    monkeypatch.setattr(own_store, "BOOT_ID", boots)
    lab = own()
    lab.finish(0, 0)
    boots.write_text("first")
    mirror(lab).sync()
    assert not lab.folder.study(lab.name).unsynced.exists()
    own_store.start_writing(lab.folder, lab.folder.study(lab.name))
    again = mirror(lab)  # the process was killed
    again.sync()
    assert again.notes == []
    own_store.start_writing(lab.folder, lab.folder.study(lab.name))
    boots.write_text("second")
    after = mirror(lab)
    after.sync()
    assert ["may be incomplete" in note for note in after.notes] == [True]
    assert agrees(lab.folder, lab.name)
    assert not lab.folder.study(lab.name).unsynced.exists()


def test_two_first_runs_at_once_make_one_store(laboratory: Any, mirror: Any) -> None:
    """Neither meets the other's half-made tables; a creation that was stopped leaves nothing in the way."""
    labs = [laboratory(("none",), seeds=1, steps=5) for _ in range(2)]
    (labs[0].folder.root / ".mlflow-stopped").mkdir()
    problems = []

    def first_run(lab: Any) -> None:
        lab.finish(0, 0)
        keeper = mirror(lab)
        try:
            keeper.sync()
        except Exception as error:
            problems.append(error)
        problems.extend(keeper.notes)

    threads = [threading.Thread(target=first_run, args=(lab,)) for lab in labs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert all(agrees(lab.folder, lab.name) for lab in labs)
    assert not list(labs[0].folder.root.glob(".mlflow-*"))


def test_a_study_named_as_mlflows_own_experiment_keeps_its_artifacts_here(
    own: Any, mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's experiment Default would put them into the working directory."""
    monkeypatch.chdir(tmp_path)
    lab = own()
    lab.record = lab.record.model_copy(update={"name": "Default"})
    lab.finish(0, 0)
    mirror(lab).sync()
    assert not (tmp_path / "mlruns").exists()
    assert list((lab.folder.artifacts / "Default").rglob("study.json"))
