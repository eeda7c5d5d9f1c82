"""The commands as a user types them: what they print, what they write, their exit codes."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gatelab.cli.main import app

Gatelab = Callable[..., subprocess.CompletedProcess[str]]


def test_main_job_end_to_end(gatelab: Gatelab, study_file: Path, tmp_path: Path) -> None:
    """One command gives a table, plots, Parquet and a tracking store; the others read them; again starts nothing."""
    first = gatelab("run", study_file)
    assert first.returncode == 0, first.stderr
    where = ("Parquet", "MLflow", "comparison.md", "gatelab report tiny")
    for said in ("validation/loss [nats/token]", "baseline", *where):
        assert said in first.stdout
    study = tmp_path / "gatelab-runs/studies/tiny"
    for name in ("comparison.md", "comparison.tex", "curves-validation-loss.png", "curves-validation-loss.svg"):
        assert (study / name).stat().st_size > 100
    assert pq.read_table(study / "parquet/runs").num_rows == 4

    again = gatelab("run", study_file, "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["finished"] == 4
    for trial in tmp_path.glob("gatelab-runs/trials/*"):  # nothing is left of a trial but what is said to be
        names = {path.name for path in trial.rglob("*") if path.is_file()}
        assert names == {"outcome.json", "0000.arrows", "step-000000020.safetensors"}

    status = json.loads(gatelab("status", "tiny", "--json").stdout)
    assert status["counts"] == {"finished": 4, "diverged": 0, "failed": 0, "running": 0, "interrupted": 0, "waiting": 0}
    from_journal, from_mlflow, from_parquet = (
        gatelab("compare", study_file, "--json", "--from", source) for source in ("journal", "mlflow", "parquet")
    )
    assert from_journal.stdout == from_mlflow.stdout == from_parquet.stdout
    assert {row["verdict"] for row in json.loads(from_journal.stdout)["rows"]} <= {
        "baseline",
        "lower",
        "higher",
        "undecided",
    }

    assert gatelab("compare", "tiny", "--format", "csv", "-o", "out.csv").returncode == 0
    assert [row["n"] for row in csv.DictReader((tmp_path / "out.csv").open())] == ["2", "2"]
    assert gatelab("curves", "tiny", "--metric", "train/gradient_norm", "-o", "plots").returncode == 0
    assert (tmp_path / "plots/curves-train-gradient_norm.svg").exists()
    assert gatelab("export", "tiny", "-o", "frames").returncode == 0
    assert pq.read_table(tmp_path / "frames/layers")["layer"].null_count == 0


def test_interrupted_and_killed_equals_undisturbed(gatelab: Gatelab, study_file: Path, tmp_path: Path) -> None:
    """Ctrl-C, then kill -9, then the same command again: the table is that of an undisturbed run, digit for digit."""
    study_file.write_text(study_file.read_text().replace("tokens: 1280", "tokens: 48000"))
    assert gatelab("run", study_file, "--runs", "undisturbed").returncode == 0
    for how, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        command = [
            sys.executable,
            "-m",
            "gatelab",
            "run",
            str(study_file),
            "--runs",
            "disturbed",
            "--checkpoint-seconds",
            "1",
        ]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        before = _recorded(tmp_path)
        _wait_until(lambda before=before: _recorded(tmp_path) > before + 2000, process)
        process.send_signal(how)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == code, output
    finished = gatelab("run", study_file, "--runs", "disturbed")
    assert finished.returncode == 0, finished.stderr
    tables = [
        json.loads(gatelab("compare", "tiny", "--runs", runs, "--json").stdout) for runs in ("undisturbed", "disturbed")
    ]
    for table in tables:
        for row in table["rows"]:
            del row["tokens_per_second"]
    assert tables[0] == tables[1]


def _recorded(folder: Path) -> int:
    """Bytes of journal on disk: they grow with the steps that are on record."""
    return sum(path.stat().st_size for path in folder.glob("disturbed/trials/*/journal/*.arrows"))


def _wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_some_trials_failed_is_exit_code_1(gatelab: Gatelab, study_file: Path, tmp_path: Path) -> None:
    """A program can tell that a study is incomplete; a person reads why, and where the log is."""
    trial = json.loads(gatelab("plan", study_file, "--json", "--no-estimate").stdout)["trials"][0]["id"]
    (tmp_path / "gatelab-runs/trials" / trial).mkdir(parents=True)
    (tmp_path / "gatelab-runs/trials" / trial / "checkpoints").touch()
    result = gatelab("run", study_file, "--retries", "0")
    assert result.returncode == 1
    assert "FileExistsError" in result.stdout
    assert f"trials/{trial}/log.txt" in result.stdout
    assert "1 + 1 failed" in result.stdout


def test_plan_shows_the_matrix(gatelab: Gatelab, study_file: Path) -> None:
    """A plan names variants, costs, what was folded, excluded and impossible, and what to think about."""
    axes = ["--axis", "model.gate.granularity=elementwise,headwise", "--axis", "model.gate.position=none,key,sdpa"]
    result = gatelab("plan", study_file, *axes)
    assert result.returncode == 0, result.stderr
    for said in ("FLOPs/token", "folded", "impossible", "QK-norm undoes", "trials still to run", "neither an axis nor"):
        assert said in result.stdout
    plan: dict[str, Any] = json.loads(gatelab("plan", study_file, *axes, "--json").stdout)
    assert [variant["label"] for variant in plan["variants"]] == [
        "position=none", "position=key, granularity=elementwise",
        "position=sdpa, granularity=elementwise", "position=sdpa, granularity=headwise",
    ]  # fmt: skip
    assert len(plan["trials"]) == 8
    assert plan["estimate"]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml: file: no such file (gatelab init writes a study to start from"),
        (["plan"], "name a study file"),
        (["run", "--preset", "quickstar"], "did you mean quickstart?"),
        (["run", "--axis", "model.gate.positon=none,sdpa"], "did you mean model.gate.position?"),
        (["run", "--axis", "model.gate.position=none,spda"], "expected none, or one or more of"),
        (["run", "tiny.yaml", "--set", "data.source=/nowhere"], "no such file or folder"),
        (["run", "tiny.yaml", "--set", "training.tokens=many"], "expected a count such as"),
        (["compare", "unheard-of"], "no study 'unheard-of' in gatelab-runs"),
        (["compare", "unheard-of", "--from", "mlflow"], "no tracking store"),
        (["train", "tiny.yaml", "--variant", "position=spda"], "did you mean position=sdpa?"),
        (["presets", "tiny-dens"], "did you mean tiny-dense?"),
        (["ui"], "there is no tracking store"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_requests_exit_2_and_say_why(
    study_file: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be done is refused in a line, without a traceback, with the nearest right name."""
    monkeypatch.chdir(study_file.parent)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_train_presets_data_and_doctor(gatelab: Gatelab, study_file: Path) -> None:
    """The small commands do what they say."""
    trained = gatelab("train", study_file, "--variant", "position=sdpa", "--seed", "1")
    assert trained.returncode == 0
    assert "finished" in trained.stdout and "validation/loss" in trained.stdout
    names = {entry["name"] for entry in json.loads(gatelab("presets", "--json").stdout)}
    assert {"quickstart", "gate-position", "tiny-dense"} <= names
    manifest = json.loads(gatelab("data", study_file, "--json").stdout)[0]
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == 6
    found = json.loads(gatelab("doctor", "--json").stdout)
    backends, cases = found["attention backends"], found["attention, by case"]
    assert all(backends[name].startswith("correct to") for name in ("chunked", "sdpa", "reference"))
    assert backends["cudnn"].startswith("not here: cuDNN needs a CUDA device")
    assert cases["float32, T 512"].startswith("chunked")
    assert "not chunked: it would keep" in cases["bfloat16, T 32,768"]


def test_help_is_fast_and_has_examples() -> None:
    """Asking for help loads neither torch, Ray nor MLflow, and every command shows an example."""
    code = "import sys, gatelab.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'mlflow')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    for command in ("plan", "run", "status", "compare", "curves", "export", "ui", "train", "presets", "data", "doctor"):
        assert "Example: gatelab" in CliRunner().invoke(app, [command, "--help"]).stdout
