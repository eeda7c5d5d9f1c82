"""A study that continues another starts each of its trials from the right one, with the same model, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from gatelab.ablations.errors import StudyError
from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.loading import load_study
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.pipeline import build_matrix
from gatelab.ablations.presets import study_files
from gatelab.configuration import Config
from gatelab.training.preparation import data_identity

FIRST = """\
question: Which?
base:
  model: {layers: 3, hidden_size: 48, query_heads: 6, kv_heads: 3, head_dim: 8, ffn_size: 100}
  training: {tokens: 40k, sequence_length: 64}
axes:
  gate:
    none: {model.gate.position: none}
    sdpa: {model.gate.position: sdpa}
    headwise: {model.gate.position: sdpa, model.gate.granularity: headwise}
  training.batch_size: [4, 8]
exclude:
  - {gate: headwise, training.batch_size: 8}
baseline: {gate: none}
match: parameters
seeds: [0, 3]
nuisance: [training.batch_size]
fixed: [training.optimizer.learning_rate]
budget: {trials: 10}
"""

Family = Callable[..., Matrix]


def identify(data: Config) -> str:
    """Each data configuration is other data."""
    return data.model_dump_json()


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """The matrix of a study `next.yaml` with this text, beside the study `first.yaml` and others by name."""

    def family(text: str, overrides: dict[str, Any] | None = None, *, first: str = FIRST, **others: str) -> Matrix:
        (tmp_path / "studies").mkdir(exist_ok=True)
        for name, content in {"first": first, "next": text, **others}.items():
            (tmp_path / f"studies/{name}.yaml").write_text(dedent(content), encoding="utf-8")
        return build_matrix(load_study(tmp_path / "studies/next.yaml", overrides), identify)

    return family


def ids(matrix: Matrix) -> dict[tuple[str, int], str]:
    return {(trial.variant, trial.seed): trial.id for trial in matrix.trials}


def test_what_is_not_said_is_taken_from_the_earlier_study(family: Family) -> None:
    """A study that goes on is a file of what differs: the rest must be that of the first part, or no pair fits."""
    matrix = family("continues: first.yaml\nbase: {training.sequence_length: 256}\n")
    assert matrix.parent is not None
    study, first = matrix.plan.study, matrix.parent.plan.study
    for name in ("axes", "exclude", "baseline", "match", "seeds", "nuisance", "fixed"):
        assert getattr(study, name) == getattr(first, name)
    assert (study.name, study.question, study.budget.trials) == ("next", "", None)
    assert [variant.levels for variant in matrix.variants] == [variant.levels for variant in matrix.parent.variants]
    training = matrix.variants[0].config.training
    assert (training.sequence_length, training.tokens) == (256, 40_000)
    assert {variant.config.training.sequence_length for variant in matrix.parent.variants} == {64}
    assert matrix.chain == (matrix.parent, matrix)


def test_each_trial_continues_that_of_its_levels_and_seed(family: Family) -> None:
    """Weights of another variant, or of another seed, would break the pairs that the comparison is made of."""
    matrix = family("continues: first.yaml\naxes: {model.yarn_factor: [1, 4]}\nbase: {model.yarn_length: 64}\n")
    assert matrix.parent is not None
    earlier = {trial.id: trial for trial in matrix.parent.trials}
    assert len(matrix.trials) == 2 * len(earlier)
    for trial in matrix.trials:
        parent = earlier[trial.parent or ""]
        levels = matrix.variant(trial.variant).levels
        assert parent.seed == trial.seed
        assert matrix.parent.variant(parent.variant).levels.items() <= levels.items()
    assert len({trial.id for trial in matrix.trials} | set(earlier)) == 3 * len(earlier)


def test_models_are_as_wide_as_they_were_matched(family: Family) -> None:
    """Weights fit only the width that they were trained at, though FLOPs at another length would match at another."""
    matrix = family(
        "continues: first.yaml\nbase: {training.sequence_length: 2k}\n",
        first=FIRST.replace("match: parameters", "match: flops"),
    )
    assert matrix.parent is not None
    widths = [variant.config.model.ffn_size for variant in matrix.variants]
    assert widths == [variant.config.model.ffn_size for variant in matrix.parent.variants]
    assert len(set(widths)) == 3
    for variant in matrix.variants:
        assert variant.added_parameters == matrix.parent.variant(variant.parent or "").added_parameters


def test_no_match_is_made_anew(family: Family) -> None:
    """A variant that had no baseline, and so the width of the base, keeps it when the second study gives it one."""
    first = FIRST.replace("exclude:\n", "exclude:\n  - {gate: none, training.batch_size: 8}\n")
    matrix = family("continues: first.yaml\nbaseline: {gate: none, training.batch_size: 4}\n", first=first)
    assert matrix.parent is not None
    label = "gate=sdpa, batch_size=8"
    assert (matrix.parent.variant(label).baseline, matrix.variant(label).baseline) == (None, "gate=none, batch_size=4")
    assert matrix.variant(label).config.model.ffn_size == 100
    assert matrix.variant("gate=sdpa, batch_size=4").config.model.ffn_size < 100


def test_only_some_levels_and_seeds_may_go_on(family: Family) -> None:
    """What did not help need not be trained on; levels that have names are picked by them."""
    matrix = family("continues: first.yaml\naxes: {gate: [none, headwise], training.batch_size: [4]}\nseeds: [3]\n")
    assert [variant.label for variant in matrix.variants] == [
        "gate=none, batch_size=4",
        "gate=headwise, batch_size=4",
    ]
    assert [trial.seed for trial in matrix.trials] == [3, 3]
    assert not any("excludes nothing" in note for note in matrix.notes)  # the first study's rule is not amiss
    by_value = family("continues: first.yaml\naxes: {gate: {alone: {model.gate: {position: none}}}}\n")
    assert {variant.levels["gate"] for variant in by_value.variants} == {"none"}


def test_rules_add_up(family: Family) -> None:
    """A study may leave out more than the first did, and what that had left out has no weights to start from."""
    matrix = family("continues: first.yaml\nexclude: [{gate: sdpa, training.batch_size: 8}]\n")
    assert list(matrix.excluded) == ["gate=sdpa, batch_size=8", "gate=headwise, batch_size=8"]
    first = (
        "axes: {model.layers: [1, 2]}\nexclude: [{model.layers: 2, training.tokens: 9k}]\nbase: {training.tokens: 9k}\n"
    )
    [(name, reason)] = family("continues: first.yaml\nbase: {training.tokens: 5k}\n", first=first).impossible.items()
    assert name == "layers=2"
    assert reason == "first has no such trial to continue (model.layers: 2, training.tokens: 9k)"


def test_ids_tell_where_a_trial_started(family: Family) -> None:
    """Equal training from other weights is other work; what the first part is called, or who else is in it, is not."""
    text = "continues: first.yaml\nbase: {training.sequence_length: 256}\n"
    before = ids(family(text))
    renamed = ids(family("continues: other.yaml\nbase: {training.sequence_length: 256}\n", other=FIRST))
    longer = family(
        "continues: first.yaml\nbase: {training: {sequence_length: 256, tokens: 40k}}\n",
        first=FIRST.replace("tokens: 40k", "tokens: 80k"),
    )
    fewer = ids(family(text, first=FIRST.replace("seeds: [0, 3]", "seeds: [3]")))
    assert before == renamed
    assert not set(before.values()) & set(ids(longer).values())
    assert longer.variants[0].config == family(text).variants[0].config
    assert fewer.items() <= before.items()


def test_equal_training_from_other_weights_is_not_one_trial(family: Family) -> None:
    """What told the first part's trials apart still does where it means nothing any more: their weights differ."""
    first = "base: {training.schedule.kind: wsd}\naxes: {training.schedule.decay: [0.1, 0.3]}\n"
    matrix = family("continues: first.yaml\nbase: {training.schedule.kind: cosine}\n", first=first)
    configs = [variant.config for variant in matrix.variants]
    assert len(configs) == 2 and configs[0] == configs[1]
    assert len({trial.id for trial in matrix.trials}) == len({trial.parent for trial in matrix.trials}) == 2


