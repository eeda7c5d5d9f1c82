"""What the sections of a report are made of: a study's records, each read once, and what sections share."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from gatelab.errors import AnalysisUnavailable
from gatelab.names import SEARCH_SUFFIX
from gatelab.results.analyses.claims import Claims, claims_from_record, stated_margin
from gatelab.results.analyses.comparison import DEFAULT_METRIC, Comparison, ComparisonRow, compare
from gatelab.results.analyses.curves import binned_rows
from gatelab.results.analyses.diagnostics import DRAWN, drawn_rows
from gatelab.results.analyses.learning_rates import LearningRates, learning_rates_from_record
from gatelab.results.analyses.scaling import Scaling, scaling_from_record
from gatelab.results.analyses.stability import Stability, read_stability, stability_of_journals
from gatelab.results.analyses.trial_stability import READ, settings_from
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.metrics import each_journal, named, together
from gatelab.results.store.preregistration import RegisterChanged
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import evaluations_frame, runs_of_record
from gatelab.results.store.trials import (
    Descriptions,
    EvaluationResults,
    study_descriptions,
    study_evaluations,
    study_outcomes,
)

MOST_DRAWN = 10
"""Variants in a figure."""


@dataclass(frozen=True)
class StudyResults:
    """A study's trials, as tables are made of them."""

    folder: RunsFolder
    record: StudyRecord
    runs: pa.Table
    answers: EvaluationResults
    """Evaluations of its trained models."""
    _stability: dict[tuple[str, ...], tuple[pa.Table, pa.Table, Stability]] = field(default_factory=dict)

    @property
    def study(self) -> str:
        """The study's name."""
        return self.record.name

    @property
    def last_step(self) -> int:
        """The last step that any trial has reached."""
        return int(pc.max(self.runs["step"]).as_py())

    def stability(self, variants: Collection[str]) -> tuple[pa.Table, pa.Table, Stability]:
        """Read the journals of some variants, or of all, once; see `read_stability`."""
        key = tuple(variants)
        if key not in self._stability:
            self._stability[key] = read_stability(self.folder, self.study, key)
        return self._stability[key]


def read_results(folder: RunsFolder, study: str) -> StudyResults:
    """Read a study's trials, each file once. Raises NotFound."""
    record = folder.study(study).read()
    answers = study_evaluations(folder, record)
    return StudyResults(folder, record, runs_of_record(folder, record, answers), answers)


@dataclass(frozen=True)
class JournalValues:
    """The values of journals that figures show."""

    curves: pa.Table
    """The metrics of `Context.curve_names`, thinned, of the whole model, for the variants that are drawn."""
    diagnostics: pa.Table
    """The values that figures of diagnostics show, for the same variants."""
    stability: tuple[pa.Table, Stability] | None
    """The values that figures of stability show, and the scores of all variants; None if nothing has trained."""


