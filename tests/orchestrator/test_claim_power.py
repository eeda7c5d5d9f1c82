"""What a plan says of its claims is what other libraries compute from the noise of earlier studies."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.power import TTestPower

from gatelab.ablations.matrix import Matrix
from gatelab.orchestrator.claim_power import ClaimPower, claim_powers
from gatelab.results.comparison import DEFAULT_METRIC
from gatelab.results.folders import RunsFolder
from gatelab.results.noise import remember
from gatelab.training.data import data_identity
from tests.results.test_comparison import build_frame

DIFFERENCES = (0.05, -0.03, 0.01, 0.04, -0.07)
SD = float(np.std(DIFFERENCES, ddof=1))


@pytest.fixture
def folder(tmp_path: Path) -> RunsFolder:
    """A runs folder without a ledger."""
    return RunsFolder(tmp_path / "runs")


def teach(folder: RunsFolder, matrix: Matrix, **row: Any) -> None:
    """Put an earlier study into the ledger, of the size and data of a matrix's baseline."""
    config = matrix.variants[0].config
    base = {seed: 2.0 + seed for seed in range(5)}
    origin = {
        "study": "before",
        "data": data_identity(config.data),
        "parameters": matrix.variants[0].parameters,
        "tokens": config.training.steps * config.training.tokens_per_step,
    } | row
    gate = {seed: base[seed] + difference for seed, difference in enumerate(DIFFERENCES)}
    remember(folder, build_frame({"base": base, "gate": gate}, **origin))


def only(matrix: Matrix, folder: RunsFolder) -> ClaimPower:
    """What is known beforehand of a study's one claim."""
    [found] = claim_powers(matrix, folder)
    return found


def t_power(effect: float, n: int, alpha: float = 0.05) -> float:
    """One-sided power, by statsmodels."""
    return float(TTestPower().power(effect, n, alpha, alternative="larger"))


