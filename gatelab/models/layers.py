"""The parts of the decoder: joint projections, rotary embedding, attention with its gates, feed-forward."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.kernels import gated_attention
from gatelab.models.config import ModelConfig
from gatelab.models.gates import Gate, gates_of


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


YARN_FAST, YARN_SLOW = 32.0, 1.0
"""Turns over the training length from which on YaRN leaves a channel alone, and up to which it stretches it whole."""


def rotary_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Return (radians per position `[D/2]` in float64, factor on cosines and sines) of a model's RoPE.

    With YaRN (arXiv 2309.00071, section 3.2-3.4): channels that turn less than once over the training length are
    stretched by the factor s, those that turn more than 32 times are left alone, those between are blended, and
    attention logits grow by (0.1 ln s + 1)^2.
    """
    dim, base, factor = config.head_dim, config.rope_base, config.yarn_factor
    frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if config.yarn_length is None:
        return frequencies, 1.0

    def channel(turns: float) -> float:
        """Return the channel, not rounded, that turns so often over the training length."""
        assert config.yarn_length is not None
        return dim * math.log(config.yarn_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = max(math.floor(channel(YARN_FAST)), 0), min(math.ceil(channel(YARN_SLOW)), dim - 1)
    stretched = ((torch.arange(dim // 2) - first).double() / max(last - first, 1e-3)).clamp(0, 1)
    return frequencies * (1 - stretched + stretched / factor), 0.1 * math.log(factor) + 1


class Rotary(nn.Module):
    """Rotary position embedding (RoPE): channel i turns with channel i + D/2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.config = config.head_dim, config
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}  # of the largest length asked for on each

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the cosines and signed sines of positions 0 … length-1, each `[length, 1, D]` in float32."""
        known = self._tables.get(device)
        if known is None or len(known[0]) < length:
            known = self._tables[device] = self._build(length, device)
        cos, sin = known
        return cos[:length], sin[:length]

    def _build(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):  # tables made while generating must serve training, too
            frequencies, scale = rotary_frequencies(self.config)
            angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), frequencies.to(device))
            cos, sin = angles.cos() * scale, angles.sin() * scale
            return torch.cat([cos, cos], -1).float().unsqueeze(1), torch.cat([-sin, sin], -1).float().unsqueeze(1)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate `x [B, T, H, D]`, whose positions are start … start+T-1."""
        cos, sin = (table[start:] for table in self.tables(start + x.shape[1], x.device))
        return x * cos.to(x.dtype) + x.roll(self.head_dim // 2, dims=-1) * sin.to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose gain takes the dtype of its input, so that the fused kernel serves bfloat16 activations."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class GatedSDPA(nn.Module):
    """Causal softmax attention and the gate on its output, in one kernel."""

    def __init__(self, gate: Gate | None) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, query: Tensor, key: Tensor, value: Tensor, logits: Tensor | None) -> Tensor:
        """Map `query [B, T, Hq, D]`, `key`, `value [B, T, Hkv, D]` and `logits [B, T, logits]` to `[B, T, Hq, D]`."""
        if self.gate is None:
            return gated_attention(query, key, value)
        assert logits is not None
        scores, activation = self.gate.pre_activation(logits)
        return gated_attention(query, key, value, scores, activation=activation, combine=self.gate.config.combine)


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
        self.sdpa = GatedSDPA(self.gates.get("sdpa"))
        self.output = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within `x [B, T, hidden]`, the pre-normed hidden state."""
        parts = self.input(x)
        logits = self.gate_logits(parts, x)

        def gated(position: str, tensor: Tensor) -> Tensor:
            gate = self.gates.get(position)
            return gate.apply(tensor, logits[position]) if gate else tensor

        query, key, value = (
            gated(name, parts[name].unflatten(-1, (-1, self.head_dim))) for name in ("query", "key", "value")
        )
        query, key = self.rotary(self.query_norm(query)), self.rotary(self.key_norm(key))
        attended = self.sdpa(query, key, value, logits.get("sdpa"))
        output = self.output(self.sdpa_output(attended).flatten(-2))
        modulated: Tensor = gated("output", output.unsqueeze(-2)).squeeze(-2)
        return modulated

    def gate_logits(self, parts: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """Return the pre-activations `[B, T, logits]` of the gate at each position, of projections of `x`."""
        return {position: self._logits(position, parts, x) for position in self.gates}

    def _logits(self, position: str, parts: dict[str, Tensor], x: Tensor) -> Tensor:
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
