"""The gate as one object: its score shape, its parameters, its FLOPs and how it turns logits into scores.

Nothing else in the code asks where a gate sits. A new position is one entry in `SITES`. No torch is imported here:
plans count parameters from this file, and its tensor code uses methods only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gatelab import kernels
from gatelab.kernels.gate import gate_score
from gatelab.models.config import GateConfig, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

SITES: Mapping[str, Callable[[ModelConfig], tuple[int, int]]] = {
    # The tensor that a gate modulates, as (heads, width). The dense output is a single head.
    "query": lambda model: (model.query_heads, model.head_dim),
    "key": lambda model: (model.kv_heads, model.head_dim),
    "value": lambda model: (model.kv_heads, model.head_dim),
    "sdpa": lambda model: (model.query_heads, model.head_dim),
    "output": lambda model: (1, model.hidden_size),
}


@dataclass(frozen=True)
class Gate:
    """A gate at one position of one attention layer."""

    config: GateConfig
    position: str
    heads: int
    width: int  # channels per head
    hidden_size: int

    @property
    def logit_shape(self) -> tuple[int, int]:
        """(heads, width) of the pre-activations that are computed for each token."""
        heads = 1 if self.config.sharing == "shared" else self.heads
        return heads, self.width if self.config.granularity == "elementwise" else 1

    @property
    def logits(self) -> int:
        """Pre-activations per token."""
        heads, width = self.logit_shape
        return heads * width

    @property
    def projected(self) -> bool:
        """True if the logits are a projection of the hidden state (else they are a learned constant)."""
        return self.config.input == "hidden"

    @property
    def has_constant(self) -> bool:
        """True if there is a learned vector beside, or instead of, the projection: a bias, or the constant gate."""
        return self.config.bias is not None

    @property
    def parameters(self) -> int:
        """Learned numbers of this gate in one layer (paper section 3.1, table 1)."""
        return self.logits * (self.hidden_size * self.projected + self.has_constant)

    @property
    def flops(self) -> int:
        """Forward floating-point operations per token: the projection, then one to combine each channel.

        Activations and averaging are left out, as elementwise work is by convention.
        """
        return 2 * self.logits * self.hidden_size * self.projected + self.heads * self.width

    def pre_activation(self, logits: Tensor) -> tuple[Tensor, str]:
        """Return what `gated_attention` takes as (gate, activation), from logits `[B, T, logits]`.

        Averaged scores are activated here, before the mean over heads, and need no further activation.
        """
        gate = logits.view(*logits.shape[:-1], *self.logit_shape)
        if self.config.sharing != "averaged":
            return gate, self.config.activation
        return gate_score(gate, self.config.activation).mean(-2, keepdim=True).to(logits.dtype), "identity"

    def scores(self, logits: Tensor) -> Tensor:
        """Return the scores `[B, T, heads or 1, width or 1]` of logits `[B, T, logits]`, float32 or wider."""
        return gate_score(*self.pre_activation(logits))

    def apply(self, x: Tensor, logits: Tensor) -> Tensor:
        """Gate a tensor `x [B, T, heads, width]` by logits `[B, T, logits]`."""
        gate, activation = self.pre_activation(logits)
        return kernels.apply_gate(x, gate, activation=activation, combine=self.config.combine)


def gates_of(model: ModelConfig) -> dict[str, Gate]:
    """Return the gates of one attention layer, by position."""
    return {
        position: Gate(model.gate, position, *SITES[position](model), model.hidden_size)
        for position in model.gate.positions
    }
