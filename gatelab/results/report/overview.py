"""The studies of a runs folder at a glance: how their trials stand, and when the last one ended."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gatelab.errors import GatelabError
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.runs import STATUSES
from gatelab.results.store.trials import study_outcomes
from gatelab.results.views.format import DASH
from gatelab.results.views.table import Column, Table


@dataclass(frozen=True)
class StudyOverview:
    """How a study stands."""

    study: str
    question: str
    trials: int
    counts: dict[str, int]
    """State -> trials that are in it."""
    ended: float | None
    """When its last trial ended, in seconds since 1970."""
    problem: str = ""
    """Why nothing else can be said."""


def overview(folder: RunsFolder) -> Iterator[StudyOverview]:
    """Yield how each study of a runs folder stands, in alphabetical order."""
    for name in folder.studies:
        try:
            record = folder.study(name).read()
            outcomes = study_outcomes(folder, record).values()
        except GatelabError as error:
            yield StudyOverview(name, "", 0, {}, None, str(error))
            continue
        counts = Counter(outcome.status for outcome in outcomes)
        ended = max((outcome.ended for outcome in outcomes if outcome.ended is not None), default=None)
        known = {str(status): counts[status] for status in STATUSES if counts[status]}
        yield StudyOverview(name, record.question, len(outcomes), known, ended)


def overview_table(folder: RunsFolder, found: Sequence[StudyOverview]) -> Table:
    """Lay out the studies of a runs folder for people."""
    columns = (Column("study"), Column("trials", numeric=True), Column("states"), Column("last ended"))
    rows = tuple(
        (
            one.study,
            str(one.trials) if one.trials else DASH,
            one.problem or ", ".join(f"{count} {state}" for state, count in one.counts.items()),
            DASH if one.ended is None else datetime.fromtimestamp(one.ended, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
        for one in found
    )
    return Table(f"studies in {folder.root}", columns, rows)
