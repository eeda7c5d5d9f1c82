"""The history of the last steps: what it holds, that training does not feel it, and when it is written."""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gatelab.results.analyses.divergence import divergence_traces
from gatelab.results.store.journal import Journal, read_journal
from gatelab.thresholds import HISTORY_STEPS
from gatelab.training import loop
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.divergence import TRACED_SPIKES, StepHistory
from gatelab.training.loop import train
from gatelab.training.preparation import prepare
from gatelab.training.recorder import NullRecorder
from gatelab.training.train_state import TrainState

CPU = torch.device("cpu")
Tiny = Callable[..., TrialConfig]
Column = dict[int, float]


class Rings:
    """A recorder that keeps the losses and what rings hold: found -> (layer, name) -> step -> value."""

    def __init__(self) -> None:
        self.losses: Column = {}
        self.rings: dict[int, dict[tuple[int, str], Column]] = {}

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        for name, value in values.items():
            if name == "train/loss":
                self.losses[step] = value
            if name.startswith("autopsy/"):
                assert layer is not None
                stem, _, before = name.removeprefix("autopsy/").rpartition("/")
                column = self.rings.setdefault(step, {}).setdefault((layer, stem), {})
                assert column.setdefault(step - int(before), value) is value  # once

    def flush(self) -> None:
        pass

    def commit(self) -> None:
        pass

    def table(self) -> Any:
        """What was recorded, as `metrics_from_journals` reads it."""
        import pyarrow as pa

        rows = [(step, None, "train/loss", value) for step, value in self.losses.items()]
        rows += [
            (found, layer, f"autopsy/{name}/{found - step:03d}", value)
            for found, ring in self.rings.items()
            for (layer, name), column in ring.items()
            for step, value in column.items()
        ]
        schema = {"step": pa.int64(), "layer": pa.int16(), "name": pa.utf8(), "value": pa.float64()}
        table = pa.table(dict(zip(schema, zip(*rows, strict=True), strict=True)), pa.schema(schema.items()))
        for name, value in (("trial", "id"), ("variant", "v"), ("seed", 0)):
            table = table.append_column(name, pa.array([value] * len(table)))
        return table


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> Dataset:
    return prepare(TrialConfig(data={"source": str(corpus)}).data, tmp_path / "data")


