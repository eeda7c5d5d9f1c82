"""Learning rates of a study: the window of a search, rules, and the trials of a search."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gatelab.ablations.errors import StudyError
from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.ladder import ladder
from gatelab.ablations.learning_rate_grid import Rates, label_at, learning_rate_grid
from gatelab.ablations.learning_rates import LEARNING_RATE, RateRule, ToleranceConfig, rounded, with_rate
from gatelab.ablations.matrix import Matrix, Variant
from gatelab.ablations.pipeline import build_matrix
from gatelab.ablations.study import StudyPlan
from gatelab.errors import Unavailable
from gatelab.models.accounting import count_parameters
from gatelab.names import SEARCH_SUFFIX

Plan = Callable[..., Matrix]
Load = Callable[..., StudyPlan]
Refusal = Callable[[str], list[tuple[Any, ...]]]

POSITIONS = "axes: {model.gate.position: [none, sdpa]}\n"


def rates_of(matrix: Matrix) -> dict[str, float]:
    """Variant -> the learning rate that it is trained at."""
    return {variant.label: variant.config.training.optimizer.learning_rate for variant in matrix.variants}


def cells(matrix: Matrix, rates: Rates) -> Matrix:
    """The search of a study whose data all have the same identity."""
    return learning_rate_grid(matrix, rates)


def test_the_default_window_is_that_of_the_paper_and_goes_on_as_it_does() -> None:
    """Numbers comparable with arXiv 2309.14322's need its seven learning rates; beyond them, too, 1, 3, 10."""
    how = ToleranceConfig()
    assert how.rates == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
    assert how.lattice == [1e-5, 3e-5, 1e-4, *how.rates, 1.0, 3.0, 10.0]
    assert ToleranceConfig(extend=0).lattice == how.rates
    assert ToleranceConfig(extend=1).lattice == [1e-4, *how.rates, 1.0]


def test_a_geometric_window_goes_on_geometrically() -> None:
    """Its steps are the window's, on either side."""
    how = ToleranceConfig(rates=[1e-3, 2e-3, 4e-3, 8e-3], extend=2)
    assert how.lattice == [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]


