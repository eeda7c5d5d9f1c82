"""What transformers computes with an exported model is what gatelab computes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gatelab.interchange.export import export_model
from gatelab.interchange.layout import CannotExchange
from gatelab.interchange.reading import read_model
from gatelab.interchange.tokenizer_files import tokenizer_files
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS
from gatelab.models.config import GateConfig
from gatelab.models.decoder import Decoder
from gatelab.training.config import DataConfig
from gatelab.training.evals.generation import Sampling, generate
from gatelab.training.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers", reason="needs transformers, which the extra `dev` brings")

Make = Callable[..., Decoder]
SDPA = {"position": "sdpa"}
CASES = [
    ("Qwen3ForCausalLM", {}),
    ("Qwen3ForCausalLM", {"tie_embeddings": False, "yarn_factor": 4.0, "yarn_length": 16}),
    ("Qwen3_5ForCausalLM", {"gate": SDPA}),
    ("Qwen3_5ForCausalLM", {"gate": SDPA, "tie_embeddings": False, "yarn_factor": 4.0, "yarn_length": 16}),
    ("Qwen3_5ForCausalLM", {"gate": {**SDPA, "granularity": "headwise"}}),
    ("Qwen3_5ForCausalLM", {"gate": {**SDPA, "sharing": "shared"}}),
    ("Qwen3_5ForCausalLM", {"gate": {**SDPA, "sharing": "shared", "granularity": "headwise", "bias": 1.0}}),
    ("Qwen3_5ForCausalLM", {"gate": {**SDPA, "input": "constant"}}),
    ("LagunaForCausalLM", {"gate": {**SDPA, "activation": "softplus"}}),
    ("LagunaForCausalLM", {"gate": {**SDPA, "activation": "softplus", "granularity": "headwise"}}),
    ("GatelabForCausalLM", {"gate": {**SDPA, "activation": "softplus", "sharing": "shared", "bias": 0.0}}),
    ("GatelabForCausalLM", {"gate": {**SDPA, "activation": "tanh", "sharing": "averaged"}}),
    ("GatelabForCausalLM", {"gate": {"position": "value+sdpa", "granularity": "headwise"}, "qk_norm": False}),
    (
        "GatelabForCausalLM",
        {"gate": {"position": "query+key+value+sdpa+output", "activation": "silu", "combine": "add", "bias": 0.0}},
    ),
    ("GatelabForCausalLM", {"gate": {"position": "output", "input": "constant"}, "tie_embeddings": False}),
    ("GatelabForCausalLM", {"sandwich_norm": True, "sdpa_output": "rmsnorm"}),
    ("GatelabForCausalLM", {"sdpa_output": "silu", "yarn_factor": 4.0, "yarn_length": 16}),
]


@pytest.fixture(autouse=True)
def _modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that goes with models is copied to where tests may write."""
    where = str(tmp_path_factory.getbasetemp() / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", where)


def tokens(rows: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(0))


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def written(model: Decoder, folder: Path, family: str = "auto") -> Path:
    export_model(model, ByteTokenizer(), folder, family, length=64)
    return folder


def greedy(model: Decoder, prompt: list[int], count: int) -> list[int]:
    return list(generate(model, prompt, count, -1, Sampling(0), torch.device("cpu"), torch.float32))


@pytest.mark.parametrize(("architecture", "fields"), CASES)
@torch.no_grad()
def test_logits_and_continuations_are_the_same(
    decoder: Make, tmp_path: Path, architecture: str, fields: dict[str, Any]
) -> None:
    """Every model is loaded, by transformers' own classes where it has one, and says the same, with its cache."""
    model = decoder(**fields)
    own = architecture.startswith("Gatelab")
    theirs = load(written(model, tmp_path / "model"), **({"trust_remote_code": True} if own else {}))
    assert type(theirs).__name__ == architecture
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), rtol=0, atol=1e-5)
    prompt = tokens(1, 8)
    continued = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=-1)[0, 8:].tolist()
    assert continued == greedy(model, prompt[0].tolist(), 12)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("combine", list(COMBINATIONS))
