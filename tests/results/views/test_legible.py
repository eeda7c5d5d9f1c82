"""Figures can be read: titles do not lie over each other, every column has its numbers, and captions say what is so."""

from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from gatelab.results.analyses.effects import effects
from gatelab.results.analyses.verdicts import Verdict
from gatelab.results.store.runs import runs_schema
from gatelab.results.views.attention_map import plot_attention
from gatelab.results.views.diagnostics import plot_gates
from gatelab.results.views.effects import tables
from gatelab.results.views.effects_figures import interaction_caption, plot_interaction

POSITIONS = ("query", "key", "value", "sdpa")
VARIANTS = [f"position={at}, granularity={how}" for at in POSITIONS for how in ("elementwise", "headwise")]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """The titles of panels that lie over each other."""
    figure.draw_without_rendering()
    shown = [axes.title for axes in figure.axes if axes.get_visible() and axes.title.get_text()]
    boxes: dict[str, Bbox] = {title.get_text(): title.get_window_extent() for title in shown}
    return [pair for pair in combinations(boxes, 2) if Bbox.intersection(boxes[pair[0]], boxes[pair[1]])]


@pytest.mark.parametrize(("tokens", "models"), [(12, 1), (12, 8), (100, 8)])
def test_attention_of_many_models_can_be_read(tokens: int, models: int) -> None:
    """No more than four maps beside each other, each under its own title; a space is seen."""
    weights = np.tril(np.ones((tokens, tokens), np.float32)) / np.arange(1, tokens + 1)[:, None]
    maps = {name: {(layer, "mean"): weights for layer in (0, 3)} for name in VARIANTS[:models]}
    figure = plot_attention(maps, ["a", " "] * (tokens // 2), "gate-position")
    assert overlapping(figure) == []
    assert figure.get_figwidth() < 16
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.images]
    assert len(panels) == 2 * models
    if tokens == 12:
        assert [label.get_text() for label in panels[0].get_xticklabels()] == ["a", "␣"] * 6


@pytest.mark.parametrize("gates", [1, 5, 7])
def test_gate_scores_have_numbers_under_each_column(gates: int) -> None:
    """Also where the last row is not full."""
    rows: list[dict[str, Any]] = [
        {
            "trial": v,
            "variant": v,
            "seed": 0,
            "step": 1,
            "layer": 0,
            "name": f"histogram/gate/sdpa/{i:02d}",
            "value": 0.5,
        }
        for v in VARIANTS[:gates]
        for i in range(2)
    ]
    metrics = pa.table({key: [row[key] for row in rows] for key in rows[0]})
    metrics = metrics.set_column(5, "name", metrics["name"].combine_chunks().dictionary_encode())
    figure = plot_gates(metrics, dict.fromkeys(VARIANTS[:gates]), "gate-position")
    assert figure is not None
    assert overlapping(figure) == []
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.images]
    columns = min(3, gates)
    for axes in panels[-columns:]:
        assert any(label.get_visible() and label.get_text() for label in axes.get_xticklabels())
        assert axes.get_xlabel() == "score"


@pytest.mark.parametrize(("interaction", "said"), [(0.0, "undecided"), (0.5, "an effect")])
def test_effects_are_titled_by_what_they_are_about(interaction: float, said: str) -> None:
    """Of a part of the variants, and whether the interaction that is shown is one."""
    rng, rows, axes = np.random.default_rng(0), [], ["model.gate.position", "model.gate.granularity"]
    for at, how in [(at, "elementwise") for at in POSITIONS] + [("value", "headwise"), ("sdpa", "headwise")]:
        for seed in range(3):
            loss = 2 + 0.1 * seed + rng.normal(0, 0.01) + interaction * (at == "sdpa") * (how == "headwise")
            row = {"study": "gates", "study_hash": "h", "variant": f"{at} {how}", "seed": seed, "outcome": "finished"}
            levels = dict(zip([f"axis/{axis}" for axis in axes], (at, how), strict=True))
            rows.append({**row, **levels, "validation/loss": loss, "parameters": 1})
    found = effects(pa.Table.from_pylist(rows, runs_schema(axes)))
    part = "among 4 of 6 variants (position value, sdpa; granularity elementwise, headwise)"
    grids = tables(found)
    assert part in grids[0].title
    assert any("important here and undecided there" in note for grid in grids for note in grid.notes)
    figure = plot_interaction(found)
    assert figure is not None
    assert figure.axes[0].get_title() == f"position × granularity: {said}"
    assert ("an effect" in said) == interaction_caption(found).startswith("Axes that act together")
    assert found.factorial is not None
    assert any(term.verdict == Verdict.EFFECT for term in found.factorial.terms) == bool(interaction)
