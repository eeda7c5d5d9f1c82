"""The comparison says of each variant what its seeds allow to be said, and no more."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from gatelab.results.analyses.comparison import DEFAULT_METRIC, Comparison, ComparisonRow, compare
from gatelab.results.statistics import blocks
from gatelab.results.statistics.paired import t_interval
from gatelab.results.store.runs import runs_schema
from gatelab.results.views import comparison as comparison_view
from gatelab.results.views.comparison import comparison_table

SPEED = "train/mean_tokens_per_second"


def build_frame(values: Mapping[str, Mapping[int, Any]], metric: str = DEFAULT_METRIC, **common: Any) -> pa.Table:
    """A `runs` frame: variant -> seed -> value, outcome or row; all are compared with the first variant."""
    rows = []
    for variant, trials in values.items():
        for seed, result in trials.items():
            row = {"study": "s", "study_hash": "h", "variant": variant, "baseline": next(iter(values)), "seed": seed}
            row |= {"axis": variant, "parameters": 1000, "added_parameters": 0, "outcome": "finished"}
            if isinstance(result, str):
                row |= {"outcome": result}
            elif isinstance(result, dict):
                row |= result
            else:
                row |= {metric: result}
            rows.append(row | common)
    return pa.Table.from_pylist(rows, runs_schema(["axis"], [metric]))


def by_variant(comparison: Comparison) -> dict[str, ComparisonRow]:
    """Its rows by variant."""
    return {row.variant: row for row in comparison.rows}


NUMBERS = st.integers(-1000, 1000).map(lambda number: number / 16)


@settings(deadline=None, max_examples=100)
@given(st.lists(NUMBERS, min_size=2, max_size=12, unique=True))
def test_the_interval_is_students(values: list[float]) -> None:
    """A 95 % interval must be one: SciPy's, for any sample."""
    interval = t_interval(values)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.mean, interval.n) == (pytest.approx(np.mean(values), rel=1e-12, abs=1e-12), len(values))
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("values", [[], [1.5]], ids=["none", "one"])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    """One seed shows a value but no spread: bounds that look like numbers would be taken for an interval."""
    interval = t_interval(values)
    assert interval.n == len(values)
    assert repr(interval.mean) == ("1.5" if values else "nan")
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=8, unique_by=lambda pair: pair[0] - pair[1]), st.data()
)
def test_differences_are_paired_by_seed(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    """Seeds that only one of two variants has finished take part in its mean, but not in the difference."""
    drop = st.sets(st.integers(0, len(pairs) - 1), max_size=1)
    without_own, without_other = data.draw(drop), data.draw(drop)
    own = {seed: value for seed, (value, _) in enumerate(pairs) if seed not in without_own}
    other = {seed: value for seed, (_, value) in enumerate(pairs) if seed not in without_other}
    shuffled = dict(data.draw(st.permutations(sorted(own.items()))))
    row = by_variant(compare(build_frame({"base": other, "gate": shuffled})))["gate"]
    common = sorted(own.keys() & other.keys())
    assert row.value.mean == pytest.approx(np.mean(list(own.values())))
    assert row.delta is not None
    assert row.delta.n == len(common)
    if len(common) == 1:
        assert (row.verdict, row.why) == ("not evaluable", "single seed")
        return
    test = scipy.stats.ttest_rel([own[seed] for seed in common], [other[seed] for seed in common])
    expected = test.confidence_interval(0.95)
    assert [row.delta.low, row.delta.high] == pytest.approx([expected.low, expected.high], rel=1e-9, abs=1e-9)
    if test.pvalue < 0.049:
        assert row.verdict == ("better" if test.statistic < 0 else "worse")
    elif test.pvalue > 0.051:
        assert row.verdict == "undecided"


def test_verdicts_follow_the_tests() -> None:
    """A reader may rely on the word: decided where zero is outside the interval, and a reason where nothing can be."""
    values: dict[str, dict[int, Any]] = {
        "base": {0: 2.0, 1: 2.5, 2: 3.0},
        "good": {0: 1.9, 1: 2.41, 2: 2.89},  # always about 0.1 less, although the seeds differ by more
        "bad": {0: 2.1, 1: 2.59, 2: 3.11},
        "same": {0: 2.001, 1: 2.499, 2: 3.0},
        "near": {0: 2.02, 1: 2.49, 2: 3.01},
        "once": {1: 2.4},
        "elsewhere": {7: 2.0, 8: 2.1},
        "lost": {0: "failed"},
        "partly": {0: 1.0, 1: 1.5, 2: "diverged"},
    }
    rows = by_variant(compare(build_frame(values), margin=0.01))
    assert {name: (row.verdict, row.why) for name, row in rows.items()} == {
        "base": ("baseline", ""),
        "good": ("better", ""),
        "bad": ("worse", ""),
        "same": ("equivalent", ""),
        "near": ("undecided", ""),
        "once": ("not evaluable", "single seed"),
        "elsewhere": ("not evaluable", "no pairs"),
        "lost": ("not evaluable", "no pairs"),
        "partly": ("not evaluable", "1 of 3 seeds diverged"),
    }
    gone = by_variant(compare(build_frame({**values, "base": {0: 2.0, 1: 2.5, 2: "diverged"}})))
    assert (gone["good"].verdict, gone["good"].why) == ("not evaluable", "its baseline diverged at seed 2")
    shares = "attention/first_token_share"
    undirected = by_variant(compare(build_frame(values, shares), shares))
    assert (undirected["good"].verdict, undirected["bad"].verdict) == ("lower", "higher")
    assert rows["base"].delta is None
    assert rows["base"].is_baseline
    assert rows["good"].delta is not None
    assert rows["good"].delta.mean == pytest.approx(-0.1)


def test_what_did_not_finish_is_counted_and_never_averaged() -> None:
    """A diverged trial's last loss in a mean, or a trial missing from the count, would turn a failure into a result."""
    values: dict[int, Any] = {0: 1.0, 1: 2.0}
    values |= {
        seed: {"outcome": outcome, DEFAULT_METRIC: 1e6, "reason": f"why {outcome}"}
        for seed, outcome in enumerate(("diverged", "failed", "running", "interrupted", "waiting"), 2)
    }
    comparison = compare(build_frame({"base": {seed: 0.5 for seed in range(7)}, "gate": values}))
    row = by_variant(comparison)["gate"]
    assert (row.value.mean, row.value.n) == (1.5, 2)
    assert row.delta is not None
    assert (row.delta.mean, row.delta.n) == (1.0, 2)
    once = {"diverged": 1, "failed": 1, "running": 1, "interrupted": 1, "waiting": 1}
    assert row.outcomes == {"finished": 2, **once}
    assert "seed 2: why diverged" in row.reasons
    assert any("gate, seed 3: why failed" in note for note in comparison.notes)
    assert any(note.startswith("3 trials have not finished") for note in comparison.notes)


def test_variants_without_a_value_stay_in_the_table() -> None:
    """That a variant always diverges is a finding: it stands at the bottom, not nowhere."""
    gone = {seed: "diverged" for seed in range(3)}
    comparison = compare(build_frame({"broken": gone, "worse": {0: 3.0}, "better": {0: 2.0}, "lost": {0: "waiting"}}))
    assert [row.variant for row in comparison.rows] == ["better", "worse", "broken", "lost"]
    assert [row.best for row in comparison.rows] == [True, False, False, False]
    broken = by_variant(comparison)["broken"]
    assert (math.isnan(broken.value.mean), broken.value.n, broken.outcomes) == (True, 0, {"diverged": 3})
    assert by_variant(comparison)["better"].why == "its baseline diverged at seed 0, 1, 2"  # its baseline has no value
    nothing = compare(build_frame({"broken": gone}))
    assert not nothing.rows[0].best


def test_the_best_is_first_whichever_way_is_better() -> None:
    """Losses are better low, speeds are better high."""
    values = {"base": {0: 2.0, 1: 4.0}, "low": {0: 1.0, 1: 2.0}, "high": {0: 5.0, 1: 6.0}}
    losses, speeds = compare(build_frame(values)), compare(build_frame(values, SPEED), SPEED)
    assert [row.variant for row in losses.rows] == ["low", "base", "high"]
    assert [row.variant for row in speeds.rows] == ["high", "base", "low"]
    assert losses.rows[0].best
    assert speeds.rows[0].best
    assert sum(row.best for row in (*losses.rows, *speeds.rows)) == 2


@pytest.mark.parametrize("name", ["code", "data", "device", "precision", "threads", "torch", "python"])
def test_a_mixed_environment_is_said(name: str) -> None:
    """Numbers from two machines or two versions of the code may differ for that reason alone."""
    values = {"base": {0: {DEFAULT_METRIC: 1.0, name: "this"}, 1: {DEFAULT_METRIC: 1.0, name: "that"}}}
    [note] = compare(build_frame(values)).notes
    assert note == f"trials differ in {name}: that, this"
    assert compare(build_frame({"base": {0: 1.0, 1: "finished"}}, **{name: "this"})).notes == ()


def test_speed_is_the_median_over_trials() -> None:
    """One trial that shared its machine must not make a variant look slow."""
    speeds = {seed: {DEFAULT_METRIC: 1.0, SPEED: speed} for seed, speed in enumerate((100.0, 110.0, 5.0))}
    rows = by_variant(compare(build_frame({"base": speeds, "gate": {0: 1.0}})))
    assert rows["base"].tokens_per_second == 100.0
    assert math.isnan(rows["gate"].tokens_per_second)


def test_an_unknown_metric_is_answered_with_the_known() -> None:
    """A typing mistake is answered with the nearest metric, anything else with all that there are."""
    frame = build_frame({"base": {0: 1.0}})
    with pytest.raises(ValueError, match=r"'validation/los', but for example validation/loss"):
        compare(frame, "validation/los")
    with pytest.raises(ValueError, match=r"'accuracy', but for example validation/loss, .*memory/peak_bytes$"):
        compare(frame, "accuracy")


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_difference_that_is_no_number_decides_nothing(odd: float) -> None:
    """Infinite perplexities have no difference: no verdict may come of it."""
    frame = build_frame({"base": {0: odd, 1: 1.0}, "other": {0: odd, 1: 2.0}})
    with np.errstate(invalid="ignore"):
        assert by_variant(compare(frame))["other"].verdict == "not evaluable"


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("spread", ["none", "rounding"])
def test_the_same_difference_at_every_seed_is_no_sample(offset: float, spread: str) -> None:
    """Memory that never varies, and losses that are equal but for their last digit, have no p-value: not even of 0."""
    base = {seed: 2.0 + 0.25 * seed for seed in range(6)}
    gate = {seed: value + offset for seed, value in base.items()}
    if spread == "rounding":
        gate = {seed: float(np.nextafter(value, 9) if seed % 3 else value) for seed, value in gate.items()}
    row = by_variant(compare(build_frame({"base": base, "gate": gate}), margin=1.0))["gate"]
    assert row.verdict == "not evaluable"
    assert row.why == "the same difference at every seed: there is no scatter to test it against"
    assert row.evidence is not None
    assert np.isnan([row.evidence.p, row.evidence.dunnett, row.evidence.q, row.evidence.equivalence]).all()


def test_a_mean_over_the_seeds_that_did_not_diverge_is_not_the_best() -> None:
    """What diverges at its hardest seeds has a lower mean for that: the best has as many seeds as any."""
    values: dict[str, dict[int, Any]] = {
        "base": {0: 2.0, 1: 2.5, 2: 3.0},
        "wild": {0: 1.0, 1: "diverged", 2: "diverged"},
        "sound": {0: 1.9, 1: 2.4, 2: 2.8},
    }
    rows = compare(build_frame(values)).rows
    assert [(row.variant, row.best) for row in rows] == [("wild", False), ("sound", True), ("base", False)]
    lost = {**values, "sound": {**values["sound"], 2: math.inf}}
    with np.errstate(invalid="ignore"):
        rows = compare(build_frame(lost)).rows
    assert {row.variant: row.best for row in rows} == {"wild": False, "base": True, "sound": False}


# --- Tests of the differences ---


def study_of(spreads: Mapping[str, float], seeds: int = 6, base_seeds: int = 0, shift: float = 0.0) -> dict[str, Any]:
    """Values of variants that scatter around a baseline, which has more seeds if told."""
    generator = np.random.default_rng(5)
    base = generator.normal(2, 0.5, max(seeds, base_seeds))
    values = {"base": dict(enumerate(base.tolist()))}
    for number, (name, spread) in enumerate(spreads.items()):
        own = base[:seeds] + shift * number + generator.normal(0, spread, seeds)
        values[name] = dict(enumerate(own.tolist()))
    return values


def differences_of(values: Mapping[str, Mapping[int, float]], name: str) -> np.ndarray:
    return np.array([value - values["base"][seed] for seed, value in values[name].items()])


def test_each_test_is_that_of_an_independent_library() -> None:
    """What a table says of a difference, number by number: SciPy's and statsmodels'."""
    values = study_of({"a": 0.1, "b": 0.1, "c": 0.1}, shift=-0.06)
    comparison = compare(build_frame(values), margin=0.1)
    rows = by_variant(comparison)
    frame = pd.DataFrame([{"v": name, "s": seed, "y": y} for name, of in values.items() for seed, y in of.items()])
    anova = anova_lm(ols("y ~ C(v) + C(s)", frame).fit())
    error, between = anova.loc["Residual", "mean_sq"], anova.loc["C(s)", "mean_sq"]
    assert anova.loc["Residual", "df"] == 15
    whole = scipy.stats.multivariate_t(shape=np.full((3, 3), 0.5) + 0.5 * np.eye(3), df=15, seed=2)
    for name in "abc":
        evidence, differences = rows[name].evidence, differences_of(values, name)
        assert evidence is not None
        assert evidence.p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)
        assert evidence.sd == pytest.approx(differences.std(ddof=1))
        flips = scipy.stats.permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        assert (evidence.sign_flip, evidence.sign_flip_smallest) == (pytest.approx(flips.pvalue), 1 / 32)
        edge = np.full(3, abs(differences.mean()) / math.sqrt(2 * error / 6))
        assert evidence.dunnett == pytest.approx(1 - whole.cdf(edge, lower_limit=-edge, maxpts=50_000), abs=5e-5)
        assert evidence.family == 3
        assert evidence.equivalence == pytest.approx(DescrStatsW(differences).ttost_mean(-0.1, 0.1)[0])
        assert evidence.correlation == pytest.approx((between - error) / (between + 3 * error))
        detectable = TTestPower().solve_power(nobs=6, alpha=0.05, power=0.8) * math.sqrt(2 * error)
        assert evidence.detectable == pytest.approx(detectable, rel=1e-4)
    p_values = [rows[name].evidence.p for name in "abc"]
    q_values = [rows[name].evidence.q for name in "abc"]
    assert q_values == pytest.approx(multipletests(p_values, method="fdr_bh")[1].tolist())
    assert rows["base"].evidence is None