def test_going_on_with_nothing_changed_is_not_starting_anew(family: Family) -> None:
    """Twice the same training, one after the other, is two trials, or the second would be taken for done."""
    matrix = family("continues: first.yaml\n")
    assert matrix.parent is not None
    assert [variant.config for variant in matrix.variants] == [variant.config for variant in matrix.parent.variants]
    assert not set(ids(matrix).values()) & set(ids(matrix.parent).values())


def test_studies_may_go_on_and_on(family: Family) -> None:
    """A chain is run from its first study; each starts where the one before it ended."""
    matrix = family(
        "continues: middle.yaml\nbase: {training.sequence_length: 1k}\naxes: {gate: [none]}\n",
        middle="continues: first.yaml\nbase: {training.sequence_length: 256, model.rope_base: 50000}\nseeds: [3]\n",
    )
    assert [each.plan.study.name for each in matrix.chain] == ["first", "middle", "next"]
    first, middle, last = matrix.chain
    for earlier, later in ((first, middle), (middle, last)):
        assert {trial.parent for trial in later.trials} <= {trial.id for trial in earlier.trials}
    config = last.variants[0].config
    assert (config.model.rope_base, config.training.sequence_length, config.training.tokens) == (50_000, 1000, 40_000)


def test_the_command_line_speaks_of_the_last_study_only(family: Family) -> None:
    """--set must not make the first part another, for which everything would be trained again."""
    text = "continues: first.yaml\n"
    plain, changed = family(text), family(text, {"training.sequence_length": 256, "model.rope_base": 50_000.0})
    assert plain.parent is not None and changed.parent is not None
    assert ids(plain.parent) == ids(changed.parent)
    assert {variant.config.training.sequence_length for variant in changed.variants} == {256}
    assert not set(ids(plain).values()) & set(ids(changed).values())


