import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, initialize
from gatelab.training.config import DataConfig
from gatelab.training.evals.retrieval import Scores, score
from gatelab.training.evals.retrieval_tasks import TASKS, Example, make_examples
from gatelab.training.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

LENGTHS = {"needle": 128, "needles": 256, "variables": 256, "common_words": 256}  # in bytes, the shortest promised


@pytest.fixture
def text(corpus: Path) -> str:
    return "".join(path.read_text() for path in sorted(corpus.iterdir()))[:20_000]


@pytest.fixture(params=["bytes", "bpe:500"])
def tokenizer(request: pytest.FixtureRequest, text: str) -> Tokenizer:
    return trained(request.param, text)


@functools.cache
def trained(name: str, text: str) -> Tokenizer:
    return load_tokenizer(DataConfig(tokenizer=name), iter([text]))


def make(task: str, text: str, length: int, count: int = 8, tokenizer: Tokenizer | None = None) -> list[Example]:
    """Examples of a task, in bytes where no tokenizer is given."""
    tokenizer = tokenizer or ByteTokenizer()
    return make_examples(task, length, count, tokenizer, tokenizer.tokens(text), 0)


def read(example: Example, tokenizer: Tokenizer | None = None) -> tuple[str, str, list[str]]:
    """Context, question and answers as a person sees them."""
    context, question, *answers = (
        (tokenizer or ByteTokenizer()).text(part.tolist())
        for part in (example.context, example.question, *example.answers)
    )
    return context, question, answers


class Oracle(nn.Module):
    """Answers as many answers of an example as `knows(example, what it sees)` says; beyond them it only guesses."""

    def __init__(self, examples: Sequence[Example], knows: Callable[[Example, bytes], int], vocab: int = 257) -> None:
        super().__init__()
        self.examples, self.knows, self.vocab = examples, knows, vocab
        self.modes: list[bool] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.modes.append(self.training)
        logits = torch.zeros(*tokens.shape, self.vocab)
        for row, seen in enumerate(tokens.tolist()):
            # The one whose question comes last: needles in a context look like questions, too.
            asked, example = max(((self.asked(one, seen), one) for one in self.examples), key=lambda pair: pair[0])
            answers = example.answers[: self.knows(example, bytes(min(token, 255) for token in seen))]
            for place, token in enumerate([token for answer in answers for token in answer.tolist()], asked - 1):
                logits[row, place, token] = 50.0
        return logits

    @staticmethod
    def asked(example: Example, seen: list[int]) -> int:
        """Where the answers to an example begin, if it is asked (padding may follow); -1 if it is not."""
        asked = [*example.question, *np.concatenate(example.answers)[:-1]]
        starts = range(len(seen) - len(asked), -1, -1)
        return next((i + len(example.question) for i in starts if seen[i : i + len(asked)] == asked), -1)


class Copier(nn.Module):
    """What attention alone can do: goes on as the text went on after the longest match of what stands here."""

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, 257)
        for row, seen in enumerate(tokens.tolist()):
            matches = [0] * len(seen)  # for each earlier place: how far the text before it equals that before here
            for here in range(1, len(seen)):
                matches = [0, *(matches[i - 1] + 1 if seen[i] == seen[here] else 0 for i in range(1, here))]
                place = max(range(here), key=matches.__getitem__)
                logits[row, here, seen[place + 1]] = 10.0
        return logits


def scored(model: nn.Module, examples: Sequence[Example], batch_size: int = 3) -> Scores:
    return score(model, examples, torch.device("cpu"), torch.float32, batch_size)


@pytest.mark.parametrize("extra", [0, 1, 37, 1000])
@pytest.mark.parametrize("task", TASKS)
def test_an_example_has_exactly_the_length_asked_for(task: str, extra: int, text: str, tokenizer: Tokenizer) -> None:
    """A model of that context is asked for no position more, and no place of its context stays unused."""
    length = LENGTHS[task] + extra
    examples = make(task, text, length, 5, tokenizer)
    assert [len(example.tokens) for example in examples] == [length] * 5
    assert all(example.tokens.dtype == np.int64 for example in examples)


