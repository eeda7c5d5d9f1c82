"""Text to tokens: bytes, a tokenizer.json, or BPE trained on the corpus. Every document ends in a separator."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gatelab.errors import DataError
from gatelab.training.config import DataConfig
from gatelab.training.source_files import reading
from gatelab.training.vocabulary import BYTES_VOCAB, SEPARATORS, read_vocabulary


class Tokenizer(Protocol):
    """Turns documents into tokens."""

    vocab_size: int

    separator: int
    """The token that ends every document."""

    def tokens(self, text: str) -> npt.NDArray[np.int64]:
        """Return the tokens of a text."""

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens. What is not valid UTF-8 is replaced; separators are left out."""

    def lost_bytes(self, text: str, tokens: Sequence[int]) -> int:
        """Count the bytes of a text that its tokens do not give back."""

    def description(self) -> str:
        """Return its content, such that equal descriptions tokenise equally."""


def encode_document(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int64]:
    """Tokenise a document, the separator last."""
    return np.append(tokenizer.tokens(text), tokenizer.separator)


class ByteTokenizer:
    """One token for each byte of UTF-8."""

    vocab_size = BYTES_VOCAB
    separator = BYTES_VOCAB - 1

    def tokens(self, text: str) -> npt.NDArray[np.int64]:
        """Return the tokens of a text."""
        try:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        except UnicodeEncodeError as error:  # as of an argument that is not UTF-8
            raise DataError(f"text that is no UTF-8: {text!r:.60}") from error

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return bytes(token for token in tokens if token < self.separator).decode(errors="replace")

    def lost_bytes(self, text: str, tokens: Sequence[int]) -> int:
        """Count the bytes of a text that its tokens do not give back: none."""
        return 0

    def description(self) -> str:
        """Return its content."""
        return "bytes"


class FileTokenizer:
    """A tokenizer in the format of the `tokenizers` library.

    `name` names it in errors. Raises DataError if the content is not in that format, or a text cannot be tokenised.
    """

    def __init__(self, content: str, name: str = "tokenizer.json") -> None:
        import tokenizers

        self._content, self._name = content, name
        with self._reporting_errors():
            self.vocab_size, self.separator = read_vocabulary(content)
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
            self._tokenizer.no_truncation()  # files often carry the limits of some model
            self._tokenizer.no_padding()
        self._unknown = _unknown_token(content)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library has no class of its own; where it panics it is no Exception either
            raise DataError(f"{self._name}: {next(iter(str(error).splitlines()), repr(error))}") from error

    def tokens(self, text: str) -> npt.NDArray[np.int64]:
        """Return the tokens of a text."""
        with self._reporting_errors():
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        with self._reporting_errors():
            decoded: str = self._tokenizer.decode([token for token in tokens if token != self.separator])
        return decoded

    def lost_bytes(self, text: str, tokens: Sequence[int]) -> int:
        """Count the bytes of a text that its tokens do not give back.

        Those of a character are lost as often as it is missing from the decoded tokens, in whatever order: so a
        decoder that adds spaces loses nothing. The separator and the unknown token stand for no text.
        """
        known = [token for token in tokens if token not in (self.separator, self._unknown)]
        with self._reporting_errors():
            decoded: str = self._tokenizer.decode(known, skip_special_tokens=False)
        if decoded == text:
            return 0
        return sum(count * len(character.encode()) for character, count in (Counter(text) - Counter(decoded)).items())

    def description(self) -> str:
        """Return its content."""
        return self._content


def _unknown_token(content: str) -> int | None:
    """Return the id of the token that a tokenizer has for all that it does not know."""
    model = json.loads(content)["model"]
    if model.get("type") == "Unigram":
        unknown = model.get("unk_id")
        return unknown if isinstance(unknown, int) else None
    vocabulary = model["vocab"]
    return vocabulary.get(model.get("unk_token")) if isinstance(vocabulary, dict) else None


def load_tokenizer(config: DataConfig, training_texts: Iterable[str]) -> Tokenizer:
    """Load the tokenizer that a configuration names. `training_texts` is read only to train one."""
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer.startswith("bpe:"):
        return FileTokenizer(_train_bpe(training_texts, config.vocab_size))
    return _configured(config)


def read_tokenizer(path: Path, name: str) -> FileTokenizer:
    """Read a tokenizer.json, which `name` names in errors. Raises DataError."""
    with reading(path):
        content = path.read_bytes()
    try:
        return FileTokenizer(content.decode(), name)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text") from error


def _configured(config: DataConfig) -> FileTokenizer:
    return read_tokenizer(Path(config.tokenizer), f"data.tokenizer {config.tokenizer!r}")


def tokenizer_digest(config: DataConfig) -> str:
    """Return the identity of the tokenizer, given the corpus: a file by its content, not by its place.

    Raises DataError if a file cannot be used.
    """
    if config.tokenizer.endswith(".json"):
        return hashlib.sha256(_configured(config).description().encode()).hexdigest()
    return config.tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """Train a byte-level BPE on texts; return the content of its tokenizer.json."""
    from tokenizers import Tokenizer as Trainable
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Trainable(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATORS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    content: str = tokenizer.to_str()
    return content
