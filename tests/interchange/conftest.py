"""Models small enough to be written and read in a blink, with weights that no symmetry hides."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, initialize

SIZES = {"layers": 2, "hidden_size": 32, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_size": 24}


@pytest.fixture
def decoder() -> Callable[..., Decoder]:
    """Make a decoder whose gains and biases are far from where they start; fields of its model may be given."""

    @torch.no_grad()
    def make(gate: dict[str, Any] | None = None, **fields: Any) -> Decoder:
        whole = {**SIZES, "vocab_size": 257, "init_std": 0.2, "gate": gate or {}, **fields}
        model = Decoder(ModelConfig.model_validate(whole))
        initialize(model, 0)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "norm" in name or "gate_constants" in name or "sdpa_output" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) ** 3 * 2)  # small ones, too
        return model.eval()

    return make
