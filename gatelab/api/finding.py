"""The result of an analysis, and a figure, as objects that show themselves in a notebook."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa

from gatelab.results.analyses.analysis import Analysis
from gatelab.results.views.table import Table, to_html, to_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gatelab.results.report.artifacts import Artifacts
    from gatelab.results.report.context import StudyResults

Result = TypeVar("Result", bound=Analysis)


class Finding(Generic[Result]):
    """The result of an analysis, with its tables and figures. In a notebook it shows its tables."""

    def __init__(self, kind: str, study: "StudyResults", options: Mapping[str, Any]) -> None:
        from gatelab.results.report.artifacts import TABLES

        self._kind, self._study, self._options, self._spec = kind, study, dict(options), TABLES[kind]
        self.result: Result = self._spec.compute(study, self._options)  # type: ignore[assignment]

    @cached_property
    def tables(self) -> list[Table]:
        """Its tables, for people."""
        return self._spec.tables(self.result)

    @cached_property
    def figures(self) -> "dict[str, Plot]":
        """Its figures by name."""
        made = self._spec.figures(self.result, self._study, self._options)
        return {name: Plot(name, figure) for name, figure in made.items()}

    def frame(self) -> pa.Table:
        """Return its numbers as a tidy table in full precision: what CSV and Parquet hold."""
        return self.result.frame()

    def to_pandas(self) -> Any:
        """Return the same as a pandas DataFrame."""
        return self.frame().to_pandas()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values; None where there is no such number."""
        return self.result.to_dict()

    def write(self, folder: str | Path | None = None) -> "Artifacts":
        """Write its tables (md, tex, html, csv, json) and figures. Default folder: the study's."""
        from gatelab.results.report.artifacts import write

        return write(self._kind, self._study, None if folder is None else Path(folder), **self._options)

    def __repr__(self) -> str:
        return "\n".join(map(to_markdown, self.tables))

    def _repr_html_(self) -> str:
        return "\n".join(map(to_html, self.tables))


class Plot:
    """A figure that shows itself in a notebook, whatever matplotlib's backend is there."""

    def __init__(self, name: str, figure: "Figure") -> None:
        from gatelab.results.views.style import take_literally

        take_literally(figure)  # names of levels are no formulas, however the figure is saved
        self.name, self.figure = name, figure

    def save(self, folder: str | Path = ".") -> list[Path]:
        """Write it as PNG, SVG and PDF under its name; return the paths."""
        from gatelab.results.views.style import save_figure

        return save_figure(self.figure, Path(folder) / self.name)

    def _repr_png_(self) -> bytes:
        from gatelab.results.views.style import render_figure

        return render_figure(self.figure)["png"]

    def __repr__(self) -> str:
        return f"Plot({self.name!r})"
