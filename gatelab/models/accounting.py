"""What a model costs, in closed form: parameters, FLOPs, memory. No torch, so that large plans are instant."""

from dataclasses import dataclass

from gatelab.models.config import ModelConfig
from gatelab.models.gates import gates_of

TRAIN_STATE_BYTES = 16  # float32 weight, gradient and two AdamW moments for each parameter


@dataclass(frozen=True)
class Parameters:
    """Numbers of learned parameters, by part of the model."""

    embedding: int
    attention: int
    gate: int
    ffn: int
    norm: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.attention + self.gate + self.ffn + self.norm


def _vocab(model: ModelConfig) -> int:
    if model.vocab_size is None:
        raise ValueError("model.vocab_size is not known yet: it comes from the tokenizer of a trial")
    return model.vocab_size


def count_parameters(model: ModelConfig) -> Parameters:
    """Count the parameters of a model whose `vocab_size` is set."""
    queries, keys = model.query_heads * model.head_dim, model.kv_heads * model.head_dim
    norms_per_layer = (4 if model.sandwich_norm else 2) * model.hidden_size
    norms_per_layer += 2 * model.head_dim * model.qk_norm + model.head_dim * (model.sdpa_output == "rmsnorm")
    return Parameters(
        embedding=_vocab(model) * model.hidden_size * (1 if model.tie_embeddings else 2),
        attention=model.layers * model.hidden_size * 2 * (queries + keys),
        gate=model.layers * sum(gate.parameters for gate in gates_of(model).values()),
        ffn=model.layers * 3 * model.hidden_size * model.ffn_size,
        norm=model.layers * norms_per_layer + model.hidden_size,
    )


def flops_per_token(model: ModelConfig, sequence_length: int) -> int:
    """Count the floating-point operations to train on one token: three times the forward pass.

    Counts 2 per multiply-add of every matrix product, attention over the causal half of the sequence, and the
    gates; leaves out other elementwise work.
    """
    queries, keys = model.query_heads * model.head_dim, model.kv_heads * model.head_dim
    per_layer = 2 * model.hidden_size * (2 * (queries + keys) + 3 * model.ffn_size)
    per_layer += 2 * sequence_length * queries  # QKᵀ and PV, 2 each, causal half
    per_layer += sum(gate.flops for gate in gates_of(model).values())
    return 3 * (model.layers * per_layer + 2 * model.hidden_size * _vocab(model))


def training_memory(model: ModelConfig, sequence_length: int, sequences: int) -> int:
    """Count the bytes to train with `sequences` sequences in flight, in float32.

    They are those of weights, gradients, optimiser state and activations.

    Activations are what is kept for the backward pass without recomputation: per token and layer the inputs of
    every matrix product, norm, rotation, gate and activation. Attention weights are not stored (fused attention; the
    CPU's backend does keep them).
    The logits are counted three times: themselves, their log-softmax and its gradient.
    """
    queries, keys = model.query_heads * model.head_dim, model.kv_heads * model.head_dim
    gates = gates_of(model).values()
    per_layer = 4 * model.hidden_size  # residual stream and normed input, before each sub-layer
    per_layer += (4 if model.qk_norm else 3) * queries + (4 if model.qk_norm else 3) * keys  # norm, RoPE, attention
    per_layer += 4 * model.ffn_size  # SwiGLU: two inputs, the activation, the product
    per_layer += 2 * model.hidden_size * model.sandwich_norm + 2 * queries * (model.sdpa_output != "plain")
    per_layer += sum(2 * gate.logits + 2 * gate.heads * gate.width for gate in gates)
    floats = (model.layers * per_layer + 2 * model.hidden_size + 3 * _vocab(model)) * sequence_length * sequences
    # Projections that read the same input are joined into one matrix for the product, a copy that is kept as well.
    joined = queries + 2 * keys + 2 * model.ffn_size + sum(gate.logits for gate in gates if gate.projected)
    floats += model.layers * model.hidden_size * joined
    return count_parameters(model).total * TRAIN_STATE_BYTES + 4 * floats
