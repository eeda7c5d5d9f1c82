"""Reading on with kept keys and values is reading all at once."""

from typing import Any

import pytest
import torch

from gatelab.models.cache import CachedDecoder
from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, initialize

SIZES = {"layers": 2, "hidden_size": 32, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_size": 24}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gate": {"position": "query+key+value+sdpa+output", "activation": "silu", "combine": "add"}},
        {"gate": {"position": "sdpa", "input": "constant", "sharing": "shared"}, "qk_norm": False},
        {"yarn_factor": 4.0, "yarn_length": 16, "sandwich_norm": True, "sdpa_output": "rmsnorm"},
    ],
)
@torch.no_grad()
def test_portions_give_the_logits_of_the_whole(fields: dict[str, Any]) -> None:
    """However a text is divided: single tokens, several, the first and the rest. The model is left as it was."""
    model = Decoder(ModelConfig.model_validate({**SIZES, "vocab_size": 97, "init_std": 0.2, **fields}))
    initialize(model, 0)
    tokens = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(0))
    whole = model(tokens)
    for sizes in ([1] * 40, [40], [9, 1, 1, 13, 16], [1, 39]):
        reader = CachedDecoder(model)
        portions = torch.cat([reader.read(portion) for portion in tokens.split(sizes, 1)], 1)
        torch.testing.assert_close(portions, whole, rtol=0, atol=1e-5)
        assert reader.length == 40
    assert torch.equal(model(tokens), whole)
