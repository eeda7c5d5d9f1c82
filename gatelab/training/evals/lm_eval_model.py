"""A model as the lm-evaluation-harness sees it: it asks for log-likelihoods and greedy continuations.

Importing this module imports the harness, which the extra `evaluation` brings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows

from gatelab.training.evals.token_scorer import TokenScorer, Window


class LmEvalModel(TemplateLM):  # type: ignore[misc]  # the harness ships no types
    """A decoder, in evaluation mode, that answers the harness's requests.

    A context that does not fit into the scorer's `max_length` tokens with its continuation loses its beginning; `cut`
    counts these requests. A continuation that is longer by itself is scored in windows, like a text whose perplexity
    is asked for: every token once. Generation is greedy; a request to sample raises ValueError.
    """

    def __init__(self, scorer: TokenScorer) -> None:
        super().__init__()
        self._scorer, self._tokenizer = scorer, scorer.tokenizer
        self.cut = 0

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text without context."""
        return self._tokenizer.separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text; none are ever added."""
        tokens: list[int] = self._tokenizer.tokens(string).tolist()
        return tokens

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy) of each continuation after its context."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        self.cut += sum(len(context) + len(rest) - 1 > self._scorer.max_length for _, context, rest in requests)
        return self._score([(context, rest) for _, context, rest in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood in nats of each whole text, its last window full of context."""
        return [total for total, _ in self._score([([], self.tok_encode(request.args[0])) for request in requests])]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the greedy continuation of each context."""
        prompts = [self.tok_encode(request.args[0]) or [self._tokenizer.separator] for request in requests]
        settings = [greedy_settings(request.args[1]) for request in requests]
        self.cut += sum(len(prompt) > self._scorer.max_length for prompt in prompts)
        return self._scorer.continuations(prompts, [stops for stops, _ in settings], [limit for _, limit in settings])

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs, each the sum over its windows."""
        windows: list[Window] = []
        owners: list[int] = []
        for owner, (known, continuation) in enumerate(pairs):
            context = known or [self._tokenizer.separator]
            if 0 < len(continuation) <= self._scorer.max_length:
                parts = [((context + continuation)[:-1][-self._scorer.max_length :], continuation)]
            else:
                parts = list(get_rolling_token_windows(continuation, context[-1], self._scorer.max_length, 1))
            windows += parts
            owners += [owner] * len(parts)
        totals, greedy = [0.0] * len(pairs), [True] * len(pairs)
        for owner, (total, likeliest) in zip(owners, self._scorer.score(windows), strict=True):
            totals[owner] += total
            greedy[owner] &= likeliest
        return list(zip(totals, greedy, strict=True))


def greedy_settings(arguments: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return (stop strings, limit of tokens) of a request to generate. Raises ValueError if it is not greedy."""
    settings = normalize_gen_kwargs(dict(arguments))
    sampled = settings["do_sample"] and arguments.get("temperature", 1.0) > 0
    if sampled or arguments.get("num_beams", 1) > 1:
        raise ValueError(f"generation is greedy here (do_sample: false, one beam); the task asks for {dict(arguments)}")
    return [stop for stop in settings["until"] if stop], settings["max_gen_toks"]
