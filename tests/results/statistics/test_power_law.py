"""Laws are found where data determine them, by the same objective as elsewhere, and refused where they do not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.results.statistics.law_bootstrap import bootstrap, offset_caveat, refusal, scatter
from gatelab.results.statistics.law_fit import HUBER, fit
from gatelab.results.statistics.power_law import Cells, Floats, Law, compute_gain, crossover, optimum

COMPUTE = np.geomspace(1e17, 1e21, 5)
SIZES, BUDGETS = np.geomspace(5e7, 1e10, 5), np.geomspace(1e9, 2e11, 3)
POWER = Law(np.array([1.6]), np.array([60.0, 62.0, 66.0]), np.array([0.09, 0.0905, 0.092]))
CHINCHILLA = Law(np.array([1.69]), np.array([406.4]), np.array([0.34]), np.array([410.7, 0.28]))
THREE = Law(CHINCHILLA.offset, np.array([406.4, 380.0, 420.0]), np.array([0.34, 0.337, 0.342]), CHINCHILLA.data)


def build_cells(law: Law, noise: float = 0.0, seeds: int = 3, compute: Floats = COMPUTE, rng: int = 0) -> Cells:
    """Every arm of a law at every rung, with noise on log losses; paired seeds share half of its variance."""
    if law.data is None:
        arm, rung = (grid.ravel() for grid in np.indices((law.scale.size, len(compute))))
        x, tokens = compute[rung], None
    else:
        arm, size, budget = (grid.ravel() for grid in np.indices((law.scale.size, len(SIZES), len(BUDGETS))))
        rung, x, tokens = size * len(BUDGETS) + budget, SIZES[size], BUDGETS[budget]
    random = np.random.default_rng(rng)
    shared = random.normal(0, noise * np.sqrt(0.5), (rung.max() + 1, seeds))
    own = random.normal(0, noise * np.sqrt(0.5), (len(arm), seeds))
    return Cells(arm, rung, x, law.losses(arm, x, tokens)[:, None] * np.exp(shared[rung] + own), tokens)


def assert_equal_laws(found: Law, expected: Law, tolerance: float) -> None:
    """All constants agree, relatively."""
    np.testing.assert_allclose(np.broadcast_to(found.offset, expected.offset.shape), expected.offset, rtol=tolerance)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=tolerance)
    np.testing.assert_allclose(found.exponent, expected.exponent, rtol=tolerance)
    assert (found.data is None) == (expected.data is None)
    if expected.data is not None:
        np.testing.assert_allclose(found.data, expected.data, rtol=tolerance)


LAWS = {
    "power": POWER,
    "chinchilla": CHINCHILLA,
    "three arms": THREE,
    "steep": replace(POWER, exponent=POWER.exponent * 5),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_exact_data_return_the_constants(law: Law) -> None:
    """The published constants of approach 3, and those of several arms at once, come back from data without noise."""
    assert_equal_laws(fit(build_cells(law)), law, 1e-3)


def test_arms_may_have_offsets_of_their_own() -> None:
    """The check of the shared offset must find offsets that differ."""
    law = replace(POWER, offset=np.array([1.6, 1.5, 1.7]))
    assert_equal_laws(fit(build_cells(law), "own"), law, 1e-3)
    assert fit(build_cells(law)).offset.shape == (1,)


def test_an_offset_of_zero_is_found_and_said() -> None:
    """E is never negative; a pure power law has none, and none may be reported."""
    cells = build_cells(replace(POWER, offset=np.array([0.0])), noise=1e-4)
    law = fit(cells)
    assert 0 <= law.offset[0] < 0.2
    assert "not determined" in offset_caveat(cells, law)
    np.testing.assert_array_equal(fit(cells, "zero").offset, 0)


def _huber(theta: Any, cells: Cells) -> float:
    """The paper's objective, for one arm, with log-sum-exp as it is written there."""
    a, alpha, e, *data = theta
    terms = [a - alpha * np.log(cells.x), np.full(len(cells.x), e)]
    if cells.tokens is not None:
        terms.append(data[0] - data[1] * np.log(cells.tokens))
    residuals = scipy.special.logsumexp(terms, axis=0) - cells.mean
    return float(np.sum(scipy.special.huber(HUBER, residuals) * cells.seeds))


