"""What is said of few seeds is what closed forms, brute force and other libraries say."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from gatelab.results.statistics import blocks, dunnett, paired, power
from gatelab.results.statistics.blocks import Noise
from gatelab.results.statistics.paired import Alternative, mean_of

ALTERNATIVES: tuple[Alternative, ...] = ("two-sided", "less", "greater")
NUMBERS = st.integers(-1000, 1000).map(lambda number: number / 16)
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=12, unique=True)


# --- Student's t ---


@settings(deadline=None, max_examples=60)
@given(SAMPLES, NUMBERS, st.sampled_from(ALTERNATIVES), st.sampled_from([0.01, 0.05, 0.1]))
def test_a_mean_is_tested_as_scipy_does(
    values: list[float], null: float, alternative: Alternative, level: float
) -> None:
    """p-values and intervals of every table and claim are Student's, on either side, against any null."""
    mean, expected = mean_of(values), scipy.stats.ttest_1samp(values, null, alternative=alternative)
    assert mean.p(null, alternative) == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval(1 - level)
    found = mean.interval(level)
    assert (found.mean, found.n) == (pytest.approx(np.mean(values), abs=1e-12), len(values))
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high], rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(SAMPLES, NUMBERS, st.integers(1, 64), st.sampled_from(ALTERNATIVES))
def test_a_unit_or_an_offset_changes_no_p_value(
    values: list[float], shift: float, scale: int, alternative: Alternative
) -> None:
    """Bits or nats, and losses from whatever zero: the same evidence. A turned sign turns the side that is tested."""
    mirrored: dict[Alternative, Alternative] = {"two-sided": "two-sided", "less": "greater", "greater": "less"}
    moved = [scale * value + shift for value in values]
    turned = [-value for value in values]
    assert mean_of(moved).p(shift, alternative) == pytest.approx(mean_of(values).p(0, alternative), rel=1e-7, abs=1e-12)
    assert mean_of(turned).p(0, mirrored[alternative]) == pytest.approx(mean_of(values).p(0, alternative), rel=1e-12)
    flips = paired.sign_flip_p
    assert flips(moved, shift, alternative) == flips(turned, 0, mirrored[alternative]) == flips(values, 0, alternative)


@pytest.mark.parametrize("values", [[], [1.5]])
def test_too_few_values_have_no_test(values: list[float]) -> None:
    """A p-value of a single seed would be an invention."""
    mean = mean_of(values)
    assert math.isnan(mean.p())
    assert math.isnan(paired.equivalence_p(mean, 10.0))
    assert math.isnan(mean.interval().low)


@pytest.mark.parametrize("values", [[0.0] * 3, [2.0, 2.0], [0.1 + 0.2, 0.3, 0.3], [math.inf, 1.0]])
def test_values_without_scatter_have_no_test(values: list[float]) -> None:
    """Peak memory is the same at every seed, or nearly: what never varied, or only in the last digit, is no sample."""
    mean = mean_of(values)
    assert math.isnan(mean.p())
    assert math.isnan(mean.p(0.1, "less"))
    assert math.isnan(paired.equivalence_p(mean, 10.0))


def test_rounding_is_measured_by_the_values_of_which_differences_are() -> None:
    """Of losses near 2 the last digit is 4e-16: differences of some of these scatter by rounding alone."""
    differences = [4e-16, 8e-16, 0.0, 4e-16]
    assert math.isnan(mean_of(differences, 2.0).p())
    small = mean_of(differences, 1e-14).p()
    assert small == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)


@settings(deadline=None, max_examples=40)
@given(SAMPLES, st.integers(1, 800).map(lambda number: number / 16))
def test_equivalence_is_two_one_sided_tests(values: list[float], margin: float) -> None:
    """The p-value of TOST is that of statsmodels."""
    p = paired.equivalence_p(mean_of(values), margin)
    assert p == pytest.approx(DescrStatsW(values).ttost_mean(-margin, margin)[0], rel=1e-9, abs=1e-12)
    others = np.arange(len(values)) ** 2.0
    theirs = ttost_paired(np.array(values) + others, others, -margin, margin)[0]
    assert p == pytest.approx(theirs, rel=1e-6, abs=1e-9)


# --- Sign flips ---


