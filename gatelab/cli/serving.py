"""MLflow's own pages as a process that ends with this one, however that is stopped."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

import typer
from rich.markup import escape

from gatelab.cli.console import BAD_REQUEST, console, fail
from gatelab.results.store.layout import RunsFolder
from gatelab.text import without_secrets

END_SECONDS = 5.0  # for MLflow's processes to end when they are asked to

TRIED_PORTS = 100


def serve_mlflow(folder: RunsFolder, tracking_uri: str | None, host: str, port: int) -> None:
    """Serve the pages of a tracking store until this process is stopped, and exit.

    Raises StoreUnavailable, WrongRequest.
    """
    from gatelab.results.tracking.own_store import check_place
    from gatelab.results.tracking.ui import study_pages  # MLflow takes seconds to import

    if not tracking_uri:
        check_place(folder)
    uri = tracking_uri or folder.tracking_uri
    pages = study_pages(uri)
    served = uri.startswith(("http://", "https://"))
    address = uri.rstrip("/") if served else f"http://{host}:{port}"
    if not served and (problem := _why_not(host, port)):
        fail(problem)
    shown = without_secrets(address)
    console.print(f"MLflow on {escape(shown)} (store: {escape(without_secrets(uri))})")
    for name, page in pages.items():
        console.print(f"  {escape(name)}  {escape(shown + page)}", soft_wrap=True, highlight=False)
    if served:
        return  # a server has its own pages
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    command += ["--workers", "1"]  # for one person
    if not tracking_uri:
        command += ["--default-artifact-root", folder.artifacts.as_uri()]
    raise typer.Exit(_run_to_its_end(command, {"MLFLOW_BACKEND_STORE_URI": uri}))  # which others do not see


def _why_not(host: str, port: int) -> str:
    """Return why nothing can be served at an address, or ''."""
    if not (problem := _refusal(host, port)):
        return ""
    others = range(port + 1, min(port + TRIED_PORTS, 65535) + 1)
    free = next((other for other in others if not _refusal(host, other)), None)
    return f"http://{host}:{port}: {problem}" + (f"; free is --port {free}" if free else "")


def _refusal(host: str, port: int) -> str:
    """Return what the system says if one asks it to listen at an address, or ''."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _run_to_its_end(command: list[str], settings: Mapping[str, str]) -> int:
    """Run a command with all of its processes; end them when this process is asked to end. Return its exit code.

    `settings` are added to its environment.
    """
    for polite in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(polite) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(polite, signal.default_int_handler)
    # Jobs are for applications of language models: two more processes that nobody here needs.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, **settings}
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = server.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        _end(server)
    return BAD_REQUEST if code else 0


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End the processes of a server."""
    for polite in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(polite, signal.SIG_IGN)  # this is the end already
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
        except ProcessLookupError:
            return
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            continue
