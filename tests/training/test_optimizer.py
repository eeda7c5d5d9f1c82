import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder
from gatelab.training.config import OptimizerConfig, TrainingConfig
from gatelab.training.optimizer import build_optimizer, learning_rate


def rates(steps: int, peak: float = 1.0, **schedule: Any) -> list[float]:
    """The learning rates of a whole training."""
    config = TrainingConfig(
        tokens=64 * steps,
        sequence_length=16,
        batch_size=4,
        schedule=schedule,
        optimizer={"learning_rate": peak},
    )
    assert config.steps == steps
    return [learning_rate(config, step) for step in range(steps)]


def test_warmup_rises_linearly_from_above_zero() -> None:
    """No step is wasted at rate 0, and the peak comes right after the last warm-up step."""
    assert rates(10, peak=0.5, warmup=4, kind="constant") == pytest.approx([0.1, 0.2, 0.3, 0.4] + [0.5] * 6)


def test_cosine_is_torchs() -> None:
    """`cosine` is the schedule that everyone means by the name, from the peak to `final` at the last step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.002)
    expected = []
    for _ in range(101):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    ours = rates(105, peak=0.02, warmup=4, kind="cosine", final=0.1)[4:]
    assert ours == pytest.approx(expected, rel=1e-9)
    assert ours[50] == pytest.approx(0.02 * (1 + 0.1) / 2)  # halfway between peak and final
    assert ours[25] == pytest.approx(0.02 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))


def test_wsd_is_constant_then_linear() -> None:
    """Warm-up, stable, decay: the last fifth falls in a straight line to `final`."""
    ours = rates(25, warmup=2, kind="wsd", decay=0.2, final=0.5)
    assert ours == pytest.approx([1 / 3, 2 / 3] + [1.0] * 18 + np.linspace(1, 0.5, 5).tolist())


@settings(deadline=None)
@given(
    steps=st.integers(2, 300),
    warmup=st.floats(0, 0.5),
    kind=st.sampled_from(["cosine", "wsd", "constant"]),
    final=st.floats(0, 1),
    decay=st.floats(0.01, 0.5),
    peak=st.floats(1e-6, 10),
)
def test_rates_rise_to_the_peak_and_fall_to_the_final_value(
    steps: int, warmup: float, kind: str, final: float, decay: float, peak: float
) -> None:
    """Whatever the lengths of its parts, a schedule has one rise, one peak and one fall, and ends where it should."""
    ours = rates(steps, peak=peak, warmup=warmup, kind=kind, final=final, decay=decay)
    rise = round(warmup * steps)
    fall = {"cosine": steps - rise, "wsd": round(decay * steps), "constant": 2}[kind]
    assume(fall > 1 and rise + fall <= steps)  # there is a way down from the peak, after the way up
    assert all(0 < a < b for a, b in pairwise(ours[: rise + 1]))
    assert ours[rise] == peak
    assert all(a >= b >= 0 for a, b in pairwise(ours[rise:]))
    assert ours[-1] == pytest.approx(peak * (1.0 if kind == "constant" else final))


def test_a_decay_of_one_step_is_a_decay() -> None:
    """A short trial of a study with wsd ends at `final` like the long ones."""
    assert rates(5, warmup=0, kind="wsd", decay=0.2, final=0.1)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(vocab_size=11, gate={"position": "value+sdpa", "bias": 1.0}),
        ModelConfig(vocab_size=11, gate={"position": "sdpa", "input": "constant"}, tie_embeddings=False),
        ModelConfig(vocab_size=11, sdpa_output="rmsnorm", sandwich_norm=True),
    ],
    ids=["bias", "constant", "norms"],
)
def test_matrices_decay_and_vectors_do_not(config: ModelConfig) -> None:
    """Norm gains, biases and constant gates are not pulled towards zero; every parameter is optimised once."""
    model = Decoder(config)
    groups = build_optimizer(model, OptimizerConfig(weight_decay=0.3)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) == len(decay)
    for name, parameter in model.named_parameters():
        expected = 0.0 if "norm" in name or "constants" in name or "sdpa_output" in name else 0.3
        assert decay[id(parameter)] == expected, name


def test_steps_are_those_of_adamw_in_float64() -> None:
    """Three updates equal the formulas of the paper (Loshchilov & Hutter), decay decoupled and moments corrected."""
    generator = torch.Generator().manual_seed(0)
    module = nn.ParameterList([torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator)])
    config = OptimizerConfig(learning_rate=0.02, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.5)
    optimizer = build_optimizer(module, config)
    weights = [parameter.detach().double().numpy().copy() for parameter in module]
    first, second = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
    for t in range(1, 4):
        for i, parameter in enumerate(module):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad, g = gradient, gradient.double().numpy()
            first[i] = 0.8 * first[i] + 0.2 * g
            second[i] = 0.9 * second[i] + 0.1 * g * g
            update = first[i] / (1 - 0.8**t) / (np.sqrt(second[i] / (1 - 0.9**t)) + 1e-3)
            weights[i] = weights[i] - 0.02 * (update + (0.5 if i == 0 else 0.0) * weights[i])
        optimizer.step()
    for parameter, weight in zip(module, weights, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-5, atol=1e-6)
