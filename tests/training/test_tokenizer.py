import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from gatelab.errors import DataError
from gatelab.training.config import DataConfig
from gatelab.training.tokenizer import (
    ByteTokenizer,
    FileTokenizer,
    encode_document,
    load_tokenizer,
    tokenizer_digest,
)
from gatelab.training.vocabulary import vocab_size


def words(vocab: dict[str, int], added: list[str] | None = None) -> tokenizers.Tokenizer:
    """A tokenizer of whole words; the first word of `vocab` stands for unknown ones."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=next(iter(vocab))))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(added or [])
    return tokenizer


@settings(deadline=None)
@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    """Any text is its UTF-8 bytes and one separator that is none of them."""
    tokens = encode_document(ByteTokenizer(), text).tolist()
    assert tokens.pop() == 256
    assert bytes(tokens).decode() == text
    assert ByteTokenizer().text([256, *tokens, 256]) == text


def test_bpe_is_trained_on_the_texts_to_the_size_asked_for(corpus: Path) -> None:
    """`bpe:N` has N tokens, compresses what it was trained on, loses nothing of any text, and is reproducible."""
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    config = DataConfig(tokenizer="bpe:500")
    tokenizer, again = (load_tokenizer(config, iter(texts)) for _ in range(2))
    assert tokenizer.vocab_size == config.vocab_size == 500
    assert tokenizer.description() == again.description()
    plain = tokenizers.Tokenizer.from_str(tokenizer.description())
    for text in (*texts, " \t\r\n\x00", "日本語 ☃ ß", ""):
        *tokens, separator = encode_document(tokenizer, text).tolist()
        assert plain.decode(tokens) == tokenizer.text([*tokens, separator]) == text
        assert separator not in tokens
        assert max([separator, *tokens]) < 500
    whole = "".join(texts)
    assert len(encode_document(tokenizer, whole)) < 0.6 * len(whole.encode())


@pytest.mark.parametrize(
    ("tokenizer", "size", "separator"),
    [
        (words({"<unk>": 0, "a": 1, "b": 2}), 4, 3),
        (words({"<unk>": 0, "a": 1, "</s>": 2, "b": 3}), 4, 2),
        (words({"<unk>": 0, "a": 1, "b": 2}, ["<pad>", "<|endoftext|>"]), 5, 4),
        (words({"<unk>": 0, "a": 1, "b": 9}), 11, 10),
        (tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0)), 4, 3),
        (tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("<eos>", 0.0)], unk_id=0)), 3, 2),
    ],
    ids=["no-end", "end-in-vocabulary", "end-added", "gap", "list-no-end", "list-with-end"],
)
def test_a_file_ends_documents_with_its_own_separator_or_one_more_id(
    tmp_path: Path, tokenizer: tokenizers.Tokenizer, size: int, separator: int
) -> None:
    """The vocabulary that plans and models count is the one that tokens come from."""
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    config = DataConfig(tokenizer=str(path))
    loaded = load_tokenizer(config, iter(()))
    assert config.vocab_size == vocab_size(str(path)) == loaded.vocab_size == size
    assert encode_document(loaded, "a").tolist() == [1, separator]


def test_no_other_special_tokens_are_added() -> None:
    """A file made for sentence pairs ([CLS] … [SEP]) tokenises documents for a language model."""
    tokenizer = words({"<unk>": 0, "a": 1}, ["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    assert encode_document(FileTokenizer(tokenizer.to_str()), "a a").tolist() == [1, 1, 4]


def test_documents_are_neither_truncated_nor_padded() -> None:
    """Many published files carry a maximum length or a padding; no text may be lost or invented because of it."""
    tokenizer = words({"<unk>": 0, "a": 1})
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    loaded = FileTokenizer(tokenizer.to_str())
    assert encode_document(loaded, "a " * 100).tolist() == [1] * 100 + [2]
    assert encode_document(loaded, "a").tolist() == [1, 2]


def test_the_digest_of_a_file_follows_its_content_and_not_its_place(tmp_path: Path) -> None:
    """A copied tokenizer is the same tokenizer; an edited one is another."""
    plain = words({"<unk>": 0, "a": 1}).to_str().encode()
    contents = {"a.json": plain, "copy.json": plain, "edited.json": plain + b" "}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    digests = [tokenizer_digest(DataConfig(tokenizer=str(tmp_path / name))) for name in contents]
    assert digests[0] == digests[1] == hashlib.sha256(plain).hexdigest() != digests[2]
    assert len({tokenizer_digest(DataConfig(tokenizer=name)) for name in ("bytes", "bpe:300", "bpe:301")}) == 3


def test_a_file_that_changed_in_place_is_read_anew(tmp_path: Path) -> None:
    """A long-lived session does not go on with yesterday's vocabulary."""
    path = tmp_path / "tokenizer.json"
    for size in (3, 5):
        path.write_text(words({f"w{i}": i for i in range(size)}).to_str())
        os.utime(path, (size, size))
        assert vocab_size(str(path)) == size + 1


