"""Words in any script are drawn where some installed font has them; where none has, one line says so."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from gatelab.results.views import fonts
from gatelab.results.views.style import render_figure


def build_font(path: Path, family: str, letters: str) -> Path:
    """A font in which each of some letters is a black square."""
    names = {ord(letter): f"uni{ord(letter):04X}" for letter in letters}
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: square for name in (".notdef", *names.values())})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in (".notdef", *names.values())})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def no_font_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is installed on the machine of whoever runs the tests, and what a test before has found, is forgotten."""

    def forget() -> None:
        for cached in (fonts._families, fonts._others, fonts._letters):
            cached.cache_clear()
        fonts._told.clear()

    bundled = [entry for entry in fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(fontManager, "ttflist", bundled)
    monkeypatch.setattr(fonts, "findSystemFonts", list)
    forget()
    yield
    forget()


def pixels(words: str) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """A figure with these words as its title and the name of a tick, and the families of its title's fonts."""
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.set_title(words)
    axes.set_yticks([0.5], labels=[words])
    files = render_figure(figure)
    assert all(files[suffix] for suffix in ("png", "svg", "pdf"))
    assert axes.get_yticklabels()[0].get_fontfamily() == axes.title.get_fontfamily()
    return np.frombuffer(files["png"], dtype=np.uint8), list(axes.title.get_fontfamily())


def test_an_installed_font_draws_what_the_usual_one_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that was installed after matplotlib made its list; several where none has all; no word is said."""
    _, before = pixels("a 注 意")
    fonts._families.cache_clear()
    fonts._others.cache_clear()
    caplog.clear()
    installed = [
        build_font(tmp_path / f"{name}.ttf", name, letters) for name, letters in {"A": "注力", "B": "意"}.items()
    ]
    (tmp_path / "no.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [*map(str, installed), str(tmp_path / "no.ttf")])
    with caplog.at_level(logging.WARNING):
        _, families = pixels("a 注 意")
    assert families == [*before, "A", "B"]
    assert caplog.text == ""


def test_what_no_font_has_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Boxes are seen by whoever opens the figure; who made it is told which letters, and what mends it."""
    with caplog.at_level(logging.WARNING):
        for words in ("注意", "a 意", "注意", "plain ß − ü"):
            pixels(words)
    [record] = caplog.records
    assert record.getMessage() == (
        "figures show boxes for 注意: no font here has them; install one that has (Noto Sans CJK, say)"
    )


def test_what_the_usual_font_has_is_drawn_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another font that has these letters, too, changes nothing."""
    drawn, families = pixels("Größe −1 × β")
    font = build_font(tmp_path / "A.ttf", "A", "Größe −1×β注")
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [str(font)])
    again, same = pixels("Größe −1 × β")
    assert np.array_equal(drawn, again)
    assert families == same