def batch(trial: TrialConfig) -> torch.Tensor:
    training = trial.training
    shape = training.batch_size, training.sequence_length + 1
    return torch.randint(0, 257, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_measurements_are_what_they_are_called(tiny: Tiny, accumulation: int) -> None:
    """Each against the same model's own tensors, of one step, over all parts of its batch."""
    trial = tiny(
        model={"layers": 2, "init_std": 0.3, "gate": {"position": "value+sdpa", "granularity": "headwise"}},
        training={"accumulation": accumulation, "optimizer": {"clip_norm": 1e-3}},
    )
    tested, other = TrainState(trial, CPU), TrainState(trial, CPU)
    history, seen = StepHistory(tested.model), Rings()
    windows = batch(trial)
    tested.step(0, windows)
    history.take(1, tested.gradient_norms)
    history.write(seen, 1)

    expected: dict[tuple[int, str], float] = {}
    parts: dict[tuple[int, str], list[float]] = {}
    for index, block in enumerate(other.model.layers):
        attention = block.attention

        def keep(name: str, index: int = index) -> Callable[..., None]:
            return lambda module, inputs, out: parts.setdefault((index, name), []).append(out.abs().max().item())

        attention.register_forward_hook(keep("activation/attention_output"))
        block.ffn.register_forward_hook(keep("activation/ffn_output"))
        block.register_forward_hook(keep("activation/ffn_residual"))

        def bound(module: Any, inputs: Any, out: Any, index: int = index) -> None:
            lengths = [tensor[0].norm(dim=-1).max().item() for tensor in inputs[:2]]
            parts.setdefault((index, "length/query"), []).append(lengths[0])
            parts.setdefault((index, "length/key"), []).append(lengths[1])
            logits = torch.einsum("qhd,khd->hqk", inputs[0][0], inputs[1][0].repeat_interleave(2, 1)) / math.sqrt(8)
            assert logits.abs().max() <= lengths[0] * lengths[1] / math.sqrt(8)

        attention.sdpa.register_forward_hook(bound)

        def gates(module: Any, inputs: Any, out: Any, index: int = index) -> None:
            for position in ("value", "sdpa"):
                score = out[f"gate_{position}"][0].sigmoid().mean().item()
                parts.setdefault((index, f"gate/{position}/mean"), []).append(score)

        attention.input.register_forward_hook(gates)
    for part in windows.chunk(accumulation):
        (loop_loss(other.model, part) / accumulation).backward()
    for index, block in enumerate(other.model.layers):
        squares = [p.grad.square().sum() for p in block.parameters() if p.grad is not None]
        expected[index, "gradient_norm"] = torch.stack(squares).sum().sqrt().item()
        query, key = (max(parts.pop((index, f"length/{name}"))) for name in ("query", "key"))
        expected[index, "attention/logit_bound"] = query * key / math.sqrt(8)
    for key_, values in parts.items():
        assert len(values) == accumulation
        expected[key_] = sum(values) / accumulation if key_[1].startswith("gate/") else max(values)
    assert {key_: column[1] for key_, column in seen.rings[1].items()} == pytest.approx(expected, rel=1e-5)


def loop_loss(model: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    logits = model(windows[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_is_bit_identical_without_the_ring(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int, precision: str
) -> None:
    """To be looked at changes nothing, a gate's bias and the norms that clipping takes included."""
    gate = {"position": "sdpa", "bias": 0.5}
    trial = tiny(model={"gate": gate}, training={"accumulation": accumulation, "precision": precision})
    ends = []
    for name in ("with", "without"):
        train(trial, NullRecorder(), tmp_path / name, "cpu", dataset=dataset)
        end = safetensors.torch.load_file(tmp_path / name / "checkpoints/step-000000020.safetensors")
        assert ("history" in end) == (name == "with")
        end.pop("history", None)
        ends.append(safetensors.torch.save(end))
        monkeypatch.setattr(loop, "StepHistory", lambda model: None)
    assert ends[0] == ends[1]


def test_the_total_norm_is_the_one_that_torch_takes(tiny: Tiny) -> None:
    """Clipping as before: the norm of all gradients, to the bit."""
    state = TrainState(tiny(training={"optimizer": {"clip_norm": None}}), CPU)
    _, norm = state.step(0, batch(tiny()))
    gradients = [p.grad for p in state.model.parameters()]
    assert torch.equal(norm, torch.nn.utils.get_total_norm(gradients))
    assert state.gradient_norms.tolist() == [gradient.norm().item() for gradient in gradients]


def test_the_ring_holds_the_last_steps_and_writes_each_once(tiny: Tiny) -> None:
    """A second event writes what is new; what is older than the history is gone."""
    state = TrainState(tiny(), CPU)
    history, seen = StepHistory(state.model), Rings()
    windows = batch(tiny())
    state.model.eval()
    state.model(windows)  # an evaluation is no step
    state.model.train()
    state.step(0, windows)
    history.take(1, state.gradient_norms)
    row = history._rows[1].clone()
    for step in range(2, HISTORY_STEPS + 11):
        history._parts = [row[: -len(state.gradient_norms)]]
        history.take(step, torch.full_like(state.gradient_norms, step))
        if step in (40, HISTORY_STEPS + 10):
            history.write(seen, step)
    own = {found: sorted(columns[0, "gradient_norm"]) for found, columns in seen.rings.items()}
    assert own == {40: list(range(1, 41)), HISTORY_STEPS + 10: list(range(41, HISTORY_STEPS + 11))}
    root = math.sqrt(sum(name.startswith("layers.0.") for name, _ in state.model.named_parameters()))
    assert seen.rings[HISTORY_STEPS + 10][0, "gradient_norm"][200] == pytest.approx(200 * root)


def late(tiny: Tiny, layers: int = 3, **training: Any) -> TrialConfig:
    """A trial of 120 steps, ten between looks, whose gradients are not clipped."""
    optimizer = {"learning_rate": training.pop("learning_rate", 3e-3), "clip_norm": None}
    given = {"tokens": 120 * 64, "log_every": 10, "optimizer": optimizer, **training}
    return tiny(model={"layers": layers}, training=given, evaluation={"points": 1, "tokens": 64})


def test_a_rate_that_is_too_high_leaves_an_autopsy(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """As the rate is warmed up the model breaks: the last row is of the last step, and layers left before the loss."""
    rings = Rings()
    trial = late(tiny, learning_rate=30, tokens=200 * 64, schedule={"warmup": 800})
    outcome = train(trial, rings, tmp_path, "cpu", dataset=dataset)
    assert outcome.status == "diverged"
    assert outcome.step >= 40
    assert max(rings.rings) == outcome.step
    assert {step for ring in rings.rings.values() for step in ring[0, "gradient_norm"]} == {*range(1, outcome.step + 1)}
    assert 1 < len(rings.rings) <= 1 + TRACED_SPIKES  # at spikes on the way, too
    row = {"trial": "id", "variant": "v", "seed": 0, "outcome": outcome.status, "step": outcome.step}
    found = list(divergence_traces([row], rings.table()))[-1]
    assert found.diverged
    assert found.exits
    assert found.exits[0].step < (found.loss_step or found.at)
    assert f"layer {found.exits[0].layer}'s {found.exits[0].name}" in found.sentence


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_the_layer_that_was_broken_is_found(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """From step 61 on one layer's feed-forward output doubles with every step, at step 91 the loss is lost."""

    class Sabotaged(TrainState):
        def step(self, step: int, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                if step >= 60:
                    self.model.layers[broken].ffn.down.weight.mul_(2.0)
                if step == 90:
                    self.model.head.weight.fill_(math.nan)
            return super().step(step, windows)

    monkeypatch.setattr(loop, "TrainState", Sabotaged)
    rings = Rings()
    outcome = train(late(tiny), rings, tmp_path, "cpu", dataset=dataset)
    row = {"trial": "id", "variant": "v", "seed": 0, "outcome": outcome.status, "step": outcome.step}
    found = list(divergence_traces([row], rings.table()))[-1]
    assert (found.diverged, found.found, found.at, found.loss_step, found.steps) == (True, 100, 91, 91, 100)
    first = found.exits[0]
    assert (first.layer, first.name) == (broken, "activation/ffn_output")
    assert 61 <= first.step <= 66
    assert found.sentence.startswith(
        f"diverged at step 91: first out of band was layer {broken}'s activation/ffn_output at step {first.step} ("
    )
    assert found.sentence.endswith(f", {91 - first.step} steps before the loss")


@pytest.mark.parametrize(
    ("ends", "killed"),
    [({4}, False), ({30}, False), ({*range(1, 40)}, False), ({33, 37}, True)],
    ids=["stopped early", "stopped late", "stopped at every look", "killed twice"],
)
def test_an_interrupted_trial_has_the_same_trace(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, ends: set[int], killed: bool
) -> None:
    """Which layer went first does not depend on when training was interrupted: the last steps are in the checkpoint."""
    trial = late(tiny, 2, learning_rate=30, tokens=200 * 64, schedule={"warmup": 800}, log_every=2)

    def attempt(folder: Path, look: Callable[[], bool]) -> str:
        class Watched(Journal):
            def flush(self) -> None:
                super().flush()
                if killed and look():
                    raise KeyboardInterrupt

        stops = (lambda: False) if killed else look
        with contextlib.suppress(KeyboardInterrupt), Watched(folder / "journal", flush_seconds=0.0) as journal:
            seconds = 0.1 if killed else 1e6
            given: dict[str, Any] = {"dataset": dataset, "checkpoint_seconds": seconds, "should_stop": stops}
            return train(trial, journal, folder, "cpu", **given).status
        return "killed"

    assert attempt(tmp_path / "calm", lambda: False) == "diverged"
    looks, status, attempts = iter(range(1, 1000)), "", 0
    while status != "diverged":
        attempts += 1
        status = attempt(tmp_path, lambda: next(looks) in ends)
    assert attempts > 1
    found = []
    for folder in (tmp_path, tmp_path / "calm"):
        rows = read_journal(folder / "journal").drop_columns("time").to_pylist()
        found.append(sorted(repr(row) for row in rows if "per_second" not in row["name"]))
    assert found[0] == found[1]
    assert sum("autopsy/" in row for row in found[0]) > 100


def test_values_that_are_not_finite_are_kept_by_layer(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """What overflows in one layer is not finite there and above it, and finite below."""
    trial = tiny(model={"layers": 2})
    state, seen = TrainState(trial, CPU), Rings()
    history = StepHistory(state.model)
    with torch.no_grad():
        state.model.layers[1].ffn.down.weight[0, 0] = math.inf
    state.step(0, batch(trial))
    history.take(1, state.gradient_norms)
    history.write(seen, 1)
    finite = {key: math.isfinite(column[1]) for key, column in seen.rings[1].items()}
    assert not finite[1, "activation/ffn_output"]
    assert not finite[1, "activation/ffn_residual"]
    assert finite[0, "activation/ffn_residual"]
    assert finite[1, "activation/attention_output"]
    assert finite[0, "attention/logit_bound"]


def test_there_is_no_ring_without_diagnostics(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """diagnostic_tokens 0 turns all of it off; a calm trial writes nothing."""
    for tokens in (0, 64):
        rings = Rings()
        broken = tokens == 0
        trial = late(tiny, 1, **({"learning_rate": 1e37} if broken else {"tokens": 640}))
        trial = trial.model_copy(
            update={"evaluation": trial.evaluation.model_copy(update={"diagnostic_tokens": tokens})}
        )
        outcome = train(trial, rings, tmp_path / str(tokens), "cpu", dataset=dataset)
        assert outcome.status == ("diverged" if broken else "finished")
        assert not rings.rings
