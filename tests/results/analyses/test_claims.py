"""What a study claimed beforehand is judged by the test that it named, and nobody can change later what it was."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from gatelab.ablations.claims import Claim
from gatelab.ablations.loading import make_study
from gatelab.ablations.pipeline import build_matrix
from gatelab.orchestrator.preregistration import claim_changes, register_claims
from gatelab.results.analyses.claims import ClaimResult, claims
from gatelab.results.store.preregistration import RegisterChanged, read_entries, read_register
from gatelab.results.store.records import ClaimRecord, write_json
from gatelab.results.views.claims import claims_table
from gatelab.results.views.table import to_csv
from tests.results.analyses.test_comparison import build_frame

BASE = {seed: 2.0 + 0.3 * seed for seed in range(6)}
NOISE = (0.6, -1.0, 0.2, -0.4, 1.0, -0.4)  # sums up to 0


def recorded(entries: list[dict[str, Any]]) -> list[ClaimRecord]:
    """Claims as a study's record holds them."""
    return [ClaimRecord.from_json(entry, "study.json") for entry in entries]


def beside(offset: float, spread: float = 0.01, seeds: int = 6) -> dict[int, float]:
    """A variant whose differences to the baseline have a mean near an offset and a spread."""
    return {seed: BASE[seed] + offset + spread * NOISE[seed] for seed in range(seeds)}


def claimed(runs: pa.Table, *variants: str, **claim: Any) -> ClaimResult:
    """What becomes of a claim about some variants of a frame."""
    entry = {"name": "it helps", **Claim(**claim).model_dump(mode="json"), "variants": variants}
    [result] = claims(runs, recorded([entry]), ()).results
    return result


def judged(values: Mapping[int, Any], **claim: Any) -> ClaimResult:
    """What becomes of a claim about a variant; another is compared with the same baseline."""
    return claimed(build_frame({"base": BASE, "gate": values, "other": beside(0.05)}), "gate", **claim)


WIDE = 0.08
CASES = [
    # direction, margin, offset, spread -> verdict
    ("lower", 0.0, -0.1, 0.01, "supported"),
    ("lower", 0.0, 0.1, 0.01, "refuted"),
    ("lower", 0.0, -0.01, WIDE, "undecided"),
    ("lower", 0.02, -0.1, 0.01, "supported"),
    ("lower", 0.02, 0.0, 0.005, "equivalent"),
    ("lower", 0.05, -0.03, 0.005, "equivalent"),  # lower, but not by so much
    ("lower", 0.02, 0.1, 0.01, "refuted"),
    ("lower", 0.02, -0.03, WIDE, "undecided"),
    ("higher", 0.0, 0.1, 0.01, "supported"),
    ("higher", 0.0, -0.1, 0.01, "refuted"),
    ("higher", 0.02, 0.0, 0.005, "equivalent"),
    ("higher", 0.02, -0.1, 0.01, "refuted"),
    ("higher", 0.02, 0.03, WIDE, "undecided"),
    ("equivalent", 0.02, 0.0, 0.005, "supported"),
    ("equivalent", 0.02, 0.1, 0.01, "refuted"),
    ("equivalent", 0.02, -0.1, 0.01, "refuted"),
    ("equivalent", 0.02, 0.02, WIDE, "undecided"),
]


@pytest.mark.parametrize("test", ["t", "sign-flip", "dunnett"])
@pytest.mark.parametrize(("direction", "margin", "offset", "spread", "verdict"), CASES)
def test_verdicts(test: str, direction: str, margin: float, offset: float, spread: float, verdict: str) -> None:
    """Each word for each direction: a claim that fails is refuted, not merely undecided, and chance is undecided."""
    result = judged(beside(offset, spread), direction=direction, margin=margin, test=test)
    assert (result.verdict, result.reason) == (verdict, "")
    assert (result.variant, result.variants, result.test, result.alpha) == ("gate", 1, test, 0.05)
    assert (result.p <= 0.05) == (verdict == "supported")


