"""The parts of the decoder: joint projections, rotary embedding, attention with its gates, feed-forward."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.kernels import gated_attention
from gatelab.models.config import ModelConfig
from gatelab.models.gates import gates_of


class JointLinear(nn.Module):
    """Several projections of one input as a single matrix product.

    Each block keeps its own named parameter, so that it can be initialised, decayed and inspected by itself and
    means the same whatever stands beside it.
    """

    def __init__(self, inputs: int, blocks: Mapping[str, int]) -> None:
        super().__init__()
        self.rows = dict(blocks)
        self.blocks = nn.ParameterDict({name: torch.empty(rows, inputs) for name, rows in blocks.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map `x [..., inputs]` to `[..., rows]` for each block."""
        joint = F.linear(x, torch.cat([self.blocks[name] for name in self.rows]))
        return dict(zip(self.rows, torch.split(joint, list(self.rows.values()), dim=-1), strict=True))


class Rotary(nn.Module):
    """Rotary position embedding (RoPE): channel i turns with channel i + D/2."""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of positions 0 … length-1, each `[length, 1, D]` in float32."""
        key = (length, device)
        if key in self._tables:
            return self._tables[key]
        with torch.inference_mode(False):  # tables made while generating must serve training, too
            exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device) / self.head_dim
            angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), self.base**-exponent)
            cos, sin = angles.cos(), angles.sin()
            self._tables[key] = (
                torch.cat([cos, cos], -1).float().unsqueeze(1),
                torch.cat([-sin, sin], -1).float().unsqueeze(1),
            )
        return self._tables[key]

    def forward(self, x: Tensor) -> Tensor:
        """Rotate `x [B, T, H, D]`, whose positions are 0 … T-1."""
        cos, sin = self.tables(x.shape[1], x.device)
        return x * cos.to(x.dtype) + x.roll(self.head_dim // 2, dims=-1) * sin.to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose gain takes the dtype of its input, so that the fused kernel serves bfloat16 activations."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal grouped-query self-attention with the configured gates."""

    def __init__(self, config: ModelConfig, rotary: Rotary) -> None:
        super().__init__()
        self.head_dim, self.rotary = config.head_dim, rotary
        self.gates = gates_of(config)
        queries, keys = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
        scores = {f"gate_{position}": gate.logits for position, gate in self.gates.items() if gate.projected}
        self.input = JointLinear(config.hidden_size, {"query": queries, "key": keys, "value": keys, **scores})
        self.gate_constants = nn.ParameterDict(
            {position: torch.empty(gate.logits) for position, gate in self.gates.items() if gate.has_constant}
        )

        def norm(on: bool) -> nn.Module:
            return RMSNorm(config.head_dim, eps=config.norm_eps) if on else nn.Identity()

        self.query_norm, self.key_norm = norm(config.qk_norm), norm(config.qk_norm)
        self.sdpa_output = nn.SiLU() if config.sdpa_output == "silu" else norm(config.sdpa_output == "rmsnorm")
        self.output = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within `x [B, T, hidden]`, the pre-normed hidden state."""
        parts = self.input(x)
        logits = {position: self._logits(position, parts, x) for position in self.gates}

        def gated(position: str, tensor: Tensor) -> Tensor:
            gate = self.gates.get(position)
            return gate.apply(tensor, logits[position]) if gate else tensor

        query, key, value = (
            gated(name, parts[name].unflatten(-1, (-1, self.head_dim))) for name in ("query", "key", "value")
        )
        query, key = self.rotary(self.query_norm(query)), self.rotary(self.key_norm(key))
        if gate := self.gates.get("sdpa"):
            scores, activation = gate.pre_activation(logits["sdpa"])
            attended = gated_attention(query, key, value, scores, activation=activation, combine=gate.config.combine)
        else:
            attended = gated_attention(query, key, value)
        output = self.output(self.sdpa_output(attended).flatten(-2))
        modulated: Tensor = gated("output", output.unsqueeze(-2)).squeeze(-2)
        return modulated

    def _logits(self, position: str, parts: dict[str, Tensor], x: Tensor) -> Tensor:
        """The pre-activations `[B, T, logits]` of the gate at a position."""
        projected = parts.get(f"gate_{position}")
        constant: Tensor | None = self.gate_constants.get(position)
        if projected is None:
            assert constant is not None
            return constant.expand(*x.shape[:-1], -1)
        return projected if constant is None else projected + constant  # float32: small updates must count


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(left) * right)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input = JointLinear(config.hidden_size, {"left": config.ffn_size, "right": config.ffn_size})
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., hidden]` to the same shape."""
        parts = self.input(x)
        out: Tensor = self.down(F.silu(parts["left"]) * parts["right"])
        return out