@settings(deadline=None, max_examples=40)
@given(st.lists(NUMBERS, min_size=2, max_size=9), NUMBERS, st.sampled_from(ALTERNATIVES))
def test_sign_flips_are_all_tried(values: list[float], null: float, alternative: Alternative) -> None:
    """The exact test is SciPy's permutation test of pairs, whatever ties there are."""
    apart = np.array(values) - null
    expected = scipy.stats.permutation_test(
        (apart,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative=alternative, vectorized=True
    )
    p = paired.sign_flip_p(values, null, alternative)
    assert p == pytest.approx(min(1.0, float(expected.pvalue)), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "smallest"), [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125), (8, 0.0078125)]
)
def test_few_pairs_cannot_give_a_small_sign_flip_p(n: int, smallest: float) -> None:
    """2 / 2^n: the table says so, since no result of five seeds could be significant."""
    assert paired.smallest_sign_flip_p(n) == smallest
    assert paired.smallest_sign_flip_p(n, "less") == 0.5**n
    values = [1.0 + 0.3 * seed for seed in range(n)]
    assert paired.sign_flip_p(values) == smallest
    assert paired.sign_flip_p(values, alternative="greater") == 0.5**n
    assert paired.sign_flip_p(values, alternative="less") == 1.0


def test_ties_up_to_rounding_count_as_ties() -> None:
    """0.1 + 0.2 - 0.3 is not quite 0: sums that differ in the last digit only are as extreme as each other."""
    values = [0.1, 0.2, 0.3]  # + + - and - - + both sum up to 0
    assert paired.sign_flip_p([0.1, 0.2, -0.3]) == 1.0
    assert paired.sign_flip_p(values) == 0.25
    assert paired.sign_flip_p([0.1, 0.2, -0.3], alternative="greater") == 5 / 8


DIGITS = (3, -1, 4, 1, -5, 9, 2, -6, 5, 3, 5, -8, 9, 7, -9, 3, 2, 3, 8, -4, 6, 2, -6, 4, 3, 3, -8, 3, 2, 7, 9, -5)


def flips_at_least(values: Sequence[int], alternative: Alternative) -> float:
    """The exact p-value of whole numbers, by counting in how many of the 2^n flips each sum comes."""
    ways = {0: 1}
    for value in values:
        ways = {
            total: ways.get(total - value, 0) + ways.get(total + value, 0)
            for total in {end for before in ways for end in (before - value, before + value)}
        }
    assert sum(ways.values()) == 2 ** len(values)
    extreme = {
        "two-sided": lambda total: abs(total) >= abs(sum(values)),
        "less": lambda total: total <= sum(values),
        "greater": lambda total: total >= sum(values),
    }[alternative]
    return sum(count for total, count in ways.items() if extreme(total)) / 2 ** len(values)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [11, 24, 31, 32])
def test_up_to_32_pairs_are_exact(n: int, alternative: Alternative) -> None:
    """A p-value of 4 billion flips is the count of them, ties and all: drawn ones would differ from draw to draw."""
    p = paired.sign_flip_p([0.1 * number for number in DIGITS[:n]], 0.0, alternative)
    assert p == pytest.approx(flips_at_least(DIGITS[:n], alternative), rel=1e-12)
    assert paired.sign_flip_p([1.0] * n, 0.0, "greater") == 0.5**n


def test_more_pairs_draw_their_flips() -> None:
    """With more than 32 the p-value is drawn: near the exact one, and the same each time."""
    whole = (*DIGITS, -2, 5, -7, 1)
    values = [float(number) for number in whole]
    for alternative in ALTERNATIVES:
        exact = flips_at_least(whole, alternative)
        p = paired.sign_flip_p(values, 0.0, alternative)
        assert p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / paired.RESAMPLES))
        assert 0.01 < exact < 1
        assert paired.sign_flip_p(values, 0.0, alternative) == p
    assert paired.sign_flip_p([1.0] * 40) == pytest.approx(1 / (paired.RESAMPLES + 1))  # never 0


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_what_is_no_number_has_no_sign_flip(values: list[float]) -> None:
    """A diverged pair must not count as one with a sign."""
    assert math.isnan(paired.sign_flip_p(values))


# --- Power ---


@pytest.mark.parametrize(
    ("n", "level", "sides"), [(2, 0.05, 2), (3, 0.05, 2), (6, 0.05, 1), (6, 0.01, 2), (40, 0.1, 1)]
)
def test_power_is_that_of_the_noncentral_t(n: int, level: float, sides: int) -> None:
    """A plan's power and smallest detectable effect are statsmodels'."""
    theirs, alternative = TTestPower(), "two-sided" if sides == 2 else "larger"
    for effect in (0.0, 0.3, 1.0, 2.5):
        expected = theirs.power(effect, n, level, alternative=alternative)
        assert power.detection_power(3 * effect, 3.0, n, level, sides) == pytest.approx(expected, abs=1e-7)
    least = power.detectable(3.0, n, level, sides)
    # At 80 % the other tail is empty, where SciPy's series gives up.
    assert theirs.power(least / 3, n, level / sides, alternative="larger") == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize(("ratio", "seeds"), [(0.5, 34), (1, 10), (1.5, 6), (2, 5), (3, 4)])
