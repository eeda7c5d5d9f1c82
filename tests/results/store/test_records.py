"""Records on disk are read as types: older ones completed, newer ones refused, damaged ones named."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gatelab.cli.main import app
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import (
    DamagedRecord,
    NewerRecord,
    Outcome,
    StudyRecord,
    TrialDescription,
    read_json,
    write_json,
)
from gatelab.results.store.trials import is_over, read_outcome
from gatelab.status import Status

OLDEST: dict[str, Any] = {
    "name": "old",
    "hash": "h",
    "axes": [],
    "variants": {
        "base": {
            "levels": {},
            "baseline": "base",
            "steps": 2,
            "parameters": 3,
            "added_parameters": 0,
            "flops_per_token": 4,
        }
    },
    "trials": [{"id": "t", "variant": "base", "seed": 0}],
}
"""A study as the first versions wrote it, without tokens, claims, rules of a search or a version."""


def test_an_older_record_is_completed(tmp_path: Path) -> None:
    """What a study did not say before it could be said has the value that stands for that."""
    write_json(tmp_path / "study.json", OLDEST)
    record = StudyRecord.read(tmp_path / "study.json")
    assert record is not None
    assert (record.ladder, record.claims, record.tolerance, record.match) == ([], [], None, "none")
    assert (record.variants["base"].tokens, record.trials[0].parent) == (None, None)


def test_a_record_is_written_as_it_was_read() -> None:
    """Keys of which this version knows nothing survive, and nothing is added: its hash names a record."""
    content = {**OLDEST, "mood": "good", "trials": [{**OLDEST["trials"][0], "colour": "red"}]}
    assert StudyRecord.from_json(content, "here").to_json() == content


@pytest.mark.parametrize("kind", [StudyRecord, Outcome, TrialDescription], ids=lambda kind: kind.__name__)
def test_a_newer_record_is_refused_with_both_versions(kind: Any, tmp_path: Path) -> None:
    """A file from a later release is not misread in silence."""
    path = tmp_path / "record.json"
    write_json(path, {"version": 7})
    with pytest.raises(NewerRecord) as caught:
        kind.read(path)
    assert str(caught.value) == (
        f"{path}: has version 7 and this gatelab reads up to version {kind.VERSION}: upgrade gatelab"
    )


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    """Which file, which key: a person can look."""
    path = tmp_path / "outcome.json"
    path.write_text(json.dumps({"status": "splendid"}))
    with pytest.raises(DamagedRecord, match=r"outcome\.json: status"):
        Outcome.whole(path)
    assert Outcome.read(path) is None


def test_a_record_that_was_changed_is_found_out(tmp_path: Path) -> None:
    """One digit in a file is one digit in a table: only what was written is read, and records without a checksum are,
    for older versions wrote none."""
    path = tmp_path / "t" / "outcome.json"
    content = {"status": "finished", "step": 12, "metrics": {"validation/loss": 2.75, "other": float("inf")}}
    write_json(path, content)
    assert read_json(path) == content
    written = path.read_bytes()
    for place in range(len(written)):
        flipped = bytearray(written)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        found = read_json(path)
        # A letter of the key hides the checksum, not the content.
        assert found is None or {key: found.get(key) for key in content} == content
    path.write_text(json.dumps(content))
    assert read_json(path) == content


@pytest.mark.parametrize(
    ("status", "over"), [("finished", True), ("diverged", True), ("failed", False), (None, False)], ids=str
)
def test_whether_a_trial_is_over_is_one_question(status: str | None, over: bool, tmp_path: Path) -> None:
    """A trial that failed is tried again; one without an outcome has not ended."""
    files = RunsFolder(tmp_path).trial("t")
    if status is not None:
        write_json(files.outcome, {"status": status, "step": 1})
    assert is_over(files) is over
    assert read_outcome(files).status == (status or Status.WAITING)


@pytest.mark.parametrize("file", ["study.json", "outcome.json", "trial.json"])
@pytest.mark.parametrize(
    "command", ["compare", "status", "claims", "effects", "stability", "curves", "report", "export"]
)
def test_every_command_refuses_a_newer_record(command: str, file: str, laboratory: Any) -> None:
    """A folder that a later release wrote is a message with both versions and exit code 2, not a traceback."""
    lab = laboratory(seeds=1)
    for variant in (0, 1):
        lab.finish(variant, 0)
    files = lab.trial(0, 0)
    path = {"study.json": lab.folder.study(lab.name).record, "outcome.json": files.outcome}.get(file, files.description)
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "version": 7})
    result = CliRunner().invoke(app, [command, lab.name, "--runs", str(lab.folder.root)])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert f"{path}: has version 7 and this gatelab reads up to version 1: upgrade gatelab" in result.stderr


def test_the_status_of_many_trials_begins_with_what_is_not_finished(
    laboratory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among thousands of finished trials the one that failed is on the screen; JSON has all."""
    lab = laboratory(seeds=3)
    for variant in (0, 1):
        for seed in range(3):
            lab.finish(variant, seed)
    lab.end(1, 2, "failed", 3, "RuntimeError: too hot")
    monkeypatch.setattr("gatelab.cli.results.MOST_LISTED", 2)
    arguments = ["status", lab.name, "--runs", str(lab.folder.root)]
    shown = CliRunner().invoke(app, arguments).output
    assert "5 finished, 1 failed" in shown
    assert sum(trial.id[:12] in shown for trial in lab.record.trials) == 2
    assert "too hot" in shown
    assert "4 more trials are not listed, finished ones first: --json lists all" in shown
    assert len(json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)["trials"]) == 6
