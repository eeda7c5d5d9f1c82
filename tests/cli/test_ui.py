"""gatelab ui: a port that is taken, and processes that end with the command, whatever ends it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from gatelab.cli.main import app
from gatelab.results.store.layout import RunsFolder

SECONDS = 90

SERVER = """
import socket, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
"""
"""Listens, and has a process of its own, as MLflow's does."""

SERVE = """
import sys
from gatelab.cli.serving import _run_to_its_end
sys.exit(_run_to_its_end([sys.executable, "-c", sys.argv[1], sys.argv[2]], {}))
"""

Started = Callable[..., "psutil.Popen"]


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something listens at a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(holds: Callable[[], bool]) -> None:
    """Until something holds."""
    until = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Starts commands, of which nothing is left in the end."""
    processes: list[psutil.Process] = []

    def start(*command: str) -> psutil.Popen:
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        with (tmp_path / "output").open("w") as output:
            process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.is_running():
            for each in [*process.children(recursive=True), process]:
                each.kill()
            process.wait()


def ends_with(process: psutil.Popen, how: signal.Signals, port: int) -> int:
    """Stop a process, see that no process of its own is left and that its port is free; return its exit code."""
    family = process.children(recursive=True)
    assert len(family) >= 2
    process.send_signal(how)
    code = process.wait(SECONDS)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert not listens(port)
    return int(code)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_is_served_ends_with_the_command(how: signal.Signals, started: Started) -> None:
    """A kill, Ctrl-C, a terminal that is closed: each frees the port."""
    port = free_port()
    process = started(sys.executable, "-c", SERVE, SERVER, str(port))
    wait_for(lambda: listens(port) and len(process.children(recursive=True)) >= 2)
    assert ends_with(process, how, port) == 0


def test_mlflows_processes_end_with_gatelab_ui(started: Started, tracked_store: Path, tmp_path: Path) -> None:
    """MLflow itself, on a real store; and it is not told to send usage statistics."""
    port = free_port()
    process = started(sys.executable, "-m", "gatelab", "ui", "--runs", str(tracked_store), "--port", str(port))

    def answers() -> bool:
        assert process.is_running(), (tmp_path / "output").read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        except OSError:
            return False

    wait_for(answers)
    assert f"MLflow on http://127.0.0.1:{port}" in (tmp_path / "output").read_text()
    assert {child.environ()["MLFLOW_DISABLE_TELEMETRY"] for child in process.children(recursive=True)} == {"true"}
    assert ends_with(process, signal.SIGTERM, port) == 0


@pytest.fixture
def tracked_store(tmp_path: Path) -> Path:
    """A runs folder with an empty tracking store."""
    from gatelab.results.tracking.own_store import keep

    folder = RunsFolder(tmp_path / "runs")
    keep(folder, folder.study("none"))
    return folder.root


def test_a_port_that_is_taken_is_refused(tracked_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the address would open what somebody else serves there; a free port is named."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = CliRunner().invoke(app, ["ui", "--runs", str(tracked_store), "--port", str(port)])
    assert done.exit_code == 2
    assert f"http://127.0.0.1:{port}: Address already in use; free is --port " in done.output
    assert "MLflow on" not in done.output
    assert len(done.output.splitlines()) == 1


def test_a_host_that_is_not_this_one_is_refused(tracked_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No port of it is free."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = CliRunner().invoke(app, ["ui", "--runs", str(tracked_store), "--host", "192.0.2.1"])
    assert (done.exit_code, done.output) == (2, "error http://192.0.2.1:5000: Cannot assign requested address\n")


def test_a_damaged_default_store_is_named(tracked_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what makes it again."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    RunsFolder(tracked_store).database.write_bytes(b"garbage" * 1000)
    done = CliRunner().invoke(app, ["ui", "--runs", str(tracked_store)])
    assert done.exit_code == 2
    assert "file is not a database; the next `gatelab run` makes it again from the journals" in done.output
    assert len(done.output.splitlines()) == 1
