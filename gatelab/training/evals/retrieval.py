"""What a model makes of retrieval tasks: whether it finds, in its whole context, what it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.metrics import NATS, MetricSpec
from gatelab.training.device import precision_context
from gatelab.training.evals.retrieval_tasks import Example, Tokens

SPECS = {
    "accuracy": MetricSpec("share", "higher"),
    "loss": NATS,
    "gain": MetricSpec("nats/token", "higher"),
    "n": MetricSpec(),
}
"""Metrics that `score` measures, without the beginning that names the task."""


@dataclass(frozen=True)
class Scores:
    """What a model makes of the examples of one task."""

    accuracy: float
    """Mean over examples of the share of answers that greedy decoding gives."""
    loss: float
    """Nats per answer token."""
    gain: float
    """Nats per answer token that the example's own context saves, compared with that of another example. It shows
    that a small model reads its context long before the accuracy does."""
    n: int
    """Examples."""


@torch.no_grad()
def score(
    model: nn.Module, examples: Sequence[Example], device: torch.device, dtype: torch.dtype, batch_size: int
) -> Scores:
    """Measure accuracy, loss and gain of a causal model on the examples of one task, in two forward passes for each.

    Nothing is generated: greedy decoding reproduces an answer exactly if and only if each of its tokens is the most
    likely one after the true tokens before it. Of several answers each is judged behind the true ones before it.
    Raises ValueError for fewer than two examples, which have no other context to compare with.
    """
    if len(examples) < 2:
        raise ValueError(f"a score needs at least 2 examples (got {len(examples)})")
    contexts = [example.context for example in examples]
    training = model.training
    model.eval()
    try:
        nats, hits = _judge(model, examples, contexts, device, dtype, batch_size)
        others, _ = _judge(model, examples, contexts[1:] + contexts[:1], device, dtype, batch_size)
    finally:
        model.train(training)
    ends = np.cumsum([len(answer) for example in examples for answer in example.answers])[:-1]
    answered = iter([bool(answer.all()) for answer in np.split(hits.numpy(), ends)])
    shares = [np.mean([next(answered) for _ in example.answers]) for example in examples]
    loss = nats.mean().item()
    return Scores(float(np.mean(shares)), loss, others.mean().item() - loss, len(examples))


def _judge(
    model: nn.Module,
    examples: Sequence[Example],
    contexts: Sequence[Tokens],
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Return nats (float64) and whether it is the argmax of each answer token, `[N]`, of examples behind contexts."""
    nats, hits = [], []
    for start in range(0, len(examples), batch_size):
        batch = slice(start, start + batch_size)
        sequences, counts = [], []
        for example, context in zip(examples[batch], contexts[batch], strict=True):
            # A foreign context may be a few tokens longer: a model is not asked for more positions than there are.
            sequence = np.concatenate([context, example.question, *example.answers])[-len(example.tokens) :]
            sequences.append(torch.from_numpy(sequence))
            counts.append(sum(map(len, example.answers)))
        # Padding on the right changes nothing before it.
        tokens = nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(device)
        rows = torch.cat([torch.full((n,), row) for row, n in enumerate(counts)]).to(device)
        ends = [torch.arange(len(sequence) - n, len(sequence)) for sequence, n in zip(sequences, counts, strict=True)]
        columns = torch.cat(ends).to(device)
        with precision_context(dtype, device):
            logits = model(tokens[:, :-1])[rows, columns - 1].float()
        targets = tokens[rows, columns]
        nats.append(F.cross_entropy(logits, targets, reduction="none").double().cpu())
        hits.append((logits.argmax(-1) == targets).cpu())
    return torch.cat(nats), torch.cat(hits)
