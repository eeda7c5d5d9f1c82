import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

from gatelab.errors import DataError
from gatelab.models.decoder import Decoder, initialize
from gatelab.results.store.journal import Journal, read_journal
from gatelab.status import Status
from gatelab.training import evaluator
from gatelab.training.config import TrialConfig
from gatelab.training.data import Dataset
from gatelab.training.evaluation import language_model_loss
from gatelab.training.loop import Outcome, fork_checkpoint, train
from gatelab.training.preparation import prepare
from gatelab.training.recorder import NullRecorder

Tiny = Callable[..., TrialConfig]


class Memory:
    """A recorder that remembers, and can fail at its n-th call of one kind."""

    def __init__(self, fails_at: tuple[str, int] | None = None, folder: Path | None = None) -> None:
        self.values: dict[tuple[int, str, int | None], list[float]] = {}
        self.calls: list[tuple[str, int | None, int]] = []  # kind, step, checkpoints on disk at that moment
        self.fails_at, self.folder = fails_at, folder

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        self._called("record", step)
        for name, value in values.items():
            self.values.setdefault((step, name, layer), []).append(value)

    def flush(self) -> None:
        self._called("flush")

    def commit(self) -> None:
        self._called("commit")

    def _called(self, kind: str, step: int | None = None) -> None:
        newest = sorted(self.folder.glob("checkpoints/*.safetensors"))[-1:] if self.folder else []
        self.calls.append((kind, step, int(newest[0].stem[5:]) if newest else 0))
        if self.fails_at and self.fails_at == (kind, sum(call[0] == kind for call in self.calls)):
            raise KeyboardInterrupt

    def series(self, name: str) -> dict[int, float]:
        """The values of one metric by step, each recorded once."""
        assert all(len(values) == 1 for (_, key, _), values in self.values.items() if key == name)
        return {step: values[0] for (step, key, _), values in self.values.items() if key == name}

    def reproducible(self) -> dict[tuple[int, str, int | None], list[float]]:
        """What does not depend on time."""
        return {key: values for key, values in self.values.items() if "per_second" not in key[1]}


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> Dataset:
    return prepare(TrialConfig(data={"source": str(corpus)}).data, tmp_path / "data")


def final_checkpoint(workdir: Path, step: int = 20) -> bytes:
    """Weights, optimiser state and the history of steps at the end, as bytes."""
    tensors = safetensors.torch.load_file(workdir / "checkpoints" / f"step-{step:09d}.safetensors")
    return safetensors.torch.save(tensors)


