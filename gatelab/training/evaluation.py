"""Loss on held-out text: of all of it, by domain, and by position in the sequence."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.metrics import BITS, NATS, SHARE, MetricSpec
from gatelab.training.data import HeldOut
from gatelab.training.device import precision_context

SPECS = {
    "loss": NATS,
    "loss/*": NATS,  # of a domain
    "bits_per_byte": BITS,
    "bits_per_byte/*": BITS,
    "lost_bytes": SHARE,  # only where there are any
    "lost_bytes/*": SHARE,
    "position/*": MetricSpec("nats/token", "lower", kind="detail"),
}
"""Metrics that `loss_metrics` and `position_losses` measure, without the beginning that says of what."""


def language_model_loss(model: nn.Module, windows: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Return the cross-entropy, in nats, of `windows [B, T + 1]` (int64): each token from those before it.

    It is the mean, or `[B * T]` for "none".
    """
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def token_losses(
    model: nn.Module, held_out: HeldOut, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the cross-entropy `[N, T]` of every target of held-out windows, in nats: float64, on the CPU."""
    model.eval()
    parts = []
    for start in range(0, len(held_out.windows), batch_size):
        batch = torch.from_numpy(held_out.windows[start : start + batch_size]).to(device)
        with precision_context(dtype, device):
            losses = language_model_loss(model, batch, "none")
        parts.append(losses.double().view(len(batch), -1).cpu())
    model.train()
    return torch.cat(parts)


def loss_metrics(losses: Tensor, held_out: HeldOut, bytes_per_token: float) -> dict[str, float]:
    """Return what `losses [N, T]` (nats) say, by name.

    loss is nats per token; bits_per_byte compares across tokenizers: loss / ln 2 / (bytes per token of the whole
    validation text). Where the text is of several domains, loss/DOMAIN and bits_per_byte/DOMAIN are of the targets
    in each, as far as the windows hold any. lost_bytes, and lost_bytes/DOMAIN, are there where tokens do not give back
    all bytes of the text: the share that is lost, of which a low bits_per_byte says nothing.
    """
    loss = losses.mean().item()
    metrics = {"loss": loss, "bits_per_byte": loss / math.log(2) / bytes_per_token}
    if held_out.lost_share:
        metrics["lost_bytes"] = held_out.lost_share
    if len(held_out.names) > 1:
        domains = torch.from_numpy(held_out.domains)
        for index, name in enumerate(held_out.names):
            own = losses[domains == index]
            if len(own):
                loss = own.mean().item()
                metrics[f"loss/{name}"] = loss
                metrics[f"bits_per_byte/{name}"] = loss / math.log(2) / held_out.bytes_per_token[index]
                if held_out.lost_share:
                    metrics[f"lost_bytes/{name}"] = held_out.lost_shares[index]
    return metrics


def position_losses(losses: Tensor) -> dict[str, float]:
    """Return the mean of `losses [N, T]` (nats) by the number of tokens that a prediction sees.

    Numbers are grouped in octaves: 1, 2-3, 4-7, … up to T. Names like position/00004-00007 sort as numbers do.
    """
    by_context = losses.mean(0)  # entry i: of predictions from i + 1 tokens
    return {
        f"position/{first:05d}-{last:05d}": by_context[first - 1 : last].mean().item()
        for first, last in _octaves(losses.shape[1])
    }


def _octaves(length: int) -> Iterator[tuple[int, int]]:
    """Yield 1, 2-3, 4-7, … up to a length; less than half an octave at the end belongs to the last one."""
    first = 1
    while first <= length:
        last = 2 * first - 1 if length >= 3 * first else length
        yield first, last
        first = last + 1
