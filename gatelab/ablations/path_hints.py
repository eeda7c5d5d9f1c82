"""What a configuration path that does not exist was probably meant to be."""

import difflib
from collections.abc import Collection, Mapping, Sequence

_OPTIMIZER = "training.optimizer"
_ALIASES = {
    "training.optimizer.learning_rate": "lr learningrate max_lr peak_lr",
    "training.optimizer.weight_decay": "wd",
    "training.optimizer.beta1, training.optimizer.beta2": "betas beta",
    "training.optimizer.clip_norm": "clip grad_clip gradient_clip gradient_clipping max_grad_norm",
    "training.schedule.kind": "scheduler lr_scheduler lr_schedule",
    "training.schedule.warmup": "warmup_steps warmup_ratio",
    "training.batch_size": "bs batch global_batch_size train_batch_size",
    "training.accumulation": "grad_accum accumulate gradient_accumulation gradient_accumulation_steps",
    "training.sequence_length": "seq_len seqlen seq_length max_seq_len context context_length block_size n_ctx",
    "training.tokens (a budget in tokens, not in steps)": "steps max_steps train_steps num_steps iterations epochs",
    "training.precision": "dtype amp bf16 fp16 mixed_precision",
    "model.layers": "n_layer n_layers num_layers num_hidden_layers depth",
    "model.hidden_size": "d_model n_embd dim width hidden hidden_dim emb_dim embedding_size",
    "model.query_heads": "n_head n_heads num_heads num_attention_heads heads",
    "model.kv_heads": "n_kv_heads num_kv_heads num_key_value_heads",
    "model.ffn_size": "d_ff intermediate_size ffn_dim ffn_hidden_size mlp mlp_ratio",
    "model.rope_base": "rope_theta theta rope",
    "model.norm_eps": "rms_norm_eps layer_norm_eps",
    "model.tie_embeddings": "tie_word_embeddings tied weight_tying",
    "model.init_std": "initializer_range init",
    "model.gate.position": "gate gating gates",
    "model.gate.position, model.qk_norm, model.sdpa_output (attention is grouped-query softmax)": "attention attn",
    "data.source": "dataset corpus text file path",
    "evaluation.points": "eval_interval eval_every evaluate_every",
}
_MEANT = {name: path for path, names in _ALIASES.items() for name in names.split()}
"""A name of the field's other tools -> the path here."""

MOST_LIKELY = 3
"""Paths that are suggested when several have the name."""


def path_hint(path: str, leaves: Collection[str]) -> str:
    """Hint at the path that was meant by one that is none of `leaves`, the paths that there are."""
    names = path.lower().replace("optimiser", "optimizer").split(".")
    sections = _sections(leaves)
    place, is_whole = max((_resolve(names, sections, start) for start in sections), key=lambda at: (at[1], len(at[0])))
    if place in leaves and (len(names) > 1 or place == names[0]):
        return f"did you mean {place}?"
    if place in sections and (is_whole or (place == _OPTIMIZER and names[-1] in ("kind", "name", "type"))):
        return _fields(place, sections)
    if (meant := _MEANT.get(names[-1])) is not None:
        return f"did you mean {meant}?"
    ends = {leaf: leaf.rpartition(".")[2] for leaf in leaves}
    near = difflib.get_close_matches(names[-1], set(ends.values()), n=1, cutoff=0.85)
    found = [leaf for leaf, end in ends.items() if end in near]
    if 0 < len(found) <= MOST_LIKELY:
        return f"did you mean {' or '.join(found)}?"
    return _fields(place, sections) if place in sections and place else f"paths begin with {', '.join(sections[''])}"


def _fields(section: str, sections: Mapping[str, Sequence[str]]) -> str:
    what = " is AdamW and" if section == _OPTIMIZER else ""
    return f"{section}{what} has the fields {', '.join(sections[section])}"


def _sections(leaves: Collection[str]) -> Mapping[str, Sequence[str]]:
    """Map each section, '' for the top, to the names in it."""
    names: dict[str, dict[str, None]] = {"": {}}
    for leaf in leaves:
        parts = leaf.split(".")
        for index, part in enumerate(parts):
            names.setdefault(".".join(parts[:index]), {})[part] = None
    return {section: tuple(inner) for section, inner in names.items()}


def _resolve(names: Sequence[str], sections: Mapping[str, Sequence[str]], start: str) -> tuple[str, bool]:
    """Follow names, spelled nearly as they are, from a section: how far they lead, and whether that is all the way.

    From another section than the top the first name must be exact, or all would be guesswork.
    """
    place = ""
    for name in names:
        inside = place or start
        close = difflib.get_close_matches(
            name, sections.get(inside, ()), n=1, cutoff=0.7 if place or not start else 0.88
        )
        if not close:
            return place, False
        place = f"{inside}.{close[0]}" if inside else close[0]
    return place, True
