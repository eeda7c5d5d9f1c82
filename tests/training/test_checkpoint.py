import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gatelab.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
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


def save(folder: Path, step: int, state: TrainState) -> None:
    save_checkpoint(folder, step, state.model, state.optimizer, STATE)


@pytest.mark.parametrize("gate", ["none", "value+sdpa"])
def test_everything_comes_back_bit_for_bit(tiny: Callable[..., TrialConfig], tmp_path: Path, gate: str) -> None:
    """After a restart, weights, moments and counters are the same, and so is every step that follows."""
    trial = tiny(model={"gate": {"position": gate}})
    original, other = state_after(trial, 3), state_after(trial.model_copy(update={"seed": 1}), 1)
    save(tmp_path, 3, original)
    assert load_checkpoint(tmp_path, other.model, other.optimizer) == (3, STATE)
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
    assert load_checkpoint(tmp_path, other.model, other.optimizer) == (0, STATE)
    for one in (original, other):
        one.step(0, batch(0))
    assert equal(weights(original), weights(other))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "byte-flipped": lambda path: flip(path.with_suffix(".safetensors")),
    "tensors-cut": lambda path: cut(path.with_suffix(".safetensors")),
    "tensors-missing": lambda path: path.with_suffix(".safetensors").unlink(),
    "json-cut": cut,
    "json-empty": lambda path: path.write_bytes(b""),
    "json-zeros": lambda path: path.write_bytes(b"\0" * 100),
    "json-not-utf8": lambda path: path.write_bytes(b"\xff\xfe\xfd"),
    "json-without-digest": lambda path: path.write_text('{"step": 2}'),
    "other-digest": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tiny: Callable[..., TrialConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    """A pulled plug costs the steps since the checkpoint before, never the trial, and never in silence."""
    original = state_after(tiny(), 1)
    save(tmp_path, 1, original)
    wanted = weights(original)
    original.step(1, batch(1))
    save(tmp_path, 2, original)
    damage(tmp_path / "step-000000002.json")
    other = state_after(tiny(seed=1))
    assert load_checkpoint(tmp_path, other.model, other.optimizer) == (1, STATE)
    assert equal(weights(other), wanted)
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert "step-000000002" in warning.getMessage()


def test_without_a_whole_checkpoint_nothing_is_touched(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """A trial starts from its beginning, not from half of a checkpoint."""
    one = state_after(tiny(), 2)
    before = weights(one)
    assert load_checkpoint(tmp_path / "nowhere", one.model, one.optimizer) is None
    assert load_checkpoint(tmp_path, one.model, one.optimizer) is None
    save(tmp_path, 1, state_after(tiny(seed=1), 1))
    flip(tmp_path / "step-000000001.safetensors")
    assert load_checkpoint(tmp_path, one.model, one.optimizer) is None
    assert equal(weights(one), before)


def test_two_checkpoints_are_kept_in_order_of_steps(tiny: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """The disk does not fill, and the newest is the one with the most steps, not the last in the alphabet."""
    one = state_after(tiny(), 1)
    folder = tmp_path / "checkpoints"
    for step in (2, 9, 10, 100):
        save(folder, step, one)
    names = {f"step-{step:09d}.{suffix}" for step in (10, 100) for suffix in ("json", "safetensors")}
    assert {path.name for path in folder.iterdir()} == names
    restored = load_checkpoint(folder, one.model, one.optimizer)
    assert restored is not None
    assert restored[0] == 100


@pytest.mark.parametrize("survived", range(4))
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
    restored = load_checkpoint(tmp_path, one.model, one.optimizer)
    assert restored is not None
    assert restored[0] == (1 if survived < 3 else 2)


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
