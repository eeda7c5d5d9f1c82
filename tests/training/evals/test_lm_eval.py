import functools
import importlib.util
import json
import math
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from gatelab.models.config import ModelConfig
from gatelab.models.decoder import Decoder, initialize
from gatelab.training.config import DataConfig
from gatelab.training.evals import lm_eval_tasks
from gatelab.training.evals.lm_eval_tasks import run_tasks
from gatelab.training.evals.token_scorer import TokenScorer
from gatelab.training.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

CPU = torch.device("cpu")
LENGTH = 40
QUESTIONS = [
    {"question": "Q: What floats on water?\nA:", "choices": ["a stone", "a duck", "lead"], "answer": 0},
    {"question": "Q: Two and two?\nA: ", "choices": ["four", "five, or perhaps six", "three"], "answer": 1},
    {"question": "The grass is", "choices": ["green", "ß☃", "red and blue"], "answer": 2},
    {"question": "", "choices": ["yes", "no", "7"], "answer": 1},
    {"question": "word " * 30, "choices": ["more words", "words " * 9, "other words"], "answer": 0},
]
TEXTS = ["one short text", "exactly forty bytes are in this document", "long: " + "many a word, ☃ and so on; " * 6, "x"]


@pytest.fixture(scope="module", params=["bytes", "bpe:300"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = [doc["question"] + str(doc["choices"]) for doc in QUESTIONS]
    return load_tokenizer(DataConfig(tokenizer=request.param), iter(texts))


@functools.cache
def decoder(vocab_size: int = 257) -> Decoder:
    """A gated model whose random weights are large enough for strong opinions."""
    sizes = {"layers": 2, "hidden_size": 16, "query_heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_size": 16}
    config = {**sizes, "vocab_size": vocab_size, "init_std": 0.3, "gate": {"position": "sdpa"}}
    model = Decoder(ModelConfig.model_validate(config))
    initialize(model, 1)
    return model.eval()


class Counter(nn.Module):
    """The likeliest token is the next number."""

    layers = ()  # keeps nothing

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.one_hot((tokens + 1) % 257, 257).float()


@functools.cache
@torch.no_grad()
def log_likelihoods(model: Decoder, tokens: tuple[int, ...]) -> list[tuple[float, bool]]:
    """(nats, whether likeliest) of each token after the first, by a forward pass over these tokens alone."""
    rows = model(torch.tensor([tokens[:-1]]))[0].double().log_softmax(-1)
    return [(row[token].item(), row.argmax().item() == token) for row, token in zip(rows, tokens[1:], strict=True)]


def likelihood(model: Decoder, tokens: Sequence[int], start: int) -> tuple[float, bool]:
    """(nats, whether likeliest) of the tokens from `start` on, each counted once.

    They are seen in windows of up to LENGTH inputs, each as far back from its last token as it may reach.
    """
    each = []
    for done in range(start, len(tokens), LENGTH):
        end = min(done + LENGTH, len(tokens))
        each += log_likelihoods(model, tuple(tokens[max(end - LENGTH - 1, 0) : end]))[done - end :]
    return sum(value for value, _ in each), all(likeliest for _, likeliest in each)


def answer_likelihood(model: Decoder, tokenizer: Tokenizer, context: str, answer: str) -> tuple[float, bool]:
    """Of the answer's tokens, which begin where the context, tokenised without its last spaces, ends."""
    whole, start = tokenizer.tokens(context + answer).tolist(), len(tokenizer.tokens(context.rstrip()))
    return likelihood(model, whole, start) if start else likelihood(model, [tokenizer.separator, *whole], 1)


def text_likelihood(model: Decoder, tokenizer: Tokenizer, text: str) -> float:
    """Of all tokens of a text, after a separator."""
    return likelihood(model, [tokenizer.separator, *tokenizer.tokens(text).tolist()], 1)[0]


@torch.no_grad()
def greedy_text(model: Decoder, tokenizer: Tokenizer, prompt: str, stops: Sequence[str], limit: int) -> str:
    """The likeliest token again and again."""
    tokens, generated = tokenizer.tokens(prompt).tolist() or [tokenizer.separator], []
    for _ in range(limit):
        token = int(model(torch.tensor([[*tokens, *generated][-LENGTH:]]))[0, -1].argmax())
        generated.append(token)
        if token == tokenizer.separator or any(stop in tokenizer.text(generated) for stop in stops):
            break
    text = tokenizer.text(generated)
    return text[: min([text.index(stop) for stop in stops if stop in text], default=None)]


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The harness without network, with one of its own tasks, and without the seconds in which it looks around."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    evaluator = pytest.importorskip("lm_eval.evaluator", reason="needs the extra `evaluation`")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)
    from lm_eval.tasks import manager

    own = tmp_path / "own"
    shutil.copytree(Path(manager.__file__).parent / "arc", own / "arc")
    monkeypatch.setattr(manager, "__file__", str(own / "manager.py"))  # the folder that it indexes
    lm_eval_tasks._harness_manager.cache_clear()
    yield
    lm_eval_tasks._harness_manager.cache_clear()


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Path]:
    """Write a task with its documents; gives the folder that holds it."""
    folder = tmp_path / "tasks"
    folder.mkdir()

    def write(name: str, docs: Sequence[Mapping[str, Any]], metrics: Sequence[str], **fields: Any) -> Path:
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metric_list": [{"metric": metric} for metric in metrics],
            **fields,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return folder

    return write


@pytest.fixture
def choice(task: Callable[..., Path]) -> Path:
    return task(
        "quiz",
        QUESTIONS,
        ["acc", "acc_norm", "brier_score"],
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
    )


def run(name: str, folder: Path, tokenizer: Tokenizer, batch_size: int = 3, **options: Any) -> dict[str, float]:
    """Results of a task for the model with this vocabulary."""
    model = decoder(tokenizer.vocab_size)
    given = {"max_length": LENGTH, "batch_size": batch_size, "include": folder, **options}
    return run_tasks([name], model, tokenizer, CPU, torch.float32, **given)


@pytest.mark.filterwarnings("ignore:.*longer than")
@pytest.mark.parametrize("batch_size", [1, 64])
def test_choices_are_made_by_the_likelihood_of_each_answer(
    lm_eval: None, choice: Path, tokenizer: Tokenizer, batch_size: int
) -> None:
    """Accuracies and Brier score are those of explicit forward passes, whatever the batch size."""
    model = decoder(tokenizer.vocab_size)
    right, normed, brier = [], [], []
    for doc in QUESTIONS:
        answers: Any = doc["choices"]
        # The harness puts a space before each answer.
        totals = np.array([answer_likelihood(model, tokenizer, str(doc["question"]), f" {a}")[0] for a in answers])
        chances = np.exp(totals - totals.max()) / np.exp(totals - totals.max()).sum()
        right.append(totals.argmax() == doc["answer"])
        normed.append((totals / [len(answer) for answer in answers]).argmax() == doc["answer"])
        brier.append(((chances - np.eye(len(answers))[doc["answer"]]) ** 2).sum())
    results = run("quiz", choice, tokenizer, batch_size)
    lengths = [len(tokenizer.tokens(f"{doc['question']} {answer}")) for doc in QUESTIONS for answer in doc["choices"]]
    cut = sum(length > LENGTH + 1 for length in lengths)  # the last token is no input
    assert results.pop("quiz/cut", 0) == cut  # contexts that lost their beginnings are told beside the accuracy
    assert 0 < np.mean(right) + np.mean(normed) < 2
    expected = {"acc": np.mean(right), "acc_norm": np.mean(normed), "brier_score": np.mean(brier), "samples": 5}
    assert results == pytest.approx({f"quiz/{name}": value for name, value in expected.items()}, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_likelihood_is_that_of_the_answers_tokens(lm_eval: None, tokenizer: Tokenizer, batch_size: int) -> None:
    """Text is tokenised as a whole, long contexts lose their beginning, long answers are scored whole, and the
    likeliest continuation is told from one that is not."""
    from lm_eval.api.instance import Instance

    from gatelab.training.evals.lm_eval_model import LmEvalModel

    model = decoder(tokenizer.vocab_size)
    pairs = [(str(doc["question"]), f" {answer}") for doc in QUESTIONS for answer in doc["choices"]]  # type: ignore[attr-defined]
    pairs += [("The grass ", "is"), ("  ", "x"), ("", "x"), ("A:", " words" * 30), ("word " * 30, "words " * 30)]
    likeliest = next(  # such that the text of its tokens is tokenised to them again
        (context, text)
        for context in (
            "The",
            "A",
            "Q: W",
            "duck",
            "le",
            "x",
            "or perhaps",
            "7",
            "no",
            "fl",
            *"abcdefghijklmnopqrstuvw",
        )
        for text in [greedy_text(model, tokenizer, context, [], 1)]
        if text and text.isascii() and len(tokenizer.tokens(context + text)) == len(tokenizer.tokens(context)) + 1
    )
    pairs += [likeliest, (likeliest[0], likeliest[1] + "☃")]
    scorer = LmEvalModel(TokenScorer(model, tokenizer, CPU, torch.float32, LENGTH, batch_size))
    given = scorer.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    expected = [answer_likelihood(model, tokenizer, *pair) for pair in pairs]
    assert [total for total, _ in given] == pytest.approx([total for total, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in given] == [greedy for _, greedy in expected]
    assert [greedy for _, greedy in given[-2:]] == [True, False]
    assert scorer.cut == sum(len(tokenizer.tokens(context + rest)) - 1 > LENGTH for context, rest in pairs) > 0


def test_the_likelihood_of_a_last_word(lm_eval: None, task: Callable[..., Path]) -> None:
    """Perplexity of the answer and how often it is the likeliest one."""
    tokenizer = ByteTokenizer()
    docs = [{"context": text[:-2], "last": text[-2:]} for text in TEXTS[:3]]
    fields = {"doc_to_text": "{{context}}", "doc_to_target": "{{last}}", "target_delimiter": ""}
    folder = task("last", docs, ["perplexity", "acc"], output_type="loglikelihood", **fields)
    expected = [answer_likelihood(decoder(), tokenizer, doc["context"], doc["last"]) for doc in docs]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = run("last", folder, tokenizer)
    assert results["last/perplexity"] == pytest.approx(math.exp(-np.mean([total for total, _ in expected])), rel=1e-5)
    assert results["last/acc"] == np.mean([greedy for _, greedy in expected])
    told = [str(warning.message) for warning in caught if "longer than" in str(warning.message)]
    assert len(told) == 1
    assert told[0].startswith("1 requests of last were longer than 40 tokens")


@pytest.mark.parametrize("batch_size", [1, 5])
def test_perplexity_counts_every_token_of_a_text_once(
    lm_eval: None, task: Callable[..., Path], tokenizer: Tokenizer, batch_size: int
) -> None:
    """Texts longer than the model reads are scored in windows; words, bytes and bits are the harness's."""
    model = decoder(tokenizer.vocab_size)
    metrics = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    docs = [{"text": text} for text in TEXTS]
    fields = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    total = sum(text_likelihood(model, tokenizer, text) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    results = run("texts", task("texts", docs, metrics, **fields), tokenizer, batch_size)
    assert results == pytest.approx(
        {
            "texts/word_perplexity": math.exp(-total / sum(len(re.split(r"\s+", text)) for text in TEXTS)),
            "texts/byte_perplexity": math.exp(-total / size),
            "texts/bits_per_byte": -total / size / math.log(2),
            "texts/samples": len(TEXTS),
        },
        rel=1e-4,
    )


@pytest.mark.filterwarnings("ignore:.*longer than")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation_takes_the_likeliest_token_until_a_stop(
    lm_eval: None, tokenizer: Tokenizer, batch_size: int
) -> None:
    """Prompts of any length continue as in a plain loop, to the first stop string or the limit."""
    from lm_eval.api.instance import Instance

    from gatelab.training.evals.lm_eval_model import LmEvalModel

    model = decoder(tokenizer.vocab_size)
    prompts = ["", "The grass", TEXTS[2], "Q: What floats on water?\nA: a duck", "Q"]
    free = [greedy_text(model, tokenizer, prompt, [], 24) for prompt in prompts]
    stops = [[], [free[1][3]], ["never to be seen"], [], ["", free[4][-1]]]
    limits = [24, 24, 24, 7, 24]
    requests = [
        Instance("generate_until", {}, (prompt, {"until": until, "max_gen_toks": limit, "do_sample": False}), 0)
        for prompt, until, limit in zip(prompts, stops, limits, strict=True)
    ]
    lm = LmEvalModel(TokenScorer(model, tokenizer, CPU, torch.float32, LENGTH, batch_size))
    expected = [
        greedy_text(model, tokenizer, prompt, [stop for stop in until if stop], limit)
        for prompt, until, limit in zip(prompts, stops, limits, strict=True)
    ]
    assert lm.generate_until(requests) == expected
    assert len({len(text) for text in expected}) > 2


def test_generation_ends_at_the_first_of_all_stops() -> None:
    """The earliest stop string counts, not the first of the list; a separator ends the text and is not part of it."""
    prompts, stops = [[97], [98, 97], [253], [97]], [["e", "cde"], ["\x00", "b"], [], ["x"]]
    for size in (1, 4):
        scorer = TokenScorer(Counter(), ByteTokenizer(), CPU, torch.float32, 8, size)  # type: ignore[arg-type]
        assert scorer.continuations(prompts, stops, [99, 99, 99, 4]) == ["b", "", "\ufffd\ufffd", "bcde"]
        assert scorer.continuations(prompts, stops, [0, 1, 0, 0]) == [""] * 4


def test_a_long_answer_is_greedy_if_all_its_windows_are(lm_eval: None) -> None:
    """One unlikely token at the start of a long answer is not forgotten."""
    from lm_eval.api.instance import Instance

    from gatelab.training.evals.lm_eval_model import LmEvalModel

    answer = "".join(map(chr, range(34, 100)))
    lm = LmEvalModel(TokenScorer(Counter(), ByteTokenizer(), CPU, torch.float32, 20, 3))  # type: ignore[arg-type]
    requests = [Instance("loglikelihood", {}, (context, answer), 0) for context in ("!", "a")]
    assert [greedy for _, greedy in lm.loglikelihood(requests)] == [True, False]


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_examples_in_the_prompt_are_drawn_by_the_seed(lm_eval: None, task: Callable[..., Path]) -> None:
    """The same seed gives the same prompts, and another one others."""
    docs = [{"q": f"{i} and {i}?", "a": f"{2 * i}"} for i in range(30)]
    fields = {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
    folder = task("sums", docs, ["perplexity"], num_fewshot=1, fewshot_split="test", **fields)
    results = [run("sums", folder, ByteTokenizer(), seed=seed) for seed in (3, 3, 4)]
    assert results[0] == results[1] != results[2]


def test_answers_pass_named_filters(lm_eval: None, task: Callable[..., Path]) -> None:
    """A metric of a filtered answer has the filter in its name, and `limit` bounds the documents."""
    tokenizer, prompts = ByteTokenizer(), ["The", "grass", "is", "green"]
    texts = [greedy_text(decoder(), tokenizer, prompt, [], 6) for prompt in prompts]
    docs = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    docs[1]["text"] = "something else"
    folder = task(
        "copy",
        docs,
        ["exact_match"],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{text}}",
        generation_kwargs={"until": ["never to be seen"], "max_gen_toks": 6, "temperature": 0.0},
        filter_list=[
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "nothing", "filter": [{"function": "regex", "regex_pattern": "(no such text)"}]},
        ],
    )
    results = run("copy", folder, tokenizer)
    right = [0, 2, 3]
    expected = {"copy/exact_match:whole": len(right) / 4, "copy/exact_match:nothing": 0.0, "copy/samples": 4}
    assert {name: value for name, value in results.items()} == expected
    limited = run("copy", folder, tokenizer, limit=2)
    assert limited == {**expected, "copy/exact_match:whole": 0.5, "copy/samples": 2}


def test_groups_and_tags_give_each_task_and_the_whole(
    lm_eval: None, task: Callable[..., Path], choice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group's mean stands beside its tasks; nothing is printed; random states and the model's mode stay."""
    task(
        "texts",
        [{"text": TEXTS[0]}],
        ["bits_per_byte"],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        tag="mine",
    )
    group = {"group": "all", "task": ["quiz"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (choice / "all.yaml").write_text(yaml.safe_dump(group))
    model, tokenizer = decoder().train(), ByteTokenizer()
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index, union-attr]
    with pytest.warns(UserWarning, match="longer than 40 tokens"):
        results = run_tasks(
            ["all", "mine"], model, tokenizer, CPU, torch.float32, max_length=LENGTH, batch_size=8, include=choice
        )
    assert model.training
    model.eval()
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states  # type: ignore[index, union-attr]
    assert results["all/acc"] == results["quiz/acc"]
    assert results["all/samples"] == results["quiz/samples"] == 5
    assert results["texts/samples"] == 1
    assert all(isinstance(value, float) for value in results.values())
    assert capsys.readouterr() == ("", "")


def test_numbers_alone_are_results() -> None:
    """Names, dashes and nested values of the harness stay out; standard errors that are numbers stay in."""
    entries = {"alias": "t", "name": "t", "sample_len": 3, "sample_count": {"acc,none": 3}}
    scores = {"acc,none": np.float32(0.5), "acc_stderr,none": "N/A", "f1,strict": 1, "f1_stderr,strict": 0.1}
    assert lm_eval_tasks._flat({"t": {**entries, **scores}, "group": {"alias": "g"}}) == {
        "t/acc": 0.5,
        "t/f1:strict": 1.0,
        "t/f1_stderr:strict": 0.1,
        "t/samples": 3.0,
    }


def test_bfloat16_changes_likelihoods_only_by_rounding() -> None:
    """The precision asked for is used."""
    windows = [(list(text.encode()[:-1]), list(text.encode()[1:])) for text in TEXTS[:2]]
    full, half = (
        TokenScorer(decoder(), ByteTokenizer(), CPU, dtype, 64, 2).score(windows)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert [total for total, _ in half] == pytest.approx([total for total, _ in full], rel=0.05)
    assert half[0][0] != full[0][0]


@pytest.mark.parametrize(
    "arguments",
    [{"do_sample": True}, {"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}, {"num_beams": 4}],
    ids=["sampled", "warm", "temperature", "beams"],
)
def test_a_task_that_samples_is_refused_before_anything_runs(
    lm_eval: None, task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    """A score of one random answer is no measurement; it is not quietly replaced by another either."""
    fields = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{q}}"}
    folder = task("dice", [{"q": "a"}], ["exact_match"], generation_kwargs={"until": ["\n"], **arguments}, **fields)
    monkeypatch.setattr(TokenScorer, "_logits", None)
    with pytest.raises(ValueError, match=r"task 'dice' .*greedy"):
        run("dice", folder, ByteTokenizer())


def test_an_unknown_task_is_named_with_those_like_it(lm_eval: None, choice: Path, tmp_path: Path) -> None:
    """Typing errors are told as such."""
    for name, like in (("quizz", "quiz"), ("arc_eazy", "arc_easy")):
        with pytest.raises(ValueError, match=rf"unknown task '{name}': did you mean {like}\b.*\?"):
            run(name, choice, ByteTokenizer())
    with pytest.raises(ValueError, match=r"unknown task '2024': .*lm-eval ls tasks"):
        run("2024", choice, ByteTokenizer())
    with pytest.raises(ValueError, match=r"nowhere' is no folder"):
        run("quiz", tmp_path / "nowhere", ByteTokenizer())


def test_data_that_cannot_be_had_are_an_error_that_names_the_task(
    lm_eval: None, task: Callable[..., Path], choice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task without its files, or of the harness itself without network, fails in one line before others run."""
    fields = {"output_type": "multiple_choice", "doc_to_text": "", "doc_to_choice": ["a"], "doc_to_target": 0}
    folder = task("gone", [], ["acc"], **fields)
    (folder / "gone.jsonl").unlink()
    monkeypatch.setattr(TokenScorer, "_logits", None)
    for name, include, cause in (("gone", folder, r"gone\.jsonl"), ("arc_easy", None, "allenai/ai2_arc")):
        with pytest.raises(ValueError, match=f"^task '{name}' cannot be loaded: .*{cause}[^\n]*$"):
            run_tasks(
                ["quiz", name] if include else [name],
                decoder(),
                ByteTokenizer(),
                CPU,
                torch.float32,
                max_length=LENGTH,
                batch_size=1,
                include=include,
            )


def test_without_the_harness_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional: the module imports without it, and needing it is not a crash."""
    for name in [name for name in sys.modules if name.startswith("lm_eval.")] + ["lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert lm_eval_tasks.__spec__ is not None
    assert lm_eval_tasks.__spec__.origin is not None
    spec = importlib.util.spec_from_file_location("harness_again", lm_eval_tasks.__spec__.origin)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    with pytest.raises(ValueError, match=r"pip install 'gatelab\[evaluation\]'"):
        again.run_tasks(["quiz"], decoder(), ByteTokenizer(), CPU, torch.float32, max_length=LENGTH, batch_size=1)