def test_seeds_that_a_difference_needs(ratio: float, seeds: int) -> None:
    """Exact numbers, where the usual formula (2.8 / ratio)^2 promises 32, 8, 4, 2, 1."""
    assert power.seeds_needed(ratio) == seeds
    assert math.ceil(TTestPower().solve_power(ratio, power=0.8, alpha=0.05)) == seeds


def test_hopeless_and_certain_cases_have_a_power() -> None:
    """No noise finds any difference; no difference is found at the level; a single pair finds nothing."""
    assert power.detection_power(0.1, 0.0, 3) == 1.0
    assert power.detection_power(0.0, 0.0, 3) == paired.LEVEL
    assert math.isnan(power.detection_power(1.0, 1.0, 1))
    assert power.detection_power(500.0, 1.0, 3) == pytest.approx(1.0)
    for many in (1_000, 5_000):  # where SciPy's series gives up
        assert power.detection_power(1.2, 1.0, many, sides=1) == 1.0
        assert power.dunnett_power(1.2 * math.sqrt(many), 4, 4 * many) == 1.0
    assert math.isnan(power.detection_power(math.nan, 1.0, 3))
    for of in (power.detectable, power.equivalence_margin):
        assert math.isnan(of(1.0, 1))
        assert math.isnan(of(math.nan, 5))
    assert power.seeds_needed(0.5, most=33) is None  # it takes 34
    assert power.seeds_needed(0.5, most=34) == 34
    assert power.seeds_needed(0.001) is None
    assert power.equivalence_power(0.0, 3, 0.1) == 1.0
    assert math.isnan(power.equivalence_power(1.0, 1, 0.1))


@pytest.mark.parametrize(("n", "margin", "level"), [(3, 2.5, 0.05), (6, 0.9, 0.05), (6, 1.4, 0.025), (20, 0.6, 0.05)])
def test_power_of_equivalence_is_what_a_simulation_finds(n: int, margin: float, level: float) -> None:
    """How often two one-sided tests place no difference within a margin: counted in 200,000 samples."""
    samples = np.random.default_rng(n).normal(0, 2.0, (200_000, n))
    errors = samples.std(axis=1, ddof=1) / math.sqrt(n)
    critical = scipy.stats.t.ppf(1 - level, n - 1)
    equivalent = np.abs(samples.mean(axis=1)) + critical * errors < 2.0 * margin
    found = power.equivalence_power(2.0, n, 2.0 * margin, level)
    assert found == pytest.approx(equivalent.mean(), abs=4 * math.sqrt(found * (1 - found) / 200_000))
    assert 0.05 < found < 0.99


def test_the_margin_of_equivalence_has_the_power() -> None:
    """The margin that a plan names is the one that 80 % of such studies can show."""
    for n in (2, 3, 6, 30):
        margin = power.equivalence_margin(0.3, n)
        assert power.equivalence_power(0.3, n, margin) == pytest.approx(0.8, abs=1e-5)
    # With many pairs t is normal: 2 Phi(margin / error - z) - 1 = 0.8
    normal = scipy.stats.norm.ppf(0.9) + scipy.stats.norm.ppf(0.95)
    assert power.equivalence_margin(1.0, 20_000) * math.sqrt(20_000) == pytest.approx(normal, rel=1e-3)


@pytest.mark.parametrize(("n", "family", "smallest"), [(3, 4, 2.00), (3, 12, 2.04), (6, 4, 1.29), (6, 12, 1.40)])
def test_power_of_dunnetts_test_is_that_of_simulated_studies(n: int, family: int, smallest: float) -> None:
    """Block designs of a baseline and its variants, none of which differs: the point that the largest t exceeds in 5 %
    of them; then how often a variant that does differ exceeds it."""
    generator, repeats, df = np.random.default_rng(n + family), 60_000, family * (n - 1)
    values = generator.normal(0, math.sqrt(0.5), (repeats, family + 1, n))  # differences have a variance of 1
    centred = values - values.mean(axis=1, keepdims=True) - values.mean(axis=2, keepdims=True)
    error = ((centred + values.mean(axis=(1, 2), keepdims=True)) ** 2).sum(axis=(1, 2)) / df
    errors = np.sqrt(2 * error / n)
    differences = values[:, 1:].mean(axis=2) - values[:, :1].mean(axis=2)
    critical = np.quantile((differences / errors[:, None]).max(axis=1), 0.95)
    assert dunnett.dunnett_critical(0.05, family, df) == pytest.approx(critical, rel=0.01)
    effect = power.smallest_with_power(lambda effect: power.dunnett_power(effect * math.sqrt(n), family, df))
    assert round(effect, 2) == smallest
    detected = ((differences + effect) / errors[:, None] > critical).mean()
    assert detected == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("effect", [0.0, 1.2, 2.0])
