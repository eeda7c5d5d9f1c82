"""The report says what the study's records say, leaves out what there is nothing to say of, and holds all it needs."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from matplotlib.figure import Figure

from gatelab.metrics import NATS
from gatelab.orchestrator.preregistration import register_claims
from gatelab.results.analyses.comparison import Comparison, ComparisonRow, compare
from gatelab.results.analyses.contrasts import Evidence
from gatelab.results.report.context import MOST_DRAWN, chosen, read_context
from gatelab.results.report.page import LARGEST_SVG, MOST_ROWS, to_page, write_report
from gatelab.results.report.parts import Picture, Section
from gatelab.results.report.provenance import common_configuration
from gatelab.results.report.report import Report, report
from gatelab.results.report.stamp import make_stamp
from gatelab.results.report.summary import short_names, summary
from gatelab.results.statistics.paired import Interval
from gatelab.results.store.journal import Journal
from gatelab.results.store.layout import NotFound
from gatelab.results.store.records import write_json
from gatelab.results.store.runs import SUMMARY, runs_from_journals
from gatelab.results.views.comparison import comparison_table
from gatelab.results.views.style import render_figure
from gatelab.results.views.table import Column, Table, to_html, to_markdown

NONE = Interval(float("nan"), float("nan"), float("nan"), 0)


def row(variant: str, mean: float | None, delta: float | None = None, verdict: str = "baseline", **rest: Any) -> Any:
    """A row of a comparison; without a difference it is the baseline."""
    known: dict[str, Any] = {
        "levels": {"model.gate.position": variant},
        "baseline": "none",
        "value": NONE if mean is None else Interval(mean, mean - 1, mean + 1, 3),
        "delta": None if delta is None else Interval(delta, delta - 1, delta + 1, 3),
        "outcomes": {"finished": 3},
        "reasons": (),
        "parameters": 7,
        "added_parameters": 0,
        "tokens_per_second": 1.0,
        "verdict": verdict,
    }
    return ComparisonRow(variant=variant, **known | rest)


def comparison(*rows: ComparisonRow) -> Comparison:
    """A comparison by validation/loss."""
    return Comparison("s", "h", "validation/loss", None, ("model.gate.position",), rows, (), NATS)


class Tables(HTMLParser):
    """The texts of cells, row by row, of each table of a page; and every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br", "wbr"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open[-2:]):
            self.tables[-1][-1][-1] += data