@dataclass(frozen=True)
class Context:
    """A study and what several sections need of it, each found once and only if it is asked for."""

    folder: RunsFolder
    record: StudyRecord
    descriptions: Descriptions
    runs: pa.Table
    ended: float | None
    """When the last trial that is over ended."""
    evaluations: pa.Table
    """Results of evaluating trained models; see `evaluations_frame`."""
    answers: EvaluationResults
    comparison: Comparison

    @property
    def study(self) -> str:
        """The study's name."""
        return self.record.name

    @cached_property
    def drawn(self) -> dict[str, str | None]:
        """The variants in figures, and their baselines, in the order of the table."""
        return chosen(self.comparison.rows)

    @property
    def omitted(self) -> tuple[str, ...]:
        """A sentence where figures do not show all variants."""
        total = len(self.comparison.rows)
        if len(self.drawn) == total:
            return ()
        best = f"the best and the worst by `{self.comparison.metric}`"
        return (f"Figures show {len(self.drawn)} of {total} variants: {best}, each with its baseline.",)

    @property
    def curve_names(self) -> tuple[str, ...]:
        """The metrics that are drawn over training, if they were recorded."""
        return tuple(dict.fromkeys((self.comparison.metric, DEFAULT_METRIC, "train/loss")))

    @cached_property
    def claims(self) -> Claims | RegisterChanged | None:
        """Return the verdicts on the study's claims, if it makes or made any, or why there can be none."""
        try:
            return claims_from_record(self.folder, self.record, self.runs)
        except AnalysisUnavailable:
            return None
        except RegisterChanged as error:
            return error

    @cached_property
    def values(self) -> JournalValues:
        """Read what figures show of journals, one after the other, each for all sections at once."""
        last, trials = pc.max(self.runs["step"]).as_py(), self.record.trials
        curves, diagnostics = [], []

        def journals() -> Iterator[pa.Table]:
            names = {*READ, *DRAWN, *self.curve_names}
            for trial, rows in zip(trials, each_journal(self.folder, trials, names), strict=True):
                if trial.variant in self.drawn:
                    whole = rows.filter(pc.and_(pc.is_null(rows["layer"]), named(rows, *self.curve_names)))
                    curves.append(binned_rows(whole, last))
                    diagnostics.append(drawn_rows(rows.filter(named(rows, *DRAWN)), last))
                yield rows

        stability = None
        settings = settings_from(self.descriptions)
        with contextlib.suppress(AnalysisUnavailable):
            stability = stability_of_journals(self.folder, trials, self.runs, settings, journals())
        return JournalValues(together(curves), together(diagnostics), stability)

    @property
    def searched_by(self) -> str | None:
        """The study that searches this one's learning rates: itself, or another one that has come to its end."""
        if self.study.endswith(SEARCH_SUFFIX):
            return self.study
        return self.study + SEARCH_SUFFIX if self.folder.study(self.study + SEARCH_SUFFIX).located.exists() else None

    @cached_property
    def search(self) -> tuple[StudyRecord, pa.Table] | None:
        """Its record and `runs`."""
        name = self.searched_by
        if name is None or name == self.study:
            return None if name is None else (self.record, self.runs)
        record = self.folder.study(name).read()
        return record, runs_of_record(self.folder, record)

    @cached_property
    def learning_rates(self) -> LearningRates | None:
        """Return what that search found; None without a search."""
        if self.search is None:
            return None
        try:
            return learning_rates_from_record(*self.search)
        except AnalysisUnavailable:
            return None

    @cached_property
    def scaling(self) -> Scaling | None:
        """Return the fits of the study's ladder, if it has one."""
        if not self.record.ladder:
            return None
        try:
            return scaling_from_record(self.record, self.runs)
        except AnalysisUnavailable:
            return None


def read_context(folder: RunsFolder, study: str, metric: str) -> Context:
    """Read a study's records and compare its variants by a metric, with the margin that its claims state for it.

    Raises NotFound, and WrongRequest for an unknown metric.
    """
    record = folder.study(study).read()
    descriptions, states = study_descriptions(folder, record), study_outcomes(folder, record)
    answers = study_evaluations(folder, record)
    runs = runs_of_record(folder, record, answers, descriptions, states)
    return Context(
        folder=folder,
        record=record,
        descriptions=descriptions,
        runs=runs,
        ended=max((state.ended for state in states.values() if state.ended is not None), default=None),
        evaluations=evaluations_frame(record, answers),
        answers=answers,
        comparison=compare(runs, metric, stated_margin(record, metric)),
    )


def chosen(rows: tuple[ComparisonRow, ...], most: int = MOST_DRAWN) -> dict[str, str | None]:
    """Choose the variants of a comparison that a figure has room for, and their baselines, in its order: the best ones
    and the worst, each with its baseline.
    """
    known = {row.variant for row in rows}
    valued = [row for row in rows if row.value.n]
    ranked = [*valued[:1], *valued[-1:], *valued[1:-1], *(row for row in rows if not row.value.n)]
    wanted: set[str] = set()
    for row in ranked:
        pair = {name for name in (row.variant, row.baseline) if name in known}
        if len(wanted | pair) <= most:
            wanted |= pair
    return {row.variant: row.baseline for row in rows if row.variant in wanted}
