"""Failures by their kind: how often each is tried again, what a study does then, and who is told."""

import base64
import errno
import http.server
import json
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gatelab.ablations.matrix import Matrix
from gatelab.orchestrator import attempts, study_run, worker
from gatelab.orchestrator.failures import MOST_SECONDS, FailureKind, Retries, cause_of, kind_of, retries
from gatelab.orchestrator.inline import InlineExecutor
from gatelab.orchestrator.notify import Event, notifier
from gatelab.orchestrator.reasons import why_each_runs
from gatelab.orchestrator.study_run import RunOptions, run_matrix
from gatelab.results.analyses.failures import read_failures
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.lease import acquire
from gatelab.results.store.records import write_json
from gatelab.results.store.trials import whole_description
from gatelab.results.views import failures as view
from gatelab.training.config import TrialConfig
from gatelab.training.corpus import DataError
from gatelab.training.loop import train
from tests.simulation.history import NoSync

Build = Callable[..., Matrix]
Errors = dict[tuple[str, int], list[Exception]]


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MLflow, and without the seconds between two attempts."""
    monkeypatch.setattr(study_run, "SyncThread", NoSync)
    monkeypatch.setattr(study_run, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(attempts, "retries", lambda kind, chosen: replace(retries(kind, chosen), seconds=0.0))


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> Errors:
    """By gate position and seed the errors that the next attempts raise; after them, training is as always."""
    waiting: Errors = defaultdict(list)

    def train_or_raise(config: TrialConfig, *arguments: Any, **options: Any) -> Any:
        if left := waiting[str(config.model.gate.position), config.seed]:
            raise left.pop(0)
        return train(config, *arguments, **options)

    monkeypatch.setattr(worker, "train", train_or_raise)
    return waiting


def states(matrix: Matrix, folder: RunsFolder, **options: Any) -> list[str]:
    progress = run_matrix(matrix, folder, InlineExecutor(), RunOptions(**options))
    return [entry.state.value for entry in progress.trials.values()]


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), FailureKind.MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), FailureKind.MEMORY),
        (MemoryError(), FailureKind.MEMORY),
        (full(), FailureKind.DISK),
        (OSError(errno.EROFS, "Read-only file system"), FailureKind.DISK),
        (FileNotFoundError(errno.ENOENT, "No such file"), FailureKind.ERROR),
        (DataError("shard is damaged"), FailureKind.DATA),
        (TypeError("unsupported operand"), FailureKind.ERROR),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FailureKind.ERROR),
    ],
)
def test_errors_are_told_apart(error: Exception, kind: FailureKind) -> None:
    """What a user does next depends on the kind: less concurrency, more disk, a look at the code."""
    assert kind_of(error) is kind


def test_the_same_error_has_the_same_cause() -> None:
    """An error is the one before it if it was raised at the same place, whatever numbers its text has."""

    def caught(value: int) -> str:
        try:
            raise ValueError(f"wrong {value}")
        except ValueError as error:
            return cause_of(error)

    assert caught(1) == caught(2)
    assert caught(1).startswith("ValueError at test_failures.py:")


def test_waits_grow_and_are_spread() -> None:
    """Trials that failed together do not come back together, and none waits for ever."""
    policy = Retries(9, 2.0)
    for failures, longest in ((1, 2.0), (2, 4.0), (3, 8.0), (30, MOST_SECONDS)):
        waits = [policy.delay(failures, random.Random(seed)) for seed in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert max(waits) - min(waits) > longest / 4


def test_kinds_have_their_own_retries() -> None:
    """A lost machine says nothing about a trial; bad data say that trying again is no use."""
    times = {kind: retries(kind, 1).times for kind in FailureKind}
    assert times[FailureKind.DATA] == 0
    assert times[FailureKind.ERROR] == times[FailureKind.MEMORY] == times[FailureKind.DISK] == 1
    assert times[FailureKind.PREEMPTED] > times[FailureKind.MACHINE] > 1
    assert all(retries(kind, 0).times == 0 for kind in FailureKind)  # who wants none gets none


def test_a_full_disk_is_tried_again_and_named(tiny_study: Build, errors: Errors, tmp_path: Path) -> None:
    """Space may be there again at the second attempt; if not, the trial has failed for want of disk, the others run."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study()
    errors["none", 0] = [full()]
    assert states(matrix, folder) == ["finished", "finished"]
    folder = RunsFolder(tmp_path / "again")
    errors["none", 0] = [full(), full()]
    assert states(matrix, folder) == ["failed", "finished"]
    [group] = read_failures(folder, "tiny").groups
    assert (group.kind, group.trials) == ("disk", ("position=none, seed=0",))
    assert "No space left on device" in group.reason


