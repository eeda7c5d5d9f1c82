"""Words of users: what of them acts or is secret, and how they go to a terminal, into a file, or name one."""

import hashlib
import re
import unicodedata

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and line feed
    "\u2028\u2029"  # separators of lines and paragraphs
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of reading
    "\ud800-\udfff]"  # bytes of a file name that is no UTF-8
)
_UNSEEN_IN_A_LINE = re.compile(f"[\t\n]|{_UNSEEN.pattern}")

_SIGNED_IN = re.compile(r"(?<=://)([^\s/?#@:]*)(:\S*)?@")  # NAME:PASSWORD@ of an address, or TOKEN@
_SECRET_OPTION = re.compile(r"(?i)([?&][^\s=&]*(?:passw|pwd|secret|token|odbc_connect)[^\s=&]*=)[^\s&]+")

_LONGEST_NAME = 180  # bytes: a file system takes 255, and the whole name has other parts


def control_character(text: str) -> str | None:
    """Return the first character of a line of text that is not seen but acts: tab and line feed are such, too."""
    found = None if text.isprintable() else _UNSEEN_IN_A_LINE.search(text)
    return found and found[0]


def visible(text: str) -> str:
    r"""Write control characters of a text as escapes, `\x1b` say, so that they are seen and do nothing else.

    Tabs and line feeds stay.
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def without_secrets(text: str) -> str:
    """Return an address, or words with addresses in them, without their passwords and tokens: `***` instead.

    Of an address with an `@` behind its port more is left out than need be: a password may hold a slash.
    """
    text = _SIGNED_IN.sub(lambda match: f"{match[1]}:***@" if match[2] else "***@", text)
    return _SECRET_OPTION.sub(r"\1***", text)


def file_stem(text: str) -> str:
    """Make a part of a file's name of a text: letters, digits, `.`, `_`, `=`, `+`, `-` stay, all else becomes `-`.

    A text that is too long for a name is cut, and ends in its hash.
    """
    name = re.sub(r"[^\w.=+-]", "-", unicodedata.normalize("NFC", text))
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    kept = name.encode()[: _LONGEST_NAME - 13].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