def test_many_variants_need_more_than_one_does() -> None:
    """Of twenty variants one is below 5 % by chance: it is undecided among twenty, and better by itself."""
    base = {seed: 2.0 + 0.1 * seed for seed in range(6)}
    noise = (0.6, -1.0, 0.2, -0.4, 1.0, -0.4)
    values: dict[str, Any] = {"base": base, "lucky": {seed: base[seed] - 0.07 + 0.07 * noise[seed] for seed in base}}
    alone = by_variant(compare(build_frame(values)))["lucky"]
    for number in range(19):
        turned = noise[number % 6 :] + noise[: number % 6]
        values[f"v{number}"] = {seed: base[seed] + 0.07 * turned[seed] for seed in base}
    among = by_variant(compare(build_frame(values)))["lucky"]
    assert alone.evidence is not None
    assert among.evidence is not None
    assert alone.evidence.p == among.evidence.p < 0.05
    assert (alone.verdict, among.verdict) == ("better", "undecided")
    assert among.evidence.dunnett > 0.05 >= alone.evidence.dunnett


def test_a_noisy_variant_is_not_carried_by_quiet_ones() -> None:
    """The pooled variance of Dunnett's test is too small for it: its own interval must leave out 0, too."""
    quiet = {f"quiet {number}": 0.001 for number in range(8)}
    values = study_of(quiet)
    base = values["base"]
    values["noisy"] = {seed: base[seed] + offset for seed, offset in enumerate((1.05, -0.35, 0.95, -0.25, 0.85, 0.45))}
    comparison = compare(build_frame(values))
    row = by_variant(comparison)["noisy"]
    assert row.evidence is not None
    assert row.evidence.dunnett < 0.05 < row.evidence.p
    assert row.verdict == "undecided"
    assert "variants scatter differently over seeds, which Dunnett's test takes to be alike" in comparison.notes
    alike = compare(build_frame(study_of({"a": 0.1, "b": 0.1, "c": 0.1})))
    assert not alike.notes


