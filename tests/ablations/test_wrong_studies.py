"""Mistakes that people make in studies, and what they are told: never a traceback, never another library's words."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.ablations.errors import StudyError
from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.loading import load_study, make_study
from gatelab.ablations.matrix import claimed_levels
from gatelab.orchestrator.planning import plan_study
from tests.fuzz.studies import FOREIGN

AXIS = "axes: {model.layers: [1, 2]}\n"
SEARCHED = "axes: {model.gate.position: [none, sdpa]}\n"
LAUGH = "x0: &x0 [a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]\n" for level in range(1, 9)
)
TENS = "[" + ", ".join(map(str, range(1, 31))) + "]"
MILLIONS = (
    f"axes: {{model.layers: {TENS}, model.hidden_size: {TENS}, model.ffn_size: {TENS}, model.kv_heads: {TENS}}}\n"
)

FILES = {
    # What is no study at all.
    "blank": ("\n# nothing\n", "file: is empty", "gatelab init"),
    "list": ("- a\n", "file: expected a mapping with name, base, axes, seeds", "(got a list)"),
    "word": ("word\n", "file: expected a mapping", "(got a word)"),
    "record of a study": ('{"name": "a", "variants": {}, "trials": []}', "record of a study that was run"),
    "JSON of something else": ('{"lr": 3, "foo": 1, "bar": 2}', ":1: lr: unknown key", ":1: bar: unknown key\n"),
    # What is no YAML.
    "tab": ("base:\n\tmodel: 1\n", ":2: YAML: a tab: indent with spaces"),
    "open quote": (
        "question: 'abc\nseeds: 1\nmatch: none\n",
        ":1: YAML: a quote (' or \") that begins here is not closed",
    ),
    "open bracket": ("nuisance: [a\nseeds: 1\n", ":2: YAML: a list that begins in line 1 with [ is not closed"),
    "open brace": ("budget: {trials: 1\nseeds: 1\n", ":2: YAML: a mapping that begins in line 1 with { is not closed"),
    "two colons": ("question: a: b\n", ":1: YAML: a second ': '"),
    "no colon": ("seeds: 1\nmatch\nname: a\n", ":2: YAML: a key without its ': '"),
    "two documents": ("seeds: 1\n---\nseeds: 2\n", ":2: YAML: a second document (---)"),
    "unknown alias": ("seeds: *n\n", ":1: YAML: no &-anchor named 'n'"),
    "backtick": ("question: `ls`\n", ":1: YAML: quote a value that begins with '`'"),
    "unknown tag": ("question: !a b\n", ":1: YAML: an unknown tag"),
    "code in a tag": ("question: !!python/object/apply:os.system [ls]\n", ":1: YAML: an unknown tag"),
    "tagged timestamp": ("question: !!timestamp 2020-02-30\n", ":1: YAML: an unknown tag"),
    "int that is none": ("question: !!int x\n", ":1: YAML: not a value of type int"),
    "float that is none": ("question: !!float y\n", ":1: YAML: not a value of type float"),
    "alias of itself": ("exclude: &x [*x]\n", ":1: YAML: an alias (*) of itself"),
    "mapping in itself": ("axes: &a {b: [1], again: *a}\n", ":1: YAML: an alias (*) of itself"),
    "aliases of aliases": (LAUGH, "YAML: aliases (*) stand for more than"),
    "merges of merges": (
        LAUGH.replace("[a, a", "[{b: 1}, a") + "c: {<<: *x8}\n",
        "YAML: aliases (*) stand for more than",
    ),
    "deep": ("question: " + "[" * 2000 + "]" * 2000, "YAML: nested more than 32 levels deep"),
    "5,000 digits": (f"seeds: {'9' * 5000}\n", ":1: YAML: a number of 5,000 digits"),
    "5,000 hexadecimal digits": (f"question: 0x{'f' * 5000}\n", ":1: YAML: a number of 5,002 digits"),
    "key that is a list": ("? [a]\n: 3\n", ":1: YAML: a key is a word or a number"),
    "bell": ("seeds: 1\nquestion: b\x07\n", ":2: YAML: the control character U+0007"),
    # What YAML 1.1 would have made something else of.
    "time in base 60": ("seeds: 1:30\n", ":1: seeds = '1:30': expected how many"),
    "date as a name": ("name: 2024-05-01\n", ":1: name = '2024-05-01': a name has letters"),
    "date as a level": (
        SEARCHED.replace("none", "2024-05-01"),
        "model.gate.position = '2024-05-01': expected none, or",
    ),
    "equals sign": (SEARCHED.replace("none", "="), "model.gate.position = '=': expected none, or"),
    # What is said twice.
    "key twice": ("seeds: 1\nname: a\nseeds: 2\n", ":3: seeds: already given in line 1"),
    "dotted and nested": (
        "base:\n  model: {layers: 2}\n  model.layers: 1\n",
        ":3: base.model.layers: already given in line 2",
    ),
    "nested and dotted": (
        "base:\n  model.layers: 1\n  model:\n    layers: 2\n",
        ":4: base.model.layers: already given in line 2",
    ),
    "half dotted": (
        "base:\n  model.gate.bias: 1\n  model: {gate.bias: 2}\n",
        ":3: base.model.gate.bias: already given in line 2",
    ),
    "section and field": (
        "base:\n  model.gate.bias: 1\n  model.gate: 3\n",
        "base.model.gate",
        "already given in line 2",
    ),
    "in a level": (
        "axes:\n  size:\n    small:\n      model.layers: 1\n      model: {layers: 3}\n",
        ":5: axes.size.small.model.layers: already given in line 4",
    ),
    # What is of another kind.
    "axis as a word": (
        "axes: {model.layers: three}\n",
        "axes.model.layers = 'three': expected a list of levels, [A, B]",
    ),
    "levels that set nothing": ("axes: {size: {1: 3}}\n", "axes.size = {'1': 3}: expected a list of levels"),
    "axes as a list": ("axes: [model.layers]\n", "axes = ['model.layers']: expected keys with values"),
    "base as a list": ("base: [tiny-dense]\n", "base = ['tiny-dense']: expected the name of a base"),
    "budget as a number": ("budget: 3\n", "budget = 3: expected keys with values: KEY: VALUE"),
    "exclude as a mapping": ("exclude: {a: 1}\n", "exclude = {'a': 1}: expected a list, such as [a, b]"),
    "rule as a word": ("exclude: [a]\n", "exclude.0 = 'a': expected keys with values"),
    "question as a number": ("question: 3\n", "question = 3: expected text"),
    "model as a word": ("base: {model: big}\n", "base.model = 'big': expected keys with values"),
    "yes": ("base: {model.qk_norm: maybe}\n", "base.model.qk_norm = 'maybe': expected true or false"),
    "nothing": ("base: {model.layers: }\n", "base.model.layers = None: expected a whole number"),
    "half a layer": ("base: {model.layers: 1.5}\n", "base.model.layers = 1.5: expected a whole number"),
    "odd head": ("base: {model.head_dim: 3}\n", "base.model.head_dim = 3: expected a multiple of 2"),
    "share": ("base: {data.validation_fraction: 1}\n", "base.data.validation_fraction = 1: expected less than 1"),
    "tokenizer": ("base: {data.tokenizer: gone.json}\n", ":1: base.data.tokenizer = 'gone.json': ", "gone.json"),
    "infinity": ("exclude: [{model.norm_eps: .inf}]\n", ":1: exclude.0.model.norm_eps = inf: expected a finite number"),
    "long number": (
        f"budget: {{trials: {2**70}}}\n",
        ":1: budget.trials = 1180591620717411303424: expected a number of at",
    ),
    "text of a huge count": (
        f"base: {{training.tokens: {'9' * 30}T}}\n",
        "training.tokens",
        "expected a count below 10^18",
    ),
    # Names.
    "space in a name": ("name: my study\n", ":1: name = 'my study': a name has letters", "such as my-study"),
    "path as a name": ("name: a/b\n", ":1: name = 'a/b': a name has letters", "such as a-b"),
    "name of digits": ("name: '007'\n", ":1: name = '007': a name has letters (A-Z, a-z, at least one)"),
    "long name": (f"name: {'x' * 81}\n", ":1: name = ", "at most 80 characters (this one 81)"),
    "name of MLflow's": ("name: default\n", "MLflow has an experiment of this name"),
    "name of a file": ("name: a.yaml\n", "ends like a file's"),
    "name of a search": ("name: a-lr-tolerance\n", "those of searches"),
    "escape in a label": (
        'axes: {size: {"a\\eb": {model.layers: 1}}}\n',
        ":1: axes.size.a\\x1bb: holds the control character U+001B",
    ),
    "escape in a level": (
        'axes: {data.source: ["a\\eb", c]}\n',
        ":1: axes.data.source.0 = 'a\\x1bb': holds the control",
    ),
    "escape in a key": ('"see\\e": 1\n', "see\\x1b: holds the control character U+001B in its name"),
    "right to left": ("question: \u202eabc\n", ":1: question = '\\u202eabc': holds the control character U+202E"),
    "lines in a claim": ('claims: {"a\\nb": {}}\n', "claims.a\\nb: holds the control character U+000A"),
    "line in a label": ('axes: {data.source: ["a\\nb", c]}\n', "holds the control character U+000A"),
    "half a character": ('question: "\\ud800"\n', "holds the control character U+D800"),
    "unknown key in brackets": ("see[x]: 3\n", ":1: see[x]: unknown key"),
    # Paths.
    "rate": ("base: {lr: 0.1}\n", ":1: base.lr: unknown key; did you mean training.optimizer.learning_rate?"),
    "British": ("base: {optimiser: adam}\n", "training.optimizer is AdamW and has the fields learning_rate, beta1"),
    "kind of optimizer": ("base: {training.optimizer.kind: adam}\n", "training.optimizer is AdamW and has the fields"),
    "attention": ("axes: {model.attention: [a, b]}\n", "did you mean model.gate.position, model.qk_norm"),
    "other tools": ("base: {model.n_layers: 3}\n", "did you mean model.layers?"),
    "last part": ("fixed: [learning_rate]\n", "did you mean training.optimizer.learning_rate?"),
    "several": ("base: {tokens: 3}\n", "did you mean training.tokens or evaluation.tokens?"),
    "nothing like it": ("base: {frobnicate: 3}\n", "paths begin with model, training, data, evaluation"),
    # Sizes.
    "seed beyond 64 bits": (f"seeds: [0, {2**63}]\n", f":1: seeds.1 = {2**63}: expected 9223372036854775807 or less"),
    "seed as a count": ("seeds: 20240501\n", ":1: seeds = 20240501: a number is how many seeds, at most 100,000"),
    "count of seeds": ("seeds: 1000000000000000000000\n", ":1: seeds = 1000000000000000000000: "),
    "product": (MILLIONS, ":1: axes: 810,000 combinations (30 x 30 x 30 x 30): at most 50,000 are planned"),
    "product beyond its budget": (
        MILLIONS + "budget: {trials: 100}\n",
        ":2: budget.trials = 100: the axes make 810,000 combinations",
    ),
    "trials beyond the budget": (
        AXIS + "seeds: 50000\nbudget: {trials: 7}\n",
        ":3: budget.trials = 7: the matrix has 100000",
    ),
    "trials": ("axes: {model.layers: [1, 2, 3]}\nseeds: 90000\n", ":2: seeds: the matrix has 270,000 trials: at most"),
    "rule without an end": (
        "learning_rate: {per: layers, exponent: 1e9, reference: 1}\n",
        ":1: learning_rate = ",
        "no learning rate for base: the rule",
    ),
    "endless search": ("tolerance: {extend: 1000000}\n", ":1: tolerance.extend = 1000000: expected 30 or less"),
    # What does not go together.
    "all excluded": (
        AXIS + "exclude: [{model.layers: [1, 2]}]\n",
        ":2: exclude: nothing is left to run (2 combinations",
    ),
    "all impossible": (
        AXIS + "base: {model.query_heads: 3, model.kv_heads: 2}\n",
        ":1: axes: nothing is left to run (layers=1 and 1 more are impossible: query_heads (3) must be a multiple",
    ),
    "exclude of no level": (
        "axes: {size: {a: {}}}\nexclude: [{size: b}]\n",
        ":2: exclude[0].size = 'b': not a level",
        "has a)",
    ),
    "exclude of no value": (
        "exclude: [{model.gate.position: sdap}]\n",
        "exclude[0].model.gate.position = 'sdap': expected",
    ),
    "metric of no trial": (
        SEARCHED + "claims:\n  it helps: {metric: validation/los}\n",
        ":3: claims.it helps.metric = 'validation/los': no trial of this study can have",
        "did you mean validation/loss?",
    ),
    "curve as a metric": (SEARCHED + "claims: {c: {metric: train/loss}}\n", "did you mean train/final_loss?"),
    "gate that is not there": (SEARCHED + "claims: {c: {metric: gate/value/mean}}\n", "did you mean gate/sdpa/mean?"),
    "layers only": (SEARCHED + "claims: {c: {metric: gradient_norm}}\n", "no trial of this study can have this metric"),
}
"""What is wrong -> a study's text, and what must be said of it."""