def test_power_of_sign_flips(effect: float) -> None:
    """Of five differences all must have one sign, of four none is enough, of eight a simulation tells; then it is the
    t-test's."""
    near = 4 * math.sqrt(0.25 / power.SIMULATED)
    assert power.sign_flip_power(effect, 1.0, 4) == 0.0
    five = scipy.stats.norm.cdf(effect) ** 5
    assert power.sign_flip_power(3 * effect, 3.0, 5) == pytest.approx(five, abs=near)
    samples = np.random.default_rng(7).normal(effect, 1, (4_000, 8))
    signs = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    p_values = (samples @ signs.T >= samples.sum(axis=1, keepdims=True) - 1e-9).mean(axis=1)
    for level in (0.01, 0.05):
        found = power.sign_flip_power(effect, 1.0, 8, level)
        assert found == pytest.approx((p_values <= level).mean(), abs=near)
    expected = TTestPower().power(effect / 4, 11, 0.05, alternative="larger")
    assert power.sign_flip_power(effect / 4, 1.0, 11) == pytest.approx(expected, abs=1e-6)


def test_power_of_equivalence_by_another_test() -> None:
    """A pooled variance has more degrees of freedom, and allowing for several takes a larger statistic."""
    n, df, critical, margin = 6, 20, 2.4, 1.4
    generator = np.random.default_rng(4)
    means = generator.normal(0, 1 / math.sqrt(n), 200_000)
    errors = np.sqrt(generator.chisquare(df, 200_000) / df / n)
    found = power.equivalence_power(1.0, n, margin, 0.05, df, critical)
    assert found == pytest.approx((np.abs(means) + critical * errors < margin).mean(), abs=0.005)
    assert 0.05 < found < 0.99
    plain = power.equivalence_power(1.0, n, margin)
    assert power.equivalence_power(1.0, n, margin, 0.05, n - 1) == plain != power


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.99])
def test_the_smallest_effect_with_a_power(wanted: float) -> None:
    """A normal test's has a closed form, whatever its scale."""
    for scale in (0.01, 1.0, 300.0):
        found = power.smallest_with_power(
            lambda effect, scale=scale: float(scipy.stats.norm.cdf(effect / scale - 1.645)), wanted
        )
        assert found == pytest.approx(scale * (scipy.stats.norm.ppf(wanted) + 1.645), rel=1e-3)


# --- Dunnett ---


@pytest.mark.parametrize(
    ("df", "critical"),
    [
        (5, (2.57, 3.03, 3.29, 3.48, 3.62)),
        (10, (2.23, 2.57, 2.76, 2.89, 2.99)),
        (20, (2.09, 2.38, 2.54, 2.65, 2.73)),
    ],
)
def test_critical_values_are_those_of_dunnetts_table(df: int, critical: Sequence[float]) -> None:
    """Two-sided 5 % points for 1, 2, … variants (Dunnett 1964), to the printed digit."""
    for variants, printed in enumerate(critical, 1):
        point = brentq(lambda t, k=variants: dunnett.dunnett_p(t, k, df) - 0.05, 0.5, 10)
        assert round(point, 2) == printed


@pytest.mark.parametrize(
    ("df", "critical"), [(5, (2.02, 2.44, 2.68, 2.85, 2.98)), (10, (1.81, 2.15, 2.34, 2.47, 2.56))]
)
def test_one_sided_critical_values_are_those_of_dunnetts_table(df: int, critical: Sequence[float]) -> None:
    """One-sided 5 % points (Dunnett 1955), for claims that name a direction."""
    for variants, printed in enumerate(critical, 1):
        for sign, alternative in ((1, "greater"), (-1, "less")):
            p = [
                dunnett.dunnett_p(sign * (printed + off), variants, df, alternative=alternative)
                for off in (-0.005, 0.005)
            ]
            assert p[0] >= 0.05 >= p[1]
        assert round(dunnett.dunnett_critical(0.05, variants, df), 2) == printed


