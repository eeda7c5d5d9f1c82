"""Kills, and the checker of histories: it finds nothing where nothing is wrong, and whatever was tampered with."""

import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from gatelab.ablations.loading import load_study
from gatelab.cli.main import app
from gatelab.orchestrator.chaos import storm
from gatelab.orchestrator.chaos.chaos import is_command
from gatelab.orchestrator.chaos.history import Facts, Sightings, compare_facts, read_facts
from gatelab.orchestrator.chaos.kills import Moment, Victim, plan_kills
from gatelab.orchestrator.chaos.processes import Processes
from gatelab.orchestrator.inline import InlineExecutor
from gatelab.orchestrator.study_run import RunOptions
from gatelab.orchestrator.workflow import run_study
from gatelab.results.store.journal import SCHEMA, Journal, read_journal
from gatelab.results.store.layout import RunsFolder, TrialFolder
from gatelab.results.store.records import Outcome, read_json, write_json
from gatelab.results.tracking.client import RunIndex
from gatelab.status import Status
from tests.orchestrator.conftest import TINY


@dataclass(frozen=True)
class Ran:
    """A study that was run, and what is known of it."""

    folder: RunsFolder
    study: Path
    facts: Facts
    seen: dict[Path, str]

    @property
    def trial(self) -> TrialFolder:
        [first, *_] = sorted((self.folder.root / "trials").iterdir())
        return TrialFolder(first)

    def run(self) -> None:
        run_study(load_study(self.study), self.folder, InlineExecutor(), RunOptions())

    def violations(self) -> list[str]:
        found = read_facts(self.folder, self.folder.tracking_uri)
        return [str(each) for each in compare_facts(self.facts, found, self.folder, self.seen)]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that has been run, for all to copy."""
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "corpus").mkdir()
    for name in ("heapq.py", "shlex.py", "string.py"):
        shutil.copy(Path(sysconfig.get_path("stdlib")) / name, folder / "corpus" / name)
    base = {**TINY, "data": {"source": str(folder / "corpus"), "validation_fraction": 0.4}}
    study = {"name": "tiny", "base": base, "axes": {"model.gate.position": ["none", "sdpa"]}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(study))
    run_study(load_study(folder / "tiny.yaml"), RunsFolder(folder / "runs"), InlineExecutor(), RunOptions())
    return folder


@pytest.fixture
def ran(once: Path) -> Ran:
    """What may be tampered with, as it was at first, at its own place: MLflow keeps files open, and where they lie."""
    folder, before = RunsFolder(once / "runs"), once / "before"
    if before.exists():
        shutil.rmtree(folder.root / "trials")
        shutil.copytree(before, folder.root, dirs_exist_ok=True)
    else:
        shutil.copytree(folder.root, before)
    sightings = Sightings(folder)
    sightings.look()
    return Ran(folder, once / "tiny.yaml", read_facts(folder, folder.tracking_uri), sightings.seen)


def test_nothing_is_found_where_nothing_is_wrong(ran: Ran) -> None:
    """Also once the command has been given again: what is finished stays as it is."""
    assert ran.violations() == []
    ran.run()
    assert ran.violations() == []


Rows = list[dict[str, Any]]


def the_row(rows: Rows) -> int:
    return next(place for place, row in enumerate(rows) if row["name"] == "train/loss" and row["step"] == 7)


def without_it(rows: Rows) -> Rows:
    return [row for place, row in enumerate(rows) if place != the_row(rows)]


def with_it_twice(rows: Rows) -> Rows:
    return [*rows[: the_row(rows)], rows[the_row(rows)], *rows[the_row(rows) :]]


def with_its_last_bit_changed(rows: Rows) -> Rows:
    row = rows[the_row(rows)]
    row["value"] = math.nextafter(row["value"], math.inf)
    return rows


def with_another_beside_it(rows: Rows) -> Rows:
    return [*rows[: the_row(rows)], {**rows[the_row(rows)], "name": "train/luck"}, *rows[the_row(rows) :]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_it, "7 None train/loss: lost: 0x1."),
        (with_it_twice, "7 None train/loss: there 2 times"),
        (with_its_last_bit_changed, "7 None train/loss: 0x1."),
        (with_another_beside_it, "7 None train/luck: from nowhere: 0x1."),
    ],
)
def test_a_row_that_is_lost_doubled_changed_or_invented_is_found(
    ran: Ran, change: Callable[[Rows], Rows], said: str
) -> None:
    """Of all rows of a journal, one is enough, and one bit of it."""
    files = ran.trial
    rows = change(read_journal(files.journal).to_pylist())
    shutil.rmtree(files.journal)
    with Journal(files.journal, trial=files.path.name) as journal:
        journal.append(pa.Table.from_pylist(rows, SCHEMA))
    [problem] = [each for each in ran.violations() if each.startswith("journal row")]
    assert said in problem


def finish_again(ran: Ran) -> None:
    ran.trial.outcome.unlink()
    ran.run()


def forget_the_outcome(ran: Ran) -> None:
    ran.trial.outcome.unlink()


def write_on_after_the_end(ran: Ran) -> None:
    with Journal(ran.trial.journal, trial=ran.trial.path.name):
        pass


def repeat_a_step_with_another_loss(ran: Ran) -> None:
    with Journal(ran.trial.journal, trial=ran.trial.path.name) as journal:
        journal.record(7, {"train/loss": 1.0})  # no table reads it: the step has been recorded before


def flip_a_bit_of_the_weights(ran: Ran) -> None:
    path = next(ran.trial.checkpoints.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def train_one_more(ran: Ran) -> None:
    shutil.copytree(ran.trial.path, ran.trial.path.with_name("f" * 64))


def claim_another_loss(ran: Ran) -> None:
    outcome = read_json(ran.trial.outcome)
    assert outcome is not None
    outcome["metrics"]["validation/loss"] += 1e-9
    write_json(ran.trial.outcome, outcome)  # with a checksum that fits


def send_a_run_twice(ran: Ran) -> None:
    index = RunIndex.open(ran.folder.tracking_uri, "tiny")
    run = index.runs[ran.trial.path.name]
    index.client.create_run(index.experiment_id, tags=run.tags)


def send_a_value_from_nowhere(ran: Ran) -> None:
    index = RunIndex.open(ran.folder.tracking_uri, "tiny")
    index.client.log_metric(index.runs[ran.trial.path.name].run_id, "train/loss", 1.0, step=7)


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (finish_again, "result: trials/TRIAL/outcome.json: was there once with another content: it was made again"),
        (forget_the_outcome, "result: trials/TRIAL/outcome.json: was there once, and is not any more"),
        (write_on_after_the_end, "attempt: TRIAL: written after the trial was over: 0001.arrows"),
        (repeat_a_step_with_another_loss, "journal: TRIAL 0001.arrows: 7 None train/loss: ['0x1."),
        (flip_a_bit_of_the_weights, "checkpoint: TRIAL step-000000020.safetensors: is not whole"),
        (train_one_more, f"trial: {'f' * 64} id: from nowhere"),
        (claim_another_loss, "outcome: TRIAL validation/loss: 0x1."),
        (send_a_run_twice, "trial in MLflow: tiny TRIAL: there 2 times"),
        (
            send_a_value_from_nowhere,
            "value in MLflow: tiny TRIAL train/loss 7: BEFORE has beside it 0x1.0000000000000p+0",
        ),
    ],
)
def test_what_was_tampered_with_is_found(ran: Ran, tamper: Callable[[Ran], None], said: str) -> None:
    """A checker that could not fail would certify anything."""
    loss = next(row["value"] for row in read_journal(ran.trial.journal).to_pylist() if row["step"] == 7)
    said = said.replace("TRIAL", ran.trial.path.name).replace("BEFORE", float.hex(loss))
    tamper(ran)
    found = ran.violations()
    assert any(each.startswith(said) for each in found), found


def test_a_tracking_store_that_is_lost_is_found(ran: Ran) -> None:
    """What MLflow lacks is said, and where it was looked for."""
    found = read_facts(ran.folder, "sqlite:///nowhere.db")
    said = [str(each) for each in compare_facts(ran.facts, found, ran.folder, ran.seen)]
    assert "run in MLflow: tiny: from nowhere: NotFound: no tracking store sqlite:///nowhere.db" in said


def test_the_plan_follows_from_the_seed() -> None:
    """The same seed hits the same victims in the same way, and over time all of them, in writes, too."""
    plans = [
        list(itertools.islice(plan_kills(seed, 2.0, server=True, disk=True), 300)) for seed in ("a 0", "a 0", "a 1")
    ]
    assert plans[0] == plans[1] != plans[2]
    assert {kill.victim for kill in plans[0]} == set(Victim) - {Victim.DELETED}
    assert {kill.moment for kill in plans[0]} == set(Moment)
    numbers = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, None}
    assert {kill.signal for kill in plans[0]} == numbers
    files = {kill.victim for kill in itertools.islice(plan_kills("a 0", 2.0), 300)}
    assert files == set(Victim) - {Victim.SERVER, Victim.FULL}


def test_only_what_was_started_here_is_killed(tmp_path: Path) -> None:
    """A process that outlives its parent is found; a stranger is not touched."""
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    processes = Processes()
    driver = processes.start(["sh", "-c", "sleep 60 & sleep 0.1"], tmp_path / "log", os.environ)
    driver.wait(timeout=30)
    [orphan] = processes.living()
    assert not processes.send(stranger.pid, signal.SIGKILL)
    assert processes.left_after(0.1) == ["sleep 60"]
    processes.end_all()
    assert processes.living() == []
    assert not orphan.is_running() or orphan.status() == "zombie"
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_what_cannot_be_disturbed_is_refused(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, before anything runs."""
    monkeypatch.setattr("gatelab.cli.chaos.UNSHARE", ("false",))
    study, folder = str(once / "tiny.yaml"), ["-o", str(tmp_path)]
    for options, said in (
        (
            ["--command", "plan"],
            "error --command 'plan': expected one of run, lr-tolerance, scaling, evaluate, with options",
        ),
        (["--disk", "64M"], "error --disk 64M: this system does not let a user mount a file system in a namespace"),
    ):
        done = CliRunner().invoke(app, ["chaos", study, *folder, *options])
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(said)


