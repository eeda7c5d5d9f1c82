"""A table, and how it is written as Markdown, LaTeX and HTML."""

import math
import re
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Column:
    """A heading and how its cells stand."""

    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as it is read."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasised: tuple[bool, ...]  # by row
    notes: tuple[str, ...] = ()


def to_markdown(grid: Grid) -> str:
    """A GitHub-flavoured Markdown table, the title above and the notes below."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"

    rows = [
        line([f"**{cell}**" if bold and cell else cell for cell in row])
        for row, bold in zip(grid.rows, grid.emphasised, strict=True)
    ]
    rule = line(["---:" if column.numeric else ":---" for column in grid.columns])
    notes = [f"\n{_markup_off(note)}" for note in grid.notes]
    return (
        "\n".join([f"**{grid.title}**\n", line([column.heading for column in grid.columns]), rule, *rows, *notes])
        + "\n"
    )


def _markdown(cell: str) -> str:
    """A cell that is text and no more, whatever a level is called."""
    return _markup_off(cell).replace("|", "\\|").replace("\n", " ")


def _markup_off(text: str) -> str:
    """Text in which nothing is a tag of HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)


def to_latex(grid: Grid) -> str:
    """A LaTeX table with booktabs rules; notes as comments beneath."""

    def line(cells: list[str]) -> str:
        return "  " + " & ".join(_latex(cell) for cell in cells) + r" \\"

    def bold(cells: tuple[str, ...]) -> str:
        return "  " + " & ".join(rf"\textbf{{{_latex(cell)}}}" if cell else "" for cell in cells) + r" \\"

    rows = [bold(row) if best else line(list(row)) for row, best in zip(grid.rows, grid.emphasised, strict=True)]
    alignment = "".join("r" if column.numeric else "l" for column in grid.columns)
    return (
        "\n".join(
            [
                rf"% {grid.title}; needs \usepackage{{booktabs}}",
                rf"\begin{{tabular}}{{{alignment}}}",
                r"  \toprule",
                line([column.heading for column in grid.columns]),
                r"  \midrule",
                *rows,
                r"  \bottomrule",
                r"\end{tabular}",
                *(f"% {text}" for note in grid.notes for text in note.splitlines()),
            ]
        )
        + "\n"
    )


def to_html(grid: Grid) -> str:
    """An HTML table that scrolls within its own box where it is too wide, and the notes beneath.

    It needs no style sheet: columns of numbers are aligned to the right, emphasised rows are strong.
    """
    aligned = [' style="text-align: right"' if column.numeric else "" for column in grid.columns]

    def cells(row: tuple[str, ...], strong: bool) -> str:
        texts = [f"<strong>{escape(cell)}</strong>" if strong and cell else escape(cell) for cell in row]
        first = f'<th scope="row"{aligned[0]}>{texts[0]}</th>'
        return first + "".join(f"<td{place}>{text}</td>" for place, text in zip(aligned[1:], texts[1:], strict=True))

    heads = "".join(
        f'<th scope="col"{place}>{escape(column.heading).replace("/", "/<wbr>")}</th>'  # names of metrics may break
        for place, column in zip(aligned, grid.columns, strict=True)
    )
    rows = [
        ('<tr class="emphasised">' if strong else "<tr>") + cells(row, strong) + "</tr>"
        for row, strong in zip(grid.rows, grid.emphasised, strict=True)
    ]
    return "\n".join(
        [
            f'<div class="grid" role="group" tabindex="0" aria-label="{escape(grid.title)}" style="overflow-x: auto">',
            f"<table>\n<caption>{escape(grid.title)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>",
            *rows,
            "</tbody>\n</table>\n</div>",
            *(f'<p class="note">{escape(note)}</p>' for note in grid.notes),
        ]
    )


def p_text(value: float) -> str:
    """A p-value: 0.032, <0.001, – if there is none; one that rounding would put on the other side of 0.05 in full."""
    if math.isnan(value) or value < 0.001:
        return "–" if math.isnan(value) else "<0.001"
    return f"{value:.3f}" if (value <= 0.05) == (round(value, 3) <= 0.05) else f"{math.ceil(value * 1e4) / 1e4:.4f}"


def or_dash(value: float, form: str) -> str:
    """Format a number, or a dash where there is none."""
    return f"{value:{form}}" if math.isfinite(value) else "–"


def number(value: float) -> str:
    """A mean for people."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:,.0f}"


_LATEX = {
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
    return "".join(_LATEX.get(character, character) for character in text)


def finite(value: Any) -> Any:
    """JSON values with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