def test_a_claim_has_the_power_of_its_test(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """Smallest detectable difference, power at the expected one and the seeds that it takes: one-sided, paired."""
    matrix = tiny_study(seeds=4, claims={"it helps": {"margin": 0.01, "expected": 0.06, "alpha": 0.1}})
    teach(folder, matrix)
    found = only(matrix, folder)
    assert (found.claim, found.metric, found.seeds, found.obstacle) == ("it helps", DEFAULT_METRIC, 4, "")
    assert found.noise is not None
    assert (found.noise.sd, found.noise.studies) == (pytest.approx(SD), ("before",))
    # A difference must exceed the margin by what the test detects.
    assert t_power((found.detectable - 0.01) / SD, 4, 0.1) == pytest.approx(0.8, abs=1e-4)
    assert found.power == pytest.approx(t_power(0.05 / SD, 4, 0.1), abs=1e-6)
    needed = TTestPower().solve_power(0.05 / SD, power=0.8, alpha=0.1, alternative="larger")
    assert found.seeds_needed == math.ceil(needed)


def test_a_claim_of_equivalence_has_the_power_at_its_margin(
    tiny_study: Callable[..., Matrix], folder: RunsFolder
) -> None:
    """How often two one-sided tests place no difference within the margin: counted in simulated studies."""
    matrix = tiny_study(seeds=6, claims={"no harm": {"direction": "equivalent", "margin": 0.06}})
    teach(folder, matrix)
    found = only(matrix, folder)
    samples = np.random.default_rng(0).normal(0, SD, (100_000, 6))
    ends = scipy.stats.t.ppf(0.95, 5) * samples.std(axis=1, ddof=1) / math.sqrt(6)
    margins = np.abs(samples.mean(axis=1)) + ends  # from which on each is equivalent
    assert found.power == pytest.approx((margins < 0.06).mean(), abs=0.007)
    assert found.detectable == pytest.approx(np.quantile(margins, 0.8), rel=0.01)
    assert found.seeds_needed is None


def test_without_earlier_studies_it_counts_in_standard_deviations(
    tiny_study: Callable[..., Matrix], folder: RunsFolder
) -> None:
    """The first study in a runs folder can still be told what so many seeds can see."""
    matrix = tiny_study(seeds=5, claims={"a": {"margin": 0.01, "expected": 0.1}})
    found = only(matrix, folder)
    assert found.noise is None
    assert t_power(found.detectable, 5) == pytest.approx(0.8, abs=1e-4)
    assert math.isnan(found.power)
    assert found.seeds_needed is None
    teach(folder, matrix)
    assert only(tiny_study(seeds=5, claims={"a": {"metric": "train/seconds"}}), folder).noise is None
    assert only(matrix, folder).noise is not None


def test_noise_of_other_data_or_scale_is_named(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """A plan says whose noise it goes by; the size is that of the baseline that is claimed to be beaten."""
    matrix = tiny_study(seeds=5, claims={"a": {}})
    teach(folder, matrix, data="elsewhere", parameters=100 * matrix.variants[0].parameters)
    noise = only(matrix, folder).noise
    assert noise is not None
    assert (noise.same_data, noise.decades) == (False, pytest.approx(2.0))
    teach(folder, matrix, study="here", data="elsewhere")
    noise = only(matrix, folder).noise
    assert noise is not None
    assert (noise.same_data, noise.decades, noise.studies) == (False, 0.0, ("here",))


@pytest.mark.parametrize(
    ("seeds", "claim", "said"),
    [
        (1, {}, "a single seed has no test"),
        (4, {"test": "sign-flip"}, "with 4 seeds no sign-flip p is below 0.0625"),
        (6, {"test": "sign-flip", "alpha": 0.01}, "with 6 seeds no sign-flip p is below 0.0156"),
        (5, {"test": "sign-flip"}, ""),
        (2, {}, ""),
    ],
)
def test_seeds_that_can_support_nothing_are_pointed_out(
    seeds: int, claim: dict[str, Any], said: str, tiny_study: Callable[..., Matrix], folder: RunsFolder
) -> None:
    """Before any of them has run."""
    assert only(tiny_study(seeds=seeds, claims={"a": claim}), folder).obstacle == said


def test_allowing_for_all_variants_never_promises_too_much(
    tiny_study: Callable[..., Matrix], folder: RunsFolder
) -> None:
    """Dunnett's test against five variants takes a larger difference: what the plan names is detected in 80 %."""
    axes = {"model.gate.position": ["none", "value", "sdpa"], "model.tie_embeddings": [True, False]}
    base = {"model.gate.position": "none", "model.tie_embeddings": True}
    about = {"variant": {"model.gate.position": "sdpa"}}
    matrix = tiny_study(seeds=6, axes=axes, baseline=base, claims={"t": about, "dunnett": {**about, "test": "dunnett"}})
    assert len(matrix.variants) == 6
    t, dunnett = claim_powers(matrix, folder)
    assert t_power(t.detectable, 6) == pytest.approx(0.8, abs=1e-4)
    assert dunnett.detectable > t.detectable
    critical = 2.36  # Dunnett (1955): one-sided 5 %, five variants, 24 degrees of freedom
    assert scipy.stats.nct.sf(critical, 5 * 5, dunnett.detectable * math.sqrt(6)) >= 0.8


def test_the_pairs_are_those_of_the_variant(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """A baseline's further seeds are no pairs: six of each variant under `seeds: auto`, claim by claim."""
    axes = {"model.gate.position": ["none", "value", "sdpa", "output"]}
    claims = {"first": {}, "about nothing": {"variant": {"model.gate.position": "none"}}, "last": {}}
    found = list(claim_powers(tiny_study(seeds="auto", axes=axes, claims=claims), folder))
    assert [(power.claim, power.seeds) for power in found] == [("first", 6), ("last", 6)]
    assert list(claim_powers(tiny_study(), folder)) == []
