"""Questions to trained models: answers against models built for the purpose, weights against a separate computation."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gatelab.errors import DataError
from gatelab.kernels.reference import attention_weights
from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, initialize
from gatelab.models.layers import rotary_frequencies
from gatelab.training.checkpoint import load_weights
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.evals.attention_map import attention_of_text
from gatelab.training.evals.spec import EvalSpec, extend_rope, parse_rope
from gatelab.training.evals.trained_model import TrainedModel, refusal
from gatelab.training.loop import Outcome, train
from gatelab.training.preparation import prepare
from gatelab.training.recorder import NullRecorder

Tiny = Callable[..., TrialConfig]
TRAINED = 16  # tokens in a sequence of the tiny trial


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("plain", "plain"),
        ("ntk", "ntk"),
        ("yarn", "yarn"),
        ("base=500000", "base-500000"),
        ("base-500000", "base-500000"),
        ("base:5e5", "base-500000"),
        ("base=1e6", "base-1000000"),
        ("base=123456789", "base-123456789"),
        ("base=2.5e17", "base-2.5e17"),
        ("base=0.5", "base-0.5"),
    ],
)
def test_ropes_have_one_name_each(given: str, name: str) -> None:
    """However a base is written, it is asked for once, and its name is one that MLflow takes and reads back."""
    assert parse_rope(given) == parse_rope(name) == name
    assert re.fullmatch(r"[\w.-]+", name)
    if name.startswith("base-"):
        base = float(re.split("[=:-]", given, maxsplit=1)[1])
        assert extend_rope(ModelConfig(vocab_size=9), name, 16, 64).rope_base == base


@pytest.mark.parametrize(
    "given", ["", "YARN", "linear", "base", "base=", "base=big", "base=0", "base=-1", "base=nan", "base=inf"]
)
def test_other_ropes_are_refused(given: str) -> None:
    """A typing mistake is answered with what there is."""
    with pytest.raises(ValueError, match=rf"expected plain, ntk, yarn or base=NUMBER \(got {given!r}\)"):
        parse_rope(given)


@given(st.integers(2, 64), st.integers(2, 4096), st.floats(1, 64), st.floats(100, 1e7))
def test_ntk_turns_the_slowest_channel_as_far_as_in_training(
    half: int, trained: int, factor: float, base: float
) -> None:
    """Over the longer sequence it sees the angles that it knows; the fastest channel turns as it did."""
    length = round(trained * factor)
    model = ModelConfig(head_dim=2 * half, rope_base=base)
    before, after = (rotary_frequencies(config)[0] for config in (model, extend_rope(model, "ntk", trained, length)))
    assert (after[-1] * length).item() == pytest.approx((before[-1] * trained).item(), rel=1e-9)
    assert after[0].item() == before[0].item() == 1
    assert (after <= before * (1 + 1e-12)).all()


def test_what_stretching_changes() -> None:
    """YaRN knows its factor and the length that it stretches; a base is taken as it is; plain changes nothing."""
    model = ModelConfig(rope_base=10_000.0)
    assert extend_rope(model, "plain", 128, 512) == model
    assert extend_rope(model, "yarn", 128, 512) == model.model_copy(update={"yarn_factor": 4.0, "yarn_length": 128})
    assert extend_rope(model, "yarn", 128, 192).yarn_factor == 1.5
    for length in (64, 128, 512):
        assert extend_rope(model, "base-500", 128, length) == model.model_copy(update={"rope_base": 500.0})


@pytest.mark.parametrize("rope", ["plain", "ntk", "yarn"])
@pytest.mark.parametrize("length", [2, 64, 127, 128])
def test_up_to_the_trained_length_nothing_is_stretched(rope: str, length: int) -> None:
    """Short sequences must not pay for long ones; that holds for a model that was trained with YaRN, too."""
    for model in (ModelConfig(), ModelConfig(yarn_factor=2.0, yarn_length=64)):
        assert extend_rope(model, rope, 128, length) == model


def test_yarn_is_not_applied_twice() -> None:
    """A model that was trained with YaRN has its frequencies already; other ways go on from them."""
    model = ModelConfig(yarn_factor=2.0, yarn_length=64)
    with pytest.raises(ValueError, match=r"trained with YaRN \(yarn_factor 2\): ask for plain or ntk"):
        extend_rope(model, "yarn", 128, 256)
    assert extend_rope(model, "ntk", 128, 256).yarn_length == 64


@pytest.mark.parametrize(
    ("question", "stem"),
    [
        (EvalSpec("length", 512), "length/000512/plain"),
        (EvalSpec("length", 131_072, "base-500000"), "length/131072/base-500000"),
        (EvalSpec("retrieval", 512, "yarn", 64, "needle"), "retrieval/000512/yarn/needle"),
        (EvalSpec("tasks", 512, "plain", 0, "hellaswag"), "tasks"),
    ],
)
def test_answers_are_named_by_the_question(question: EvalSpec, stem: str) -> None:
    """Names sort as lengths do; the harness names its own tasks."""
    assert question.stem == stem


@pytest.fixture
def dataset(tiny: Tiny, tmp_path: Path) -> Dataset:
    return prepare(tiny().data, tmp_path / "data")


@pytest.fixture
def trained(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> Callable[..., tuple[TrainedModel, Outcome]]:
    """Trains a tiny trial and gives its model and its outcome."""

    def build(seed: int = 0, **sections: Any) -> tuple[TrainedModel, Outcome]:
        trial = tiny(seed, **sections)
        folder = tmp_path / f"trial {seed}"
        outcome = train(trial, NullRecorder(), folder, "cpu", dataset=dataset)
        return TrainedModel(trial, folder / "checkpoints", dataset, "cpu"), outcome

    return build


def directly(trained: TrainedModel, folder: Path, rope: str, length: int, tokens: int) -> torch.Tensor:
    """Losses `[N, T]` of a model that is built with the stretched RoPE, from the files alone, one window at a time."""
    model = Decoder(extend_rope(trained.trial.model, rope, TRAINED, length))
    load_weights(folder, model)
    windows = torch.from_numpy(trained.dataset.held_out(tokens, length).windows)
    with torch.no_grad():
        return torch.stack([F.cross_entropy(model(w[None, :-1])[0].double(), w[1:], reduction="none") for w in windows])


def test_the_loss_is_that_of_a_model_built_with_that_rope(trained: Any, tmp_path: Path) -> None:
    """Whatever was asked before: stretched when asked for, and plain again afterwards; each octave has its mean."""
    # Large weights, so that it looks somewhere, and a base at which each channel turns within a sequence.
    model, _ = trained(model={"layers": 2, "init_std": 0.3, "rope_base": 20})
    assert model.step == 20
    found = {}
    for rope, length in (("yarn", 64), ("plain", 64), ("ntk", 64), ("base-200", 8), ("yarn", 16), ("plain", 8)):
        answer = model.evaluate(EvalSpec("length", length, rope, 300))
        losses = directly(model, tmp_path / "trial 0" / "checkpoints", rope, length, 300)
        assert losses.shape == (300 // length, length)
        stem = f"length/{length:06d}/{rope}"
        loss = losses.mean().item()
        per_byte = loss / math.log(2) / model.dataset.bytes_per_token
        octaves = [(1, 1), (2, 3), (4, 7 if length > 8 else 8), (8, 15 if length > 16 else 16), (16, 31), (32, 64)]
        expected = {f"{stem}/loss": loss, f"{stem}/bits_per_byte": per_byte} | {
            f"{stem}/position/{first:05d}-{last:05d}": losses[:, first - 1 : last].mean().item()
            for first, last in octaves
            if last <= length
        }
        assert answer == pytest.approx(expected, rel=1e-6)
        found[rope, length] = loss
    assert len({round(found[rope, 64], 3) for rope in ("plain", "ntk", "yarn")}) == 3  # RoPE matters


def test_at_the_trained_length_it_is_the_trials_own_loss(trained: Any) -> None:
    """Training and evaluation speak of one number, to the last bit, when they look at the same tokens."""
    model, outcome = trained()
    answer = model.evaluate(EvalSpec("length", TRAINED, "plain", 256))
    for name in ("loss", "bits_per_byte"):
        assert answer[f"length/000016/plain/{name}"] == outcome.metrics[f"validation/{name}"]


def test_all_trials_read_the_same_examples(trained: Any) -> None:
    """Retrieval is paired: another seed and another gate are asked the very same, and answer otherwise."""
    question = EvalSpec("retrieval", 160, "ntk", 6, "needle")
    seen, answers = [], []
    for seed, gate in ((0, "none"), (1, "sdpa")):
        model, _ = trained(seed, model={"gate": {"position": gate}})
        tokens: list[torch.Tensor] = []
        model.model.register_forward_pre_hook(lambda module, inputs, tokens=tokens: tokens.append(inputs[0].clone()))
        answers.append(model.evaluate(question))
        seen.append(tokens)
    assert len(seen[0]) == len(seen[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    assert sum(len(batch) for batch in seen[0]) == 2 * 6  # with its own context, and with another's
    for answer in answers:
        assert set(answer) == {f"{question.stem}/{name}" for name in ("accuracy", "loss", "gain", "n")}
        assert answer[f"{question.stem}/n"] == 6
    assert answers[0][f"{question.stem}/loss"] != answers[1][f"{question.stem}/loss"]


def test_a_task_is_asked_at_the_trained_length(trained: Any, tmp_path: Path) -> None:
    """A task of one's own, in a folder that the question names, gives metrics under its name."""
    (tmp_path / "documents.jsonl").write_text('{"text": "def heap(a, b): return a"}\n{"text": "import queue"}\n')
    task = f"""\
        task: little
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {tmp_path / "documents.jsonl"}}}}}
        test_split: test
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{{{text}}}}"
        metric_list: [{{metric: bits_per_byte}}]
        """
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "little.yaml").write_text(task)
    pytest.importorskip("lm_eval")
    model, _ = trained()
    [limited, whole] = [
        model.evaluate(EvalSpec("tasks", TRAINED, "plain", amount, "little", str(tmp_path / "tasks")))
        for amount in (1, 0)
    ]
    assert (limited["tasks/little/samples"], whole["tasks/little/samples"]) == (1, 2)
    assert 0 < whole["tasks/little/bits_per_byte"] < 16
    assert limited["tasks/little/bits_per_byte"] != whole["tasks/little/bits_per_byte"]


