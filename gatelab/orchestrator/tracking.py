"""MLflow is kept up to date: by a thread while a study runs, which never holds a trial up, or after the fact."""

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gatelab.extras import MissingExtra
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import Held, acquire
from gatelab.results.store.records import StudyRecord

if TYPE_CHECKING:
    from gatelab.results.tracking.sync import Mirror

SYNC_SECONDS = 5.0

logger = logging.getLogger(__name__)


class SyncThread:
    """A context in which a study's journals are copied to MLflow; at its end, once more and completely.

    If the store is away the study goes on, `problem` says so, and the next sync (or the next run) catches up.
    """

    def __init__(self, folder: RunsFolder, record: StudyRecord, tracking_uri: str) -> None:
        self.problem = ""
        self._arguments = (folder, record, tracking_uri)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)

    def __enter__(self) -> "SyncThread":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            mirror = _mirror(*self._arguments)
        except MissingExtra as error:
            self.problem = _problem(error)
            return
        while True:
            last = self._over.wait(SYNC_SECONDS)
            try:
                mirror.sync()
                self.problem = ""
            except Exception as error:  # whatever a store or its network may raise
                self.problem = _problem(error)
                logger.warning("%s", self.problem, exc_info=True)
            if last:
                return


def add_to_mlflow(
    folder: RunsFolder,
    study: str,
    tracking_uri: str | None,
    files: Iterable[Path],
    verdicts: Mapping[str, str] | None = None,
) -> str:
    """Bring a study in MLflow up to date and return what kept it from that, or ''.

    Files are put beside its record, and on each trial the verdict on its variant, where there is one. The default store
    is left alone where there is none yet: `gatelab run` creates it. Raises NotFound.
    """
    if tracking_uri is None and not folder.database.exists():
        return ""
    record = folder.study(study).read()
    try:
        with acquire(folder.study(study).path):  # one process writes a study to MLflow
            mirror = _mirror(folder, record, tracking_uri or folder.tracking_uri)
            mirror.sync()
            mirror.add_files(files)
            mirror.add_verdicts(verdicts or {})
    except Held:
        return "the study is being run: MLflow gets this with the next command after that"
    except Exception as error:  # whatever a store or its network may raise
        logger.warning("%s", _problem(error), exc_info=True)
        return _problem(error)
    return ""


def _mirror(folder: RunsFolder, record: StudyRecord, tracking_uri: str) -> "Mirror":
    # A server that does not answer is tried again at the next sync, not for minutes within one call.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from gatelab.results.tracking.sync import Mirror  # MLflow takes seconds to import

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return Mirror(folder, record, tracking_uri)


def _problem(error: Exception) -> str:
    return f"MLflow is not up to date: {(str(error) or repr(error)).splitlines()[0]}"
