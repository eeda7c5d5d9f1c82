"""Tasks that only a model which reads its whole context can do, at any length, without a download.

After RULER (Hsieh et al., arXiv 2404.06654): what is asked for is hidden in held-out text. They are made for base
models, of any size and tokenizer: a question is the beginning of a sentence that the answer continues, the shortest
tasks fit into some hundred bytes, and a score needs one forward pass and no generation.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gatelab.training.tokenizer import Tokenizer

Tokens = npt.NDArray[np.int64]

DISTRACTORS = 3  # needles with other keys
CHAIN = 4  # names that hold the value
COMMON, OTHERS, RATIO = 3, 8, 4  # words, and how much more often the common ones occur
REACH = 16  # tokens within which a sentence moves to a boundary
WORD_TEXT = 1 << 16  # characters of the haystack, to find words in
FALLBACK = (
    "amber basin cabin canyon castle cedar cliff cloud coral desert eagle ember falcon fern fjord forest garden "
    "glacier harbor hazel island jasmine lagoon lantern maple marble meadow mirror moss nectar ocean orchard pebble "
    "pepper planet prairie quartz raven reef river saddle silver spruce summit thunder tulip valley velvet willow"
)
"""Words for a text that has too few of its own."""


@dataclass(frozen=True, eq=False)
class Example:
    """One question, as int64 tokens. Context, question and answers, one behind the other, are natural text."""

    context: Tokens
    question: Tokens
    answers: tuple[Tokens, ...]
    """In the order in which they are asked for; the space between two of them belongs to the second."""

    @property
    def tokens(self) -> Tokens:
        """The whole of it."""
        return np.concatenate([self.context, self.question, *self.answers])


@dataclass(frozen=True)
class Draft:
    """An example before it has its haystack."""

    sentences: list[tuple[float, Tokens]]
    """Sentences to hide, each after its depth: 0 is the beginning of the haystack, 1 its end."""
    question: Tokens
    answers: tuple[Tokens, ...]

    @property
    def size(self) -> int:
        """Tokens without a haystack."""
        return sum(map(len, [self.question, *self.answers, *(tokens for _, tokens in self.sentences)]))


@dataclass(frozen=True)
class Material:
    """What one example is made from."""

    tokenizer: Tokenizer
    words: Sequence[str]
    rng: np.random.Generator
    length: int
    depth: float

    def write(self, *pieces: str) -> Tokens:
        """Return the tokens of a text. Each piece is tokenised alone: a word has the same tokens wherever it stands."""
        return np.concatenate([self.tokenizer.tokens(piece) for piece in pieces])

    def pick(self, count: int) -> list[str]:
        """Draw distinct words."""
        return [self.words[i] for i in self.rng.choice(len(self.words), count, replace=False)]

    def numbers(self, count: int) -> list[str]:
        """Draw distinct numbers of five digits."""
        return [str(10_000 + i) for i in self.rng.choice(90_000, count, replace=False)]

    def names(self, count: int) -> list[str]:
        """Draw distinct names of variables, a letter and two digits each."""
        return [f"{chr(ord('a') + i % 26)}{10 + i // 26}" for i in self.rng.choice(26 * 90, count, replace=False)]

    def depths(self, count: int) -> list[float]:
        """Draw random depths in ascending order."""
        return sorted(self.rng.random(count).tolist())


def _needle(material: Material) -> Draft:
    """State a number for one key; the question begins the same sentence."""
    return _statements(material)[0]


def _needles(material: Material) -> Draft:
    """State it among other numbers for other keys."""
    return _distract(*_statements(material), material.length)


def _statements(material: Material) -> tuple[Draft, list[tuple[float, Tokens]]]:
    """Make the needle at its depth, and distractors at random ones."""
    keys, numbers = material.pick(1 + DISTRACTORS), material.numbers(1 + DISTRACTORS)
    depths = [material.depth, *material.depths(DISTRACTORS)]
    questions = [material.write("\nThe code for", f" {key}", " is") for key in keys]
    answers = [material.write(f" {number}") for number in numbers]
    end = material.write(".\n")
    sentences = [np.concatenate([*parts, end]) for parts in zip(questions, answers, strict=True)]
    needle, *others = zip(depths, sentences, strict=True)
    return Draft([needle], questions[0], (answers[0],)), others


def _variables(material: Material) -> Draft:
    """Set a variable to a number, another to that variable, and so on; a second chain holds another number."""
    names, (number, other) = material.names(2 * CHAIN), material.numbers(2)

    def chain(value: str, names: list[str]) -> list[tuple[float, Tokens]]:
        pairs = zip(names, [value, *names[:-1]], strict=True)
        lines = [material.write("\nlet", f" {name}", " =", f" {held}", "\n") for name, held in pairs]
        return list(zip(material.depths(len(lines)), lines, strict=True))

    question = material.write("\nNames with the value", f" {number}", ":")
    answers = tuple(material.write(f" {name}") for name in names[:CHAIN])
    draft = Draft(chain(number, names[:CHAIN]), question, answers)
    return _distract(draft, chain(other, names[CHAIN:]), material.length)


def _distract(draft: Draft, distractors: list[tuple[float, Tokens]], length: int) -> Draft:
    """Add the first of the distractors: as many as the length holds, but at least one."""
    sizes = draft.size + np.cumsum([len(tokens) for _, tokens in distractors])
    count = max(1, int((sizes <= length).sum()))
    return replace(draft, sentences=[*draft.sentences, *distractors[:count]])


def _common_words(material: Material) -> Draft:
    """List words in random order, as many as the length allows, three of them four times as often as the others.

    The numbers of words stay the same: a longer list repeats each of them more often.
    """
    words = material.pick(COMMON + OTHERS)
    begin, question = material.write("\nWords:"), material.write("\nMost common, in alphabetical order:")
    written = {word: material.write(f" {word}") for word in words}
    answers = tuple(written[word] for word in sorted(words[:COMMON]))
    once = words[:COMMON] * RATIO + words[COMMON:]
    room = material.length - len(begin) - len(question) - sum(map(len, answers))
    rounds = max(1, room // sum(len(written[word]) for word in once))
    order = material.rng.permutation(once * rounds)
    return Draft([(1.0, np.concatenate([begin, *(written[str(word)] for word in order)]))], question, answers)


TASKS: Mapping[str, Callable[[Material], Draft]] = {
    "needle": _needle,
    "needles": _needles,
    "variables": _variables,
    "common_words": _common_words,
}
"""The tasks by name, the easiest first."""


def make_examples(
    task: str, length: int, count: int, tokenizer: Tokenizer, haystack: Tokens, seed: int
) -> list[Example]:
    """Make examples of exactly `length` tokens, answers included: a pure function of the arguments.

    `haystack` is held-out text; where it is shorter than an example it is repeated. Needles lie at evenly spaced
    depths, the first example's at the beginning of the haystack and the last one's at its end. What is asked for
    depends on the task, the text, the seed and the example's place, not on the length: lengths compare.
    Raises ValueError for a task that there is not, a length that does not hold it, and an empty haystack.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}: expected one of {', '.join(TASKS)}")
    if not len(haystack):
        raise ValueError("the haystack is empty: expected tokens of held-out text")
    # Twice as many tokens hold these characters in any alphabet: the words do not depend on the tokenizer.
    words = _words(tokenizer.text(haystack[: 2 * WORD_TEXT].tolist())[:WORD_TEXT])
    drafts = [
        TASKS[task](Material(tokenizer, words, _generator(seed, f"{task}/{i}"), length, float(depth)))
        for i, depth in enumerate(np.linspace(0, 1, count))
    ]
    needed = max((draft.size for draft in drafts), default=0)
    if needed > length:
        raise ValueError(f"length {length} is too short for task {task!r}: it needs at least {needed} tokens")
    # All parts of the text in turn, but not in order: the depth must not tell which part it is.
    starts = _generator(seed, task).permutation(count) * len(haystack) // max(1, count)
    return [
        Example(
            _hide(draft.sentences, _cut(haystack, int(start), length - draft.size), tokenizer),
            draft.question,
            draft.answers,
        )
        for draft, start in zip(drafts, starts, strict=True)
    ]


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))


