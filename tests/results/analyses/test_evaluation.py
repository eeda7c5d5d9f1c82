"""What trained models were asked afterwards: the newest answer counts, everywhere the same, and is shown as it is."""

import csv
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses import evaluation
from gatelab.results.analyses.comparison import compare
from gatelab.results.report.artifacts import write
from gatelab.results.report.context import read_results
from gatelab.results.store.runs import evaluations_frame, metrics_of, runs_from_journals
from gatelab.results.store.trials import study_evaluations
from gatelab.results.tracking.runs import runs_from_mlflow
from gatelab.results.tracking.sync import Mirror
from gatelab.results.views import evaluation as evaluation_views
from gatelab.training.config import TrialConfig
from gatelab.training.metric_specs import trial_metric_specs

SPECS = trial_metric_specs(TrialConfig())


def evaluation_rows(lab: Any) -> Any:
    """All answers of a study's trials in long form."""
    return evaluations_frame(lab.record, study_evaluations(lab.folder, lab.record))


def notes(lab: Any) -> list[str]:
    """What is said of a study's answers."""
    return evaluation.evaluation_notes(study_evaluations(lab.folder, lab.record))


ROPES = ("plain", "yarn")
LENGTHS = (16, 32)
ANSWERS = (
    *(f"length/{length:06d}/{rope}/{kind}" for length in LENGTHS for rope in ROPES for kind in ("loss", "loss/code")),
    *(
        f"retrieval/{length:06d}/{rope}/needle/{kind}"
        for length in LENGTHS
        for rope in ROPES
        for kind in ("accuracy", "gain")
    ),
    "tasks/trivia/acc",
    "tasks/trivia/exact_match:strict",
)
"""What tables compare."""
DETAILS = (
    *(f"length/{length:06d}/{rope}/bits_per_byte" for length in LENGTHS for rope in ROPES),
    *(f"retrieval/000016/plain/needle/{kind}" for kind in ("loss", "n")),
    *("tasks/trivia/acc_stderr", "tasks/trivia/exact_match_stderr:strict", "tasks/trivia/samples"),
)
OCTAVES = {"00001-00001": 1.0, "00002-00003": math.sqrt(6), "00004-00016": 8.0}
POSITIONS = tuple(
    f"length/{length:06d}/{rope}/position/{octave}" for length in LENGTHS for rope in ROPES for octave in OCTAVES
)
KIND = {"length": "loss", "retrieval": "retrieval", "tasks": "tasks"}


def found(name: str, variant: int, seed: int) -> float:
    """A value between 1 and 2 that no other place has."""
    return 1 + zlib.crc32(repr((name, variant, seed)).encode()) / 2**32


def ask(lab: Any, variant: int, seed: int) -> None:
    """Answers to all questions, a file for each kind."""
    for kind in KIND:
        names = [name for name in (*ANSWERS, *DETAILS, *POSITIONS) if name.startswith(kind)]
        lab.answer(variant, seed, kind, 1.7e9, {name: found(name, variant, seed) for name in names})


def answered(build: Any, seeds: int = 3) -> Any:
    """A study of three variants, finished and asked."""
    lab = build(("none", "value", "sdpa"), seeds=seeds)
    for variant in range(3):
        for seed in range(seeds):
            lab.finish(variant, seed)
            ask(lab, variant, seed)
    return lab


def lines(figure: Figure | None) -> dict[str, dict[str, dict[float, float]]]:
    """Of each panel by its title: its lines by their names, abscissa -> value."""
    assert figure is not None
    return {
        axes.get_title(): {
            str(line.get_label()): dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
            for line in axes.get_lines()
        }
        for axes in figure.axes
        if axes.get_visible()
    }


def expected(lab: Any, names: dict[float, str], seeds: int = 3) -> dict[str, Any]:
    """The lines of a panel, of the name at each abscissa."""
    return {
        label: pytest.approx(
            {at: np.mean([found(name, variant, seed) for seed in range(seeds)]) for at, name in names.items()}
        )
        for variant, label in enumerate(lab.variants)
    }


