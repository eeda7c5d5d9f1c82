"""Damaged studies are planned or refused: nothing else, whatever is in them."""

import pytest

from tests.fuzz.studies import check, mutated


@pytest.mark.parametrize("first", [0, 50, 100, 150])
def test_a_damaged_study_is_planned_or_refused(first: int) -> None:
    """A study that someone mistyped, cut or pasted into must never end in a traceback, or be refused in code."""
    became = {check(mutated(seed)) for seed in range(first, first + 50)}
    assert became == {"planned", "refused"}


def test_a_seed_names_one_damaged_study() -> None:
    """A bug that a long run found is found again by its seed."""
    assert [mutated(seed) for seed in range(20)] == [mutated(seed) for seed in range(20)]
