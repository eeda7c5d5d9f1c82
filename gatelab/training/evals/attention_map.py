"""Attention weights of a trained model on a text that somebody gives."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.kernels.reference import attention_weights
from gatelab.models.decoder import Block, Decoder


@torch.no_grad()
def attention_of_text(model: Decoder, tokens: list[int], layers: Iterable[int]) -> dict[int, Tensor]:
    """Return attention weights `[Hq, T, T]` of chosen layers on a text of T tokens: float32, on the CPU.

    Every weight exists at once: for short texts. Raises IndexError for a layer that there is not.
    """
    found: dict[int, Tensor] = {}

    def watch(layer: int) -> Any:
        block = model.layers[layer]
        assert isinstance(block, Block)

        def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            query, key = inputs[:2]
            found[layer] = attention_weights(query.float(), key.float())[0].cpu()

        return block.attention.sdpa.register_forward_hook(see)

    with ExitStack() as handles:
        for layer in layers:
            handles.enter_context(watch(layer))
        model.hidden(torch.tensor([tokens], device=next(model.parameters()).device))
    return found
