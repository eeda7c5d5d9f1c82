"""A decoder trained with gatelab, for Hugging Face transformers. This file stands alone; it was tested
with transformers 5.24.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

A decoder in the shape of Qwen3: pre-norm, RoPE, QK-norm, grouped-query attention, SwiGLU. A gate modulates the query,
the key or the value heads, the output of SDPA, or the dense output: `combine(y, activation(x W + b))`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "relu": F.relu,
    "softplus": lambda x: x.logaddexp(x.new_zeros(())),
    "identity": lambda x: x,
    "ns_sigmoid": lambda x: 0.5 + 0.5 * torch.sigmoid(x),
}
COMBINATIONS = {"multiply": torch.mul, "add": torch.add}
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class GatelabConfig(PreTrainedConfig):
    """What the model is."""

    model_type = "gatelab"

    def __init__(
        self,
        vocab_size=257,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        qk_norm=True,
        sandwich_norm=False,
        sdpa_output="plain",
        rope_base=10_000.0,
        yarn_factor=1.0,
        yarn_length=None,
        gate=None,
        use_cache=True,
        **others,
    ):
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.head_dim = num_key_value_heads, head_dim
        self.rms_norm_eps, self.initializer_range = rms_norm_eps, initializer_range
        self.qk_norm, self.sandwich_norm, self.sdpa_output = qk_norm, sandwich_norm, sdpa_output
        self.rope_base, self.yarn_factor, self.yarn_length = rope_base, yarn_factor, yarn_length
        self.gate, self.use_cache = gate or {"position": "none"}, use_cache
        super().__init__(**others)


def rotary(config, positions):
    """Return cosines and sines `[B, T, 1, D]` of positions `[B, T]`, with YaRN where the model has it."""
    dim, base = config.head_dim, config.rope_base
    frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    scale = 1.0
    if config.yarn_length is not None:

        def channel(turns):
            return dim * math.log(config.yarn_length / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = max(math.floor(channel(32.0)), 0), min(math.ceil(channel(1.0)), dim - 1)
        place = torch.arange(dim // 2, device=positions.device)
        stretched = ((place - first).double() / max(last - first, 1e-3)).clamp(0, 1)
        frequencies = frequencies * (1 - stretched + stretched / config.yarn_factor)
        scale = 0.1 * math.log(config.yarn_factor) + 1
    angles = positions.double()[..., None, None] * frequencies
    return [torch.cat([table, table], -1).float() * scale for table in (angles.cos(), angles.sin())]


def rotate(x, cos, sin):
    """Rotate `x [B, T, H, D]`: channel i turns with channel i + D/2."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)


class Gate(nn.Module):
    """A gate on a tensor `[B, T, heads, width]`."""

    def __init__(self, config, heads, width):
        super().__init__()
        spec = config.gate
        self.activation, self.combine = ACTIVATIONS[spec["activation"]], COMBINATIONS[spec["combine"]]
        self.averaged = spec["sharing"] == "averaged"
        self.shape = (1 if spec["sharing"] == "shared" else heads, width if spec["granularity"] == "elementwise" else 1)
        logits = self.shape[0] * self.shape[1]
        projected = spec["input"] == "hidden"
        self.weight = nn.Parameter(torch.zeros(logits, config.hidden_size)) if projected else None
        self.bias = nn.Parameter(torch.zeros(logits)) if spec["bias"] else None

    def forward(self, y, x):
        """Modulate y by scores of the hidden state x, in float32."""
        logits = self.bias if self.weight is None else F.linear(x, self.weight)
        if self.weight is not None and self.bias is not None:
            logits = logits + self.bias
        scores = self.activation(logits.float().unflatten(-1, self.shape))
        if self.averaged:
            scores = scores.mean(-2, keepdim=True)
        return self.combine(y.float(), scores).to(y.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with the model's gates."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim, hidden = layer, config.head_dim, config.hidden_size
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, keys * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, keys * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)
        if config.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(self.head_dim, config.rms_norm_eps) for _ in "qk")
        else:
            self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if config.sdpa_output == "rmsnorm":
            self.sdpa_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
        self.sdpa_output = config.sdpa_output
        sites = {
            "query": (heads, self.head_dim),
            "key": (keys, self.head_dim),
            "value": (keys, self.head_dim),
            "sdpa": (heads, self.head_dim),
            "output": (1, hidden),
        }
        position = config.gate["position"]
        there = [] if position == "none" else position.split("+")
        self.gates = nn.ModuleDict({site: Gate(config, *sites[site]) for site in there})

    def gated(self, site, y, x):
        """Apply the gate at a site, if there is one."""
        return self.gates[site](y, x) if site in self.gates else y

    def forward(self, x, cos, sin, mask, cache):
        """Attend within `x [B, T, hidden]`, and to what is in the cache."""
        query, key, value = (
            self.gated(site, projection(x).unflatten(-1, (-1, self.head_dim)), x)
            for site, projection in (("query", self.q_proj), ("key", self.k_proj), ("value", self.v_proj))
        )
        query, key = rotate(self.q_norm(query), cos, sin), rotate(self.k_norm(key), cos, sin)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
        y = self.gated("sdpa", y, x)
        if self.sdpa_output == "rmsnorm":
            y = self.sdpa_norm(y)
        elif self.sdpa_output == "silu":
            y = F.silu(y)
        return self.gated("output", self.o_proj(y.flatten(-2)).unsqueeze(-2), x).squeeze(-2)


class SwiGLU(nn.Module):
    """The feed-forward layer."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        """Map `x [..., hidden]` to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer."""

    def __init__(self, config, layer):
        super().__init__()

        def norm():
            return nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.input_layernorm, self.self_attn = norm(), Attention(config, layer)
        self.post_attention_layernorm, self.mlp = norm(), SwiGLU(config)
        self.attention_post_norm = norm() if config.sandwich_norm else nn.Identity()
        self.mlp_post_norm = norm() if config.sandwich_norm else nn.Identity()

    def forward(self, x, *context):
        """Map the residual stream `[B, T, hidden]` to itself."""
        x = x + self.attention_post_norm(self.self_attn(self.input_layernorm(x), *context))
        return x + self.mlp_post_norm(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """The model without its head."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class GatelabForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model."""

    config_class = GatelabConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        """Return the embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        """Replace the embedding."""
        self.model.embed_tokens = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **_,
    ):
        """Map `input_ids [B, T]` to logits `[B, T, vocab]`; `attention_mask [B, S]` is 0 where there is padding."""
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        seen, length = 0 if cache is None else cache.get_seq_length(), x.shape[1]
        places = torch.arange(seen + length, device=x.device)
        if position_ids is None:
            position_ids = places[seen:].expand(x.shape[0], -1)
        mask = places <= places[seen:, None]
        if attention_mask is not None:  # a token of the padding sees itself: no row is empty
            mask = mask & attention_mask[:, None, None, :].bool() | (places == places[seen:, None])
        context = (*rotary(self.config, position_ids), mask, cache)
        for block in self.model.layers:
            x = block(x, *context)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.model.norm(x)[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
