"""Held-out losses by domain and by position, against sums over the tokens themselves."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gatelab.errors import DataError
from gatelab.training.config import DataConfig
from gatelab.training.data import HeldOut
from gatelab.training.evaluation import loss_metrics, position_losses
from gatelab.training.preparation import prepare


def held_out(domains: list[list[int]], *names: str) -> HeldOut:
    """Windows of which only the domains of their targets matter; domain i has i + 1 bytes per token."""
    kinds = np.array(domains)
    windows = np.zeros((len(kinds), kinds.shape[1] + 1), dtype=np.int64)
    return HeldOut(windows, kinds, names, tuple(float(i + 1) for i in range(len(names))))


def test_a_domain_has_the_mean_of_its_own_targets() -> None:
    """Worked by hand: each target counts for the domain of its own document, whatever else its window holds."""
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]], dtype=torch.float64)
    found = loss_metrics(losses, held_out([[0, 0, 1], [1, 0, 1]], "code", "prose", "none here"), 2.0)
    assert found == {
        "loss": 4.0,
        "bits_per_byte": pytest.approx(4 / math.log(2) / 2),
        "loss/code": pytest.approx(8 / 3),
        "bits_per_byte/code": pytest.approx(8 / 3 / math.log(2) / 1),
        "loss/prose": pytest.approx(16 / 3),
        "bits_per_byte/prose": pytest.approx(16 / 3 / math.log(2) / 2),
    }
    assert set(loss_metrics(losses, held_out([[0] * 3] * 2, ""), 1.0)) == {"loss", "bits_per_byte"}


@given(st.integers(1, 300), st.integers(1, 3))
def test_positions_are_octaves_that_cover_every_prediction_once(length: int, count: int) -> None:
    """Losses by position, weighted by their widths, are the whole loss; names sort as numbers do."""
    losses = torch.rand(count, length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    found = position_losses(losses)
    bounds = [tuple(map(int, name.removeprefix("position/").split("-"))) for name in found]
    assert list(found) == sorted(found)
    assert bounds[0][0] == 1
    assert bounds[-1][1] == length
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(bounds))
    assert all(last < 3 * first for first, last in bounds)
    total = sum((last - first + 1) * loss for (first, last), loss in zip(bounds, found.values(), strict=True))
    assert total / length == pytest.approx(losses.mean().item())
    first, last = bounds[-1]
    assert found[f"position/{first:05d}-{last:05d}"] == pytest.approx(losses[:, first - 1 : last].mean().item())


def test_folders_are_domains_and_each_is_held_out(tmp_path: Path) -> None:
    """Text is of the domain that its folder names, on both sides of the split, and every target is told apart."""
    for name, character in (("code", "c"), ("prose", "p")):
        (tmp_path / "text" / name / "inner").mkdir(parents=True)
        for index in range(12):
            (tmp_path / "text" / name / "inner" / f"{index}.txt").write_text(character * (50 + index))
    (tmp_path / "text" / "loose.txt").write_text("l" * 400)  # the only one of its kind: its tail is held out
    dataset = prepare(DataConfig(source=str(tmp_path / "text"), validation_fraction=0.2), tmp_path / "data")
    counts = dataset.manifest.domains
    assert list(counts) == ["code", "other", "prose"]
    assert counts["other"].bytes == 80
    assert all(0.15 < counts[name].bytes / sum(50 + index for index in range(12)) < 0.35 for name in ("code", "prose"))
    assert sum(count.tokens for count in counts.values()) == dataset.manifest.validation.tokens
    held = dataset.held_out(10**6, 16)
    assert held.names == ("code", "other", "prose")
    assert held.bytes_per_token == tuple(count.bytes / count.tokens for count in counts.values())
    letters = {"c": 0, "l": 1, "p": 2}
    for target, domain in zip(held.windows[:, 1:].ravel(), held.domains.ravel(), strict=True):
        assert target == 256 or letters[chr(target)] == domain


def test_records_name_their_domains(tmp_path: Path) -> None:
    """A field of JSONL records says what kind of text each is; one that says nothing is of its file's folder."""
    folder = tmp_path / "text"
    (folder / "web").mkdir(parents=True)
    lines = ['{"text": "%s", "kind": "law / EU"}' % ("a" * 40 + str(index)) for index in range(9)]
    lines += ['{"text": "%s"}' % ("b" * 40 + str(index)) for index in range(9)]
    (folder / "web" / "all.jsonl").write_text("\n".join(lines))
    config = DataConfig(source=str(folder), domain_field="kind", validation_fraction=0.3)
    counts = prepare(config, tmp_path / "data").manifest.domains
    assert set(counts) == {"law _ EU", "web"}
    alone = prepare(config.model_copy(update={"domain_field": None}), tmp_path / "data").manifest
    assert alone.domains == {}
    table = folder / "web" / "one.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["x"]}), table)
    with pytest.raises(DataError, match=r"no column 'kind' \(data.domain_field\); it has text"):
        prepare(config, tmp_path / "data")


def test_a_sequence_longer_than_the_held_out_text_is_an_error(corpus: Path, tmp_path: Path) -> None:
    """Extrapolation asks for long windows: too long is told, with what there is."""
    dataset = prepare(DataConfig(source=str(corpus)), tmp_path / "data")
    with pytest.raises(DataError, match=r"holds out \d+ tokens: too few for a sequence of 1000000"):
        dataset.held_out(1, 1_000_000)


def test_domains_with_too_little_text_are_one(tmp_path: Path) -> None:
    """A folder for each document is no reason to hold half of the text out, nor for thousands of metrics."""
    for index in range(300):
        folder = tmp_path / "text" / f"site{index:03d}"
        folder.mkdir(parents=True)
        (folder / "page.txt").write_text(f"{index:03d}" * 20)
    (tmp_path / "text" / "book").mkdir()
    (tmp_path / "text" / "book" / "all.txt").write_text("b" * 4000)
    (tmp_path / "text" / "tiny").mkdir()
    (tmp_path / "text" / "tiny" / "a.txt").write_text("# a")
    manifest = prepare(DataConfig(source=str(tmp_path / "text")), tmp_path / "data").manifest
    assert set(manifest.domains) == {"book", "other"}
    assert manifest.domains["book"].bytes == 200
    assert 0.05 <= manifest.domains["other"].bytes / (300 * 60 + 3) < 0.06


def test_a_domain_of_one_short_document_is_in_both_parts(tmp_path: Path) -> None:
    """A cut that leaves nothing to evaluate on would end in a division by no bytes."""
    for name, text in (("a", "aaaa"), ("b", "bb")):
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "only.txt").write_text(text)
    manifest = prepare(DataConfig(source=str(tmp_path / "text")), tmp_path / "data").manifest
    assert {name: counts.bytes for name, counts in manifest.domains.items()} == {"a": 1, "b": 1}
    assert manifest.train.bytes == 4
