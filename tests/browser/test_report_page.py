"""The report page in a real browser: on a wide screen and a phone, in light and dark, in print, without a network."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.ablations.loading import make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.results.analyses.comparison import compare
from gatelab.results.report.page import write_report
from gatelab.results.store.journal import Journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import write_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.store.trials import PROVENANCE
from gatelab.results.views.comparison import comparison_table
from gatelab.results.views.table import to_markdown

STEPS, LAYERS = 40, 3
MEASURES = (
    *("attention/entropy", "attention/first_token_share", "attention/first_token_share_top_head"),
    *("attention/first_token_share_late", "attention/max_logit", "activation/attention_residual"),
    *("activation/ffn_output", "activation/ffn_residual", "sdpa/mean_abs", "sdpa/below_1e-2"),
)
CONTRAST = 4.5
"""Of text, as WCAG 2 asks for."""

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a fabricated study: seven variants, diagnostics, one trial that diverged and one that failed."""
    folder = RunsFolder(tmp_path_factory.mktemp("runs"))
    raw = {
        "name": "fabricated",
        "question": "Does <this> gate help, & by how much?",
        "base": {"training": {"tokens": 2 * STEPS, "batch_size": 1, "sequence_length": 2}},
        "axes": {
            "model.gate.position": ["none", "query", "key", "value", "sdpa", "output"],
            "model.gate.granularity": ["elementwise", "headwise"],
        },
        "exclude": [{"model.gate.position": ["query", "key", "value", "output"], "model.gate.granularity": "headwise"}],
        "baseline": {"model.gate.position": "none"},
        "seeds": 3,
    }
    matrix = build_matrix(make_study(raw, "test"), lambda config: "data")
    write_record(folder, study_record(matrix))
    labels = [variant.label for variant in matrix.variants]
    for trial in matrix.trials:
        files, index = folder.trial(trial.id), labels.index(trial.variant)
        diverges, fails = (index, trial.seed) == (1, 0), (index, trial.seed) == (2, 1)
        origin = {name: f"this {name}" for name in PROVENANCE}
        attempts = [{"started": 1_700_000_000.0, "provenance": origin}]
        config = trial.config.model_dump(mode="json")
        write_json(files.description, {"id": trial.id, "config": config, "attempts": attempts})
        last = 20 if diverges else STEPS
        with Journal(files.journal) as journal:
            for step in range(1, last + 1):
                value = 2 + 5 / math.sqrt(step) + 0.1 * index + 0.3 * trial.seed + 0.02 * math.sin(index * trial.seed)
                journal.record(step, {"train/loss": value, "train/gradient_norm": 1 / step})
                if step % 10 == 0:
                    of_model = {name: value / (1 + place) for place, name in enumerate(MEASURES)}
                    journal.record(step, {"validation/loss": value, "validation/position/00001-00002": value})
                    journal.record(step, of_model)
                    for layer in range(LAYERS):
                        journal.record(step, {name: one + layer for name, one in of_model.items()}, layer)
                        if index:
                            journal.record(step, {"gate/sdpa/mean": 0.5, "gate/sdpa/below_0.1": 0.1}, layer)
                            shares = {f"histogram/gate/sdpa/{place:02d}": 0.05 for place in range(20)}
                            journal.record(step, shares, layer)
        status = "diverged" if diverges else "failed" if fails else "finished"
        metrics = {"validation/loss": value, **of_model, "train/mean_tokens_per_second": 1000.0}
        reason = "" if status == "finished" else f"it {status} <because> of " + "something that takes long to tell " * 5
        outcome = {"status": status, "step": last, "metrics": metrics, "reason": reason, "ended": 1_700_000_100.0}
        write_json(files.outcome, outcome)
    page, _ = write_report(folder, "fabricated")
    return page


def test_the_page_opens_whole_without_a_network(open_page: OpenPage, page_file: Path) -> None:
    """No request but for the file and what it holds, no complaint; every figure decodes; every part can be reached."""
    page = open_page(page_file, strict=True)
    images = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth, image.alt])")
    assert len(images) >= 6
    assert all(complete and width > 0 and alt for complete, width, alt in images)
    headings = page.locator("h2").all_inner_texts()
    assert headings[0] == "Comparison" and headings[-1] == "Provenance"
    assert {"Curves", "Stability", "Diagnostics by layer", "Failures and gaps"} < set(headings)
    assert page.locator("nav a").all_inner_texts() == headings
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator(str(link.get_attribute("href")))
        assert target.locator("h2").inner_text() == link.inner_text()
        page.wait_for_timeout(50)
    assert page.title() == "fabricated · gatelab report"
    assert page.locator(".question").inner_text() == "Does <this> gate help, & by how much?"
    assert page.evaluate("document.documentElement.lang") == "en"