@torch.no_grad()
def test_the_file_that_goes_with_models_knows_every_gate(
    decoder: Make, tmp_path: Path, activation: str, combine: str
) -> None:
    """An activation or a combination that is new here is new there."""
    model = decoder({"position": "value", "activation": activation, "combine": combine}, layers=1)
    theirs = load(written(model, tmp_path / "model", "gatelab"), trust_remote_code=True)
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(decoder: Make, tmp_path: Path) -> None:
    """Prompts of different lengths can be continued together by the file that goes with models."""
    model = decoder({"position": "value"})
    theirs = load(written(model, tmp_path / "model"), trust_remote_code=True)
    prompts = [tokens(1, 9)[0], tokens(1, 4)[0]]
    padded = torch.stack([prompts[0], torch.cat([torch.full((5,), 256), prompts[1]])])
    mask = (padded != 256).long()
    both = theirs.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    assert [row[9:].tolist() for row in both] == [greedy(model, prompt.tolist(), 6) for prompt in prompts]


def test_a_model_that_transformers_saves_again_comes_back(decoder: Make, tmp_path: Path) -> None:
    """Its configuration survives; its weights do, to the rounding of a gain's distance from 1."""
    model = decoder({**SDPA, "granularity": "headwise"})
    load(written(model, tmp_path / "model")).save_pretrained(tmp_path / "again")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    found = read_model(tmp_path / "again")
    assert (found.model, found.tokenizer, found.note) == (model.config, None, "")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found.weights[name], parameter.detach(), rtol=0, atol=6e-8)


TEXTS = ["", "plain", "<|endoftext|>\r\n\x00", "wörld ☃ 𝄞", "  two  spaces ", "日本語\n\n\tx = 1"]


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
def test_tokens_are_the_same(decoder: Make, tmp_path: Path, name: str) -> None:
    """Text becomes the same tokens, tokens the same text, whatever the text spells, in transformers and here."""
    tokenizer: Tokenizer = load_tokenizer(DataConfig(tokenizer=name), iter(TEXTS))
    export_model(decoder(vocab_size=300), tokenizer, tmp_path / "model", length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    draw = random.Random(0)
    wild = ["".join(chr(draw.choice((draw.randrange(1, 0xD800), draw.randrange(128)))) for _ in range(40))]
    for text in [*TEXTS, *wild]:
        assert theirs(text)["input_ids"] == tokenizer.tokens(text).tolist()
    for _ in range(200):
        some = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(12))]
        assert theirs.decode(some, skip_special_tokens=True) == tokenizer.text(some)
    assert theirs.eos_token_id == tokenizer.separator


SHAPE = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
WHOLE = {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 1.0}


@pytest.mark.parametrize(
    ("kind", "fields", "gate"),
    [
        ("qwen3", {"tie_word_embeddings": False}, {}),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}, "tie_word_embeddings": True}, {}),
        ("qwen3_5_text", {"layer_types": ["full_attention"] * 2, "rope_parameters": WHOLE}, SDPA),
        (
            "laguna",
            {
                "mlp_layer_types": ["dense"] * 2,
                "gating": "per-element",
                "rope_parameters": {"full_attention": WHOLE, "sliding_attention": WHOLE},
            },
            {**SDPA, "activation": "softplus"},
        ),
    ],
)
@torch.no_grad()
def test_models_that_transformers_made_are_read(
    tmp_path: Path, kind: str, fields: dict[str, Any], gate: dict[str, str]
) -> None:
    """As transformers builds and saves them, never touched by gatelab; what is read says the same."""
    config = transformers.AutoConfig.for_model(kind, **SHAPE, **fields)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    for name, text in tokenizer_files(ByteTokenizer(), 64).items():
        (tmp_path / name).write_text(text)
    found = read_model(tmp_path)
    ours = Decoder(found.model)
    found.load_into(ours)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=0, atol=1e-5)
    assert found.model.gate == GateConfig.model_validate(gate)


def test_a_model_with_other_layers_is_refused(tmp_path: Path) -> None:
    """Qwen3.5 as it is released has Gated DeltaNet in three layers of four."""
    config = transformers.AutoConfig.for_model("qwen3_5_text", **{**SHAPE, "num_hidden_layers": 4})
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with pytest.raises(CannotExchange, match="layer_types has linear_attention: all layers of gatelab's models"):
        read_model(tmp_path)