def test_further_seeds_of_a_baseline_sharpen_each_difference() -> None:
    """A baseline of twelve seeds and four variants of six: the differences weigh the unpaired seeds by correlation."""
    values = study_of(dict.fromkeys("abcd", 0.4), base_seeds=12)
    rows = by_variant(compare(build_frame(values)))
    noise = blocks.noise_of(values, "base")
    assert noise is not None
    assert 0.1 < noise.correlation < 0.95
    r, base = noise.correlation, np.array(list(values["base"].values()))
    assert rows["base"].value.n == 12
    for name in "abcd":
        own = np.array(list(values[name].values()))
        part, rest = own - r * base[:6], (1 - r) * base
        welch = scipy.stats.ttest_ind(part, rest, equal_var=False)
        interval = welch.confidence_interval(0.95)
        row = rows[name]
        assert row.delta is not None
        assert row.evidence is not None
        assert (row.delta.mean, row.delta.n) == (pytest.approx(part.mean() - rest.mean()), 6)
        assert [row.delta.low, row.delta.high] == pytest.approx([interval.low, interval.high])
        assert row.evidence.p == pytest.approx(welch.pvalue)
        assert row.evidence.dunnett == pytest.approx(noise.dunnett_p(row.delta.mean, 12))
        assert row.evidence.sd == pytest.approx((own - base[:6]).std(ddof=1))  # of the pairs


