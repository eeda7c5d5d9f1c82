"""Claims and tables as a user meets them: plan, run, compare and report --check on a study that was really run."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from typer.testing import CliRunner, Result

from gatelab.cli.console import console
from gatelab.cli.main import app
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.preregistration import read_register
from gatelab.results.store.records import write_json
from gatelab.training import preparation
from tests.cli.conftest import FOREIGN, STUDY

CLAIMS = """\
claims:
  a gate costs speed:
    metric: train/mean_tokens_per_second
    expected: 1000000
  "lower, or not":
    variant: {model.gate.position: sdpa}
    margin: 0.001
    expected: 0.5
"""

Command = Callable[..., Result]
FORMS = ("md", "tex", "html", "csv", "json")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Iterator[tuple[Path, Result]]:
    """A folder in which a study with claims has been run, and what the command printed."""
    folder = tmp_path_factory.mktemp("claims")
    (folder / "text").mkdir()
    for number in range(6):
        (folder / "text" / f"{number}.txt").write_text(f"the {number}th of six texts; " * 40, encoding="utf-8")
    (folder / "tiny.yaml").write_text(STUDY.format(tokens=640, corpus=folder / "text") + CLAIMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        result = CliRunner().invoke(app, ["run", "tiny.yaml"], env={"COLUMNS": "250"})
        assert result.exit_code == 0, result.output
        yield folder, result


@pytest.fixture
def folder(launched: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunsFolder:
    """A copy of the folder, which becomes the current one."""
    shutil.copytree(launched[0] / "gatelab-runs", tmp_path / "gatelab-runs")
    shutil.copy(launched[0] / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    return RunsFolder(Path("gatelab-runs"))


@pytest.fixture
def command(folder: RunsFolder, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in that copy, in this process."""
    monkeypatch.setattr(console, "quiet", False)  # put back at the end

    def run(*arguments: str | Path) -> Result:
        console.quiet = False  # after a command with --json
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "250"})

    return run


def rewrite(old: str, new: str) -> None:
    """Change the study's file."""
    path = Path("tiny.yaml")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_launch_writes_the_claims_down(launched: tuple[Path, Result], folder: RunsFolder) -> None:
    """The first launch registers what is claimed before any trial; its end says what became of it, in every form."""
    [entry] = read_register(folder.study("tiny").claims)
    assert (entry.ended, entry.trials) == (0, 4)
    assert entry.changes == {"a gate costs speed": "new", "lower, or not": "new"}
    for said in ("tiny: claims", "a gate costs speed", f"registered {entry.at[:10]}, before any trial had ended"):
        assert said in launched[1].stdout
    path = folder.study("tiny").path
    assert all((path / f"claim-verdicts.{form}").stat().st_size > 100 for form in FORMS)
    whole = json.loads((path / "claim-verdicts.json").read_text())
    assert [result["claim"] for result in whole["results"]] == ["a gate costs speed", "lower, or not"]
    table = json.loads((path / "comparison.json").read_text())
    rows = {row["variant"]: row for row in table["rows"]}
    [delta] = [result["delta"]["mean"] for result in whole["results"] if result["metric"] == "validation/loss"]
    assert delta == rows["position=sdpa"]["delta"]["mean"]


def test_claims_can_be_asked_for(command: Command, folder: RunsFolder) -> None:
    """The verdicts alone, as a table and for programs; of a study that claims nothing, words."""
    shown = command("claims", "tiny")
    assert shown.exit_code == 0, shown.output
    assert "a gate costs speed" in shown.output
    whole = json.loads(command("claims", "tiny", "--json").stdout)
    assert {result["claim"] for result in whole["results"]} == {"a gate costs speed", "lower, or not"}
    record = json.loads(folder.study("tiny").record.read_text())
    write_json(folder.study("tiny").record, {**record, "claims": []})
    folder.study("tiny").claims.unlink()
    silent = command("claims", "tiny")
    assert (silent.exit_code, "tiny makes no claims" in silent.output) == (2, True)