def one_sided_p(values: Mapping[int, float], null: float, alternative: str, test: str) -> float:
    """The p-value that a claim should have, by SciPy."""
    differences = np.array([values[seed] - BASE[seed] for seed in values])
    if test == "t":
        return float(scipy.stats.ttest_1samp(differences, null, alternative=alternative).pvalue)
    if test == "sign-flip":
        return float(
            scipy.stats.permutation_test(
                (differences - null,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative=alternative
            ).pvalue
        )
    table = np.array([list(BASE.values()), list(values.values()), list(beside(0.05).values())])
    centred = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    error = (centred**2).sum() / (2 * 5)
    t = (differences.mean() - null) / math.sqrt(2 * error / 6)
    whole = scipy.stats.multivariate_t(shape=[[1, 0.5], [0.5, 1]], df=10, seed=1)
    return float(1 - whole.cdf(np.full(2, -t if alternative == "less" else t), maxpts=50_000))


@pytest.mark.parametrize("test", ["t", "sign-flip", "dunnett"])
@pytest.mark.parametrize(("offset", "spread", "margin"), [(-0.02, 0.05, 0.0), (-0.05, 0.03, 0.02), (0.01, 0.02, 0.0)])
def test_the_p_value_is_one_sided_and_scipys(test: str, offset: float, spread: float, margin: float) -> None:
    """Supported at 5 % means: a claim that is false by a hair is called true in 5 % of studies."""
    values = beside(offset, spread)
    lower = judged(values, direction="lower", margin=margin, test=test).p
    higher = judged(values, direction="higher", margin=margin, test=test).p
    near = 5e-5 if test == "dunnett" else 1e-9
    assert lower == pytest.approx(one_sided_p(values, -margin, "less", test), abs=near)
    assert higher == pytest.approx(one_sided_p(values, margin, "greater", test), abs=near)
    if margin:
        sides = [one_sided_p(values, -margin, "greater", test), one_sided_p(values, margin, "less", test)]
        assert judged(values, direction="equivalent", margin=margin, test=test).p == pytest.approx(max(sides), abs=near)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_the_interval_goes_with_the_test(alpha: float) -> None:
    """A reader sees the verdict in the interval: the one at 1 - 2 alpha ends where a one-sided test at alpha does."""
    values = beside(-0.03, 0.03)
    result = judged(values, alpha=alpha)
    differences = [values[seed] - BASE[seed] for seed in values]
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(1 - 2 * alpha)
    assert [result.delta.low, result.delta.high] == pytest.approx([expected.low, expected.high])
    assert (result.verdict == "supported") == (result.delta.high < 0) == (result.p < alpha)
    edge = judged(values, alpha=alpha, margin=-result.delta.high) if result.delta.high < 0 else None
    assert edge is None or edge.p == pytest.approx(alpha)


def test_a_claim_about_several_is_as_strong_as_the_weakest() -> None:
    """It is claimed of each: one that stays open leaves it open, and that one is shown."""
    runs = build_frame(
        {
            "base": BASE,
            "strong": beside(-0.2),
            "fair": beside(-0.1, 0.05),
            "open": beside(-0.01, WIDE),
            "same": beside(0.0, 0.001),
            "bad": beside(0.2),
            "lost": {0: 1.0, 1: "failed"},
        }
    )

    def shown(*variants: str, **claim: Any) -> tuple[str, str]:
        result = claimed(runs, *variants, **claim)
        assert result.variants == len(variants)
        return result.verdict, result.variant

    assert shown("strong", "fair") == ("supported", "fair")
    assert shown("fair", "strong") == ("supported", "fair")
    assert shown("strong", "open", "fair") == ("undecided", "open")
    assert shown("strong", "same", margin=0.02) == ("equivalent", "same")
    assert shown("same", "open", margin=0.02) == ("undecided", "open")
    assert shown("open", "bad", "strong") == ("refuted", "bad")
    assert shown("strong", "lost") == ("not evaluable", "lost")
    assert shown("open", "lost") == ("not evaluable", "lost")
    assert shown("lost", "bad") == shown("bad", "lost") == ("refuted", "bad")  # whatever the other would have given
    both = [claimed(runs, name).p for name in ("strong", "fair")]
    assert claimed(runs, "strong", "fair").p == max(both)


@pytest.mark.parametrize(("direction", "margin"), [("lower", 0.0), ("higher", 0.02), ("equivalent", 0.02)])
def test_what_is_true_of_many_is_seldom_refuted(direction: str, margin: float) -> None:
    """Any of eight may refute it: at the very edge of what is claimed, in no more than about 5 % of studies."""
    generator, refuted, repeats = np.random.default_rng(3), 0, 300
    names = [f"v{number}" for number in range(8)]
    offset = {"lower": 0.0, "higher": margin, "equivalent": margin}[direction]
    for _ in range(repeats):
        values = {"base": BASE}
        for name in names:
            noise = generator.normal(0, 0.05, 6)
            values[name] = {seed: BASE[seed] + offset + float(noise[seed]) for seed in BASE}
        refuted += claimed(build_frame(values), *names, direction=direction, margin=margin).verdict == "refuted"
    assert refuted / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)  # without an allowance it is about 34 %
    assert refuted > 0 or direction == "equivalent"