@pytest.mark.parametrize("case", ["too few to tell", "lost, not left out"])
def test_pairs_alone_count_where_that_is_all_that_is_known(case: str) -> None:
    """With few degrees of freedom the correlation is a guess; seeds that a variant lost are no seeds it never had."""
    values: dict[str, Any] = study_of(dict.fromkeys("abcd", 0.4), base_seeds=12)
    if case == "too few to tell":
        values = {"base": values["base"], "a": {seed: values["a"][seed] for seed in range(5)}}
    else:
        for name in "abcd":
            values[name] |= dict.fromkeys(range(6, 12), "failed")
    row = by_variant(compare(build_frame(values)))["a"]
    pairs = [seed for seed, value in values["a"].items() if not isinstance(value, str)]
    differences = [values["a"][seed] - values["base"][seed] for seed in pairs]
    expected = scipy.stats.ttest_1samp(differences, 0)
    assert row.delta is not None
    assert row.evidence is not None
    assert (row.delta.mean, row.delta.n) == (pytest.approx(np.mean(differences)), len(pairs))
    assert row.evidence.p == pytest.approx(expected.pvalue)


def test_what_diverged_takes_no_part_in_the_tests_of_others() -> None:
    """Its missing seeds would be missing for all, and it has no difference to allow for."""
    values: dict[str, Any] = study_of({"a": 0.1, "b": 0.1})
    before = by_variant(compare(build_frame(values)))
    values["gone"] = {**values["a"], 0: "diverged"}
    after = by_variant(compare(build_frame(values)))
    for name in "ab":
        assert before[name].evidence is not None
        assert after[name].evidence is not None
        assert before[name].evidence.dunnett == after[name].evidence.dunnett
        assert after[name].evidence.family == 2
    assert after["gone"].evidence is not None
    assert (after["gone"].evidence.family, repr(after["gone"].evidence.dunnett)) == (0, "nan")


