"""Small models, drawn from everything that a model can be."""

from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from gatelab.kernels.gate import ACTIVATIONS
from gatelab.models.config import POSITIONS, ModelConfig
from gatelab.models.decoder import Decoder, initialize


@st.composite
def _model_configs(draw: st.DrawFn) -> ModelConfig:
    """Any possible model: shapes, every option of its gates, controls, tying."""
    positions = draw(st.lists(st.sampled_from(POSITIONS), unique=True))
    gate = {"position": "+".join(positions) or "none", "granularity": "elementwise", "sharing": "per_head"}
    if "output" not in positions:  # which has no heads
        gate["granularity"] = draw(st.sampled_from(["elementwise", "headwise"]))
        gate["sharing"] = draw(st.sampled_from(["per_head", "averaged", "shared"]))
    undone = gate["granularity"] == "headwise" and {"query", "key"} & set(positions)
    gate |= {
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "combine": draw(st.sampled_from(["multiply", "add"])),
        "input": draw(st.sampled_from(["hidden", "constant"])),
        "init_scale": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "bias": draw(st.sampled_from([None, 0.0, -1.5])),
    }
    kv_heads = draw(st.integers(1, 3))
    return ModelConfig(
        layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 20)),
        query_heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 4)),
        ffn_size=draw(st.integers(1, 30)),
        vocab_size=draw(st.integers(2, 40)),
        tie_embeddings=draw(st.booleans()),
        qk_norm=not undone and draw(st.booleans()),
        gate=gate,
        sdpa_output="plain" if "sdpa" in positions else draw(st.sampled_from(["plain", "rmsnorm", "silu"])),
        sandwich_norm=draw(st.booleans()),
        depth_scaled_init=draw(st.booleans()),
    )


@pytest.fixture(scope="session")
def model_configs() -> st.SearchStrategy[ModelConfig]:
    """A strategy over all possible small models, vocabulary included."""
    return _model_configs()


@pytest.fixture(scope="session")
def build() -> Callable[..., Decoder]:
    """An initialised decoder: `build(config)`, `build(config, seed)`."""

    def built(config: ModelConfig, seed: int = 0) -> Decoder:
        model = Decoder(config)
        initialize(model, seed)
        return model

    return built
