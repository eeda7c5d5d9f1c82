"""What is written is read back, bit for bit; what is not such a model is refused, and nothing is written."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from gatelab.interchange.export import ROUNDING, export_model
from gatelab.interchange.families import FAMILIES, family_for
from gatelab.interchange.layout import CannotExchange
from gatelab.interchange.reading import read_model
from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder
from gatelab.training.config import DataConfig
from gatelab.training.tokenizer import ByteTokenizer, load_tokenizer

Make = Callable[..., Decoder]
SDPA = {"position": "sdpa"}
CASES = [
    ("qwen3", {}),
    ("qwen3", {"yarn_factor": 4.0, "yarn_length": 16, "tie_embeddings": False}),
    ("qwen3_5", {"gate": {**SDPA, "granularity": "headwise", "bias": 1.0, "init_scale": 0.5}}),
    ("qwen3_5", {"gate": {**SDPA, "input": "constant", "sharing": "shared"}}),
    ("laguna", {"gate": {**SDPA, "activation": "softplus", "sharing": "shared", "granularity": "headwise"}}),
    ("authors", {"gate": SDPA}),
    ("authors", {"gate": {**SDPA, "granularity": "headwise"}, "yarn_factor": 4.0, "yarn_length": 16}),
    ("authors", {"qk_norm": False}),
    ("gatelab", {"gate": {"position": "query+value+output", "activation": "relu", "bias": 0.0}}),
    ("gatelab", {"sandwich_norm": True, "sdpa_output": "rmsnorm", "qk_norm": False}),
]


@pytest.fixture
def folder(decoder: Make, tmp_path: Path) -> Path:
    """A gated model in its folder."""
    export_model(decoder({**SDPA, "granularity": "headwise"}), ByteTokenizer(), tmp_path / "model", length=64)
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def same_weights(found: dict[str, torch.Tensor], model: Decoder) -> bool:
    own = dict(model.named_parameters())
    return own.keys() == found.keys() and all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize(("family", "fields"), CASES)
def test_what_is_written_is_read_back_bit_for_bit(
    decoder: Make, tmp_path: Path, family: str, fields: dict[str, Any]
) -> None:
    """Every weight, the configuration and the tokenizer: also gains below 0.5, whose distance from 1 is rounded."""
    model = decoder(**fields)
    assert export_model(model, ByteTokenizer(), tmp_path / "model", family, length=64).name == family
    found = read_model(tmp_path / "model")
    assert (found.model, found.tokenizer, found.longest, found.note) == (model.config, None, 64, "")
    assert same_weights(found.weights, model)
    assert found.family.name == family
    assert (tmp_path / "model" / ROUNDING).exists() == (family == "qwen3_5")


@pytest.mark.parametrize(("family", "fields"), CASES)
@torch.no_grad()
def test_a_stranger_is_read_by_its_own_configuration(
    decoder: Make, tmp_path: Path, family: str, fields: dict[str, Any]
) -> None:
    """Without what gatelab notes for itself the model computes the same, whatever its gate is then called."""
    model = decoder(**fields)
    export_model(model, ByteTokenizer(), tmp_path / "model", family, length=64)
    edit(tmp_path / "model" / "config.json", gatelab=None)
    found = read_model(tmp_path / "model")
    other = Decoder(found.model)
    found.load_into(other)
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other(tokens), model(tokens), rtol=0, atol=1e-5)


def test_the_authors_code_finds_its_keys(decoder: Make, tmp_path: Path) -> None:
    """It reads some without a default; one that gatelab's models have not is refused."""
    export_model(decoder(SDPA), ByteTokenizer(), tmp_path / "model", "authors", length=64)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    wanted = {"qkv_bias": False, "use_qk_norm": True, "elementwise_attn_output_gate": True, "rope_theta": 1e4}
    assert wanted.items() <= config.items()
    assert config["headwise_attn_output_gate"] is False
    for changes, reason in (
        ({"qkv_bias": True}, "qkv_bias is True"),
        ({"headwise_attn_output_gate": True}, "are both true: a model has one gate"),
    ):
        (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CannotExchange, match=reason):
            read_model(tmp_path / "model")


