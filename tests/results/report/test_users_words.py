"""Words of users are text and no more, wherever they go: figures, tables, the terminal, names of files."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from gatelab.results.analyses.comparison import compare
from gatelab.results.report.write import write_study
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.views import style
from gatelab.results.views.comparison import comparison_table
from gatelab.results.views.style import render_figure
from gatelab.results.views.table import Column, Table, to_csv, to_html, to_latex, to_markdown
from gatelab.text import file_stem, visible

NASTY = ["$\\foo$", "cost $5 and $6", "注意力 🙂", "_a_ *b* `c` [d](e) ~~f~~ &lt; <g>", ""]
HOSTILE = "\x1b[31m\u202ered"
"""What a study file may not hold, and a record of another origin may."""


@pytest.fixture
def named(laboratory: Callable[..., Any]) -> Any:
    """A finished study whose levels have such names, and whose question has several lines."""
    levels = {name: {"model.layers": 1 + index} for index, name in enumerate(NASTY)}
    lab = laboratory(axes={"size": levels}, baseline={"size": NASTY[0]}, question="In lines?\n\n# So\n")
    for variant in range(len(NASTY)):
        for seed in range(2):
            lab.finish(variant, seed)
    return lab


@pytest.mark.filterwarnings("error")
def test_a_study_with_such_levels_is_written_whole(named: Any) -> None:
    """Tables, curves and Parquet: no formula is read, no letter warned of, nothing left out."""
    written = write_study(named.folder, named.name)
    assert written.problems == []
    assert {path.name for path in written.plots} >= {f"curves-validation-loss.{kind}" for kind in ("png", "svg", "pdf")}
    assert len(written.parquet) == 6
    for path in written.tables:
        assert not {"\x1b", "\u202e"} & set(path.read_text(encoding="utf-8")), path
        assert "# So" not in path.read_text(encoding="utf-8"), path


def test_words_of_a_figure_are_no_formulas() -> None:
    """A title, a legend and a name of a tick stand as they were typed; the numbers of a scale stay formulas."""
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(NASTY[0])
    axes.plot([1, 2], [1e-5, 1e5], label=NASTY[1])
    axes.set_yscale("log")
    axes.legend()
    render_figure(figure)
    assert not axes.title.get_parse_math()
    assert not axes.get_legend().get_texts()[0].get_parse_math()
    assert all(label.get_parse_math() for label in axes.get_yticklabels())


def test_a_letter_that_the_font_lacks_is_no_warning() -> None:
    """Matplotlib would print a line with its source for each: boxes are seen anyway. Other warnings are told."""
    figure = Figure()
    figure.suptitle(NASTY[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render_figure(figure)["png"]


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(named: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named in a line, beside all tables, the other figures and Parquet."""

    def fail(figure: Figure) -> dict[str, bytes]:
        raise ValueError("no such glyph\nand much more")

    monkeypatch.setattr(style, "render_figure", fail)
    written = write_study(named.folder, named.name)
    assert written.problems == ["figure curves-validation-loss cannot be drawn: ValueError: no such glyph"]
    assert (len(written.parquet), written.plots) == (6, [])
    assert all(path.exists() for path in written.tables)
    assert style.draw(lambda: {"a": 1 / 0}, "effects") == (  # type: ignore[dict-item]
        {},
        ["figures of effects cannot be drawn: ZeroDivisionError: division by zero"],
    )


def table(text: str) -> Table:
    """A table with a text everywhere."""
    return Table(text, (Column(text),), ((text,),), (True,), (text,))


def test_markdown_shows_what_was_typed() -> None:
    """No emphasis, code, link, formula, tag or entity is made of a name."""
    text = to_markdown(table(NASTY[3]))
    assert r"\_a\_ \*b\* \`c\` [d]\(e) \~\~f\~\~ \&lt; \<g>" in text
    assert r"\$5 and \$6" in to_markdown(table(NASTY[1]))
    assert "bits_per_byte" in to_markdown(table("bits_per_byte"))
    assert r"a\|b c" in to_markdown(table("a|b\nc"))


@pytest.mark.parametrize("render", [to_markdown, to_latex, to_html])
def test_control_characters_are_seen(render: Callable[[Table], str]) -> None:
    """A name that would colour or turn the reader's terminal is written with its escapes."""
    assert not {"\x1b", "\u202e"} & set(render(table(HOSTILE)))


def test_csv_has_no_control_characters() -> None:
    """A line feed is quoted, the others are escapes."""
    import pyarrow as pa

    assert to_csv(pa.table({"a\x07": ["b\x1bc", "d\ne"]})).splitlines() == ["a\\x07", "b\\x1bc", '"d', 'e"']


def test_latex_comments_stay_in_their_line() -> None:
    """A note or title with line feeds is no text of the paper."""
    lines = to_latex(table("one\ntwo\u2028three")).splitlines()
    assert all(line.startswith(("%", "  ", "\\")) for line in lines)
    assert "$-$0.5 & " in to_latex(Table("t", (Column("a"), Column("b")), (("-0.5", "1e-3, 2026-01-02"),)))


def test_file_names_are_safe_and_short() -> None:
    """A metric's name holds the names of folders of somebody's text."""
    assert file_stem("validation/loss") == "validation-loss"
    assert file_stem("validation/loss/a b$\x1b..") == "validation-loss-a-b--.."
    long = file_stem("validation/loss/" + "é" * 250)
    assert len(long.encode()) <= 180
    assert long != file_stem("validation/loss/" + "é" * 251)
    assert visible("a\tb\nc\x9b\udce9") == "a\tb\nc\\x9b\\udce9"


def test_an_empty_name_is_not_a_dash(named: Any) -> None:
    """A dash says that the axis makes no difference."""
    shown = comparison_table(compare(runs_from_journals(named.folder, named.name)))
    assert sorted(row[0] for row in shown.rows) == sorted(name or '""' for name in NASTY)
