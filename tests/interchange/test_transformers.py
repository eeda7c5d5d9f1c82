"""What transformers computes with an exported model is what gatelab computes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gatelab.interchange.export import export_model
from gatelab.interchange.reading import read_model
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS
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