def test_seeds_that_only_some_have_are_left_out_of_dunnetts_test_and_named() -> None:
    """The t-test of a variant uses all of its pairs; the test for all uses the seeds that all have, and says so."""
    values: dict[str, Any] = study_of({"a": 0.1, "b": 0.1})
    values["b"][4] = "failed"
    comparison = compare(build_frame(values))
    rows = by_variant(comparison)
    assert "Dunnett's test leaves out seed 4, which not all variants finished" in comparison.notes
    kept = {name: {seed: of[seed] for seed in (0, 1, 2, 3, 5)} for name, of in values.items()}
    fewer = by_variant(compare(build_frame(kept)))
    assert rows["a"].evidence is not None
    assert fewer["a"].evidence is not None
    assert rows["a"].evidence.dunnett == pytest.approx(fewer["a"].evidence.dunnett)
    assert rows["a"].delta is not None
    assert rows["a"].delta.n == 6


def test_baselines_have_families_of_their_own() -> None:
    """A study that compares size by size allows for the variants of each size, and q for all of them."""
    values: dict[str, Any] = study_of({"a": 0.1, "b": 0.1, "c": 0.1})
    for name, of in study_of({"d": 0.2}, seeds=5).items():
        label = "big base" if name == "base" else name
        values[label] = {seed: {DEFAULT_METRIC: value - 1, "baseline": "big base"} for seed, value in of.items()}
    values["d"][3] = {"outcome": "failed", "baseline": "big base"}
    values["b"][5] = "failed"
    comparison = compare(build_frame(values))
    rows = by_variant(comparison)
    families = {name: row.evidence.family for name, row in rows.items() if row.evidence}
    assert families == {"a": 3, "b": 3, "c": 3, "d": 1}
    assert rows["d"].evidence is not None
    assert rows["d"].evidence.dunnett == pytest.approx(rows["d"].evidence.p, abs=1e-6)
    assert (
        "Dunnett's test leaves out seed 5, which not all variants finished (baseline base)" in comparison.notes
        and not any("big base" in note for note in comparison.notes)
    )
    p_values = {name: row.evidence.p for name, row in rows.items() if row.evidence}
    q_values = [rows[name].evidence.q for name in p_values]
    assert q_values == pytest.approx(multipletests(list(p_values.values()), method="fdr_bh")[1].tolist())