def _words(text: str) -> list[str]:
    """Find distinct words of a text that are no part of a longer name."""
    words, fallback = set(re.findall(r"\b[a-z]{4,8}\b", text)), FALLBACK.split()
    return sorted(words if len(words) >= len(fallback) else words.union(fallback))


def _cut(haystack: Tokens, start: int, length: int) -> Tokens:
    """Return `length` tokens from `start` on, from the beginning again after the end."""
    return haystack[(start + np.arange(length)) % len(haystack)].astype(np.int64)


def _hide(sentences: list[tuple[float, Tokens]], haystack: Tokens, tokenizer: Tokenizer) -> Tokens:
    """Return the haystack with sentences at their depths."""
    ordered = sorted(sentences, key=lambda sentence: sentence[0])
    places = [_boundary(haystack, round(depth * len(haystack)), tokenizer) for depth, _ in ordered]
    first, *pieces = np.split(haystack, places)
    hidden = (part for (_, tokens), piece in zip(ordered, pieces, strict=True) for part in (tokens, piece))
    return np.concatenate([first, *hidden])


def _boundary(haystack: Tokens, place: int, tokenizer: Tokenizer) -> int:
    """Find the end of a line near a place, or else a space, or else the place.

    The order of two places is never swapped.
    """
    reach = min(REACH, len(haystack) // 8)
    near = range(max(0, place - reach), min(len(haystack), place + reach) + 1)
    edges = {}
    for cut in sorted(near, key=lambda cut: abs(cut - place)):
        before, after = (tokenizer.text(side.tolist()) for side in (haystack[:cut][-1:], haystack[cut:][:1]))
        edges[cut] = "\n" if cut in (0, len(haystack)) else before[-1:] + after[:1]
    lines = (cut for cut, edge in edges.items() if "\n" in edge)
    spaces = (cut for cut, edge in edges.items() if any(map(str.isspace, edge)))
    return next(lines, next(spaces, place))