@pytest.mark.parametrize(
    "content",
    [
        *(None, "", "{", "[]", "{}", '{"model": {}}', '{"model": {"vocab": {}}}', '{"model": {"vocab": {"a": "0"}}}'),
        *(f'{{"model": {{"vocab": {{"a": 0, "b": {id}}}}}}}' for id in ("-5", "1.5", "true", "1e3", "99999999999999")),
        *("[" * 100_000, '{"model": {"vocab": [[]]}}', '{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}"),
    ],
    ids=[
        *("missing", "empty", "cut", "list", "no-model", "no-vocabulary", "empty-vocabulary", "text-id"),
        *("negative", "fraction", "truth", "float", "huge", "deep", "list-of-nothing", "digits"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_an_error_that_names_it(tmp_path: Path, content: Any) -> None:
    """Pointing at the wrong JSON file is told when the study is read."""
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        vocab_size(str(path))


BROKEN = {
    "model": lambda content: content["model"].update(type="Magic"),
    "pre-tokenizer": lambda content: content.update(pre_tokenizer={"type": "Magic"}),
    "merges": lambda content: content["model"].update(type="BPE", merges=[["x", "y"]]),
    "version": lambda content: content.update(version="2.0"),
    "pattern": lambda content: content.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_the_library_refuses_is_told_by_the_plan(tmp_path: Path, name: str) -> None:
    """What would end the preparation of data is told before, in one sentence that names the key and the file."""
    content = json.loads(words({"<unk>": 0, "a": 1}).to_str())
    BROKEN[name](content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"^data\.tokenizer '{path}': .+") as caught:
        tokenizer_digest(DataConfig(tokenizer=str(path)))  # what a plan asks for
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "Unigram"])
def test_a_word_that_a_tokenizer_cannot_encode_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    """A file without its token for unknown words is told as such, if a text has one."""
    model = {
        "WordLevel": models.WordLevel({"a": 0}, unk_token="[UNK]"),
        "WordPiece": models.WordPiece({"a": 0}, unk_token="[UNK]"),
        "Unigram": models.Unigram([("a", -1.0)]),
    }[kind]
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(model).save(str(path))
    loaded = load_tokenizer(DataConfig(tokenizer=str(path)), iter(()))
    assert loaded.tokens("a").tolist() == [0]
    with pytest.raises(DataError, match=rf"data\.tokenizer '{path}': .*(?i:unk)"):
        loaded.tokens("b")


def test_text_that_is_no_utf_8_is_told() -> None:
    """An argument of the command line may hold any bytes."""
    for tokenizer in (ByteTokenizer(), FileTokenizer(words({"<unk>": 0, "a": 1}).to_str())):
        with pytest.raises(DataError):
            tokenizer.tokens("\udce9")