def test_without_common_seeds_q_takes_dunnetts_place() -> None:
    """Variants at other seeds each cannot be tested together, but many tests are still many tests."""
    base = {seed: 2.0 + 0.1 * seed for seed in range(8)}
    values: dict[str, Any] = {"base": base}
    values |= {f"v{at}": {at: base[at] - 0.1, at + 1: base[at + 1] - 0.104} for at in (0, 2, 4, 6)}
    rows = by_variant(compare(build_frame(values)))
    found = rows["v0"].evidence
    assert found is not None
    assert (found.family, found.dunnett) == (1, pytest.approx(found.p))  # with the one that is left alone
    assert found.q <= 0.05
    assert rows["v0"].verdict == "better"
    last = rows["v6"].evidence
    assert last is not None
    assert (last.family, repr(last.dunnett)) == (0, "nan")
    assert (rows["v6"].verdict, last.q <= 0.05) == ("better", True)
    grid = comparison_table(compare(build_frame(values)))
    at = [column.heading for column in grid.columns].index("p")
    cells = {cells[0]: cells[at] for cells in grid.rows}
    assert cells == {
        "base": "–",
        "v0": f"{found.dunnett:.3f}",
        **dict.fromkeys(("v2", "v4", "v6"), f"{last.q:.3f} (q)"),
    }
    assert any("q ≤ 0.05 over all 4 comparisons of the table" in note for note in grid.notes)
    values["v0"] = {0: base[0] - 0.1, 1: base[1] - 0.112}  # 3.6 % by itself
    values |= {f"v{at}": {at: base[at] - 0.1, at + 1: base[at + 1] + 0.1} for at in (2, 4, 6)}
    rows = by_variant(compare(build_frame(values)))
    assert rows["v0"].evidence is not None
    assert max(rows["v0"].evidence.p, rows["v0"].evidence.dunnett) < 0.05 < rows["v0"].evidence.q
    assert rows["v0"].verdict == "undecided"


@pytest.mark.parametrize("baselines", [1, 12])
def test_families_of_one_are_many_tests_all_the_same(baselines: int) -> None:
    """Twelve sizes with a baseline each: Dunnett's test allows for nothing there, so that q must agree."""
    values: dict[str, Any] = {}
    for number in range(baselines):
        base = {seed: 2.0 + 0.1 * seed for seed in range(6)}
        mean = -0.06 if number == 0 else 0.0
        noise = (0.6, -1.0, 0.2, -0.4, 1.0, -0.4)
        own = {seed: base[seed] + mean + 0.06 * noise[(seed + number) % 6] for seed in base}
        for label, of in ((f"base {number}", base), (f"gate {number}", own)):
            rows = {seed: {DEFAULT_METRIC: value, "baseline": f"base {number}"} for seed, value in of.items()}
            values[label] = rows
    comparison = compare(build_frame(values))
    row = by_variant(comparison)["gate 0"]
    assert row.evidence is not None
    assert row.evidence.dunnett == pytest.approx(row.evidence.p) and row.evidence.p < 0.05
    assert (row.evidence.q <= 0.05) == (baselines == 1)
    assert row.verdict == ("better" if baselines == 1 else "undecided")
    said = [note for note in comparison_table(comparison).notes if "q ≤ 0.05 over all 12 comparisons" in note]
    assert len(said) == (baselines > 1)