def test_losses_are_drawn_by_length_and_by_position(laboratory: Any) -> None:
    """A panel for each RoPE: the loss of whole sequences at each length, and within the longest ones."""
    lab = answered(laboratory)
    rows, variants = evaluation_rows(lab), dict.fromkeys(lab.variants)
    assert lines(evaluation_views.plot_by_length(rows, variants, "far", SPECS)) == {
        f"loss, {rope} [nats/token]": expected(lab, {length: f"length/{length:06d}/{rope}/loss" for length in LENGTHS})
        for rope in ROPES
    }
    assert lines(evaluation_views.plot_by_position(rows, variants, "far", SPECS)) == {
        f"loss, {rope} [nats/token]": expected(
            lab, {at: f"length/000032/{rope}/position/{octave}" for octave, at in OCTAVES.items()}
        )
        for rope in ROPES
    }
    figure = evaluation_views.plot_by_length(rows, variants, "far", SPECS)
    assert figure is not None
    assert {axes.get_xlabel() for axes in figure.axes} == {"tokens in a sequence"}
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert figure.get_suptitle().startswith("far")


def test_retrieval_is_drawn_by_length(laboratory: Any) -> None:
    """A panel for each task, score and RoPE, each with its unit."""
    lab = answered(laboratory)
    rows = evaluation_rows(lab)
    assert lines(evaluation_views.plot_retrieval(rows, dict.fromkeys(lab.variants), "far", SPECS)) == {
        f"needle/{kind}, {rope} [{unit}]": expected(
            lab, {length: f"retrieval/{length:06d}/{rope}/needle/{kind}" for length in LENGTHS}
        )
        for rope in ROPES
        for kind, unit in (("accuracy", "share"), ("gain", "nats/token"))
    }


@pytest.mark.parametrize("gain", [0.0, 0.25])
def test_accuracies_that_are_all_nothing_are_not_drawn(laboratory: Any, gain: float) -> None:
    """Models that answer nothing show what their context saves them, were it nothing, too."""
    lab = laboratory(("none",), seeds=1)
    lab.finish(0, 0)
    stem = "retrieval/000016/plain/needle"
    lab.answer(0, 0, "retrieval", 1.0, {f"{stem}/accuracy": 0.0, f"{stem}/gain": gain})
    figure = evaluation_views.plot_retrieval(evaluation_rows(lab), dict.fromkeys(lab.variants), "small", SPECS)
    assert lines(figure) == {"needle/gain, plain [nats/token]": {lab.variants[0]: {16.0: gain}}}


def test_the_longest_is_the_longest_by_number(laboratory: Any) -> None:
    """A million tokens, which names no longer pad, are longer than half a million."""
    lab = laboratory(("none",), seeds=1)
    lab.finish(0, 0)
    names = [f"length/{length:06d}/plain/position/00001-00001" for length in (1 << 20, 1 << 19)]
    lab.answer(0, 0, "loss", 1.0, dict(zip(names, (2.0, 3.0), strict=True)))
    rows = evaluation_rows(lab)
    figure = evaluation_views.plot_by_position(rows, dict.fromkeys(lab.variants), "very far", SPECS)
    assert lines(figure) == {"loss, plain [nats/token]": {lab.variants[0]: {1.0: 2.0}}}


