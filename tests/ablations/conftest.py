"""Studies written to a file and read back, as a person would."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from gatelab.ablations.errors import StudyError
from gatelab.ablations.loading import load_study
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.pipeline import build_matrix
from gatelab.ablations.study import StudyPlan


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """A study file with this text."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(write: Callable[[str], Path]) -> Callable[..., StudyPlan]:
    """The plan of a study with this text."""
    return lambda text, *args, **fields: load_study(write(text), *args, **fields)


@pytest.fixture
def plan(load: Callable[..., StudyPlan]) -> Callable[..., Matrix]:
    """The matrix of a study with this text, all data having the same identity."""
    return lambda text, *args, **fields: build_matrix(load(text, *args, **fields), lambda config: "x")


@pytest.fixture
def refusal(write: Callable[[str], Path]) -> Callable[[str], list[tuple[Any, ...]]]:
    """How a study is refused: (line, key, value or None, message) of each problem, in the order of the lines.

    Checks on the way that the printed error has a line `file:line: key = value: message` for each of them.
    """

    def refusal(text: str) -> list[tuple[Any, ...]]:
        path = write(text)
        with pytest.raises(StudyError) as caught:
            build_matrix(load_study(path), lambda config: "x")
        problems = sorted(caught.value.problems, key=lambda problem: problem.line or 0)
        printed = str(caught.value).splitlines()
        found = []
        for problem in problems:
            value = problem.value if " = " in str(problem).partition(": ")[0] else None
            place = f"{path}:{problem.line}:" if problem.line else f"{path}:"
            assert any(line.startswith(f"{place} {problem.key}") and problem.message in line for line in printed)
            if value is not None:
                assert any(repr(value)[:57] in line for line in printed)
            found.append((problem.line, problem.key, value, problem.message))
        assert len(printed) == len(found)
        return found

    return refusal
