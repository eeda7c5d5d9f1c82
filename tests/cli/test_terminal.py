"""What the terminal shows: tables that fit it, every encoding, no control characters, one line for what went wrong."""

import errno
import json
import os
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gatelab.cli import console as shown
from gatelab.cli.console import console, print_table
from gatelab.cli.main import app
from gatelab.results.views.table import Column, Table


def gatelab(command: str, charset: str = "utf-8") -> Result:
    """Run a command line in this process."""
    return CliRunner(charset=charset).invoke(app, shlex.split(command))


@pytest.mark.parametrize("command", ["compare gates", "claims gates", "compare gates --tests", "effects ladder"])
def test_tables_fit_eighty_columns(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is wider is shown in parts, each with the names of its rows: nothing is cut, nothing wraps."""
    monkeypatch.setattr(console, "_width", 80)
    monkeypatch.setattr(console, "soft_wrap", False)
    result = gatelab(command)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if not line.startswith("gatelab-runs")]
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout


def test_a_part_repeats_the_names_of_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns that do not fit beside each other are below each other; a heading stands in each part."""
    before, console.width = console.width, 30
    try:
        columns = (Column("gate"), Column("loss", True), Column("parameters", True), Column("verdict"))
        print_table(Table("t", columns, (("sdpa elementwise", "1.5", "217,856", "undecided: it contains 0"),)))
    finally:
        console.width = before
    out = capsys.readouterr().out
    assert out.count("sdpa") == 3
    for text in ("loss", "1.5", "parameters", "217,856", "verdict", "undecided:"):
        assert text in out


@pytest.mark.parametrize("command", ["-h", "list", "compare gates", "compare gates -f md", "plan studies/gates.yaml"])
def test_every_encoding_is_written(command: str, desk: Path) -> None:
    """A terminal without Δ or – shows another letter there, and no traceback."""
    no_estimate = " --no-estimate" if command.startswith("plan") else ""
    result = gatelab(command + no_estimate, "ascii")
    assert result.exit_code == 0, result.exception


def test_control_characters_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that would colour the terminal, ring its bell or turn its lines is shown as it is written."""
    print_table(Table("a\x1b[31m", (Column("b\x07"),), (("c\u202ed",),), notes=("e\x9bf",)))
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(out)
    assert "a\\x1b[31m" in out


@pytest.mark.parametrize("command", ["effects ladder -o out", "export gates -o out", "compare gates -f md -o t.md"])
def test_a_full_disk_is_one_line(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names no code of ours, and no part of a table is left where the whole one should be."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text" if "export" not in command else "replace", full)
    result = gatelab(command)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stderr) == (2, "error No space left on device\n")
    assert not list(desk.glob("out/*.*"))


def test_a_closed_pipe_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gatelab compare … | head` ends as other programs do."""

    def closed() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        shown.reported(closed)()


def test_list_shows_every_study(desk: Path) -> None:
    """How many trials, how they stand, when the last one ended; one that is damaged costs no other."""
    damaged = desk / "gatelab-runs/studies/damaged"
    damaged.mkdir()
    (damaged / "study.json").write_text("{")
    result = gatelab("list")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[2:]}
    assert rows.keys() == {"damaged", "gates", "ladder", "longer", "rates", "rates-lr-tolerance", "stopped"}
    assert "14 finished, 1 diverged" in rows["gates"]
    assert "2 interrupted, 2 waiting" in rows["stopped"]
    assert "is damaged, or cannot be read" in rows["damaged"]
    assert json.loads(gatelab("list --json").stdout)[1]["counts"] == {"finished": 14, "diverged": 1}
    (damaged / "study.json").unlink()
    damaged.rmdir()


def test_a_file_that_is_not_what_was_run_is_told(desk: Path) -> None:
    """Results are those of the run, whatever the file says by now; standard output stays that of programs."""
    same = gatelab("compare studies/gates.yaml --json")
    assert same.stderr == ""
    text = (desk / "studies/gates.yaml").read_text()
    (desk / "gates.yaml").write_text(text.replace("seeds: 3", "seeds: 2"))
    other = gatelab("compare gates.yaml --json")
    assert "gates.yaml is not what was run, which is what is shown" in other.stderr
    assert other.stdout == same.stdout


def test_a_plan_needs_no_place_to_write(desk: Path) -> None:
    """In a folder of somebody else the speed of this machine is measured anew, and nothing else is missed."""
    (desk / "gatelab-runs" / "speeds.json").unlink(missing_ok=True)
    (desk / "gatelab-runs" / "speeds.json").mkdir()  # cannot be written, whoever runs the tests
    result = gatelab("plan studies/stopped.yaml")
    (desk / "gatelab-runs" / "speeds.json").rmdir()
    assert result.exit_code == 0, result.output
    assert "for the 4 trials still to run" in result.stdout