@pytest.mark.parametrize(
    ("direction", "variants", "allowance"),
    [("lower", 1, 1), ("lower", 3, 3), ("equivalent", 1, 2), ("equivalent", 3, 6)],
)
def test_refuting_takes_the_evidence_that_it_says(direction: str, variants: int, allowance: int) -> None:
    """One side of three variants at alpha / 3, each side of an equivalence at half of that: the p-value is SciPy's."""
    margin = 0.01
    null = margin if direction == "equivalent" else -margin
    found = set()
    for spread in np.linspace(0.02, 0.2, 30):
        values = beside(0.06, float(spread))
        runs = build_frame({"base": BASE, "gate": values, "b": beside(-0.002, 0.03), "c": beside(-0.003, 0.03)})
        result = claimed(runs, *("gate", "b", "c")[:variants], direction=direction, margin=margin)
        differences = [values[seed] - BASE[seed] for seed in values]
        p = scipy.stats.ttest_1samp(differences, null, alternative="greater").pvalue
        assert (result.verdict == "refuted") == (p <= 0.05 / allowance)
        found.add(result.verdict == "refuted")
    assert found == {True, False}


@pytest.mark.parametrize(
    ("values", "claim", "reason"),
    [
        ({**beside(-0.1), 1: "failed", 5: "failed"}, {}, "of the trials that it needs: 2 failed"),
        ({**beside(-0.1), 4: "waiting", 5: "running"}, {}, "of the trials that it needs: 2 not finished"),
        (
            {**beside(-0.1), 1: "failed", 2: "failed", 4: "waiting", 5: "interrupted"},
            {},
            "of the trials that it needs: 2 not finished, 2 failed",
        ),
        ({**beside(-0.1), 5: "diverged"}, {}, "1 of 6 seeds diverged"),
        ({0: 1.0}, {}, "single seed"),
        ({7: 1.0, 8: 1.0}, {}, "no pairs"),
        (beside(-0.1, seeds=4), {"test": "sign-flip"}, "4 pairs: a sign-flip test cannot give a p below 0.0625"),
        (beside(-0.1), {"test": "sign-flip", "alpha": 0.01}, "6 pairs: a sign-flip test cannot give a p below 0.0156"),
        (
            beside(-0.1),
            {"metric": "validation/los"},
            "no trial has 'validation/los', but for example validation/loss, validation/bits_per_byte",
        ),
        (
            {seed: value + 0.5 for seed, value in BASE.items()},
            {},
            "the same difference at every seed: there is no scatter to test it against",
        ),
        ({0: math.inf, 1: 1.0}, {}, "a value is not a number"),
    ],
)
def test_what_cannot_be_judged_says_why(values: dict[int, Any], claim: dict[str, Any], reason: str) -> None:
    """A claim is judged on a whole study, by a test that could support it; else a reader is told what is missing."""
    with np.errstate(invalid="ignore"):
        result = judged(values, **claim)
    assert (result.verdict, result.reason) == ("not evaluable", reason)
    assert math.isnan(result.p)