@pytest.mark.parametrize("noise", [2e-4, 3e-3], ids=["below delta", "beyond delta"])
@pytest.mark.parametrize(
    "truth", [CHINCHILLA, Law(POWER.offset, POWER.scale[:1], POWER.exponent[:1])], ids=["3", "power"]
)
def test_another_optimizer_finds_no_better_fit(truth: Law, noise: float) -> None:
    """SciPy's simplex method, from the truth and from the fit, on the objective as the paper writes it."""
    cells = build_cells(truth, noise)
    laws = [fit(cells), truth]
    starts = [
        [np.log(law.scale[0]), law.exponent[0], np.log(law.offset[0])]
        + ([] if law.data is None else [np.log(law.data[0]), law.data[1]])
        for law in laws
    ]
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 40_000, "maxfev": 40_000}
    best = min(scipy.optimize.minimize(_huber, start, (cells,), "Nelder-Mead", options=options).fun for start in starts)
    assert _huber(starts[0], cells) == pytest.approx(best, rel=1e-4)
    assert _huber(starts[0], cells) <= best * (1 + 1e-6)


def test_small_residuals_are_least_squares() -> None:
    """Below Huber's delta a fit of three arms is the one of SciPy's least squares."""
    cells = build_cells(THREE, 1e-4)

    def residuals(theta: Floats) -> Floats:
        law = Law(theta[:1], np.exp(theta[1:4]), theta[4:7], np.array([np.exp(theta[7]), theta[8]]))
        return np.log(law.losses(cells.arm, cells.x, cells.tokens)) - cells.mean

    start = np.concatenate([THREE.offset, np.log(THREE.scale), THREE.exponent, [np.log(410.7), 0.28]])
    theta = scipy.optimize.least_squares(residuals, start, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    expected = Law(theta[:1], np.exp(theta[1:4]), theta[4:7], np.array([np.exp(theta[7]), theta[8]]))
    assert_equal_laws(fit(cells), expected, 1e-4)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    factor=st.floats(1e-6, 1e6),
    offset=st.floats(0.5, 2.0),
    exponent=st.floats(0.05, 0.6),
    top=st.floats(0.5, 3.0),
    noise=st.sampled_from([0.0, 1e-3]),
)
def test_units_change_only_the_scale(factor: float, offset: float, exponent: float, top: float, noise: float) -> None:
    """FLOPs or PFLOPs: E and alpha stay, and A becomes A c^alpha."""
    scale = top * COMPUTE[0] ** exponent  # so that the first loss is E + top
    cells = build_cells(Law(np.array([offset]), np.array([scale]), np.array([exponent])), noise)
    one, other = fit(cells), fit(replace(cells, x=cells.x * factor))
    np.testing.assert_allclose(other.offset, one.offset, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other.exponent, one.exponent, rtol=1e-4)
    np.testing.assert_allclose(other.scale, one.scale * factor**one.exponent, rtol=1e-2)


def test_arms_have_no_order() -> None:
    """Another numbering of arms and rungs is the same fit."""
    cells = build_cells(THREE, 1e-3)
    order = np.random.default_rng(1).permutation(len(cells.arm))
    assert cells.tokens is not None
    shuffled = Cells(2 - cells.arm[order], cells.rung[order], cells.x[order], cells.losses[order], cells.tokens[order])
    law = fit(cells)
    assert_equal_laws(fit(shuffled), replace(law, scale=law.scale[::-1], exponent=law.exponent[::-1]), 1e-5)


def test_one_wild_seed_moves_a_law_little() -> None:
    """What Huber's loss is for: squares would follow the outlier."""
    cells = build_cells(POWER, 1e-4)
    cells.losses[7] *= 1.05
    np.testing.assert_allclose(fit(cells).exponent[[0, 2]], POWER.exponent[[0, 2]], rtol=0.02)


def test_scatter_tells_seeds_from_lack_of_fit() -> None:
    """Both standard deviations come back from cells that have both, and only lack of fit from single seeds."""
    many = build_cells(POWER, 2e-3, seeds=200, compute=np.geomspace(1e17, 1e22, 40))
    assert scatter(many, POWER).seeds == pytest.approx(2e-3, rel=0.02)
    assert scatter(many, POWER).lack_of_fit < 1e-4
    wavy = replace(many, losses=many.losses * np.exp(np.random.default_rng(3).normal(0, 4e-3, (120, 1))))
    assert scatter(wavy, POWER).lack_of_fit == pytest.approx(4e-3, rel=0.15)
    single = scatter(replace(many, losses=many.losses[:, :1]), POWER)
    assert (single.seeds, single.freedom_of_seeds) == (0, 0)
    assert single.lack_of_fit == pytest.approx(2e-3, rel=0.15)


def test_replicates_spread_as_fits_of_new_studies_do() -> None:
    """Bootstraps have the spread of fits of studies with new seeds, and a little more for what they cannot know."""

    def contrast(law: Law) -> Floats:
        return law.exponent[..., 2] - law.exponent[..., 0]

    quantities = (contrast, lambda law: law.exponent[..., 0], lambda law: law.offset[..., 0])
    studies = [build_cells(POWER, 2e-3, seeds=8, rng=rng) for rng in range(200)]
    laws = [fit(cells) for cells in studies]
    replicates = [
        bootstrap(cells, law, 200, np.random.default_rng(0))[0]
        for cells, law in zip(studies[:40], laws[:40], strict=True)
    ]
    for quantity in quantities:
        spread = np.std([quantity(law) for law in laws])
        typical = float(np.median([np.std(quantity(each)) for each in replicates]))
        assert 0.95 * spread < typical < 1.4 * spread