def test_what_was_not_asked_is_not_drawn(laboratory: Any) -> None:
    """Tasks alone make a table and no empty axes; a variant that was not asked is missing, not an error."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    for seed in (0, 1):
        lab.finish(0, seed)
        lab.finish(1, seed)
        lab.answer(0, seed, "tasks", 1.0, {"tasks/trivia/acc": 0.25 + seed / 4})
    found = write("evaluation", read_results(lab.folder, lab.name))
    assert found.plots == []
    [comparison] = found.result.comparisons
    rows = {row.variant: row.value for row in comparison.rows}
    assert (rows["position=none"].mean, rows["position=none"].n) == (0.375, 2)
    assert rows["position=sdpa"].n == 0
    assert found.shown[0].rows[0][1:] == ("0.375", "–")


def test_the_newest_answer_wins(laboratory: Any) -> None:
    """Where the same was asked again, with more tokens say, the last answer counts, however the files are named."""
    for first, second in (("a", "b"), ("b", "a")):
        lab = laboratory(("none",), seeds=1)
        lab.finish(0, 0)
        lab.answer(0, 0, first, 1_700_000_000.0, {"length/000016/plain/loss": 3.0, "length/000032/plain/loss": 5.0})
        lab.answer(0, 0, second, 1_700_000_000.5, {"length/000016/plain/loss": 2.0})
        [row] = runs_from_journals(lab.folder, lab.name).to_pylist()
        assert (row["length/000016/plain/loss"], row["length/000032/plain/loss"]) == (2.0, 5.0)
        rows = evaluation_rows(lab).to_pylist()
        assert {(row["name"], row["value"]) for row in rows} == {
            ("length/000016/plain/loss", 2.0),
            ("length/000032/plain/loss", 5.0),
        }


def test_answers_come_with_their_trials(laboratory: Any) -> None:
    """All of them in long form, curves by position included; half-written files are nobody's answer."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    lab.finish(1, 1)
    ask(lab, 1, 1)
    folder = lab.trial(1, 1).evaluations
    (folder / "torn.json").write_text('{"metrics": {')
    rows = evaluation_rows(lab).to_pylist()
    assert {(row["trial"], row["variant"], row["seed"]) for row in rows} == {(lab.id(1, 1), "position=sdpa", 1)}
    assert {row["name"]: row["value"] for row in rows} == {
        name: found(name, 1, 1) for name in (*ANSWERS, *DETAILS, *POSITIONS)
    }
    columns = metrics_of(runs_from_journals(lab.folder, lab.name))
    assert set(ANSWERS) <= set(columns)
    assert not set(POSITIONS) & set(columns)  # no column of `runs` for each point of a curve


def test_each_answer_is_compared_with_the_baseline(laboratory: Any) -> None:
    """Means and intervals of paired differences, as SciPy has them; standard errors and counts are no rows."""
    lab = answered(laboratory)
    comparisons = evaluation.evaluation(runs_from_journals(lab.folder, lab.name), {}).comparisons
    assert sorted(comparison.metric for comparison in comparisons) == sorted(ANSWERS)
    for comparison in comparisons:
        name = comparison.metric
        for row in comparison.rows:
            own, base = (
                [found(name, index, seed) for seed in range(3)] for index in (lab.variants.index(row.variant), 0)
            )
            assert (row.value.mean, row.value.n) == (pytest.approx(np.mean(own)), 3)
            if not row.is_baseline:
                assert row.delta is not None
                interval = scipy.stats.ttest_rel(own, base).confidence_interval(0.95)
                assert [row.delta.mean, row.delta.low, row.delta.high] == pytest.approx(
                    [np.mean(np.subtract(own, base)), interval.low, interval.high]
                )
        means = [row.value.mean for row in comparison.rows]
        if name.startswith("length"):
            assert means == sorted(means)  # low losses first
        elif name.startswith("retrieval"):
            assert means == sorted(means, reverse=True)  # high accuracies and gains first


