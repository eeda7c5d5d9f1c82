"""Letters that the usual font of figures lacks: another installed font draws them, or a line says which are boxes."""

import functools
import logging
import unicodedata
from contextlib import suppress

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text

PLACEHOLDERS = "Last Resort"
"""Begins the name of a font that has a box for every letter."""

MOST_NAMED = 40
"""Letters that a warning names."""

_told: set[str] = set()  # letters that a warning was about

logger = logging.getLogger(__name__)


def give_fonts(figure: Figure) -> None:
    """Let each text of a figure be drawn in fonts that have its letters, as far as some are installed.

    Logs a warning of letters that none has, once for each.
    """
    boxes: dict[str, None] = {}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        families = text.get_fontfamily()
        if missing := _missing(text.get_text(), families):
            others, lacking = _others(missing)
            text.set_fontfamily([*families, *others])
            boxes |= dict.fromkeys(lacking)
    news = "".join(letter for letter in boxes if letter not in _told)
    if news:
        _told.update(news)
        shown = news if len(news) <= MOST_NAMED else f"{news[:MOST_NAMED]}…"
        logger.warning(
            "figures show boxes for %s: no font here has them; install one that has (Noto Sans CJK, say)", shown
        )


def _missing(text: str, families: list[str]) -> str:
    """Return the letters of a text that none of some families has, each once."""
    if text.isascii():
        return ""
    fonts = [_letters(findfont(FontProperties(family=[family]))) for family in families]
    lacking = (letter for letter in dict.fromkeys(text) if not any(ord(letter) in font for font in fonts))
    # Marks and what joins letters are not seen by themselves, nor are spaces.
    return "".join(letter for letter in lacking if unicodedata.category(letter)[0] not in "CMZ")


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """Return the code points that a font's file can draw: none where it holds pictures, or cannot be read."""
    with suppress(OSError, RuntimeError, ValueError):
        font = get_font(path)
        if font.scalable:
            return frozenset(font.get_charmap())
    return frozenset()


@functools.cache
def _others(missing: str) -> tuple[list[str], str]:
    """Return families that have letters, each some that those before have not; and the letters that none has."""
    found = []
    for family, path in _families().items():
        left = "".join(letter for letter in missing if ord(letter) not in _letters(path))
        if left != missing:
            found.append(family)
        if not (missing := left):
            break
    return found, missing


@functools.cache
def _families() -> dict[str, str]:
    """Map the families that are installed to a file each: sans serif first, as all else in figures is."""
    known = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - known):  # matplotlib lists fonts at its first start only
        with suppress(OSError, RuntimeError, ValueError):
            fontManager.addfont(path)

    def oddness(entry: FontEntry) -> tuple[bool, bool, bool, str, str]:
        upright = entry.style == "normal" and entry.stretch == "normal"
        return not upright, entry.weight != 400, "Sans" not in entry.name, entry.name, entry.fname

    files: dict[str, str] = {}
    for entry in sorted(fontManager.ttflist, key=oddness):
        if not entry.name.startswith(PLACEHOLDERS):
            files.setdefault(entry.name, entry.fname)
    return files