def test_what_is_not_evaluable_is_no_test_among_others() -> None:
    """It has no p in the table, makes no other q larger, and the legend's numbers are not its."""
    values: dict[str, Any] = study_of({"a": 0.1, "b": 0.1}, shift=0.2)
    before = compare(build_frame(values))
    values["gone"] = {**{seed: value + 1 for seed, value in values["a"].items()}, 5: "diverged"}
    values["few"] = {0: 1.0, 1: 1.0, 2: 1.3, 3: "diverged"}
    after = compare(build_frame(values))
    known, rows = by_variant(before), by_variant(after)
    for name in "ab":
        assert known[name].evidence == rows[name].evidence
    for name in ("gone", "few"):
        assert rows[name].evidence is not None
        assert rows[name].evidence.p > 0  # it could be computed, of the seeds that are left
        assert math.isnan(rows[name].evidence.q)
    grid = comparison_table(after)
    at = [column.heading for column in grid.columns].index("p")
    cells = {cells[0]: cells[at] for cells in grid.rows}
    assert cells["gone"] == cells["few"] == "–"
    legend = [note for note in grid.notes if not note.startswith("†")]
    assert legend == [*comparison_table(before).notes]


@pytest.mark.parametrize(("margin", "verdict"), [(None, "better"), (0.05, "better"), (0.15, "equivalent")])
def test_a_difference_within_the_margin_counts_as_none(margin: float | None, verdict: str) -> None:
    """Significant and too small to matter: with a margin it is equivalent, whatever the p-value of a difference."""
    values = study_of({"a": 0.005})
    values["a"] = {seed: value - 0.1 for seed, value in values["a"].items()}
    comparison = compare(build_frame(values), margin=margin)
    row = by_variant(comparison)["a"]
    assert (row.verdict, comparison.margin) == (verdict, margin)


def test_the_legend_says_what_the_numbers_can_show() -> None:
    """How many variants are allowed for, which p a few pairs cannot reach, what would have been detected."""
    values = study_of({"a": 0.1, "b": 0.1}, seeds=4)
    comparison = compare(build_frame(values), margin=0.01)
    notes = comparison_table(comparison).notes
    [tests] = [note for note in notes if note.startswith("p: two-sided")]
    assert "Dunnett test, adjusted for 2 comparisons" in tests
    assert "within ±0.01" in tests
    assert any(note.startswith("With 4 pairs the exact sign-flip test cannot give a p below 0.125") for note in notes)
    evidence = by_variant(comparison)["a"].evidence
    assert evidence is not None
    assert any(f"a difference of {evidence.detectable:.2g} " in note for note in notes)
    enough = comparison_table(compare(build_frame(study_of({"a": 0.1, "b": 0.1})))).notes
    assert not any("sign-flip" in note for note in enough)
    lost = comparison_table(compare(build_frame({**values, "lost": {0: "failed"}}))).notes
    assert "† not evaluable: lost: no pairs." in lost


