"""How this process comes to a Ray: one of its own that only this machine reaches, or a cluster that answers.

Ray is imported when it is first used.
"""

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gatelab.orchestrator.executor import CannotRun

PROBE_SECONDS = 5.0
SOCKET_PATH_LIMIT = 103 if sys.platform == "darwin" else 107  # bytes of the path of a Unix socket
_LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
# What a client of HTTP/2 opens with: its preface, and settings that change nothing. A gRPC server answers with its own.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


@contextmanager
def own_ray(cpus: int | None = None) -> Iterator[None]:
    """Start a Ray on this machine and stop it at the end. It listens on the loopback address only.

    Args:
        cpus: how many cores it has; None: those of the machine.

    Raises:
        CannotRun: it does not start; the message says why, in Ray's words.
    """
    import ray
    from ray._private import ray_constants

    several_machines = ray_constants.ENABLE_RAY_CLUSTER
    with ExitStack() as stack:
        folder = _short_folder(stack)
        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray's own way to the loopback address, as on a laptop
        try:
            _connect(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=100_000_000,
                _temp_dir=folder,
            )
        except Exception as error:
            raise CannotRun(f"Ray does not start on this machine: {_reason(error)}") from error
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = several_machines
        stack.callback(ray.shutdown)
        yield


def has_lost_gcs() -> bool:
    """Return whether our own Ray has lost its gcs, the process that knows all others: nobody starts it again.

    A cluster's has another address and may come back. Ray waits a minute for either, and then ends this process.
    """
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    if host != "127.0.0.1":
        return False
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # it is busy
    return False


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connect to a Ray cluster and leave it at the end.

    Args:
        address: HOST:PORT of its head, or "auto" for the one that this machine is a node of.

    Raises:
        CannotRun: no Ray answers there, or it takes no connection from here; the message says why.
    """
    _probe(address)
    import ray

    try:
        _connect(address=address)
    except Exception as error:  # whatever a cluster may have against this process, in Ray's words
        hint = "" if "RAY_AUTH_MODE" in os.environ else " (if it asks for a token, set RAY_AUTH_MODE=token)"
        raise CannotRun(f"--address {address}: {_reason(error)}{hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _connect(**options: Any) -> None:
    """Run `ray.init`, quietly, and keep what this process does at SIGTERM."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level="ERROR", **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has set its own, which ends the process on the spot


def _short_folder(stack: ExitStack) -> str | None:
    """Make a folder for the time of `stack`, if sockets in Ray's usual one would have too long a path; else None."""
    usual = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    if len(os.fsencode(usual + _LONGEST_SOCKET)) <= SOCKET_PATH_LIMIT:
        return None
    try:
        folder = tempfile.TemporaryDirectory(prefix="gatelab-", dir="/tmp", ignore_cleanup_errors=True)
    except OSError as error:
        raise CannotRun(
            f"Ray needs a folder with a shorter path than {usual}, and /tmp is none ({error.strerror}): set RAY_TMPDIR"
        ) from error
    return stack.enter_context(folder)


def _probe(address: str) -> None:
    """Raise CannotRun unless a server of Ray's kind answers within seconds; Ray itself waits for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CannotRun(
            f"--address {address}: expected HOST:PORT of a cluster's head, such as 10.0.0.1:6379, "
            "from one of the cluster's nodes; ray:// is not supported"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS) as connection:
            connection.sendall(_HTTP2_HELLO)
            settings = connection.recv(4)[3:] == b"\x04"
    except OSError as error:
        raise CannotRun(f"--address {address}: no Ray answers there ({error.strerror or error})") from error
    if not settings and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise CannotRun(f"--address {address}: what answers there is no Ray; expected HOST:PORT of a cluster's head")
