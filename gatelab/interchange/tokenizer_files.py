"""Tokenizers as files that transformers loads, and back: the same text has the same tokens in both."""

import json
from typing import Any

from gatelab.training.tokenizer import ByteTokenizer, Tokenizer
from gatelab.training.vocabulary import SEPARATORS

SPECIAL: dict[str, Any] = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def tokenizer_files(tokenizer: Tokenizer, length: int) -> dict[str, str]:
    """Return tokenizer.json and tokenizer_config.json of a tokenizer, by name.

    `length` is how many tokens the model was trained on at a time. Nothing is added to a text, as in training: what a
    file says of tokens around a text is left out.
    """
    if isinstance(tokenizer, ByteTokenizer):
        content: dict[str, Any] = _bytes_json()
    else:
        content = json.loads(tokenizer.description())
        content |= {"truncation": None, "padding": None}
        if (content.get("post_processor") or {}).get("type") != "ByteLevel":  # that one moves offsets only
            content["post_processor"] = None
    name = _separator_name(content, tokenizer.separator)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name,
        "eos_token": name,
        "pad_token": name,
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": isinstance(tokenizer, ByteTokenizer),  # all text is bytes, whatever it spells
    }
    files = {"tokenizer.json": content, "tokenizer_config.json": settings}
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in files.items()}


def is_bytes(content: str) -> bool:
    """Return whether the content of a tokenizer.json is that of the byte tokenizer."""
    found = json.loads(content)
    return isinstance(found, dict) and found.get("model") == _bytes_json()["model"]


def _separator_name(content: dict[str, Any], separator: int) -> str:
    """Return the name of the token that ends a document; it is added where the file has none."""
    added = content.setdefault("added_tokens", None) or []
    vocabulary = content["model"]["vocab"]
    names = vocabulary if isinstance(vocabulary, dict) else {entry[0]: id for id, entry in enumerate(vocabulary)}
    ids = {**names, **{token["content"]: token["id"] for token in added}}
    name = next((name for name, id in ids.items() if id == separator), SEPARATORS[0])
    if name not in ids:
        content["added_tokens"] = [*added, {"id": separator, "content": name, **SPECIAL}]
    return name


def _bytes_json() -> dict[str, Any]:
    """Return the byte tokenizer in the format of the tokenizers library: byte-level BPE without a merge."""
    characters = _byte_characters()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    separator = ByteTokenizer.separator
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": separator, "content": SEPARATORS[0], **SPECIAL}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(characters)},
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE: itself, where that can be seen."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]
