"""Importances that Optuna finds in studies whose truth is known."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from gatelab.results.statistics.importance import Importance, importance, without_seeds

Runs = tuple[dict[str, dict[int, float]], dict[str, dict[str, str | None]]]


def runs(noise: float = 0.0, drop: float = 0.3) -> Runs:
    """Variants of three axes, of which a alone makes a difference, and c makes none to those with b=x; some missing."""
    random, values, levels = np.random.default_rng(0), {}, {}
    for a, b, c in itertools.product("0123", "xyz", "uv"):
        own: dict[str, str | None] = {"a": a, "b": b, "c": None if b == "x" else c}
        name = str(own)
        if random.random() < drop or name in levels:
            continue
        levels[name] = own
        truth = (0.0, 1.0, 5.0, 2.0)[int(a)]
        values[name] = {seed: truth + 10.0 * seed + random.normal(0, noise) for seed in range(3)}
    return values, levels


def test_an_axis_that_decides_alone_is_all_that_matters() -> None:
    """By both methods, and however much seeds add."""
    values, levels = runs(noise=0.01)
    found = importance(values, levels, ["a", "b", "c"], "lower")
    assert (found.runs, found.variants) == (3 * len(values), len(values))
    assert found.fanova is not None
    assert found.fanova["a"] > 0.95
    assert max(found.fanova["b"], found.fanova["c"]) < 0.02
    assert found.ped_anova is not None
    assert found.ped_anova["a"] > 0.8
    assert sum(found.ped_anova.values()) == pytest.approx(1)


def test_importances_are_reproducible() -> None:
    """A forest is drawn by chance, but by the same chance each time."""
    values, levels = runs(noise=1.0)
    one, other = (importance(values, levels, ["a", "b", "c"], "lower") for _ in range(2))
    assert one == other


def test_a_full_table_gives_the_shares_of_variance() -> None:
    """Where the forest has seen every combination its shares are those of the table: an independent calculation."""
    random = np.random.default_rng(1)
    first, second = random.normal(0, 1, 4), random.normal(0, 2, 3)
    table = first[:, None] + second[None, :]
    names = {f"{i}{j}": (i, j) for i, j in itertools.product(range(4), range(3))}
    values = {name: dict.fromkeys(range(20), float(table[at])) for name, at in names.items()}
    levels = {name: {"a": str(i), "b": str(j)} for name, (i, j) in names.items()}
    found = importance(values, levels, ["a", "b"], "")
    assert found.fanova is not None
    assert found.fanova["a"] == pytest.approx(first.var() / table.var(), abs=0.01)
    assert found.fanova["b"] == pytest.approx(second.var() / table.var(), abs=0.01)


def test_the_best_are_those_of_the_metric() -> None:
    """The axis that decides which are best is another one if more is better than if less is."""
    names = {f"{a}{b}": (a, b) for a, b in itertools.product(range(4), range(4))}
    # Level 0 of a is far below all others; level 3 of b far above them, but not where a is 0.
    truth = {name: -10.0 * (a == 0) + 10.0 * (b == 3 and a != 0) + 0.01 * (a + b) for name, (a, b) in names.items()}
    values = {name: {0: value, 1: value} for name, value in truth.items()}
    levels = {name: {"a": str(a), "b": str(b)} for name, (a, b) in names.items()}
    lower, higher = (importance(values, levels, ["a", "b"], better).ped_anova for better in ("lower", "higher"))
    assert lower is not None
    assert higher is not None
    assert lower["a"] > 0.9 > 0.5 > higher["a"]
    assert importance(values, levels, ["a", "b"], "").ped_anova is None


def test_what_seeds_add_is_taken_away_where_variants_lack_some() -> None:
    """Additive data return the same value at all seeds, though each variant has finished others."""
    variants = {"p": 1.0, "q": 4.0, "r": -2.0}
    seeds = {0: 0.0, 1: 7.0, 2: -3.0}
    have = {"p": (0, 1, 2), "q": (0, 2), "r": (1,)}
    values = {name: {seed: variants[name] + seeds[seed] for seed in have[name]} for name in variants}
    found = without_seeds(values)
    flat = {name: set(np.round([*of.values()], 9)) for name, of in found.items()}
    assert all(len(of) == 1 for of in flat.values())
    level = {name: of.pop() for name, of in flat.items()}
    assert level["q"] - level["p"] == pytest.approx(3)
    assert level["r"] - level["p"] == pytest.approx(-3)


def test_without_differences_nothing_is_important() -> None:
    """Equal values, and so few runs that the best quarter of them are no sample."""
    same = {name: {0: 1.0, 1: 2.0} for name in "pqr"}
    levels = {name: {"a": name} for name in "pqr"}
    assert importance(same, levels, ["a"], "lower") == Importance(6, 3, None, None)
    few = {"p": {0: 1.0}, "q": {0: 2.0}, "r": {0: 3.0}}
    assert importance(few, levels, ["a"], "lower").ped_anova is None


WITHOUT_FORESTS = """
import sys
sys.modules["sklearn"] = None  # as if it were not installed
from gatelab.results.statistics.importance import importance
values = {f"{a}{b}": {0: 10.0 * a + 0.1 * b, 1: 10.0 * a + 0.1 * b + 1} for a in range(4) for b in range(4)}
found = importance(values, {name: {"a": name[0], "b": name[1]} for name in values}, ["a", "b"], "lower")
print(found.fanova.reason)
print(found.ped_anova["a"] > 0.9)
"""


def test_without_scikit_learn_there_is_no_forest_and_it_says_what_to_install() -> None:
    """PED-ANOVA is there all the same."""
    shown = subprocess.run([sys.executable, "-c", WITHOUT_FORESTS], capture_output=True, text=True, check=True)
    reason, is_found = shown.stdout.splitlines()
    assert "pip install 'gatelab[importance]'" in reason
    assert is_found == "True"