def test_noise_of_replicates_keeps_the_pairing() -> None:
    """Equal seeds of a rung move together in all arms, other rungs move by themselves."""
    cells = build_cells(POWER, 2e-3, seeds=8)
    _, noise = bootstrap(cells, fit(cells), 1000, np.random.default_rng(0))
    assert noise.shape == (1000, 15)
    assert np.std(noise) == pytest.approx(2e-3 / np.sqrt(8), rel=0.2)
    assert np.corrcoef(noise[:, 0], noise[:, 5])[0, 1] == pytest.approx(0.5, abs=0.2)  # two arms at one rung
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.1  # two rungs of one arm


@pytest.mark.parametrize("truth", [POWER, THREE], ids=["power", "3"])
def test_replicates_are_fits(truth: Law) -> None:
    """A replicate of the batch is what a fit of the same data by itself finds."""
    cells = build_cells(truth, 2e-3, seeds=1)
    law = fit(cells)
    replicates, noise = bootstrap(cells, law, 8, np.random.default_rng(0))
    for index in range(8):
        moved = law.losses(cells.arm, cells.x, cells.tokens) * np.exp(noise[index])  # single seeds: noise is all
        alone = fit(replace(cells, losses=moved[:, None]))
        np.testing.assert_allclose(replicates.offset[index], alone.offset, rtol=1e-3)
        np.testing.assert_allclose(replicates.exponent[index], alone.exponent, rtol=1e-3)


def test_missing_seeds_and_cells_are_left_out() -> None:
    """Unequal seeds and a lost rung change what is known, not what is asked."""
    cells = build_cells(POWER, 1e-3)
    losses = cells.losses.copy()
    losses[3, 1:], losses[8, 0] = np.nan, np.nan
    keep = np.arange(15) != 12
    cells = Cells(cells.arm[keep], cells.rung[keep], cells.x[keep], losses[keep])
    np.testing.assert_array_equal(cells.seeds[[3, 8, 0]], [1, 2, 3])
    law = fit(cells)
    np.testing.assert_allclose(law.exponent, POWER.exponent, rtol=0.1)
    replicates, noise = bootstrap(cells, law, 500, np.random.default_rng(0))
    assert np.isfinite(replicates.exponent).all()
    assert np.std(noise[:, 3]) > 1.3 * np.std(noise[:, 0])  # a single seed has the noise of one


def test_a_seed_makes_a_bootstrap() -> None:
    """The same seed gives the same replicates."""
    cells = build_cells(POWER, 1e-3)
    one, other = (bootstrap(cells, fit(cells), 50, np.random.default_rng(7))[0] for _ in range(2))
    np.testing.assert_array_equal(one.exponent, other.exponent)


def test_gains_of_published_checks() -> None:
    """Numbers that were worked out elsewhere: (E, alpha) = (1.6, 0.0941), at equal and at lower speed."""
    gain = compute_gain(3.5422, 3.52, 1.6, 0.0941)
    assert float(gain) == pytest.approx(1.130, abs=5e-4)
    assert float(gain) * 410_000 / 433_986 == pytest.approx(1.067, abs=1e-3)
    assert float(compute_gain(3.0208, 2.9985, 1.6, 0.0941)) == pytest.approx(1.18, abs=5e-3)
    assert float(compute_gain(3.0, 3.0, 1.6, 0.0941)) == 1
    assert float(compute_gain(3.0, 1.5, 1.6, 0.0941)) == np.inf
    assert float(compute_gain(1.5, 3.0, 1.6, 0.0941)) == 0
    assert np.isnan(compute_gain(1.5, 1.5, 1.6, 0.0941))


def test_curves_are_equal_where_they_cross() -> None:
    """Before the crossover one arm is better, after it the other."""
    where = float(crossover(POWER, 2, 0))
    base, arm = (POWER.losses([each] * 3, where * np.array([0.1, 1, 10])) for each in (0, 2))
    assert arm[1] == pytest.approx(base[1], rel=1e-12)
    assert arm[0] > base[0]
    assert arm[2] < base[2]
    assert not np.isfinite(crossover(replace(POWER, exponent=np.full(3, 0.09)), 2, 0))


