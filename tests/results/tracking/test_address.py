"""Stores that cannot be reached, read, or meant: one sentence, at once, whatever MLflow makes of them."""

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from gatelab.cli.main import app
from gatelab.errors import WrongRequest
from gatelab.orchestrator import tracking
from gatelab.orchestrator.tracking import SyncThread, add_to_mlflow
from gatelab.results.tracking import address
from gatelab.results.tracking.address import StoreUnavailable, check_address, reach, reason


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("uri", "wrong"),
    [
        ("htp://foo", "is no kind of store"),
        ("foo://x", "is no kind of store"),
        ("file:/somewhere", "filesystem tracking backend"),
        ("./mlruns", "filesystem tracking backend"),
        ("runs", "filesystem tracking backend"),
        ("http://", "names no host"),
        ("https:///path", "names no host"),
        ("http://host:port", "Port could not be cast"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:mlflow.db", "Could not parse"),
        ("postgresql+nothing://host/db", "nothing"),
        ("uc:x", "Unity Catalog"),
        ("", "is empty"),
    ],
)
def test_what_is_no_address_is_refused(uri: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In one line that names it; nothing is connected to or created."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongRequest) as caught:
        check_address(uri)
    message = str(caught.value)
    assert message.startswith(f"tracking URI {uri!r}: ")
    assert wrong in message
    assert len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "https://host/path", "sqlite:///a.db", "databricks"])
def test_what_may_be_an_address_is_taken(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether anything is there is another question."""
    monkeypatch.chdir(tmp_path)
    check_address(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(mute: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would wait and try again for minutes."""
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no answer"):
        reach(f"http://127.0.0.1:{mute}")
    assert time.monotonic() - started < 5


def test_a_database_server_that_is_away_is_given_up() -> None:
    """MLflow would try ten times, longer and longer."""
    with pytest.raises(StoreUnavailable, match=r"postgresql://me:\*\*\*@127.0.0.1:9/db: Connection refused"):
        reach("postgresql://me:secret@127.0.0.1:9/db")


def test_the_reason_is_what_lies_at_the_bottom(tracked_root: Path, tmp_path: Path) -> None:
    """Not the first line of what SQLAlchemy says of it."""
    store = tmp_path / "store.db"
    store.write_bytes((tracked_root / "blank.db").read_bytes())
    client = MlflowClient(f"sqlite:///{store}")
    client.search_experiments()
    with sqlite3.connect(store) as database:
        database.execute(
            "CREATE TRIGGER no BEFORE INSERT ON experiments BEGIN SELECT RAISE(ABORT, 'no room here'); END"
        )
    database.close()
    with pytest.raises(Exception, match="no room") as caught, address.logging_to(None):
        client.create_experiment("one")
    assert reason(caught.value) == "no room here"
    assert reason(StoreUnavailable("as it is")) == "as it is"


@pytest.mark.parametrize("command", ["compare", "ui"])
@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("htp://foo", "is no kind of store"),
        ("file:/somewhere", "filesystem tracking backend"),
        ("databricks", "Databricks credential configuration failed"),
        ("garbage", "file is not a database"),
        ("nowhere", "no tracking store"),
        ("folder", "Is a directory"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_sentence(
    command: str, uri: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """And exit code 2: no traceback, none of MLflow's own messages, no long wait."""
    (tmp_path / "garbage.db").write_bytes(b"no database" * 100)
    (tmp_path / "folder.db").mkdir()
    named = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("garbage", "nowhere", "folder")}
    arguments = [command, "--runs", str(tmp_path), "--tracking-uri", named.get(uri, uri)]
    monkeypatch.setattr("gatelab.cli.serving._run_to_its_end", lambda *_: pytest.fail("was served"))
    started = time.monotonic()
    done = CliRunner().invoke(app, arguments + (["study", "--from", "mlflow"] if command == "compare" else []))
    assert done.exit_code == 2
    assert time.monotonic() - started < 10
    assert done.output.startswith("error ")
    assert wanted in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert capfd.readouterr().err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.db", "garbage.db"]


def test_an_outage_is_two_lines_and_a_log(
    tracked: Any, blank_store: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """It went away, it is back: the rest is in the study's folder, once."""
    monkeypatch.setattr(tracking, "SYNC_SECONDS", 0.02)
    monkeypatch.setattr(tracking, "AWAY_SECONDS", 0.02)
    lab = tracked(("none",), seeds=1, steps=5)
    lab.finish(0, 0)
    away = threading.Event()
    away.set()
    create_run, tries = MlflowClient.create_run, []

    def fail_at_first(*arguments: Any, **rest: Any) -> Any:
        if away.is_set():
            tries.append(1)
            raise OSError(28, "No space left on device")
        return create_run(*arguments, **rest)

    monkeypatch.setattr(MlflowClient, "create_run", fail_at_first)

    def wait_until(holds: Any) -> None:
        until = time.monotonic() + 20
        while not holds() and time.monotonic() < until:
            time.sleep(0.01)

    with SyncThread(lab.folder, lab.record, lab.folder.tracking_uri) as sync:
        wait_until(lambda: len(tries) > 3)
        assert "No space left on device" in sync.problem
        away.clear()
        wait_until(lambda: not sync.problem)
    assert sync.problem == ""
    first, second = sync.lines
    assert first.startswith("MLflow is not up to date: sqlite:")
    assert "No space left on device" in first
    assert str(lab.folder.study(lab.name).tracking_log) in first
    assert second == "MLflow is up to date again"
    assert lab.folder.study(lab.name).tracking_log.read_text().count("Traceback") == 1
    assert capfd.readouterr() == ("", "")


def test_a_command_that_only_looks_says_what_kept_it_from_mlflow(tracked: Any, capfd: Any) -> None:
    """A wrong address, a store that is away: one line, and the files are written all the same."""
    lab = tracked(("none",), seeds=1, steps=5)
    lab.finish(0, 0)
    for uri, wanted in (("htp://foo", "is no kind of store"), ("http://127.0.0.1:9", "Connection refused")):
        problem = add_to_mlflow(lab.folder, lab.name, uri, [])
        assert problem.startswith("MLflow is not up to date: ")
        assert wanted in problem
        assert len(problem.splitlines()) == 1
    assert capfd.readouterr() == ("", "")