def markdown_cells(grid: Table) -> list[list[str]]:
    """The cells of a Markdown table, headings first, marks of emphasis aside."""
    lines = [line for line in to_markdown(grid).splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("*") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [cells[0], *cells[2:]]


def test_the_answer_counts_verdicts_and_names_variants(laboratory: Any) -> None:
    """Few variants are named with their differences, what is decided first; of many the extremes are."""
    lab = laboratory()
    lab.finish(0, 0)
    lab.finish(0, 1)
    lab.begin(1, 0)
    lab.end(1, 0, "diverged", 5, "too large")
    runs = runs_from_journals(lab.folder, lab.name)
    best = row("sdpa", 1.25, -0.25, "better", best=True)
    few = comparison(best, row("none", 1.5), row("key", 1.5625, 0.0625, "undecided"), row("value", None, None, "odd"))
    said = summary(runs, few)
    assert said == [
        "Of 3 variants compared with `none` by `validation/loss` (nats/token): 1 better (sdpa −0.2500); "
        "1 undecided (key +0.0625); 1 odd (value). Best mean: sdpa, 1.2500 over 3 seeds; the baseline's is 1.5000.",
        "Of 4 trials, 1 diverged, 1 not finished yet: they are counted beside the means, never in them.",
    ]
    one = summary(runs, comparison(best, row("none", 1.5)))
    assert one[0].startswith(
        "`sdpa` compared with `none` by `validation/loss` (nats/token): better (−0.2500). Best mean"
    )
    others = [row(f"gate{index}", 2.0 + index, 0.5 + index, "worse") for index in range(9)]
    [many, _] = summary(runs, comparison(best, row("none", 1.5), *others))
    assert "by `validation/loss` (nats/token): 1 better; 9 worse. Differences reach from sdpa −0.2500 to gate8" in many
    assert "gate4" not in many
    alone = summary(runs, comparison(row("sdpa", 1.25, None, "", baseline=None, best=True)))
    assert alone[0] == "Best mean: sdpa, 1.2500 over 3 seeds."
    nothing = summary(runs, comparison(row("none", None)))
    assert nothing[0] == "No trial has finished with a value of `validation/loss` (nats/token)."


def evidence(q: float) -> Evidence:
    """Of a difference with this q."""
    return Evidence(1.0, q, q, 0.25, q, 1, q)


def test_the_answer_gives_no_difference_of_what_cannot_be_judged(laboratory: Any) -> None:
    """Neither its Δ, nor as one of the extremes: the seeds that are left of it are a choice in its favour."""
    lab = laboratory()
    runs = runs_from_journals(lab.folder, lab.name)
    lost = row("lost", 0.5, -1.0, "not evaluable", why="2 of 3 seeds diverged")
    [few, *_] = summary(runs, comparison(row("none", 1.5), row("sdpa", 1.25, -0.25, "better", best=True), lost))
    assert "1 better (sdpa −0.2500); 1 not evaluable (lost)." in few
    [one, *_] = summary(runs, comparison(lost, row("none", 1.5, best=True)))
    assert "not evaluable (2 of 3 seeds diverged)." in one
    others = [row(f"gate{index}", 2.0 + index, 0.5 + index, "worse") for index in range(9)]
    [many, *_] = summary(runs, comparison(lost, row("none", 1.5, best=True), *others))
    assert "Differences reach from gate0 +0.5000 to gate8 +8.5000." in many


def test_the_answer_counts_what_holds_over_several_baselines(laboratory: Any) -> None:
    """Of rows that can be judged those that differ, with q at most 0.05; with one baseline Dunnett's test allows for
    all, and nothing is said."""
    lab = laboratory()
    runs = runs_from_journals(lab.folder, lab.name)
    rows = [row("b0", 1.0, baseline="b0"), row("b1", 1.0, baseline="b1")]
    rows += [row("v0", 0.9, -0.1, "better", baseline="b0", evidence=evidence(0.05))]
    rows += [row("v1", 0.9, -0.1, "better", baseline="b1", evidence=evidence(0.06))]
    rows += [row("v2", 0.9, -0.1, "equivalent", baseline="b1", evidence=evidence(0.01))]
    rows += [row("v3", 0.9, -0.1, "not evaluable", baseline="b1", evidence=evidence(0.01), why="single seed")]
    [said, *_] = summary(runs, comparison(*rows))
    assert (
        "Each of 2 baselines is a family of its own: over all 3 comparisons together 1 differs with q ≤ 0.05." in said
    )
    [one, *_] = summary(runs, comparison(*rows[:1], rows[2]))
    assert "family" not in one


@pytest.mark.parametrize(
    ("levels", "short"),
    [
        ([{"a": "none", "b": None}, {"a": "sdpa", "b": "headwise"}], ["none", "sdpa headwise"]),
        ([{"a": "none"}, {"a": "0.01"}], ["v0", "v1"]),  # a number alone says nothing
        ([{"a": "none"}, {"a": "true"}], ["v0", "v1"]),
        ([{"a": "x", "b": None}, {"a": None, "b": "x"}], ["v0", "v1"]),  # would be the same
    ],
)
def test_variants_are_called_by_words_that_tell_them_apart(levels: list[dict[str, Any]], short: list[str]) -> None:
    """Else by their labels."""
    rows = [row(f"v{index}", 1.0, levels=own) for index, own in enumerate(levels)]
    assert list(short_names(rows).values()) == short


def test_figures_show_few_variants_with_their_baselines() -> None:
    """All of few; of many the best, the worst, and each one's baseline, in the order of the table."""
    rng = np.random.default_rng(0)
    for count in (1, 3, MOST_DRAWN, MOST_DRAWN + 1, 60):
        baselines = [f"b{index}" for index in range(max(1, count // 4))]
        names = baselines + [f"v{index}" for index in range(count - len(baselines))]
        rng.shuffle(names)
        bases = {name: name if name in baselines else baselines[int(rng.integers(len(baselines)))] for name in names}
        rows = tuple(row(name, 1.0 + place, baseline=bases[name]) for place, name in enumerate(names))
        shown = chosen((*rows, row("none finished", None, baseline=None)))
        assert len(shown) <= MOST_DRAWN
        assert all(bases[name] in shown for name in shown if name in bases)
        assert [name for name in names if name in shown] == [name for name in shown if name in names]
        if count < MOST_DRAWN:
            assert set(names) < set(shown)
        else:
            assert {names[0], names[-1]} <= set(shown)


def test_a_study_that_has_not_begun_says_so(laboratory: Any) -> None:
    """Sections without anything to say are left out; waiting trials and gaps are shown."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    found = report(lab.folder, lab.name)
    assert [section.id for section in found.sections] == ["comparison", "failures", "provenance"]
    assert found.question == "Which gate?"
    assert dict(found.facts)["Trials"] == "4 waiting"
    [waiting] = found.sections[1].tables
    assert [cells[2] for cells in waiting.rows] == ["waiting"] * 4
    with pytest.raises(NotFound):
        report(lab.folder, "unheard-of")
    with pytest.raises(ValueError, match="validation/lost"):
        report(lab.folder, lab.name, "validation/lost")


@pytest.fixture
def varied(laboratory: Any) -> Any:
    """A study with trials that finished, diverged, failed and wait, and combinations that were never tried."""
    lab = laboratory(
        ("none", "sdpa", "value"),
        seeds=2,
        axes={"model.gate.position": ["none", "sdpa", "value"], "model.gate.granularity": ["elementwise", "headwise"]},
        exclude=[{"model.gate.position": "value", "model.gate.granularity": "headwise"}],
    )
    for variant, seed in ((0, 0), (0, 1), (1, 0), (1, 1)):
        lab.finish(variant, seed)
    lab.begin(2, 0)
    lab.end(2, 0, "diverged", 7, "the <loss> & its | bound")
    lab.begin(3, 1)
    lab.end(3, 1, "failed", 0, "out of memory " * 100)
    return lab


def test_failures_and_gaps_are_told_with_their_reasons(varied: Any) -> None:
    """Each trial that has no result is there once, and each combination that was excluded."""
    found = report(varied.folder, varied.name)
    trials, untried = next(section for section in found.sections if section.id == "failures").tables
    assert {cells[:3] for cells in trials.rows} == {
        (varied.variants[2], "0", "diverged"),
        (varied.variants[2], "1", "waiting"),
        (varied.variants[3], "0", "waiting"),
        (varied.variants[3], "1", "failed"),
    }
    reasons = {cells[2]: cells[4] for cells in trials.rows}
    assert reasons["diverged"] == "the <loss> & its | bound"
    assert len(reasons["failed"]) < 500
    assert reasons["failed"].endswith("log.txt has the rest)")
    assert {cells[0]: cells[2] for cells in untried.rows} == {
        **varied.record.excluded,
        **varied.record.impossible,
    }
    assert len(untried.rows) == len(varied.record.excluded) > 0


def test_provenance_names_what_made_the_numbers(varied: Any) -> None:
    """Hashes, dates, machines, and the configuration that all trials share, as it can be read again."""
    found = report(varied.folder, varied.name)
    section = found.sections[-1]
    facts = dict(section.facts)
    assert facts["Study hash"] == varied.record.hash
    assert facts["Data hash"] == "this data"
    assert (facts["First trial began"], facts["Last trial ended"]) == ("2023-11-14 22:13 UTC", "2023-11-14 22:15 UTC")
    [environments] = section.tables
    assert [cells[0] for cells in environments.rows] == ["6"]
    assert "this device" in environments.rows[0]
    commands, configuration = section.listings
    assert commands.text.splitlines()[-1] == f"gatelab report {varied.name}"
    shared = yaml.safe_load(configuration.text)
    for path in varied.folder.root.glob("trials/*/trial.json"):
        config = json.loads(path.read_text())["config"]
        assert shared["training"] == config["training"]
        assert shared["model"].items() <= {**config["model"], "gate": shared["model"]["gate"]}.items()
    assert "seed" not in shared
    assert "`model.gate.position`" in section.prose[0]


def test_trials_that_differ_in_their_machine_are_told_apart(laboratory: Any) -> None:
    """A row for each combination of code and machine, with the number of its trials; hosts are no difference."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    for variant, seed in itertools.product((0, 1), (0, 1)):
        lab.finish(variant, seed, device="another" if (variant, seed) == (1, 1) else "one", host=f"host {seed}")
    [environments] = report(lab.folder, lab.name).sections[-1].tables
    headings = [column.heading for column in environments.columns]
    counts = {cells[headings.index("device")]: (cells[0], cells[-1]) for cells in environments.rows}
    assert counts == {"one": ("3", "host 0, host 1"), "another": ("1", "host 1")}


def test_common_configuration_is_what_all_have() -> None:
    """Against every path looked at by itself; values of different types are different."""
    configs = [
        {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": True, "f": {}},
        {"a": {"b": 1, "c": [1, 3]}, "d": None, "e": 1, "f": {}, "g": 0},
    ]
    assert common_configuration(configs) == ({"a": {"b": 1}, "d": None, "f": {}}, ["a.c", "e", "g"])
    assert common_configuration(configs[:1]) == (configs[0], [])
    assert common_configuration([]) == ({}, [])


def test_curves_and_their_files(laboratory: Any, tmp_path: Path) -> None:
    """The page lies where it is asked for; figures lie in the study's folder in three formats, and say no date."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    for variant, seed in itertools.product((0, 1), (0, 1)):
        lab.finish(variant, seed)
    page, figures = write_report(lab.folder, lab.name, tmp_path / "new" / "page.html")
    assert page == tmp_path / "new" / "page.html"
    folder = lab.folder.study(lab.name).path
    stems = ("curves-validation-loss", "curves-train-loss")
    assert set(figures) >= {folder / f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "pdf")}
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    before = {path: path.read_bytes() for path in [page, *figures]}
    assert all(before[path].startswith(starts[path.suffix]) for path in figures)
    write_report(lab.folder, lab.name, page)
    assert {path: path.read_bytes() for path in [page, *figures]} == before
    assert write_report(lab.folder, lab.name)[0] == folder / "report.html"


def test_the_page_holds_the_tables_and_asks_for_nothing(varied: Any) -> None:
    """Cells are those of the Markdown table; tags are closed; every address is within the page or holds all of it."""
    html = to_page(report(varied.folder, varied.name))
    page = Tables(html)
    table = comparison_table(compare(runs_from_journals(varied.folder, varied.name)))
    assert page.tables[0] == markdown_cells(table)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith("data:") or (address[0] == "#" and address[1:] in ids), tag
    assert not re.search(r"url\((?!#)|@import|<script|https?://(?!www\.w3\.org)", html)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_whatever_names_and_reasons_contain_is_text(varied: Any) -> None:
    """Nothing that a study file or an error says becomes markup."""
    nasty = "<script>alert('x')</script> & \"quotes\" `code`"
    record = json.loads(json.dumps(varied.record.to_json()).replace("Which gate?", json.dumps(nasty)[1:-1]))
    label = varied.variants[1]
    record["variants"] = {name.replace(label, "<b>bold</b>"): one for name, one in record["variants"].items()}
    record["trials"] = [{**one, "variant": one["variant"].replace(label, "<b>bold</b>")} for one in record["trials"]]
    write_json(varied.folder.study(varied.name).record, record)
    html = to_page(report(varied.folder, varied.name))
    assert "<script" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html
    assert "the &lt;loss&gt; &amp; its | bound" in html


GRID = Table(
    "a < b",
    (Column("name"), Column("x & y", numeric=True)),
    (("one", "1"), ("<i>two</i>", "2|3"), ("", "−")),
    (False, True, False),
    ("a note\nin two lines", "another"),
)


def test_html_tables_are_whole_and_say_what_is_what() -> None:
    """Headings of columns and rows are marked as such, numbers stand right, the best row is strong, notes follow."""
    html = to_html(GRID)
    page = Tables(html)
    assert page.tables == [[["name", "x & y"], *map(list, GRID.rows)]]
    scopes = [
        (attributes.get("scope"), "right" in (attributes.get("style") or ""))
        for tag, attributes in page.tags
        if tag == "th"
    ]
    assert scopes == [("col", False), ("col", True)] + [("row", False)] * 3
    assert [("right" in (attributes.get("style") or "")) for tag, attributes in page.tags if tag == "td"] == [True] * 3
    assert "<strong>&lt;i&gt;two&lt;/i&gt;</strong>" in html and "<strong>2|3</strong>" in html
    assert html.count("<strong>") == 2
    assert "<caption>a &lt; b</caption>" in html
    assert [text for text in re.findall(r'<p class="note">(.*?)</p>', html, re.DOTALL)] == list(GRID.notes)


def test_long_tables_are_whole_behind_a_line() -> None:
    """They have to be opened, and hold every row; what is just short enough is shown."""
    for count in (MOST_ROWS, MOST_ROWS + 1):
        rows = tuple((f"row {index}", str(index)) for index in range(count))
        grid = Table("long", GRID.columns, rows, (False,) * count)
        html = to_page(Report("s", "", ("said",), (), (Section("a", "A", tables=(grid,)),)))
        assert Tables(html).tables[0][1:] == [list(cells) for cells in rows]
        assert ("<details>" in html) == (count > MOST_ROWS)
        assert (f"<summary>long: {count} rows</summary>" in html) == (count > MOST_ROWS)


@pytest.mark.parametrize("points", [3, 40_000])
def test_a_drawing_that_is_too_large_goes_in_as_pixels(points: int) -> None:
    """So that the page can be sent; its size and text are those of the figure."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot(np.random.default_rng(0).random(points), np.arange(points), "o")
    picture = Picture("dots", "Many `dots` & more.", (3.0, 2.0), render_figure(figure))
    html = to_page(Report("s", "", ("said",), (), (Section("a", "A", pictures=(picture,)),)))
    [image] = [attributes for tag, attributes in Tables(html).tags if tag == "img"]
    small = len(picture.files["svg"]) <= LARGEST_SVG
    assert small == (points == 3)
    assert str(image["src"]).startswith("data:image/svg+xml;base64," if small else "data:image/png;base64,")
    assert (image["width"], image["height"], image["alt"]) == ("288", "192", "Many dots & more.")


def test_a_wide_study_draws_few_variants_and_says_which(laboratory: Callable[..., Any]) -> None:
    """Twelve variants: ten in the figures, all in the table."""
    axes = {
        "model.gate.position": ["none", "query", "key", "value", "sdpa", "output"],
        "training.optimizer.weight_decay": [0.0, 0.1],
    }
    lab = laboratory(seeds=1, axes=axes, baseline={"model.gate.position": "none"})
    for index in range(len(lab.variants)):
        lab.finish(index, 0)
    assert len(lab.variants) == 12
    found = {section.id: section for section in report(lab.folder, lab.name).sections}
    assert len(found["comparison"].tables[0].rows) == 12
    [said] = found["curves"].prose
    assert (
        said == "Figures show 10 of 12 variants: the best and the worst by `validation/loss`, each with its baseline."
    )


def test_claims_come_first(laboratory: Any) -> None:
    """What became of them and, if it was not before, when they were made, in a sentence and in a table; a register that
    was edited is told of, and nothing judged."""
    claim = {"metric": "validation/loss", "direction": "lower", "variant": {"model.gate.position": "sdpa"}}
    lab = laboratory(("none", "sdpa"), seeds=3, claims={"gates-help": claim})
    made = lab.folder.study(lab.name).claims
    register_claims(lab.folder, lab.matrix)
    early = made.read_bytes()
    for variant, seed in itertools.product((0, 1), range(3)):
        lab.finish(variant, seed)
        lab.end(variant, seed, "finished", 20, metrics={"validation/loss": 2 + variant * (1 + 0.125 * seed)})

    def said() -> str:
        context = read_context(lab.folder, lab.name, "validation/loss")
        return summary(context.runs, context.comparison, context.claims)[0]

    made.unlink()
    assert said() == "Claims: 1 refuted (`gates-help`, not registered)."
    register_claims(lab.folder, lab.matrix)
    assert said() == "Claims: 1 refuted (`gates-help`, made after 6 of 6 trials)."
    made.write_bytes(early)
    found = report(lab.folder, lab.name)
    assert found.answer[0] == "Claims: 1 refuted (`gates-help`)."
    assert found.sections[0].id == "claims"
    [grid] = found.sections[0].tables
    assert (grid.rows[0][0], "refuted" in grid.rows[0]) == ("gates-help", True)
    write_json(lab.folder.study(lab.name).claims, {"entries": [{"at": "2023", "hash": "forged"}]})
    edited = report(lab.folder, lab.name)
    assert not edited.answer[0].startswith("Claims")
    assert "entry 1 is not as it was written" in edited.sections[0].prose[0]


def test_the_page_has_a_stamp_and_the_margin_that_claims_state(laboratory: Any) -> None:
    """The stamp of its comparison in the footer; of claims that this metric is the same, the smallest margin."""

    def claim(metric: str, direction: str, margin: float) -> dict[str, Any]:
        return {"metric": metric, "direction": direction, "margin": margin}

    claims = {
        "same": claim("validation/loss", "equivalent", 0.5),
        "very": claim("validation/loss", "equivalent", 0.25),
        "lower": claim("validation/loss", "lower", 0.125),
        "other": claim("train/final_loss", "equivalent", 0.0625),
    }
    lab = laboratory(claims=claims)
    for variant, seed in itertools.product((0, 1), (0, 1)):
        lab.finish(variant, seed)
    found = report(lab.folder, lab.name)
    margins = {metric: read_context(lab.folder, lab.name, metric).comparison.margin for metric in SUMMARY[:3]}
    assert margins == {"validation/loss": 0.25, "validation/bits_per_byte": None, "train/final_loss": 0.0625}
    stamp = make_stamp(runs_from_journals(lab.folder, lab.name), "comparison", metric="validation/loss", margin=0.25)
    assert found.stamp == stamp
    footer = to_page(found).partition("<footer>")[2].partition("</footer>")[0]
    assert f"<p>{stamp}</p>" in footer
    assert "n: 4 of 4 trials finished, 2 seeds" in footer and lab.record.hash[:12] in footer


def test_each_file_of_a_trial_is_read_once(varied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record, descriptions, outcomes, answers and journals, however many sections are made of them."""
    varied.answer(0, 0, "length", 1.0, {"length/64/trained/loss": 1.0})
    opened: list[str] = []

    def read_text(path: Path, *arguments: Any, **options: Any) -> str:
        opened.append(str(path))
        return path.read_bytes().decode()

    real = pa.OSFile

    def open_file(path: str) -> Any:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(pa, "OSFile", open_file)
    found = report(varied.folder, varied.name)
    assert {"curves", "evaluation", "effects", "provenance"} <= {section.id for section in found.sections}
    counts = Counter(opened)
    root = varied.folder.root
    every = [*root.glob("trials/*/*.json"), *root.glob("trials/*/*/*.json"), *root.glob("trials/*/journal/*.arrows")]
    assert len(every) == 6 + 6 + 1 + 4
    assert {str(path): counts[str(path)] for path in every} == {str(path): 1 for path in every}
    assert counts[str(varied.folder.study(varied.name).record)] == 1


def test_what_figures_show_does_not_keep_the_journals_in_memory(laboratory: Any) -> None:
    """Of long journals a part is kept, with no view of the rest: the buffers of what is kept are far smaller."""
    lab, steps = laboratory(seeds=1), 60_000
    for variant in (0, 1):
        lab.begin(variant, 0)
        with Journal(lab.trial(variant, 0).journal) as journal:
            for step in range(1, steps + 1):
                journal.record(step, {"train/loss": 1 / step, "train/gradient_norm": 1.0})
        lab.end(variant, 0, "finished", steps, metrics={"validation/loss": 1.0 + variant})
    values = read_context(lab.folder, lab.name, "validation/loss").values
    assert values.stability is not None
    for kept in (values.curves, values.diagnostics, values.stability[0]):
        assert kept.get_total_buffer_size() < 0.1 * 2 * steps * 8


def test_a_finished_search_of_the_study_is_told_of(laboratory: Any) -> None:
    """Its own section and sentences, of the search that is named after the study; not before it has come to its end."""
    lab = laboratory(("none", "sdpa"), seeds=2)
    for variant, seed in itertools.product((0, 1), (0, 1)):
        lab.finish(variant, seed)
    rates = [0.001, 0.01, 0.1]
    axes = {"model.gate.position": ["none", "sdpa"], "training.optimizer.learning_rate": rates}
    other = laboratory(seeds=2, axes=axes, tolerance={"rates": rates, "extend": 1, "margin": 0.05})
    for index, label in enumerate(other.variants):
        bend = (0.5, 0.0, 0.75)[index % 3] + (0.25 if "sdpa" in label else 0.0)
        for seed in (0, 1):
            other.begin(index, seed)
            metrics = {"validation/loss": 2 + bend + seed / 8, "train/initial_loss": 4.0}
            other.end(index, seed, "finished", 20, metrics=metrics)
    search = lab.folder.study(f"{lab.name}-lr-tolerance")
    write_json(search.record, {**other.record.to_json(), "name": f"{lab.name}-lr-tolerance"})
    assert "learning-rates" not in [section.id for section in report(lab.folder, lab.name).sections]
    write_json(search.located, {})
    found = report(lab.folder, lab.name)
    section = next(section for section in found.sections if section.id == "learning-rates")
    assert section.prose[0] == f"Of the search `{lab.name}-lr-tolerance`."
    assert [column.heading for column in section.tables[0].columns] == ["property", "position=none", "position=sdpa"]
    assert any(line.startswith("Learning rates of position=sdpa against position=none: ") for line in found.answer)
    alone = report(lab.folder, f"{lab.name}-lr-tolerance")
    assert "learning-rates" in [section.id for section in alone.sections]
