"""Continuing a text: with a cache as without one, drawn as the probabilities say."""

from collections import Counter

import pytest
import torch

from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, initialize
from gatelab.training.evals.generation import Sampling, choose_token, generate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Decoder:
    sizes = {"layers": 2, "hidden_size": 32, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_size": 24}
    config = {**sizes, "vocab_size": 23, "init_std": 0.3, "gate": {"position": "value+sdpa"}}
    made = Decoder(ModelConfig.model_validate(config))
    initialize(made, 3)
    return made.eval()


def continued(model: Decoder, prompt: list[int], tokens: int, sampling: Sampling, end: int = -1) -> list[int]:
    return list(generate(model, prompt, tokens, end, sampling, CPU, torch.float32))


@torch.no_grad()
def test_greedy_is_the_likeliest_token_again_and_again(model: Decoder) -> None:
    """Keys and values that are kept change nothing; it stops before the token that ends a text."""
    tokens = [1, 7, 2]
    for _ in range(20):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    found = continued(model, [1, 7, 2], 20, Sampling(temperature=0))
    assert found == tokens[3:]
    end = found[5]
    assert continued(model, [1, 7, 2], 20, Sampling(temperature=0), end) == found[: found.index(end)]


def test_tokens_are_drawn_with_their_probabilities() -> None:
    """Of many draws each token has its share; with top_p only the likeliest that reach it are drawn."""
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 1.9], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (1.0, 0.0)):
        sampling = Sampling(temperature, top_p)
        drawn = Counter(choose_token(logits, sampling, generator) for _ in range(1000))
        likely, order = (logits / temperature).softmax(-1).sort(descending=True)
        kept = int((likely.cumsum(-1) < top_p).sum()) + 1
        shares = dict(zip(order[:kept].tolist(), (likely[:kept] / likely[:kept].sum()).tolist(), strict=True))
        assert set(drawn) <= set(shares)
        for token, share in shares.items():
            assert abs(drawn[token] / 1000 - share) < 5 * (share * (1 - share) / 1000) ** 0.5 + 1e-3


def test_equal_seeds_draw_equal_tokens(model: Decoder) -> None:
    """Others draw others."""
    first, again, other = (continued(model, [3], 30, Sampling(seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
