"""Which tokenizer a configuration names, and how large its vocabulary is. Reads JSON only: no NumPy, no torch."""

import functools
import json
import re
from pathlib import Path
from typing import Any

BYTES_VOCAB = 257  # 256 bytes and the document separator
MOST_IDS = 1 << 31
MOST_BPE = 10_000_000
"""Largest vocabulary that is trained: room for so many tokens is taken before the first is found."""
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Names under which a tokenizer file may have its document separator; without one, an id is added for it."""


def parse_tokenizer(value: Any) -> str:
    """Return the name of a tokenizer: bytes, bpe:N or the path of a tokenizer.json. Raises ValueError."""
    text = str(value)
    if text == "bytes" or text.endswith(".json"):
        return text
    if (match := re.fullmatch(r"bpe:([0-9]{1,8})", text)) and BYTES_VOCAB <= int(match[1]) <= MOST_BPE:
        return text
    raise ValueError(
        f"expected bytes, bpe:N with N from {BYTES_VOCAB} to {MOST_BPE:,} (trained on the corpus), or the path of a "
        "tokenizer.json"
    )


def vocab_size(tokenizer: str) -> int:
    """Return the size of a named tokenizer's vocabulary, with the document separator.

    Raises ValueError if its file cannot be read.
    """
    if tokenizer == "bytes":
        return BYTES_VOCAB
    if tokenizer.startswith("bpe:"):
        return int(tokenizer.removeprefix("bpe:"))
    path = Path(tokenizer)
    try:
        stat = path.stat()
        return _file_vocab_size(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise ValueError(f"tokenizer {str(path)!r}: {error.strerror}") from error


@functools.lru_cache(maxsize=16)
def _file_vocab_size(path: Path, mtime_ns: int, size: int) -> int:
    try:
        return read_vocabulary(path.read_text(encoding="utf-8"))[0]
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer {str(path)!r}: not UTF-8 text") from error
    except ValueError as error:
        raise ValueError(f"tokenizer {str(path)!r}: {error}") from error


def read_vocabulary(content: str) -> tuple[int, int]:
    """Return (vocabulary size, id of the separator) of the content of a tokenizer.json.

    Raises ValueError if it is not in that format.
    """
    try:
        description = json.loads(content)
        vocab = description["model"]["vocab"]
        names = vocab if isinstance(vocab, dict) else {entry[0]: index for index, entry in enumerate(vocab)}
        ids = dict(names) | {token["content"]: token["id"] for token in description.get("added_tokens") or []}
        size = max(ids.values()) + 1
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        raise ValueError(f"not in the tokenizer.json format ({_what_is_wrong(error)})") from error
    wrong = [f"{name!r}: {id!r}" for name, id in ids.items() if type(id) is not int or not 0 <= id < MOST_IDS]
    if wrong:
        raise ValueError(f"not in the tokenizer.json format (an id is a whole number from 0 on, not {wrong[0]})")
    separator = next((ids[name] for name in SEPARATORS if name in ids), None)
    return (size + 1, size) if separator is None else (size, separator)


def _what_is_wrong(error: Exception) -> str:
    """Say what reading a tokenizer.json failed at."""
    if isinstance(error, KeyError):
        return f"no {error}"
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    return "no model with a vocabulary of tokens and their ids"
