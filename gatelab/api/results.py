"""Results of studies as objects: a runs folder, the results of a study."""

import html
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from gatelab.ablations.errors import nearest
from gatelab.api.finding import Finding, Plot
from gatelab.names import search_of
from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.store.layout import DEFAULT_ROOT, NotFound, RunsFolder
from gatelab.text import file_stem

if TYPE_CHECKING:
    from gatelab.results.analyses.claims import Claims
    from gatelab.results.analyses.comparison import Comparison, Comparisons
    from gatelab.results.analyses.effects import Effects
    from gatelab.results.analyses.learning_rates import LearningRates
    from gatelab.results.analyses.pivot import Pivot
    from gatelab.results.analyses.scaling import Scaling
    from gatelab.results.analyses.stability import Stability
    from gatelab.results.report.context import StudyResults
    from gatelab.results.store.records import StudyRecord
    from gatelab.training.evals.trained_model import TrainedModel

Folder = str | Path
"""A runs folder: studies, trials and data."""


class Results:
    """Results of a study, read from its runs folder when first asked for. It shows its comparison."""

    def __init__(self, folder: RunsFolder, study: str) -> None:
        self._folder, self.study = folder, study

    @cached_property
    def _results(self) -> "StudyResults":
        from gatelab.results.report.context import read_results

        return read_results(self._folder, self.study)

    def refresh(self) -> "Results":
        """Return the results as they are now, of a study that may be running."""
        return Results(self._folder, self.study)

    @property
    def folder(self) -> Path:
        """The study's folder, with its tables, plots and report."""
        return self._folder.study(self.study).path

    @property
    def record(self) -> "StudyRecord":
        """The study as it was launched."""
        return self._results.record

    @property
    def variants(self) -> list[str]:
        """Labels of its variants."""
        return list(self.record.variants)

    @property
    def runs(self) -> pa.Table:
        """A row for each trial: variant, seed, outcome, summary metrics, provenance. `.to_pandas()` is pyarrow's."""
        return self._results.runs

    def metrics(self, *names: str, layers: bool | None = None) -> pa.Table:
        """Return journalled values in long form: trial, variant, seed, step, layer, name, value, time.

        Args:
            names: of metrics, patterns as those of file names. Default: all.
            layers: values of layers only (True), of the whole model only (False), or both.
        """
        from gatelab.results.store.metrics import metrics_from_journals

        return metrics_from_journals(self._folder, self.study, names or ("*",), layers)

    def comparison(self, metric: str = DEFAULT_METRIC, margin: float | None = None) -> "Finding[Comparison]":
        """Compare the variants with their baseline: means, paired differences, intervals, tests, verdicts.

        A difference within `margin`, in the metric's unit, counts as none. Raises WrongRequest for an unknown metric.
        """
        return Finding("comparison", self._results, {"metric": metric, "margin": margin})

    def pivot(self, rows: Collection[str], columns: Collection[str], metric: str = DEFAULT_METRIC) -> "Finding[Pivot]":
        """Spread a comparison over axes, some down and some across. Raises WrongRequest for an unknown name."""
        options = {"metric": metric, "margin": None, "rows": list(rows), "columns": list(columns)}
        return Finding("pivot", self._results, options)

    def claims(self) -> "Finding[Claims]":
        """Judge what the study claimed beforehand. Raises AnalysisUnavailable."""
        return Finding("claims", self._results, {})

    def effects(self, metric: str = DEFAULT_METRIC) -> "Finding[Effects]":
        """Estimate what each axis does to a metric, and their interactions. Raises AnalysisUnavailable."""
        return Finding("effects", self._results, {"metric": metric})

    def scaling(self, bootstraps: int = 4000) -> "Finding[Scaling]":
        """Fit how loss falls with size and training. Raises AnalysisUnavailable without a ladder."""
        return Finding("scaling", self._results, {"bootstraps": bootstraps})

    def learning_rates(self) -> "Finding[LearningRates]":
        """Return what the search of the study's learning rates found. Raises NotFound, AnalysisUnavailable."""
        searched = search_of(self.study)
        results = self if searched == self.study else Results(self._folder, searched)
        return Finding("tolerance", results._results, {})

    def stability(self, variants: Collection[str] = ()) -> "Finding[Stability]":
        """Score how stable training was, of some variants or of all. Raises NotFound, AnalysisUnavailable."""
        for variant in variants:
            self._check_variant(variant)
        return Finding("stability", self._results, {"variants": list(variants)})

    def diagnostics(self) -> "Finding[Comparisons]":
        """Compare attention sinks, massive activations and gate scores. Raises AnalysisUnavailable."""
        return Finding("diagnostics", self._results, {})

    def evaluation(self) -> "Finding[Comparisons]":
        """Compare what trained models were asked by `gatelab evaluate`. Raises AnalysisUnavailable."""
        return Finding("evaluation", self._results, {})

    def curves(self, metric: str = DEFAULT_METRIC) -> Plot:
        """Plot a metric over training: means and ranges over seeds, paired differences. Raises AnalysisUnavailable."""
        from gatelab.metrics import find_spec
        from gatelab.results.analyses.curves import read_curves
        from gatelab.results.store.metric_specs import specs_of
        from gatelab.results.views.curves import plot_curves

        metrics = read_curves(self._folder, self.study, metric, self._results.last_step)
        baselines = {name: variant.baseline for name, variant in self.record.variants.items()}
        spec = find_spec(metric, specs_of(self.runs))
        figure = plot_curves(metrics, metric, baselines, self.study, spec)
        return Plot(f"curves-{file_stem(metric)}", figure)

    def report(self, path: Folder | None = None, metric: str = DEFAULT_METRIC) -> Path:
        """Write one HTML page of all this, and its figures; return its path.

        Default: report.html in the study's folder. Raises WrongRequest for an unknown metric.
        """
        from gatelab.results.report.page import write_report

        return write_report(self._folder, self.study, None if path is None else Path(path), metric)[0]

    def export(self, folder: Folder) -> list[Path]:
        """Write runs, metrics, layers, evaluations, comparisons and fits as Parquet; return the paths."""
        from gatelab.results.report.parquet import export_study

        return export_study(self._folder, self.study, Path(folder))

    def load_model(self, variant: str, seed: int = 0, device: str = "auto") -> "TrainedModel":
        """Load the trained model of a finished trial: `.model` is the decoder, in evaluation mode.

        Args:
            variant: a label, as in `variants`.
            seed: of the trial.
            device: auto, cpu, cuda or cuda:N.

        Raises:
            NotFound: there is no such trial, or it has not finished.
            FileNotFoundError: its checkpoint is gone.
        """
        from gatelab.orchestrator.evaluation import eval_jobs, load_model

        self._check_variant(variant)
        jobs = eval_jobs(self._folder, self.study, lambda trial: (trial.variant, trial.seed) == (variant, seed))
        if not jobs:
            raise NotFound(f"no trial of {variant!r} at seed {seed} has finished in {self.study}")
        return load_model(self._folder, jobs[0], device)

    def _check_variant(self, variant: str) -> None:
        if variant not in self.variants:
            raise NotFound(f"no variant {variant!r} in {self.study}; {nearest(variant, self.variants)}")

    def __repr__(self) -> str:
        outcomes: list[str] = self.runs["outcome"].to_pylist()
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
        return f"Results({self.study!r}: {len(self.variants)} variants; trials: {counts})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.comparison()._repr_html_()}"


class NoStudy(NotFound, KeyError):
    """There is no such study in a runs folder."""

    __str__ = Exception.__str__  # KeyError's would quote the message


class Runs(Mapping[str, Results]):
    """The studies of a runs folder, by name."""

    def __init__(self, folder: RunsFolder) -> None:
        self._folder = folder

    def __getitem__(self, study: str) -> Results:
        try:
            self._folder.study(study).read()
        except NotFound as error:  # it names the studies that there are
            raise NoStudy(str(error)) from None
        return Results(self._folder, study)

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.studies)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"Runs({str(self._folder.root)!r}: {', '.join(self) or 'no studies yet'})"


def open(folder: Folder = DEFAULT_ROOT) -> Runs:
    """Open a runs folder: `gl.open("gatelab-runs")["gates"]` are the results of a study.

    Raises NotFound where there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise NotFound(f"no runs folder {str(path)!r}: gatelab run STUDY.yaml --runs {path} makes one")
    return Runs(RunsFolder(path))
