"""What is wrong with a value, in words that say what to write."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "keys with values: KEY: VALUE, one to a line, or {KEY: VALUE}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "list_type": "a list, such as [a, b]",
    "literal_error": "{expected}",
    "mapping_type": "keys with values: KEY: VALUE, one to a line, or {KEY: VALUE}",
    "model_type": "keys with values: KEY: VALUE, one to a line, or {KEY: VALUE}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "a line of text, not empty",
    "string_type": "text; a number, a date or true is text in quotes",
}
"""Type of an error of Pydantic -> what was expected; {names} are those of its context."""


def readable(detail: ErrorDetails) -> str:
    """Turn an error of Pydantic into what was expected, in our words."""
    context: Mapping[str, Any] = detail.get("ctx") or {}
    if (expected := _EXPECTED.get(detail["type"])) is not None:
        return "expected " + re.sub(r"\{([a-z_]+)\}", lambda name: _number(context[name[1]]), expected)
    message = detail["msg"].removeprefix("Value error, ")
    return re.sub(r"^(Input|Value|String|List|Dictionary) should (be|have) (a valid )?", "expected ", message)


def reasons(error: ValidationError) -> str:
    """Join what is wrong according to an error of Pydantic, each thing once."""
    return "; ".join(sorted({readable(detail) for detail in error.errors()}))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