@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
@torch.no_grad()
def test_the_authors_layout_is_by_key_head(decoder: Make, granularity: str) -> None:
    """Their code sees the projection by KV head: first the queries of its heads, then their gates."""
    model = decoder({**SDPA, "granularity": granularity})
    heads, keys, width = model.config.query_heads, model.config.kv_heads, model.config.head_dim
    tensors = FAMILIES["authors"].pack(model.config, dict(model.named_parameters()))
    x = torch.randn(3, model.config.hidden_size)
    joint = F.linear(x, tensors["model.layers.0.self_attn.q_proj.weight"]).view(3, keys, -1)
    query, gate = joint[..., : heads // keys * width], joint[..., heads // keys * width :]
    parts = model.layers[0].attention.input(x)
    torch.testing.assert_close(query.reshape(3, -1), parts["query"])
    torch.testing.assert_close(gate.reshape(3, -1), parts["gate_sdpa"])


def test_a_gate_that_was_trained_elsewhere_is_what_it_has_become(folder: Path) -> None:
    """Rows that were repeated for a headwise gate, and differ now, are read as an elementwise gate, and it is said."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"] += torch.rand(64, 32)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    found = read_model(folder)
    assert found.model.gate.granularity == "elementwise"
    assert "q_proj.weight differs where layers.1.attention.input.blocks.gate_sdpa would be repeated" in found.note


def test_weights_in_shards_and_in_bfloat16_are_read(folder: Path, decoder: Make) -> None:
    """Large models come in several files, and in 16 bits."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        safetensors.torch.save_file({name: tensors[name].bfloat16() for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    found = read_model(folder).weights["embedding.weight"]
    assert torch.equal(found, decoder().embedding.weight.bfloat16().float())


def test_auto_prefers_what_transformers_has() -> None:
    """A file of Python goes along only where no family of transformers computes the same."""
    shape = {"vocab_size": 9}
    for gate, family in (
        ({}, "qwen3"),
        (SDPA, "qwen3_5"),
        ({**SDPA, "activation": "softplus"}, "laguna"),
        ({**SDPA, "activation": "softplus", "bias": 0.0}, "gatelab"),
        ({"position": "value"}, "gatelab"),
    ):
        assert family_for(ModelConfig.model_validate({**shape, "gate": gate})).name == family


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("qwen3", {"gate": SDPA}, r"qwen3 cannot hold this model: it has no gate \(model.gate.position is sdpa\)"),
        ("qwen3", {"qk_norm": False}, "it always has QK-norm"),
        ("qwen3", {"sandwich_norm": True}, "it has no sandwich norm"),
        ("qwen3", {"sdpa_output": "silu"}, "sdpa_output: silu"),
        ("qwen3_5", {}, "model.gate.position is none"),
        ("qwen3_5", {"gate": {"position": "value+sdpa"}}, "model.gate.position is value\\+sdpa"),
        ("qwen3_5", {"gate": {**SDPA, "activation": "silu"}}, r"model.gate.activation it has sigmoid \(not silu\)"),
        ("qwen3_5", {"gate": {**SDPA, "combine": "add"}}, "model.gate.combine it has multiply"),
        ("qwen3_5", {"gate": {**SDPA, "sharing": "averaged"}}, "model.gate.sharing it has per_head and shared"),
        ("laguna", {"gate": {**SDPA, "activation": "softplus", "bias": 0.0}}, "its gate has no bias"),
        ("authors", {"gate": {**SDPA, "input": "constant"}}, "its gate has no bias"),
        ("llama", {}, "no family 'llama': expected auto, qwen3, qwen3_5, laguna, authors, gatelab"),
    ],
)
def test_a_family_that_cannot_hold_a_model_says_why(
    decoder: Make, tmp_path: Path, family: str, fields: dict[str, Any], reason: str
) -> None:
    """Nothing is written."""
    with pytest.raises(CannotExchange, match=reason):
        export_model(decoder(**fields), ByteTokenizer(), tmp_path / "model", family, length=64)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(decoder: Make, folder: Path) -> None:
    """However little is in it."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CannotExchange, match="is there already"):
        export_model(decoder(), ByteTokenizer(), folder, length=64)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"model_type": "gemma9"},
            r"models of the type 'gemma9' are not read, only qwen3, qwen3_5_text, laguna, gatelab",
        ),
        ({"model_type": None}, "models of the type None"),
        ({"head_dim": None}, "config.json lacks head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types has linear_attention"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "RoPE turns 0.25 of each head"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "RoPE of the type 'llama3'"),
        ({"rope_parameters": None}, "lacks rope_theta"),
        ({"num_attention_heads": 3}, r"query_heads \(3\) must be a multiple of kv_heads"),
        ({"num_hidden_layers": "two"}, "layers: Input should be a valid integer"),
        ({"num_hidden_layers": 3}, "it lacks model.layers.2.input_layernorm.weight and 10 more"),
        ({"num_hidden_layers": 1}, "it also holds model.layers.1.input_layernorm.weight and 10 more"),
        ({"intermediate_size": 25}, r"mlp.gate_proj.weight is \[24, 32\], expected \[25, 32\]"),
        ({"attention_bias": True}, "it lacks model.layers.0.self_attn.k_proj.bias and 7 more"),
        ({"quantization_config": {"bits": 4}}, "weights that are not quantised"),
        ({"vocab_size": 100}, "tokenizer.json: is of another model: it has 257 tokens|embed_tokens.weight is"),
    ],
)
def test_a_folder_of_something_else_is_refused(folder: Path, changes: dict[str, Any], reason: str) -> None:
    """What is wrong is named, with the folder and the key or tensor."""
    edit(folder / "config.json", **changes)
    with pytest.raises(CannotExchange, match=reason) as caught:
        read_model(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_configuration_is_too_odd_to_be_refused(decoder: Make, tmp_path: Path, family: str) -> None:
    """Whatever stands at a key: the model is read, or what is wrong is said, and nothing takes for ever."""
    gates = {"qwen3": {}, "laguna": {**SDPA, "activation": "softplus"}}
    export_model(decoder(gates.get(family, SDPA), layers=1), ByteTokenizer(), tmp_path / "model", family, length=64)
    file = tmp_path / "model" / "config.json"
    whole = json.loads(file.read_text())
    for key in [*whole, "layer_types", "rope_scaling", "quantization_config"]:
        for odd in (None, True, "x", -1, 0, 10**9, 0.5, [], ["x"], {}, {"rope_type": "yarn", "rope_theta": 1.0}):
            file.write_text(json.dumps({**whole, key: odd}))
            with contextlib.suppress(CannotExchange):
                read_model(tmp_path / "model")


def test_files_that_are_not_there_or_damaged_are_named(folder: Path) -> None:
    """Each with what was expected."""
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damage in (content[:100], b"", content[:-4]):
        weights.write_bytes(damage)
        with pytest.raises(CannotExchange, match=r"model\.safetensors: is damaged"):
            read_model(folder)
    safetensors.torch.save_file({"x": torch.zeros(2, dtype=torch.int8)}, weights)
    with pytest.raises(CannotExchange, match="x is of the type int8"):
        read_model(folder)
    weights.unlink()
    with pytest.raises(CannotExchange, match=r"model\.safetensors: is not there"):
        read_model(folder)
    for text, reason in (("{", "is no JSON"), ("[]", "expected a mapping")):
        (folder / "config.json").write_text(text)
        with pytest.raises(CannotExchange, match=f"config.json: {reason}"):
            read_model(folder)
    with pytest.raises(CannotExchange, match="is no folder"):
        read_model(folder / "config.json")


def test_a_tokenizer_that_does_not_go_with_a_model_is_refused(folder: Path) -> None:
    """It is missing, is none, or has tokens that the model does not know."""
    file = folder / "tokenizer.json"
    many = load_tokenizer(DataConfig(tokenizer="bpe:300"), iter(["some text, and some more of the same text"] * 9))
    for text, reason in (
        (many.description(), "is of another model: it has 2[0-9][0-9] tokens.*vocab_size 257"),
        ("{}", "not in the tokenizer.json format"),
        ("x", "not in the tokenizer.json format"),
    ):
        file.write_text(text)
        with pytest.raises(CannotExchange, match=f"tokenizer.json: {reason}"):
            read_model(folder)
    file.unlink()
    with pytest.raises(CannotExchange, match=r"tokenizer\.json: is not there"):
        read_model(folder)
