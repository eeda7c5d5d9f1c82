"""Claims are read as meant or refused in their own line, and neither they nor more seeds name any trial anew."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from gatelab.ablations.errors import StudyError
from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.learning_rate_grid import learning_rate_grid
from gatelab.ablations.learning_rates import LEARNING_RATE
from gatelab.ablations.loading import load_study, make_study
from gatelab.ablations.matrix import Matrix, claimed_of
from gatelab.ablations.pipeline import build_matrix
from gatelab.ablations.study import StudyPlan

Refusal = Callable[[str], list[tuple[Any, ...]]]
Plan = Callable[..., Matrix]

STUDY = """\
axes:
  model.gate.position: [none, value, sdpa]
  model.layers: [1, 2]
  model.tie_embeddings: [true, false]
baseline: {model.gate.position: none}
"""


# --- What is refused ---


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        pytest.param(
            "claims:\n  it helps:\n    metrc: validation/loss\n",
            (8, "claims.it helps.metrc", None, "did you mean metric?"),
            id="key",
        ),
        pytest.param(
            "claims:\n  it helps: {direction: down}\n",
            (7, "claims.it helps.direction", "down", "'lower', 'higher' or 'equivalent'"),
            id="direction",
        ),
        pytest.param(
            "claims:\n  it helps:\n    direction: lower\n    test: wilcoxon\n",
            (9, "claims.it helps.test", "wilcoxon", "'t', 'sign-flip' or 'dunnett'"),
            id="test",
        ),
        pytest.param(
            "claims:\n  it helps: {margin: -0.1}\n",
            (7, "claims.it helps.margin", -0.1, "0 or more"),
            id="margin",
        ),
        pytest.param(
            "claims:\n  it helps: {alpha: 0.5}\n", (7, "claims.it helps.alpha", 0.5, "less than 0.5"), id="alpha"
        ),
        pytest.param("claims:\n  it helps: {alpha: 0}\n", (7, "claims.it helps.alpha", 0, "more than 0"), id="zero"),
        pytest.param(
            "claims:\n  a: {}\n  b:\n    direction: equivalent\n",
            (8, "claims.b", None, "equivalent needs a margin"),
            id="equivalent to any digit",
        ),
        pytest.param(
            "claims:\n  a:\n    margin: 0.02\n    expected: 0.02\n",
            (7, "claims.a", None, "expected (0.02) must exceed the margin (0.02)"),
            id="never supported",
        ),
        pytest.param(
            "claims:\n  a:\n    variant:\n      model.gate.positon: sdpa\n",
            (9, "claims.a.variant.model.gate.positon", None, "did you mean model.gate.position?"),
            id="axis",
        ),
        pytest.param(
            "claims:\n  a:\n    variant: {model.gate.position: [value, spda]}\n",
            (8, "claims.a.variant.model.gate.position", "spda", "it has none, value, sdpa"),
            id="level",
        ),
        pytest.param(
            "claims:\n  a:\n    variant:\n      model.layers: 3\n",
            (9, "claims.a.variant.model.layers", "3", "it has 1, 2"),
            id="number",
        ),
        pytest.param("claims: [it helps]\n", (6, "claims", ["it helps"], "expected keys with values"), id="list"),
        pytest.param("claims:\n  it helps: lower\n", (7, "claims.it helps", "lower", ""), id="word"),
    ],
)
def test_a_wrong_claim_is_refused_with_its_place(claims: str, expected: tuple[Any, ...], refusal: Refusal) -> None:
    """A claim with a typing mistake would be locked with the study: file, line, key, value and what would be right."""
    [found] = refusal(STUDY + claims)
    line, key, value, message = found
    assert (line, key) == expected[:2]
    assert value == expected[2] or expected[2] is None
    assert expected[3] in message


def test_all_wrong_claims_are_said_at_once(refusal: Refusal) -> None:
    """As all else that is wrong with a study: first what cannot be read, then what names no axis or level."""
    found = refusal(STUDY + "claims:\n  a: {metrc: x}\n  b:\n    alpha: 2\n")
    assert [problem[:2] for problem in found] == [(7, "claims.a.metrc"), (9, "claims.b.alpha")]
    found = refusal(STUDY + "claims:\n  a: {variant: {model.layers: 7}}\n  b: {}\n  c: {variant: {model.layer: 1}}\n")
    assert [problem[:2] for problem in found] == [
        (7, "claims.a.variant.model.layers"),
        (9, "claims.c.variant.model.layer"),
    ]


def test_names_are_free_text(plan: Plan, refusal: Refusal) -> None:
    """What is claimed is said in words, whichever they are: in a study that is right and in one that is refused."""
    names = ["a gate helps: by 0.01 [nats]", "Δ < 0, at p ≤ 5 %", "3", "auto"]
    matrix = plan(STUDY + "claims:\n" + "".join(f'  "{name}": {{margin: 0.01}}\n' for name in names))
    assert list(matrix.plan.study.claims) == names
    found = refusal("claims:\n" + "".join(f'  "{name}": {{metrc: x}}\n' for name in names))
    assert [problem[:2] for problem in found] == [(2 + at, f"claims.{name}.metrc") for at, name in enumerate(names)]
    assert {problem[3] for problem in found} == {"unknown key; did you mean metric?"}


@pytest.mark.parametrize("name", ["two\\nlines", "", "tab\\there", "\\e[31mred", "bell\\a", "\\x7f"])
def test_a_name_is_one_line(name: str, plan: Plan) -> None:
    """Tables, terminals and the register show it: a line break would break a row, an escape colour the screen."""
    with pytest.raises(StudyError) as caught:
        plan(STUDY + f'claims:\n  "{name}": {{}}\n')
    [problem] = caught.value.problems
    assert problem.key.startswith("claims")
    assert problem.line in (6, 7)
    assert list(plan(STUDY + 'claims:\n  "a \\u00e9 name": {}\n').plan.study.claims) == ["a é name"]


# --- What is claimed of which variants ---


@pytest.mark.parametrize(
    ("named", "count"),
    [
        ("{}", 8),
        ("{model.gate.position: sdpa}", 4),
        ("{model.gate.position: [sdpa, value]}", 8),
        ("{model.gate.position: sdpa, model.layers: 2}", 2),
        ("{model.gate.position: value, model.layers: [1, 2], model.tie_embeddings: true}", 2),
        ("{model.tie_embeddings: [false]}", 4),
        ("{model.gate.position: none}", 0),
    ],
)
def test_a_claim_is_about_the_variants_with_its_levels(named: str, count: int, plan: Plan) -> None:
    """Of each variant that has all of these levels, and never of a baseline, which is compared with nothing."""
    matrix = plan(STUDY + f"claims: {{it helps: {{variant: {named}}}}}\n")
    claim = matrix.plan.study.claims["it helps"]
    found = [matrix.variant(label) for label in claimed_of(matrix, claim)]
    assert len(found) == count
    for variant in found:
        assert variant.baseline not in (None, variant.label)
        for axis, level in claim.variant.items():
            levels = level if isinstance(level, list) else [level]
            assert variant.levels[axis] in [str(each).lower() for each in levels]
    note = "claims.it helps: no variant with a baseline of its own is one that it names"
    assert (note in matrix.notes) == (count == 0)


def test_a_level_is_named_as_in_the_axis(plan: Plan) -> None:
    """1e-3 is 0.001, null is a level, and named levels go by their names."""
    text = """\
    axes:
      training.optimizer.clip_norm: [1.0, null]
      training.optimizer.eps: [1e-8, 1e-3]
      size: {small: {model.layers: 1}, big: {model.layers: 2}}
    baseline: {size: small}
    claims:
      a: {variant: {training.optimizer.clip_norm: null, training.optimizer.eps: 0.001, size: big}}
      b: {variant: {training.optimizer.clip_norm: [1, null], size: [big]}}
    """
    matrix = plan(text)
    counts = {name: len(claimed_of(matrix, claim)) for name, claim in matrix.plan.study.claims.items()}
    assert counts == {"a": 1, "b": 4}


# --- Claims and names ---


def hash_of(**fields: Any) -> str:
    """The hash of a study."""
    raw = {
        "name": "a",
        "question": "Which?",
        "base": {"model": {"layers": 2}},
        "axes": {"model.gate.position": ["none", "sdpa"]},
        "baseline": {"model.gate.position": "none"},
        "seeds": 2,
    }
    return make_study({**raw, **fields}, "test").hash


def test_a_study_without_claims_keeps_its_hash() -> None:
    """Results that were there before there were claims are still results of these studies."""
    known = "ce6c9e5a28f7aa467fa741da44ca7d82e19b6c8da48f45aa070ad5cafd93891d"  # as it was before
    assert hash_of() == hash_of(claims={}) == known


def test_claims_are_part_of_a_study_and_not_of_a_trial(plan: Plan) -> None:
    """Another claim is another study to judge, and nothing to run again."""
    hashes = [
        hash_of(),
        hash_of(claims={"a": {}}),
        hash_of(claims={"b": {}}),
        hash_of(claims={"a": {"margin": 0.1}}),
        hash_of(claims={"a": {"variant": {"model.gate.position": "sdpa"}}}),
    ]
    assert len(set(hashes)) == 5
    assert hash_of(claims={"a": {"direction": "lower", "alpha": 0.05}}) == hashes[1]
    bare, claimed = plan(STUDY), plan(STUDY + "claims: {a: {}, b: {margin: 0.1}}\n")
    assert [trial.id for trial in bare.trials] == [trial.id for trial in claimed.trials]


# --- seeds: auto ---


def seeds_of(matrix: Matrix) -> dict[str, list[int]]:
    """The seeds of each variant."""
    return {
        variant.label: [trial.seed for trial in matrix.trials if trial.variant == variant.label]
        for variant in matrix.variants
    }


@pytest.mark.parametrize(("variants", "seeds"), [(1, 6), (2, 8), (3, 10), (4, 12), (8, 17), (12, 21)])
def test_a_baseline_of_many_has_more_seeds(variants: int, seeds: int, plan: Plan) -> None:
    """Round(6 sqrt(k)) for k variants: of as many trials the ones that make differences most certain."""
    levels = list(range(1, variants + 2))
    matrix = plan(f"axes: {{model.layers: {levels}}}\nbaseline: {{model.layers: 1}}\nseeds: auto\n")
    assert matrix.plan.study.seeds == "auto"
    own = seeds_of(matrix)
    assert own.pop("layers=1") == list(range(seeds))
    assert set(map(tuple, own.values())) == {tuple(range(6))}
    assert len(own) == variants


def test_each_baseline_counts_its_own(plan: Plan) -> None:
    """Where several are compared with several, each baseline has the seeds of those that are compared with it."""
    matrix = plan(STUDY.replace("model.tie_embeddings: [true, false]", "model.qk_norm: [true]") + "seeds: auto\n")
    compared = Counter(variant.baseline for variant in matrix.variants)
    assert sorted(compared.values()) == [3, 3]
    own = seeds_of(matrix)
    assert {len(seeds) for label, seeds in own.items() if label in compared} == {8}
    assert {len(seeds) for label, seeds in own.items() if label not in compared} == {6}


def test_without_a_baseline_there_are_six(plan: Plan) -> None:
    """Nothing is compared, so nobody's noise is in every difference."""
    assert plan("seeds: auto\n").plan.study.common_seeds == list(range(6))
    assert set(map(len, seeds_of(plan("seeds: auto\n")).values())) == {6}


