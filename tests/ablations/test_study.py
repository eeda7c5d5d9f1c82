"""Studies are read as meant, or refused with everything that is wrong with them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.ablations.loading import load_study
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.study import StudyPlan

Refusal = Callable[[str], list[tuple[Any, ...]]]
Plan = Callable[..., Matrix]

AXIS = "axes: {model.layers: [1, 2]}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("sedes: 3\n", [(1, "sedes", None, "did you mean seeds?")], id="unknown key"),
        pytest.param(
            "base:\n  model:\n    layrs: 3\n",
            [(3, "base.model.layrs", None, "did you mean model.layers?")],
            id="base key",
        ),
        pytest.param(
            "seeds: 1\nbudget:\n  trails: 3\n", [(3, "budget.trails", None, "did you mean trials?")], id="budget"
        ),
        pytest.param("budget: {hours: 0}\n", [(1, "budget.hours", 0, "more than 0")], id="budget value"),
        pytest.param(
            "base:\n  model: {layers: 2}\n  training:\n    optimizer:\n      learning_rate: fast\n",
            [(5, "base.training.optimizer.learning_rate", "fast", "number")],
            id="base value",
        ),
        pytest.param(
            "axes:\n  model.layers: [1,\n    2,\n    two, -1]\n",
            [(4, "axes.model.layers", "two", "whole number"), (4, "axes.model.layers", -1, "1 or more")],
            id="levels",
        ),
        pytest.param(
            "axes:\n  size:\n    small: {model.layers: 1}\n    big:\n      model.layers: 2\n      model.hiden_size: 9",
            [(4, "axes.size.big.model.hiden_size", None, "did you mean model.hidden_size?")],
            id="path of a named level",
        ),
        pytest.param(
            "axes:\n  modle.layers: [1, 2]\n", [(2, "axes.modle.layers", None, "did you mean model.layers?")], id="path"
        ),
        pytest.param("base: tiny-dens\n", [(1, "base", "tiny-dens", "did you mean tiny-dense?")], id="base"),
        pytest.param(
            "base:\n  preset: smal-dense\n",
            [(2, "base.preset", "smal-dense", "did you mean small-dense?")],
            id="preset",
        ),
        pytest.param("base: {preset: [a]}\n", [(1, "base.preset", ["a"], "no such base")], id="preset that is no name"),
        pytest.param(
            "base: {model.gate: {position: sdpa, bias: .inf}}\n",
            [(1, "base.model.gate.bias", math.inf, "finite")],
            id="infinite value",
        ),
        pytest.param(
            "axes:\n  model.layers: []\n", [(2, "axes.model.layers", [], "at least one level")], id="no level"
        ),
        pytest.param(
            "axes:\n  model.layers: [1, 2, 1]\n", [(2, "axes.model.layers", [1, 2, 1], "twice")], id="level twice"
        ),
        pytest.param(
            "axes:\n  model.layers: [1, 2]\n  size:\n    a: {model.layers: 3}\n",
            [(3, "axes.size", None, "sets model.layers, which axis model.layers sets too")],
            id="two axes, one path",
        ),
        pytest.param("axes:\n  seed: [0, 1]\n", [(2, "axes.seed", None, "use seeds")], id="seed as an axis"),
        pytest.param("seeds: 0\n", [(1, "seeds", 0, "at least one")], id="no seeds"),
        pytest.param("seeds: [1, 1]\n", [(1, "seeds", [1, 1], "each once")], id="seed twice"),
        pytest.param("seeds: [0, -1]\n", [(1, "seeds.1", -1, "0 or more")], id="negative seed"),
        pytest.param(
            AXIS + "baseline: {layers: 1}\n",
            [(2, "baseline.layers", None, "did you mean model.layers?")],
            id="baseline",
        ),
        pytest.param(
            AXIS + "baseline:\n  model.layers: 3\n",
            [(3, "baseline.model.layers", "3", "it has 1, 2")],
            id="baseline level",
        ),
        pytest.param(
            AXIS + "exclude:\n  - model.layers: 1\n    modle.layers: 1\n",
            [(4, "exclude[0].modle.layers", None, "did you mean model.layers?")],
            id="exclude",
        ),
        pytest.param(
            AXIS + "nuisance: [model.layer]\n",
            [(2, "nuisance", "model.layer", "did you mean model.layers?")],
            id="nuisance",
        ),
        pytest.param("fixed: [training.token]\n", [(1, "fixed", "training.token", "training.tokens?")], id="fixed"),
        pytest.param(
            AXIS + "fixed: [model.layers]\n", [(2, "fixed", "model.layers", "an axis varies it")], id="not fixed"
        ),
        pytest.param(
            "axes: {model.ffn_size: [8, 16]}\nmatch: flops\n", [(2, "match", "flops", "model.ffn_size")], id="match"
        ),
        pytest.param("match: params\n", [(1, "match", "params", "'none', 'parameters' or 'flops'")], id="match value"),
        pytest.param("name: my study\n", [(1, "name", "my study", "")], id="name"),
    ],
)
def test_a_wrong_study_is_refused_with_its_place(text: str, expected: list[tuple[Any, ...]], refusal: Refusal) -> None:
    """A person must be told file, line, key, value and what would be right, for this problem and no other."""
    found = refusal(text)
    assert [problem[:3] for problem in found] == [problem[:3] for problem in expected]
    for (*_, message), (*_, fragment) in zip(found, expected, strict=True):
        assert fragment in message


def test_all_that_is_wrong_is_said_at_once(refusal: Refusal) -> None:
    """Mending a study must not take as many attempts as it has mistakes."""
    found = refusal(
        """\
        sedes: 3
        base:
          model: {layrs: 3}
          training: {tokens: lots}
        axes:
          modle.layers: [1]
          model.layers: [1, x]
          model.kv_heads: []
          seed: [1]
        exclude:
          - {model.lay: 1}
        baseline: {model.kv_heads: 3}
        budget: {trials: 0, ours: 1}
        nuisance: [nothing]
        fixed: [model.layers]
        match: size
        """
    )
    assert {(line, key) for line, key, *_ in found} == {
        (1, "sedes"),
        (3, "base.model.layrs"),
        (4, "base.training.tokens"),
        (6, "axes.modle.layers"),
        (7, "axes.model.layers"),
        (8, "axes.model.kv_heads"),
        (9, "axes.seed"),
        (11, "exclude[0].model.lay"),
        (12, "baseline.model.kv_heads"),
        (13, "budget.trials"),
        (13, "budget.ours"),
        (14, "nuisance"),
        (15, "fixed"),
        (16, "match"),
    }


def test_a_dotted_key_of_the_base_is_found_in_its_own_line(refusal: Refusal) -> None:
    """Dotted keys are as good as nested ones, also where they are wrong."""
    found = refusal(
        "base:\n  model.layers: 2\n  model.layrs: 2\n  training.tokens: lots\n  model: {gate.position: top}\n"
    )
    assert [problem[:2] for problem in found] == [
        (3, "base.model.layrs"),
        (4, "base.training.tokens"),
        (5, "base.model.gate.position"),
    ]


@pytest.mark.parametrize(
    ("text", "key", "fragment"),
    [
        pytest.param(
            AXIS + "exclude: [{model.layers: [1, 2]}]\n", "exclude", "2 combinations excluded", id="all excluded"
        ),
        pytest.param(
            "base: {model.query_heads: 3, model.kv_heads: 2}\n",
            "base",
            "query_heads (3) must be a multiple",
            id="impossible",
        ),
        pytest.param(
            AXIS + "baseline: {model.layers: 1}\nexclude: [{model.layers: 1}]\n",
            "baseline",
            "model.layers=1 is not in the matrix",
            id="baseline excluded",
        ),
        pytest.param(AXIS + "seeds: 3\nbudget: {trials: 5}\n", "budget.trials", "the matrix has 6 trials", id="budget"),
    ],
)
def test_a_matrix_that_cannot_be_run_is_refused(text: str, key: str, fragment: str, refusal: Refusal) -> None:
    """What only the whole matrix shows is refused before anything runs, too, with the reason."""
    [(_, found, _, message)] = refusal(text)
    assert found == key
    assert fragment in message


def test_a_budget_that_is_met_exactly_is_kept(plan: Plan) -> None:
    """A limit is what may be reached."""
    assert len(plan(AXIS + "seeds: 3\nbudget: {trials: 6}\n").trials) == 6


@pytest.mark.parametrize("text", ["", "- a\n", "word\n"], ids=["empty", "list", "word"])
def test_a_file_that_holds_no_study_is_refused(text: str, refusal: Refusal) -> None:
    """An empty file is not an empty study."""
    [(_, key, _, message)] = refusal(text)
    assert key == "file"
    assert "mapping" in message


def test_the_latest_word_counts(load: Callable[..., StudyPlan], plan: Plan) -> None:
    """Defaults < preset < the study's mapping < the command line < axes: anything else would run another study."""
    mapping = "base: {preset: small-dense, model: {layers: 6}}\n"

    def layers(matrix: Matrix) -> list[int]:
        return [variant.config.model.layers for variant in matrix.variants]

    assert layers(plan("base: paper-1.7b-28l\n")) == [28]
    assert layers(plan("base: small-dense\n")) == [8]
    assert layers(plan(mapping)) == [6]
    assert layers(plan(mapping, {"model.layers": 5})) == [5]
    assert layers(plan(mapping + "axes: {model.layers: [3, 7]}\n", {"model.layers": 5})) == [3, 7]
    config = plan(mapping, {"model.layers": 5}).variants[0].config
    assert config.model.hidden_size == 256  # the preset's
    assert config.model.rope_base == 10_000.0  # the default
    assert load("seeds: 2\n").base["model"]["layers"] == 4  # tiny-dense where no base is named


