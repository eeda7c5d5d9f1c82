"""What a set of variants can tell apart: the alias tables of textbook fractions, and parts that are complete."""

import itertools

import numpy as np
import pytest

from gatelab.results.statistics.aliasing import Alias, complete_part, strings, structure
from gatelab.results.statistics.linear_model import Cell, effects_of

LETTERS = "ABCDEFGHIJK"


def two_levels(columns: int, **generators: str) -> list[Cell]:
    """The cells of a 2^(k-p) fraction: all combinations of the first axes, others as products of signs."""
    cells = []
    for signs in itertools.product((-1, 1), repeat=columns):
        own = dict(zip(LETTERS, signs, strict=False))
        own |= {name: int(np.prod([own[letter] for letter in word])) for name, word in generators.items()}
        cells.append(tuple("+" if own[name] > 0 else "-" for name in sorted(own)))
    return cells


def axes_of(cells: list[Cell]) -> dict[str, tuple[str, ...]]:
    return {LETTERS[place]: tuple(dict.fromkeys(cell[place] for cell in cells)) for place in range(len(cells[0]))}


def words(alias: Alias) -> frozenset[str]:
    return frozenset("".join(effect) for effect in (alias.first, alias.second))


def pairs(*texts: str) -> set[frozenset[str]]:
    """AB=CD as its two words; I is the mean."""
    return {frozenset(word.replace("I", "") for word in text.split("=")) for text in texts}


FRACTIONS = {
    # By Box, Hunter and Hunter.
    "2^(3-1), C=AB": (two_levels(2, C="AB"), pairs("A=BC", "B=AC", "C=AB")),
    "2^(4-1), D=ABC": (two_levels(3, D="ABC"), pairs("AB=CD", "AC=BD", "AD=BC")),
    "2^(5-1), E=ABCD": (two_levels(4, E="ABCD"), set()),
    "2^(2-1), B=A": (two_levels(1, B="A"), pairs("A=B", "I=AB")),
}


@pytest.mark.parametrize(("cells", "expected"), FRACTIONS.values(), ids=FRACTIONS)
def test_textbook_fractions_have_their_alias_tables(cells: list[Cell], expected: set[frozenset[str]]) -> None:
    """The pairs that a textbook lists, wholly aliased, and no others."""
    found = structure(cells, axes_of(cells))
    assert (found.complete, found.regular) == (False, True)
    assert {words(alias) for alias in found.aliases} == expected
    assert all(alias.is_complete and alias.correlations == pytest.approx((1.0,)) for alias in found.aliases)


def test_strings_join_all_that_is_one() -> None:
    """In the 2^(5-2) of D=AB, E=AC seven contrasts are seven strings, with all fifteen effects each in one."""
    cells = two_levels(3, D="AB", E="AC")
    axes = axes_of(cells)
    found = strings(cells, axes, effects_of(axes))
    named = {frozenset("".join(effect) for effect in effects) for effects, _ in found}
    # A=BD=CE, B=AD, C=AE, D=AB, E=AC, BC=DE, BE=CD: the defining relation is I=ABD=ACE=BCDE.
    expected = {"A BD CE", "B AD", "C AE", "D AB", "E AC", "BC DE", "BE CD"}
    assert named == {frozenset(text.split()) for text in expected}
    basis = np.hstack([space for _, space in found])
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(basis.sum(0), 0, atol=1e-12)


def test_effects_of_three_levels_are_aliased_in_part() -> None:
    """In the Latin square 3^(3-1) an axis is one of the two components of the others' interaction."""
    cells = [(str(a), str(b), str((a + b) % 3)) for a, b in itertools.product(range(3), repeat=2)]
    axes = axes_of(cells)
    found = structure(cells, axes)
    assert found.regular
    main = {words(alias): alias for alias in found.aliases}[frozenset(("A", "BC"))]
    assert (main.dimensions, main.is_complete) == ((2, 4), True)
    both = {words(alias): alias for alias in found.aliases}[frozenset(("AB", "AC"))]
    assert both.correlations == pytest.approx((1.0, 1.0))
    assert not both.is_complete
    dimensions = [(len(effects), space.shape[1]) for effects, space in strings(cells, axes, effects_of(axes))]
    assert dimensions == [(2, 2), (2, 2), (2, 2), (3, 2)]  # A=part of BC, …; the rest of all interactions


def test_a_plackett_burman_plan_mixes_main_effects_with_interactions_in_part() -> None:
    """Its main effects are orthogonal, and each has a correlation of 1/3 with every interaction of two others."""
    row = "++-+++---+-"
    signs = [row[-shift:] + row[:-shift] if shift else row for shift in range(11)]
    cells = [tuple(signs[place][run] for place in range(11)) for run in range(11)] + [("-",) * 11]
    found = structure(cells, axes_of(cells))
    assert (found.regular, found.orthogonal) == (False, True)
    with_main = [alias for alias in found.aliases if len(alias.first) == 1]
    assert len(with_main) == 11 * 45
    for alias in with_main:
        assert alias.correlations == pytest.approx((1 / 3,))
        assert alias.first[0] not in alias.second


def test_correlations_are_those_of_the_contrasts() -> None:
    """Two axes of two levels that go together: |phi| of the table of counts, an independent formula."""
    cells = [("-", "-", str(n)) for n in range(3)] + [("+", "+", str(n)) for n in range(3)] + [("-", "+", "0")]
    axes = axes_of(cells)
    first = structure(cells, axes).aliases[0]
    assert (first.first, first.second) == (("A",), ("B",))
    signs = np.array([[1.0 if level == "+" else -1.0 for level in cell[:2]] for cell in cells])
    assert first.correlations == pytest.approx((abs(np.corrcoef(signs.T)[0, 1]),))


def test_all_combinations_can_be_told_apart() -> None:
    """A complete table has no aliases, whatever the order of its cells."""
    cells = list(itertools.product("ab", "xyz"))[::-1]
    found = structure(cells, axes_of(cells))
    assert (found.complete, found.regular, found.aliases) == (True, True, ())


PARTS = {
    "excluded pairs": (
        [(p, "e") for p in ("query", "key", "value", "sdpa", "output")] + [("value", "h"), ("sdpa", "h")],
        {"A": ("value", "sdpa"), "B": ("e", "h")},
    ),
    "a hole": (
        [c for c in itertools.product("ab", "wxyz") if c != ("b", "y")],
        {"A": ("a", "b"), "B": ("w", "x", "z")},
    ),
    "one axis at one level": (
        [*((a, b, "0") for a, b in itertools.product("ab", "xy")), ("a", "x", "1")],
        {"A": ("a", "b"), "B": ("x", "y"), "C": ("0",)},
    ),
    "one factor at a time": ([("a", "x", "0"), ("b", "x", "0"), ("a", "y", "0"), ("a", "x", "1")], None),
    "one axis": ([("a",), ("c",)], {"A": ("a", "c")}),
}


@pytest.mark.parametrize(("cells", "expected"), PARTS.values(), ids=PARTS)
def test_a_part_may_be_complete(cells: list[Cell], expected: dict[str, tuple[str, ...]] | None) -> None:
    """Levels whose combinations are missing go, and all combinations of those that stay are there."""
    axes = axes_of(cells) if len(cells[0]) > 1 else {"A": ("a", "b", "c")}
    assert complete_part(cells, axes) == expected