def test_automatic_seeds_share_their_trials(plan: Plan) -> None:
    """The same trials as with six seeds, first seed by seed, and then what the baseline has alone."""
    auto, six = plan(STUDY + "seeds: auto\n"), plan(STUDY + "seeds: 6\n")
    assert [trial.id for trial in auto.trials][: len(six.trials)] == [trial.id for trial in six.trials]
    further = auto.trials[len(six.trials) :]
    assert {trial.seed for trial in further} == {6, 7}
    assert {trial.variant for trial in further} == {variant.baseline for variant in auto.variants}
    assert [trial.seed for trial in auto.trials] == sorted(trial.seed for trial in auto.trials)
    assert auto.plan.hash != six.plan.hash


def test_a_budget_counts_all_of_them(refusal: Refusal) -> None:
    """The baseline's further seeds are trials as any other."""
    text = "axes: {model.layers: [1, 2, 3]}\nbaseline: {model.layers: 1}\nseeds: auto\nbudget: {trials: 19}\n"
    [(_, key, _, message)] = refusal(text)
    assert (key, "20 trials" in message) == ("budget.trials", True)


def test_seeds_may_be_automatic_on_the_command_line(write: Callable[[str], Path]) -> None:
    """--seeds auto says what the file could say; another word is refused."""
    path = write("seeds: 2\n")
    assert study_from_flags(path, seeds="auto").study.seeds == "auto"
    with pytest.raises(StudyError, match=r"how many \(3\), which \(\[0, 1, 5\], each once\) or auto"):
        study_from_flags(path, seeds="many")