def test_an_unknown_metric_is_answered_with_the_known() -> None:
    """As `compare` answers it: all that there are, where none is near."""
    result = judged(beside(-0.1), metric="a/b")
    assert result.verdict == "not evaluable"
    assert result.reason.startswith("no trial has 'a/b', but for example validation/loss, ")
    assert result.reason.endswith("memory/peak_bytes")


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ({4: "failed"}, "of the trials that it needs: 1 failed"),
        ({4: "diverged"}, "of the trials that it needs: 1 diverged"),
        (
            {0: "running", 1: "waiting", 2: "failed", 3: "diverged"},
            "of the trials that it needs: 2 not finished, 1 failed, 1 diverged",
        ),
        ({4: math.inf}, "Dunnett's test needs two seeds that all variants finished"),
    ],
)
def test_a_claim_by_dunnetts_test_needs_the_whole_family(lost: dict[int, Any], reason: str) -> None:
    """It allows for all variants of a baseline: of fewer it would be another test. The t-test is of the one alone."""
    runs = build_frame({"base": BASE, "gate": beside(-0.1), "other": {**beside(0.05), **lost}})
    result = claimed(runs, "gate", test="dunnett")
    assert (result.verdict, result.reason) == ("not evaluable", reason)
    assert claimed(runs, "gate").verdict == "supported"


def test_the_fewest_pairs_of_a_sign_flip_claim() -> None:
    """One-sided, five pairs can give p = 1/32: a study of five seeds must not be turned away."""
    result = judged(beside(-0.1, seeds=5), test="sign-flip")
    assert (result.verdict, result.p) == ("supported", 1 / 32)


def test_a_baseline_that_lacks_trials_keeps_its_claims_open() -> None:
    """Half of each difference is the baseline's."""
    diverged = claimed(build_frame({"base": {**BASE, 3: "diverged"}, "gate": beside(-0.1)}), "gate")
    failed = claimed(build_frame({"base": {**BASE, 3: "failed", 4: "failed"}, "gate": beside(-0.1)}), "gate")
    assert (diverged.verdict, diverged.reason) == ("not evaluable", "its baseline diverged at seed 3")
    assert (failed.verdict, failed.reason) == ("not evaluable", "of the trials that it needs: 2 failed")


def test_claims_without_variants_or_baseline_are_not_evaluable() -> None:
    """A claim about nothing is not true of all of it."""
    runs = build_frame({"base": BASE, "gate": beside(-0.1)})
    nothing = claimed(runs)
    assert (nothing.verdict, nothing.reason) == ("not evaluable", "no variant with a baseline is one that it names")
    assert claimed(runs, "gone").reason == "it has no baseline"
    apart = build_frame({"base": BASE, "gate": {0: 1.0, 1: 1.1}, "other": {3: 2.0, 4: 2.1}})
    assert claimed(apart, "gate", test="dunnett").reason == "Dunnett's test needs two seeds that all variants finished"


