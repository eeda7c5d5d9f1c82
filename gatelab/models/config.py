"""What a model is: its shape, its gates, its controls. No torch here: plans are made from these alone."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from gatelab.configuration import Config, assign_frozen, reject_combination
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS

POSITIONS = ("query", "key", "value", "sdpa", "output")
"""Where a gate can sit (paper G4, G3, G2, G1, G5), in the order in which a forward pass meets them."""


def _parse_position(value: Any) -> str:
    names = str(value).replace(" ", "").split("+")
    unknown = [name for name in names if name not in POSITIONS]
    if names == ["none"]:
        return "none"
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"expected none, or one or more of {', '.join(POSITIONS)}, joined by + (value+sdpa)")
    return "+".join(name for name in POSITIONS if name in names)


def _one_of(names: Collection[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return AfterValidator(check)


def _enum(names: Collection[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(names)})


_ONE = "|".join(POSITIONS)
_POSITION_SCHEMA = {
    "anyOf": [
        {"type": "string", "enum": ["none", *POSITIONS]},
        {"type": "string", "pattern": rf"^ *({_ONE})( *\+ *({_ONE}))+ *$"},
    ]
}


class GateConfig(Config):
    """A gate: `Y' = combine(Y, activation(X W))` (paper eq. 5), the same at each of its positions.

    Where the position is none the other fields mean nothing and take their defaults, so that such configurations
    are equal.
    """

    position: Annotated[str, BeforeValidator(_parse_position), WithJsonSchema(_POSITION_SCHEMA)] = "none"
    """none, or where the gate sits: query, key, value, sdpa, output; several joined by +."""
    granularity: Literal["elementwise", "headwise"] = "elementwise"
    """A score for each channel, or one for each head."""
    sharing: Literal["per_head", "averaged", "shared"] = "per_head"
    """per_head: each head its own scores; averaged: scores of all heads, averaged after the activation (the paper's
    "head-shared"); shared: one projection whose scores serve all heads."""
    activation: Annotated[str, _one_of(ACTIVATIONS), _enum(ACTIVATIONS)] = "sigmoid"
    """What turns pre-activations into scores."""
    combine: Annotated[str, _one_of(COMBINATIONS), _enum(COMBINATIONS)] = "multiply"
    """How scores modulate a tensor."""
    input: Literal["hidden", "constant"] = "hidden"
    """What the score is computed from: the pre-normed hidden state, or a learned constant (paper table 4, row 6)."""
    init_scale: float = Field(1.0, ge=0)
    """The gate weights start at init_scale x the model's init_std (the paper does not state its choice); 0: at zero.
    A constant gate starts at its bias instead."""
    bias: float | None = None
    """Starting value of a learned bias; null: no bias, as in the paper. For a constant gate: its starting value."""

    @model_validator(mode="after")
    def _reset_inactive_fields(self) -> "GateConfig":
        if self.position == "none":
            assign_frozen(
                self, **{name: f.default for name, f in GateConfig.model_fields.items() if name != "position"}
            )
        elif self.input == "constant":
            assign_frozen(self, init_scale=1.0, bias=self.bias or 0.0)
        return self

    @property
    def positions(self) -> tuple[str, ...]:
        """The positions one by one; empty for none."""
        return () if self.position == "none" else tuple(self.position.split("+"))


class ModelConfig(Config):
    """A decoder in the shape of Qwen3: pre-norm, RoPE, QK-norm, grouped-query attention, SwiGLU."""

    layers: int = Field(4, ge=1)
    hidden_size: int = Field(64, ge=1)
    query_heads: int = Field(4, ge=1)
    kv_heads: int = Field(2, ge=1)
    head_dim: int = Field(16, ge=2, multiple_of=2)
    ffn_size: int = Field(176, ge=1)
    """Width of the SwiGLU feed-forward layer."""
    vocab_size: int | None = Field(None, ge=2)
    """null: as many as the tokenizer has."""
    tie_embeddings: bool = True
    qk_norm: bool = True
    """RMSNorm on each query and key head, before RoPE."""
    rope_base: float = Field(10_000.0, gt=0)
    yarn_factor: float = Field(1.0, ge=1)
    """YaRN (arXiv 2309.00071): RoPE stretched so that `yarn_length` times this many positions look like
    `yarn_length`; 1: plain RoPE."""
    yarn_length: int | None = Field(None, ge=2)
    """The sequence length of the training that YaRN stretches."""
    norm_eps: float = Field(1e-6, gt=0)
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of all initial weights."""
    depth_scaled_init: bool = True
    """Divide it by sqrt(2 x layers) for the two projections that write to the residual stream."""
    gate: GateConfig = GateConfig()
    sdpa_output: Literal["plain", "rmsnorm", "silu"] = "plain"
    """Controls without a gate (paper table 3, rows 5 and 6): RMSNorm on each head's SDPA output with one gain for
    all heads, or SiLU."""
    sandwich_norm: bool = False
    """RMSNorm also on the attention and feed-forward outputs, before the residual addition (paper table 2, row 7)."""

    @model_validator(mode="after")
    def _check_combination(self) -> "ModelConfig":
        gate = self.gate
        if self.yarn_factor == 1:
            assign_frozen(self, yarn_length=None)
        elif self.yarn_length is None:
            reject_combination(f"yarn_factor ({self.yarn_factor:g}) needs yarn_length: the length that it stretches")
        if self.query_heads % self.kv_heads:
            reject_combination(f"query_heads ({self.query_heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if "output" in gate.positions and (gate.granularity, gate.sharing) != ("elementwise", "per_head"):
            reject_combination(
                "the dense output has no heads: a gate there is elementwise and per_head "
                f"(got {gate.granularity}, {gate.sharing})"
            )
        scales_heads = gate.granularity == "headwise" and gate.combine == "multiply"
        if scales_heads and self.qk_norm and {"query", "key"} & set(gate.positions):
            reject_combination(
                "QK-norm undoes a headwise scale: it divides each query and key head by its own magnitude"
            )
        if "sdpa" in gate.positions and self.sdpa_output != "plain":
            reject_combination(
                f"sdpa_output: {self.sdpa_output} is a control without a gate; with a gate at sdpa their order "
                "would be undefined"
            )
        return self
