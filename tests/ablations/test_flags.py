"""The command line asks for the same studies as files do, and is held to the same rules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.ablations.errors import StudyError
from gatelab.ablations.flags import study_from_flags
from gatelab.ablations.study import StudyPlan

RATE = "training.optimizer.learning_rate"


def levels(plan: StudyPlan) -> dict[str, list[Any]]:
    """Axis -> the values of its levels."""
    return {axis.name: [level.values[axis.name] for level in axis.levels] for axis in plan.axes}


def test_axes_are_read_as_in_a_file() -> None:
    """A level on the command line has the type that it has in YAML."""
    plan = study_from_flags(
        axes=["model.gate.position=none,value+sdpa", f"{RATE}=1e-3, 2e-3", "training.optimizer.clip_norm=null,1"]
    )
    assert levels(plan) == {
        "model.gate.position": ["none", "value+sdpa"],
        RATE: [1e-3, 2e-3],
        "training.optimizer.clip_norm": [None, 1.0],
    }
    assert plan.base["model"]["hidden_size"] == 64  # tiny-dense


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ('data.source="a,b.txt",c', ["a,b.txt", "c"]),
        ("data.source='a #1',c", ["a #1", "c"]),
        ("data.source=[a, b]", ["a", "b"]),
        ("model.layers=[1,2]", [1, 2]),
        ("model.layers=1,", [1]),
    ],
)
def test_levels_may_be_quoted_or_in_brackets(axis: str, expected: list[Any]) -> None:
    """A path that holds a comma can be a level, and a list that is written like one in a file is that list."""
    [levels_of] = levels(study_from_flags(axes=[axis])).values()
    assert levels_of == expected


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("0,1,5", [0, 1, 5]), ("7,", [7]), ("[0,1]", [0, 1])])
def test_seeds_are_a_count_or_a_list(text: str, seeds: list[int]) -> None:
    """`--seeds 3` and `--seeds 0,1,5` mean different things."""
    assert study_from_flags(preset="tiny-dense", seeds=text).study.seeds == seeds


def test_flags_replace_what_the_file_says(write: Callable[[str], Path]) -> None:
    """Trying a variation of a study needs no copy of it: axes are added or replaced, other flags replace."""
    path = write(f"seeds: 5\naxes: {{model.layers: [1, 2], {RATE}: [1e-3]}}\nbaseline: {{model.layers: 1}}\n")
    plan = study_from_flags(
        path,
        axes=["model.layers=2,3", "model.gate.position=none,sdpa"],
        sets=["model.hidden_size=32", "training.tokens=10k"],
        seeds="0,9",
        baseline=["model.layers=3"],
        match="parameters",
        name="tried",
    )
    assert levels(plan) == {"model.layers": [2, 3], RATE: [1e-3], "model.gate.position": ["none", "sdpa"]}
    assert plan.study.name == "tried"
    assert plan.study.seeds == [0, 9]
    assert plan.study.match == "parameters"
    assert plan.baseline == {"model.layers": "3"}
    assert (plan.base["model"]["hidden_size"], plan.base["training"]["tokens"]) == (32, "10k")
    assert study_from_flags(path).study.seeds == [0, 1, 2, 3, 4]


def test_a_preset_is_a_study_or_a_base() -> None:
    """`--preset` takes whatever `gatelab presets` lists."""
    study = study_from_flags(preset="gate-position")
    assert study.study.name == "gate-position"
    assert [axis.name for axis in study.axes] == ["model.gate.position", "model.gate.granularity"]
    base = study_from_flags(preset="small-dense", axes=["model.gate.position=none,sdpa"])
    assert base.base["model"]["layers"] == 8
    assert [axis.name for axis in base.axes] == ["model.gate.position"]


def test_a_study_of_flags_is_named_by_what_it_asks() -> None:
    """The same command finds its results again; another question, or another seed of it, does not mix with them."""

    def name(*axes: str, **rest: Any) -> str:
        return study_from_flags(axes=axes, **rest).study.name

    first = name("model.layers=1,2")
    assert first == name("model.layers=1,2") == name("model.layers=1,2", seeds="3")  # more seeds: a study that grew
    others = [
        name("model.layers=1,3"),
        name("model.layers=1,2", sets=["model.ffn_size=8"]),
        name("model.layers=1,2", preset="small-dense"),
        name("model.layers=1,2", match="flops"),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"path": Path("a.yaml"), "preset": "tiny-dense"}, "--preset = 'tiny-dense': give a study file or", id="both"
        ),
        pytest.param(
            {"preset": "gate-postion"}, "--preset = 'gate-postion': did you mean gate-position?", id="unknown preset"
        ),
        pytest.param({}, "study: name a study file, --preset NAME", id="nothing"),
        pytest.param({"sets": ["model.layers=2"]}, "study: name a study file, --preset NAME", id="no axis"),
        pytest.param(
            {"axes": ["model.layers"]}, "--axis = 'model.layers': expected PATH=LEVEL,LEVEL", id="axis without levels"
        ),
        pytest.param(
            {"preset": "tiny-dense", "sets": ["model.layers"]}, "--set = 'model.layers': expected PATH=VALUE", id="set"
        ),
        pytest.param({"axes": ["model.layrs=1"]}, "axes.model.layrs: no such configuration field", id="unknown path"),
        pytest.param({"axes": ["model.layers=1,b"]}, "axes.model.layers = 'b': expected a whole number", id="level"),
        pytest.param({"axes": ["model.layers=1"], "seeds": "few"}, "seeds = 'few': expected how many", id="seeds"),
        pytest.param({"axes": ["model.layers=1"], "baseline": ["model.layers=4"]}, "it has 1", id="baseline"),
        pytest.param({"axes": ["model.layers=[1,2"]}, "--axis model.layers", id="level that is no YAML"),
        pytest.param({"preset": "tiny-dense", "sets": ["model.layers=["]}, "--set", id="value that is no YAML"),
    ],
)
def test_a_wrong_command_is_refused(arguments: dict[str, Any], message: str) -> None:
    """Whatever is wrong on the command line is said as such, with the flag and its value."""
    with pytest.raises(StudyError) as caught:
        study_from_flags(**arguments)
    assert str(caught.value).startswith("command line: ")
    assert message in str(caught.value)


def test_a_flag_does_not_hide_what_is_wrong_with_the_file(write: Callable[[str], Path]) -> None:
    """Adding an axis to a file whose axes are no mapping is refused as such, with the place in the file."""
    path = write("seeds: 1\naxes: [model.layers]\n")
    with pytest.raises(StudyError, match=rf"{path}:2: axes = "):
        study_from_flags(path, axes=["model.layers=1,2"])
