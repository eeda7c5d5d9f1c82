"""MLflow's own pages, in a real browser, show a study as a researcher looks for it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import torch

from gatelab.ablations.loading import make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.orchestrator.study_manifest import study_record, write_record
from gatelab.orchestrator.system_metrics import SystemMetrics
from gatelab.orchestrator.tracking import add_to_mlflow
from gatelab.results.report.write import write_study
from gatelab.results.store.journal import Journal
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import write_json
from gatelab.results.store.trials import PROVENANCE

if TYPE_CHECKING:
    from playwright.sync_api import Page

STUDY, QUESTION = "positions", "Where should a gate sit?"
POSITIONS = ("none", "value", "sdpa")
SEEDS = (0, 1)
STEPS, EVERY = 20, 5
IDENTITY = "0123456789abcdef" * 4
STARTED = 1_700_000_000.0
SECONDS = 90  # for the server to answer
CURVES = "plot => (plot?.data ?? []).filter(t => t.name && t.y?.length).map(t => [t.name, Array.from(t.y)])"
SCROLL_TO_ITS_END = """element => {
    while (element.scrollHeight <= element.clientHeight || getComputedStyle(element).overflowY === "visible")
        element = element.parentElement;
    element.scrollTop = element.scrollHeight;
}"""


@dataclass(frozen=True)
class Shown:
    """A study in MLflow's pages."""

    address: str  # of its page, as `gatelab ui` names it
    verdicts: dict[str, str]  # by variant


def loss(position: str, seed: int, step: int) -> float:
    """A curve of its own for each trial."""
    return 3.0 + 2.0 / step + 0.25 * POSITIONS.index(position) + 0.03125 * seed


def carry_out(folder: RunsFolder) -> dict[str, str]:
    """A study whose trials are done, published and in MLflow; its verdict on each variant."""
    raw = {
        "name": STUDY,
        "question": QUESTION,
        "base": {"training": {"tokens": 2 * STEPS, "batch_size": 1, "sequence_length": 2}},
        "axes": {"model.gate.position": list(POSITIONS)},
        "baseline": {"model.gate.position": "none"},
        "seeds": list(SEEDS),
    }
    matrix = build_matrix(make_study(raw, "test"), lambda config: IDENTITY)
    write_record(folder, study_record(matrix))
    write_json(folder.data / IDENTITY / "manifest.json", {"train": {"tokens": 987654}, "tokenizer": "bytes"})
    for trial in matrix.trials:
        files, position = folder.trial(trial.id), trial.config.model_dump()["model"]["gate"]["position"]
        origin = {name: f"this {name}" for name in PROVENANCE} | {"data": IDENTITY}
        description = {"id": trial.id, "config": trial.config.model_dump(mode="json")}
        write_json(files.description, description | {"attempts": [{"started": STARTED, "provenance": origin}]})
        with Journal(files.journal) as journal:
            recorder = SystemMetrics(journal, torch.device("cpu"), seconds=0)
            for step in range(1, STEPS + 1):
                recorder.record(step, {"train/loss": loss(position, trial.seed, step)})
                if step % EVERY == 0:
                    recorder.record(step, {"validation/loss": loss(position, trial.seed, step) + 0.5})
                recorder.flush()
        metrics = {"validation/loss": loss(position, trial.seed, STEPS) + 0.5, "train/seconds": 2.0}
        outcome = {"status": "finished", "step": STEPS, "metrics": metrics, "reason": "", "ended": STARTED + 60}
        write_json(files.outcome, outcome)
    published = write_study(folder, STUDY)
    verdicts = {row.variant: row.verdict for row in published.result.rows}
    files_to_show = [*published.tables, *published.plots]
    assert add_to_mlflow(folder, STUDY, folder.tracking_uri, files_to_show, verdicts) == ""
    return verdicts