def test_a_claim_that_changes_after_the_fact_is_told(command: Command, folder: RunsFolder) -> None:
    """Nothing runs again; the amendment has a date and says that all four trials had ended."""
    before = sorted(folder.root.glob("trials/*/journal/*"))
    rewrite("margin: 0.001", "margin: 0.0")
    result = command("run", "tiny.yaml")
    assert result.exit_code == 0, result.output
    assert sorted(folder.root.glob("trials/*/journal/*")) == before
    first, second = read_register(folder.study("tiny").claims)
    assert (first.ended, second.ended, second.trials) == (0, 4, 4)
    assert second.changes == {"lower, or not": "margin 0.001 -> 0.0"}
    assert "after 4 of 4 trials: lower, or not: margin 0.001 -> 0.0." in result.stdout
    assert f"amended {second.at[:10]}, after 4 of 4 trials" in result.stdout
    assert "Amended " in (folder.study("tiny").path / "claim-verdicts.md").read_text(encoding="utf-8")


def test_a_register_that_was_edited_stops_the_study(command: Command, folder: RunsFolder) -> None:
    """Refused in a line before anything runs: what was claimed when is not known any more."""
    path = folder.study("tiny").claims
    register = json.loads(path.read_text())
    register["entries"][0]["claims"]["lower, or not"]["margin"] = 0.0
    write_json(path, register)
    result = command("run", "tiny.yaml", "--seeds", "3")
    assert result.exit_code == 2
    assert "claims.json: entry 1 is not as it was written" in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert len(list(folder.root.glob("trials/*"))) == 4
    checked = command("report", "tiny", "--check")
    assert checked.exit_code == 1
    assert "entry 1 is not as it was written" in checked.stdout


def test_a_plan_says_what_a_study_can_show(command: Command, folder: RunsFolder) -> None:
    """Before the first study in standard deviations, then from its noise: power, and the seeds that 80 % takes."""
    fresh = command("plan", "tiny.yaml", "--no-estimate", "--runs", "fresh")
    assert fresh.exit_code == 0, fresh.output
    assert fresh.stdout.count("their noise is not known yet") == 2
    known = command("plan", "tiny.yaml", "--no-estimate")
    assert known.exit_code == 0, known.output
    for said in ("claim lower, or not (validation/loss, 2 pairs)", "smallest detectable difference", "in tiny"):
        assert said in known.stdout
    plan: dict[str, Any] = json.loads(command("plan", "tiny.yaml", "--no-estimate", "--json").stdout)
    speed, loss = plan["claims"]
    assert (speed["claim"], loss["metric"], loss["seeds"]) == ("a gate costs speed", "validation/loss", 2)
    table = json.loads(command("compare", "tiny", "--json").stdout)
    [row] = [row for row in table["rows"] if not row["is_baseline"]]
    sd = row["evidence"]["sd"]
    assert loss["noise"]["sd"] == pytest.approx(sd)
    power = stats.nct.sf(stats.t.ppf(0.95, 1), 1, (0.5 - 0.001) / sd * 2**0.5)
    assert loss["power"] == pytest.approx(power, abs=1e-6)
    assert json.loads(command("plan", "tiny.yaml", "--no-estimate", "--json", "--runs", "fresh").stdout)["claims"][0][
        "power"
    ] is None  # fmt: skip
    rewrite("margin: 0.001", "test: sign-flip")
    assert "cannot be supported: with 2 seeds no sign-flip p is below 0.25" in command(
        "plan", "tiny.yaml", "--no-estimate"
    ).stdout  # fmt: skip
    six = command("plan", "tiny.yaml", "--no-estimate", "--seeds", "auto")
    assert six.exit_code == 0, six.output
    assert "12 trials = 2 variants x 6 seeds" in six.stdout
    axes = ["--axis", "model.gate.position=none,value,sdpa"]
    assert "= 3 variants x 6 seeds + 2 of baselines" in command(
        "plan", "tiny.yaml", "--no-estimate", "--seeds", "auto", *axes
    ).stdout  # fmt: skip