@pytest.mark.parametrize(
    ("code", "status", "undisturbed", "problem"),
    [
        (1, Status.FAILED, {}, ""),
        (1, Status.FAILED, {"run": 1}, ""),
        (1, Status.FAILED, {"run": 0}, "run: ended with 1 though nothing was done to it: "),  # kills made them fail
        (1, Status.FINISHED, {}, "run: ended with 1 though nothing was done to it: "),  # a traceback
        (2, Status.FAILED, {}, "run: ended with 2 though nothing was done to it: "),
    ],
)
def test_a_study_has_come_to_its_end_when_only_those_trials_fail_that_always_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    status: Status,
    undisturbed: dict[str, int],
    problem: str,
) -> None:
    """Else no study with failures could be certified, or failures that kills have caused would pass for its own."""
    monkeypatch.setattr(storm, "UNEXPLAINED", 1)
    folder = RunsFolder(tmp_path / "runs")
    folder.trial("a").path.mkdir(parents=True)
    write_json(folder.trial("a").outcome, Outcome(status=status, trial="a").to_json())
    commands, log = {"run": ["sh", "-c", f"echo; exit {code}"]}, tmp_path / "log"
    disturbed = storm.Storm(commands, folder, iter(()), 0, undisturbed, None, log, os.environ, print)
    disturbed.run()
    found = disturbed.account
    assert (found.problems, found.ends) == (([problem + "it has printed nothing"], {}) if problem else ([], {"run": 1}))