@pytest.mark.parametrize(("variants", "df", "correlation"), [(2, 4, 0.5), (3, 12, 0.3), (5, 30, 0.5), (4, 7, 0.1)])
def test_dunnetts_p_is_the_tail_of_a_multivariate_t(variants: int, df: int, correlation: float) -> None:
    """1 - P(all |T| < t) of equally correlated T, by SciPy's integration of the whole distribution."""
    shape = np.full((variants, variants), correlation) + (1 - correlation) * np.eye(variants)
    whole = scipy.stats.multivariate_t(shape=shape, df=df, seed=3)
    for t in (0.7, 2.0, 3.5):
        edge = np.full(variants, t)
        inside = whole.cdf(edge, lower_limit=-edge, maxpts=100_000)
        assert dunnett.dunnett_p(t, variants, df, correlation) == pytest.approx(1 - inside, abs=5e-5)
        below = whole.cdf(edge, maxpts=100_000)
        found = dunnett.dunnett_p(t, variants, df, correlation, "greater")
        assert found == pytest.approx(1 - below, abs=5e-5)
        assert dunnett.dunnett_p(-t, variants, df, correlation, "less") == found


@pytest.mark.parametrize("baseline_seeds", [5, 11])
def test_dunnetts_p_is_scipys(baseline_seeds: int) -> None:
    """SciPy's test of the same data, for unpaired groups and a baseline with as many seeds or with more."""
    generator = np.random.default_rng(baseline_seeds)
    base = generator.normal(0, 1, baseline_seeds)
    others = [generator.normal(shift, 1, 5) for shift in (-2.0, -1.0, 0.1, 1.5)]
    df = baseline_seeds + 4 * 5 - 5
    correlation = (1 / baseline_seeds) / (1 / 5 + 1 / baseline_seeds)
    for alternative in ALTERNATIVES:
        theirs = scipy.stats.dunnett(*others, control=base, alternative=alternative, rng=np.random.default_rng(1))
        for t, p in zip(theirs.statistic, theirs.pvalue, strict=True):
            assert dunnett.dunnett_p(float(t), 4, df, correlation, alternative) == pytest.approx(p, abs=5e-4)


@settings(deadline=None, max_examples=60)
@given(
    st.floats(-6, 6),
    st.floats(0.01, 3),
    st.integers(1, 12),
    st.integers(1, 60),
    st.floats(0, 0.5),
    st.sampled_from(ALTERNATIVES),
)
def test_allowing_for_more_never_makes_stronger(
    t: float, more: float, variants: int, df: int, correlation: float, alternative: Alternative
) -> None:
    """Dunnett's p lies between the t-test's and k times that, falls with t, and is the t-test's for one variant."""
    p = dunnett.dunnett_p(t, variants, df, correlation, alternative)
    tail = {"two-sided": 2 * scipy.stats.t.sf(abs(t), df), "less": scipy.stats.t.cdf(t, df)}
    single = float(tail.get(alternative, scipy.stats.t.sf(t, df)))
    assert dunnett.dunnett_p(t, 1, df, correlation, alternative) == pytest.approx(single, abs=1e-6)
    assert single - 1e-6 <= p <= min(1.0, variants * single) + 1e-6
    assert dunnett.dunnett_p(t, variants + 1, df, correlation, alternative) >= p - 1e-6
    further = (
        t + math.copysign(more, t) if alternative == "two-sided" else t + (more if alternative == "greater" else -more)
    )
    assert dunnett.dunnett_p(further, variants, df, correlation, alternative) <= p + 1e-9
    assert math.isnan(dunnett.dunnett_p(math.nan, variants, df, correlation, alternative))


# --- Noise over seeds ---


def block_design(variants: int, seeds: int, shared: float, error: float, seed: int) -> dict[str, dict[int, float]]:
    """Values of variants at seeds, which have something in common at each seed."""
    generator = np.random.default_rng(seed)
    common = generator.normal(0, shared, seeds)
    return {
        f"v{variant}": {at: float(3 + variant / 8 + common[at] + generator.normal(0, error)) for at in range(seeds)}
        for variant in range(variants)
    }