def test_overrides_are_checked_like_the_file(write: Callable[[str], Path]) -> None:
    """A mistyped --set must not be run as if it were not there."""
    with pytest.raises(ValueError, match=r"--set model\.layrs: .*did you mean model\.layers\?") as caught:
        load_study(write("seeds: 1\n"), {"model.layrs": 3, "model.layers": "x"})
    assert "--set model.layers = 'x': expected a whole number" in str(caught.value)


def test_dotted_and_nested_keys_say_the_same(load: Callable[..., StudyPlan]) -> None:
    """Both ways of writing a base may be mixed, and neither drops what the other or the preset set beside it."""
    nested = load("name: a\nbase: {model: {layers: 2, gate: {position: sdpa, activation: tanh}}}\n")
    dotted = load("name: a\nbase: {model.layers: 2, model.gate: {position: sdpa}, model.gate.activation: tanh}\n")
    mixed = load("name: a\nbase: {model: {layers: 2, gate.position: sdpa}, model.gate.activation: tanh}\n")
    assert nested.base == dotted.base == mixed.base
    assert nested.base["model"]["hidden_size"] == 64  # tiny-dense's
    assert nested.hash == dotted.hash == mixed.hash


def test_the_hash_of_a_study_is_of_what_it_asks(load: Callable[..., StudyPlan]) -> None:
    """Results of one question must be told from another's; how a file is laid out makes no difference."""
    plans = [
        load("name: a\nseeds: 2\naxes: {model.layers: [1, 2], model.kv_heads: [1, 2]}\n"),
        load("# the same\naxes:\n  model.kv_heads: [1, 2]\n  model.layers: [1, 2]\nname: a\nseeds: [0, 1]\n"),
        load("name: a\nseeds: 3\naxes: {model.layers: [1, 2], model.kv_heads: [1, 2]}\n"),
        load("name: a\nseeds: 2\naxes: {model.layers: [1, 3], model.kv_heads: [1, 2]}\n"),
        load("name: a\nseeds: 2\nbase: {model.norm_eps: 1e-5}\naxes: {model.layers: [1, 2], model.kv_heads: [1, 2]}\n"),
    ]
    assert plans[0].hash == plans[1].hash
    assert len({plan.hash for plan in plans}) == 4