@pytest.mark.parametrize("task", TASKS)
def test_the_shortest_lengths_hold_the_longest_words(task: str) -> None:
    """Whether a task fits does not depend on the words that chance picks."""
    text = " ".join("".join(letters) * 2 for letters in itertools.permutations("abcde", 4))
    assert {len(example.tokens) for example in make(task, text, LENGTHS[task])} == {LENGTHS[task]}


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(TASKS)), st.text(min_size=1), st.integers(1, 20), st.integers(0, 2**32))
def test_any_text_is_a_haystack(task: str, text: str, count: int, seed: int) -> None:
    """Held-out text may be short, in another script, or without a single word."""
    haystack = ByteTokenizer().tokens(text)
    examples = make_examples(task, 300, count, ByteTokenizer(), haystack, seed)
    assert [len(example.tokens) for example in examples] == [300] * count


def test_examples_depend_on_the_arguments_alone(text: str) -> None:
    """The same call gives the same examples on every machine; another seed gives others."""
    haystack = ByteTokenizer().tokens(text)
    for task in TASKS:
        first, again, other = (make_examples(task, 256, 4, ByteTokenizer(), haystack, seed) for seed in (0, 0, 1))
        for one, two, three in zip(first, again, other, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist() != three.tokens.tolist()
            assert [len(answer) for answer in one.answers] == [len(answer) for answer in two.answers]


@pytest.mark.parametrize("task", TASKS)
def test_lengths_and_tokenizers_are_asked_the_same(task: str, text: str, tokenizer: Tokenizer) -> None:
    """A curve over lengths compares like with like: the questions and answers are the same ones."""
    short = [read(example)[1:] for example in make(task, text, 256)]
    long = [read(example, tokenizer)[1:] for example in make(task, text, 700, tokenizer=tokenizer)]
    assert short == long
    assert len(set(map(str, short))) == len(short)


def test_a_needle_lies_once_at_its_depth_in_a_text_of_its_own(text: str, tokenizer: Tokenizer) -> None:
    """From the beginning to the end in equal steps, in held-out text that is not always the same."""
    examples = make("needle", text, 400, 9, tokenizer)
    haystacks = set()
    for depth, example in zip(np.linspace(0, 1, 9), examples, strict=True):
        context, question, (answer,) = read(example, tokenizer)
        sentence = f"{question}{answer}.\n"
        before, after = context.split(sentence)
        assert re.fullmatch(r"\nThe code for [a-z]{4,8} is \d{5}\.\n", sentence)
        assert before + after in text + text
        haystacks.add(before + after)
        size = len(tokenizer.tokens(before)) / len(tokenizer.tokens(before + after))
        assert size == pytest.approx(depth, abs=0.07)
    assert len(haystacks) == 9
    assert [read(examples[0], tokenizer)[0].find("\nThe code"), read(examples[-1], tokenizer)[0][-2:]] == [0, ".\n"]


def test_an_answer_has_the_same_tokens_as_in_the_context(text: str, tokenizer: Tokenizer) -> None:
    """Copying is enough: a tokenizer that joins letters differently at another place does not make the task harder."""
    for task, length in LENGTHS.items():
        for example in make(task, text, length, tokenizer=tokenizer):
            context = [example.context[i:] for i in range(len(example.context))]
            for answer in example.answers:
                assert any(rest[: len(answer)].tolist() == answer.tolist() for rest in context)


def test_sentences_stand_between_words(text: str) -> None:
    """No word of the haystack is torn where a space is near."""
    haystack = ByteTokenizer().tokens("some words of a text " * 50)
    for example in make_examples("needle", 300, 9, ByteTokenizer(), haystack, 0):
        before, _, after = read(example)[0].partition("\nThe code for ")
        after = after.partition(".\n")[2]
        assert not before or not after or before.endswith(" ") or after.startswith(" ")
    lines = ByteTokenizer().tokens("a line of text\n" * 50)
    for example in make_examples("needle", 300, 9, ByteTokenizer(), lines, 0)[1:-1]:
        before, _, after = read(example)[0].partition("\nThe code for ")
        assert before.endswith("\n") or after.partition(".\n")[2].startswith("\n")


@pytest.mark.parametrize(("length", "others"), [(100, 1), (140, 2), (256, 3), (2000, 3)])
def test_needles_have_other_keys_and_numbers(text: str, length: int, others: int) -> None:
    """Only the key tells the numbers apart; there are as many as fit."""
    for example in make("needles", text, length):
        context, question, (answer,) = read(example)
        pairs = re.findall(r"\nThe code for (\w+) is( \d{5})\.\n", context)
        assert len(pairs) == len(dict(pairs)) == len(set(dict(pairs).values())) >= 1 + others
        assert dict(pairs)[question.split()[3]] == answer


@pytest.mark.parametrize(("length", "statements"), [(124, 5), (256, 8), (2000, 8)])
def test_variables_are_what_running_the_statements_gives(text: str, length: int, statements: int) -> None:
    """Each statement refers to one before it, and the answers are all names that hold the value, in their order."""
    for example in make("variables", text, length):
        context, question, answers = read(example)
        values: dict[str, str] = {}
        for name, held in re.findall(r"\nlet (\w+) = (\w+)\n", context):
            values[name] = held if held.isdigit() else values[held]
        asked = question.removesuffix(":").split()[-1]
        assert answers == [f" {name}" for name, value in values.items() if value == asked]
        assert (len(answers), len(values), len(set(values.values()))) == (4, statements, 2)


@pytest.mark.parametrize("length", [256, 1000, 5000])
def test_common_words_are_the_three_most_common(text: str, length: int) -> None:
    """In alphabetical order, well apart from the others, in a list as long as the length allows."""
    for example in make("common_words", text, length):
        context, _, answers = read(example)
        listed = context.partition("\nWords: ")[2].split(" ")
        counts = Counter(listed)
        common = [word for word, _ in counts.most_common(3)]
        assert answers == [f" {word}" for word in sorted(common)]
        assert len(counts) == 11
        assert len({counts[word] for word in common}) == 1
        assert {counts[word] * 4 for word in counts if word not in common} == {counts[common[0]]}
        assert listed != sorted(listed)
        assert len(listed) > length / 16


@pytest.mark.parametrize("task", TASKS)
def test_a_length_that_is_too_short_says_which_is_not(task: str, text: str, tokenizer: Tokenizer) -> None:
    """The message names the least length, and it is the least."""
    with pytest.raises(
        ValueError, match=rf"length 9 is too short for task '{task}': it needs at least \d+ tokens"
    ) as e:
        make(task, text, 9, tokenizer=tokenizer)
    least = int(str(e.value).split()[-2])
    assert least <= LENGTHS[task]
    assert {len(example.tokens) for example in make(task, text, least, tokenizer=tokenizer)} == {least}
    with pytest.raises(ValueError, match=f"at least {least} tokens"):
        make(task, text, least - 1, tokenizer=tokenizer)


def test_what_cannot_be_made_or_scored_is_an_error(text: str) -> None:
    """A misspelt task lists the tasks; no text and no other context to compare with are said."""
    with pytest.raises(ValueError, match="'needel': expected one of needle, needles, variables, common_words"):
        make("needel", text, 256)
    with pytest.raises(ValueError, match="haystack is empty"):
        make("needle", "", 256)
    with pytest.raises(ValueError, match=r"at least 2 examples \(got 1\)"):
        scored(nn.Identity(), make("needle", text, 256, 1))


@pytest.mark.parametrize("task", TASKS)
def test_who_knows_scores_one_and_who_guesses_scores_zero(task: str, text: str) -> None:
    """The ends of the scale. Neither reads its context, so it gains nothing from the right one."""
    examples = make(task, text, LENGTHS[task], 5)
    knowing = scored(Oracle(examples, lambda example, _: len(example.answers)), examples)
    assert (knowing.accuracy, knowing.n) == (1.0, 5)
    assert [knowing.loss, knowing.gain] == pytest.approx([0, 0], abs=1e-6)
    guessing = scored(Oracle(examples, lambda *_: 0), examples)
    assert (guessing.accuracy, guessing.n) == (0.0, 5)
    assert [guessing.loss, guessing.gain] == pytest.approx([math.log(257), 0], abs=1e-6)


@pytest.mark.parametrize("task", ["needle", "needles"])
def test_the_gain_is_what_the_context_tells(task: str, text: str) -> None:
    """A model that finds the needle where there is one, and guesses where there is none, gains all there is."""
    examples = make(task, text, LENGTHS[task], 7)

    def finds(example: Example, seen: bytes) -> int:
        return int(bytes(np.concatenate([example.question, *example.answers]).tolist()) + b"." in seen)

    scores = scored(Oracle(examples, finds), examples)
    assert scores.accuracy == 1
    assert [scores.loss, scores.gain] == pytest.approx([0, math.log(257)], abs=1e-6)


@pytest.mark.parametrize("task", ["needle", "needles"])
def test_copying_finds_needles(task: str, text: str) -> None:
    """No knowledge of the task is needed, so that small base models have a chance; a foreign context is no help."""
    scores = scored(Copier(), make(task, text, LENGTHS[task]))
    assert scores.accuracy == 1
    assert scores.loss < 0.1
    assert scores.gain > 3


def test_answers_count_one_by_one(text: str) -> None:
    """Half of the names of half of the examples is a quarter."""
    examples = make("variables", text, 256, 6)
    knows = {id(example): 2 * (i % 2) for i, example in enumerate(examples)}
    scores = scored(Oracle(examples, lambda example, _: knows[id(example)]), examples)
    assert scores.accuracy == 0.25
    assert scores.loss == pytest.approx(0.75 * math.log(257), abs=1e-6)  # all names have three digits


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_and_left_as_it_was(training: bool, text: str) -> None:
    """Scoring between two steps of training changes neither the scores nor the training."""
    examples = make("needle", text, 128)
    model = Oracle(examples, lambda *_: 1).train(training)
    scored(model, examples)
    assert not any(model.modes)
    assert model.training is training


@torch.no_grad()
def greedy(model: nn.Module, prefix: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The next tokens by real generation, one after the other."""
    tokens = torch.from_numpy(prefix)[None]
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(prefix) :].numpy()


def test_the_verdict_is_that_of_greedy_generation() -> None:
    """An answer counts if and only if the model would have written it, whatever stands beside it in its batch."""
    model = Decoder(ModelConfig(layers=2, hidden_size=32, ffn_size=32, vocab_size=50, init_std=0.5))
    initialize(model, 0)
    rng = np.random.default_rng(0)
    examples, verdicts = [], []
    for i in range(12):
        context, question = rng.integers(50, size=20 + i), rng.integers(50, size=3)
        answers: list[npt.NDArray[np.int64]] = []
        for j in range(2):
            answer = greedy(model, np.concatenate([context, question, *answers]), 4)
            if i >> j & 1:  # every second one has one token that the model would not write
                answer[rng.integers(4)] += 1
            answers.append(answer % 50)
        examples.append(Example(context, question, tuple(answers)))
        behind = [np.concatenate([context, question]), np.concatenate([context, question, answers[0]])]
        written = [greedy(model, *pair) for pair in zip(behind, (4, 4), strict=True)]
        verdicts.append([one.tolist() == two.tolist() for one, two in zip(answers, written, strict=True)])
    assert {(True, True), (True, False), (False, True), (False, False)} == set(map(tuple, verdicts))
    for example, verdict in zip(examples, verdicts, strict=True):
        assert scored(model, [example, example]).accuracy == np.mean(verdict)
    for batch_size in (1, 5, 100):
        assert scored(model, examples, batch_size).accuracy == pytest.approx(np.mean(verdicts))


def test_the_loss_is_that_of_the_answers_alone() -> None:
    """Against cross-entropy computed example by example, without padding; the gain against contexts shifted by one."""
    model = Decoder(ModelConfig(layers=1, hidden_size=16, ffn_size=16, vocab_size=30, init_std=0.5))
    initialize(model, 0)
    rng = np.random.default_rng(0)
    examples = [
        Example(*(rng.integers(30, size=size) for size in sizes), tuple(rng.integers(30, size=size) for size in ends))
        for sizes, ends in (((20, 4), (3, 1)), ((22, 3), (2,)), ((9, 6), (1, 1, 1)))
    ]

    def nats(shift: int) -> float:
        out: list[float] = []
        for i, example in enumerate(examples):
            context = examples[(i + shift) % 3].context
            whole = np.concatenate([context, example.question, *example.answers])[-len(example.tokens) :]
            with torch.no_grad():
                losses = -model(torch.from_numpy(whole)[None])[0].log_softmax(-1)
            places = range(len(whole) - sum(map(len, example.answers)), len(whole))
            out += [losses[place - 1, whole[place]].item() for place in places]
        return float(np.mean(out))

    scores = scored(model, examples, 2)
    assert scores.loss == pytest.approx(nats(0), rel=1e-5)
    assert scores.gain == pytest.approx(nats(1) - nats(0), rel=1e-4)