def test_the_optimum_has_the_closed_form() -> None:
    """N and D of the paper's equation 4, and no other split of the compute is better."""
    compute = 5.76e23
    parameters, tokens = optimum(CHINCHILLA, 0, [compute])
    balance = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62)
    assert parameters[0] == pytest.approx(balance * (compute / 6) ** (0.28 / 0.62), rel=1e-12)
    assert tokens[0] == pytest.approx((compute / 6) ** (0.34 / 0.62) / balance, rel=1e-12)
    assert 6 * parameters[0] * tokens[0] == pytest.approx(compute, rel=1e-12)
    other = parameters * np.geomspace(0.5, 2, 101)
    losses = CHINCHILLA.losses(np.zeros(101, int), other, compute / 6 / other)
    assert np.argmin(losses) == 50
    # Along the optimum the loss above E falls with alpha beta / (alpha + beta).
    ends = [CHINCHILLA.losses(0, *optimum(CHINCHILLA, 0, [each]))[0] - 1.69 for each in (compute, 100 * compute)]
    assert np.log(ends[0] / ends[1]) / np.log(100) == pytest.approx(float(CHINCHILLA.compute_exponent(0)), rel=1e-9)


def _flat(cells: Cells) -> Cells:
    return replace(cells, losses=np.full_like(cells.losses, 3.0) + np.random.default_rng(0).normal(0, 1e-2, (15, 1)))


def _rows(*indices: int) -> Callable[[Cells], Cells]:
    def choose(cells: Cells) -> Cells:
        rows = np.array(indices)
        tokens = None if cells.tokens is None else cells.tokens[rows]
        return Cells(cells.arm[rows], cells.rung[rows], cells.x[rows], cells.losses[rows], tokens)

    return choose


def _together(cells: Cells) -> Cells:
    return replace(_rows(0, 4, 8, 3, 7, 11)(cells), tokens=_rows(0, 4, 8, 3, 7, 11)(cells).x * 20)


REFUSED: dict[str, tuple[Law, Callable[[Cells], Cells], str]] = {
    "rungs": (POWER, _rows(0, 1, 2), "needs 4 rungs with a loss (got 3)"),
    "span": (POWER, lambda cells: replace(cells, x=cells.x ** (1 / 12)), "span a factor of 3 (got 2.2)"),
    "flat": (POWER, _flat, "do not fall"),
    "rising": (POWER, lambda cells: replace(cells, losses=10 - cells.losses), "do not fall"),
    "budgets": (CHINCHILLA, _rows(0, 1, 3, 4, 6, 7), "3 of parameters, 2 of tokens, 6 rungs"),
    "sizes": (CHINCHILLA, _rows(0, 1, 2, 3, 4, 5), "2 of parameters, 3 of tokens, 6 rungs"),
    "cells": (CHINCHILLA, _rows(0, 4, 8), "6 rungs with a loss (got 3 of parameters, 3 of tokens, 3 rungs)"),
    "together": (CHINCHILLA, _together, "change together"),
}


@pytest.mark.parametrize(("truth", "change", "reason"), REFUSED.values(), ids=REFUSED)
def test_data_that_support_no_fit_are_refused(truth: Law, change: Callable[[Cells], Cells], reason: str) -> None:
    """A curve through too few or too flat points would look like a result."""
    cells = build_cells(truth, 1e-3)
    assert refusal(cells, 0) == ""
    assert reason in refusal(change(cells), 0)


def test_offsets_are_determined_or_said_not_to_be() -> None:
    """Little noise over four decades determines E; much noise, or a decade, does not."""
    good = build_cells(POWER, 5e-4)
    assert offset_caveat(good, fit(good)) == ""
    noisy = build_cells(POWER, 5e-2)
    short = build_cells(POWER, 2e-3, compute=np.geomspace(1e19, 1e20, 5))
    for cells in (noisy, short):
        assert "not determined" in offset_caveat(cells, fit(cells))
    law = fit(good)
    assert offset_caveat(good, law, bootstrap(good, law, 100, np.random.default_rng(0))[0]) == ""
    reaching = replace(law, offset=np.linspace(0, 2, 100).clip(0.1)[:, None] - 0.1)
    assert "not determined" in offset_caveat(good, law, reaching)


@pytest.mark.filterwarnings("error")
def test_replicates_without_an_optimum_print_nothing() -> None:
    """A replicate may lack a term, or have exponents near 0: its numbers are infinite, and no line on the terminal."""
    law = Law(
        np.array([[0.0]] * 2), np.array([[400.0]] * 2), np.array([[1e-3]] * 2), np.array([[0.0, 1e-3], [1e9, 1e-3]])
    )
    parameters, tokens = optimum(law, 0, np.array([1e12, 1e15]))
    assert not np.isfinite(parameters[0]).any()
    assert law.losses([0, 0], parameters, tokens).shape == (2, 2)
    assert not np.isfinite(compute_gain(2.0, 2.0, 2.0, 1e-3))