def test_tables_of_claims_tell_people_and_programs_the_same(laboratory: Any) -> None:
    """What was claimed, in symbols, with the verdict and why there is none; nothing that is no JSON."""
    runs = build_frame({"base": BASE, "gate": beside(-0.1), "other": beside(0.0, 0.005), "lost": {0: "failed"}})
    entries = [
        {"name": "lower", **Claim(margin=0.02).model_dump(mode="json"), "variants": ["gate"]},
        {
            "name": "same, or nearly",
            **Claim(direction="equivalent", margin=0.02).model_dump(mode="json"),
            "variants": ["other", "gate"],
        },
        {"name": "higher", **Claim(direction="higher", alpha=0.1).model_dump(mode="json"), "variants": ["lost"]},
        {"name": "any", **Claim().model_dump(mode="json"), "variants": ["gate"]},
    ]
    found = claims(runs, recorded(entries), ())
    grid = claims_table(found)
    shown = {row[0]: dict(zip([column.heading for column in grid.columns], row, strict=True)) for row in grid.rows}
    assert [row["claimed"] for row in shown.values()] == [
        "Δ < -0.02, α = 0.05", "|Δ| < 0.02, α = 0.05", "Δ > 0, α = 0.1", "Δ < 0, α = 0.05",
    ]  # fmt: skip
    assert [row["verdict"] for row in shown.values()] == ["supported", "refuted", "not evaluable", "supported"]
    assert grid.emphasised == (True, False, False, True)
    assert (shown["higher"]["Δ"], shown["higher"]["interval"], shown["higher"]["p"]) == ("–", "–", "–")
    assert "same, or nearly: claimed of 2 variants; the weaker is shown: gate." in grid.notes
    assert "higher: not evaluable: no pairs." in grid.notes
    assert shown["lower"]["made"] == "not registered"

    rows = list(csv.DictReader(io.StringIO(to_csv(found.frame()))))
    whole = json.loads(json.dumps(found.to_dict()))
    for row, entry, result in zip(rows, whole["results"], found.results, strict=True):
        assert (row["claim"], row["verdict"]) == (entry["claim"], entry["verdict"]) == (result.claim, result.verdict)
        for cell, value in (
            (row["delta"], result.delta.mean),
            (row["p"], result.p),
            (row["delta_low"], result.delta.low),
        ):
            assert cell == ("" if math.isnan(value) else repr(value))
        assert entry["p"] == (None if math.isnan(result.p) else result.p)
        assert row["pairs"] == str(entry["delta"]["n"])


# --- The register ---

FIRST = {"it helps": {"margin": 0.01}, "nothing else": {"direction": "equivalent", "margin": 0.1}}


@pytest.fixture
def study(laboratory: Callable[..., Any]) -> Any:
    """A study with two claims, of four trials."""
    return laboratory(seeds=2, claims=FIRST)


def launch(lab: Any, **claims: Any) -> None:
    """Launch a laboratory's study again, with these claims."""
    relaunch(lab, claims=claims)


def relaunch(lab: Any, **study: Any) -> None:
    """Launch a laboratory's study again, with something changed."""
    raw = {**lab.matrix.plan.study.model_dump(mode="json"), **study}
    register_claims(lab.folder, build_matrix(make_study(raw, "test"), lambda config: lab.name))


def test_what_is_claimed_is_written_down_once(study: Any) -> None:
    """The first launch counts, however often a study is launched; a table says that nothing was known by then."""
    path = study.folder.study(study.name).claims
    assert read_register(path) == ()
    launch(study, **FIRST)
    [entry] = read_register(path)
    assert (entry.ended, entry.trials, entry.changes) == (0, 4, {"it helps": "new", "nothing else": "new"})
    [written] = read_entries(path)
    for name in FIRST:
        assert written["claims"][name]["judged_on"] == {label: [0, 1] for label in study.variants}
    study.finish(0, 0)
    before = path.read_bytes()
    launch(study, **FIRST)
    assert path.read_bytes() == before
    runs = build_frame({"base": BASE, "gate": beside(-0.1)})
    found = claims(runs, study.record.claims, read_register(path))
    assert {result.registered for result in found.results} == {
        f"registered {entry.at[:10]}, before any trial had ended"
    }
    assert found.notes == ()