def test_the_studies_of_the_benchmark_are_those_of_its_table() -> None:
    """Twenty studies at least are certified, each once, and each can be read."""
    folder = Path(__file__).parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("benchmark_of_kills", folder / "chaos.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark  # data classes look for the module they are of
    spec.loader.exec_module(benchmark)
    studies = [case.study for case in benchmark.LONG]
    assert sorted(studies) == sorted(path.stem for path in (folder / "chaos").glob("*.yaml"))
    assert len(studies) >= 20
    assert {case.study for case in benchmark.SHORT} < set(studies)
    assert {text for case in benchmark.LONG for text in case.commands if not is_command(text)} == set()
    for name in studies:
        assert load_study(folder / "chaos" / f"{name}.yaml").study.name == name


def test_a_killed_study_is_certified(once: Path, tmp_path: Path) -> None:
    """The whole way, with real kills: the driver and Ray's processes end, are started again, and nothing is lost."""
    more = yaml.safe_load((once / "tiny.yaml").read_text()) | {"seeds": 4}  # a fast machine has it for a while, too
    (once / "more.yaml").write_text(yaml.safe_dump(more))
    command = [sys.executable, "-m", "gatelab", "chaos", "more.yaml", "--kills", "3", "--seed", "0", "--gap", "0.5"]
    done = subprocess.run([*command, "-o", str(tmp_path), "--json"], cwd=once, capture_output=True, text=True)
    certificate = json.loads(done.stdout)
    written = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate == {key: value for key, value in written.items() if key != "checksum"}
    assert (certificate["violations"], certificate["holds"], done.returncode) == ([], True, 0)
    assert sum(certificate["kills"].values()) >= 3
    assert {one["hashes"]["trials"] for one in certificate["rounds"]} == {certificate["undisturbed"]["trials"]}
    assert "Verdict: **holds**" in (tmp_path / "certificate.md").read_text()
