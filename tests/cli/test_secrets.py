"""A password in an address is known to whoever gave it, and shown to nobody: terminals and files are read by others."""

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gatelab.cli.main import app
from gatelab.results.tracking.address import logging_to
from gatelab.text import without_secrets
from tests.results.test_older_runs import enter, unpack

ADDRESS = "http://me:hunter2@127.0.0.1:9"
"""Nobody is there."""


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://me:***@host:5000/x"),
        ("postgresql+psycopg2://me:se/cr@et@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("https://:secret@host", "https://:***@host"),
        ("https://secret@host/x", "https://***@host/x"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("no answer of http://me:secret@host: timed out", "no answer of http://me:***@host: timed out"),
        ("sqlite:////a/b:c@d.db", "sqlite:////a/b:c@d.db"),
        ("http://host:5000/#/experiments/1?a=b", "http://host:5000/#/experiments/1?a=b"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_what_is_secret_of_an_address_is_left_out(given: str, shown: str) -> None:
    """Passwords and tokens in each place that servers and databases take them at; all else stays."""
    assert without_secrets(given) == shown


@pytest.mark.parametrize("command", ["run studies/gates.yaml", "compare gates --from mlflow", "claims gates", "ui"])
def test_no_command_shows_a_password(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on the terminal nor in any file that it writes, whether or not the store can be reached."""
    unpack(tmp_path)
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr("gatelab.results.views.style.render_figure", lambda figure: {})  # takes most of the time
    result = CliRunner().invoke(app, [*command.split(), "--tracking-uri", ADDRESS])
    assert "me:***@127.0.0.1:9" in result.output
    assert "hunter2" not in result.output
    assert [str(path) for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []


@pytest.mark.parametrize("uri", ["http://me:hun/ter2@host", "foo://me:hunter2@x", "postgresql+no://me:hunter2@host/db"])
def test_a_refusal_shows_no_password(uri: str, tmp_path: Path) -> None:
    """What a library says of an address that it cannot read often holds the address, or a part of it."""
    result = CliRunner().invoke(app, ["ui", "--runs", str(tmp_path), "--tracking-uri", uri])
    assert (result.exit_code, "ter2" in result.output) == (2, False)


def test_a_log_holds_no_password(tmp_path: Path) -> None:
    """MLflow names the whole address in its warnings, and in what it raises."""
    with logging_to(tmp_path / "mlflow.log"):
        try:
            raise OSError(f"API request to {ADDRESS}/api failed")
        except OSError:
            logging.getLogger("mlflow").warning("%s is away", ADDRESS, exc_info=True)
    log = (tmp_path / "mlflow.log").read_text()
    assert (log.count("me:***@127.0.0.1:9"), "hunter2" in log) == (2, False)