def test_what_cannot_be_asked_is_refused_before_any_model_is_loaded(tiny: Tiny, dataset: Dataset) -> None:
    """Too long for the text, too short for the task, YaRN on YaRN, no such task: each with its reason."""
    plain, yarn = tiny(), tiny(model={"yarn_factor": 2.0, "yarn_length": 16})
    held = len(dataset.validation)
    assert refusal(EvalSpec("length", held - 1), plain, dataset) == ""
    assert "too few for a sequence of" in refusal(EvalSpec("length", held), plain, dataset)
    assert refusal(EvalSpec("retrieval", 128, "plain", 4, "needle"), plain, dataset) == ""
    short = refusal(EvalSpec("retrieval", 16, "plain", 4, "needle"), plain, dataset)
    assert re.fullmatch(r"length 16 is too short for task 'needle': it needs at least \d+ tokens", short)
    assert "trained with YaRN" in refusal(EvalSpec("length", 32, "yarn"), yarn, dataset)
    assert refusal(EvalSpec("length", 16, "yarn"), yarn, dataset) == ""
    assert "expected one of needle" in refusal(EvalSpec("retrieval", 128, "plain", 4, "hay"), plain, dataset)


def test_what_cannot_be_answered_raises(trained: Any, tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """Whoever asks all the same gets an error, not a number; a trial without a checkpoint has no model."""
    model, _ = trained(model={"yarn_factor": 2.0, "yarn_length": 8})
    with pytest.raises(DataError, match="too few for a sequence of 100000"):
        model.evaluate(EvalSpec("length", 100_000))
    with pytest.raises(ValueError, match="too short for task 'needle'"):
        model.evaluate(EvalSpec("retrieval", 16, "plain", 4, "needle"))
    with pytest.raises(ValueError, match="trained with YaRN"):
        model.evaluate(EvalSpec("length", 32, "yarn"))
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        TrainedModel(tiny(), tmp_path / "nowhere", dataset)


@pytest.fixture
def model(tiny: Tiny) -> Decoder:
    """Three layers, four query heads on two key heads, weights large enough to look at something."""
    sizes = {"layers": 3, "query_heads": 4, "kv_heads": 2, "init_std": 0.3, "vocab_size": 257}
    decoder = Decoder(tiny(model={**sizes, "gate": {"position": "key"}}).model)
    initialize(decoder, 0)
    return decoder.eval()


def test_attention_is_what_the_model_computed_with(model: Decoder) -> None:
    """Weights equal those of the queries and keys that went in, and with the values give what came out."""
    tokens = list(b"def heap(a, b):")
    taken: dict[int, tuple[torch.Tensor, ...]] = {}

    def take(layer: int) -> Any:
        return lambda module, inputs, output: taken.update({layer: (*inputs[:3], output)})

    handles = [block.attention.sdpa.register_forward_hook(take(layer)) for layer, block in enumerate(model.layers)]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    found = attention_of_text(model, tokens, [2, 0])
    assert set(found) == {0, 2}
    for layer, weights in found.items():
        query, key, value, output = taken[layer]
        assert weights.shape == (4, len(tokens), len(tokens))
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, attention_weights(query, key)[0])
        values = value[0].repeat_interleave(2, 1).transpose(0, 1)  # [Hq, T, D]
        torch.testing.assert_close((weights @ values).transpose(0, 1), output[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, len(tokens)))
        assert not weights.triu(1).any()
        assert (weights.tril() >= 0).all()
    assert not torch.equal(found[0], found[2])


def test_looking_leaves_no_trace(model: Decoder) -> None:
    """A model can be looked at again and again, and computes as before; a later token changes no earlier row."""
    tokens = list(b"import queue")
    before = model(torch.tensor([tokens]))
    first, shorter = (attention_of_text(model, given, [1])[1] for given in (tokens, tokens[:7]))
    torch.testing.assert_close(first[:, :7, :7], shorter)
    with pytest.raises(IndexError):
        attention_of_text(model, tokens, [0, 3])
    assert all(not module._forward_hooks for module in model.modules())
    assert torch.equal(model(torch.tensor([tokens])), before)
    assert attention_of_text(model, tokens, []) == {}
