"""AdamW and its learning rate."""

import math

import torch
from torch import nn

from gatelab.training.config import OptimizerConfig, TrainingConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Make AdamW over all parameters: matrices decay, vectors (norm gains, biases, constant gates) do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of a step, 0 … steps - 1.

    Warm-up starts above 0. The last step runs at `final` of the peak.
    """
    schedule, steps, warmup = config.schedule, config.steps, config.warmup_steps
    peak = config.optimizer.learning_rate
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    start = warmup if schedule.kind == "cosine" else config.decay_start
    if schedule.kind == "constant" or step < start:
        return peak
    progress = (step - start) / (steps - 1 - start) if start < steps - 1 else 1.0
    left = (1 + math.cos(math.pi * progress)) / 2 if schedule.kind == "cosine" else 1 - progress
    return peak * (schedule.final + (1 - schedule.final) * left)