def test_tables_and_figures_lie_where_the_study_lies(laboratory: Any) -> None:
    """JSON and CSV have the numbers in full, Markdown a row for each answer; figures are PNG, SVG and PDF."""
    lab = answered(laboratory, seeds=2)
    written = write("evaluation", read_results(lab.folder, lab.name))
    folder = lab.folder.study(lab.name).path
    stems = ("loss-by-length", "loss-by-position-beyond", "retrieval")
    suffixes = ("png", "svg", "pdf")
    assert [path.name for path in written.plots] == [f"{stem}.{suffix}" for stem in stems for suffix in suffixes]
    assert all(path.parent == folder and path.stat().st_size > 5_000 for path in written.plots)
    from_json = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    with (folder / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        from_csv = {(row["metric"], row["variant"]): float(row["mean"]) for row in csv.DictReader(file)}
    assert from_csv == {
        (name, label): pytest.approx(np.mean([found(name, variant, seed) for seed in (0, 1)]))
        for name in ANSWERS
        for variant, label in enumerate(lab.variants)
    }
    assert {
        (c["metric"], r["variant"]): r["value"]["mean"] for c in from_json["comparisons"] for r in c["rows"]
    } == from_csv
    table = [line for line in (folder / "evaluation.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert [line.split("|")[1].partition(" [")[0].strip() for line in table[2:]] == sorted(ANSWERS)
    assert "length/000016/plain/loss" in (folder / "evaluation.tex").read_text(encoding="utf-8")


def test_a_study_that_was_asked_nothing_says_so(laboratory: Any) -> None:
    """There is a message that names the command, and no file."""
    lab = laboratory(("none",), seeds=1)
    lab.finish(0, 0)
    with pytest.raises(AnalysisUnavailable, match="nothing was asked of this study's models yet: gatelab evaluate"):
        evaluation.evaluation(runs_from_journals(lab.folder, lab.name), {})
    with pytest.raises(AnalysisUnavailable):
        write("evaluation", read_results(lab.folder, lab.name))
    assert not list(lab.folder.study(lab.name).path.glob("evaluation*"))
    rows = evaluation_rows(lab)
    assert rows.column_names == ["trial", "variant", "seed", "name", "value"]
    assert [draw(rows, {}, "", SPECS) for draw in evaluation_views.DRAWINGS.values()] == [None] * 3


def sync(lab: Any, uri: str | None = None) -> int:
    """As a command does it: with a mirror of its own."""
    return Mirror(lab.folder, lab.record, uri or lab.folder.tracking_uri).sync()


def assert_agreed(lab: Any, uri: str | None = None) -> None:
    """Journals and MLflow give the same frame and the same tables."""
    here, there = runs_from_journals(lab.folder, lab.name), runs_from_mlflow(uri or lab.folder.tracking_uri, lab.name)
    assert here.schema == there.schema
    assert repr(here.to_pylist()) == repr(there.to_pylist())  # by repr: nan is nan
    assert evaluation.evaluation(here, {}).to_dict() == evaluation.evaluation(there, {}).to_dict()


def test_journals_and_mlflow_agree_on_answers(tracked: Any, blank_store: str, monkeypatch: Any, tmp_path: Path) -> None:
    """MLflow gets every answer once, new ones when they come and changed ones again; a new store gets them all."""
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts of a store without a place for them
    lab = tracked(("none", "sdpa"), seeds=1)
    for variant in (0, 1):
        lab.finish(variant, 0)
    trained = sync(lab)
    ask(lab, 0, 0)
    assert sync(lab) == len(ANSWERS) + len(DETAILS)  # curves by position are not for MLflow's pages
    assert_agreed(lab)
    assert sync(lab) == 0
    ask(lab, 1, 0)
    strange = {"tasks/trivia/acc": math.nan, "length/000032/plain/loss": math.inf, "retrieval/a/b/c/gain": -math.inf}
    lab.answer(1, 0, "strange", 1.8e9, strange)
    sync(lab)
    assert_agreed(lab)
    assert sync(lab) == 0
    lab.answer(
        0, 0, "again", 1.9e9, {"length/000016/plain/loss": 0.5, "tasks/trivia/acc": found("tasks/trivia/acc", 0, 0)}
    )
    assert sync(lab) == 1  # the other is what it was
    assert_agreed(lab)
    row = compare(runs_from_mlflow(lab.folder.tracking_uri, lab.name), "length/000016/plain/loss").rows[0]
    assert (row.variant, row.value.mean) == ("position=none", 0.5)

    assert sync(lab, blank_store) == trained + 2 * (len(ANSWERS) + len(DETAILS)) + 1
    assert_agreed(lab, blank_store)
    assert sync(lab, blank_store) == 0


def test_answers_of_a_trial_that_is_not_over_wait(tracked: Any) -> None:
    """A trial that is trained again has no answers in any table until it has finished."""
    lab = tracked(("none", "sdpa"), seeds=1)
    for variant in (0, 1):
        lab.finish(variant, 0)
        ask(lab, variant, 0)
    lab.trial(1, 0).outcome.unlink()
    sync(lab)
    assert_agreed(lab)
    rows = {row["variant"]: row for row in runs_from_mlflow(lab.folder.tracking_uri, lab.name).to_pylist()}
    assert rows["position=none"]["tasks/trivia/acc"] == found("tasks/trivia/acc", 0, 0)
    assert rows["position=sdpa"]["tasks/trivia/acc"] is None


def test_figures_and_tables_can_be_had_from_mlflow(tracked: Any, tmp_path: Path) -> None:
    """Whoever has only the tracking store finds them beside the study's record, byte for byte, the newest version."""
    lab = tracked(("none",), seeds=1)
    lab.finish(0, 0)
    contents = {
        "a.png": b"\x89PNG",
        "a.svg": b"<svg/>",
        "a.pdf": b"%PDF",
        "b.html": b"<table>",
        "report.html": b"<!DOCTYPE html>",
        "b.md": b"| a |",
        "b.csv": b"a\n",
        "b.tex": b"%",
        "b.json": b"1",
    }
    paths = [tmp_path / name for name in contents]
    for path in paths:
        path.write_bytes(b"old")
    mirror = Mirror(lab.folder, lab.record, lab.folder.tracking_uri)
    mirror.add_files(paths)  # before any sync: there need be no experiment yet
    for path in paths:
        path.write_bytes(contents[path.name])
    mirror.add_files(paths)
    mirror.sync()
    client = MlflowClient(lab.folder.tracking_uri)
    experiment = client.get_experiment_by_name(lab.name)
    assert experiment is not None
    [study] = client.search_runs([experiment.experiment_id], "tags.`gatelab.kind` = 'study'")
    copies = Path(client.download_artifacts(study.info.run_id, "", str(tmp_path)))
    read = {path.relative_to(copies).as_posix(): path.read_bytes() for path in copies.rglob("*.*") if path not in paths}
    assert json.loads(read.pop("study.json")) == json.loads(json.dumps(lab.record.to_json()))
    figures, pages = ("a.png", "a.svg", "a.pdf"), ("report.html",)
    kinds = dict.fromkeys(figures, "figures") | dict.fromkeys(pages, "report")
    assert read == {f"{kinds.get(name, 'tables')}/{name}": value for name, value in contents.items()}
    assert runs_from_mlflow(lab.folder.tracking_uri, lab.name)["outcome"].to_pylist() == ["finished"]


def test_notes_say_how_much_was_asked_and_what_is_mixed(laboratory: Any) -> None:
    """A model asked on more text, or with other code, is not quietly compared with one that was not."""
    lab = laboratory(seeds=1)
    loss = "length/000016/plain/loss"
    for variant in (0, 1):
        lab.finish(variant, 0)
        lab.answer(variant, 0, "first", 1.0, {loss: 2.0}, amount=64_000)
    assert notes(lab) == ["length: 64,000 tokens."]
    lab.answer(1, 0, "more", 2.0, {loss: 2.1}, amount=1_000_000, code="other code")
    assert notes(lab) == [
        "length: 1,000,000 tokens or 64,000 tokens.",
        "Answers differ in code, length: ask all trials again with one setting.",
    ]
    lab.answer(0, 0, "more", 2.0, {loss: 2.1}, amount=1_000_000, code="other code")  # what no longer counts is not told
    lab.answer(0, 0, "tasks", 3.0, {"tasks/t/acc": 0.5}, amount=0, code="other code")
    assert notes(lab) == [
        "length: 1,000,000 tokens.",
        "tasks: all documents.",
    ]
