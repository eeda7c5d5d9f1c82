import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gatelab.training.checkpoint import (
    DamagedCheckpoint,
    is_written,
    keep_newest,
    load_weights,
    save_checkpoint,
    sweep,
    whole_checkpoints,
)
from gatelab.training.config import TrialConfig
from gatelab.training.train_state import TrainState

STATE = {"seconds": 0.1 + 0.2, "metrics": {"train/loss": 1 / 3, "validation/loss": float("inf")}}


def state_after(trial: TrialConfig, steps: int = 0) -> TrainState:
    """A model and optimiser that have done some steps."""
    made = TrainState(trial, torch.device("cpu"))
    for step in range(steps):
        made.step(step, batch(step))
    return made


def batch(step: int) -> torch.Tensor:
    return torch.randint(257, (4, 17), generator=torch.Generator().manual_seed(step))


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def load_checkpoint(folder: Path, state: TrainState) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest whole checkpoint; its step and what else it holds."""
    newest = next(whole_checkpoints(folder), None)
    if newest is None:
        return None
    newest.restore(state.model, state.optimizer)
    return newest.step, newest.state


def save(folder: Path, step: int, state: TrainState) -> None:
    save_checkpoint(folder, step, state.model, state.optimizer, STATE)


@pytest.mark.parametrize("gate", ["none", "value+sdpa"])
def test_everything_comes_back_bit_for_bit(tiny: Callable[..., TrialConfig], tmp_path: Path, gate: str) -> None:
    """After a restart, weights, moments and counters are the same, and so is every step that follows."""
    trial = tiny(model={"gate": {"position": gate}})
    original, other = state_after(trial, 3), state_after(trial.model_copy(update={"seed": 1}), 1)
    save(tmp_path, 3, original)
    assert load_checkpoint(tmp_path, other) == (3, STATE)
    for step in (3, 4):
        assert equal(weights(original), weights(other))
        results = [one.step(step, batch(step)) for one in (original, other)]
        assert torch.equal(torch.stack(results[0]), torch.stack(results[1]))
    assert equal(weights(original), weights(other))
    assert str(original.optimizer.state_dict()["param_groups"]) == str(other.optimizer.state_dict()["param_groups"])


def test_a_checkpoint_of_a_fresh_model_can_be_loaded(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """An optimiser without state yet is a state, too."""
    original, other = state_after(tiny()), state_after(tiny(seed=1))
    save(tmp_path, 0, original)
    assert load_checkpoint(tmp_path, other) == (0, STATE)
    for one in (original, other):
        one.step(0, batch(0))
    assert equal(weights(original), weights(other))


def save_older(folder: Path, step: int, state: TrainState) -> None:
    """As versions did whose checkpoints were two files."""
    save(folder, step, state)
    path = folder / f"step-{step:09d}.safetensors"
    content = safetensors.torch.save(safetensors.torch.load_file(path))
    path.write_bytes(content)
    said = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), "state": STATE}
    path.with_suffix(".json").write_text(json.dumps(said))


def flip(path: Path, place: float = 0.5, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= bit
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def of_json(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: change(path.with_suffix(".json"))


BOTH: dict[str, Callable[[Path], object]] = {
    "tensors-flipped": flip,
    "header-flipped": lambda path: flip(path, 0.001),
    "length-flipped": lambda path: flip(path, 0, 64),
    "last-flipped": lambda path: flip(path, 0.99999, 128),
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "exchanged": lambda path: path.write_bytes(path.with_name("step-000000001.safetensors").read_bytes()),
}
OLDER: dict[str, Callable[[Path], object]] = {
    "tensors-missing": Path.unlink,
    "json-cut": of_json(cut),
    "json-missing": of_json(Path.unlink),
    "json-empty": of_json(lambda path: path.write_bytes(b"")),
    "json-zeros": of_json(lambda path: path.write_bytes(bytes(100))),
    "json-not-utf8": of_json(lambda path: path.write_bytes(b"\xff\xfe\xfd")),
    "json-without-digest": of_json(lambda path: path.write_text('{"step": 2}')),
    "json-null": of_json(lambda path: path.write_text("null")),
    "json-list": of_json(lambda path: path.write_text("[]")),
    "other-digest": of_json(
        lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64}))
    ),
    "other-step": of_json(lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "step": 7}))),
    "other-state": of_json(lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "state": [1]}))),
}


@pytest.mark.parametrize(
    ("older", "damage"),
    [*((False, name) for name in BOTH), *((True, name) for name in BOTH | OLDER)],
    ids=lambda value: value if isinstance(value, str) else "two-files" if value else "one-file",
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tiny: Callable[..., TrialConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture, older: bool, damage: str
) -> None:
    """A pulled plug costs the steps since the checkpoint before, never the trial, and never in silence."""
    original, write = state_after(tiny(), 1), save_older if older else save
    write(tmp_path, 1, original)
    wanted = weights(original)
    original.step(1, batch(1))
    write(tmp_path, 2, original)
    (BOTH | OLDER)[damage](tmp_path / "step-000000002.safetensors")
    other = state_after(tiny(seed=1))
    assert load_checkpoint(tmp_path, other) == (1, STATE)
    assert equal(weights(other), wanted)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert ["step-000000002" in record.getMessage() for record in warnings] == [True]


def test_a_checkpoint_of_two_files_is_read_whole(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """A study of an older version goes on where it was, and its checkpoints give way to new ones."""
    original, other = state_after(tiny(), 3), state_after(tiny(seed=1))
    save_older(tmp_path, 3, original)
    assert is_written(tmp_path)
    assert load_checkpoint(tmp_path, other) == (3, STATE)
    assert equal(weights(original), weights(other))
    for step in (4, 5):
        save(tmp_path, step, other)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{s:09d}.safetensors" for s in (4, 5)]


def test_what_killed_saves_left_is_swept(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """Temporary files, and tensors that nothing commits, would keep a checkpoint's size for good."""
    one, folder = state_after(tiny(), 1), tmp_path / "checkpoints"
    save_older(folder, 1, one)
    save(folder, 2, one)
    (folder / ".step-000000003.safetensors.77.tmp").write_bytes(bytes(100))
    orphan = folder / "step-000000003.safetensors"
    orphan.write_bytes(safetensors.torch.save({"model.x": torch.zeros(1)}))
    sweep(folder)
    sweep(tmp_path / "nowhere")
    names = {"step-000000001.json", "step-000000001.safetensors", "step-000000002.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert is_written(folder)
    assert not is_written(tmp_path / "nowhere")


def test_training_that_has_gone_back_does_not_meet_its_future(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """Checkpoints beyond what the journal holds are passed over, and must not push out the new ones."""
    one = state_after(tiny(), 1)
    for step in (10, 20):
        save(tmp_path, step, one)
    assert [found.step for found in whole_checkpoints(tmp_path, 15)] == [10]
    assert [found.step for found in whole_checkpoints(tmp_path, 20)] == [20, 10]
    save(tmp_path, 12, one)
    assert [found.step for found in whole_checkpoints(tmp_path)] == [12, 10]


def test_a_checkpoint_of_another_model_changes_nothing(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """One that was copied from another trial is refused before a weight or a moment is taken."""
    save(tmp_path, 1, state_after(tiny(model={"ffn_size": 32}), 1))
    one = state_after(tiny(), 1)
    before, found = weights(one), next(whole_checkpoints(tmp_path))
    with pytest.raises(DamagedCheckpoint, match="in this model"):
        found.restore(one.model, one.optimizer)
    assert equal(weights(one), before)


def test_without_a_whole_checkpoint_nothing_is_touched(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """A trial starts from its beginning, not from half of a checkpoint."""
    one = state_after(tiny(), 2)
    before = weights(one)
    assert load_checkpoint(tmp_path / "nowhere", one) is None
    assert load_checkpoint(tmp_path, one) is None
    save(tmp_path, 1, state_after(tiny(seed=1), 1))
    flip(tmp_path / "step-000000001.safetensors")
    assert load_checkpoint(tmp_path, one) is None
    assert equal(weights(one), before)


def test_two_checkpoints_are_kept_in_order_of_steps(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """The disk does not fill, and the newest is the one with the most steps, not the last in the alphabet."""
    one = state_after(tiny(), 1)
    folder = tmp_path / "checkpoints"
    for step in (2, 9, 10, 100):
        save(folder, step, one)
    names = {f"step-{step:09d}.safetensors" for step in (10, 100)}
    assert {path.name for path in folder.iterdir()} == names
    restored = load_checkpoint(folder, one)
    assert restored is not None
    assert restored[0] == 100
    keep_newest(folder)
    assert [path.name for path in folder.iterdir()] == ["step-000000100.safetensors"]
    assert load_checkpoint(folder, one) is not None


@pytest.mark.parametrize("survived", range(2))
def test_a_full_disk_while_saving_leaves_the_checkpoint_before(
    tiny: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Whichever write fails, what was saved before can be loaded, or the new one is already whole."""
    one, calls = state_after(tiny(), 1), []
    save(tmp_path, 1, one)
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > survived:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", fails)
        save(tmp_path, 2, one)
    restored = load_checkpoint(tmp_path, one)
    assert restored is not None
    assert restored[0] == (1 if survived < 1 else 2)
    assert not list(tmp_path.glob(".*.tmp"))


def test_weights_alone_can_start_another_training(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """A model of the same shapes takes the weights bit for bit; another is told which parameter does not fit."""
    original, other = state_after(tiny(), 3), state_after(tiny(seed=1))
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        load_weights(tmp_path, other.model)
    save(tmp_path, 3, original)
    assert load_weights(tmp_path, other.model) == load_weights(tmp_path, other.model, 3) == 3
    with pytest.raises(FileNotFoundError, match="is of step 3, not 4"):
        load_weights(tmp_path, other.model, 4)
    assert equal(weights(original), weights(other))
    wider = state_after(tiny(model={"ffn_size": 32}))
    with pytest.raises(ValueError, match=r"ffn\.down\.weight is \[16, 32\] in this model and \[16, 16\] in the"):
        load_weights(tmp_path, wider.model)
    gated = state_after(tiny(model={"gate": {"position": "sdpa"}}))
    with pytest.raises(ValueError, match=r"gate_sdpa is \[16, 16\] in this model and nothing in the checkpoint"):
        load_weights(tmp_path, gated.model)
