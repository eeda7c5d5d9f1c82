"""The matrix holds every trial that was asked for, once, and says what became of the rest."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.ablations.errors import StudyError
from gatelab.ablations.loading import make_study
from gatelab.ablations.matrix import Matrix, Variant
from gatelab.ablations.pipeline import build_matrix

Plan = Callable[..., Matrix]

POSITION, GRANULARITY = "model.gate.position", "model.gate.granularity"
SHARING, RATE = "model.gate.sharing", "training.optimizer.learning_rate"
LEVELS: dict[str, list[Any]] = {
    POSITION: ["none", "query", "key", "value", "sdpa", "output", "value+sdpa", "sdpa+value"],
    GRANULARITY: ["elementwise", "headwise"],
    SHARING: ["per_head", "averaged", "shared"],
    RATE: [1e-3, 2e-3],
}

Combination = dict[str, Any]


def is_impossible(combination: Combination, qk_norm: bool) -> bool:
    """The dense output has no heads; QK-norm undoes a scale for each query or key head."""
    positions = set(combination[POSITION].split("+"))
    whole = combination[GRANULARITY] == "elementwise" and combination[SHARING] == "per_head"
    return ("output" in positions and not whole) or (
        combination[GRANULARITY] == "headwise" and qk_norm and bool(positions & {"query", "key"})
    )


def effective(combination: Combination) -> tuple[Any, ...]:
    """What a combination trains: without a gate its other fields mean nothing; positions have no order."""
    if combination[POSITION] == "none":
        return ("none", combination[RATE])
    return (
        frozenset(combination[POSITION].split("+")),
        *(combination[name] for name in (GRANULARITY, SHARING, RATE)),
    )


def of_variant(variant: Variant) -> Combination:
    """The combination that a variant trains."""
    gate = variant.config.model.gate
    rate = variant.config.training.optimizer.learning_rate
    return {POSITION: gate.position, GRANULARITY: gate.granularity, SHARING: gate.sharing, RATE: rate}


@st.composite
def studies(draw: st.DrawFn) -> tuple[dict[str, list[Any]], list[dict[str, Any]], bool, int]:
    """Axes (each with at least one level), exclusions, QK-norm, seeds."""
    axes = {
        name: draw(st.lists(st.sampled_from(levels), min_size=1, max_size=4, unique=True))
        for name, levels in LEVELS.items()
    }
    rule = st.dictionaries(st.sampled_from(list(LEVELS)), st.none(), min_size=1, max_size=2).flatmap(
        lambda names: st.fixed_dictionaries(
            {
                name: st.sampled_from(LEVELS[name]) | st.lists(st.sampled_from(LEVELS[name]), min_size=1)
                for name in names
            }
        )
    )
    return axes, draw(st.lists(rule, max_size=3)), draw(st.booleans()), draw(st.integers(1, 3))


@settings(deadline=None, max_examples=60)
@given(studies())
def test_the_matrix_is_the_product_less_what_is_excluded_impossible_or_equal(
    study: tuple[dict[str, list[Any]], list[dict[str, Any]], bool, int],
) -> None:
    """A trial too few is a hole in the table; one too many is paid for twice."""
    axes, rules, qk_norm, seeds = study
    product = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def as_read(value: Any) -> list[str]:
        return sorted(str(value).split("+"))  # value+sdpa is sdpa+value

    def is_excluded(combination: Combination) -> bool:
        return any(
            all(
                as_read(combination[name]) in map(as_read, wanted if isinstance(wanted, list) else [wanted])
                for name, wanted in rule.items()
            )
            for rule in rules
        )

    left = [c for c in product if not is_excluded(c) and not is_impossible(c, qk_norm)]
    base = {"model.qk_norm": qk_norm}
    plan = make_study({"name": "a", "base": base, "axes": axes, "exclude": rules, "seeds": seeds}, "test")
    if product[0] not in left:  # the first levels are the baseline
        with pytest.raises(StudyError, match="baseline" if left else "nothing is left"):
            build_matrix(plan, lambda config: "x")
        return
    matrix = build_matrix(plan, lambda config: "x")

    assert [effective(of_variant(variant)) for variant in matrix.variants] == list(dict.fromkeys(map(effective, left)))
    assert len(matrix.trials) == len(matrix.variants) * seeds == len({trial.id for trial in matrix.trials})
    assert len({variant.label for variant in matrix.variants}) == len(matrix.variants)
    assert matrix.combinations == len(product)
    assert len(matrix.excluded) == sum(map(is_excluded, product))
    assert len(matrix.impossible) == len(product) - len(matrix.excluded) - len(left)
    assert sum(map(len, matrix.folded.values())) + len(matrix.variants) - len(matrix.folded) == len(left)
    for variant in matrix.variants:  # an axis that is named makes a difference; its level is the variant's own
        same = [c for c in left if effective(c) == effective(of_variant(variant))]
        assert variant.levels == {
            name: f"{same[0][name]:g}" if name == RATE else same[0][name]
            for name in axes
            if len({c[name] for c in same}) == 1
        }


def test_without_a_gate_its_other_fields_fold(plan: Plan) -> None:
    """The ungated baseline is trained once, not once for each granularity, and the plan says so."""
    matrix = plan("axes: {model.gate.position: [none, sdpa], model.gate.granularity: [elementwise, headwise]}\n")
    assert [variant.label for variant in matrix.variants] == [
        "position=none",
        "position=sdpa, granularity=elementwise",
        "position=sdpa, granularity=headwise",
    ]
    assert matrix.variants[0].levels == {POSITION: "none"}
    assert matrix.folded == {
        "position=none": ("position=none, granularity=elementwise", "position=none, granularity=headwise")
    }


def test_the_impossible_is_listed_with_its_reason(plan: Plan) -> None:
    """A hole in a table must be explained; the rest of the study is run."""
    matrix = plan("axes: {model.gate.position: [none, output], model.gate.granularity: [elementwise, headwise]}\n")
    assert list(matrix.impossible) == ["position=output, granularity=headwise"]
    assert "the dense output has no heads" in matrix.impossible["position=output, granularity=headwise"]
    assert len(matrix.variants) == 2


def test_exclusions_say_which_rule_excluded_what(plan: Plan) -> None:
    """A rule may name axes, paths of named levels and fixed fields of the base; a combination meets all of it."""
    matrix = plan(
        """\
        axes:
          model.gate.position: [none, value, sdpa]
          size:
            small: {model.layers: 1}
            large: {model.layers: 2}
        exclude:
          - {model.gate.position: [value, sdpa], size: large}
          - {model.layers: 1, model.gate.position: value, model.hidden_size: 64}
          - {model.layers: 1, model.hidden_size: 65}
        """
    )
    assert matrix.excluded == {
        "position=value, size=small": "model.layers: 1, model.gate.position: value, model.hidden_size: 64",
        "position=value, size=large": "model.gate.position: ['value', 'sdpa'], size: large",
        "position=sdpa, size=large": "model.gate.position: ['value', 'sdpa'], size: large",
    }
    assert "exclude[2] (model.layers: 1, model.hidden_size: 65) excludes nothing" in matrix.notes
    assert not any("exclude[0]" in note or "exclude[1]" in note for note in matrix.notes)


@pytest.mark.parametrize("value", ["300k", "300000", "[0.3M, 5]"])
def test_exclusions_read_values_as_axes_do(value: str, plan: Plan) -> None:
    """A value that is written in another way than the level is the same value: the rule must not miss it."""
    matrix = plan(
        "axes: {length: {short: {training.tokens: 300k}, long: {training.tokens: 1M}}, model.layers: [1, 2]}\n"
        f"exclude: [{{training.tokens: {value}, model.layers: 2}}]\n"
    )
    assert list(matrix.excluded) == ["length=short, layers=2"]


@pytest.mark.parametrize("named", ["baseline: {model.gate.position: none}", f"nuisance: [{RATE}]"], ids=str.split)
def test_each_variant_is_compared_at_its_own_learning_rate(named: str, plan: Plan) -> None:
    """A comparison across learning rates would credit the gate with what the rate did."""
    matrix = plan(f"{named}\naxes: {{model.gate.position: [none, sdpa], {RATE}: [1e-3, 2e-3]}}\n")
    baselines = {variant.label: variant.baseline for variant in matrix.variants}
    assert baselines == {
        f"position={position}, learning_rate={rate}": f"position=none, learning_rate={rate}"
        for position in ("none", "sdpa")
        for rate in ("0.001", "0.002")
    }


def test_a_block_without_its_baseline_is_pointed_out(plan: Plan) -> None:
    """Where the baseline of one learning rate is excluded, its variants are compared with none, not with another's."""
    matrix = plan(
        f"axes: {{model.gate.position: [none, sdpa], {RATE}: [1e-3, 2e-3]}}\nbaseline: {{model.gate.position: none}}\n"
        f"exclude: [{{model.gate.position: none, {RATE}: 2e-3}}]\n"
    )
    alone = matrix.variant("position=sdpa, learning_rate=0.002")
    assert (alone.baseline, alone.added_parameters) == (None, None)
    assert matrix.variant("position=sdpa, learning_rate=0.001").baseline == "position=none, learning_rate=0.001"
    assert "without a baseline to compare with: position=sdpa, learning_rate=0.002" in matrix.notes


