"""MLflow is kept up to date: by a thread while a study runs, which never holds a trial up, or after the fact."""

import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gatelab.errors import GatelabError
from gatelab.extras import MissingExtra
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import Held, acquire
from gatelab.results.store.records import StudyRecord

if TYPE_CHECKING:
    from gatelab.results.tracking.sync import Mirror

SYNC_SECONDS = 5.0

AWAY_SECONDS = 60.0
"""A store that is away is looked for less and less often, down to once in this time."""

logger = logging.getLogger(__name__)


def check_tracking_uri(uri: str | None) -> None:
    """Refuse what can never be the address of a tracking store. Raises WrongRequest."""
    if not uri:
        return  # the default store
    try:
        from gatelab.results.tracking.address import check_address
    except MissingExtra:
        return  # a study runs without MLflow, and says so
    check_address(uri)


class SyncThread:
    """A context in which a study's journals are copied to MLflow; at its end, once more and completely.

    If the store is away the study goes on, `problem` says so, and the next sync (or the next run) catches up.
    """

    def __init__(self, folder: RunsFolder, record: StudyRecord, tracking_uri: str) -> None:
        self.problem = ""
        """What keeps MLflow from being up to date, or ''."""
        self.lines: list[str] = []
        """What there is to say, for people, each once: it went away, it is back, it was mended."""
        self._folder, self._record, self._uri = folder, record, tracking_uri
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
            mirror = _mirror(self._folder, self._record, self._uri)
        except MissingExtra as error:
            self.problem = _problem(error)
            self.lines.append(self.problem)
            return
        log = self._folder.study(self._record.name).tracking_log
        pause = SYNC_SECONDS
        while True:
            last = self._over.wait(pause)
            problem = _attempt(mirror, log, self.problem)
            self.lines += mirror.notes
            mirror.notes.clear()
            if problem and not self.problem:
                self.lines.append(f"{problem}; it is caught up with later (more in {log})")
            elif self.problem and not problem:
                self.lines.append("MLflow is up to date again")
            pause = min(2 * pause, AWAY_SECONDS) if problem else SYNC_SECONDS
            self.problem = problem
            if last:
                return


def add_to_mlflow(
    folder: RunsFolder,
    study: str,
    tracking_uri: str | None,
    files: Iterable[Path],
    verdicts: Mapping[str, str] | None = None,
) -> str:
    """Bring a study in MLflow up to date and return what kept it from that, or else what there is to say of it.

    Files are put beside its record, and on each trial the verdict on its variant, where there is one. The default store
    is left alone where there is none yet: `gatelab run` creates it. Raises NotFound.
    """
    if not tracking_uri and not folder.database.exists():
        return ""
    record = folder.study(study).read()
    try:
        check_tracking_uri(tracking_uri)
        with acquire(folder.study(study).path):  # one process writes a study to MLflow
            mirror = _mirror(folder, record, tracking_uri or folder.tracking_uri)
            problem = _attempt(mirror, folder.study(study).tracking_log, "", files, verdicts or {})
            return "; ".join([*mirror.notes, *([problem] if problem else [])])
    except Held:
        return "the study is being run: MLflow gets this with the next command after that"
    except (GatelabError, OSError) as error:
        return _problem(error)


def _mirror(folder: RunsFolder, record: StudyRecord, tracking_uri: str) -> "Mirror":
    from gatelab.results.tracking.address import quick_to_give_up
    from gatelab.results.tracking.sync import Mirror  # MLflow takes seconds to import

    quick_to_give_up()
    return Mirror(folder, record, tracking_uri)


def _attempt(
    mirror: "Mirror",
    log: Path,
    before: str,
    files: Iterable[Path] = (),
    verdicts: Mapping[str, str] | None = None,
) -> str:
    """Bring a study in MLflow up to date and return what kept it from that, or ''.

    What that is in full goes to a log, unless it is the problem that there was before.
    """
    from gatelab.results.tracking.address import logging_to

    with logging_to(log):
        try:
            mirror.sync()
            mirror.add_files(files)
            mirror.add_verdicts(verdicts or {})
        except Exception as error:  # whatever a store or its network may raise
            problem = _problem(error, mirror.store)
            if problem != before:
                logger.warning("%s", problem, exc_info=True)
            return problem
    return ""


def _problem(error: Exception, store: str = "") -> str:
    if isinstance(error, GatelabError):
        why = str(error).removeprefix("MLflow store ")
    else:
        from gatelab.results.tracking.address import reason

        why = f"{store}: {reason(error)}" if store else reason(error)
    return f"MLflow is not up to date: {why}"
