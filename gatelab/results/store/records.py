"""The records on disk as types: a study, its variants and trials, how a trial went, what its trained model answered.

Each is a JSON file with a version and a checksum, which are read at the door: an older record is completed by the
defaults here, a newer one is refused, and so is one that is not as it was written. Keys that this version does not know
are kept.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gatelab.atomic import replacing
from gatelab.checksums import with_checksum, without_checksum
from gatelab.errors import GatelabError
from gatelab.status import Status


class NewerRecord(GatelabError):
    """A record that a newer version of gatelab wrote."""


class DamagedRecord(GatelabError, ValueError):
    """A record that is not as gatelab writes it."""


class Record(BaseModel):
    """Base of the records: immutable, written without what was never set."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    VERSION: ClassVar[int] = 1

    @classmethod
    def from_json(cls, content: dict[str, Any], source: str) -> Self:
        """Read a record. `source` names it in errors. Raises NewerRecord, DamagedRecord."""
        version = content.get("version", 1)
        if isinstance(version, int) and version > cls.VERSION:
            raise NewerRecord(
                f"{source}: has version {version} and this gatelab reads up to version {cls.VERSION}: upgrade gatelab"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DamagedRecord(f"{source}: {place}: {first['msg']}: is not as gatelab writes it") from error

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a record's file; None where there is none. Raises NewerRecord, DamagedRecord."""
        for _ in range(2):  # between a look and the next it may be written, or removed
            content = read_json(path)
            if content is not None:
                return cls.from_json(content, str(path))
            if not path.exists():
                return None
        raise DamagedRecord(f"{path}: is damaged, or cannot be read: it is not the record that was written")

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, without what was never set."""
        return self.model_dump(exclude_unset=True)


class VariantRecord(Record):
    """A variant of a study, as it was launched."""

    levels: dict[str, str]
    """Axis -> its level, of the axes that make a difference to it."""
    baseline: str | None
    """The variant to compare with."""
    steps: int
    """Optimiser steps of each of its trials."""
    parameters: int
    added_parameters: int | None
    """Over the baseline."""
    flops_per_token: int | None
    """To train on a token."""
    tokens: int | None = None
    """To train on."""
    learning_rate: float | None = None
    """The peak."""


class TrialRecord(Record):
    """A trial of a study."""

    id: str
    variant: str
    seed: int
    parent: str | None = None
    """Id of the trial whose final weights it starts from."""


class ClaimRecord(Record):
    """A claim as it was made, and the variants that it is about."""

    name: str
    metric: str
    direction: str
    margin: float
    test: str
    alpha: float
    variants: list[str]


class SearchRules(Record):
    """Rules by which a search of learning rates judges its results."""

    rates: list[float]
    """The window that every variant is tried at."""
    lattice: list[float]
    """The window, and the rates beyond it that the search may go on to."""
    margin: float
    """A learning rate is tolerated whose loss exceeds the best by at most this share of it."""


class StudyRecord(Record):
    """A study as it was launched: study.json, also an artifact of its run in MLflow."""

    version: int = 1
    name: str
    question: str = ""
    hash: str
    continues: str | None = None
    """The study whose trials its own start from."""
    axes: list[str]
    ladder: list[str] = []
    """The axes along which models and their training grow."""
    learning_rate: str = "given"
    tolerance: SearchRules | None = None
    """Rules of a search of learning rates; None in studies from before there were searches."""
    match: str = "none"
    variants: dict[str, VariantRecord]
    trials: list[TrialRecord]
    claims: list[ClaimRecord] = []
    excluded: dict[str, str] = {}
    """Combination -> the rule that leaves it out."""
    impossible: dict[str, str] = {}
    """Combination -> why there is none."""

    def restricted_to(self, trials: Iterable[TrialRecord]) -> "StudyRecord":
        """Return the record with these of its trials only."""
        return self.model_copy(update={"trials": list(trials)})


DESCRIPTION = "description"
"""The key of outcome.json under which the description of a trial lies that has no trial.json any more."""


class Outcome(Record):
    """State or end of a trial: outcome.json, there once it is over."""

    status: Status
    trial: str = ""
    """The trial's id; '' where it does not say."""
    step: int = 0
    """Optimiser steps done."""
    metrics: dict[str, float] = {}
    """Summary metrics of the trial."""
    reason: str = ""
    """The reason why it diverged or failed."""
    kind: str = ""
    """What kind of failure it was, of one that failed: a value of `FailureKind`."""
    cause: str = ""
    """Which error it was and where it was raised, of one that failed."""
    log: str = ""
    """The file with what its process had to say, of one that failed."""
    ended: float | None = None
    """Seconds since 1970."""

    @classmethod
    def from_json(cls, content: dict[str, Any], source: str) -> Self:
        """Read an outcome, without the description that is kept with it."""
        return super().from_json({key: value for key, value in content.items() if key != DESCRIPTION}, source)

    @classmethod
    def whole(cls, path: Path) -> Self | None:
        """Read a trial's outcome.json; None where there is none. Raises NewerRecord, DamagedRecord."""
        outcome = super().read(path)
        if outcome is not None and outcome.trial not in ("", path.parent.name):
            raise DamagedRecord(f"{path}: is of another trial, {outcome.trial}")
        return outcome

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a trial's outcome.json; None where there is no whole one: the trial is to be run. Raises NewerRecord."""
        try:
            return cls.whole(path)
        except DamagedRecord:
            return None


class Attempt(Record):
    """A process that worked on a trial."""

    started: float
    """Seconds since 1970."""
    provenance: dict[str, str] = {}
    """Code, data, device and so on."""


class ForkRecord(Record):
    """The point at which a trial left a longer one, with which it shares its first steps."""

    trunk: str
    """Id of the longer trial."""
    step: int


class TrialDescription(Record):
    """Description of a trial that has begun: trial.json, or a part of outcome.json once the trial is over."""

    id: str
    config: dict[str, Any]
    """Its complete configuration, as JSON."""
    parent: str | None = None
    branch: ForkRecord | None = None
    attempts: list[Attempt] = []
    metrics: dict[str, dict[str, Any]] | None = None
    """What its metrics are, as `gatelab.metrics.dump_specs` says it; None in trials of versions that did not say."""


class QuestionRecord(Record):
    """An evaluation of a trained model."""

    kind: str
    amount: int
    """Tokens, examples or documents; 0: all there are."""


class EvaluationResult(Record):
    """The result of one evaluation of a trained model: a file of evaluations/."""

    question: QuestionRecord
    trial: str = ""
    """The trial's id; '' where it does not say."""
    step: int = 0
    evaluated: float
    """Seconds since 1970."""
    provenance: dict[str, str] = {}
    metrics: dict[str, float]


class DataRecord(Record):
    """What results tell of prepared data: a part of their manifest.json, which training writes and reads whole."""

    tokenizer: str = ""
    vocab_size: int = 0
    train: dict[str, int | None] = {}
    """What is counted of this part -> how much; None: it was not counted."""
    validation: dict[str, int | None] = {}


class SearchedRate(Record):
    """What a search of learning rates found for a variant."""

    variant: str
    kind: str
    """What its optimum depends on, hashed (see `searched_kind` in ablations)."""
    tokens: int
    """To train on."""
    rate: float | None = Field(gt=0, allow_inf_nan=False)
    """The optimal learning rate; None: there is only a bound on it."""


class SearchFindings(Record):
    """What a search of learning rates found, once it has come to its end: located.json."""

    variants: list[SearchedRate]


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object without its checksum; None where there is none, or none that is as it was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return without_checksum(value) if isinstance(value, dict) else None


def read_part(path: Path, key: str) -> dict[str, Any] | None:
    """Read an object within a JSON object, by its own checksum; None where there is none.

    The rest may be damaged. Raises DamagedRecord if the part is.
    """
    try:
        part = json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    if part is None:
        return None
    whole = without_checksum(part) if isinstance(part, dict) else None
    if whole is None:
        raise DamagedRecord(f"{path}: {key}: is not as gatelab writes it")
    return whole


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object and its checksum, durably and at once.

    Non-finite numbers are written as NaN and Infinity, as Python reads them.
    """
    text = json.dumps(with_checksum(value), indent=1)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
