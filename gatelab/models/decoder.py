"""The decoder-only language model and its initialisation."""

import hashlib
import math

import torch
from torch import Tensor, nn

from gatelab.models.config import ModelConfig
from gatelab.models.layers import Attention, FeedForward, RMSNorm, Rotary


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, rotary: Rotary) -> None:
        super().__init__()

        def norm(on: bool = True) -> nn.Module:
            return RMSNorm(config.hidden_size, eps=config.norm_eps) if on else nn.Identity()

        self.attention_norm, self.attention = norm(), Attention(config, rotary)
        self.attention_post_norm = norm(config.sandwich_norm)
        self.ffn_norm, self.ffn = norm(), FeedForward(config)
        self.ffn_post_norm = norm(config.sandwich_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream `[B, T, hidden]` to itself."""
        attended: Tensor = x + self.attention_post_norm(self.attention(self.attention_norm(x)))
        out: Tensor = attended + self.ffn_post_norm(self.ffn(self.ffn_norm(attended)))
        return out


class Decoder(nn.Module):
    """A causal language model. Weights are unset until `initialize`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size must be set to build a model (a trial takes it from its tokenizer)")
        self.config = config
        rotary = Rotary(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, rotary) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `tokens [B, T]` (int64) to logits `[B, T, vocab]` of the next token."""
        logits: Tensor = self.head(self.norm(self.hidden(tokens)))
        return logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the residual stream `[B, T, hidden]` after the last layer, before its norm."""
        x: Tensor = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


def set_rope(model: Decoder, config: ModelConfig) -> None:
    """Give every layer of a model the rotary embedding of another configuration; it has no weights."""
    rotary = Rotary(config)
    for block in model.layers:
        assert isinstance(block, Block)
        block.attention.rotary = rotary


@torch.no_grad()
def initialize(model: Decoder, seed: int) -> None:
    """Set every weight from the seed and its own name, on any device.

    A parameter that exists in two variants starts equal in both, whatever else they add. Where one variant's
    feed-forward layer is narrower, its units are the first ones of the wider: weights are drawn unit by unit.
    """
    config = model.config
    residual_std = config.init_std / (math.sqrt(2 * config.layers) if config.depth_scaled_init else 1.0)
    for name, parameter in model.named_parameters():
        if "gate_constants" in name:
            parameter.fill_(config.gate.bias or 0.0)
        elif "norm" in name or name.endswith("sdpa_output.weight"):
            parameter.fill_(1.0)
        elif name.endswith((".output.weight", ".down.weight")):
            parameter.copy_(_normal(parameter.T, seed, name, residual_std).T)
        else:
            scale = config.gate.init_scale if ".blocks.gate_" in name else 1.0
            parameter.copy_(_normal(parameter, seed, name, config.init_std * scale))


def _normal(like: Tensor, seed: int, name: str, std: float) -> Tensor:
    """Draw normal values of the shape of `like`, whose first rows do not depend on how many rows follow."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    # torch fills 16 values at a time and draws a ragged end anew: round up, so that no row is part of that end.
    drawn = torch.randn(-(-like.numel() // 16) * 16, generator=generator)
    return drawn[: like.numel()].view(like.shape) * std
