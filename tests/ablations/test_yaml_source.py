"""YAML as a study's author means it: numbers are numbers, words are words, and every key knows its line."""

import math
from pathlib import Path
from typing import Any

import pytest

from gatelab.ablations.errors import StudyError
from gatelab.ablations.yaml_source import load_yaml, parse_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("4E5", 4e5),
        ("-2e+2", -200.0),
        ("1.5e-3", 1.5e-3),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("12", 12),
        ("-3", -3),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("1e", "1e"),
        ("300k", "300k"),
        ("value+sdpa", "value+sdpa"),
        ("'1e-3'", "1e-3"),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: Any, tmp_path: Path) -> None:
    """PyYAML reads 1e-3 as text and `no` as false: a learning rate or a level named so would be another one."""
    path = tmp_path / "a.yaml"
    path.write_text(f"key: {text}\n")
    for read in (parse_scalar(text), load_yaml(path)[0]["key"]):
        assert type(read) is type(value)
        assert read == value


def test_every_key_and_entry_knows_its_line(tmp_path: Path) -> None:
    """An error that names the wrong line sends its reader to the wrong place."""
    path = tmp_path / "a.yaml"
    path.write_text(
        "\n# a comment\nname: a\nbase:\n  model:\n    layers: 2\n\n  training.tokens: 1k\n"
        "axes: {model.layers: [1,\n  2]}\nexclude:\n  - {model.layers: 1}\n  -\n    model.layers: 2\n"
    )
    content, source = load_yaml(path)
    assert content["base"] == {"model": {"layers": 2}, "training.tokens": "1k"}
    assert source.lines == {
        ("name",): 3,
        ("base",): 4,
        ("base", "model"): 5,
        ("base", "model", "layers"): 6,
        ("base", "training.tokens"): 8,
        ("axes",): 9,
        ("axes", "model.layers"): 9,
        ("axes", "model.layers", 0): 9,
        ("axes", "model.layers", 1): 10,
        ("exclude",): 11,
        ("exclude", 0): 12,
        ("exclude", 0, "model.layers"): 12,
        ("exclude", 1): 14,
        ("exclude", 1, "model.layers"): 14,
    }


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    """YAML keeps the last of two equal keys in silence: half of what was asked would not be run."""
    path = tmp_path / "a.yaml"
    path.write_text(
        "axes:\n  model.layers: [1]\n  model.layers: [2]\nseeds: 1\nbase:\n  a: {b: 1,\n   b: 2}\nseeds: 2\n"
    )
    with pytest.raises(StudyError) as caught:
        load_yaml(path)
    assert sorted(str(caught.value).splitlines()) == [
        f"{path}:3: axes.model.layers: already given in line 2",
        f"{path}:7: base.a.b: already given in line 6",
        f"{path}:8: seeds: already given in line 4",
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param(b"a: [1\nb: 2\n", 2, id="bracket"),
        pytest.param(b"a: 1\n\tb: 2\n", 2, id="tab"),
        pytest.param(b"a: 1\nb: *nothing\n", 2, id="unknown alias"),
        pytest.param(b"a: 1\n---\nb: 2\n", 2, id="two documents"),
        pytest.param(b"a: !!python/object:os.system {}\n", 1, id="python object"),
        pytest.param(b"a: caf\xe9\n", None, id="not UTF-8"),
        pytest.param(b"a: b\x07\n", None, id="control character"),
    ],
)
def test_broken_yaml_is_an_error_with_its_place(content: bytes, line: int | None, tmp_path: Path) -> None:
    """A slip of the keyboard is answered with file and line, never with a traceback, and no code of a file is run."""
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}")


@pytest.mark.parametrize("name", ["absent.yaml", "."], ids=["absent", "folder"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    """A mistyped path must be told from a mistyped study."""
    with pytest.raises(StudyError, match=rf"{tmp_path / name}: file: cannot be read \(.+\)"):
        load_yaml(tmp_path / name)
