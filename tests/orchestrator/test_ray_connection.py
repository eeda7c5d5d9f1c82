"""Who can reach our own Ray, and what is said where no Ray is reached."""

import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from gatelab.orchestrator import ray_connection
from gatelab.orchestrator.executor import CannotRun
from gatelab.orchestrator.pool import WorkerSetup
from gatelab.orchestrator.ray_executor import RayExecutor


class Echo:
    """A worker that computes nothing."""

    def __init__(self, setup: WorkerSetup) -> None:
        """As every worker."""

    def run(self, task: int) -> int:
        return task


def listening() -> dict[str, set[str]]:
    """The addresses on which this process and its descendants listen: name of a process -> hosts."""
    found: dict[str, set[str]] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(process.name(), set()).add(connection.laddr.ip)
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    address = ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def echoed(tasks: int) -> tuple[list[int], dict[str, set[str]]]:
    """What so many workers answer, and the addresses that are listened on when they have."""
    with RayExecutor(concurrency=tasks).open_pool(Echo, tasks) as pool:
        for task in range(tasks):
            pool.submit(task)
        answers: list[int] = []
        while pool.busy:
            answers += [task for task, result in pool.wait() if task == result]
        return sorted(answers), listening()


def test_our_own_ray_listens_on_this_machine_only(own_ray: None) -> None:
    """Who reaches a Ray runs code on it: no port of ours is open to a network."""
    answers, hosts = echoed(2)
    assert answers == [0, 1]
    assert {"gcs_server", "raylet"} <= set(hosts)  # they are seen at all
    assert any(name.startswith("ray::") for name in hosts)
    assert [(name, host) for name, of in hosts.items() for host in of if not is_loopback(host)] == []


def test_a_long_path_for_temporary_files_is_no_obstacle(own_ray: None, long_folder: Path) -> None:
    """Schedulers give each job a folder deep down, too deep for the path of a Unix socket: Ray keeps out of it."""
    assert len(os.fsencode(long_folder)) > ray_connection.SOCKET_PATH_LIMIT - 40
    assert echoed(1)[0] == [0]
    assert not list(long_folder.iterdir())


def test_sigterm_means_what_it_meant_before(own_ray: None) -> None:
    """Ray's own handler ends the process on the spot: a polite kill of a study would leave no checkpoint."""
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.default_int_handler)  # as commands set it


WITHOUT_GCS = """
import psutil, time
from gatelab.orchestrator import ray_executor
from gatelab.orchestrator.executor import CannotRun

class Sleeper:
    def __init__(self, setup):
        pass

    def run(self, task):
        time.sleep(task)

ray_executor.NODES_SECONDS = 0.2
try:
    with ray_executor.RayExecutor(concurrency=1).open_pool(Sleeper, 1) as pool:
        pool.submit(600)
        pool.wait()
        [gcs] = [each for each in psutil.Process().children(recursive=True) if each.name() == "gcs_server"]
        gcs.kill()
        killed = time.monotonic()
        while pool.busy:
            pool.wait()
except CannotRun as error:
    print(error, time.monotonic() - killed, sep="|")
"""


def test_a_gcs_that_was_killed_is_said_before_ray_ends_the_process() -> None:
    """After a minute Ray ends the process with a line of its own; nothing of a study's end would come after that."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_GCS], capture_output=True, text=True, timeout=300)
    said, _, seconds = done.stdout.strip().partition("|")
    lost = "Ray has lost its control process (gcs): what is finished is kept, and the same command goes on from here"
    assert (said, done.returncode) == (lost, 0), done.stderr
    assert float(seconds) < 50


def test_the_gcs_of_a_cluster_may_come_back(own_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own, on this machine, is gone for good where nothing answers at its port."""
    assert not ray_connection.has_lost_gcs()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        for host, lost in (("127.0.0.1", True), ("127.0.0.2", False)):
            context = SimpleNamespace(gcs_address=f"{host}:{port}")
            monkeypatch.setattr("ray.get_runtime_context", lambda context=context: context)
            assert ray_connection.has_lost_gcs() == lost


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes may be killed as they start; Ray's traceback says nothing more to people."""

    def fail(**options: object) -> None:
        raise RuntimeError("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setattr("ray.init", fail)
    message = "^Ray does not start on this machine: The current node timed out during startup.$"
    with pytest.raises(CannotRun, match=message), ray_connection.own_ray():
        pass


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """The address of a server that says this to whoever calls, then nothing."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(answer)
            self.request.recv(1024)
            self.request.recv(1024)  # until the caller goes

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as found:
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{found.server_address[1]}"
        found.shutdown()


@pytest.mark.parametrize(
    "address",
    ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "127.0.0.1", "localhost:", ":6379", "127.0.0.1:0", "host:99999"],
)
def test_an_address_of_another_form_is_refused_with_the_right_one(address: str) -> None:
    """Ray's client (ray://) is not what gatelab uses; people who type it learn what is."""
    message = rf"^--address {address}: expected HOST:PORT of a cluster's head, such as .* ray:// is not supported$"
    with pytest.raises(CannotRun, match=message), ray_connection.cluster(address):
        pass


def test_where_nothing_answers_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray waits for minutes, logging; a wrong port is one sentence within seconds."""
    monkeypatch.setattr(ray_connection, "PROBE_SECONDS", 0.3)
    with socket.socket() as bound:  # nobody else gets this port, and nobody listens
        bound.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{bound.getsockname()[1]}"
        with server(b"") as silent, server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
            for address, reason in (
                (closed, "no Ray answers there (Connection refused)"),
                ("no-such-host.invalid:6379", "no Ray answers there ("),
                (silent, "no Ray answers there (timed out)"),
                (other, "what answers there is no Ray; expected HOST:PORT of a cluster's head"),
            ):
                began = time.monotonic()
                with pytest.raises(CannotRun) as refused, ray_connection.cluster(address):
                    pass
                assert str(refused.value).startswith(f"--address {address}: {reason}")
                assert "\n" not in str(refused.value)
                assert time.monotonic() - began < 10