@pytest.mark.parametrize(("variants", "seeds", "shared"), [(2, 3, 1.0), (5, 6, 2.0), (4, 4, 0.1), (3, 9, 0.0)])
def test_noise_is_the_mean_square_of_a_block_design(variants: int, seeds: int, shared: float) -> None:
    """The pooled error and the intraclass correlation are those of statsmodels' analysis of variance."""
    values = block_design(variants, seeds, shared, 0.5, variants)
    noise = blocks.noise_of(values, "v0")
    assert noise is not None
    rows = [{"variant": name, "seed": at, "y": y} for name, of in values.items() for at, y in of.items()]
    table = anova_lm(ols("y ~ C(variant) + C(seed)", pd.DataFrame(rows)).fit())
    error, between = table.loc["Residual", "mean_sq"], table.loc["C(seed)", "mean_sq"]
    assert (noise.error, noise.df) == (pytest.approx(error, rel=1e-9), table.loc["Residual", "df"])
    correlation = max(0.0, (between - error) / (between + (variants - 1) * error))
    assert noise.correlation == pytest.approx(correlation, rel=1e-9, abs=1e-12)
    assert noise.gain == pytest.approx(1 / (1 - correlation), rel=1e-9)
    assert noise.sd == pytest.approx(math.sqrt(2 * error), rel=1e-9)
    assert noise.sd_of_seeds == pytest.approx(math.sqrt(error + max(0.0, (between - error) / variants)), rel=1e-9)
    assert (noise.variants, noise.seeds) == (tuple(values), tuple(range(seeds)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=9, unique_by=lambda pair: pair[1] - pair[0]))
def test_one_variant_is_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    """With one variant there is nothing to allow for: Dunnett's test is SciPy's paired test."""
    base, own = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    noise = blocks.noise_of({"base": base, "own": own}, "base")
    assert noise is not None
    differences = np.array([own[seed] - base[seed] for seed in own])
    assert noise.sd == pytest.approx(differences.std(ddof=1), rel=1e-9, abs=1e-12)
    for alternative in ALTERNATIVES:
        expected = scipy.stats.ttest_rel(list(own.values()), list(base.values()), alternative=alternative).pvalue
        found = noise.dunnett_p(float(differences.mean()), len(pairs), alternative)
        assert found == pytest.approx(expected, abs=2e-6)


def test_only_seeds_that_all_have_count() -> None:
    """One variance for all needs a whole table: other seeds, and variants with hardly any, are left out by name."""
    values = block_design(4, 6, 1.0, 0.3, 1)
    whole = blocks.noise_of({name: {at: of[at] for at in (0, 1, 3, 5)} for name, of in list(values.items())[:3]}, "v0")
    del values["v1"][2], values["v2"][4]
    values["v3"] = {0: 1.0, 9: 2.0}  # one seed of the baseline
    noise = blocks.noise_of(values, "v0")
    assert noise is not None
    assert (noise.seeds, noise.variants) == ((0, 1, 3, 5), ("v0", "v1", "v2"))
    assert noise == whole


@pytest.mark.parametrize(
    "values",
    [
        {"base": {0: 1.0, 1: 2.0}},
        {"base": {0: 1.0}, "own": {0: 2.0}},
        {"base": {0: 1.0, 1: 2.0}, "own": {0: math.nan, 1: 2.0}},
        {"base": {0: 1.0, 1: math.inf}, "own": {0: 1.0, 1: 2.0}},
        {"own": {0: 1.0, 1: 2.0}},
    ],
    ids=["alone", "one seed", "nan", "infinite", "no baseline"],
)
def test_without_a_table_there_is_no_noise(values: dict[str, dict[int, float]]) -> None:
    """A variance of nothing would make anything significant."""
    assert blocks.noise_of(values, "base") is None


def test_a_value_that_is_no_number_takes_its_variant_out() -> None:
    """An infinite perplexity must not take the test from the variants beside it: these are a family without it."""
    values = block_design(4, 5, 1.0, 0.3, 2)
    without = blocks.noise_of({name: values[name] for name in ("v0", "v1", "v3")}, "v0")
    assert without is not None
    for odd in (math.nan, math.inf):
        values["v2"][3] = odd
        noise = blocks.noise_of(values, "v0")
        assert noise == without
    values["v0"][4] = math.inf  # of the baseline it is the seed that is left out
    fewer = blocks.noise_of(values, "v0")
    assert fewer is not None
    assert (fewer.seeds, fewer.variants) == ((0, 1, 2, 3), ("v0", "v1", "v3"))


def test_those_with_the_fewest_seeds_make_room_for_a_test_of_the_others() -> None:
    """Where fewer than two seeds are common to all, the family is that which has a test, and says who is in it."""
    whole = block_design(5, 6, 1.0, 0.3, 3)
    values = {
        **whole,
        "v2": {at: whole["v2"][at] for at in (0, 1)},
        "v4": {at: whole["v4"][at] for at in (3, 4, 5)},
    }
    noise = blocks.noise_of(values, "v0")
    kept = {name: {at: of[at] for at in (3, 4, 5)} for name, of in whole.items() if name != "v2"}
    assert noise is not None
    assert (noise.variants, noise.seeds) == (("v0", "v1", "v3", "v4"), (3, 4, 5))
    assert noise == blocks.noise_of(kept, "v0")


