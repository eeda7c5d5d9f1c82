"""Asking trained models on a real Ray: each question of each trial once, and what fails stops nothing else."""

import bisect
import heapq
import inspect
import json
import queue
import shlex
import shutil
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gatelab.ablations.loading import make_study
from gatelab.orchestrator.evaluation import (
    EvalJob,
    EvalProgress,
    EvalRequest,
    EvalTask,
    EvalWorker,
    assign,
    eval_jobs,
    load_model,
    run_evals,
    unanswered,
)
from gatelab.orchestrator.planning import plan_study
from gatelab.orchestrator.pool import WorkerSetup
from gatelab.orchestrator.ray_executor import RayExecutor
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.orchestrator.study_run import run_trial
from gatelab.results.store.layout import NotFound, RunsFolder
from gatelab.results.store.records import read_json, write_json
from gatelab.results.store.trials import provenance, read_description

REQUEST = EvalRequest(lengths=(16, 32), tokens=256)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a tiny study of two variants, finished: trained once for all tests."""
    root = tmp_path_factory.mktemp("finished")
    (root / "text").mkdir()
    for module in (bisect, heapq, queue, shlex, textwrap):
        (root / "text" / f"{module.__name__}.py").write_text(inspect.getsource(module), encoding="utf-8")
    raw = {
        "name": "tiny",
        "base": {
            "model": {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_size": 16},
            "training": {"tokens": 1280, "sequence_length": 16, "batch_size": 4},
            "evaluation": {"tokens": 256, "points": 2},
            "data": {"source": str(root / "text")},
        },
        "axes": {"model.gate.position": ["none", "sdpa"]},
    }
    matrix, folder = plan_study(make_study(raw, "test")), RunsFolder(root / "runs")
    write_record(folder, study_record(matrix))
    for trial in matrix.trials:
        run_trial(trial, folder, "cpu", 60.0, lambda step, values: None)
    return folder.root


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> RunsFolder:
    """A copy of it."""
    return RunsFolder(shutil.copytree(finished, tmp_path / "runs"))


def jobs(folder: RunsFolder, request: EvalRequest = REQUEST) -> list[EvalJob]:
    assigned, refused = assign(folder, eval_jobs(folder, "tiny"), request)
    assert refused == {}
    return assigned


def answers(folder: RunsFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.root.glob("trials/*/evaluations/*")}


@pytest.mark.usefixtures("own_ray")
def test_a_study_is_asked_once(folder: RunsFolder) -> None:
    """Answers lie with the trials, are those that the models give here, and are never asked for again."""
    shown: list[tuple[int, int, int]] = []

    def show(report: EvalProgress) -> None:
        shown.append((report.asked, report.known, report.answered))

    assert run_evals(folder, jobs(folder), RayExecutor(), show) == EvalProgress(asked=4, known=0, answered=4)
    assert shown == [(4, 0, count) for count in range(5)]
    kept = answers(folder)
    assert len(kept) == 4
    for job in jobs(folder):
        outcome = read_json(folder.trial(job.trial_id).outcome)
        assert outcome is not None
        model = load_model(folder, job)
        entries = [json.loads(content) for path, content in kept.items() if job.trial_id in path.parts]
        by_length = {entry["question"]["length"]: entry for entry in entries}
        for question in job.questions:
            entry = by_length[question.length]
            assert entry["question"] == asdict(question)
            assert entry["metrics"] == pytest.approx(model.evaluate(question), rel=1e-6)
            assert entry["step"] == outcome["step"] == 20
            assert entry["evaluated"] > outcome["ended"]
            origin = provenance(read_description(folder.trial(job.trial_id)))
            assert all(entry["provenance"][name] == origin[name] for name in ("data", "device"))
            assert entry["provenance"]["code"]
        loss = by_length[16]["metrics"]["length/000016/plain/loss"]
        assert loss == pytest.approx(outcome["metrics"]["validation/loss"], rel=1e-6)

    assert run_evals(folder, jobs(folder), RayExecutor()) == EvalProgress(asked=4, known=4)
    assert answers(folder) == kept
    more = replace(REQUEST, lengths=(16, 64), ropes=("plain", "yarn"))
    left = [unanswered(folder.trial(job.trial_id), job.questions) for job in jobs(folder, more)]
    stems = ["length/000016/yarn", "length/000064/plain", "length/000064/yarn"]
    assert [[question.stem for question in questions] for questions in left] == [stems, stems]
    left = [unanswered(folder.trial(job.trial_id), job.questions) for job in jobs(folder, replace(REQUEST, tokens=512))]
    assert [len(questions) for questions in left] == [2, 2]  # with more tokens it is another question


DEADLY = """\
task: deadly
dataset_path: json
dataset_kwargs: {data_files: {test: nothing.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: !function deadly.text
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.mark.usefixtures("own_ray")
def test_what_fails_stops_nothing_else(folder: RunsFolder, tmp_path: Path) -> None:
    """A task that kills its process, a lost checkpoint: each costs its own answers, and the reason is told."""
    pytest.importorskip("lm_eval")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "deadly.yaml").write_text(DEADLY)
    (tmp_path / "tasks" / "deadly.py").write_text("import os\n\nos._exit(3)\n")
    deadly = EvalRequest(lengths=(16,), tokens=256, tasks=("deadly",), include=tmp_path / "tasks")
    [first] = assign(folder, eval_jobs(folder, "tiny")[:1], deadly)[0]
    second, third = jobs(folder)[1], replace(first, questions=jobs(folder)[0].questions[1:])
    lost = folder.trial(second.trial_id).checkpoints
    lost.rename(lost.with_name("elsewhere"))
    assert EvalWorker(WorkerSetup(threads=1)).run(EvalTask(folder, third, third.questions[0])) is None
    kept = answers(folder)
    report = run_evals(folder, [first, second, third], RayExecutor(concurrency=1))
    assert (report.asked, report.known, report.answered, report.failed) == (5, 1, 1, 3)
    reasons = {trial: (reason, questions) for (trial, reason), questions in report.failures.items()}
    assert reasons.keys() == {"position=none, seed=0", "position=sdpa, seed=0"}
    assert reasons["position=none, seed=0"][1] == ["tasks"]
    assert "died" in reasons["position=none, seed=0"][0]
    assert reasons["position=sdpa, seed=0"] == (
        f"FileNotFoundError: there is no whole checkpoint in {lost}",
        ["length/000016/plain", "length/000032/plain"],
    )
    assert {path.parent.parent.name for path in answers(folder)} == {first.trial_id}
    assert kept.items() <= answers(folder).items()
    assert len(unanswered(folder.trial(second.trial_id), second.questions)) == 2  # to be asked again when mended


def test_only_finished_trials_are_asked(folder: RunsFolder) -> None:
    """What diverged, failed or never ended has no final model; a caller may leave others out."""
    found = eval_jobs(folder, "tiny")
    assert [job.name for job in found] == ["position=none, seed=0", "position=sdpa, seed=0"]
    assert [job.questions for job in found] == [(), ()]
    assert [job.config.model.gate.position for job in found] == ["none", "sdpa"]
    only = eval_jobs(folder, "tiny", lambda trial: trial.variant == "position=sdpa")
    assert only == found[1:]
    files = folder.trial(found[0].trial_id)
    outcome = read_json(files.outcome)
    assert outcome is not None
    for status in ("diverged", "failed"):
        write_json(files.outcome, {**outcome, "status": status})
        assert eval_jobs(folder, "tiny") == found[1:]
    files.outcome.unlink()
    assert eval_jobs(folder, "tiny") == found[1:]
    shutil.rmtree(folder.trial(found[1].trial_id).path)
    assert eval_jobs(folder, "tiny") == []
    assert run_evals(folder, [], RayExecutor()) == EvalProgress(asked=0)
    with pytest.raises(NotFound, match="no study 'other'"):
        eval_jobs(folder, "other")


def test_what_is_asked_by_default_and_what_cannot_be(folder: RunsFolder) -> None:
    """One, two and four times the trained length; what text or task do not allow is named and left out."""
    assigned, refused = assign(
        folder, eval_jobs(folder, "tiny"), EvalRequest(ropes=("plain", "ntk"), retrieval=("needle",))
    )
    ropes, lengths = ("plain", "ntk"), (16, 32, 64)
    for job in assigned:
        assert [(question.stem, question.amount) for question in job.questions] == [
            *((f"length/{length:06d}/{rope}", 64_000) for length in lengths for rope in ropes),
            *((f"retrieval/000064/{rope}/needle", 64) for rope in ropes),
        ]
    assert [question.stem for question in refused] == [
        f"retrieval/{length:06d}/{rope}/needle" for length in (16, 32) for rope in ropes
    ]
    assert all("too short for task 'needle'" in reason for reason in refused.values())

    wide = EvalRequest(lengths=(128, 10**6), retrieval=("needle",), examples=4, tasks=("a", "b"), limit=7)
    assigned, refused = assign(folder, eval_jobs(folder, "tiny"), wide)
    [(question, reason)] = refused.items()  # retrieval repeats its haystack
    assert question.stem == "length/1000000/plain"
    assert "too few for a sequence of 1000000" in reason
    asked = [(q.kind, q.length, q.amount, q.task) for q in assigned[0].questions]
    assert asked == [
        ("length", 128, 64_000, ""),
        ("retrieval", 128, 4, "needle"),
        ("retrieval", 10**6, 4, "needle"),
        ("tasks", 16, 7, "a"),
        ("tasks", 16, 7, "b"),
    ]


def test_the_same_question_twice_is_one_question(folder: RunsFolder) -> None:
    """Lengths or ropes that are named twice cost nothing and are counted once."""
    twice = replace(REQUEST, lengths=(16, 32, 16), ropes=("plain", "plain"))
    assert [job.questions for job in jobs(folder, twice)] == [job.questions for job in jobs(folder)]