@pytest.fixture
def uninterrupted(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> tuple[Memory, Outcome, bytes]:
    """What a trial records, its outcome and its final state, when nothing goes wrong."""
    memory = Memory()
    outcome = train(tiny(), memory, tmp_path / "reference", "cpu", dataset=dataset)
    return memory, outcome, final_checkpoint(tmp_path / "reference")


def assert_same(
    memories: list[Memory], outcome: Outcome, state: bytes, reference: tuple[Memory, Outcome, bytes]
) -> None:
    """Attempts together recorded what the uninterrupted trial did; what was recorded twice was equal."""
    merged: dict[Any, set[float]] = {}
    for memory in memories:
        for key, values in memory.reproducible().items():
            merged.setdefault(key, set()).update(values)
    assert merged == {key: set(values) for key, values in reference[0].reproducible().items()}
    names = ("validation/loss", "validation/bits_per_byte", "train/final_loss")
    metrics = [[one.metrics[name] for name in names] for one in (outcome, reference[1])]
    assert (outcome.status, outcome.step) == ("finished", 20)
    assert metrics[0] == metrics[1]
    assert state == reference[2]


def test_training_learns_real_text(tiny: Tiny, tmp_path: Path) -> None:
    """The whole chain works: from guessing (ln 257) the model comes to know the text, and every step is recorded."""
    memory = Memory()
    outcome = train(tiny(training={"tokens": 100 * 64}), memory, tmp_path, "cpu")
    losses, held = memory.series("train/loss"), memory.series("validation/loss")
    assert (outcome.status, outcome.step, outcome.reason) == ("finished", 100, "")
    assert list(losses) == list(memory.series("train/gradient_norm")) == list(range(1, 101))
    assert losses[1] == pytest.approx(math.log(257), rel=0.02)
    assert held[100] < held[34] < 0.9 * math.log(257)
    assert held[100] < 3.4
    assert outcome.metrics["validation/loss"] == held[100]
    assert outcome.metrics["validation/bits_per_byte"] == memory.series("validation/bits_per_byte")[100]
    assert outcome.metrics["train/final_loss"] == losses[100]  # the only step since the look at 99
    assert list((tmp_path / "data").glob("*/manifest.json"))


def test_step_one_is_the_first_batch_on_the_initial_weights(
    tiny: Tiny, dataset: Dataset, uninterrupted: tuple[Memory, Outcome, bytes]
) -> None:
    """Steps are counted from one, and nothing happens before the first of them is measured."""
    model = Decoder(tiny().model)
    initialize(model, 0)
    expected = language_model_loss(model, torch.from_numpy(dataset.batch(0, 0, 4, 16))).item()
    assert uninterrupted[0].series("train/loss")[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stops", [{1}, {2, 3}, set(range(1, 100))], ids=["first-look", "twice", "every-look"])
def test_a_stopped_trial_goes_on_bit_for_bit(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, uninterrupted: tuple[Memory, Outcome, bytes], stops: set[int]
) -> None:
    """Interrupting a study, however often, changes no number in it."""
    looks, memories, statuses = 0, [], []

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return looks in stops

    while not statuses or statuses[-1] == "stopped":
        memories.append(Memory())
        outcome = train(tiny(), memories[-1], tmp_path, "cpu", dataset=dataset, should_stop=should_stop)
        statuses.append(outcome.status)
    assert len(memories) == min(len(stops), 8) + 1  # looks at 3 6 7 9 12 14 15 18 and the last, where none is asked
    assert_same(memories, outcome, final_checkpoint(tmp_path), uninterrupted)
    assert all(len(values) == 1 for memory in memories for values in memory.values.values())
    assert sum(len(memory.series("train/loss")) for memory in memories) == 20  # no step was done twice


@pytest.mark.parametrize(
    ("kind", "call", "seconds"),
    [
        ("record", 1, 0),
        ("record", 13, 0),
        ("record", 13, 3600),
        ("flush", 3, 0),
        ("flush", 3, 3600),
        ("commit", 1, 0),
        ("commit", 4, 0),
        ("commit", 1, 3600),
    ],
    ids=lambda value: {0: "checkpoints", 3600: "no-checkpoints"}.get(value, str(value)),
)
def test_a_crashed_trial_goes_on_bit_for_bit(
    tiny: Tiny,
    dataset: Dataset,
    tmp_path: Path,
    uninterrupted: tuple[Memory, Outcome, bytes],
    kind: str,
    call: int,
    seconds: float,
) -> None:
    """Wherever a worker dies, the rerun ends with the weights and the curves of a trial that never died."""
    crashed, again = Memory((kind, call)), Memory()
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), crashed, tmp_path, "cpu", dataset=dataset, checkpoint_seconds=seconds)
    outcome = train(tiny(), again, tmp_path, "cpu", dataset=dataset, checkpoint_seconds=seconds)
    assert_same([crashed, again], outcome, final_checkpoint(tmp_path), uninterrupted)
    # Looks are at 3, 6, 7 and 9: the third flush follows the checkpoint of 6, the fourth commit that of 7.
    first = {("flush", 3, 0): 7, ("commit", 4, 0): 8, ("commit", 1, 3600): 1}.get((kind, call, seconds))
    assert first is None or min(again.series("train/loss")) == first