@settings(deadline=None)
@given(
    st.integers(-5, -1), st.lists(st.integers(5, 50), min_size=2, max_size=7), st.integers(0, 5), st.integers(100, 999)
)
def test_a_lattice_ascends_and_holds_its_window(decade: int, steps: list[int], extend: int, first: int) -> None:
    """Whatever the window: `extend` more on each side, ascending, of three digits."""
    rates = [first / 100 * 10.0**decade]
    for step in steps:
        rates.append(rates[-1] * 10 ** (step / 50))
    how = ToleranceConfig(rates=rates, extend=extend)
    lattice = how.lattice
    assert len(lattice) == len(rates) + 2 * extend
    assert lattice == sorted(set(lattice))
    assert lattice == [rounded(rate) for rate in lattice]
    assert lattice[extend : len(lattice) - extend] == how.rates == [rounded(rate) for rate in rates]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "tolerance:\n  rates: [0.1, 0.2]\n", (2, "tolerance.rates", [0.1, 0.2], "at least three"), id="two"
        ),
        pytest.param(
            "tolerance:\n  rates: [0.3, 0.2, 0.1]\n",
            (2, "tolerance.rates", [0.3, 0.2, 0.1], "ascending"),
            id="descending",
        ),
        pytest.param(
            "tolerance:\n  rates: [0.1, 0.2, 0.2]\n", (2, "tolerance.rates", [0.1, 0.2, 0.2], "ascending"), id="twice"
        ),
        pytest.param(
            "tolerance:\n  rates:\n    - 0.1\n    - -0.2\n    - 0.3\n",
            (4, "tolerance.rates.1", -0.2, "more than 0"),
            id="negative",
        ),
        pytest.param(
            "tolerance:\n  rates: [0.1, fast, 0.3]\n", (2, "tolerance.rates.1", "fast", "expected a number"), id="text"
        ),
        pytest.param("tolerance:\n  rates: [0.1, 0.2, .inf]\n", (2, "tolerance.rates.2", math.inf, "finite"), id="inf"),
        pytest.param("tolerance: {extend: -1}\n", (1, "tolerance.extend", -1, "0 or more"), id="less"),
        pytest.param("tolerance: {margin: 2}\n", (1, "tolerance.margin", 2, "less than 1"), id="margin in percent"),
        pytest.param("tolerance: {resolution: 0}\n", (1, "tolerance.resolution", 0, "more than 0"), id="exact"),
        pytest.param(
            "tolerance:\n  marign: 0.1\n", (2, "tolerance.marign", None, "did you mean margin?"), id="unknown key"
        ),
        pytest.param("learning_rate: serach\n", (1, "learning_rate", "serach", "'given' or 'search'"), id="word"),
        pytest.param(
            "learning_rate:\n  per: hidden_size\n  exponent: -1\n  refrence: 64\n  reference: 64\n",
            (4, "learning_rate.refrence", None, "did you mean reference?"),
            id="unknown key of a rule",
        ),
        pytest.param(
            "learning_rate: {per: hiden_size, exponent: -1, reference: 64}\n",
            (1, "learning_rate.per", "hiden_size", "'hidden_size'"),
            id="what a rule follows",
        ),
        pytest.param(
            "learning_rate:\n  per: layers\n  exponent: -1\n  reference: 0\n",
            (4, "learning_rate.reference", 0, "more than 0"),
            id="reference",
        ),
        pytest.param(
            "learning_rate: search\naxes: {training.optimizer.learning_rate: [0.01, 0.1]}\n",
            (1, "learning_rate", "search", "axis training.optimizer.learning_rate varies the learning rate"),
            id="searched and varied",
        ),
        pytest.param(
            "axes:\n  how:\n    a: {training.optimizer.learning_rate: 0.1}\n"
            "learning_rate: {per: layers, exponent: -1, reference: 2}\n",
            (4, "learning_rate", None, "axis how varies the learning rate"),
            id="ruled and varied",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(text: str, expected: tuple[Any, ...], refusal: Refusal) -> None:
    """File, line, key and value of this problem, and no other word about it."""
    [found] = refusal(text)
    assert found[:2] == expected[:2]
    if expected[2] is not None:
        assert found[2] == expected[2]
    assert expected[3] in found[3]


def test_a_rule_that_says_too_little_is_told_what_it_lacks(refusal: Refusal) -> None:
    """What is missing has a name."""
    found = refusal("learning_rate: {per: layers, exponent: -1}\n")
    assert [(key, message) for _, key, _, message in found] == [("learning_rate.reference", "required")]


def test_a_rule_by_worked_examples(plan: Plan) -> None:
    """The rule's arithmetic, by hand: inverse in width, inverse root in tokens, with depth, and parameters."""

    def rates(rule: str, axis: str) -> list[float]:
        matrix = plan(
            f"base: {{training: {{optimizer: {{learning_rate: 0.01}}}}}}\naxes: {axis}\nlearning_rate: {rule}\n"
        )
        return [variant.config.training.optimizer.learning_rate for variant in matrix.variants]

    widths = "{model.hidden_size: [64, 128, 256]}"
    assert rates("{per: hidden_size, exponent: -1, reference: 64}", widths) == [0.01, 0.005, 0.0025]
    tokens = "{training.tokens: [1M, 4M, 3M]}"
    assert rates("{per: tokens, exponent: -0.5, reference: 1M}", tokens) == [0.01, 0.005, 0.00577]
    assert rates("{per: layers, exponent: 1, reference: 2}", "{model.layers: [2, 3, 4]}") == [0.01, 0.015, 0.02]
    found = rates("{per: parameters, exponent: -0.3, reference: 100k}", widths)
    for rate, variant in zip(found, plan(f"axes: {widths}\n").variants, strict=True):
        size = count_parameters(variant.config.model).total
        assert rate == pytest.approx(0.01 * (100_000 / size) ** 0.3, rel=5e-3)
        assert rate == float(f"{rate:.3g}")


def test_a_rule_is_shown_and_part_of_what_is_asked(load: Load) -> None:
    """Another rule, or another window, asks something else; a study that names neither keeps the hash that it had."""
    rule = load(POSITIONS + "learning_rate: {per: layers, exponent: -0.5, reference: 1k}\n")
    assert isinstance(rule.study.learning_rate, RateRule)
    assert str(rule.study.learning_rate) == "as layers ^ -0.5, from the given one at 1,000"
    given = load(POSITIONS)
    assert given.hash != rule.hash
    assert load(POSITIONS + "tolerance: {margin: 0.1, rates: [0.1, 0.2, 0.3]}\n").hash != given.hash
    assert load(POSITIONS + "learning_rate: given\ntolerance: {margin: 0.02}\n").hash == given.hash


def test_a_rule_answers_the_plans_question(plan: Plan) -> None:
    """A note that learning rates are not compared fairly is for studies that say nothing of them."""
    said = "neither an axis nor declared fixed"
    assert any(said in note for note in plan(POSITIONS).notes)
    ruled = plan(POSITIONS + "learning_rate: {per: layers, exponent: -0.5, reference: 2}\n")
    assert not any(said in note for note in ruled.notes)


def test_a_search_that_has_not_been_made_is_missed(load: Load) -> None:
    """It names the command that makes it, and the variants of which it has found nothing."""
    plan = load(POSITIONS + "learning_rate: search\n")
    with pytest.raises(StudyError) as caught:
        build_matrix(plan, lambda config: "x")
    assert "learning_rate = 'search': no optimum for position=none; position=sdpa: it has not been" in str(caught.value)
    assert f"gatelab lr-tolerance {plan.source.name}" in str(caught.value)

    def only_of_none(plan: StudyPlan, variant: Variant) -> float | Unavailable:
        return 0.02 if variant.config.model.gate.position == "none" else Unavailable("there is only a bound")

    with pytest.raises(StudyError, match=r"no optimum for position=sdpa: there is only a bound$"):
        build_matrix(plan, lambda config: "x", only_of_none)


def test_variants_take_what_a_search_found(load: Load) -> None:
    """Each its own; the note about a learning rate that all share is then beside the point."""
    found = {"none": 0.02, "sdpa": 0.05}
    plan = load(POSITIONS + "learning_rate: search\n")
    matrix = build_matrix(plan, lambda config: "x", lambda plan, variant: found[variant.config.model.gate.position])
    assert rates_of(matrix) == {"position=none": 0.02, "position=sdpa": 0.05}
    assert not any("neither an axis nor declared fixed" in note for note in matrix.notes)


def test_each_variant_has_learning_rates_of_its_own(plan: Plan) -> None:
    """A search's cells: labels, levels, trials seed by seed, and the baseline at the same learning rate if there."""
    matrix = plan(POSITIONS + "seeds: 2\n")
    found = cells(matrix, {"position=none": [0.1, 0.001], "position=sdpa": [0.001, 0.0123]})
    assert found.plan.study.name == f"mine{SEARCH_SUFFIX}"
    assert [variant.label for variant in found.variants] == [
        "position=none, learning_rate=0.001", "position=none, learning_rate=0.1",
        "position=sdpa, learning_rate=0.001", "position=sdpa, learning_rate=0.0123",
    ]  # fmt: skip
    assert list(rates_of(found).values()) == [0.001, 0.1, 0.001, 0.0123]
    assert found.variants[3].levels == {"model.gate.position": "sdpa", LEARNING_RATE: "0.0123"}
    assert [variant.baseline for variant in found.variants] == [
        "position=none, learning_rate=0.001", "position=none, learning_rate=0.1",
        "position=none, learning_rate=0.001", None,
    ]  # fmt: skip
    assert [(trial.seed, trial.variant) for trial in found.trials] == [
        (seed, variant.label) for seed in (0, 1) for variant in found.variants
    ]
    assert [axis.name for axis in found.plan.axes] == ["model.gate.position", LEARNING_RATE]
    assert [level.label for level in found.plan.axes[-1].levels] == ["0.001", "0.0123", "0.1"]


def test_a_study_without_axes_can_be_searched(plan: Plan) -> None:
    """One configuration has a learning rate, too."""
    found = cells(plan("seeds: 1\n"), {"base": [0.01, 0.1, 1.0]})
    assert [variant.label for variant in found.variants] == [f"learning_rate={rate}" for rate in ("0.01", "0.1", "1")]
    assert label_at("a=b", 3e-4) == "a=b, learning_rate=0.0003"


@pytest.mark.parametrize("match", ["none", "parameters"])
def test_cells_are_the_trials_of_a_plain_study_at_that_rate(plan: Plan, match: str) -> None:
    """Equal work is done once: whoever has trained at a learning rate need not do so again for a search."""
    text = POSITIONS + f"seeds: 2\nmatch: {match}\n"
    rates = [0.001, 0.02]
    searched = cells(plan(text), {"position=none": rates, "position=sdpa": rates})
    at = {(trial.variant, trial.seed): trial.id for trial in searched.trials}
    for rate in rates:
        plain = plan(text + f"base: {{training: {{optimizer: {{learning_rate: {rate}}}}}}}\n")
        for trial in plain.trials:
            assert at[label_at(trial.variant, rate), trial.seed] == trial.id
    assert len(set(at.values())) == 8


def test_other_rates_change_nothing_else(plan: Plan) -> None:
    """`with_rate` is the whole difference between two cells."""
    config = plan("seeds: 1\n").variants[0].config
    before, after = config.model_dump(), with_rate(config, 0.5).model_dump()
    assert after["training"]["optimizer"].pop("learning_rate") == 0.5
    del before["training"]["optimizer"]["learning_rate"]
    assert after == before


def test_a_search_beyond_the_budget_is_refused(plan: Plan) -> None:
    """The limit that a study sets itself holds for its search as well."""
    matrix = plan(POSITIONS + "budget: {trials: 5}\n")
    rates = {"position=none": [0.1, 0.2, 0.3], "position=sdpa": [0.1, 0.2]}
    assert len(cells(matrix, rates).trials) == 5
    rates["position=sdpa"].append(0.3)
    with pytest.raises(StudyError, match=r"budget.trials = 5: the search would come to 6 trials"):
        cells(matrix, rates)


def test_the_ladder_is_what_models_and_budgets_grow_along(load: Load) -> None:
    """Sizes and budgets are rungs; everything else is compared on them."""
    plan = load(
        """\
        axes:
          model.gate.position: [none, sdpa]
          size:
            small: {model.layers: 1, model.hidden_size: 16, model.gate.bias: 0}
            large: {model.layers: 2, model.hidden_size: 32}
          training.tokens: [1M, 2M]
          training.sequence_length: [32, 64]
          model.ffn_size: [8, 16]
        """
    )
    assert ladder(plan) == ("size", "training.tokens", "model.ffn_size")
    assert plan.baseline == {"model.gate.position": "none", "training.sequence_length": "32"}
    compared = replace(plan, study=plan.study.model_copy(update={"baseline": {"size": "small"}}))
    assert ladder(compared) == ("training.tokens", "model.ffn_size")  # what a baseline names is compared
    assert ladder(replace(plan, axes=plan.axes[:1])) == ()


def test_flags_and_file_say_together_how_a_search_is_made(write: Callable[[str], Path]) -> None:
    """`--margin` must not throw the file's window away."""
    path = write("tolerance: {rates: [0.1, 0.2, 0.4], margin: 0.05, extend: 1}\n")
    how = study_from_flags(path, tolerance={"margin": 0.01}).study.tolerance
    assert (how.rates, how.margin, how.extend, how.resolution) == ([0.1, 0.2, 0.4], 0.01, 1, 0.15)
    assert study_from_flags(path, tolerance={}).study.tolerance.margin == 0.05
    alone = study_from_flags(axes=["model.layers=1,2"], tolerance={"rates": [0.1, 0.2, 0.3]})
    assert alone.study.tolerance.rates == [0.1, 0.2, 0.3]
    assert alone.study.name == study_from_flags(axes=["model.layers=1,2"]).study.name  # the same question
    with pytest.raises(StudyError, match=r"tolerance.rates.1 = 'fast': expected a number"):
        study_from_flags(path, tolerance={"rates": [0.1, "fast", 0.3]})


def test_a_study_that_continues_another_is_searched_as_it_says(tmp_path: Path) -> None:
    """Its learning rates are its own: how those of the first were found does not bind it."""
    (tmp_path / "first.yaml").write_text(POSITIONS + "learning_rate: search\n")
    (tmp_path / "next.yaml").write_text("continues: first.yaml\nbase: {training.tokens: 1k}\n")
    plan = study_from_flags(tmp_path / "next.yaml")
    assert plan.study.learning_rate == "given"

    def known(plan: StudyPlan, variant: Variant) -> float | Unavailable:
        return 0.07 if plan.study.name == "first" else Unavailable("not this one")

    matrix = build_matrix(plan, lambda config: "x", known)
    assert matrix.parent is not None
    assert set(rates_of(matrix.parent).values()) == {0.07}
    assert set(rates_of(matrix).values()) != {0.07}


def test_a_rate_is_read_as_it_is_written() -> None:
    """Three digits, no more: a learning rate that gatelab chooses is part of a trial's name."""
    assert [rounded(rate) for rate in (0.0123456, 1.0, 3e-4, 9.999e-5)] == [0.0123, 1.0, 3e-4, 1e-4]
    assert ToleranceConfig(rates=[0.0012345, 0.02, 0.3]).rates == [0.00123, 0.02, 0.3]
    with pytest.raises(ValidationError, match="ascending"):
        ToleranceConfig(rates=[0.1, 0.10001, 0.3])