@pytest.mark.parametrize("rounding", [0.0, 4e-16])
def test_variants_that_scatter_alike_exactly(rounding: float) -> None:
    """Without noise there is nothing to test a difference against, however large or small; nor with rounding alone."""
    base = {0: 2.0, 1: 2.5, 2: 3.25}
    values = {"base": base, "own": {seed: value + 0.5 + rounding * (seed == 1) for seed, value in base.items()}}
    noise = blocks.noise_of(values, "base")
    assert noise is not None
    assert (noise.error, noise.correlation, noise.gain) == (0.0, 1.0, math.inf)
    for difference in (0.5, 0.0, math.nan):
        assert math.isnan(noise.dunnett_p(difference, 3))
    assert Noise(0.0, 0.0, 4, (0, 1, 2), ("a", "b", "c")).correlation == 0.0


# --- A baseline with more seeds ---


def weights(variants: int, n: int, m: int, correlation: float) -> np.ndarray:
    """What each value counts for in each variant's difference: [variants, variants * n + m], the baseline's last."""
    size = variants * n + m
    found = np.zeros((variants, size))
    for place in range(size):
        unit = np.zeros(size)
        unit[place] = 1.0
        base = dict(enumerate(unit[variants * n :]))
        for variant in range(variants):
            own = dict(enumerate(unit[variant * n : (variant + 1) * n]))
            found[variant, place] = blocks.augmented_difference(own, base, correlation).value
    return found


def covariance(variants: int, n: int, m: int, correlation: float) -> np.ndarray:
    """Of these values, with an error of variance 1."""
    seeds = np.array([*range(n)] * variants + [*range(m)])
    shared = correlation / (1 - correlation)
    return np.eye(len(seeds)) + shared * (seeds[:, None] == seeds[None, :])


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_seeds_without_a_partner_count_for_what_they_tell(correlation: float) -> None:
    """The estimate is that of generalised least squares, with the variance that Dunnett's test divides by."""
    k, n, m = 3, 4, 7
    found, whole = weights(k, n, m, correlation), covariance(k, n, m, correlation)
    of_differences = found @ whole @ found.T
    noise = Noise(1.0, correlation / (1 - correlation), 9, tuple(range(n)), ("base", "a", "b", "c"))
    assert noise.correlation == pytest.approx(correlation)
    closed = (1 + correlation) / n + (1 - correlation) / m
    assert np.diag(of_differences) == pytest.approx(closed)
    assert noise.variance(n, m) == pytest.approx(closed)
    assert blocks.variance_share(correlation, n, m) == pytest.approx(closed / (2 / n))  # of n pairs alone: 2 / n
    # Of two differences: a test that allows for all must know how they hang together.
    between = of_differences[0, 1] / closed
    assert blocks.correlation_of_differences(correlation, n, m) == pytest.approx(between)
    assert blocks.correlation_of_differences(correlation, n, n) == pytest.approx(0.5)
    expected = dunnett.dunnett_p(1.7 / math.sqrt(closed), k, 9, between)
    assert noise.dunnett_p(1.7, m) == pytest.approx(expected, rel=1e-9)
    # One variant and the baseline alone: the best of all unbiased linear estimates.
    design = np.zeros((n + m, 2))
    design[:n, 0] = design[n:, 1] = 1.0
    inverse = np.linalg.inv(covariance(1, n, m, correlation))
    means = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse)
    assert weights(1, n, m, correlation)[0] == pytest.approx(means[0] - means[1])