def test_a_gate_costs_what_table_1_says(plan: Plan) -> None:
    """Unmatched variants show what they add: a score for each channel or head and layer, from the hidden state."""
    matrix = plan("axes: {model.gate.position: [none, sdpa], model.gate.granularity: [elementwise, headwise]}\n")
    layers, hidden, heads, width = 4, 64, 4, 16  # tiny-dense
    added = {variant.label: variant.added_parameters for variant in matrix.variants}
    assert added == {
        "position=none": 0,
        "position=sdpa, granularity=elementwise": layers * hidden * heads * width,
        "position=sdpa, granularity=headwise": layers * hidden * heads,
    }


MATCHED = """\
base: {model: {layers: 3, hidden_size: 48, query_heads: 6, kv_heads: 3, head_dim: 8, ffn_size: 100}}
axes:
  model.gate.position: [none, value, sdpa, value+sdpa, output]
  model.gate.granularity: [elementwise, headwise]
  model.layers: [1, 3]
baseline: {model.gate.position: none}
match: %s
"""


@pytest.mark.parametrize("match", ["parameters", "flops"])
def test_matched_variants_are_as_large_as_their_baseline(match: str, plan: Plan) -> None:
    """A gate must not win by its added parameters: what is left is less than half a feed-forward unit."""
    matrix = plan(MATCHED % match)
    assert len(matrix.variants) == 2 * (1 + 2 + 2 + 2 + 1)
    narrowed = 0
    for variant in matrix.variants:
        assert variant.baseline is not None
        baseline, model = matrix.variant(variant.baseline), variant.config.model
        assert baseline.config.model.ffn_size == 100
        assert baseline.config.model.layers == model.layers
        unit = 3 * model.hidden_size * model.layers  # SwiGLU: a row of each of three matrices
        if match == "parameters":
            assert abs(variant.parameters - baseline.parameters) <= unit / 2
            assert variant.added_parameters == variant.parameters - baseline.parameters
        else:
            unit *= 2 * 3  # a multiplication and an addition; backward twice as much as forward
            assert abs(variant.flops_per_token - baseline.flops_per_token) <= unit / 2
        assert model.ffn_size == 100 if variant is baseline else model.ffn_size <= 100
        narrowed += model.ffn_size < 100
    assert narrowed >= len(matrix.variants) - 4  # all gates but perhaps the smallest