def test_a_study_is_named_after_its_file(load: Callable[..., StudyPlan]) -> None:
    """A study file needs no name of its own."""
    assert load("seeds: 1\n").study.name == "mine"
    assert load("name: other\n").study.name == "other"


def test_named_levels_set_several_paths_together(plan: Plan) -> None:
    """Linked axes are no product: two levels of two paths are two variants, not four."""
    matrix = plan(
        """\
        axes:
          size:
            small: {model.layers: 1, model.ffn_size: 32}
            large: {model.layers: 2, model.ffn_size: 64}
          training.optimizer.learning_rate: [1e-3, 2e-3]
        """
    )
    shapes = {(v.levels["size"], v.config.model.layers, v.config.model.ffn_size) for v in matrix.variants}
    assert shapes == {("small", 1, 32), ("large", 2, 64)}
    assert matrix.combinations == len(matrix.variants) == 4
    assert matrix.variants[0].label == "size=small, learning_rate=0.001"


def test_counts_may_be_written_short(plan: Plan) -> None:
    """300k and 300000 are one and the same training budget, and one trial."""
    matrix = plan("axes: {training.tokens: [300k, 300000, 1.5M]}\n")
    assert [variant.config.training.tokens for variant in matrix.variants] == [300_000, 1_500_000]