def test_bad_data_are_not_tried_again(tiny_study: Build, errors: Errors, tmp_path: Path) -> None:
    """The same data give the same error."""
    errors["none", 0] = [DataError("a shard is damaged")]
    errors["sdpa", 0] = [DataError("a shard is damaged")]
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study()
    assert states(matrix, folder, retries=5) == ["failed", "failed"]


def test_the_same_error_in_two_trials_stops_the_study(tiny_study: Build, errors: Errors, tmp_path: Path) -> None:
    """A mistake in the code is told once, not two hundred times; what has not run waits."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study(seeds=3)
    errors["none", 0] = [TypeError("no gate 1"), TypeError("no gate 2")]
    errors["sdpa", 0] = [TypeError("no gate 3"), TypeError("no gate 4")]
    progress = run_matrix(matrix, folder, InlineExecutor(), RunOptions())
    ended = [entry.state.value for entry in progress.trials.values()]
    assert (ended.count("failed"), ended.count("waiting")) == (2, 4)
    assert progress.halted.startswith("the same error has ended position=none, seed=0 and position=sdpa, seed=0: ")
    assert "TypeError at " in progress.halted
    assert states(matrix, folder) == ["finished"] * 6  # mended, the same command goes on


def test_a_study_can_be_told_to_go_on(tiny_study: Build, errors: Errors, tmp_path: Path) -> None:
    """Who knows that some variants cannot work gets the others."""
    errors["none", 0] = [TypeError("no gate"), TypeError("no gate")]
    errors["sdpa", 0] = [TypeError("no gate"), TypeError("no gate")]
    matrix = tiny_study(seeds=2)
    assert states(matrix, RunsFolder(tmp_path), keep_going=True).count("failed") == 2


def test_different_errors_do_not_stop_a_study(tiny_study: Build, errors: Errors, tmp_path: Path) -> None:
    """Two trials that fail for two reasons are two failures."""
    errors["none", 0] = [MemoryError(), MemoryError()]
    errors["sdpa", 0] = [TypeError("no gate"), TypeError("no gate")]
    assert states(tiny_study(seeds=2), RunsFolder(tmp_path)).count("failed") == 2


def test_a_trial_that_another_process_holds_is_waited_for(
    tiny_study: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither failed nor trained twice: who is at work on it is told, and it runs when it is free."""
    monkeypatch.setattr(study_run, "LOOK_SECONDS", 0.05)
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study()
    lease = acquire(folder.trial(matrix.trials[0].id).path)
    told: list[str] = []

    def show(progress: Any) -> None:
        entry = progress.trials[matrix.trials[0].id]
        if entry.held and not told:
            told.append(entry.held)
            lease.release()

    progress = run_matrix(matrix, folder, InlineExecutor(), RunOptions(), show)
    assert [entry.state.value for entry in progress.trials.values()] == ["finished", "finished"]
    assert told == [str(lease.holder)]


