"""What every configuration shares: strictness, counts, and the difference between wrong and impossible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError, model_validator

from gatelab.configuration import INVALID_COMBINATION, Config, Count, reject_combination

UNITS = {"": 0, "k": 3, "m": 6, "b": 9, "t": 12}
COUNT: TypeAdapter[int] = TypeAdapter(Count)


class Pair(Config):
    """Two numbers that must not be equal."""

    left: int = 1
    right: int = 2

    @model_validator(mode="after")
    def _differ(self) -> "Pair":
        if self.left == self.right:
            reject_combination(f"left and right are both {self.left} (as in {{left: {self.left}}})")
        return self


def test_a_configuration_cannot_change_and_knows_its_keys() -> None:
    """A trial's name is the hash of its configuration: it must not drift, and a misspelt key must not be dropped."""
    with pytest.raises(ValidationError, match="frozen"):
        Pair().left = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="lefft"):
        Pair.model_validate({"lefft": 3})


def test_an_impossible_combination_is_told_apart_from_a_wrong_field() -> None:
    """The matrix lists the first with its reason and goes on; the second refuses the whole study."""
    with pytest.raises(ValidationError) as caught:
        Pair(left=2)
    (error,) = caught.value.errors()
    assert error["type"] == INVALID_COMBINATION
    assert error["msg"] == "left and right are both 2 (as in (left: 2))"  # braces would be read as a template
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate({"left": "two"})
    assert caught.value.errors()[0]["type"] != INVALID_COMBINATION


@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(list(UNITS)), st.booleans())
def test_counts_are_read_exactly(digits: int, decimals: int, unit: str, upper: bool) -> None:
    """`4.1M` tokens are 4 100 000: no decimal is lost, or refused, on its way through a float."""
    decimals = min(decimals, UNITS[unit])
    whole, fraction = divmod(digits, 10**decimals)
    written = f"{whole:_}" + (f".{fraction:0{decimals}d}" if decimals else "") + (unit.upper() if upper else unit)
    assert COUNT.validate_python(written) == digits * 10 ** (UNITS[unit] - decimals)


@pytest.mark.parametrize("written", ["1.5", "0.0001k", "12q", "-3k", "", "k", "1e6", "1.2.3M", "M1"])
def test_what_is_not_a_whole_count_is_refused_with_examples(written: str) -> None:
    """A mistyped budget never becomes another number."""
    with pytest.raises(ValidationError, match=r"count such as 4096, 300k, 2M or 1\.5B"):
        COUNT.validate_python(written)