def test_a_search_has_six_seeds_and_no_claims(plan: Plan) -> None:
    """What finds a learning rate is no comparison: neither more seeds nor claims are for it."""
    text = "axes: {model.gate.position: [none, value, sdpa]}\nseeds: auto\nclaims: {a: {}}\n"
    matrix = plan(text)
    rates = {variant.label: [0.001, 0.01] for variant in matrix.variants}
    search = learning_rate_grid(matrix, rates)
    assert search.plan.study.claims == {}
    assert set(map(tuple, seeds_of(search).values())) == {tuple(range(6))}
    assert len(search.trials) == 6 * 6
    plain = plan(text, {LEARNING_RATE: 0.01})
    assert {trial.id for trial in plain.trials if trial.seed < 6} <= {trial.id for trial in search.trials}


# --- Studies that continue others ---

FIRST = """\
base: {training: {tokens: 40k, sequence_length: 64}}
axes: {model.gate.position: [none, key, value, sdpa, output]}
baseline: {model.gate.position: none}
seeds: auto
claims: {it helps: {variant: {model.gate.position: sdpa}}}
"""


@pytest.fixture
def family(tmp_path: Path) -> Callable[..., StudyPlan]:
    """The plan of a study with this text that may continue `first.yaml`."""

    def family(text: str, first: str = FIRST) -> StudyPlan:
        for name, content in (("first", first), ("next", text)):
            (tmp_path / f"{name}.yaml").write_text(dedent(content), encoding="utf-8")
        return load_study(tmp_path / "next.yaml")

    return family


