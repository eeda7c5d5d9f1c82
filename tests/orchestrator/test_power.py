"""What a plan says of its claims is what other libraries compute from the noise of earlier studies."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import brentq
from statsmodels.stats.power import TTestPower

from gatelab.ablations.matrix import Matrix
from gatelab.orchestrator.planning import plan_study
from gatelab.orchestrator.power import ClaimPower, claim_powers
from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.analyses.noise_ledger import update_ledger
from gatelab.results.store.layout import RunsFolder
from gatelab.training.preparation import data_identity
from tests.results.analyses.test_comparison import build_frame

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
    update_ledger(folder, build_frame({"base": base, "gate": gate}, **origin))


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


@pytest.mark.parametrize(("seeds", "family", "smallest"), [(3, 4, 2.00), (3, 12, 2.04), (6, 4, 1.29), (6, 12, 1.40)])
def test_dunnetts_test_pools_the_variance_of_all(
    seeds: int, family: int, smallest: float, tiny_study: Callable[..., Matrix], folder: RunsFolder
) -> None:
    """The smallest difference that it detects, as simulated studies have it: with
    three seeds far below a t-test's, whose variance has two degrees of freedom."""
    axes, about = {"model.layers": list(range(1, family + 2))}, {"variant": {"model.layers": 2}}
    claims = {"all": {**about, "test": "dunnett"}, "one": about}
    matrix = tiny_study(seeds=seeds, axes=axes, baseline={"model.layers": 1}, claims=claims)
    dunnett, t = claim_powers(matrix, folder)
    assert round(dunnett.detectable, 2) == smallest
    assert t_power(t.detectable, seeds) == pytest.approx(0.8, abs=1e-4)
    assert (dunnett.detectable < t.detectable) == (seeds == 3)


