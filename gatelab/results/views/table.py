"""A table for people, and how it is written as Markdown, LaTeX and HTML; a frame as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

import pyarrow as pa

from gatelab.text import visible


@dataclass(frozen=True)
class Column:
    """A heading and how its cells stand."""

    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table as it is read."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasised: tuple[bool | tuple[bool, ...], ...] = ()
    """By row: whether all of it is, or which of its cells are; (): nothing is."""
    notes: tuple[str, ...] = ()

    @property
    def styled_rows(self) -> Iterator[tuple[tuple[str, ...], tuple[bool, ...]]]:
        """Yield each row, and which of its cells are emphasised."""
        for row, strong in zip(self.rows, self.emphasised or (False,) * len(self.rows), strict=True):
            yield row, strong if isinstance(strong, tuple) else (strong,) * len(row)


def to_markdown(table: Table) -> str:
    """Render a table as GitHub-flavoured Markdown, the title above and the notes below."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def cells(row: tuple[str, ...], strong: tuple[bool, ...]) -> Iterator[str]:
        for text, bold in zip(map(_markdown_cell, row), strong, strict=True):
            yield f"**{text}**" if bold and text else text

    return (
        "\n".join(
            [
                f"**{_markdown_cell(table.title)}**\n",
                line(_markdown_cell(column.heading) for column in table.columns),
                line("---:" if column.numeric else ":---" for column in table.columns),
                *(line(cells(*styled)) for styled in table.styled_rows),
                *(f"\n{_markdown(note)}" for note in table.notes),
            ]
        )
        + "\n"
    )


_MARKUP = re.compile(
    r"""[\\`*$]                              # of code, emphasis and formulas
    | (?<![^\W_])_ | _(?![^\W_])             # emphasis: at the beginning or the end of a word
    | ~(?=~) | (?<=~)~                       # struck out
    | <(?=[A-Za-z/!?])                       # a tag
    | &(?=\#?\w+;)                           # an entity
    | (?<=\])[(\[]                           # a link
    | ^\#(?=\#*\s)""",  # a heading
    re.VERBOSE,
)


def _markdown(text: str) -> str:
    """Escape text so that it is text and no more, whatever a level is called."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", visible(text))


def _markdown_cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|").replace("\n", " ")


def to_latex(table: Table) -> str:
    """Render a table as LaTeX with booktabs rules; notes as comments beneath."""

    def line(cells: Iterable[str]) -> str:
        return f"  {' & '.join(cells)} \\\\"

    def cells(row: tuple[str, ...], strong: tuple[bool, ...]) -> Iterator[str]:
        for text, bold in zip(map(_latex, row), strong, strict=True):
            yield rf"\textbf{{{text}}}" if bold and text else text

    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    return (
        "\n".join(
            [
                rf"% {_one_line(table.title)}; needs \usepackage{{booktabs}}",
                rf"\begin{{tabular}}{{{alignment}}}",
                r"  \toprule",
                line(_latex(column.heading) for column in table.columns),
                r"  \midrule",
                *(line(cells(*styled)) for styled in table.styled_rows),
                r"  \bottomrule",
                r"\end{tabular}",
                *(f"% {text}" for note in table.notes for text in visible(note).splitlines()),
            ]
        )
        + "\n"
    )


def to_html(table: Table) -> str:
    """Render a table as HTML that scrolls within its own box where it is too wide, and the notes beneath.

    It needs no style sheet: columns of numbers are aligned to the right, what is emphasised is strong.
    """
    aligned = [' style="text-align: right"' if column.numeric else "" for column in table.columns]

    def cells(row: tuple[str, ...], strong: tuple[bool, ...]) -> str:
        texts = [
            f"<strong>{text}</strong>" if bold and text else text
            for text, bold in zip(map(_html, row), strong, strict=True)
        ]
        first = f'<th scope="row"{aligned[0]}>{texts[0]}</th>'
        return first + "".join(f"<td{place}>{text}</td>" for place, text in zip(aligned[1:], texts[1:], strict=True))

    heads = "".join(
        f'<th scope="col"{place}>{_html(column.heading).replace("/", "/<wbr>")}</th>'  # names of metrics may break
        for place, column in zip(aligned, table.columns, strict=True)
    )
    rows = [
        ('<tr class="emphasised">' if all(strong) else "<tr>") + cells(row, strong) + "</tr>"
        for row, strong in table.styled_rows
    ]
    title = _html(table.title)
    return "\n".join(
        [
            f'<div class="grid" role="group" tabindex="0" aria-label="{title}" style="overflow-x: auto">',
            f"<table>\n<caption>{title}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>",
            *rows,
            "</tbody>\n</table>\n</div>",
            *(f'<p class="note">{_html(note)}</p>' for note in table.notes),
        ]
    )


def _html(text: str) -> str:
    return escape(visible(text))


def to_csv(frame: pa.Table) -> str:
    """Render a frame as CSV, with numbers in full precision; null is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(map(visible, frame.column_names))
    for row in zip(*(column.to_pylist() for column in frame.columns), strict=True):
        writer.writerow(visible(value) if isinstance(value, str) else value for value in row)
    return out.getvalue()


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "Δ": r"$\Delta$",
    "–": "--",
    "†": r"$^\dagger$",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "η": r"$\eta$",
    "²": "$^2$",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",  # which LaTeX's oldest encoding, its default, has no room for
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _latex(text: str) -> str:
    whole = "".join(LATEX.get(character, character) for character in _one_line(text))
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", whole)  # a minus, where a hyphen would be set


def _one_line(text: str) -> str:
    return visible(text).replace("\n", " ")
