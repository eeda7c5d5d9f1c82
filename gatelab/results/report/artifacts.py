"""Every kind of table that is written: how it follows from a study's trials, and its tables, figures and files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gatelab.atomic import replacing
from gatelab.results.analyses.analysis import Analysis
from gatelab.results.analyses.claims import claims_from_record
from gatelab.results.analyses.comparison import DEFAULT_METRIC, Comparison, compare
from gatelab.results.analyses.diagnostics import diagnostics, read_diagnostics
from gatelab.results.analyses.effects import effects, shared_trunks
from gatelab.results.analyses.evaluation import evaluation
from gatelab.results.analyses.learning_rates import learning_rates_from_record
from gatelab.results.analyses.pivot import pivot
from gatelab.results.analyses.scaling import BOOTSTRAPS, scaling_from_record
from gatelab.results.report.context import StudyResults
from gatelab.results.report.stamp import Stamp, json_with_provenance, make_stamp, with_origin, with_provenance
from gatelab.results.store.metric_specs import specs_of
from gatelab.results.store.runs import evaluations_frame
from gatelab.results.views import claims as claims_view
from gatelab.results.views import comparison as comparison_view
from gatelab.results.views import diagnostics as diagnostics_view
from gatelab.results.views import effects as effects_view
from gatelab.results.views import effects_figures
from gatelab.results.views import evaluation as evaluation_view
from gatelab.results.views import learning_rates as learning_rates_view
from gatelab.results.views import pivot as pivot_view
from gatelab.results.views import scaling as scaling_view
from gatelab.results.views import stability as stability_view
from gatelab.results.views.style import draw, save_files
from gatelab.results.views.table import Table, to_csv, to_html, to_latex, to_markdown
from gatelab.text import file_stem

Options = Mapping[str, Any]
"""Options that make a table together with the trials, as its stamp records them."""


@dataclass(frozen=True)
class TableSpec:
    """A kind of table."""

    stem: str
    """Begins the names of its files."""
    compute: Callable[[StudyResults, Options], Analysis]
    """Its content. Raises AnalysisUnavailable where a study has none."""
    tables: Callable[[Any], list[Table]]
    """Its content, laid out for people."""
    figures: Callable[[Any, StudyResults, Options], Mapping[str, Figure]] = lambda found, study, options: {}
    """Name of a file -> the figure in it."""


def _compare(study: StudyResults, options: Options) -> Comparison:
    return compare(study.runs, options.get("metric", DEFAULT_METRIC), options.get("margin"))


TABLES: dict[str, TableSpec] = {
    "comparison": TableSpec("comparison", _compare, comparison_view.tables),
    "pivot": TableSpec(
        "pivot",
        lambda study, options: pivot(_compare(study, options), options["rows"], options["columns"]),
        pivot_view.tables,
    ),
    "claims": TableSpec(
        "claim-verdicts",
        lambda study, options: claims_from_record(study.folder, study.record, study.runs),
        claims_view.tables,
    ),
    "effects": TableSpec(
        "effects",
        lambda study, options: effects(
            study.runs, options.get("metric", DEFAULT_METRIC), shared_trunks(study.folder, study.record)
        ),
        effects_view.tables,
        lambda found, study, options: effects_figures.figures(found),
    ),
    "diagnostics": TableSpec(
        "diagnostics",
        lambda study, options: diagnostics(study.runs),
        diagnostics_view.tables,
        lambda found, study, options: diagnostics_view.figures(
            found, read_diagnostics(study.folder, study.study, study.last_step), found.baselines, specs_of(study.runs)
        ),
    ),
    "evaluation": TableSpec(
        "evaluation",
        lambda study, options: evaluation(study.runs, study.answers),
        evaluation_view.tables,
        lambda found, study, options: evaluation_view.figures(
            found, evaluations_frame(study.record, study.answers), found.baselines, specs_of(study.runs)
        ),
    ),
    "tolerance": TableSpec(
        "tolerance",
        lambda study, options: learning_rates_from_record(study.record, study.runs),
        learning_rates_view.tables,
        lambda found, study, options: learning_rates_view.figures(found, study.runs),
    ),
    "scaling": TableSpec(
        "scaling",
        lambda study, options: scaling_from_record(study.record, study.runs, options.get("bootstraps", BOOTSTRAPS)),
        scaling_view.tables,
        lambda found, study, options: scaling_view.figures(found),
    ),
    "stability": TableSpec(
        "stability",
        lambda study, options: study.stability(options.get("variants", ()))[2],
        stability_view.tables,
        lambda found, study, options: stability_view.figures(found, *study.stability(options.get("variants", ()))[:2]),
    ),
}
"""Kind of a table, as stamps name it -> how it is made."""


RENDERERS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "tex": to_latex, "html": to_html}


FORMS = (*RENDERERS, "csv", "json")
"""Suffixes of the files of a table."""


@dataclass(frozen=True)
class Artifacts:
    """The files written of a study, and the result that they show."""

    result: Any
    """The result of the analysis."""
    shown: list[Table]
    """The same, for people."""
    tables: list[Path] = field(default_factory=list)
    """The files that hold it, one in each form."""
    plots: list[Path] = field(default_factory=list)
    """The files of figures."""
    parquet: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Figures that could not be drawn, a line for each."""

    @property
    def files(self) -> list[Path]:
        """Tables and plots."""
        return [*self.tables, *self.plots]


def write(kind: str, study: StudyResults, target: Path | None = None, **options: Any) -> Artifacts:
    """Write a kind of table in all of its forms, and its figures.

    Args:
        kind: one of `TABLES`.
        study: whose trials it follows from.
        target: a folder. Default: the study's.
        options: what beside the trials makes it, as `gatelab report --check` makes it again.

    Raises AnalysisUnavailable where the study has no such table.
    """
    spec, target = TABLES[kind], target or study.folder.study(study.study).path
    metric = options.get("metric", DEFAULT_METRIC)
    ending = "" if metric == DEFAULT_METRIC else f"-{file_stem(metric)}"
    result = spec.compute(study, options)
    tables = write_table(result, target / f"{spec.stem}{ending}", make_stamp(study.runs, kind, **options))
    drawn, problems = draw(lambda: spec.figures(result, study, options), spec.stem)
    plots: list[Path] = []
    for name, drawing in drawn.items():
        plots += save_files(drawing.files, target / name.replace(spec.stem, f"{spec.stem}{ending}", 1))
    return Artifacts(result, spec.tables(result), tables, plots, problems=problems)


def write_table(result: Analysis, stem: Path, stamp: Stamp) -> list[Path]:
    """Write a table in all of its forms beside each other; return the paths."""
    paths = []
    for form in FORMS:
        path = stem.with_name(f"{stem.name}.{form}")
        with replacing(path) as temporary:
            temporary.write_text(render(result, form, stamp), encoding="utf-8")
        paths.append(path)
    return paths


def render(result: Analysis, form: str, stamp: Stamp) -> str:
    """Return a table in one of its forms, with its stamp."""
    if form == "csv":
        return to_csv(with_origin(result.frame(), stamp))
    if form == "json":
        return json_with_provenance(result.to_dict(), stamp)
    text = "\n".join(map(RENDERERS[form], TABLES[stamp.table].tables(result)))
    return with_provenance(text, form, stamp)