def matrix_of(plan: StudyPlan) -> Matrix:
    return build_matrix(plan, lambda config: config.model_dump_json())


def test_training_goes_on_at_the_seeds_that_there_are(family: Callable[..., StudyPlan]) -> None:
    """Each trial starts from one of its own seed: a baseline has as many as it had, whatever its number would be."""
    matrix = matrix_of(family("continues: first.yaml\nbase: {training.sequence_length: 128}\n"))
    assert matrix.parent is not None
    assert matrix.plan.study.seeds == "auto"
    assert seeds_of(matrix) == seeds_of(matrix.parent)
    assert {len(seeds) for seeds in seeds_of(matrix).values()} == {6, 12}
    earlier = {trial.id: trial for trial in matrix.parent.trials}
    for trial in matrix.trials:
        parent = earlier[trial.parent or ""]
        assert (parent.variant, parent.seed) == (trial.variant, trial.seed)
    # Each budget is compared with its own baseline of two trials' weights: never more seeds than were trained.
    more = "axes: {model.yarn_factor: [1, 2, 4]}\nbase: {model.yarn_length: 64}\n"
    wide = matrix_of(family("continues: first.yaml\n" + more + "baseline: {model.gate.position: none}\n"))
    assert wide.parent is not None
    assert set(map(len, seeds_of(wide).values())) == {6, 12}
    one = "baseline: {model.gate.position: none, model.yarn_factor: 1}\n"
    wide = matrix_of(family("continues: first.yaml\n" + more + one))
    counts = {label: len(seeds) for label, seeds in seeds_of(wide).items()}
    baseline = wide.variants[-1].baseline
    assert baseline is not None
    assert counts.pop(baseline) == 12  # round(6 sqrt(14)) = 22 would have no parents
    assert set(counts.values()) == {6}


def test_a_study_that_goes_on_with_automatic_seeds_needs_six(family: Callable[..., StudyPlan]) -> None:
    """Seeds that were not trained have no weights to go on with: refused, with those that there are."""
    with pytest.raises(StudyError, match=r"next\.yaml:\d: seeds = 3: first.*has not this one \(it has 0, 1, 2\)"):
        family("continues: first.yaml\nseeds: auto\n", FIRST.replace("seeds: auto", "seeds: 3"))
    with pytest.raises(StudyError, match=r"seeds = 6: .*\(it has 0, 1, 2, 3, 4, 5\)"):
        family("continues: first.yaml\nseeds: 7\n")
    eight = matrix_of(family("continues: first.yaml\nseeds: auto\n", FIRST.replace("seeds: auto", "seeds: 8")))
    assert sorted(set(map(len, seeds_of(eight).values()))) == [6, 8]
    assert set(map(len, seeds_of(matrix_of(family("continues: first.yaml\nseeds: 6\n"))).values())) == {6}


def test_claims_are_not_inherited(family: Callable[..., StudyPlan]) -> None:
    """What was expected of the first part is not expected of the second unless it is said."""
    assert family("continues: first.yaml\n").study.claims == {}
    own = family("continues: first.yaml\nclaims: {still: {variant: {model.gate.position: sdpa}}}\n")
    assert list(own.study.claims) == ["still"]