@pytest.mark.parametrize("survived", [4, 5, 6, 7])
def test_a_trial_survives_a_full_disk_and_a_damaged_checkpoint(
    tiny: Tiny,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[Memory, Outcome, bytes],
    survived: int,
) -> None:
    """A checkpoint that could not be written, then one that rotted on disk, cost steps and not the result."""
    fsync, calls, memories = os.fsync, [], [Memory(), Memory()]

    def fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > survived:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", fails)
        train(tiny(), memories[0], tmp_path, "cpu", dataset=dataset, checkpoint_seconds=0)
    newest = max((tmp_path / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    outcome = train(tiny(), memories[1], tmp_path, "cpu", dataset=dataset)
    assert 1 < min(memories[1].series("train/loss")) <= 10
    assert_same(memories, outcome, final_checkpoint(tmp_path), uninterrupted)


def recorded(folder: Path) -> list[tuple[Any, ...]]:
    """What a journal holds that does not depend on time."""
    rows = read_journal(folder).drop_columns("time").to_pylist()
    return [tuple(row.values()) for row in rows if "per_second" not in row["name"]]


@pytest.mark.parametrize("which", [1, 3], ids=["first", "last"])
def test_an_evaluation_that_fails_once_is_in_the_journal_of_the_next_attempt(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Out of memory in an evaluation, or Ctrl-C: the curve of the trial has every point, whatever was written then."""
    with Journal(tmp_path / "calm" / "journal") as journal:
        expected = train(tiny(), journal, tmp_path / "calm", "cpu", dataset=dataset)
    token_losses, calls = evaluator.token_losses, []

    def fails_once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == which:
            raise RuntimeError("CUDA out of memory")
        return token_losses(*args)

    monkeypatch.setattr(evaluator, "token_losses", fails_once)
    with pytest.raises(RuntimeError, match="out of memory"), Journal(tmp_path / "journal") as journal:
        train(tiny(), journal, tmp_path, "cpu", dataset=dataset)
    with Journal(tmp_path / "journal") as journal:
        outcome = train(tiny(), journal, tmp_path, "cpu", dataset=dataset)
    assert recorded(tmp_path / "journal") == recorded(tmp_path / "calm" / "journal")
    assert outcome.metrics["validation/loss"] == expected.metrics["validation/loss"]


def test_a_finished_trial_is_not_trained_again(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, uninterrupted: tuple[Memory, Outcome, bytes]
) -> None:
    """Asking again gives the same outcome and records nothing."""
    memory = Memory()
    outcome = train(tiny(), memory, tmp_path / "reference", "cpu", dataset=dataset)
    assert outcome == uninterrupted[1]
    assert memory.values == {}


def test_a_journal_is_committed_before_a_checkpoint_appears(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """A checkpoint is never ahead of the record of how it was reached: what it skips can no longer be recorded."""
    memory = Memory(folder=tmp_path)
    train(tiny(), memory, tmp_path, "cpu", dataset=dataset, checkpoint_seconds=0)
    memory.record(21, {})  # sees what the last look left on disk
    recorded, committed, saved = 0, 0, 0
    for (kind, step, _), (_, _, checkpoint) in zip(memory.calls, memory.calls[1:], strict=False):
        recorded = max(recorded, step or 0)
        if kind == "commit":
            committed = recorded
        if checkpoint != saved:
            assert kind == "commit"
            assert checkpoint == committed > saved
            saved = checkpoint
    assert saved == 20
    # Every look ends in a flush, after all that it recorded, and is then saved.
    kinds = [kind for kind, _, _ in memory.calls[:-1]]
    assert kinds.count("flush") == kinds.count("commit") == 9
    assert all(kinds[i - 1] == "record" and kinds[i + 1] == "commit" for i, k in enumerate(kinds) if k == "flush")


@pytest.mark.parametrize(
    ("steps", "points", "expected"),
    [
        (20, 3, [7, 14, 20]),
        (20, 1, [20]),
        (20, 4, [5, 10, 15, 20]),
        (5, 10, [1, 2, 3, 4, 5]),
        (7, 7, [1, 2, 3, 4, 5, 6, 7]),
        (1, 3, [1]),
    ],
    ids=str,
)
def test_evaluations_are_evenly_spaced_and_include_the_last_step(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, steps: int, points: int, expected: list[int]
) -> None:
    """Every trial is judged at its end, and curves of equal trials have equal steps."""
    memory = Memory()
    train(
        tiny(training={"tokens": steps * 64, "log_every": 100}, evaluation={"points": points}),
        memory,
        tmp_path,
        "cpu",
        dataset=dataset,
    )
    for name in ("validation/loss", "validation/bits_per_byte", "gradient_norm"):
        assert list(memory.series(name)) == expected
    assert [key[2] for key in memory.values if key[1] == "gradient_norm"] == [0] * len(expected)
    assert list(memory.series("train/loss")) == list(range(1, steps + 1))


class Watched(Dataset):
    """A dataset that remembers the batches it gave."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: list[bytes] = []

    def batch(self, seed: int, step: int, batch_size: int, sequence_length: int) -> npt.NDArray[np.int64]:
        batch = super().batch(seed, step, batch_size, sequence_length)
        self.given.append(batch.tobytes())
        return batch


def test_variants_of_one_seed_see_the_same_batches(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """Differences between variants are paired: the text is the same, step by step; another seed reads another order."""
    given = []
    for index, trial in enumerate(
        [
            tiny(),
            tiny(model={"layers": 2, "gate": {"position": "sdpa"}}, training={"optimizer": {"learning_rate": 1e-3}}),
            tiny(seed=1),
        ]
    ):
        watched = Watched(dataset.folder)
        train(trial, NullRecorder(), tmp_path / str(index), "cpu", dataset=watched)
        given.append(watched.given)
    assert len(given[0]) == 20
    assert given[0] == given[1]
    assert not set(given[0]) & set(given[2])


def test_a_loss_that_is_not_finite_is_an_outcome(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """A learning rate that destroys the model is a data point with a reason, on disk, and not a crash."""
    memory = Memory()
    trial = tiny(training={"optimizer": {"learning_rate": 1e37}})
    outcome = train(trial, memory, tmp_path, "cpu", dataset=dataset)
    losses = memory.series("train/loss")
    first = next(step for step, loss in losses.items() if not math.isfinite(loss))
    assert (outcome.status, outcome.step) == ("diverged", 3)
    assert f"{losses[first]} at step {first}" in outcome.reason
    assert memory.calls[-1][0] == "commit"
    assert not (tmp_path / "checkpoints").exists()  # a rerun would not start from ruins


def test_a_loss_beyond_its_bound_is_an_outcome(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """`loss_bound` is a multiple of guessing: a model that got lost is stopped, one that merely learns badly is not."""

    def run(bound: float) -> tuple[Outcome, Memory]:
        memory = Memory()
        training = {"optimizer": {"learning_rate": 1.0}, "loss_bound": bound}
        return train(tiny(training=training), memory, tmp_path / str(bound), "cpu", dataset=dataset), memory

    outcome, memory = run(1000)
    assert outcome.status == "finished"
    losses = list(memory.series("train/loss").values())
    worst = max((math.fsum(losses[i : i + 3]) / 3, i) for i in (0, 3))  # looks at steps 3 and 6
    assert run(worst[0] / math.log(257) * 0.999)[0].status == "diverged"
    bounded, memory = run(1.01)
    assert bounded.status == "diverged"
    assert bounded.step < 20
    assert "averaged" in bounded.reason
    assert f"{1.01 * math.log(257):.3g}" in bounded.reason


def test_a_model_ruined_by_its_last_step_has_diverged(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """No table holds a finished trial whose validation loss is not a number."""
    trial = tiny(
        training={"tokens": 64, "optimizer": {"learning_rate": 1e38}, "schedule": {"warmup": 0, "kind": "constant"}}
    )
    outcome = train(trial, NullRecorder(), tmp_path, "cpu", dataset=dataset)
    assert outcome.status == "diverged"


def test_bfloat16_trains_like_float32_on_a_cpu(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, uninterrupted: tuple[Memory, Outcome, bytes]
) -> None:
    """The precision of a GPU study can be tried on a laptop."""
    outcome = train(tiny(training={"precision": "bfloat16"}), NullRecorder(), tmp_path, "cpu", dataset=dataset)
    expected = uninterrupted[1].metrics["validation/loss"]
    assert outcome.metrics["validation/loss"] == pytest.approx(expected, rel=0.01)
    assert outcome.metrics["validation/loss"] != expected


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu", ""], ids=repr)
def test_a_device_that_is_not_there_is_an_error_that_names_it(tiny: Tiny, tmp_path: Path, device: str) -> None:
    """A missing GPU is told before any work, not after the data was prepared."""
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match=repr(device)):
        train(tiny(), NullRecorder(), tmp_path / "work", device)
    assert not (tmp_path / "work").exists()


def test_a_corpus_that_is_too_small_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    """Sequences longer than the text are told as such, with what there is."""
    with pytest.raises(DataError, match=r"too small for training\.sequence_length 100000"):
        train(tiny(training={"sequence_length": "100k"}), NullRecorder(), tmp_path, "cpu")


def test_training_that_goes_on_resumes_without_what_it_went_on_from(
    tiny: Tiny, dataset: Dataset, tmp_path: Path
) -> None:
    """It starts from the weights that it is given, and from its own checkpoint once it has one."""
    first, second = tiny(), tiny(training={"tokens": 40 * 64})
    train(first, NullRecorder(), tmp_path / "first", "cpu", dataset=dataset)
    start = tmp_path / "first" / "checkpoints"
    whole, parts = Memory(), [Memory(), Memory()]
    train(second, whole, tmp_path / "whole", "cpu", dataset=dataset, warm_start=start, warm_start_step=20)
    assert whole.series("train/loss")[1] < 5 < math.log(257)
    stops = iter([False, True])
    folder = tmp_path / "parts"
    given: dict[str, Any] = {"dataset": dataset, "warm_start": start, "warm_start_step": 20}
    train(second, parts[0], folder, "cpu", should_stop=lambda: next(stops, True), **given)
    for path in start.iterdir():
        path.unlink()
    train(second, parts[1], folder, "cpu", **given)
    assert parts[0].series("train/loss") | parts[1].series("train/loss") == whole.series("train/loss")
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        train(second, NullRecorder(), tmp_path / "another", "cpu", **given)


def test_a_branch_ends_as_if_it_had_been_trained_from_the_start(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """A shorter budget that leaves a longer trial before its own decay has the same weights and losses, bit for bit."""
    wsd = {"log_every": 3, "schedule": {"kind": "wsd", "warmup": 2, "decay": 0.4}}
    short, long = tiny(training=wsd), tiny(training=wsd | {"tokens": 40 * 64})
    start, branch = short.training.decay_start // 3 * 3, Memory()
    train(long, NullRecorder(), tmp_path / "long", dataset=dataset, fork_steps=[start])
    kept = fork_checkpoint(tmp_path / "long", start)
    whole = Memory()
    alone = train(short, whole, tmp_path / "alone", dataset=dataset)
    branched = train(short, branch, tmp_path / "branch", dataset=dataset, fork=kept)

    assert (alone.status, alone.step) == (branched.status, branched.step) == ("finished", 20)
    for name in alone.metrics.keys() - {"train/seconds", "train/mean_tokens_per_second", "memory/peak_bytes"}:
        assert branched.metrics[name] == alone.metrics[name], name
    losses = whole.series("train/loss")
    assert branch.series("train/loss") == {step: losses[step] for step in range(start + 1, 21)}
    ends = [
        safetensors.torch.load_file(tmp_path / name / "checkpoints/step-000000020.safetensors")
        for name in ("alone", "branch")
    ]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_fork_checkpoints_change_nothing(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """A trial that others leave is the trial that it would be without them."""
    with_, without = Memory(), Memory()
    train(tiny(), with_, tmp_path / "with", dataset=dataset, fork_steps=[6, 12])
    train(tiny(), without, tmp_path / "without", dataset=dataset)
    assert with_.reproducible() == without.reproducible()


def test_the_initial_loss_is_that_of_the_first_batch(tiny: Tiny, dataset: Dataset, tmp_path: Path) -> None:
    """Sensitivity to learning rates counts from it: the loss before any step, kept over a resumption."""
    recorder = Memory()
    outcome = train(tiny(), recorder, tmp_path, dataset=dataset)
    model = Decoder(tiny().model)
    initialize(model, 0)
    windows = torch.from_numpy(dataset.batch(0, 0, 4, 16))
    assert outcome.metrics["train/initial_loss"] == recorder.series("train/loss")[1]
    assert outcome.metrics["train/initial_loss"] == pytest.approx(language_model_loss(model, windows).item(), rel=1e-5)


def test_a_configuration_is_enough(
    tiny: Tiny, uninterrupted: tuple[Memory, Outcome, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook: no recorder, no folder, the same numbers, and nothing is left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    outcome = train(tiny())
    assert outcome.status is Status.FINISHED
    assert json.loads(json.dumps(asdict(outcome)))["status"] == "finished"
    assert outcome.metrics["validation/loss"] == uninterrupted[1].metrics["validation/loss"]
    assert list((tmp_path / "temporary").iterdir()) == []
