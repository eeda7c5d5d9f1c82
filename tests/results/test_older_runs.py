"""A runs folder that an earlier version wrote is read as that version read it: tests/fixtures/README.md."""

import json
import math
import re
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from gatelab.cli.main import app
from gatelab.results.report.stamp import LAYOUT

FIXTURES = Path(__file__).parent.parent / "fixtures"
READING = ("status", "compare", "plan")
"""Commands that write nothing."""
RECORD = re.compile(r"(study.*|claims|located)\.json")
"""Files that are no tables."""
FORMS = ("md", "tex", "html", "csv", "json")
FOREIGN = ("GATELAB_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
REWORDED = {
    "The study is unbalanced: 4 of 8 combinations of levels are neither all nor a regular fraction. No": (
        "Only 4 of 8 combinations of levels have results; no"
    ),
    "and a variant with another optimum is judged unfairly": "and variants whose optimum differs are compared unfairly",
}
"""Sentence of the earlier version -> the same in this one."""


def golden() -> dict[str, Any]:
    """Read what the earlier version printed, in the words of this one."""
    text = (FIXTURES / "runs-9fce4f8.json").read_text(encoding="utf-8")
    for before, now in REWORDED.items():
        assert before in text
        text = text.replace(before, now)
    printed: dict[str, Any] = json.loads(text)
    for value in printed.values():
        if "stamp" in value:
            value["stamp"]["layout"] = LAYOUT
    return printed


GOLDEN = golden()
"""A command -> what the earlier version printed."""


def unpack(folder: Path) -> None:
    """Put the fixture into a folder, which is not the one that it was written in."""
    with tarfile.open(FIXTURES / "runs-9fce4f8.tar.xz") as archive:
        archive.extractall(folder, filter="data")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture, for commands that only read."""
    folder = tmp_path_factory.mktemp("older")
    unpack(folder)
    return folder


@pytest.fixture
def older(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder."""
    enter(unpacked, monkeypatch)
    return unpacked


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy as the current folder, for commands that write."""
    unpack(tmp_path)
    enter(tmp_path, monkeypatch)
    return tmp_path


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, without the settings of whoever runs the tests."""
    patch.chdir(folder)
    for name in FOREIGN:
        patch.delenv(name, raising=False)


def gatelab(command: str) -> Result:
    """Run a command line in this process."""
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    return result


def differences(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """In what two JSON values differ, but for the last digits of floats: another processor may round otherwise."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*expected, *found]):
            yield from differences(found.get(key, "nothing"), expected.get(key, "nothing"), f"{place}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (mine, its) in enumerate(zip(found, expected, strict=True)):
            yield from differences(mine, its, f"{place}/{index}")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(found, expected, rel_tol=1e-9):
            yield f"{place}: {expected} -> {found}"
    elif type(found) is not type(expected) or found != expected:
        yield f"{place}: {expected} -> {found}"


@pytest.mark.parametrize("command", [command for command in GOLDEN if command.startswith(READING)])
def test_reading_gives_the_same_numbers(command: str, older: Path) -> None:
    """Journals, Parquet, MLflow and study files of the earlier version give the numbers that they gave then."""
    assert not list(differences(json.loads(gatelab(command).stdout), GOLDEN[command]))


@pytest.mark.parametrize("study", ["gates", "longer", "ladder", "rates", "rates-lr-tolerance"])
def test_written_tables_still_follow_from_the_trials(study: str, older: Path) -> None:
    """Every table that the earlier version wrote, in every form, is what this one makes of the same trials."""
    folder = Path("gatelab-runs/studies") / study
    tables = [path for form in FORMS for path in sorted(folder.glob(f"*.{form}")) if not RECORD.match(path.name)]
    assert len(tables) >= len(FORMS)
    gatelab(f"report {study} --check " + " ".join(f"--file {path}" for path in tables))


@pytest.mark.parametrize("command", [command for command in GOLDEN if not command.startswith(READING)])
def test_analyses_give_the_same_numbers(command: str, copy: Path) -> None:
    """Claims, effects, searches and laws come out as they did, through commands that write tables and figures."""
    assert not list(differences(json.loads(gatelab(command).stdout), GOLDEN[command]))


@pytest.mark.parametrize("study", ["gates", "longer", "ladder", "rates", "stopped"])
def test_trials_keep_their_ids(study: str, older: Path) -> None:
    """A study file plans the trials that it planned then: what has been trained is never trained again."""
    planned = json.loads(gatelab(f"plan studies/{study}.yaml --no-estimate --json").stdout)
    record = json.loads((older / f"gatelab-runs/studies/{study}/study.json").read_text())
    assert planned["trials"] == record["trials"]
    assert planned["hash"] == record["hash"]


def test_a_finished_study_is_not_trained_again(copy: Path) -> None:
    """gatelab run on what the earlier version finished, at rates that it found, touches no trial and no record."""
    before = contents(copy)
    report = json.loads(gatelab("run studies/rates.yaml --json").stdout)
    assert (report["finished"], report["failed"], report["waiting"]) == (4, 0, 0)
    assert report["mirror_problem"] == ""
    assert contents(copy) == before


def contents(folder: Path) -> dict[str, bytes]:
    """What trials and records of studies hold."""
    runs = folder / "gatelab-runs"
    paths = [*runs.glob("trials/**/*"), *runs.glob("studies/*/study*.json"), *runs.glob("studies/*/claims.json")]
    return {str(path.relative_to(runs)): path.read_bytes() for path in paths if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize("study", ["gates", "rates-lr-tolerance"])
def test_exports_hold_the_same_rows(study: str, older: Path, tmp_path: Path) -> None:
    """Parquet is written as it was: the same columns of the same types, the same rows."""
    gatelab(f"export {study} -o {tmp_path}")
    exported = older / "gatelab-runs/studies" / study / "parquet"
    paths = sorted(path.relative_to(exported) for path in exported.rglob("*.parquet"))
    assert paths == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.parquet")) != []
    for path in paths:
        now, then = pq.read_table(tmp_path / path), pq.read_table(exported / path)
        assert now.schema == then.schema, path
        assert not list(differences(now.to_pydict(), then.to_pydict())), path


def test_a_page_is_written_of_a_study_that_was_stopped(older: Path, tmp_path: Path) -> None:
    """Trials that were interrupted or never began are reported, too."""
    gatelab(f"report stopped -o {tmp_path / 'page.html'}")
    assert "interrupted" in (tmp_path / "page.html").read_text(encoding="utf-8")
