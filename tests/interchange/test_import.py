"""An imported model is found by whatever looks for trained ones: a study that continues it, evaluation, commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from typer.testing import CliRunner, Result

import gatelab as gl
from gatelab.ablations.loading import load_study
from gatelab.cli.console import console
from gatelab.cli.main import app
from gatelab.interchange.export import export_model
from gatelab.models.decoder import Decoder
from gatelab.orchestrator.evaluation import EvalRequest, assign, eval_jobs, run_evals
from gatelab.orchestrator.inline import InlineExecutor
from gatelab.orchestrator.planning import plan_study
from gatelab.orchestrator.study_run import run_trial
from gatelab.results.store.layout import RunsFolder
from gatelab.status import Status
from gatelab.training.checkpoint import load_weights
from gatelab.training.config import DataConfig
from gatelab.training.evals.attention_map import attention_of_text
from gatelab.training.tokenizer import ByteTokenizer, load_tokenizer

Make = Callable[..., Decoder]
GATE = {"position": "sdpa", "granularity": "headwise"}


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, decoder: Make) -> Path:
    """The current folder, with a gated model in `model`, and the text of `corpus`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "quiet", False)
    for name in ("GATELAB_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    export_model(decoder(GATE, layers=1), ByteTokenizer(), tmp_path / "model", length=16)
    return tmp_path


def gatelab(*arguments: str) -> Result:
    console.quiet = False  # as it is where a command begins
    return CliRunner().invoke(app, list(arguments))


def bring_in(*more: str, path: str = "model") -> Result:
    small = ("--data", "corpus", "--set", "evaluation.tokens=256", "--set", "evaluation.diagnostic_tokens=64")
    return gatelab("import-model", path, *small, *more)


def said(result: Result) -> str:
    return " ".join(result.output.split())


def imported(*more: str, path: str = "model") -> dict[str, Any]:
    result = bring_in("--json", *more, path=path)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@torch.no_grad()
def test_it_is_a_study_that_has_been_run(decoder: Make, desk: Path) -> None:
    """Its one trial has the weights, the loss that they have on the text, and what training would have diagnosed."""
    told = imported()
    results = gl.open("gatelab-runs")["model"]
    row = results.runs.to_pylist()[0]
    assert (row["outcome"], row["validation/loss"]) == ("finished", told["metrics"]["validation/loss"])
    assert told["metrics"]["gate/sdpa/mean"] > 0
    trained = results.load_model("base")
    tokens = torch.randint(0, 256, (1, 12))
    assert torch.equal(trained.model(tokens), decoder(GATE, layers=1)(tokens))
    assert "validation/loss" in repr(results.comparison())
    assert "gate/sdpa/mean" in repr(results.diagnostics())
    assert list(attention_of_text(trained.model, [1, 2, 3], [0])) == [0]


def test_what_is_exported_again_is_the_same(desk: Path) -> None:
    """Bit for bit, file by file of the model."""
    imported()
    assert gatelab("export-model", "model", "again").exit_code == 0
    for name in ("model.safetensors", "tokenizer.json", "gatelab-rounding.safetensors"):
        assert (desk / "again" / name).read_bytes() == (desk / "model" / name).read_bytes()
    before, after = (json.loads((desk / name / "config.json").read_text()) for name in ("model", "again"))
    assert before["gatelab"].pop("model") == after["gatelab"].pop("model")
    assert {**before, "gatelab": None} == {**after, "gatelab": None}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:280"])
def test_a_study_continues_it(decoder: Make, desk: Path, corpus: Path, tokenizer: str) -> None:
    """At each seed training starts from the weights; a rate of nothing leaves them."""
    made = load_tokenizer(DataConfig(tokenizer=tokenizer), [path.read_text() for path in corpus.glob("*.py")])
    model = decoder(GATE, layers=1, vocab_size=made.vocab_size)
    export_model(model, made, desk / "start", length=16)
    told = imported("--seeds", "2", path="start")
    assert len(told["trials"]) == 2
    still = {"tokens": 64, "batch_size": 4, "optimizer": {"learning_rate": 1e-12}, "precision": "float32"}
    axes = {"model.rope_base": [1e4, 5e4]}
    study = {"name": "next", "continues": told["file"], "base": {"training": still}, "axes": axes}
    Path("next.yaml").write_text(yaml.safe_dump(study))
    matrix, folder = plan_study(load_study(Path("next.yaml"))), RunsFolder(Path("gatelab-runs"))
    assert sorted(trial.parent or "" for trial in matrix.trials) == sorted(told["trials"] * 2)
    for trial in matrix.trials[1:3]:  # of either seed
        assert run_trial(trial, folder, "cpu", 60.0, lambda step, values: None).status is Status.FINISHED
        after = Decoder(trial.config.model)
        load_weights(folder.trial(trial.id).checkpoints, after)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(dict(after.named_parameters())[name], parameter, rtol=0, atol=1e-9)


def test_an_import_that_was_killed_is_made_again(desk: Path) -> None:
    """As if it had not been: its values are there once."""
    trial = imported()["trials"][0]
    before = gl.open("gatelab-runs")["model"].metrics().num_rows
    (desk / "gatelab-runs" / "trials" / trial / "outcome.json").unlink()
    (desk / "gatelab-runs" / "studies" / "model" / "study.json").unlink()
    imported()
    results = gl.open("gatelab-runs")["model"]
    assert (results.metrics().num_rows, results.runs["outcome"].to_pylist()) == (before, ["finished"])


def test_it_is_evaluated_like_any_other(desk: Path) -> None:
    """At other lengths, from its checkpoint."""
    imported()
    folder = RunsFolder(Path("gatelab-runs"))
    jobs, refused = assign(folder, eval_jobs(folder, "model"), EvalRequest(lengths=(16, 32), tokens=64))
    assert (run_evals(folder, jobs, InlineExecutor()).answered, refused) == (2, {})


def test_equal_weights_are_one_trial_however_they_were_laid_out(desk: Path) -> None:
    """A trial's id is of the weights, not of the folder; a trained one with such a configuration has another."""
    first = imported()
    assert gatelab("export-model", "model", "other", "--as", "gatelab").exit_code == 0
    assert imported("--name", "again", path="other")["trials"] == first["trials"]
    plain = yaml.safe_load(Path(first["file"]).read_text())
    del plain["imported"]
    Path("trained.yaml").write_text(yaml.safe_dump(plain))
    assert plan_study(load_study(Path("trained.yaml"))).trials[0].id != first["trials"][0]


def test_a_model_that_is_not_there_is_not_trained(desk: Path) -> None:
    """In a folder that lacks the weights the study says how they come there; nothing is trained in their place."""
    file = imported()["file"]
    for command in (("run", file), ("train", file)):
        result = gatelab(*command, "--runs", "elsewhere")
        assert (result.exit_code, "gatelab import-model brings it there" in said(result)) == (2, True), result.output
    assert not list(Path("elsewhere").glob("trials/*"))


def test_what_is_wrong_is_said_in_a_sentence_and_nothing_is_written(desk: Path) -> None:
    """Names, settings and folders that cannot be."""
    Path("empty").mkdir()
    for arguments, reason in (
        (("--name", "a b"), "--name 'a b': expected letters"),
        (("--set", "model.layers=3"), "--set model.layers: the model and its tokenizer are those of model"),
        (("--set", "data.tokenizer=bytes"), "--set data.tokenizer: the model and its tokenizer are those of model"),
        (("--set", "training.sequence_length=1000000"), "too small for training.sequence_length"),
        (("--set", "evaluation.tokns=3"), "--set evaluation.tokns: no such configuration field"),
        (("--set", "data.source=nowhere"), "--set = 'data.source': given twice"),
    ):
        result = bring_in(*arguments)
        assert (result.exit_code, reason in said(result)) == (2, True), result.output
    for path, reason in (("empty", "empty/config.json: is not there"), ("nothing", "nothing: is no folder")):
        result = bring_in(path=path)
        assert (result.exit_code, reason in said(result)) == (2, True), result.output
    assert not list(Path().glob("gatelab-runs/studies/*")) + list(Path().glob("gatelab-runs/trials/*"))
    imported()
    assert "there is such a study in gatelab-runs" in said(bring_in())


def test_weights_without_a_loss_are_refused(desk: Path) -> None:
    """Such as those of a model that has diverged."""
    tensors = safetensors.torch.load_file("model/model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    safetensors.torch.save_file(tensors, "model/model.safetensors")
    result = bring_in()
    assert (result.exit_code, "model: its loss on held-out text is nan" in said(result)) == (2, True), result.output
    assert not list(Path().glob("gatelab-runs/trials/*"))


def test_a_study_that_continues_another_has_no_imported_weights(desk: Path) -> None:
    """They could be either."""
    file = imported()["file"]
    study = {"name": "next", "continues": file, "imported": "0" * 64}
    Path("next.yaml").write_text(yaml.safe_dump(study))
    result = gatelab("plan", "next.yaml")
    assert (result.exit_code, "imported" in said(result)) == (2, True), result.output


def test_commands_choose_the_model_and_say_what_it_says(desk: Path) -> None:
    """A sample is the same twice, greedy ones whatever is drawn; a variant or a seed that is not there is named."""
    imported()
    first, again, other, greedy = (
        json.loads(gatelab("sample", "model", "--prompt", "def", "--tokens", "12", "--json", *more).stdout)[0]["text"]
        for more in ((), (), ("--draw", "1"), ("--greedy", "--draw", "2"))
    )
    assert first == again != other
    cold = gatelab("sample", "model", "--prompt", "def", "--tokens", "12", "--json", "--temperature", "0")
    assert json.loads(cold.stdout)[0]["text"] == greedy
    shown = gatelab("sample", "model", "--prompt", "def", "--tokens", "20")
    assert "it was trained on sequences of 16 tokens" in said(shown)
    for command in (("sample", "model"), ("export-model", "model", "new")):
        assert "no variant" in said(gatelab(*command, "--variant", "x")) or "--variant 'x'" in said(
            gatelab(*command, "--variant", "x")
        )
        assert "--seed 4: finished are 0" in said(gatelab(*command, "--seed", "4"))
    refused = gatelab("export-model", "model", "new", "--as", "qwen3")
    assert (refused.exit_code, "qwen3 cannot hold this model: it has no gate" in said(refused)) == (2, True)
    assert "is there already" in said(gatelab("export-model", "model", "model"))
    next(Path().glob("gatelab-runs/trials/*/checkpoints/*")).unlink()
    gone = gatelab("export-model", "model", "new")
    assert (gone.exit_code, "there is no whole checkpoint" in said(gone)) == (2, True)
    assert not Path("new").exists()