def test_a_claim_that_changes_is_an_amendment_with_a_date(study: Any) -> None:
    """Moving a margin after a look at the results is possible, and shown in every table of claims."""
    path = study.folder.study(study.name).claims
    launch(study, **FIRST)
    for variant, seed in ((0, 0), (1, 0), (0, 1)):
        study.finish(variant, seed)
    study.end(1, 1, "failed", 3, "out of memory")
    launch(study, **{"it helps": {"margin": 0.005, "alpha": 0.1}, "late": {}})
    launch(study, **FIRST)
    _, second, third = read_register(path)
    assert (second.ended, second.trials) == (3, 4)
    assert second.changes == {
        "it helps": "margin 0.01 -> 0.005, alpha 0.05 -> 0.1",
        "nothing else": "withdrawn",
        "late": "new",
    }
    assert third.changes == {
        "it helps": "margin 0.005 -> 0.01, alpha 0.1 -> 0.05",
        "late": "withdrawn",
        "nothing else": "new",
    }
    runs = build_frame({"base": BASE, "gate": beside(-0.1)})
    found = claims(runs, recorded([{"name": "it helps", **Claim().model_dump(mode="json"), "variants": ["gate"]}]),
                  read_register(path))  # fmt: skip
    assert found.results[0].registered == f"amended {third.at[:10]}, after 3 of 4 trials"
    assert len(found.notes) == 2
    when = second.at[:16].replace("T", " ")
    assert found.notes[0] == (
        f"Amended {when} UTC, after 3 of 4 trials: it helps: margin 0.01 -> 0.005, alpha 0.05 -> 0.1; "
        "nothing else: withdrawn; late: new."
    )
    assert found.notes[0] in claims_table(found).notes
    none = claims(runs, [], read_register(path))
    assert (none.results, claims_table(none).notes) == ((), found.notes)  # what was withdrawn is not forgotten


def test_more_seeds_or_other_variants_are_an_amendment(study: Any) -> None:
    """Seeds that are added until a claim holds are a choice by its results: the table says when they were added."""
    path = study.folder.study(study.name).claims
    launch(study, **FIRST)
    study.finish(0, 0)
    relaunch(study, claims=FIRST, seeds=6)
    relaunch(study, claims=FIRST, seeds=[0, 1, 2, 3, 4, 7])
    relaunch(study, claims=FIRST, seeds=[0, 1, 2, 3, 4, 7])
    wide = {"model.gate.position": ["none", "sdpa", "value"]}
    relaunch(study, claims=FIRST, seeds=[0, 1, 2, 3, 4, 7], axes=wide)
    first, more, others, variants = read_register(path)
    assert (first.trials, more.trials, more.ended) == (4, 12, 1)
    assert more.changes == dict.fromkeys(FIRST, "judged on 4 -> 12 trials")
    assert others.changes == dict.fromkeys(FIRST, "judged on other trials")
    assert variants.changes == dict.fromkeys(FIRST, "judged on 12 -> 18 trials")
    about = {"it helps": {"variant": {"model.gate.position": "sdpa"}}}
    relaunch(study, claims=about, seeds=3, axes=wide)
    relaunch(study, claims=about, seeds=3, axes={"model.gate.position": ["none", "sdpa", "value", "output"]})
    assert len(read_register(path)) == 5  # of a variant that it is not about it says nothing
    assert read_entries(path)[-1]["claims"]["it helps"]["judged_on"] == {
        "position=none": [0, 1, 2],
        "position=sdpa": [0, 1, 2],
    }


def test_what_has_diverged_has_ended(study: Any) -> None:
    """A loss that left its bound tells as much as one that did not; a trial that failed tells nothing."""
    study.end(0, 0, "diverged", 3, "the training loss was nan")
    study.end(1, 0, "failed", 3, "out of memory")
    study.finish(1, 1)
    launch(study, **FIRST)
    [entry] = read_register(study.folder.study(study.name).claims)
    assert (entry.ended, entry.state_of_evidence) == (2, "after 2 of 4 trials")


