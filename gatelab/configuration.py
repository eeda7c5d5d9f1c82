"""What every configuration shares: frozen Pydantic models that refuse unknown keys, and how they speak of errors."""

import re
from decimal import Decimal
from typing import Annotated, Any, Never

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

INVALID_COMBINATION = "invalid_combination"
"""Type of the error that `reject_combination` raises."""

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


class Config(BaseModel):
    """Base of every configuration: immutable, and every key must be known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def reject_combination(reason: str) -> Never:
    """Reject a combination of fields that are each valid alone.

    The matrix lists such a variant as impossible, with the reason; a wrong field refuses the whole study.
    """
    # Braces would be read as a template.
    raise PydanticCustomError(INVALID_COMBINATION, reason.replace("{", "(").replace("}", ")"))


def assign_frozen(config: BaseModel, **values: Any) -> None:
    """Set fields of a frozen configuration from within its own validators, and nowhere else."""
    for name, value in values.items():
        object.__setattr__(config, name, value)


def parse_count(value: Any) -> Any:
    """Return the number of a count as a person writes it; what is no text stays as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kmbt]?)\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("expected a count such as 4096, 300k, 2M or 1.5B")
    count = Decimal(match[1].replace("_", "")) * _SUFFIXES[match[2].lower()]
    if count >= 10**18:
        raise ValueError("expected a count below 10^18")
    if count != int(count):
        raise ValueError("expected a whole count such as 4096, 300k, 2M or 1.5B")
    return int(count)


_COUNT_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d[\d_]*(\.\d+)?\s*[kKmMbBtT]?$"}]}

Count = Annotated[int, BeforeValidator(parse_count), WithJsonSchema(_COUNT_SCHEMA)]
"""A whole number that may be written 300k, 2M or 1.5B (powers of ten)."""
