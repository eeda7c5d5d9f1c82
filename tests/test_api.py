"""The Python API: what it shows is what the command line shows, and importing it costs and changes nothing."""

import bisect
import heapq
import inspect
import json
import queue
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import gatelab as gl
from gatelab.ablations.errors import StudyError
from gatelab.cli.main import app
from gatelab.results.store.layout import NotFound
from gatelab.status import Status
from gatelab.training.evaluation import language_model_loss
from tests.results.conftest import Laboratory

MODEL = {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_size": 16}
TRAINING = {"tokens": 1280, "sequence_length": 16, "batch_size": 4}
EVALUATION = {"tokens": 256, "points": 2}
PNG = b"\x89PNG"


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for module in (bisect, heapq, queue, shlex, textwrap):
        (folder / f"{module.__name__}.py").write_text(inspect.getsource(module), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def study(text: Path) -> gl.Study:
    base = {"model": MODEL, "training": TRAINING, "evaluation": EVALUATION, "data": {"source": str(text)}}
    return gl.Study("tiny", base=base, axes={"model.gate.position": ["none", "sdpa"]}, seeds=2)


@pytest.fixture(scope="session")
def folder(study: gl.Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder in which that study has run, in this process."""
    root = tmp_path_factory.mktemp("api") / "runs"
    torch.set_num_threads(1)
    study.run(root, progress=False)
    return root


@pytest.fixture
def results(folder: Path) -> gl.Results:
    return gl.open(folder)["tiny"]


@pytest.fixture
def by_hand(tmp_path: Path) -> Laboratory:
    """A study of two variants and two seeds that nobody trained."""
    lab = Laboratory(tmp_path / "runs", ("none", "sdpa"), 2, 20)
    for variant in range(2):
        for seed in range(2):
            lab.finish(variant, seed)
    return lab


def python(code: str, *arguments: str) -> str:
    """Run code in a process of its own; return what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_comparison_is_that_of_the_command_line(results: gl.Results, folder: Path) -> None:
    """Run inline, read by both: one table."""
    printed = CliRunner().invoke(app, ["compare", "tiny", "--json", "--runs", str(folder)])
    assert printed.exit_code == 0, printed.output
    told = json.loads(printed.stdout)
    assert told.pop("stamp")["finished"] == 4
    assert results.comparison().to_dict() == told
    assert {row["n"] for row in results.comparison().frame().to_pylist()} == {2}


def test_run_again_trains_nothing(
    study: gl.Study, results: gl.Results, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is finished is kept, and progress is told once on standard error."""
    again = study.run(folder)
    assert gl.Study.load(folder / "studies/tiny/study.yaml").hash == study.hash == results.record.hash
    assert again.runs.equals(results.runs)
    told = capsys.readouterr()
    assert told.err.count("tiny: of 4 trials 4 finished\n") == 1
    assert told.out == ""


def test_plan_is_what_runs_and_needs_neither_torch_nor_ray(study: gl.Study, results: gl.Results, folder: Path) -> None:
    """The same ids; and a plan is arithmetic."""
    plan = study.plan(folder)
    assert {trial.id for trial in plan.trials} == set(results.runs["trial"].to_pylist())
    assert plan.frame()["variant"].to_pylist() == results.variants
    code = (
        "import sys, gatelab as gl\n"
        "study = gl.Study('x', axes={'model.gate.position': ['none', 'sdpa']}, seeds=2)\n"
        "print(len(study.plan(sys.argv[1]).trials), *{'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    assert python(code, str(folder)) == "4"


def test_import_loads_nothing_heavy() -> None:
    """Names come when they are first used; all of them are there."""
    heavy = {"torch", "ray", "mlflow", "pyarrow", "numpy", "scipy", "matplotlib", "pydantic"}
    assert python(f"import sys, gatelab; print(*{heavy} & set(sys.modules))") == ""
    assert all(getattr(gl, name) is not None for name in gl.__all__)
    assert set(gl.__all__) <= set(dir(gl))
    with pytest.raises(AttributeError, match="no attribute 'Studdy'"):
        _ = gl.Studdy  # type: ignore[attr-defined]


def test_results_need_no_torch_and_leave_the_backend_of_matplotlib(by_hand: Laboratory) -> None:
    """A notebook's figures stay where they were drawn before."""
    code = (
        "import sys, matplotlib\n"
        "matplotlib.use('svg')\n"
        "before = matplotlib.get_backend()\n"
        "import gatelab as gl\n"
        "results = gl.open(sys.argv[1])[sys.argv[2]]\n"
        "assert results.curves()._repr_png_().startswith(b'\\x89PNG')\n"
        "assert results.comparison()._repr_html_()\n"
        "print(before == matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    assert python(code, str(by_hand.folder.root), by_hand.name) == "True False False"


def test_objects_show_themselves(by_hand: Laboratory, tmp_path: Path) -> None:
    """As tables and images in a notebook, as Markdown or one line elsewhere."""
    results = gl.open(by_hand.folder.root)[by_hand.name]
    comparison = results.comparison()
    assert "<table" in comparison._repr_html_()
    assert "| sdpa |" in repr(comparison)
    assert "4 finished" in repr(results)
    assert results._repr_html_().endswith(comparison._repr_html_())
    plot = results.curves("train/loss")
    assert plot._repr_png_().startswith(PNG)
    assert repr(plot) == "Plot('curves-train-loss')"
    assert {path.name for path in plot.save(tmp_path)} == {
        f"curves-train-loss.{kind}" for kind in ("png", "svg", "pdf")
    }
    for shown in comparison.figures.values():
        assert shown._repr_png_().startswith(PNG)


def test_plan_shows_itself(study: gl.Study, tmp_path: Path) -> None:
    """With its notes, escaped in HTML; a study in a line."""
    plan = study.plan(tmp_path)
    assert "| sdpa |" in repr(plan)
    assert repr(plan).splitlines().count("4 trials of 2 variants") == 1
    assert "<table" in plan._repr_html_()
    assert plan._repr_html_().count("<p>") >= 1 + len(plan.notes)
    assert repr(study) == "Study('tiny': model.gate.position (2); 2 seeds)"


def test_findings_are_written_and_framed(by_hand: Laboratory, tmp_path: Path) -> None:
    """Each analysis with something to show has tables; those without say why."""
    results = gl.open(by_hand.folder.root)[by_hand.name]
    for finding in (results.comparison(), results.effects(), results.pivot(["model.gate.position"], [])):
        assert finding.tables
        assert finding.frame().num_rows == len(finding.to_pandas())
        assert json.dumps(finding.to_dict(), allow_nan=False)
    results.comparison().write(tmp_path / "out")
    written = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert {".md", ".tex", ".html", ".csv", ".json"} <= written
    with pytest.raises(gl.AnalysisUnavailable, match="makes no claims"):
        results.claims()
    with pytest.raises(gl.AnalysisUnavailable, match="has no scaling ladder"):
        results.scaling()
    with pytest.raises(ValueError, match="no trial has 'validation/los', but for example validation/loss"):
        results.comparison("validation/los")


def test_open_says_what_there_is(by_hand: Laboratory, tmp_path: Path) -> None:
    """A wrong folder or name is answered with the right ones."""
    runs = gl.open(by_hand.folder.root)
    assert list(runs) == [by_hand.name]
    assert by_hand.name in repr(runs)
    mistyped = f"{by_hand.name}x"
    with pytest.raises(
        NotFound, match=rf"no study '{mistyped}' in .* \(did you mean {by_hand.name}\? there are: {by_hand.name}\)"
    ):
        _ = runs[mistyped]
    with pytest.raises(NotFound, match=r"no runs folder .*nowhere'.*gatelab run"):
        gl.open(tmp_path / "nowhere")
    assert "stduy" not in runs
    for wrong in ("../../outside", "/etc", "n" * 300, "", 3):
        assert wrong not in runs
        with pytest.raises(NotFound, match="is no name of a study"):
            _ = runs[wrong]  # type: ignore[index]
    assert by_hand.name in runs
    assert runs.get("stduy") is None
    with pytest.raises(NotFound, match=r"no study .*-lr-tolerance'"):
        runs[by_hand.name].learning_rates()


def test_a_study_is_read_anew_when_it_went_on(tmp_path: Path) -> None:
    """Results are of one moment; `refresh` takes another look."""
    lab = Laboratory(tmp_path / "runs", ("none", "sdpa"), 1, 20)
    before = gl.open(lab.folder.root)[lab.name]
    assert before.runs["outcome"].to_pylist() == ["waiting", "waiting"]
    lab.finish(0, 0)
    assert before.runs["outcome"].to_pylist() == ["waiting", "waiting"]
    assert before.refresh().runs["outcome"].to_pylist() == ["finished", "waiting"]


def test_loaded_model_has_the_recorded_loss(results: gl.Results) -> None:
    """The held-out text and the weights are those of the trial's last evaluation."""
    trained = results.load_model("position=sdpa", seed=1, device="cpu")
    assert not trained.model.training
    held_out = trained.dataset.held_out(EVALUATION["tokens"], TRAINING["sequence_length"])
    with torch.no_grad():
        loss = language_model_loss(trained.model, torch.from_numpy(held_out.windows)).item()
    row = next(row for row in results.runs.to_pylist() if (row["variant"], row["seed"]) == ("position=sdpa", 1))
    assert loss == pytest.approx(row["validation/loss"], rel=1e-6)
    with pytest.raises(NotFound, match="no variant 'position=spda' in tiny; did you mean position=sdpa"):
        results.load_model("position=spda")
    with pytest.raises(NotFound, match="no trial of 'position=sdpa' at seed 7 has finished in tiny"):
        results.load_model("position=sdpa", seed=7)


def test_train_is_the_trial_of_the_study(study: gl.Study, results: gl.Results, tmp_path: Path) -> None:
    """One configuration, trained by itself: the number in the table."""
    trial = study.plan(tmp_path).trials[0]
    outcome = gl.train(trial.config, device="cpu")
    assert outcome.status is Status.FINISHED
    row = next(row for row in results.runs.to_pylist() if row["trial"] == trial.id)
    assert outcome.metrics["validation/loss"] == row["validation/loss"]


def test_a_wrong_study_is_refused_when_it_is_made(tmp_path: Path) -> None:
    """With all that is wrong, and what was meant."""
    with pytest.raises(
        StudyError, match=r"gl\.Study\('x'\): axes\.model\.gate\.positon: .*did you mean model\.gate\.position"
    ):
        gl.Study("x", axes={"model.gate.positon": ["none", "sdpa"]})
    with pytest.raises(StudyError, match="bas: unknown key; did you mean base"):
        gl.Study("x", bas="tiny-dense")
    with pytest.raises(gl.GatelabError, match=r"nowhere\.yaml"):
        gl.Study.load(tmp_path / "nowhere.yaml")


def test_a_study_file_is_the_study(study: gl.Study, text: Path, tmp_path: Path) -> None:
    """Read from YAML (JSON is YAML), with what `--set` would change, it asks the same."""
    base = {"model": MODEL, "training": TRAINING, "evaluation": EVALUATION}
    raw = {"name": "tiny", "base": base, "axes": {"model.gate.position": ["none", "sdpa"]}, "seeds": 2}
    (tmp_path / "tiny.yaml").write_text(json.dumps(raw), encoding="utf-8")
    loaded = gl.Study.load(tmp_path / "tiny.yaml", overrides={"data.source": str(text)})
    assert [trial.id for trial in loaded.plan().trials] == [trial.id for trial in study.plan().trials]
    assert loaded.hash == study.hash


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
import gatelab as gl

torch.set_num_threads(1)
root, text = sys.argv[1:]
base = {
    "model": {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_size": 16},
    "training": {"tokens": "500M", "sequence_length": 16, "batch_size": 4},
    "evaluation": {"tokens": 256, "points": 2},
    "data": {"source": text},
}

def interrupt():
    while not any(path.stat().st_size for path in Path(root).glob("trials/*/journal/*.arrows")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt, daemon=True).start()
try:
    gl.Study("long", base=base, seeds=[0]).run(root, progress=False)
except KeyboardInterrupt:
    [checkpoint] = Path(root).glob("trials/*/checkpoints/step-*.safetensors")
    print("interrupted", gl.open(root)["long"].runs["outcome"].to_pylist())
"""


def test_an_interrupt_is_raised_and_costs_nothing(text: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a script or a cell, as in any program, and the trial goes on from where it was."""
    assert python(INTERRUPTED, str(tmp_path / "runs"), str(text)) == "interrupted ['interrupted']"


@pytest.mark.parametrize(
    ("fields", "said"), [({"seeds": None}, "seeds"), ({"axes": ["a"]}, "axes"), ({"base": 7}, "base")], ids=str
)
def test_wrong_kinds_are_named(fields: dict[str, object], said: str) -> None:
    """A mistake in Python is answered as one in a file is: by its key."""
    with pytest.raises(StudyError, match=rf"gl\.Study\('x'\): {said}"):
        gl.Study("x", **fields)


def test_what_is_not_there_is_named(results: gl.Results, study: gl.Study, tmp_path: Path) -> None:
    """A variant or an executor that there is not: the message says what there is."""
    with pytest.raises(NotFound, match=r"no variant 'position=spda' in tiny; did you mean position=sdpa\?"):
        results.stability(["position=spda"])
    with pytest.raises(gl.WrongRequest, match="executor None: expected 'inline', 'ray' or"):
        study.run(tmp_path, executor=None, progress=False)