def test_a_plan_reads_its_data_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two claims, two variants, two seeds: the hash of what may be terabytes is taken once, with claims or without."""
    digests: list[Any] = []
    take = preparation.source_digest

    def counted(config: Any) -> str:
        digests.append(config)
        return take(config)

    monkeypatch.setattr(preparation, "source_digest", counted)
    result = command("plan", "tiny.yaml", "--no-estimate")
    assert result.exit_code == 0, result.output
    assert "claim lower, or not" in result.stdout
    assert len(digests) == 1


def test_a_plan_says_that_no_study_could_show_it(command: Command) -> None:
    """A difference far below the noise: in a moment, and in words."""
    rewrite("expected: 0.5", "expected: 0.00100001\n    test: dunnett")
    result = command("plan", "tiny.yaml", "--no-estimate")
    assert result.exit_code == 0, result.output
    assert "80 % takes more than 1,000 seeds" in result.stdout
    assert (
        json.loads(command("plan", "tiny.yaml", "--no-estimate", "--json").stdout)["claims"][1]["seeds_needed"] is None
    )


def test_what_never_varied_is_not_evaluable(command: Command, folder: RunsFolder) -> None:
    """Numbers that are the same at each seed differ, or not: there is no p-value of either."""
    for outcome in folder.root.glob("trials/*/outcome.json"):
        changed = json.loads(outcome.read_text())
        changed["metrics"]["memory/peak_bytes"] = 1024.0
        write_json(outcome, changed)
    result = command("compare", "tiny", "--metric", "memory/peak_bytes", "--json")
    [row] = [row for row in json.loads(result.stdout)["rows"] if not row["is_baseline"]]
    assert (row["verdict"], row["evidence"]["p"]) == ("not evaluable", None)
    shown = command("compare", "tiny", "--metric", "memory/peak_bytes", "--tests")
    assert "† not evaluable: position=sdpa: the same difference at every seed" in shown.stdout


def test_compare_shows_tests_margins_and_pivots(command: Command) -> None:
    """A margin decides what is equivalent, --tests shows each test, and axes make a pivot table in every form."""
    shown = command("compare", "tiny", "--tests", "--margin", "0.5")
    assert shown.exit_code == 0, shown.output
    for said in ("tiny: tests of validation/loss", "p (sign flip)", "p (within ±0.5)", "detectable", "seed savings"):
        assert said in shown.stdout
    assert "p (within" not in command("compare", "tiny", "--tests").stdout
    table = json.loads(command("compare", "tiny", "--margin", "1e6", "--json").stdout)
    assert table["margin"] == 1e6
    assert sorted(row["verdict"] for row in table["rows"]) == ["baseline", "equivalent"]
    assert table["stamp"]["options"] == {"metric": "validation/loss", "margin": 1e6}

    means = {row["variant"]: row["value"]["mean"] for row in table["rows"]}
    pivoted = ("compare", "tiny", "--columns", "position")
    assert "position = none" in command(*pivoted).stdout
    rows = list(csv.DictReader(io.StringIO(command(*pivoted, "-f", "csv").stdout)))
    assert [(float(row["none"]), float(row["sdpa"])) for row in rows] == [
        (means["position=none"], means["position=sdpa"])
    ]
    for form in ("md", "tex", "html", "json"):
        text = command(*pivoted, "-f", form).stdout
        assert "gatelab-table" in text or json.loads(text)["stamp"]["table"] == "pivot"
    assert {row["study_hash"] for row in rows} == {
        json.loads(Path("gatelab-runs/studies/tiny/study.json").read_text())["hash"]
    }


def test_tables_hold_until_something_changes(command: Command, folder: RunsFolder) -> None:
    """--check exits with 0 after a run, and with 1 once a table was edited or a trial is another."""
    path = folder.study("tiny").path
    for form in FORMS:
        asked = ("compare", "tiny", "--rows", "position", "--margin", "0.01", "-f", form, "-o", f"paper.{form}")
        assert command(*asked).exit_code == 0
    files = [argument for form in FORMS for argument in ("--file", f"paper.{form}")]
    first, paper = command("report", "tiny", "--check"), command("report", "tiny", "--check", *files)
    assert (first.exit_code, paper.exit_code) == (0, 0), first.output + paper.output
    assert {f"{stem}.{form}" for stem in ("comparison", "diagnostics", "claim-verdicts") for form in FORMS} <= set(
        re.findall(r"^ok .*/(.*)$", first.stdout, re.MULTILINE)
    )
    assert "out of date" not in first.stdout + paper.stdout
    assert len(re.findall("^ok ", paper.stdout, re.MULTILINE)) == 5

    table = path / "comparison.tex"
    table.write_text(re.sub(r"(\d)\.(\d)", r"\1.7\2", table.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    edited = command("report", "tiny", "--check")
    assert edited.exit_code == 1
    assert re.findall(r"^out of date .*/(.*)$", edited.stdout, re.MULTILINE) == ["comparison.tex"]
    assert "the text is not what follows from the trials" in edited.stdout

    outcome = next(folder.root.glob("trials/*/outcome.json"))
    changed = json.loads(outcome.read_text())
    changed["metrics"]["validation/loss"] += 0.5
    write_json(outcome, changed)
    later = command("report", "tiny", "--check", *files)
    assert later.exit_code == 1
    assert later.stdout.count("out of date") == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("compare tiny --rows positon", "--rows, --columns: 'positon' is no axis (there are: model.gate.position)"),
        ("compare tiny --rows position --columns position", "both in rows and in columns"),
        ("compare tiny --margin -0.1", "--margin"),
        ("compare tiny --margin small", "--margin"),
        ("compare tiny --margin nan", "--margin"),
        ("compare tiny --margin inf", "--margin inf: expected a number"),
        ("compare tiny --tests -f md", "--tests is for the terminal: csv and json hold all tests"),
        ("compare tiny --tests --json", "--tests is for the terminal"),
        ("compare tiny --format md --metric validation/los", "--metric: no trial has 'validation/los'"),
        ("compare tiny -o table.md", "--output needs --format"),
        ("report unheard-of --check", "no study 'unheard-of'"),
        ("report unheard-of --check --file tiny.yaml", "no study 'unheard-of'"),
        ("run tiny.yaml --seeds some", "or auto"),
    ],
)
def test_wrong_requests_exit_2_and_say_why(arguments: str, said: str, command: Command) -> None:
    """What cannot be asked is refused in a line, without a traceback."""
    result = command(*arguments.split())
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert said in result.stderr


def test_wrong_claims_are_refused_before_anything_runs(command: Command, folder: RunsFolder) -> None:
    """With file, line, key and what would be right; the study that was run keeps its register."""
    before = folder.study("tiny").claims.read_bytes()
    rewrite("metric: train/mean_tokens_per_second", "metrik: train/mean_tokens_per_second")
    for name in ("plan", "run"):
        result = command(name, "tiny.yaml")
        assert result.exit_code == 2
        assert "tiny.yaml:13: claims.a gate costs speed.metrik: unknown key; did you mean metric?" in result.stderr
    assert folder.study("tiny").claims.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<!-- gatelab-table {not json} -->", "has no stamp"),
        ('<!-- gatelab-table {"table": ["comparison"], "commits": [1], "data": []} -->', "has no stamp"),
        ("\udcff\udcfe", "is no text"),
    ],
)
@pytest.mark.parametrize("suffix", ["md", "txt", "csv", "png"])
def test_files_that_are_no_tables_are_answered(content: str, said: str, suffix: str, command: Command) -> None:
    """Whatever somebody has checked gets a line and exit code 1, not a traceback."""
    path = Path(f"odd.{suffix}")
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    result = command("report", "tiny", "--check", "--file", path)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert said in result.stdout


def test_a_torn_register_stops_the_study(command: Command, folder: RunsFolder) -> None:
    """It is not taken for a study that claimed nothing yet."""
    path = folder.study("tiny").claims
    path.write_text(path.read_text()[:100])
    result = command("run", "tiny.yaml", "--seeds", "3")
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert "claims.json: is not what was written" in result.stderr
    assert len(list(folder.root.glob("trials/*"))) == 4


def test_a_study_without_tables_has_nothing_to_check(command: Command, folder: RunsFolder) -> None:
    """Said, with the command that writes them: not a check that passes on nothing."""
    for path in folder.study("tiny").path.iterdir():
        if path.suffix.removeprefix(".") in FORMS and path.name not in ("study.json", "claims.json"):
            path.unlink()
    result = command("report", "tiny", "--check")
    assert result.exit_code == 2
    assert "has a stamp" in result.stderr
