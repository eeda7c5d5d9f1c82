"""Scoring and continuing tokens with a model: what an evaluation harness asks of it."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gatelab.models.cache import CachedDecoder
from gatelab.models.decoder import Decoder
from gatelab.training.device import precision_context
from gatelab.training.tokenizer import Tokenizer

PAD_MULTIPLE = 64  # lengths are rounded up to it: kernels meet few shapes
Window = tuple[list[int], list[int]]
"""(inputs, predicted): the tokens a model reads, and those that it should predict after the last of them."""


class TokenScorer:
    """Scores and continues tokens with a model, in batches of equal-length rows; rows are padded on the right.

    A causal model never sees the padding, so the batch size changes results by rounding only.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        device: torch.device,
        dtype: torch.dtype,
        max_length: int,
        batch_size: int,
    ) -> None:
        self.model, self.tokenizer, self.device, self.dtype = model, tokenizer, device, dtype
        self.max_length, self.batch_size = max_length, batch_size

    @torch.no_grad()
    def score(self, windows: Sequence[Window]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether each token was the likeliest) of what each window predicts."""
        scores = [(0.0, True)] * len(windows)
        for batch in self._batches([inputs for inputs, _ in windows]):
            logits = self._logits([windows[index][0] for index in batch])
            for index, row in zip(batch, logits, strict=True):
                inputs, predicted = windows[index]
                last = row[len(inputs) - len(predicted) : len(inputs)].float()
                wanted = torch.tensor(predicted, device=self.device)
                chosen = last.log_softmax(-1).gather(-1, wanted.unsqueeze(-1))
                scores[index] = (chosen.double().sum().item(), bool(last.argmax(-1).equal(wanted)))
        return scores

    @torch.no_grad()
    def continuations(
        self, prompts: Sequence[list[int]], stops: Sequence[list[str]], limits: Sequence[int]
    ) -> list[str]:
        """Return the greedy continuation of each prompt, as text.

        It ends before its first stop string, or at a separator or its limit of tokens. Each token follows from the last
        `max_length` tokens before it. Up to these, the CPU keeps keys and values, of each prompt by itself; other
        devices do more at a time, and read all prompts of a batch again for each token.
        """
        texts = [""] * len(prompts)
        for batch in self._batches(prompts):
            growing = {index: list(prompts[index]) for index in batch if limits[index] > 0}
            readers = {index: CachedDecoder(self.model) for index in growing if self.device.type == "cpu"}
            while growing:
                for index, token in self._likeliest(growing, readers).items():
                    growing[index].append(token)
                    generated = growing[index][len(prompts[index]) :]
                    text = self.tokenizer.text(generated)
                    found = [text.index(stop) for stop in stops[index] if stop in text]
                    if found or token == self.tokenizer.separator or len(generated) == limits[index]:
                        texts[index] = text[: min(found)] if found else text
                        del growing[index]
        return texts

    def _likeliest(self, growing: Mapping[int, list[int]], readers: Mapping[int, CachedDecoder]) -> dict[int, int]:
        """Return the likeliest next token of each text; those that fit into `max_length` go to their readers."""
        found = {}
        for index, reader in readers.items():
            if index in growing and len(growing[index]) <= self.max_length:
                unread = torch.tensor([growing[index][reader.length :]], device=self.device)
                with precision_context(self.dtype, self.device):
                    found[index] = int(reader.read(unread)[0, -1].argmax())
        rest = [index for index in growing if index not in found]
        if rest:
            rows = [growing[index][-self.max_length :] for index in rest]
            ends = torch.tensor([len(row) - 1 for row in rows], device=self.device)
            last = self._logits(rows)[torch.arange(len(rows), device=self.device), ends]
            found |= dict(zip(rest, last.argmax(-1).tolist(), strict=True))
        return found

    def _batches(self, rows: Sequence[list[int]]) -> Iterator[list[int]]:
        """Yield indices of rows of similar length, the longest first: what does not fit into memory fails at once."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _logits(self, rows: Sequence[list[int]]) -> Tensor:
        """Return logits `[B, T, vocab]` of rows of at most `max_length` tokens.

        What follows a row's end means nothing.
        """
        longest = max(len(row) for row in rows)
        length = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self.max_length)
        tokens = torch.zeros(len(rows), length, dtype=torch.int64)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = torch.tensor(row)
        with precision_context(self.dtype, self.device):
            logits: Tensor = self.model(tokens.to(self.device))
        return logits
