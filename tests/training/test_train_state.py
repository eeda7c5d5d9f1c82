import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gatelab.training.config import TrialConfig
from gatelab.training.data import HeldOut
from gatelab.training.diagnostics import norms
from gatelab.training.evaluation import language_model_loss, loss_metrics, token_losses
from gatelab.training.optimizer import learning_rate
from gatelab.training.train_state import TrainState

CPU = torch.device("cpu")


def windows(count: int, seed: int = 0) -> torch.Tensor:
    """Random windows of 17 tokens."""
    return torch.randint(257, (count, 17), generator=torch.Generator().manual_seed(seed))


def nats(model: torch.nn.Module, window: torch.Tensor) -> float:
    """Mean negative log-likelihood of one window, by hand in float64 from the model's logits."""
    with torch.no_grad():
        logits = model(window[None, :-1])[0].double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return float(-log_probabilities[np.arange(16), window[1:].numpy()].mean())


def gradients(state: TrainState) -> torch.Tensor:
    return torch.cat(
        [parameter.grad.flatten().double() for parameter in state.parameters if parameter.grad is not None]
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_gradients_of_the_whole_batch(tiny: Callable[..., TrialConfig], parts: int) -> None:
    """Saving memory changes nothing but rounding."""
    whole, cut = (TrainState(tiny(training={"accumulation": n}), CPU) for n in (1, parts))
    for step in range(3):
        results = [torch.stack(one.step(step, windows(4, step))) for one in (whole, cut)]
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
        error = (gradients(whole) - gradients(cut)).norm() / gradients(whole).norm()
        assert error < 1e-4
    torch.testing.assert_close(whole.model.state_dict(), cut.model.state_dict(), rtol=1e-3, atol=1e-4)


def test_a_step_reports_the_loss_before_it_and_the_norm_of_its_gradient(tiny: Callable[..., TrialConfig]) -> None:
    """Recorded numbers are those of the batch, whole: cross-entropy in nats per token, and the raw gradient norm."""
    state, batch = TrainState(tiny(), CPU), windows(4)
    expected = np.mean([nats(state.model, window) for window in batch])
    language_model_loss(state.model, batch).backward()
    norm = gradients(state).norm()
    loss, reported = state.step(0, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert reported.item() == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("clip", [0.01, 1e6, None], ids=["clipped", "below", "never"])
def test_gradients_are_clipped_to_the_norm_and_no_further(tiny: Callable[..., TrialConfig], clip: float | None) -> None:
    """One odd batch cannot throw the weights away, and an ordinary one is left alone."""
    state = TrainState(tiny(training={"optimizer": {"clip_norm": clip}}), CPU)
    _, before = state.step(0, windows(4))
    after = gradients(state).norm().item()
    assert before.item() > 0.01
    assert after == pytest.approx(0.01 if clip == 0.01 else before.item(), rel=1e-4)
    layer = norms(state.model)[0]["gradient_norm"]
    outside = [p.grad for name, p in state.model.named_parameters() if not name.startswith("layers.")]
    rest = sum(gradient.double().square().sum().item() for gradient in outside if gradient is not None)
    assert layer**2 + rest == pytest.approx(after**2, rel=1e-4)


@pytest.mark.parametrize("step", [0, 1, 19])
def test_a_step_moves_the_weights_at_its_own_learning_rate(tiny: Callable[..., TrialConfig], step: int) -> None:
    """The schedule is in force from the first step to the last (Adam's first move is the rate itself, by sign)."""
    trial = tiny(training={"optimizer": {"eps": 1e-20}, "schedule": {"warmup": 4}})
    state = TrainState(trial, CPU)
    before = state.model.norm.weight.detach().clone()
    state.step(step, windows(4))
    moved = (state.model.norm.weight - before).abs()
    rate = learning_rate(trial.training, step)
    torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=1e-7)


def validate(state: TrainState, held: torch.Tensor, batch: int, bytes_per_token: float = 1.0) -> dict[str, float]:
    """The validation metrics of windows."""
    held_out = HeldOut(held.numpy(), np.zeros((len(held), held.shape[1] - 1), dtype=np.int64), ("",), (1.0,))
    return loss_metrics(token_losses(state.model, held_out, batch, CPU, state.dtype), held_out, bytes_per_token)


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (6, 3), (2, 5), (5, 1)], ids=str)
def test_validation_loss_is_the_mean_over_all_windows(tiny: Callable[..., TrialConfig], count: int, batch: int) -> None:
    """A smaller last batch weighs no more than its windows: the batch size never enters the result."""
    state, held = TrainState(tiny(model={"init_std": 0.5}), CPU), windows(count)
    metrics = validate(state, held, batch, 0.8)
    expected = np.mean([nats(state.model, window) for window in held])
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["bits_per_byte"] == pytest.approx(expected / math.log(2) / 0.8, rel=1e-6)
    assert state.model.training
    assert all(parameter.grad is None for parameter in state.parameters)


def test_bits_per_byte_of_guessing(tiny: Callable[..., TrialConfig]) -> None:
    """A model that knows nothing of 257 byte tokens needs log2(257) bits for each, whatever else is counted."""
    state = TrainState(tiny(), CPU)
    torch.nn.init.zeros_(state.model.head.weight)
    metrics = validate(state, windows(3), 2)
    assert metrics["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)


def test_bfloat16_products_change_results_only_by_rounding(tiny: Callable[..., TrialConfig]) -> None:
    """Lower precision is used, in training and in evaluation, and weights stay float32."""
    results: dict[str, dict[str, Any]] = {}
    for precision in ("float32", "bfloat16"):
        state = TrainState(tiny(model={"init_std": 0.5}, training={"precision": precision}), CPU)
        metrics = validate(state, windows(7), 3)
        loss, norm = state.step(0, windows(4))
        results[precision] = {**metrics, "step": loss.item(), "norm": norm.item()}
        assert {parameter.dtype for parameter in state.parameters} == {torch.float32}
        assert {value.dtype for state in state.optimizer.state.values() for value in state.values()} == {torch.float32}
    assert results["bfloat16"] == pytest.approx(results["float32"], rel=0.03)
    assert all(results["bfloat16"][name] != value for name, value in results["float32"].items())
