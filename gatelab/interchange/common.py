"""What the families have in common: the parts of a decoder in the shape of Qwen3, under the names of transformers."""

from collections.abc import Iterator, Mapping
from typing import Any

from gatelab.interchange.layout import CannotExchange, Entry, same
from gatelab.models.config import ModelConfig
from gatelab.models.layers import YARN_FAST, YARN_SLOW

KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "query_heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "init_std",
}
"""Key of config.json -> our field: the same value."""

ALWAYS: Mapping[str, Any] = {"hidden_act": "silu", "attention_dropout": 0.0}
"""Keys that have one value in all models of ours, where they are there."""


def shared_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of config.json that all families have."""
    return {**{key: getattr(model, field) for key, field in KEYS.items()}, **ALWAYS}


def read_shared(config: Mapping[str, Any], **always: Any) -> dict[str, Any]:
    """Return the fields of a model that all families state alike.

    Raises CannotExchange where a key is missing, or one of `always` has another value: no model of ours is like that.
    """
    missing = [key for key in KEYS if config.get(key) is None and key != "initializer_range"]
    if missing:
        raise CannotExchange(f"config.json lacks {', '.join(missing)}")
    for key, value in {**ALWAYS, **always}.items():
        if config.get(key, value) != value:
            raise CannotExchange(f"config.json: {key} is {config[key]!r}, which gatelab's models have not ({value!r})")
    if config.get("quantization_config"):
        raise CannotExchange("config.json: quantization_config: gatelab reads weights that are not quantised")
    check_same(config, "layer_types", "full_attention", "all layers of gatelab's models have full attention")
    return {field: config[key] for key, field in KEYS.items() if config.get(key) is not None}


def check_same(config: Mapping[str, Any], key: str, value: Any, reason: str) -> None:
    """Raise CannotExchange, with the reason, where a list by layer, if it is there, holds another value."""
    found = config.get(key)
    unlike = [entry for entry in found if entry != value] if isinstance(found, list) else [found]
    if found is not None and unlike:
        raise CannotExchange(f"config.json: {key} has {unlike[0]}: {reason}")


def rope_config(model: ModelConfig) -> dict[str, Any]:
    """Return what transformers calls `rope_parameters`."""
    if model.yarn_length is None:
        return {"rope_type": "default", "rope_theta": model.rope_base}
    return {
        "rope_type": "yarn",
        "rope_theta": model.rope_base,
        "factor": model.yarn_factor,
        "original_max_position_embeddings": model.yarn_length,
        "beta_fast": YARN_FAST,
        "beta_slow": YARN_SLOW,
    }


def read_rope(config: Mapping[str, Any], rope: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a model that say how it rotates, from `rope_parameters`; None: older files have the keys of
    RoPE on their own. Raises CannotExchange for a RoPE that gatelab has not."""
    scaling = config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping) or not isinstance(rope, Mapping | None):
        raise CannotExchange("config.json: rope_parameters: expected a mapping")
    found = dict({"rope_theta": config.get("rope_theta"), **scaling} if rope is None else rope)
    kind = found.get("rope_type", found.get("type", "default"))
    share = found.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if found.get("rope_theta") is None:
        raise CannotExchange("config.json lacks rope_theta")
    if kind not in ("default", "yarn"):
        raise CannotExchange(f"config.json: RoPE of the type {kind!r}: gatelab has default and yarn")
    if share != 1.0:
        raise CannotExchange(f"config.json: RoPE turns {share} of each head: gatelab's turns all of it")
    fields: dict[str, Any] = {"rope_base": found["rope_theta"]}
    if kind == "yarn":
        odd = {"beta_fast": YARN_FAST, "beta_slow": YARN_SLOW, "attention_factor": None, "mscale": None}
        for key, value in odd.items():
            if found.get(key, value) not in (value, None):
                raise CannotExchange(f"config.json: YaRN with {key} {found[key]!r}: gatelab's has {value!r}")
        for key, field in (("factor", "yarn_factor"), ("original_max_position_embeddings", "yarn_length")):
            if found.get(key) is None:
                raise CannotExchange(f"config.json: YaRN lacks {key}")
            fields[field] = found[key]
    return fields


def gateless_refusal(model: ModelConfig) -> str:
    """Say what, gates aside, keeps a model from being one of transformers' own; '' if nothing does."""
    return shape_refusal(model) or ("" if model.qk_norm else "it always has QK-norm (model.qk_norm is false)")


def shape_refusal(model: ModelConfig) -> str:
    """Say what, gates and QK-norm aside, keeps a model from having the shape of Qwen3; '' if nothing does."""
    if model.sandwich_norm:
        return "it has no sandwich norm"
    if model.sdpa_output != "plain":
        return f"it has nothing like sdpa_output: {model.sdpa_output}"
    return ""


def block(layer: int) -> tuple[str, str]:
    """Return how names of a layer's tensors begin: (there, ours)."""
    return f"model.layers.{layer}", f"layers.{layer}"


def shared_tensors(model: ModelConfig, norm_offset: float = 0.0) -> Iterator[Entry]:
    """Yield the tensors that all families have under the same names.

    `norm_offset` is -1 where the gain of a norm is stored as its distance from 1.
    """
    hidden, keys, ffn = model.hidden_size, model.kv_heads * model.head_dim, model.ffn_size
    vocab = model.vocab_size or 0
    yield same("model.embed_tokens.weight", "embedding.weight", vocab, hidden)
    yield same("model.norm.weight", "norm.weight", hidden, offset=norm_offset)
    if not model.tie_embeddings:
        yield same("lm_head.weight", "head.weight", vocab, hidden)
    for layer in range(model.layers):
        there, ours = block(layer)
        yield same(f"{there}.input_layernorm.weight", f"{ours}.attention_norm.weight", hidden, offset=norm_offset)
        yield same(f"{there}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", hidden, offset=norm_offset)
        if model.qk_norm:
            for letter, name in (("q", "query"), ("k", "key")):
                yield same(
                    f"{there}.self_attn.{letter}_norm.weight",
                    f"{ours}.attention.{name}_norm.weight",
                    model.head_dim,
                    offset=norm_offset,
                )
        for letter, name in (("k", "key"), ("v", "value")):
            yield same(f"{there}.self_attn.{letter}_proj.weight", f"{ours}.attention.input.blocks.{name}", keys, hidden)
        yield same(
            f"{there}.self_attn.o_proj.weight",
            f"{ours}.attention.output.weight",
            hidden,
            model.query_heads * model.head_dim,
        )
        for name, own in (("gate", "left"), ("up", "right")):
            yield same(f"{there}.mlp.{name}_proj.weight", f"{ours}.ffn.input.blocks.{own}", ffn, hidden)
        yield same(f"{there}.mlp.down_proj.weight", f"{ours}.ffn.down.weight", hidden, ffn)


def query_entry(model: ModelConfig, layer: int) -> Entry:
    """Return the query projection of a layer, where it stands by itself."""
    there, ours = block(layer)
    rows = model.query_heads * model.head_dim
    return same(f"{there}.self_attn.q_proj.weight", f"{ours}.attention.input.blocks.query", rows, model.hidden_size)