def test_the_table_is_the_markdown_table(open_page: OpenPage, page_file: Path) -> None:
    """Cell by cell, as a reader sees it; numbers stand to the right."""
    folder = RunsFolder(page_file.parents[2])
    grid = comparison_table(compare(runs_from_journals(folder, "fabricated")))
    lines = [line for line in to_markdown(grid).splitlines() if line.startswith("|")]
    expected = [[cell.strip().strip("*") for cell in line.strip("|").split(" | ")] for line in lines]
    page = open_page(page_file, strict=True)
    table = page.locator("#comparison table").first
    rows = [[cell.inner_text().strip() for cell in row.locator("th, td").all()] for row in table.locator("tr").all()]
    assert rows == [expected[0], *expected[2:]]
    assert table.locator("caption").inner_text() == grid.title
    sides = table.locator("tbody tr").first.evaluate(
        "row => [...row.cells].map(cell => getComputedStyle(cell).textAlign)"
    )
    assert [side == "right" for side in sides] == [column.numeric for column in grid.columns]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(open_page: OpenPage, page_file: Path, width: int) -> None:
    """The page never scrolls sideways; what is wider than it scrolls in a box that a keyboard reaches."""
    page = open_page(page_file, width=width, strict=True)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(one => one.scrollWidth > one.clientWidth + 1"
        " && getComputedStyle(one).overflowX === 'auto').map(one => one.tabIndex)"
    )
    assert set(wide) <= {0}
    if width == 390:
        assert wide
        box = page.locator("#comparison .grid").first
        box.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('#comparison .grid').scrollLeft > 0")


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour, by WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_light_and_dark(open_page: OpenPage, page_file: Path) -> None:
    """The background follows the reader's choice, and every text keeps its contrast to what it stands on."""
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(page_file, scheme=scheme, strict=True)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = luminance(ground)
        colours = page.evaluate(
            """() => {
                const solid = one => {
                    for (; one; one = one.parentElement) {
                        const colour = getComputedStyle(one).backgroundColor;
                        if (/^rgb\\(/.test(colour)) return colour;
                    }
                };
                const texts = 'h1, h2, h3, p, a, dt, dd, td, th, caption, figcaption, summary, pre, code';
                const seen = one => [getComputedStyle(one).color, solid(one), one.textContent.slice(0, 30)];
                return [...document.querySelectorAll(texts)].map(seen);
            }"""
        )
        assert len(colours) > 100
        for colour, behind, text in colours:
            light, dark = sorted((luminance(colour), luminance(behind)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= CONTRAST, (scheme, text, colour, behind)
    assert grounds["light"] > 0.9 and grounds["dark"] < 0.05


def test_figures_stand_out_in_the_dark(open_page: OpenPage, page_file: Path) -> None:
    """What is drawn dark on white is shown light on dark: as pixels of a screenshot, against the page's background."""
    from io import BytesIO

    import matplotlib.image
    import numpy as np

    shares = {}
    for scheme in ("light", "dark"):
        page = open_page(page_file, scheme=scheme, strict=True)
        pixels = matplotlib.image.imread(BytesIO(page.locator("#curves img").first.screenshot()))[..., :3].mean(-1)
        shares[scheme] = float(np.mean(pixels > 0.5))
        assert pixels.std() > 0.05
    assert shares["light"] > 0.9 and shares["dark"] < 0.1


def test_it_prints_light_and_whole(open_page: OpenPage, page_file: Path, tmp_path: Path) -> None:
    """From a dark screen, too: no contents beside the text, what is folded is there, no figure is too wide."""
    page = open_page(page_file, scheme="dark", width=700, strict=True)
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 3
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.99
    assert luminance(page.evaluate("getComputedStyle(document.querySelector('h1')).color")) < 0.01
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('#curves img')).filter") == "none"
    assert page.locator("details").count() and page.locator("details > pre").bounding_box()["height"] > 100
    assert page.evaluate("[...document.images].every(one => one.getBoundingClientRect().width <= innerWidth)")
    broken = page.evaluate("[...document.querySelectorAll('figure, tr')].map(one => getComputedStyle(one).breakInside)")
    assert set(broken) == {"avoid"}


def test_it_needs_no_javascript(open_page: OpenPage, page_file: Path) -> None:
    """Everything is there, and what is folded opens."""
    page = open_page(page_file, java_script_enabled=False)
    page.locator("summary").last.click()
    assert "batch_size: 1" in page.locator("details[open] pre").inner_text()
