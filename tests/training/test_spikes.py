"""Spikes are counted robustly: where a mean and a standard deviation would be blind, too."""

import json
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.thresholds import MIN_VALUES
from gatelab.training.spikes import THRESHOLD, WINDOW, SpikeCounter


def calm(count: int, seed: int = 0) -> np.ndarray:
    """Normal noise of deviation 0.1 around 3."""
    return 3 + 0.1 * np.random.default_rng(seed).standard_normal(count)


def counted(values: list[float] | np.ndarray) -> tuple[int, int, int]:
    counter = SpikeCounter()
    counter.count(float(value) for value in values)
    return counter.spikes, counter.spike_steps, counter.nonfinite_steps


def test_planted_spikes_are_counted_once_each() -> None:
    """Three runs above the bound are three spikes of six steps, however many steps each lasts."""
    values = calm(2000)
    values[500], values[900:903], values[1500:1502] = 5.0, 4.5, 9.0
    assert counted(values) == (3, 6, 0)


def test_calm_noise_has_no_spikes() -> None:
    """Ten thousand steps of noise, a slow fall and a sudden drop are no spikes."""
    assert counted(calm(10_000)) == (0, 0, 0)
    assert counted(calm(4000) + np.linspace(5, 0, 4000)) == (0, 0, 0)
    assert counted(np.concatenate([calm(500), calm(500, 1) - 1])) == (0, 0, 0)


def test_non_finite_values_hide_nothing() -> None:
    """A NaN at step 200 does not hide the spike at step 250, as it does where the window's mean becomes NaN."""
    values = calm(400)
    values[200], values[201], values[250] = math.nan, math.inf, 6.0
    assert counted(values) == (1, 1, 2)


def test_a_spike_does_not_widen_the_bound_for_the_next() -> None:
    """Many spikes in a row of windows are all seen: they do not enter what they are judged by."""
    values = calm(3000)
    values[200::20] = 6.0
    assert counted(values) == (140, 140, 0)


def test_a_new_level_is_one_spike_and_then_the_level() -> None:
    """A loss that jumps and stays is counted once, not at every step for ever."""
    spikes, steps, _ = counted(np.concatenate([calm(500), calm(1500, 1) + 5]))
    assert (spikes, steps) == (1, WINDOW)


def test_nothing_is_judged_before_there_is_something_to_judge_by() -> None:
    """The first steps fall from the loss of guessing; a flat series has some tolerance all the same."""
    assert counted([9.0, *[3.0] * (MIN_VALUES - 1)]) == (0, 0, 0)
    assert counted([3.0] * MIN_VALUES + [3.0 * (1 + 0.9e-3 * THRESHOLD)]) == (0, 0, 0)
    assert counted([3.0] * MIN_VALUES + [3.0 * (1 + 1.1e-3 * THRESHOLD)]) == (1, 1, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 600), st.integers(0, 99))
def test_a_counter_that_is_kept_goes_on_as_if_nothing_had_happened(cut: int, seed: int) -> None:
    """A resumed trial counts what an undisturbed one counts; the state survives JSON."""
    values = calm(600, seed)
    values[[100, 300, 301, 450]] = 8.0, 8.0, 8.0, math.nan
    whole = counted(values)
    counter = SpikeCounter()
    counter.count(values[:cut].tolist())
    counter = SpikeCounter(json.loads(json.dumps(counter.state())))
    counter.count(values[cut:].tolist())
    assert (counter.spikes, counter.spike_steps, counter.nonfinite_steps) == whole
    assert whole == (2, 3, 1)