def test_the_hash_of_a_study_covers_the_one_that_it_continues(family: Family) -> None:
    """The same question asked of other weights is another question; where the file lies is none."""
    text = "continues: first.yaml\nbase: {training: {tokens: 5k}}\n"
    hashes = [
        family(text).plan.hash,
        family(text.replace("first", "./first")).plan.hash,
        family(text, first=FIRST.replace("40k", "80k")).plan.hash,
        family(text, first=FIRST.replace("trials: 10", "trials: 11")).plan.hash,
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_study_is_found_from_its_folder_from_here_or_by_name(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair of files can be moved together; a study that comes with gatelab needs no path."""

    def earlier(text: str) -> str:
        matrix = family(text)
        assert matrix.parent is not None
        return matrix.parent.plan.source.name

    (tmp_path / "here.yaml").write_text(FIRST)
    monkeypatch.chdir(tmp_path)
    assert Path(earlier("continues: first.yaml\n")) == tmp_path / "studies/first.yaml"
    assert Path(earlier(f"continues: {tmp_path}/here.yaml\n")) == tmp_path / "here.yaml"
    assert Path(earlier("continues: here.yaml\n")) == Path("here.yaml")
    assert Path(earlier("continues: quickstart\n")) == study_files()["quickstart"]
    assert study_from_flags(preset="longer-context").parent is not None


REFUSED: list[Any] = [
    pytest.param("base: tiny-dense\n", (2, "base", "tiny-dense", "the base is that of first"), id="named base"),
    pytest.param("base:\n  preset: tiny-dense\n", (3, "base.preset", "tiny-dense", "only what differs"), id="preset"),
    pytest.param("base:\n  model.layrs: 3\n", (3, "base.model.layrs", None, "did you mean model.layers?"), id="path"),
    pytest.param("base:\n  model.layers: 4\n", (3, "base.model.layers", 4, "must stay 3"), id="layers"),
    pytest.param(
        "base:\n  model:\n    ffn_size: 90\n", (4, "base.model.ffn_size", 90, "rope_base, yarn_factor"), id="width"
    ),
    pytest.param(
        "axes:\n  model.init_std: [0.1]\n", (3, "axes.model.init_std", 0.1, "must stay 0.12"), id="axis of the model"
    ),
    pytest.param(
        "base: {data.tokenizer: 'bpe:300'}\n", (2, "base.data.tokenizer", "bpe:300", "must stay bytes"), id="tokenizer"
    ),
    pytest.param(
        "base:\n  training.batch_size: 2\n", (3, "base.training.batch_size", 2, "axis training.batch_size of first"),
        id="base below an axis",
    ),
    pytest.param("axes:\n  gate: [none, vale]\n", (3, "axes.gate", "vale", "(none, sdpa, headwise)"), id="level name"),
    pytest.param(
        "axes:\n  training.batch_size: [4, 16]\n", (3, "axes.training.batch_size", "16", "not a level"), id="level"
    ),
    pytest.param("axes: {gate: [sdpa]}\n", (1, "baseline.gate", "none", "not a level of this"), id="baseline gone"),
    pytest.param("seeds: [0, 1]\n", (2, "seeds", 1, "it has 0, 3"), id="seed"),
    pytest.param("seeds: 0\n", (2, "seeds", 0, "at least one seed"), id="no seed"),
    pytest.param("match: flops\n", (2, "match", "flops", "as they were matched in first"), id="match"),
    pytest.param("name: first\n", (2, "name", "first", "has this name"), id="name"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_what_cannot_go_on_is_refused_with_its_place(text: str, expected: tuple[Any, ...], family: Family) -> None:
    """Weights that do not fit, or a word that would be passed over, must show before the first part is trained."""
    with pytest.raises(StudyError) as caught:
        family(f"continues: first.yaml\n{text}")
    [problem] = caught.value.problems
    line, key, value, message = expected
    assert caught.value.source.endswith("next.yaml")
    assert (problem.line, problem.key) == (line, key)
    assert value is None or problem.value == value
    assert message in problem.message


def test_a_base_on_the_command_line_is_refused_like_one_in_the_file(family: Family) -> None:
    """--set of what an axis sets, or of another model, must not be passed over or fail in training."""
    with pytest.raises(StudyError, match=r"--set training\.batch_size = 2: axis training\.batch_size of first sets it"):
        family("continues: first.yaml\n", {"training.batch_size": 2})
    with pytest.raises(StudyError, match=r"--set model\.qk_norm = False: must stay True"):
        family("continues: first.yaml\n", {"model.qk_norm": False})


def test_a_tokenizer_that_other_data_would_change_is_refused(family: Family) -> None:
    """bpe:N is trained on the corpus: on another one the same tokens would have other meanings, without any error."""
    first = FIRST.replace("base:\n", "base:\n  data: {tokenizer: 'bpe:300'}\n")
    assert family("continues: first.yaml\n", first=first).trials
    with pytest.raises(StudyError, match=r"next\.yaml:3: base\.data\.source = '/elsewhere': .*another tokenizer"):
        family("continues: first.yaml\nbase:\n  data.source: /elsewhere\n", first=first)
    assert family("continues: first.yaml\nbase: {data.source: /elsewhere}\n").trials


def test_a_tokenizer_may_lie_elsewhere_and_may_not_be_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens have their meanings by what the file holds: a copy of it goes on, another one with the same size not."""
    monkeypatch.chdir(tmp_path)
    for name, words in {"own": "ab", "copy": "ab", "other": "ba"}.items():
        model = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, words[0]: 1, words[1]: 2}, "unk_token": "a"}
        content = {"version": "1.0", "model": model, "added_tokens": []}
        Path(f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    Path("corpus.txt").write_text("a b a b b a " * 99, encoding="utf-8")
    base = "{data: {source: corpus.txt, tokenizer: own.json}, model.layers: 1}"
    Path("first.yaml").write_text(f"base: {base}\naxes: {{model.gate.position: [none, sdpa]}}\n")

    def go_on(tokenizer: str) -> Matrix:
        Path("next.yaml").write_text(f"continues: first.yaml\nbase: {{data.tokenizer: {tokenizer}}}\n")
        return build_matrix(load_study(Path("next.yaml")), data_identity)

    assert ids(go_on("copy.json")) == ids(go_on("own.json"))
    with pytest.raises(StudyError, match=r"data\.tokenizer = 'other\.json': must stay own\.json"):
        go_on("other.json")


@pytest.mark.parametrize(
    ("first", "line", "message"),
    [
        ("continues: next.yaml\n", 1, "that study itself continues this one"),
        ("seeds: 1\ncontinues: first.yaml\n", 2, "that study itself continues this one"),
        ("seeds: 1\ncontinues: quickstar.yaml\n", 2, "did you mean quickstart?"),
        ("seeds: none\n", 1, "expected how many"),
    ],
    ids=["cycle", "itself", "not there", "wrong"],
)
def test_a_first_study_that_cannot_be_is_refused_in_its_own_file(
    first: str, line: int, message: str, family: Family
) -> None:
    """Reading must end, and what is wrong with the earlier study is to be mended there."""
    with pytest.raises(StudyError, match=rf"first\.yaml:{line}: ") as caught:
        family("continues: first.yaml\n", first=first)
    assert message in str(caught.value)


def test_what_continues_must_be_a_file(family: Family) -> None:
    """Any other kind of value is said to be wrong like everywhere else."""
    with pytest.raises(StudyError, match=r"next\.yaml:1: continues = 3: expected text"):
        family("continues: 3\n")


def test_data_of_a_chain_is_identified_once(family: Family) -> None:
    """A corpus is read for its identity: not once more for each study of a chain."""
    family("continues: first.yaml\n")
    asked: list[str] = []
    build_matrix(family("continues: first.yaml\n").plan, lambda data: asked.append(data.source) or "x")
    assert asked == ["stdlib"]


def test_the_shipped_example_goes_on_at_another_length() -> None:
    """The paper's recipe: four times the length, a larger RoPE base, as many tokens in a step."""
    matrix = build_matrix(load_study(study_files()["longer-context"]), identify)
    assert matrix.parent is not None
    assert matrix.parent.plan.study.name == "quickstart"
    for variant in matrix.variants:
        assert variant.parent == variant.label
        before, after = matrix.parent.variant(variant.label).config, variant.config
        assert after.training.sequence_length == 4 * before.training.sequence_length
        assert after.training.tokens_per_step == before.training.tokens_per_step
        assert after.model.rope_base > before.model.rope_base
        assert after.training.tokens < before.training.tokens
        assert after.training.optimizer.learning_rate < before.training.optimizer.learning_rate