@pytest.fixture(scope="module")
def shown(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """`gatelab ui` on that study, for all tests here."""
    folder = RunsFolder(tmp_path_factory.mktemp("ui") / "runs")
    verdicts = carry_out(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder.root / "ui.log"
    command = [sys.executable, "-m", "gatelab", "ui", "--runs", str(folder.root), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        [address] = re.findall(rf"{STUDY}\s+(http://\S+)", log.read_text())
        yield Shown(address, verdicts)
    finally:
        server.send_signal(signal.SIGTERM)  # MLflow's processes end with it
        server.wait()


def wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until a server answers."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)


def name_of(position: str, seed: int) -> str:
    """A trial's name on the pages."""
    return f"position={position}, seed={seed}"


def drawn(page: "Page", count: int) -> dict[str, list[float]]:
    """The curves of the first plot of a page, once there are so many: trial -> values, in the order of the steps."""
    page.wait_for_function(f"({CURVES})(document.querySelector('.js-plotly-plot')).length >= {count}")
    curves = page.locator(".js-plotly-plot").first.evaluate(CURVES)
    return {name.partition(" (")[0]: values for name, values in curves}


def test_the_pages_are_open_to_this_machine_only(shown: Shown) -> None:
    """MLflow asks nobody for a password: without --host, no other machine reaches what a study holds."""
    port = urllib.parse.urlsplit(shown.address).port
    hosts = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert hosts == {"127.0.0.1"}


def test_the_runs_are_the_trials(shown: Shown, open_page: Callable[..., "Page"]) -> None:
    """The address that `gatelab ui` prints shows each trial, best first: its level, seed, loss, outcome and verdict."""
    page = open_page(shown.address, width=1600)
    page.get_by_role("link", name=name_of("none", 0)).wait_for()
    rows: dict[str, str] = {}  # a row is in two parts, one for the names
    for row in page.locator("[role=row][row-id]").all():
        identity = row.get_attribute("row-id") or ""
        rows[identity] = rows.get(identity, "") + "\n" + row.inner_text()
    trials = [text.split("\n") for text in rows.values() if "seed=" in text]
    order = sorted(((p, s) for p in POSITIONS for s in SEEDS), key=lambda trial: loss(*trial, STEPS))
    assert [name_of(*trial) in cells for trial, cells in zip(order, trials, strict=True)] == [True] * 6
    for (position, seed), cells in zip(order, trials, strict=True):
        assert {position, str(seed), "finished", shown.verdicts[f"position={position}"]} <= set(cells)
        assert str(loss(position, seed, STEPS) + 0.5) in cells
    for column in ("validation/loss", "model.gate.position", "seed", "gatelab.outcome", "gatelab.verdict"):
        assert page.get_by_text(column, exact=True).first.is_visible()


def test_selected_variants_are_compared(shown: Shown, open_page: Callable[..., "Page"]) -> None:
    """The comparison page of ticked trials has their levels side by side, and leads to their curves, true to value."""
    page = open_page(shown.address, width=1600)
    page.get_by_role("link", name=name_of("none", 0)).wait_for()
    for position in POSITIONS:
        row = page.get_by_role("row").filter(has_text=name_of(position, 0))
        row.get_by_label("toggle row selection").check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="Comparing 3 Runs from 1 Experiment").wait_for()
    levels = page.get_by_role("row").filter(has_text="model.gate.position").first.inner_text()
    assert levels.split() == ["model.gate.position", *POSITIONS]
    page.get_by_role("link", name="system/").first.evaluate(SCROLL_TO_ITS_END)  # rows out of sight do not exist
    page.get_by_role("link", name="validation/loss").click()
    page.get_by_role("heading", name="validation/loss").first.wait_for()
    steps = range(EVERY, STEPS + 1, EVERY)
    expected = {name_of(p, 0): [loss(p, 0, step) + 0.5 for step in steps] for p in POSITIONS}
    assert drawn(page, len(expected)) == expected


def test_charts_begin_with_the_losses(shown: Shown, open_page: Callable[..., "Page"]) -> None:
    """The charts of a study open on its validation loss, with a curve for each trial, and on its axes."""
    page = open_page(f"{shown.address}&compareRunsMode=CHART", width=1600, height=1400)
    area = page.get_by_test_id("experiment-view-compare-runs-chart-area")
    area.get_by_text("losses", exact=True).wait_for()
    assert area.inner_text().startswith("losses")
    for title in ("validation/loss", "train/loss", "Parallel Coordinates"):
        area.get_by_text(title, exact=True).first.wait_for()
    curves = drawn(page, len(POSITIONS) * len(SEEDS))
    assert set(curves) == {name_of(position, seed) for position in POSITIONS for seed in SEEDS}
    assert curves[name_of("sdpa", 1)][-1] == loss("sdpa", 1, STEPS) + 0.5


def test_a_trial_says_what_it_is(shown: Shown, open_page: Callable[..., "Page"]) -> None:
    """A trial's page has its tags, its data with their size, and what its machine was doing."""
    page = open_page(shown.address, width=1600)
    page.get_by_role("link", name=name_of("value", 1)).click()
    page.get_by_text("gatelab.verdict").wait_for()
    assert page.get_by_text(f"gatelab.verdict: {shown.verdicts['position=value']}").is_visible()
    page.get_by_text(f"stdlib ({IDENTITY[:12]})").first.click()
    page.get_by_text("train tokens: 987654").wait_for()
    page.get_by_text(f"identity: {IDENTITY}").wait_for()
    page.get_by_role("button", name="Close").first.click()
    page.get_by_role("tab", name="System metrics").click()
    page.get_by_text("cpu_utilization_percentage").first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    assert page.get_by_text("validation/loss").count() == 0


def test_tables_and_figures_are_there_to_look_at(shown: Shown, open_page: Callable[..., "Page"]) -> None:
    """The study's own run opens on its question and the comparison; its tables and figures are shown, not offered."""
    page = open_page(shown.address, width=1600)
    page.get_by_role("link", name=f"study {STUDY}").click()
    page.get_by_text(QUESTION).first.wait_for()
    page.get_by_role("cell", name=shown.verdicts["position=value"]).first.wait_for()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("tables", exact=True).click()
    page.get_by_text("comparison.md", exact=True).click()
    page.get_by_role("cell", name="baseline").first.wait_for()
    page.get_by_text("figures", exact=True).click()
    for figure in ("curves-validation-loss.png", "curves-validation-loss.svg"):
        page.get_by_text(figure, exact=True).click()
        page.get_by_text(f"figures/{figure}").first.wait_for()
        page.wait_for_function("[...document.images].some(image => image.naturalWidth > 200)")
