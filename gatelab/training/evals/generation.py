"""Continuing a text with a model, token by token: the likeliest, or drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatelab.models.cache import CachedDecoder
from gatelab.models.decoder import Decoder
from gatelab.training.device import precision_context


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """Logits are divided by it; 0: the likeliest token, always."""
    top_p: float = 1.0
    """Only the likeliest tokens are drawn from: the fewest that have this probability together."""
    seed: int = 0
    """Of the draws: equal seeds draw equal tokens."""


def generate(
    model: Decoder,
    prompt: Sequence[int],
    tokens: int,
    end: int,
    sampling: Sampling,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[int]:
    """Yield at most so many tokens that continue a prompt of one token at least, up to the token `end`, which is not.

    Each is computed once, and its keys and values are kept. Nothing is forgotten: positions may go beyond those of
    training.
    """
    reader = CachedDecoder(model)
    generator = torch.Generator().manual_seed(sampling.seed)
    read = list(prompt)
    for _ in range(tokens):
        with precision_context(dtype, device):
            logits = reader.read(torch.tensor([read], device=device))[0, -1]
        token = choose_token(logits.double().cpu(), sampling, generator)
        if token == end:
            return
        yield token
        read = [token]


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Choose a token by its logits `[vocab]`."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    likely, order = (logits / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    reached = likely.cumsum(-1)
    kept = int((reached < sampling.top_p).sum()) + 1
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * reached[:kept][-1]
    return int(order[min(int((reached[:kept] <= drawn).sum()), kept - 1)])