def test_a_variant_that_cannot_be_matched_is_impossible(plan: Plan) -> None:
    """A gate larger than the whole feed-forward layer cannot be paid for by narrowing that: say so, and go on."""
    matrix = plan("base: {model.ffn_size: 8}\naxes: {model.gate.position: [none, sdpa, value]}\nmatch: parameters\n")
    assert [variant.label for variant in matrix.variants] == ["position=none"]
    assert list(matrix.impossible) == ["position=sdpa", "position=value"]
    assert "more parameters than its baseline" in matrix.impossible["position=sdpa"]
    assert {trial.variant for trial in matrix.trials} == {"position=none"}


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        (f"axes: {{{RATE}: [1e-3, 2e-3]}}\n", False),
        ("axes: {arm: {a: {training.optimizer.learning_rate: 1e-3}, b: {model.layers: 2}}}\n", False),
        (f"fixed: [{RATE}]\n", False),
        ("axes: {model.layers: [1, 2]}\n", True),
    ],
    ids=["axis", "in a named level", "fixed", "neither"],
)
def test_an_untuned_learning_rate_is_pointed_out(text: str, noted: bool, plan: Plan) -> None:
    """Variants differ in their best learning rate: a comparison at one rate is a caveat, said unless it is meant."""
    notes = [note for note in plan(text).notes if RATE in note]
    assert bool(notes) is noted
    if noted:
        assert "neither an axis nor declared fixed" in notes[0]
        assert "0.01" in notes[0]  # tiny-dense's


def test_a_single_seed_is_pointed_out(plan: Plan) -> None:
    """One seed gives no interval: better known before the study than after it."""
    assert any("one seed" in note for note in plan("seeds: 1\n").notes)
    assert not any("one seed" in note for note in plan("seeds: 2\n").notes)


def test_trials_come_in_complete_blocks_of_a_seed(plan: Plan) -> None:
    """A study that is cut short has whole blocks to compare, and equal seeds to pair."""
    matrix = plan("axes: {model.gate.position: [none, value, sdpa]}\nseeds: [4, 0, 9]\n")
    labels = [variant.label for variant in matrix.variants]
    assert [(trial.seed, trial.variant) for trial in matrix.trials] == list(itertools.product([4, 0, 9], labels))
    for trial in matrix.trials:
        assert trial.config == matrix.variant(trial.variant).config.model_copy(update={"seed": trial.seed})


def test_axes_are_named_by_their_ends_as_far_as_these_differ(plan: Plan) -> None:
    """Labels stay short, and two axes are never taken for each other."""
    matrix = plan("axes: {training.tokens: [1k], evaluation.tokens: [2k], model.layers: [1]}\n")
    assert matrix.variants[0].label == "training.tokens=1k, evaluation.tokens=2k, layers=1"
    named = plan("axes: {tokens: {few: {training.tokens: 1k}}, evaluation.tokens: [2k]}\n")
    assert named.variants[0].label == "tokens=few, evaluation.tokens=2k"


def test_data_is_identified_once_for_each_configuration(plan: Plan, load: Callable[..., Any]) -> None:
    """Identities come from reading a corpus: a study of a thousand variants must not read it a thousand times."""
    asked = []
    axes = "axes: {data.tokenizer: [bytes, 'bpe:300'], model.gate.position: [none, value, sdpa]}\nseeds: 5\n"
    build_matrix(load(axes), lambda config: asked.append(config.tokenizer) or "x")
    assert sorted(asked) == ["bpe:300", "bytes"]
