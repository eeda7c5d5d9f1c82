"""Text to tokens: bytes, a tokenizer.json, or BPE trained on the corpus. Every document ends in a separator."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gatelab.training.config import DataConfig
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
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return bytes(token for token in tokens if token < self.separator).decode(errors="replace")

    def description(self) -> str:
        """Return its content."""
        return "bytes"


class FileTokenizer:
    """A tokenizer in the format of the `tokenizers` library."""

    def __init__(self, content: str) -> None:
        import tokenizers

        self._content = content
        self._tokenizer = tokenizers.Tokenizer.from_str(content)
        self._tokenizer.no_truncation()  # files often carry the limits of some model
        self._tokenizer.no_padding()
        self.vocab_size, self.separator = read_vocabulary(content)

    def tokens(self, text: str) -> npt.NDArray[np.int64]:
        """Return the tokens of a text."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        decoded: str = self._tokenizer.decode([token for token in tokens if token != self.separator])
        return decoded

    def description(self) -> str:
        """Return its content."""
        return self._content


def load_tokenizer(config: DataConfig, training_texts: Iterable[str]) -> Tokenizer:
    """Load the tokenizer that a configuration names. `training_texts` is read only to train one."""
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer.startswith("bpe:"):
        return FileTokenizer(_train_bpe(training_texts, config.vocab_size))
    return FileTokenizer(Path(config.tokenizer).read_text(encoding="utf-8"))


def tokenizer_digest(config: DataConfig) -> str:
    """Return the identity of the tokenizer, given the corpus: a file by its content, not by its place."""
    if config.tokenizer.endswith(".json"):
        return hashlib.sha256(Path(config.tokenizer).read_bytes()).hexdigest()
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
