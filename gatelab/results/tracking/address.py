"""Addresses of tracking stores: whether one is an address, whether something answers there, what an error means."""

import errno
import http.client
import logging
import os
import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from gatelab.errors import GatelabError, WrongRequest
from gatelab.results.store.layout import NotFound
from gatelab.text import without_secrets

ANSWER_SECONDS = 5.0  # for a server to answer at all

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Database servers that MLflow can use -> their usual port."""

LOG_BYTES = 1_000_000

CHATTY = ("mlflow", "alembic", "sqlalchemy", "urllib3", "databricks")
"""Loggers of those who speak on the way to a store."""


class StoreUnavailable(GatelabError):
    """A tracking store cannot be reached, or cannot be read."""


def check_address(uri: str) -> None:
    """Refuse what can never be the address of a store. Raises WrongRequest."""
    if (wrong := _wrong(uri)) is not None:
        given = f"tracking URI {without_secrets(uri)!r}: {without_secrets(wrong)}"
        raise WrongRequest(f"{given}; expected http://HOST:PORT, sqlite:///FILE or another MLflow store")


def _wrong(uri: str) -> str | None:
    """Return what is wrong with an address, or None."""
    if not uri:
        return "is empty"
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            return None if parts.hostname and parts.port != 0 else "names no host"
    except ValueError as error:
        return str(error)
    if parts.scheme.partition("+")[0] in ("sqlite", *PORTS):
        return _wrong_database(uri)
    try:
        MlflowClient(uri)  # connects to nothing
    except UnsupportedModelRegistryStoreURIException:
        return f"{parts.scheme!r} is no kind of store that MLflow knows"
    except MlflowException as error:
        return str(error).strip().partition(". ")[0].partition(" See https")[0]
    return None


def _wrong_database(uri: str) -> str | None:
    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        return str(error)
    except ImportError as error:
        return f"needs a package that is not installed ({error})"
    if url.get_backend_name() == "sqlite":
        return None if url.database and url.database != ":memory:" else "names no file"
    return None if url.host else "names no host"


def reach(uri: str) -> None:
    """Return if something answers at an address; at once, where MLflow would try for minutes.

    Raises StoreUnavailable.
    """
    try:
        if uri.startswith(("http://", "https://")):
            with suppress(urllib.error.HTTPError, http.client.HTTPException):  # whatever it answers
                parts = urlsplit(f"{uri.rstrip('/')}/health")
                open_to_all = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
                urllib.request.urlopen(open_to_all, timeout=ANSWER_SECONDS).close()
        elif (file := sqlite_file(uri)) is not None:
            _open(file)
        elif urlsplit(uri).scheme.partition("+")[0] in PORTS:
            url = make_url(uri)
            port = url.port or PORTS[url.get_backend_name()]
            socket.create_connection((url.host, port), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError, sqlite3.Error) as error:
        if not isinstance(root_cause(error), ssl.SSLError):  # MLflow can be told to overlook these
            raise StoreUnavailable(f"MLflow store {without_secrets(uri)}: {reason(error)}") from error


def find(uri: str) -> None:
    """Return if there is a store at an address, to be read. Raises NotFound, StoreUnavailable."""
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise NotFound(f"no tracking store {without_secrets(uri)}")  # where MLflow would create an empty one
    reach(uri)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a store in SQLite; None of another store."""
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    return Path(make_url(uri).database or "")


def _open(file: Path) -> None:
    """Open a SQLite file, or see that one can be created."""
    if file.exists():
        file.open("rb").close()  # whose errors say more than SQLite's
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA schema_version")
    else:
        folder = next(parent for parent in file.absolute().parents if parent.exists())
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextmanager
def reporting(uri: str) -> Iterator[None]:
    """Turn whatever a store, or the way to it, may raise into a sentence. Raises StoreUnavailable."""
    try:
        yield
    except GatelabError:
        raise
    except Exception as error:
        raise StoreUnavailable(f"MLflow store {without_secrets(uri)}: {reason(error)}") from error


def root_cause(error: BaseException) -> BaseException:
    """Return the error at the bottom of those that were raised on its account."""
    seen = {id(error)}
    while True:
        below = getattr(error, "orig", None) or error.__cause__ or error.__context__
        if not isinstance(below, BaseException) or id(below) in seen:
            return error
        seen.add(id(below))
        error = below


def reason(error: BaseException) -> str:
    """Return in one line what an error of MLflow's, or of what it stands on, comes down to."""
    cause = error if isinstance(error, GatelabError) else root_cause(error)
    if isinstance(cause, OSError) and cause.strerror:
        where = f": {cause.filename}" if cause.filename else ""
        return f"{cause.strerror}{where}"
    if isinstance(cause, TimeoutError) and str(cause) == "timed out":
        return "no answer"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return without_secrets(lines[0]) if lines else type(cause).__name__


class _Formatter(logging.Formatter):
    """Writes records, and what was raised, without the passwords of addresses: MLflow names these in full."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Let MLflow, and what it stands on, write what they have to say to a file, or nowhere; not to the terminal."""
    handler: logging.Handler = logging.NullHandler()
    if path is not None:
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", delay=True)
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handler.setLevel(logging.WARNING)
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # on a full disk the log is done without
    loggers = [logging.getLogger(name) for name in (*CHATTY, "gatelab.orchestrator.tracking")]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


def quick_to_give_up() -> None:
    """Let a server that does not answer be tried again at the next sync, not for minutes within one call."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
