"""A table for people, and how it is written as Markdown, LaTeX and HTML; a frame as CSV."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import pyarrow as pa


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
    emphasised: tuple[bool, ...] = ()
    """By row; (): none is."""
    notes: tuple[str, ...] = ()

    @property
    def styled_rows(self) -> Iterator[tuple[tuple[str, ...], bool]]:
        """Yield each row, and whether it is emphasised."""
        return zip(self.rows, self.emphasised or (False,) * len(self.rows), strict=True)


def to_markdown(table: Table) -> str:
    """Render a table as GitHub-flavoured Markdown, the title above and the notes below."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"

    rows = [line([f"**{cell}**" if bold and cell else cell for cell in row]) for row, bold in table.styled_rows]
    rule = line(["---:" if column.numeric else ":---" for column in table.columns])
    notes = [f"\n{_markup_off(note)}" for note in table.notes]
    return (
        "\n".join([f"**{table.title}**\n", line([column.heading for column in table.columns]), rule, *rows, *notes])
        + "\n"
    )


def _markdown(cell: str) -> str:
    """Escape a cell so that it is text and no more, whatever a level is called."""
    return _markup_off(cell).replace("|", "\\|").replace("\n", " ")


def _markup_off(text: str) -> str:
    """Escape text so that nothing in it is a tag of HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)


def to_latex(table: Table) -> str:
    """Render a table as LaTeX with booktabs rules; notes as comments beneath."""

    def line(cells: list[str]) -> str:
        return "  " + " & ".join(_latex(cell) for cell in cells) + r" \\"

    def bold(cells: tuple[str, ...]) -> str:
        return "  " + " & ".join(rf"\textbf{{{_latex(cell)}}}" if cell else "" for cell in cells) + r" \\"

    rows = [bold(row) if best else line(list(row)) for row, best in table.styled_rows]
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    return (
        "\n".join(
            [
                rf"% {table.title}; needs \usepackage{{booktabs}}",
                rf"\begin{{tabular}}{{{alignment}}}",
                r"  \toprule",
                line([column.heading for column in table.columns]),
                r"  \midrule",
                *rows,
                r"  \bottomrule",
                r"\end{tabular}",
                *(f"% {text}" for note in table.notes for text in note.splitlines()),
            ]
        )
        + "\n"
    )


def to_html(table: Table) -> str:
    """Render a table as HTML that scrolls within its own box where it is too wide, and the notes beneath.

    It needs no style sheet: columns of numbers are aligned to the right, emphasised rows are strong.
    """
    aligned = [' style="text-align: right"' if column.numeric else "" for column in table.columns]

    def cells(row: tuple[str, ...], strong: bool) -> str:
        texts = [f"<strong>{escape(cell)}</strong>" if strong and cell else escape(cell) for cell in row]
        first = f'<th scope="row"{aligned[0]}>{texts[0]}</th>'
        return first + "".join(f"<td{place}>{text}</td>" for place, text in zip(aligned[1:], texts[1:], strict=True))

    heads = "".join(
        f'<th scope="col"{place}>{escape(column.heading).replace("/", "/<wbr>")}</th>'  # names of metrics may break
        for place, column in zip(aligned, table.columns, strict=True)
    )
    rows = [
        ('<tr class="emphasised">' if strong else "<tr>") + cells(row, strong) + "</tr>"
        for row, strong in table.styled_rows
    ]
    return "\n".join(
        [
            f'<div class="grid" role="group" tabindex="0" aria-label="{escape(table.title)}" style="overflow-x: auto">',
            f"<table>\n<caption>{escape(table.title)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>",
            *rows,
            "</tbody>\n</table>\n</div>",
            *(f'<p class="note">{escape(note)}</p>' for note in table.notes),
        ]
    )


def to_csv(frame: pa.Table) -> str:
    """Render a frame as CSV, with numbers in full precision; null is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(frame.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in frame.columns), strict=True))
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
    return "".join(LATEX.get(character, character) for character in text)
