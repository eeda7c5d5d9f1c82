"""Every kind of table that is written: how it follows from a study's trials, and the forms that it has."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from gatelab.results.analyses import evaluation
from gatelab.results.analyses.claims import claims_of_record
from gatelab.results.analyses.comparison import DEFAULT_METRIC, Comparison, compare
from gatelab.results.analyses.diagnostics import diagnosis
from gatelab.results.analyses.effects import effects, shared_trunks
from gatelab.results.analyses.learning_rates import tolerance_of_record
from gatelab.results.analyses.pivot import pivot
from gatelab.results.analyses.scaling import scaling_of_record
from gatelab.results.analyses.stability import Stability, read_stability
from gatelab.results.report.stamp import Stamp, stamped
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import StudyRecord
from gatelab.results.store.runs import runs_of_record
from gatelab.results.store.trials import EvaluationResults, study_evaluations
from gatelab.results.views.claims import claims_csv, claims_grid, claims_json
from gatelab.results.views.comparison import (
    comparison_csv,
    comparison_dict,
    comparison_grid,
    comparison_json,
    measures_grid,
)
from gatelab.results.views.diagnostics import diagnosis_grid
from gatelab.results.views.divergence import autopsies_grid
from gatelab.results.views.effects import effects_csv, effects_dict, effects_grids
from gatelab.results.views.learning_rates import tolerance_csv, tolerance_grid, tolerance_json
from gatelab.results.views.pivot import pivot_csv, pivot_grid, pivot_json
from gatelab.results.views.scaling import scaling_csv, scaling_dict, scaling_grids
from gatelab.results.views.stability import MOST_LINES, stability_csv, stability_dict, stability_grid
from gatelab.results.views.table import Grid, to_html, to_latex, to_markdown

Forms = Mapping[str, Callable[[Any], str]]
"""Suffix of a file -> what makes its text of a table's content."""


BOOTSTRAPS = 4000


@dataclass(frozen=True)
class Trials:
    """A study's trials, as tables are made of them."""

    folder: RunsFolder
    record: StudyRecord
    runs: pa.Table
    answers: EvaluationResults
    """What its trained models were asked."""

    @property
    def study(self) -> str:
        """The study's name."""
        return self.record.name


def read_trials(folder: RunsFolder, study: str) -> Trials:
    """A study's trials, each file read once. Raises NotFound."""
    record = folder.study(study).read()
    answers = study_evaluations(folder, record)
    return Trials(folder, record, runs_of_record(folder, record, answers), answers)


@dataclass(frozen=True)
class Kind:
    """A kind of table."""

    make: Callable[[Trials, Mapping[str, Any]], Any]
    """Its content, from a study's trials and the options of its stamp."""
    forms: Forms


@dataclass(frozen=True)
class Measured:
    """A study compared by several measures: each comparison, all of them for people, and the files that show them."""

    comparisons: list[Comparison]
    grid: Grid
    tables: list[Path] = field(default_factory=list)
    plots: list[Path] = field(default_factory=list)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The one table that holds all."""
        return (self.grid,)


def _forms(grids: Callable[[Any], Iterable[Grid]], csv: Callable[[Any], str], as_json: Callable[[Any], str]) -> Forms:
    return {
        "md": lambda content: "\n".join(map(to_markdown, grids(content))),
        "tex": lambda content: "\n".join(map(to_latex, grids(content))),
        "html": lambda content: "\n".join(map(to_html, grids(content))),
        "csv": csv,
        "json": as_json,
    }


def stability_grids(found: Stability) -> tuple[Grid, ...]:
    """The table of a study's stability, and that of what went wrong in it."""
    grid = stability_grid(found)
    if len(found.variants) > MOST_LINES:
        note = "Too many variants for a figure over training: choose some with --variant."
        grid = replace(grid, notes=(*grid.notes, note))
    return (grid, *([autopsies_grid(found.study, found.autopsies)] if found.autopsies else []))


def _compare(trials: Trials, options: Mapping[str, Any]) -> Comparison:
    return compare(trials.runs, options.get("metric", DEFAULT_METRIC), options.get("margin"))


def _diagnostics(trials: Trials, options: Mapping[str, Any]) -> Measured:
    comparisons = diagnosis(trials.runs)
    return Measured(comparisons, diagnosis_grid(comparisons, trials.runs))


def _evaluation(trials: Trials, options: Mapping[str, Any]) -> Measured:
    comparisons, notes = evaluation.beyond(trials.runs), evaluation.notes_of_answers(trials.answers)
    return Measured(comparisons, measures_grid("evaluation", comparisons, notes))


_MEASURED = _forms(
    lambda found: [found.grid],
    lambda found: comparison_csv(*found.comparisons),
    lambda found: json.dumps({"comparisons": [comparison_dict(each) for each in found.comparisons]}, indent=1),
)


KINDS: dict[str, Kind] = {
    "comparison": Kind(_compare, _forms(lambda found: [comparison_grid(found)], comparison_csv, comparison_json)),
    "pivot": Kind(
        lambda trials, options: pivot(_compare(trials, options), options["rows"], options["columns"]),
        _forms(lambda found: [pivot_grid(found)], pivot_csv, pivot_json),
    ),
    "claims": Kind(
        lambda trials, options: claims_of_record(trials.folder, trials.record, trials.runs),
        _forms(lambda found: [claims_grid(found)], claims_csv, claims_json),
    ),
    "effects": Kind(
        lambda trials, options: effects(
            trials.runs, options.get("metric", DEFAULT_METRIC), shared_trunks(trials.folder, trials.record)
        ),
        _forms(effects_grids, effects_csv, lambda found: json.dumps(effects_dict(found), indent=1)),
    ),
    "diagnostics": Kind(_diagnostics, _MEASURED),
    "evaluation": Kind(_evaluation, _MEASURED),
    "tolerance": Kind(
        lambda trials, options: tolerance_of_record(trials.record, trials.runs),
        _forms(lambda found: [tolerance_grid(found)], tolerance_csv, tolerance_json),
    ),
    "scaling": Kind(
        lambda trials, options: scaling_of_record(trials.record, trials.runs, options.get("bootstraps", BOOTSTRAPS)),
        _forms(scaling_grids, scaling_csv, lambda found: json.dumps(scaling_dict(found), indent=1)),
    ),
    "stability": Kind(
        lambda trials, options: read_stability(trials.folder, trials.study, options.get("variants", ()))[2],
        _forms(stability_grids, stability_csv, lambda found: json.dumps(stability_dict(found), indent=1)),
    ),
}


def render(content: Any, suffix: str, stamp: Stamp) -> str:
    """A table in one of its forms (md, tex, html, csv, json), with its stamp."""
    return stamped(KINDS[stamp.table].forms[suffix](content), suffix, stamp)


def write_table(content: Any, stem: Path, stamp: Stamp) -> list[Path]:
    """Write a table in all of its forms beside each other; return the paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix in KINDS[stamp.table].forms:
        path = stem.with_name(f"{stem.name}.{suffix}")
        path.write_text(render(content, suffix, stamp), encoding="utf-8")
        paths.append(path)
    return paths