@pytest.fixture
def refused() -> Callable[..., str]:
    """What is said of a study that is refused, within a few seconds and in words of our own."""

    def refused(make: Callable[[], Any]) -> str:
        started = time.process_time()
        with pytest.raises(StudyError) as caught:
            plan_study(make(), identify=lambda data: "x")
        assert time.process_time() - started < 10, "took too long"
        said = str(caught.value) + "\n"
        assert not FOREIGN.search(said), said
        assert all(char.isprintable() or char == "\n" for char in said), said
        return said

    return refused


@pytest.mark.parametrize(
    ("text", "fragments"), [pytest.param(text, fragments, id=id) for id, (text, *fragments) in FILES.items()]
)
def test_a_wrong_file_is_refused_in_words_that_help(
    text: str, fragments: list[str], write: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    """A person must be told what to write where, for whatever a file may hold."""
    path = write(text)
    said = refused(lambda: load_study(path))
    for fragment in fragments:
        assert fragment in said


FLAGS = {
    "no value": ({"sets": ["model.layers="]}, "--set model.layers = '': expected a value"),
    "no path": ({"sets": ["=3"]}, "--set = '=3': expected PATH=VALUE"),
    "comment": (
        {"sets": ["data.source=x #y"]},
        "--set data.source = 'x #y': what follows # would be a comment",
        '"a,b.txt"',
    ),
    "comment in a level": ({"axes": ["data.source=x #y"]}, "--axis data.source = 'x #y': not a value in YAML"),
    "empty level": ({"axes": ["model.layers=1,,2"]}, "--axis model.layers = '1,,2': ", "nothing where a value is due"),
    "open bracket": ({"axes": ["model.layers=[1"]}, "--axis model.layers = '[1': ", "not closed"),
    "tag": ({"sets": ["model.layers=!!int x"]}, "--set model.layers = '!!int x': not a value in YAML: not a value of"),
    "alias": ({"sets": ["model.layers=&x [*x]"]}, "--set model.layers = '&x [*x]': ", "an alias (*) of itself"),
    "escape": ({"sets": ["data.source=\x1b[0m"]}, "--set data.source = '\\x1b[0m': ", "U+001B"),
    "rate": (
        {"sets": ["lr=0.01"]},
        "--set lr: no such configuration field; did you mean training.optimizer.learning_rate?",
    ),
    "set twice": ({"sets": ["model.layers=1", "model={layers: 2}"]}, "--set model.layers: given twice"),
    "infinity": ({"sets": ["model.norm_eps=.inf"]}, "--set model.norm_eps = inf: expected a finite number"),
    "no seeds": ({"seeds": ""}, "seeds = '': expected how many (3), which ([0, 1, 5]"),
    "null seeds": ({"seeds": "null"}, "seeds = 'null': expected how many"),
    "seeds without an end": (
        {"seeds": "1000000000000"},
        "seeds = 1000000000000: a number is how many seeds, at most 100,000",
    ),
    "seed beyond 64 bits": (
        {"seeds": f"{2**63},"},
        "seeds.0 = 9223372036854775808: expected 9223372036854775807 or less",
    ),
    "no name": ({"name": ""}, "name = '': a name has letters"),
    "name of a path": ({"name": "../x"}, "name = '../x': a name has letters", "such as x"),
    "match": ({"match": "params"}, "match = 'params': expected 'none', 'parameters' or 'flops'"),
    "name of a study as a file": (
        {"path": Path("quickstart")},
        "quickstart: file: no such file",
        "--preset quickstart",
    ),
    "name of a base as a file": ({"path": Path("small-dense.yaml")}, "no such file", "--preset small-dense"),
    "nearly a name": ({"path": Path("quikstart")}, "no such file; did you mean --preset quickstart?"),
    "no file": ({"path": Path("nothing.yaml")}, "nothing.yaml: file: no such file (gatelab init"),
    "name too long for a file": ({"path": Path("x" * 300)}, "file: cannot be read (File name too long)"),
    "folder": ({"path": Path(__file__).parent}, "file: cannot be read (a folder: name a file in it)"),
}
"""What is wrong -> flags, and what must be said of them."""


@pytest.mark.parametrize(
    ("flags", "fragments"), [pytest.param(flags, fragments, id=id) for id, (flags, *fragments) in FLAGS.items()]
)
def test_wrong_flags_are_refused_in_words_that_help(
    flags: dict[str, Any], fragments: list[str], refused: Callable[..., str]
) -> None:
    """The command line is read as files are, and its flags are named with their values."""
    given = flags if "path" in flags or "axes" in flags else {"axes": ["model.gate.position=none,sdpa"], **flags}
    said = refused(lambda: study_from_flags(**given))
    for fragment in fragments:
        assert fragment in said


ENDLESS: dict[str, Any] = {"model.layers": 2}
ENDLESS["model"] = ENDLESS


@pytest.mark.parametrize(
    ("raw", "fragments"),
    [
        pytest.param({"axes": {"size": {1: 2}}}, ["axes.size = {'1': 2}: expected a list"], id="level"),
        pytest.param(
            {"base": {"model.layers": 10**5000}}, ["base.model.layers = ", "at most 64 bits"], id="long number"
        ),
        pytest.param({"base": {"model.layers": 1, "model": {"layers": 2}}}, ["given twice: as model"], id="twice"),
        pytest.param({"base": ENDLESS}, ["nested more than 32 levels deep"], id="mapping in itself"),
        pytest.param({"question": "\ud800"}, ["U+D800"], id="half a character"),
    ],
)
def test_a_wrong_study_of_a_notebook_is_refused(
    raw: dict[str, Any], fragments: list[str], refused: Callable[..., str]
) -> None:
    """Python can hold what no file can; it is refused in the same words."""
    said = refused(lambda: make_study({"name": "a", **raw}, "notebook"))
    for fragment in fragments:
        assert fragment in said


def test_a_wrong_name_of_a_file_is_said_to_be_the_files(tmp_path: Path, refused: Callable[..., str]) -> None:
    """A study that gives no name has its file's: an error about a name that nobody wrote must say so."""
    path = tmp_path / "my study.yaml"
    path.write_text("seeds: 1\n")
    assert "name = 'my study'" in (said := refused(lambda: load_study(path)))
    assert "such as my-study (it is the file's, which says none: add name: …)" in said


def test_all_that_is_wrong_with_a_claim_is_said_at_once(refusal: Callable[[str], list[tuple[Any, ...]]]) -> None:
    """Claims are locked when a study starts: all their mistakes must be seen before."""
    found = refusal(
        SEARCHED + "claims:\n"
        "  a: {direction: less, alpha: 2, variant: {gate: sdpa}}\n"
        "  b: {metrik: x, variant: {model.gate.position: spda}}\n"
        "  c: 3\n"
        "baseline: {model.gate.position: nine}\n"
    )
    assert [key for _, key, *_ in found] == [
        "claims.a.direction",
        "claims.a.alpha",
        "claims.a.variant.gate",
        "claims.b.metrik",
        "claims.b.variant.model.gate.position",
        "claims.c",
        "baseline.model.gate.position",
    ]


def test_axes_that_cannot_be_read_are_the_only_complaint(refusal: Callable[[str], list[tuple[Any, ...]]]) -> None:
    """Where the axes are wrong, names of axes are not called wrong as well."""
    [(line, key, *_)] = refusal("axes: {model.gate.position: none}\nbaseline: {model.gate.position: none}\n")
    assert (line, key) == (1, "axes.model.gate.position")


def test_a_count_of_ten_is_no_octal_number(load: Callable[..., Any]) -> None:
    """YAML 1.1 reads 010 as 8: six seeds fewer than meant, without a word."""
    assert len(load("seeds: 010\n").study.seeds) == 10
    assert load("question: 2024-13-45\n").study.question == "2024-13-45"


def test_keys_are_names_whatever_they_look_like(plan: Callable[..., Any]) -> None:
    """Levels may be called 1, true or 2024-01-01."""
    matrix = plan(
        "axes: {size: {1: {model.layers: 1}, true: {model.layers: 2}, 2024-01-01: {model.layers: 3}}}\n"
        "baseline: {size: true}\n"
    )
    assert [variant.label for variant in matrix.variants] == ["size=1", "size=true", "size=2024-01-01"]
    assert {variant.baseline for variant in matrix.variants} == {"size=true"}


@pytest.mark.parametrize(
    ("axis", "value", "label"),
    [
        pytest.param("training.tokens: [1M, 2M]", "training.tokens: 1000000", "1M", id="count"),
        pytest.param("model.qk_norm: [on, off]", "model.qk_norm: true", "on", id="word for true"),
        pytest.param(
            "model.gate.position: [none, value+sdpa]", "model.gate.position: sdpa+value", "value+sdpa", id="order"
        ),
    ],
)
def test_a_level_is_found_however_its_value_is_spelled(
    axis: str, value: str, label: str, plan: Callable[..., Any]
) -> None:
    """The baseline and claims name a level by its value, as exclusions do."""
    matrix = plan(f"axes: {{{axis}}}\nbaseline: {{{value}}}\nclaims: {{c: {{variant: {{{value}}}}}}}\n")
    assert set(matrix.plan.baseline.values()) == {label}
    assert claimed_levels(matrix.plan, matrix.plan.study.claims["c"]) == {axis.partition(":")[0]: [label]}


@pytest.mark.parametrize(
    ("text", "overrides", "note"),
    [
        pytest.param(
            AXIS, {"model.layers": 3}, "--set model.layers has no effect: axis model.layers sets it", id="set"
        ),
        pytest.param(
            "base: {training.tokens: 100}\n", {}, "training.tokens: 100 become 2,048, in whole steps", id="budget"
        ),
        pytest.param("seeds: 1001\n", {}, "1,001 seeds of each variant: a number is how many", id="seeds"),
    ],
)
def test_what_was_hardly_meant_is_noted(
    text: str, overrides: dict[str, Any], note: str, plan: Callable[..., Any]
) -> None:
    """What is allowed and yet surprising is said before it costs anything."""
    assert any(said.startswith(note) for said in plan(text, overrides).notes)


def test_many_seeds_are_planned_in_linear_time(plan: Callable[..., Any]) -> None:
    """Ten times the seeds take about ten times as long, not a hundred times."""
    started = time.process_time()
    assert len(plan(AXIS + "seeds: 4000\n").trials) == 8_000
    assert time.process_time() - started < 20