def test_the_table_of_tests_and_records_have_every_number() -> None:
    """`--tests` for people, CSV and Parquet for programs: the evidence of each row, digit for digit."""
    values: dict[str, Any] = study_of({"a": 0.1, "b": 0.1}) | {"lost": {0: "failed"}, "once": {2: 1.0}}
    for margin in (None, 0.05):
        comparison = compare(build_frame(values), margin=margin)
        grid = comparison_view.tests_table(comparison)
        headings = [column.heading for column in grid.columns]
        assert (f"p (within ±{margin})" in headings) == (margin is not None)
        shown = {row[0]: dict(zip(headings, row, strict=True)) for row in grid.rows}
        assert set(shown) == {"a", "b", "lost", "once"}
        records = {record["variant"]: record for record in comparison.frame().to_pylist()}
        assert set(records) == {"base", *shown}
        for name, row in by_variant(comparison).items():
            record = records[name]
            assert (record["verdict"], record["why"], record["baseline"]) == (row.verdict, row.why, "base")
            assert repr(record["margin"]) == str(margin)  # null: no such number
            if row.evidence is None:
                assert record["p_dunnett"] is None
                continue
            evidence = row.evidence
            numbers = {
                "delta_sd": evidence.sd,
                "p_t": evidence.p,
                "p_sign_flip": evidence.sign_flip,
                "p_sign_flip_smallest": evidence.sign_flip_smallest,
                "p_dunnett": evidence.dunnett,
                "dunnett_variants": evidence.family,
                "q_benjamini_hochberg": evidence.q,
                "p_equivalence": evidence.equivalence,
                "detectable": evidence.detectable,
                "correlation": evidence.correlation,
            }
            assert {key: repr(record[key]) for key in numbers} == {
                key: repr(None if math.isnan(value) else value) for key, value in numbers.items()
            }
            cell = shown[name]["p (Dunnett)"]
            assert cell == ("–" if math.isnan(evidence.dunnett) else f"{evidence.dunnett:.3f}")
        assert shown["a"]["pairs"] == "6"
        evidence = by_variant(comparison)["a"].evidence
        assert evidence is not None
        assert shown["a"]["seed savings"] == f"{1 / (1 - evidence.correlation):.2g}"
        assert {shown["lost"][name] for name in ("p (t)", "Δ", "seed savings", "comparisons", "detectable")} == {"–"}


def lossy_runs(shares: Mapping[str, float | None], data: Mapping[str, str], metric: str) -> pa.Table:
    """A `runs` frame of variants whose tokenizers lose some text, the better the more they lose."""
    lost = metric.replace("bits_per_byte", "lost_bytes")
    values = {
        variant: {seed: 2.0 - (share or 0.0) + seed / 100 + index * (seed % 2) / 1000 for seed in range(4)}
        for index, (variant, share) in enumerate(shares.items())
    }
    rows = build_frame(values, metric).to_pylist()
    rows = [row | {"data": data[row["variant"]], lost: shares[row["variant"]]} for row in rows]
    return pa.Table.from_pylist(rows, runs_schema(["axis"], [metric, lost]))


@pytest.mark.parametrize("metric", ["validation/bits_per_byte", "validation/bits_per_byte/code"])
def test_bits_per_byte_of_a_tokenizer_that_loses_text_are_not_evaluable(metric: str) -> None:
    """What is thrown away costs no bits: such a variant must neither win nor be the best; a trifle is only noted."""
    shares = {"bytes": None, "narrow": 0.4, "trifle": 1e-5}
    data = {"bytes": "d1", "narrow": "d2", "trifle": "d3"}
    comparison = compare(lossy_runs(shares, data, metric), metric)
    rows = by_variant(comparison)
    assert (rows["narrow"].verdict, rows["narrow"].why) == ("not evaluable", "its tokenizer loses 40 % of the text")
    assert not rows["narrow"].best
    assert rows["trifle"].verdict != "not evaluable"
    assert [note for note in comparison.notes if "loses" in note] == [
        "trifle: its tokenizer loses 0.001 % of the text, which bits per byte leave out"
    ]


def test_a_baseline_that_loses_text_is_no_baseline_for_others() -> None:
    """A difference to what left out text is as wrong as one of it."""
    metric = "validation/bits_per_byte"
    runs = lossy_runs({"narrow": 0.4, "bytes": None}, {"narrow": "d2", "bytes": "d1"}, metric)
    rows = by_variant(compare(runs, metric))
    assert (rows["bytes"].verdict, rows["bytes"].why) == (
        "not evaluable",
        "of its baseline: its tokenizer loses 40 % of the text",
    )


def test_variants_on_the_same_data_lose_the_same_and_compare() -> None:
    """Within one tokenizer bits per byte are as fair as the loss; and the loss itself is never across tokenizers."""
    metric = "validation/bits_per_byte"
    same = lossy_runs({"base": 0.4, "gate": 0.4}, {"base": "d", "gate": "d"}, metric)
    assert by_variant(compare(same, metric))["gate"].verdict != "not evaluable"
    assert compare(same, metric).rows[0].best
    other = lossy_runs({"base": None, "gate": 0.4}, {"base": "d", "gate": "e"}, metric)
    assert not any("loses" in note for note in compare(other, "train/final_loss").notes)
