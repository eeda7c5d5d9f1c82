"""A real tracking server, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gatelab.orchestrator.executor import CannotRun

START_SECONDS = 180.0


class TrackingServer:
    """MLflow's server on this machine, with a database and artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database = folder / "server.db"
        self._artifacts, self._log = folder / "artifacts", folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server, if it does not run, without waiting for it."""
        if self._process is not None:
            return
        store = f"sqlite:///{self.database.resolve()}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", store, "--artifacts-destination", self._artifacts.resolve().as_uri()]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **quiet},
            )

    def wait(self) -> None:
        """Return when the server answers. Raises CannotRun if it does not come to that."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.3)
        raise CannotRun(f"the tracking server does not answer: see {self._log}")

    def kill(self) -> bool:
        """Kill the server and the processes that it has started; return whether it ran."""
        if self._process is None:
            return False
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        return True