def test_between_paired_and_unpaired() -> None:
    """Full correlation leaves the paired difference, and further seeds add nothing; none leaves Welch's test."""
    generator = np.random.default_rng(0)
    base = dict(enumerate(generator.normal(2, 1, 9)))
    own = {seed: base[seed] + float(generator.normal(0.3, 0.2)) for seed in range(5)}
    paired = blocks.augmented_difference(own, base, 1.0)
    test = scipy.stats.ttest_rel(list(own.values()), [base[seed] for seed in own])
    interval = test.confidence_interval(0.95)
    assert (paired.p(), paired.df, paired.n) == (pytest.approx(test.pvalue), pytest.approx(4), 5)
    assert [paired.interval().low, paired.interval().high] == pytest.approx([interval.low, interval.high])
    unpaired = blocks.augmented_difference(own, base, 0.0)
    welch = scipy.stats.ttest_ind(list(own.values()), list(base.values()), equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert (unpaired.p(), unpaired.df) == (pytest.approx(welch.pvalue), pytest.approx(welch.df))
    assert [unpaired.interval().low, unpaired.interval().high] == pytest.approx([interval.low, interval.high])
    assert math.isnan(blocks.augmented_difference({0: 1.0}, base, 0.5).p())


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_interval_covers_as_often_as_it_says(correlation: float) -> None:
    """Six seeds, four variants, twelve of the baseline; the correlation estimated as tables do: 92 % or more."""
    generator = np.random.default_rng(int(10 * correlation))
    k, n, m, hits, repeats = 4, 6, 12, 0, 800
    shared = math.sqrt(correlation / (1 - correlation))
    for _ in range(repeats):
        common = shared * generator.normal(size=m)
        table = common + generator.normal(size=(k + 1, m))
        values = {str(row): dict(enumerate(table[row][: n if row else m].tolist())) for row in range(k + 1)}
        noise = blocks.noise_of(values, "0")
        assert noise is not None
        for row in range(1, k + 1):
            interval = blocks.augmented_difference(values[str(row)], values["0"], noise.correlation).interval()
            hits += interval.low <= 0 <= interval.high
    assert 0.92 <= hits / (k * repeats) <= 0.97


@pytest.mark.parametrize(("variants", "gain"), [(4, 0.10), (8, 0.19), (12, 0.23)])
def test_a_shared_baseline_is_worth_more_seeds(variants: int, gain: float) -> None:
    """Of as many runs, sqrt(k) times as many of the baseline give unpaired differences the least variance."""
    noise = Noise(1.0, 0.0, 20, (0, 1), ("base", "a"))
    runs = 1e6

    def variance(ratio: float) -> float:
        n = runs / (variants + ratio)
        return noise.variance(n, ratio * n)

    assert 1 - variance(math.sqrt(variants)) / variance(1.0) == pytest.approx(gain, abs=0.005)
    ratios = np.linspace(0.5, variants, 2000)
    assert ratios[np.argmin([variance(ratio) for ratio in ratios])] == pytest.approx(math.sqrt(variants), rel=0.01)


@pytest.mark.parametrize("baseline_seeds", [5, 11], ids=["as many", "more"])
def test_nothing_is_found_where_nothing_is(baseline_seeds: int) -> None:
    """Of studies without any real difference, 5 % find one: of a whole study, not of each of its variants."""
    generator = np.random.default_rng(baseline_seeds)
    k, n, repeats, found = 5, 5, 1200, 0
    for _ in range(repeats):
        table = generator.normal(size=baseline_seeds) + generator.normal(size=(k + 1, baseline_seeds))
        values = {
            str(row): dict(enumerate(table[row][: n if row else baseline_seeds].tolist())) for row in range(k + 1)
        }
        noise = blocks.noise_of(values, "0")
        assert noise is not None
        differences = [
            blocks.augmented_difference(values[str(row)], values["0"], noise.correlation).value
            if baseline_seeds > n
            else mean_of([values[str(row)][at] - values["0"][at] for at in range(n)]).value
            for row in range(1, k + 1)
        ]
        found += noise.dunnett_p(max(differences, key=abs), baseline_seeds) <= 0.05
    assert found / repeats == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / repeats))


# --- Many tests ---


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
def test_q_values_are_those_of_benjamini_and_hochberg(p_values: list[float]) -> None:
    """statsmodels' adjustment, with the p-values that do not exist left out and in their places."""
    found = paired.benjamini_hochberg(p_values)
    known = [p for p in p_values if not math.isnan(p)]
    expected = iter(multipletests(known, method="fdr_bh")[1] if known else [])
    assert [math.isnan(q) for q in found] == [math.isnan(p) for p in p_values]
    assert [q for q in found if not math.isnan(q)] == pytest.approx(list(expected), rel=1e-12)


def test_unequal_scatter_is_found_by_bartletts_formula() -> None:
    """The note that variants scatter differently follows from the formula, not from what happens to be passed in."""
    samples = [[1.0, 2.0, 4.0, 3.0], [10.0, 60.0, 40.0], [0.0, 1.0, 5.0, 2.0, 2.5]]
    df = np.array([len(sample) - 1 for sample in samples])
    variances = np.array([np.var(sample, ddof=1) for sample in samples])
    pooled = df @ variances / df.sum()
    k = len(samples)
    statistic = (df.sum() * math.log(pooled) - df @ np.log(variances)) / (
        1 + (np.sum(1 / df) - 1 / df.sum()) / (3 * (k - 1))
    )
    expected = scipy.stats.chi2.sf(statistic, k - 1)
    assert paired.unequal_variances_p([*samples, [1.0], [], [2.0, 2.0], [1.0, math.inf]]) == pytest.approx(expected)
    assert math.isnan(paired.unequal_variances_p([[1.0, 2.0], [3.0]]))