def test_a_failure_that_cannot_be_written_down_is_told(
    tiny_study: Build, errors: Errors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full disk that ended a trial may keep its outcome from being written: the study goes on all the same."""
    errors["none", 0] = [full(), full()]
    write = study_run.write_json

    def write_or_raise(path: Path, value: Any) -> None:
        if isinstance(value, dict) and value.get("status") == "failed":
            raise full()
        write(path, value)

    monkeypatch.setattr(study_run, "write_json", write_or_raise)
    progress = run_matrix(tiny_study(), RunsFolder(tmp_path), InlineExecutor(), RunOptions())
    assert [entry.state.value for entry in progress.trials.values()] == ["failed", "finished"]
    assert progress.disk_problem.endswith("outcome.json: No space left on device")


def test_why_each_trial_runs(tiny_study: Build, errors: Errors, tmp_path: Path) -> None:
    """A plan says of each trial whether it never ran, failed, was interrupted, is held, has changed or is over."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study(seeds=2)
    assert {reason.text for reason in why_each_runs(matrix, folder)} == {"never ran"}
    errors["none", 0] = [MemoryError("2 GiB"), MemoryError("2 GiB")]
    run_matrix(matrix, folder, InlineExecutor(), RunOptions())
    trials = {(trial.variant, trial.seed): folder.trial(trial.id) for trial in matrix.trials}
    for variant in ("position=none", "position=sdpa"):
        files = trials[variant, 1]
        description = whole_description(files)
        assert description is not None
        write_json(files.description, description.to_json())  # as it is until a trial is over
        files.outcome.unlink()
    with acquire(trials["position=sdpa", 1].path) as lease:
        told = {(each.trial.variant, each.trial.seed): each for each in why_each_runs(matrix, folder)}
    assert told["position=sdpa", 0].text == "finished already, at step 20"
    assert told["position=none", 0].text == "failed (out of memory): MemoryError: 2 GiB; goes on from its start"
    assert told["position=none", 1].text == "was interrupted; goes on from step 20"
    assert told["position=sdpa", 1].text == f"is being trained by {lease.holder}"
    assert [each.runs for each in told.values()] == [True, False, True, False]
    other = tiny_study({"training.optimizer.learning_rate": 0.005}, seeds=2)
    changed = {each.text for each in why_each_runs(other, folder)}
    assert changed == {"changed since the study was last run: training.optimizer.learning_rate 0.01 -> 0.005"}


def test_failures_are_shown_by_what_ended_them(tiny_study: Build, errors: Errors, tmp_path: Path) -> None:
    """Two hundred failures with one cause are one row: how many, which, why, and where the log is."""
    folder, matrix = RunsFolder(tmp_path / "runs"), tiny_study(seeds=2)
    errors["none", 0] = [MemoryError(), MemoryError()]
    errors["sdpa", 0] = [TypeError("no gate"), TypeError("no gate")]
    errors["none", 1] = [MemoryError(), MemoryError()]
    run_matrix(matrix, folder, InlineExecutor(), RunOptions())
    [table] = view.tables(read_failures(folder, "tiny"))
    assert table.title == "3 failed trials"
    assert [row[:2] for row in table.rows] == [("out of memory", "2"), ("error", "1")]
    assert table.rows[0][3].startswith("MemoryError at ")
    assert all(Path(note.rpartition("log: ")[2]).exists() for note in table.notes)


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An address that takes notices, and what it has got."""
    got: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notice = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append({**notice, "authorization": self.headers.get("Authorization", "")})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()


def finish_notices() -> None:
    for thread in threading.enumerate():
        if thread.name == "notice":
            thread.join()


def test_an_address_and_a_command_are_told(
    tiny_study: Build, errors: Errors, tmp_path: Path, listener: tuple[str, list[dict[str, str]]]
) -> None:
    """Who sleeps while a study runs hears of a failure, of a diverged baseline and of the end."""
    url, got = listener
    command = f'echo "$GATELAB_EVENT $GATELAB_STUDY" >> {tmp_path}/told; cat >> {tmp_path}/json'
    errors["none", 0] = [MemoryError(), MemoryError()]
    run_matrix(tiny_study(), RunsFolder(tmp_path / "a"), InlineExecutor(), RunOptions(notify=(url, command)))
    wild = {"training.optimizer.clip_norm": None, "training.optimizer.learning_rate": 1e30, "training.tokens": 3200}
    run_matrix(tiny_study(wild), RunsFolder(tmp_path / "b"), InlineExecutor(), RunOptions(notify=(url,)))
    finish_notices()
    assert sorted(notice["event"] for notice in got) == ["baseline diverged", "end", "end", "failure"]
    assert all(notice["study"] == "tiny" for notice in got)
    [failure] = [notice for notice in got if notice["event"] == "failure"]
    assert failure["text"].startswith("position=none, seed=0: ") and "MemoryError" in failure["text"]
    assert sorted((tmp_path / "told").read_text().splitlines()) == ["end tiny", "failure tiny"]
    assert '"event": "end"' in (tmp_path / "json").read_text()


def test_an_address_may_have_a_name_and_a_password(listener: tuple[str, list[dict[str, str]]]) -> None:
    """They go where HTTP wants them, percent escapes undone; Python's own client takes them for a part of the host."""
    url, got = listener
    notifier([url.replace("http://", "http://me:p%40ss@")])(Event("end", "tiny", "all done"))
    finish_notices()
    assert [notice["authorization"] for notice in got] == ["Basic " + base64.b64encode(b"me:p@ss").decode()]


def test_a_warning_keeps_the_secrets_of_a_target(caplog: pytest.LogCaptureFixture) -> None:
    """A password, the path of a hook and the arguments of a command may be known to whoever gave them only."""
    targets = ["http://me:hunter2@127.0.0.1:9/", "http://127.0.0.1:9/hunter2", "https://me:hunter2@[/", "false hunter2"]
    notifier(targets)(Event("end", "tiny", "all done"))
    finish_notices()
    assert len([record for record in caplog.records if record.message.startswith("--notify")]) == len(targets)
    assert "hunter2" not in caplog.text


def test_who_cannot_be_told_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong address or command is no reason for a study to fail."""
    notifier(["http://127.0.0.1:9/", "exit 3", "ht!tp://"])(Event("end", "tiny", "all done"))
    finish_notices()
    assert len([record for record in caplog.records if record.message.startswith("--notify")]) == 3