def test_a_claim_that_was_not_touched_keeps_its_date(study: Any) -> None:
    """An amendment of one claim says nothing about another."""
    launch(study, **FIRST)
    study.finish(0, 0)
    launch(study, **{**FIRST, "it helps": {"margin": 0.02}})
    register = read_register(study.folder.study(study.name).claims)
    entries = [
        {"name": name, **Claim().model_dump(mode="json"), "variants": ["gate"]} for name in ("it helps", "nothing else")
    ]
    results = claims(build_frame({"base": BASE, "gate": beside(-0.1)}), recorded(entries), register).results
    assert [result.registered.partition(" ")[0] for result in results] == ["amended", "registered"]


def test_claims_that_come_late_say_so(study: Any) -> None:
    """A study that claims something only once it has run is registered with what was known by then."""
    launch(study)
    path = study.folder.study(study.name).claims
    assert not path.exists()
    study.finish(0, 0)
    launch(study, **FIRST)
    [entry] = read_register(path)
    assert (entry.ended, entry.trials) == (1, 4)


@pytest.mark.parametrize(
    ("number", "field", "value"),
    [
        (0, "claims", {"it helps": {"margin": 0.0}}),
        (1, "claims", {}),
        (0, "at", "2020-01-01T00:00:00+00:00"),
        (1, "ended", 0),
        (1, "changes", {}),
        (0, "hash", "0" * 64),
        (1, "hash", None),
    ],
)
def test_a_register_that_is_edited_by_hand_is_noticed(number: int, field: str, value: Any, study: Any) -> None:
    """What was claimed, when, and what was known by then: none of it can be changed without a trace."""
    path = study.folder.study(study.name).claims
    launch(study, **FIRST)
    study.finish(0, 0)
    launch(study, **{"it helps": {"margin": 0.005}})
    register = json.loads(path.read_text())
    assert len(register["entries"]) == 2
    if value is None:
        del register["entries"][number][field]
    else:
        register["entries"][number][field] = value
    write_json(path, register)
    with pytest.raises(RegisterChanged, match=rf"claims.json: entry {number + 1} is not as it was written"):
        read_register(path)
    before = path.read_bytes()
    with pytest.raises(RegisterChanged):
        launch(study, **FIRST)
    assert path.read_bytes() == before


def test_an_entry_that_is_taken_out_is_noticed(study: Any) -> None:
    """Each hash covers the entry before: the first claim cannot be dropped in favour of the second."""
    path = study.folder.study(study.name).claims
    launch(study, **FIRST)
    launch(study, **{"it helps": {"margin": 0.005}})
    register = json.loads(path.read_text())
    write_json(path, {"entries": register["entries"][1:]})
    with pytest.raises(RegisterChanged, match="entry 1"):
        read_register(path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"entries": ', '{"entries": 1}', '{"entries": [1]}', '{"claims": {}}', "\x00"]
)
def test_a_register_that_is_no_whole_json_is_not_an_empty_one(text: str, study: Any) -> None:
    """A torn file must not let a study start anew as though nothing had been claimed."""
    path = study.folder.study(study.name).claims
    launch(study, **FIRST)
    path.write_text(text)
    for read in (read_register, read_entries):
        with pytest.raises(RegisterChanged, match=r"claims\.json: .*not"):
            read(path)
    with pytest.raises(RegisterChanged):
        launch(study, **FIRST)
    assert path.read_text() == text


def test_the_changes_of_a_claim_are_told_field_by_field() -> None:
    """For people: what it was and what it is; nothing of what stayed."""
    before = {"a": {"margin": 0.1, "alpha": 0.05, "judged_on": {"x": [0]}}, "b": {"margin": 0.0}, "c": {"margin": 1}}
    now = {"a": {"margin": 0.2, "alpha": 0.05, "judged_on": {"x": [0, 1], "y": [0]}}, "c": {"margin": 1}, "d": {}}
    assert claim_changes(before, now) == {
        "a": "margin 0.1 -> 0.2, judged on 1 -> 3 trials",
        "b": "withdrawn",
        "d": "new",
    }
    assert claim_changes(now, now) == claim_changes({}, {}) == {}
