"""Reading on where a model was left: its keys and values are kept, so that each token is computed once."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from gatelab.models.decoder import Block, Decoder


class CachedDecoder:
    """A decoder that reads tokens in portions, each as the continuation of those before.

    Hooks on its modules put in what is kept; the decoder itself does not know of it.
    """

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.length = 0
        """Tokens read so far."""
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values, [B, S, Hkv, D] each

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Map the next `tokens [B, T]` (int64) to logits `[B, T, vocab]`, as if read with all before them."""
        with ExitStack() as hooks:
            rotaries = set()
            for layer, block in enumerate(self.model.layers):
                assert isinstance(block, Block)
                hooks.enter_context(block.attention.sdpa.register_forward_pre_hook(self._extend(layer)))
                rotaries.add(block.attention.rotary)
            for rotary in rotaries:
                rotary.tables(1 << (self.length + tokens.shape[1]).bit_length(), tokens.device)  # made anew seldom
                hooks.enter_context(rotary.register_forward_pre_hook(lambda _, inputs: (*inputs, self.length)))
            logits: Tensor = self.model(tokens)
        self.length += tokens.shape[1]
        return logits

    def _extend(self, layer: int) -> Callable[..., tuple[Tensor, ...]]:
        """Return a hook that puts the keys and values of a layer behind those that are kept."""

        def extend(_: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            query, key, value, logits = inputs
            if layer in self._kept:
                before = self._kept[layer]
                key, value = torch.cat([before[0], key], 1), torch.cat([before[1], value], 1)
            self._kept[layer] = key, value
            return query, key, value, logits

        return extend
