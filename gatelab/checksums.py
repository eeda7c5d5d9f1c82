"""Checksums of JSON, so that a record that was damaged is not taken for one that says something else."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

KEY = "checksum"


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum, in place of one that it may have."""
    said = {name: value for name, value in content.items() if name != KEY}
    return {**said, KEY: content_checksum(json.loads(json.dumps(said)))}


def without_checksum(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a JSON object without its checksum; None if that is not right. One of older versions may have none."""
    said = {name: value for name, value in content.items() if name != KEY}
    return said if KEY not in content or content[KEY] == content_checksum(said) else None


def content_checksum(content: Mapping[str, Any]) -> str:
    """Return the CRC-32 of JSON as `json.dumps(content, sort_keys=True)` writes it, in hexadecimal."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