def test_seeds_that_dunnetts_test_needs(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """Against four variants three seeds detect 2.00 standard deviations, six 1.29; some differences no one finds."""
    about = {"variant": {"model.layers": 2}, "test": "dunnett"}
    effects = {"a": 2.01, "b": 1.99, "c": 1.30, "d": 1.28, "hopeless": 0.002}
    claims = {name: {**about, "expected": effect * SD} for name, effect in effects.items()}
    axes = {"model.layers": [1, 2, 3, 4, 5]}
    matrix = tiny_study(seeds=3, axes=axes, baseline={"model.layers": 1}, claims=claims)
    teach(folder, matrix)
    found = {power.claim: power for power in claim_powers(matrix, folder)}
    assert {name: power.seeds_needed for name, power in found.items()} == {
        "a": 3, "b": 4, "c": 6, "d": 7, "hopeless": None,
    }  # fmt: skip
    assert found["a"].power > 0.8 > found["b"].power > 0.78
    hopeless = only(tiny_study(seeds=3, claims={"a": {"expected": 0.002 * SD}}), folder)
    assert (hopeless.seeds_needed, hopeless.power < 0.06) == (None, True)


def test_sign_flips_have_a_power_of_their_own(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """All five differences must have one sign: with a probability of Phi(effect)^5, not that of a t-test."""
    matrix = tiny_study(seeds=5, claims={"a": {"test": "sign-flip", "expected": 1.2 * SD}})
    smallest = float(scipy.stats.norm.ppf(0.8 ** (1 / 5)))
    assert only(matrix, folder).detectable == pytest.approx(smallest, rel=0.04)
    teach(folder, matrix)
    found = only(matrix, folder)
    assert found.power == pytest.approx(scipy.stats.norm.cdf(1.2) ** 5, abs=0.045)  # from 2,000 samples
    assert t_power(1.2, 5) > found.power + 0.1
    assert found.seeds_needed is not None and 7 <= found.seeds_needed <= 9


@pytest.mark.parametrize("test", ["t", "dunnett", "sign-flip"])
def test_a_baselines_further_seeds_count_by_the_correlation(
    test: str, tiny_study: Callable[..., Matrix], folder: RunsFolder
) -> None:
    """Six seeds of four variants and twelve of their baseline: the less seeds have in common, the more these tell."""
    axes, about = {"model.layers": [1, 2, 3, 4, 5]}, {"variant": {"model.layers": 2}}
    matrix = tiny_study(seeds="auto", axes=axes, baseline={"model.layers": 1}, claims={"a": {**about, "test": test}})
    generator = np.random.default_rng(5)
    config, common = matrix.variants[0].config, generator.normal(0, 0.02, 12)
    values = {
        name: dict(enumerate((2 + common + generator.normal(0, 0.02, 12)).tolist())) for name in ("base", "a", "b", "c")
    }
    origin = {"study": "before", "data": data_identity(config.data), "parameters": matrix.variants[0].parameters}
    tokens = config.training.steps * config.training.tokens_per_step
    update_ledger(folder, build_frame(values, **origin, tokens=tokens))
    found = only(matrix, folder)
    assert found.noise is not None
    r, sd = found.noise.correlation, found.noise.sd
    assert 0.2 < r < 0.8
    variance = (1 + r) / 6 + (1 - r) / 12  # over that of seeds beyond what is common; of six pairs alone 2 / 6
    share = variance / (2 / 6)
    effect = found.detectable / sd
    if test == "t":
        assert t_power(effect / math.sqrt(share), 6) == pytest.approx(0.8, abs=1e-4)
    elif test == "sign-flip":  # of pairs
        assert effect > scipy.stats.norm.ppf(0.8) / math.sqrt(6)
        even = only(tiny_study(seeds=6, axes=axes, baseline={"model.layers": 1}, claims={"a": {**about, "test": test}}),
                    folder)  # fmt: skip
        assert found.detectable == even.detectable
    else:
        shared = (r / 6 + (1 - r) / 12) / variance  # of two differences: the baseline's part
        whole = scipy.stats.multivariate_t(shape=np.full((4, 4), shared) + (1 - shared) * np.eye(4), df=20, seed=1)
        critical = brentq(lambda t: whole.cdf(np.full(4, t), maxpts=20_000, random_state=1) - 0.95, 1.5, 3.5, xtol=1e-3)
        power = scipy.stats.nct.sf(critical, 20, effect * math.sqrt(6 / share))
        assert power == pytest.approx(0.8, abs=2e-3)


def test_equivalence_by_dunnetts_test(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """Simulated studies of five variants that are all the same: how often one is placed within the margin."""
    axes, n, k = {"model.layers": [1, 2, 3, 4, 5]}, 6, 4
    claim = {"direction": "equivalent", "margin": 1.6, "test": "dunnett", "variant": {"model.layers": 2}}
    matrix = tiny_study(seeds=n, axes=axes, baseline={"model.layers": 1}, claims={"a": claim})
    generator, df = np.random.default_rng(0), k * (n - 1)
    critical = 2.30  # Dunnett (1955): one-sided 5 %, four variants, 20 degrees of freedom
    means = generator.normal(0, 1 / math.sqrt(n), 200_000)
    margins = np.abs(means) + critical * np.sqrt(generator.chisquare(df, 200_000) / df / n)
    assert only(matrix, folder).detectable == pytest.approx(np.quantile(margins, 0.8), rel=0.005)


def test_data_are_named_by_whoever_asks(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """The identity of data that a plan knows already is not found again: it takes a look at all of them."""
    asked: list[Any] = []
    plan = tiny_study(seeds=5, claims={"a": {}, "b": {}}).plan
    matrix = plan_study(plan, identify=lambda data: asked.append(data) or "as told")
    teach(folder, matrix, data="as told")
    for power in claim_powers(matrix, folder):
        assert power.noise is not None
        assert power.noise.same_data
    assert asked == [matrix.variants[0].config.data]


def test_allowing_for_all_variants_takes_a_larger_difference(
    tiny_study: Callable[..., Matrix], folder: RunsFolder
) -> None:
    """Dunnett's test against five variants: the difference that the plan names is detected in just 80 %."""
    axes = {"model.gate.position": ["none", "value", "sdpa"], "model.tie_embeddings": [True, False]}
    base = {"model.gate.position": "none", "model.tie_embeddings": True}
    about = {"variant": {"model.gate.position": "sdpa"}}
    matrix = tiny_study(seeds=6, axes=axes, baseline=base, claims={"t": about, "dunnett": {**about, "test": "dunnett"}})
    assert len(matrix.variants) == 6
    t, dunnett = claim_powers(matrix, folder)
    assert t_power(t.detectable, 6) == pytest.approx(0.8, abs=1e-4)
    assert dunnett.detectable > t.detectable
    critical = 2.36  # Dunnett (1955): one-sided 5 %, five variants, 24 degrees of freedom
    assert scipy.stats.nct.sf(critical, 5 * 5, dunnett.detectable * math.sqrt(6)) == pytest.approx(0.8, abs=0.005)


def test_the_pairs_are_those_of_the_variant(tiny_study: Callable[..., Matrix], folder: RunsFolder) -> None:
    """A baseline's further seeds are no pairs: six of each variant under `seeds: auto`, claim by claim."""
    axes = {"model.gate.position": ["none", "value", "sdpa", "output"]}
    claims = {"first": {}, "about nothing": {"variant": {"model.gate.position": "none"}}, "last": {}}
    found = list(claim_powers(tiny_study(seeds="auto", axes=axes, claims=claims), folder))
    assert [(power.claim, power.seeds) for power in found] == [("first", 6), ("last", 6)]
    assert list(claim_powers(tiny_study(), folder)) == []
