"""Where things lie: the one place that knows the layout of a runs folder.

gatelab-runs/
  data/<identity>/            prepared tokens and their manifest
  trials/<trial id>/          trial.json, journal/, checkpoints/, log.txt; once it is over outcome.json, which holds
                              trial.json
  studies/<name>/             study.yaml (what was asked), study.json (the matrix), study-<hash>.json (each matrix
                              there was), tables and plots
  noise.parquet               how metrics scatter over seeds, of every study that was run here
  mlflow.db                   the default tracking store
  mlflow-artifacts/
"""

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gatelab.errors import GatelabError
from gatelab.names import LONGEST_NAME, can_name_a_study, search_of
from gatelab.results.store.records import DamagedRecord, StudyRecord

DEFAULT_ROOT = Path("gatelab-runs")

MOST_NAMED = 16
"""Studies that an error names."""


PAGE = "report.html"
"""A study's report, in its folder."""


class NotFound(GatelabError, LookupError):
    """A study or trial that is asked for is not in the runs folder."""


@dataclass(frozen=True)
class TrialFolder:
    """Files of one trial."""

    path: Path

    @property
    def description(self) -> Path:
        """trial.json: id, configuration and, of each attempt, when it started and its provenance.

        Once the trial is over outcome.json holds the same. `trials.read_description` reads either.
        """
        return self.path / "trial.json"

    @property
    def outcome(self) -> Path:
        """outcome.json: there once the trial is over."""
        return self.path / "outcome.json"

    @property
    def journal(self) -> Path:
        """Folder of the journal's segments."""
        return self.path / "journal"

    @property
    def checkpoints(self) -> Path:
        """Folder of the newest checkpoints."""
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Folder of evaluations after training, a file for each."""
        return self.path / "evaluations"

    @property
    def log(self) -> Path:
        """log.txt: what the trial's processes had to say, there once one has said something."""
        return self.path / "log.txt"


@dataclass(frozen=True)
class StudyFolder:
    """Files of one study."""

    path: Path

    @property
    def record(self) -> Path:
        """study.json: the matrix as it was last launched."""
        return self.path / "study.json"

    @property
    def unsynced(self) -> Path:
        """mlflow.unsynced: there while the default tracking store may hold what is not on disk yet."""
        return self.path / "mlflow.unsynced"

    @property
    def tracking_log(self) -> Path:
        """mlflow.log: what kept MLflow from being up to date, with all that it had to say."""
        return self.path / "mlflow.log"

    @property
    def file(self) -> Path:
        """study.yaml: the study as it was last launched, flags included, to be run again."""
        return self.path / "study.yaml"

    @property
    def located(self) -> Path:
        """located.json: the result of a learning-rate search, there once one has come to its end."""
        return self.path / "located.json"

    @property
    def claims(self) -> Path:
        """claims.json: the claims and when each was made, the first entry from the first launch."""
        return self.path / "claims.json"

    def stop_file(self, driver: str) -> Path:
        """Return stop-DRIVER: there while a driver that was interrupted lets its trials write a checkpoint."""
        return self.path / f"stop-{driver}"

    @property
    def stop_files(self) -> list[Path]:
        """Those that are there; at most one, unless a driver was killed meanwhile."""
        return sorted(self.path.glob("stop-*"))

    def read(self) -> StudyRecord:
        """Read the study's record. Raises NotFound, NewerRecord, DamagedRecord."""
        if not self.record.exists():
            raise NotFound(f"no study {self.path.name!r} in {self.path.parent.parent} ({self._others()})")
        mend = "`gatelab run` writes it anew, or copy the newest study-*.json beside it over it"
        try:
            record = StudyRecord.read(self.record)
        except DamagedRecord as error:
            raise DamagedRecord(f"{error}: {mend}") from error
        if record is None or record.name != self.path.name:
            found = "is gone" if record is None else f"is of the study {record.name!r}"
            raise DamagedRecord(f"{self.record}: {found}: {mend}")
        return record

    def _others(self) -> str:
        """Hint at the studies that there are."""
        known = _studies(self.path.parent)
        if not known:
            return "there is none yet: gatelab run STUDY.yaml"
        if (search := search_of(self.path.name)) in known:
            return f"there is the search of its learning rates: {search}"
        near = difflib.get_close_matches(self.path.name, known, n=1)
        listed = f"there are: {', '.join(known[:MOST_NAMED])}" + (", …" if len(known) > MOST_NAMED else "")
        return f"did you mean {near[0]}? {listed}" if near else listed


@dataclass(frozen=True)
class RunsFolder:
    """A folder that holds studies, their trials and their data."""

    root: Path

    @property
    def data(self) -> Path:
        """Prepared data."""
        return self.root / "data"

    @cached_property
    def trials(self) -> Path:
        """Folders of trials, by id."""
        return self.root / "trials"

    def trial(self, trial_id: str) -> TrialFolder:
        """Return the folder of a trial, which need not exist."""
        return TrialFolder(self.trials / trial_id)

    def study(self, name: str) -> StudyFolder:
        """Return the folder of a study, which need not exist. Raises NotFound for what cannot be a study's name."""
        if not can_name_a_study(name):
            given = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:60]}… ({len(name)} characters)"
            raise NotFound(
                f"{given} is no name of a study: letters, digits, '.', '_' and '-', at most {LONGEST_NAME}, a letter "
                "or digit first"
            )
        return StudyFolder(self.root / "studies" / name)

    @property
    def studies(self) -> list[str]:
        """Names of the studies that were launched here, in alphabetical order."""
        return _studies(self.root / "studies")

    @property
    def noise(self) -> Path:
        """noise.parquet: how metrics scattered over seeds in the studies that were run here."""
        return self.root / "noise.parquet"

    @property
    def database(self) -> Path:
        """The tracking store that is used when none is named."""
        return self.root.resolve() / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """Address of the default tracking store."""
        return f"sqlite:///{self.database}"

    @property
    def tracking_lock(self) -> Path:
        """File locked by the process that creates the default tracking store, or mends it."""
        return self.root.resolve() / "mlflow.lock"

    @property
    def artifacts(self) -> Path:
        """Artifacts of the default tracking store."""
        return self.root.resolve() / "mlflow-artifacts"


def _studies(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/study.json"))
