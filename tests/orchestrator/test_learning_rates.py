"""Learning rates are located by what is proposed next, and found on a real Ray with a real account in Optuna."""

import inspect
import json
import math
import queue
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gatelab.ablations.errors import StudyError
from gatelab.ablations.learning_rate_grid import learning_rate_grid
from gatelab.ablations.learning_rates import LEARNING_RATE, ToleranceConfig
from gatelab.ablations.loading import make_study
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.study import StudyPlan
from gatelab.errors import DamagedFile
from gatelab.names import SEARCH_SUFFIX
from gatelab.orchestrator.learning_rate_account import LearningRateAccount
from gatelab.orchestrator.learning_rates import Round, propose, search, window_matrix
from gatelab.orchestrator.planning import plan_search, plan_study, searched, searched_or_given
from gatelab.orchestrator.progress import Progress
from gatelab.orchestrator.ray_executor import RayExecutor
from gatelab.orchestrator.study_manifest import changed_since
from gatelab.orchestrator.study_run import RunOptions, run_matrix
from gatelab.results.analyses.learning_rates import read_learning_rates
from gatelab.results.analyses.sweeps import Sweep, sweeps
from gatelab.results.statistics.optimum import Bounded, largest_stable, lower_edge, optimum, upper_edge
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.records import read_json, write_json
from gatelab.results.store.runs import runs_from_journals
from gatelab.results.tracking.runs import runs_from_mlflow
from tests.orchestrator.conftest import TINY, count_attempts

INITIAL = 5.5
BEST = 2.0

Loss = Callable[[float], float]
"""Of the decimal logarithm of a learning rate."""

WINDOWS = (
    ToleranceConfig(),
    ToleranceConfig(rates=[1e-3, 1e-2, 1e-1], extend=3, resolution=0.3, margin=0.04),
    ToleranceConfig(rates=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128], resolution=0.1),
)


def parabola(at: float, curvature: float, edge: float = math.inf) -> Loss:
    """A loss that is a parabola up to where training diverges."""
    return lambda x: BEST + curvature * (x - at) ** 2 if x <= edge else INITIAL


def tried(rates: list[float], loss: Loss) -> Sweep:
    """What two seeds find at learning rates, one a little worse than the other."""
    values = [[loss(math.log10(rate)) + shift for rate in rates] for shift in (0.0, 0.01)]
    losses = np.minimum(np.array(values), INITIAL)
    return Sweep("a", None, np.array(rates), (0, 1), losses, losses < INITIAL, 0)


def located(how: ToleranceConfig, loss: Loss) -> Sweep:
    """What is known once nothing more is proposed; checks each proposal."""
    rates, span = list(how.rates), (how.lattice[0], how.lattice[-1])
    for _ in range(15):
        new = propose(tried(rates, loss), how)
        assert new == sorted(set(new) - set(rates))
        assert all(span[0] <= rate <= span[1] for rate in new)
        if not new:
            return tried(rates, loss)
        rates = sorted([*rates, *new])
    raise AssertionError(f"no end after 15 rounds and {len(rates)} learning rates")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(WINDOWS), st.floats(-2.9, -1.1), st.floats(0.04, 2.5), st.floats(0, 2))
@example(WINDOWS[0], -1.02, 0.0765, 0.007)  # diverges just beyond the optimum
def test_optimum_and_edges_are_located(how: ToleranceConfig, at: float, rise: float, beyond: float) -> None:
    """A curve whose truth is known: what is found of it is that, to within the resolution, after a few rounds."""
    curvature, edge = rise / np.diff(np.log10(how.rates)).max() ** 2, at + beyond
    sweep = located(how, parabola(at, curvature, edge))
    x, losses, stable = np.log10(sweep.rates), sweep.mean, np.all(sweep.stable, axis=0)
    half = math.sqrt(how.margin * (BEST + 0.005) / curvature)
    learns = at + math.sqrt((INITIAL - 0.01 - BEST) / curvature)  # where the worse seed learns nothing any more
    threshold = float(losses.min()) * (1 + how.margin)
    close = pytest.approx
    assert optimum(x, losses) == Bounded(close(at, abs=how.resolution))
    upper, lower = upper_edge(x, losses, threshold), lower_edge(x, losses, threshold)
    if not lower.bound:  # a window around the best need not reach as far as a flat curve is tolerated
        assert lower.value == close(at - half, abs=how.resolution)
    if not upper.bound:
        assert upper.value == close(min(at + half, edge), abs=how.resolution)
    reach = (len(how.rates) - 1) // 2 * np.diff(np.log10(how.rates)).min() - how.resolution
    assert not (half < reach and (upper.bound or lower.bound))
    limit, true = largest_stable(x, losses, stable), min(edge, learns)
    if true < math.log10(how.lattice[-1]):
        assert limit == Bounded(close(true, abs=how.resolution))
    else:
        assert limit == Bounded(close(math.log10(how.lattice[-1])), "≥")


@pytest.mark.parametrize("extend", [0, 1, 3])
@pytest.mark.parametrize("at", [-9.0, -4.5, 1.5, 9.0])
def test_an_optimum_beyond_the_window_is_followed_so_far(at: float, extend: int) -> None:
    """At most `extend` steps beyond, on the side where it is; with 0 nothing beyond the window."""
    how = ToleranceConfig(extend=extend)
    rates = located(how, parabola(at, 0.02)).rates.tolist()
    outside = [rate for rate in rates if not how.rates[0] <= rate <= how.rates[-1]]
    steps = [rate for rate in how.lattice if rate not in how.rates]
    assert set(outside) & set(how.lattice) >= set(steps[:extend] if at < -2 else steps[extend:])
    assert all(how.lattice[0] <= rate <= how.lattice[-1] for rate in rates)
    assert bool(outside) == bool(extend)


def test_the_window_is_continued_upwards_until_something_is_not_stable() -> None:
    """How much a variant bears is the question: a window in which nothing diverged does not answer it."""
    how = ToleranceConfig()
    calm = tried(how.rates, parabola(-1.8, 0.1))
    assert 1.0 in propose(calm, how)
    assert 3.0 not in propose(calm, how)  # one at a time: each costs a training that may diverge
    wild = tried(how.rates, parabola(-1.8, 0.1, edge=-0.6))
    assert not any(rate > 0.3 for rate in propose(wild, how))


def test_proposals_follow_from_what_is_known_alone() -> None:
    """The same knowledge, the same question: that is how a search goes on where it was. Ignorance asks nothing."""
    how = ToleranceConfig()
    sweep = tried(how.rates, parabola(-1.7, 0.8, edge=-0.8))
    first = propose(sweep, how)
    assert first == propose(sweep, how)
    assert propose(tried([*how.rates[:3], *how.rates[3:]], parabola(-1.7, 0.8, edge=-0.8)), how) == first
    nothing = Sweep("a", None, sweep.rates, (0,), np.full((1, 7), math.nan), np.zeros((1, 7), bool), 0)
    assert propose(nothing, how) == []
    diverged = tried(how.rates, lambda x: INITIAL)
    wanted = propose(diverged, how)
    assert wanted
    assert max(wanted) < how.rates[0]  # lower ones may be stable; nothing between two that are not


def test_what_failed_is_not_proposed_again() -> None:
    """It is tried again by running the study again, and a search must end without it."""
    how = ToleranceConfig(extend=1)
    rates = how.lattice[1:]
    losses = np.array([[*tried(rates[:-1], parabola(-1.8, 0.1)).losses[0], math.nan]])
    sweep = Sweep("a", None, np.array(rates), (0,), losses, np.isfinite(losses), 0)
    assert 1.0 not in propose(sweep, how)


# ---------------------------------------------------------------- on Ray

RATES = [0.003, 0.03, 0.3]
HOW = {"rates": RATES, "extend": 1, "resolution": 1.2}

Plan = Callable[..., StudyPlan]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little real text."""
    folder = tmp_path_factory.mktemp("text")
    for module in (queue, shlex, textwrap):
        (folder / f"{module.__name__}.py").write_text(inspect.getsource(module), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(source: Path) -> Plan:
    """A tiny study of two variants whose learning rates are to be searched."""

    def build(overrides: dict[str, Any] | None = None, **fields: Any) -> StudyPlan:
        raw = {"name": "tiny", "base": TINY, "axes": {"model.gate.position": ["none", "sdpa"]}, "tolerance": HOW}
        return make_study({**raw, **fields}, "test", {"data.source": str(source), **(overrides or {})})

    return build


@pytest.fixture(scope="module")
def found(tiny: Plan, own_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunsFolder]:
    """A runs folder in which that study has been searched with two seeds. To be looked at, and copied."""
    folder = RunsFolder(tmp_path_factory.mktemp("found") / "runs")
    progress = search(plan_search(tiny(seeds=2)), folder, RayExecutor(), RunOptions()).progress
    assert {entry.state for entry in progress.trials.values()} <= {"finished", "diverged"}
    yield folder


@pytest.fixture
def copy(found: RunsFolder, tmp_path: Path) -> RunsFolder:
    """A copy of it."""
    shutil.copytree(found.root, tmp_path / "runs")
    return RunsFolder(tmp_path / "runs")


@pytest.fixture
def empty(found: RunsFolder, tmp_path: Path) -> RunsFolder:
    """A runs folder without trials."""
    return blank(found, tmp_path / "runs")


@pytest.fixture(scope="module")
def interrupted(tiny: Plan, found: RunsFolder, tmp_path_factory: pytest.TempPathFactory) -> RunsFolder:
    """A runs folder in which the same search was interrupted in its first round. To be copied."""
    folder = blank(found, tmp_path_factory.mktemp("interrupted") / "runs")

    def interrupt(progress: Progress) -> None:
        if progress.count("finished") and not progress.stopping:
            raise KeyboardInterrupt

    assert search(
        plan_search(tiny(seeds=2)), folder, RayExecutor(concurrency=1), RunOptions(), interrupt
    ).progress.stopping
    return folder


def blank(found: RunsFolder, root: Path) -> RunsFolder:
    """A runs folder with the data, and with a tracking store, which takes seconds to create, but no trial."""
    root.mkdir()
    shutil.copy(found.database, root / "mlflow.db")
    shutil.copytree(found.data, root / "data")
    return RunsFolder(root)


def changed(matrix: Matrix, folder: RunsFolder) -> list[str]:
    return changed_since(folder, window_matrix(matrix))


def by_hand(matrix: Matrix, folder: RunsFolder, skip: str = "") -> Callable[[Round], None]:
    """Carries the trials of each round out by hand when it is announced, all but one: each loss is a parabola."""
    rates: dict[str, set[float]] = {variant.label: set() for variant in matrix.variants}

    def carry_out(new: Round) -> None:
        for label, own in new.new.items():
            rates[label] |= set(own)
        for trial in learning_rate_grid(matrix, rates).trials:
            x = math.log10(trial.config.training.optimizer.learning_rate)
            if trial.id != skip and not folder.trial(trial.id).outcome.exists():
                metrics = {"validation/loss": parabola(-1.4, 0.3)(x) + trial.seed / 64, "train/initial_loss": INITIAL}
                outcome = {"status": "finished", "step": 20, "metrics": metrics, "reason": "", "ended": 1.0}
                write_json(folder.trial(trial.id).outcome, outcome)

    return carry_out


def account(folder: RunsFolder) -> dict[str, optuna.Study]:
    """Optuna's studies, by the label of their variant and, where a label has several, a number."""
    backend = JournalFileBackend(str(folder.study("tiny" + SEARCH_SUFFIX).path / "optuna.log"))
    storage = JournalStorage(backend)
    studies: dict[str, optuna.Study] = {}
    for name in optuna.get_all_study_names(storage):
        label = name.partition(" [")[0]
        number = sum(known.startswith(label) for known in studies)
        studies[f"{label} #{number}" if number else label] = optuna.load_study(study_name=name, storage=storage)
    return studies


def told(study: optuna.Study) -> dict[float, tuple[float | None, Any]]:
    """Learning rate -> value and losses by seed of the trials that are complete."""
    trials = study.get_trials(states=[TrialState.COMPLETE])
    return {trial.params["learning_rate"]: (trial.value, trial.user_attrs["loss by seed"]) for trial in trials}


def known(folder: RunsFolder) -> dict[str, Sweep]:
    """What the trials' own files say of the search, by arm."""
    return {sweep.arm: sweep for sweep in sweeps(runs_from_journals(folder, "tiny" + SEARCH_SUFFIX))}


def assert_account_agrees(folder: RunsFolder) -> None:
    """Optuna was told what the trials say: a study for each variant, a trial for each learning rate, mean losses."""
    studies = account(folder)
    for arm, sweep in known(folder).items():
        assert (states := [trial.state for trial in studies[arm].get_trials()]) == [TrialState.COMPLETE] * len(states)
        values = told(studies[arm])
        assert sorted(values) == sweep.rates.tolist()
        assert len(states) == len(values)
        for place, rate in enumerate(sweep.rates.tolist()):
            losses = {str(seed): loss for seed, loss in zip(sweep.seeds, sweep.losses[:, place], strict=True)}
            value, by_seed = values[rate]
            assert by_seed == losses
            assert value == pytest.approx(sum(losses.values()) / len(losses), rel=1e-12)


def test_a_search_runs_to_its_end_and_then_no_more(found: RunsFolder, copy: RunsFolder, tiny: Plan) -> None:
    """All cells trained once, the account kept; the same command again trains nothing and finds the same."""
    record = found.study("tiny" + SEARCH_SUFFIX).read()
    assert count_attempts(found) == len(record.trials) == len(list(found.root.glob("trials/*")))
    for sweep in known(found).values():
        assert set(RATES) <= set(sweep.rates)
        assert propose(sweep, ToleranceConfig(**HOW)) == []
        assert sweep.complete.all()
    assert_account_agrees(found)
    assert sorted(account(found)) == ["position=none", "position=sdpa"]
    assert record.tolerance is not None
    assert record.tolerance.lattice == ToleranceConfig(**HOW).lattice
    ours = runs_from_journals(found, "tiny" + SEARCH_SUFFIX).to_pylist()
    assert repr(ours) == repr(runs_from_mlflow(found.tracking_uri, "tiny" + SEARCH_SUFFIX).to_pylist())

    rounds: list[Round] = []
    before = {path: path.stat().st_mtime_ns for path in copy.root.glob("trials/*/journal/*")}
    again = search(plan_search(tiny(seeds=2)), copy, RayExecutor(), RunOptions(), announce=rounds.append)
    assert (again.progress.stopping, again.unfinished) == (False, "")
    assert {path: path.stat().st_mtime_ns for path in copy.root.glob("trials/*/journal/*")} == before
    assert copy.study("tiny" + SEARCH_SUFFIX).read() == record
    assert_account_agrees(copy)
    assert changed(plan_search(tiny(seeds=2)), copy) == []
    assert not rounds  # there is nothing to try


def test_rounds_are_announced_as_they_are(empty: RunsFolder, tiny: Plan) -> None:
    """What is shown before hours of training: the window first, then what follows from it, and how much it is."""
    rounds: list[Round] = []
    matrix = plan_search(tiny(seeds=2, tolerance={**HOW, "resolution": 0.2}))
    carry_out = by_hand(matrix, empty)

    def announce(new: Round) -> None:
        rounds.append(new)
        carry_out(new)

    search(matrix, empty, RayExecutor(), RunOptions(), announce=announce)
    assert [one.number for one in rounds] == list(range(1, len(rounds) + 1))
    assert rounds[0].new == {"position=none": RATES, "position=sdpa": RATES}
    assert rounds[0].cells == 6
    assert len(rounds) > 2
    tried_at = {arm: sweep.rates.tolist() for arm, sweep in known(empty).items()}
    for arm, rates in tried_at.items():
        assert sorted(rate for one in rounds for rate in one.new.get(arm, [])) == rates
    assert rounds[-1].cells == sum(map(len, tried_at.values()))
    for arm in read_learning_rates(empty, "tiny" + SEARCH_SUFFIX).arms:
        assert math.log10(arm.optimum or math.nan) == pytest.approx(-1.4, abs=0.01)
    assert_account_agrees(empty)


def test_a_lost_account_is_made_anew(copy: RunsFolder, found: RunsFolder, tiny: Plan) -> None:
    """The truth is in the trials' own folders; Optuna's file can be deleted."""
    (copy.study("tiny" + SEARCH_SUFFIX).path / "optuna.log").unlink()
    search(plan_search(tiny(seeds=2)), copy, RayExecutor(), RunOptions())
    assert count_attempts(copy) == count_attempts(found)
    assert_account_agrees(copy)
    ours, theirs = account(copy), account(found)
    assert {label: told(study) for label, study in ours.items()} == {
        label: told(study) for label, study in theirs.items()
    }


@pytest.mark.parametrize("content", [b"garbage\n", b"[]\n", b"{}\n", b'{"op_code": 0, "worker_id', b"\xff\xfe\n"])
def test_an_account_that_cannot_be_read_is_made_anew(content: bytes, tiny: Plan, tmp_path: Path) -> None:
    """A line that a power cut has torn ends no search: the account is set aside, and begun again."""
    (path := tmp_path / "optuna.log").write_bytes(content)
    matrix = plan_search(tiny(seeds=1))
    with pytest.warns(DamagedFile, match=r"optuna\.log: cannot be read: it is made anew from the trials"):
        opened = LearningRateAccount(path, matrix, dict.fromkeys([each.label for each in matrix.variants], "kind"))
    opened.begin({variant.label: RATES for variant in matrix.variants})
    assert (tmp_path / "optuna.log.damaged").read_bytes().startswith(content)
    storage = JournalStorage(JournalFileBackend(str(path)))
    assert len(optuna.get_all_study_names(storage)) == 2


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({}, "variants"),
        ({"variants": 3}, "variants"),
        ({"variants": [{"variant": "position=none", "kind": "x", "tokens": 1280}]}, "variants.0.rate"),
        ({"variants": [{"variant": "position=none", "kind": "x", "tokens": "many", "rate": 0.1}]}, "variants.0.tokens"),
        ({"variants": [{"variant": "position=none", "kind": "x", "tokens": 1280, "rate": -1.0}]}, "variants.0.rate"),
        (
            {"variants": [{"variant": "position=none", "kind": "x", "tokens": 1280, "rate": math.nan}]},
            "variants.0.rate",
        ),
    ],
)
def test_optima_that_are_not_as_they_were_written_are_not_taken(
    content: dict[str, Any], key: str, tiny: Plan, tmp_path: Path
) -> None:
    """A study that wants them says which file, which key and what mends it; a plan says the same, and goes on."""
    folder = RunsFolder(tmp_path / "runs")
    write_json(folder.study("tiny" + SEARCH_SUFFIX).located, content)
    plan, reasons = tiny(learning_rate="search"), dict[str, None]()
    with pytest.raises(StudyError, match=rf"located\.json: {key}: .*gatelab lr-tolerance writes it anew"):
        plan_study(plan, searched(folder))
    plan_study(plan, searched_or_given(folder, reasons))
    assert [key in reason for reason in reasons] == [True]


def test_an_interrupt_costs_nothing(interrupted: RunsFolder, found: RunsFolder, tiny: Plan, tmp_path: Path) -> None:
    """The same command goes on, and ends with what an undisturbed search found, digit for digit."""
    begun = [study.get_trials(states=[TrialState.RUNNING]) for study in account(interrupted).values()]
    assert 0 < sum(map(len, begun)) <= 6
    assert 0 < count_attempts(interrupted) < 12
    shutil.copytree(interrupted.root, tmp_path / "runs")
    folder = RunsFolder(tmp_path / "runs")
    assert not folder.study("tiny" + SEARCH_SUFFIX).located.exists()
    with pytest.raises(StudyError, match="its search has not come to its end"):
        plan_study(tiny(seeds=2, learning_rate="search"), searched(folder))
    assert not search(plan_search(tiny(seeds=2)), folder, RayExecutor(), RunOptions()).progress.stopping
    assert folder.study("tiny" + SEARCH_SUFFIX).located.exists()
    assert_account_agrees(folder)
    assert {arm: sweep.losses.tolist() for arm, sweep in known(folder).items()} == {
        arm: sweep.losses.tolist() for arm, sweep in known(found).items()
    }


def test_another_window_after_an_interrupt(interrupted: RunsFolder, tiny: Plan, tmp_path: Path) -> None:
    """A search that was begun and left does not stand in the way of one with other learning rates."""
    shutil.copytree(interrupted.root, tmp_path / "runs")
    folder = RunsFolder(tmp_path / "runs")
    other = [0.002, 0.02, 0.2]
    matrix = plan_search(tiny(seeds=2, tolerance={"rates": other, "extend": 0, "resolution": 1.2}))
    search(matrix, folder, RayExecutor(), RunOptions(), announce=by_hand(matrix, folder))
    for arm, sweep in known(folder).items():
        assert sweep.rates.tolist() == other
        assert set(other) <= set(told(account(folder)[arm]))


def test_what_others_left_in_the_account_is_no_obstacle(copy: RunsFolder, tiny: Plan) -> None:
    """A kill between two of its lines, or a trial that was added in the dashboard, leaves one without a value."""
    for study in account(copy).values():
        study.enqueue_trial({"learning_rate": 0.123})
        study.ask()
    next(iter(account(copy).values())).enqueue_trial({"learning_rate": 0.2})
    progress = search(plan_search(tiny(seeds=2)), copy, RayExecutor(), RunOptions()).progress
    assert {entry.state for entry in progress.trials.values()} <= {"finished", "diverged"}
    for arm, sweep in known(copy).items():
        assert set(sweep.rates.tolist()) <= set(told(account(copy)[arm]))


def test_a_changed_study_is_said_and_has_an_account_of_its_own(copy: RunsFolder, found: RunsFolder, tiny: Plan) -> None:
    """Means over other seeds are other values: they are not mixed. Trials that are the same are kept."""
    grown = plan_search(tiny(seeds=3))
    assert changed(grown, copy) == ["seeds: 0, 1 -> 0, 1, 2"]
    search(grown, copy, RayExecutor(), RunOptions(), announce=by_hand(grown, copy))
    before, sweep_of = known(found), known(copy)
    for arm, sweep in sweep_of.items():
        assert sweep.seeds == (0, 1, 2)
        ours, theirs = (each.losses[:2, np.isin(each.rates, RATES)] for each in (sweep, before[arm]))
        assert ours.tolist() == theirs.tolist()
    assert count_attempts(copy) == count_attempts(found)
    studies = account(copy)
    assert sorted(studies) == ["position=none", "position=none #1", "position=sdpa", "position=sdpa #1"]
    for arm, sweep in sweep_of.items():
        assert sorted(told(studies[f"{arm} #1"])) == sweep.rates.tolist()
        assert told(studies[arm]) == told(account(found)[arm])
    [line] = changed(plan_search(tiny({"model.ffn_size": 24}, seeds=3)), copy)
    assert line.startswith("another configuration or other data of position=none, learning_rate=")


def test_a_changed_base_is_said_with_the_studys_name(found: RunsFolder, tiny: Plan) -> None:
    """Nothing is said of a study that has never been searched, nor of one that only looks further."""
    assert changed(plan_search(tiny(name="another", seeds=1)), found) == []
    others = changed(plan_search(tiny(seeds=2, tolerance={**HOW, "extend": 2, "margin": 0.1})), found)
    assert others == ["tolerance.extend: 1 -> 2", "tolerance.margin: 0.02 -> 0.1"]


def test_trials_of_an_ordinary_study_are_shared(copy: RunsFolder, found: RunsFolder, tiny: Plan) -> None:
    """Equal work is done once: a study with these learning rates as its axis takes the search's trials, or gives."""
    axes = {"model.gate.position": ["none", "sdpa"], LEARNING_RATE: [*RATES]}
    progress = run_matrix(plan_study(tiny(name="ordinary", seeds=2, axes=axes)), copy, RayExecutor(), RunOptions())
    assert len(progress.trials) == 12
    assert progress.count("waiting") == 0
    assert count_attempts(copy) == count_attempts(found)
    shutil.rmtree(copy.study("tiny" + SEARCH_SUFFIX).path)
    search(plan_search(tiny(seeds=2, tolerance={**HOW, "extend": 0})), copy, RayExecutor(), RunOptions())
    assert count_attempts(copy) == count_attempts(found)
    assert_account_agrees(copy)


def test_a_trial_that_fails_does_not_keep_the_others(empty: RunsFolder, tiny: Plan) -> None:
    """It is tried again once, as in any study, not in every round; its learning rate has no value in the account."""
    matrix = plan_search(tiny(seeds=1, tolerance={**HOW, "resolution": 0.3}))
    cells = learning_rate_grid(matrix, {variant.label: RATES for variant in matrix.variants})
    broken = next(trial for trial in cells.trials if trial.variant == "position=sdpa, learning_rate=0.003")
    in_the_way = empty.trial(broken.id).path / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()  # where a folder must be
    rounds: list[Round] = []
    carry_out = by_hand(matrix, empty, broken.id)

    def announce(new: Round) -> None:
        rounds.append(new)
        carry_out(new)

    assert search(matrix, empty, RayExecutor(), RunOptions(), announce=announce).progress.count("failed") == 1
    assert len(rounds) > 1
    assert 0.003 not in told(account(empty)["position=sdpa"])
    assert 0.003 in told(account(empty)["position=none"])
    [unknown] = np.flatnonzero(~known(empty)["position=sdpa"].complete)
    assert known(empty)["position=sdpa"].rates[unknown] == 0.003
    assert empty.trial(broken.id).log.read_text().count("the trial failed") == 2  # the attempt and its retry
    in_the_way.unlink()
    write_json(empty.trial(broken.id).outcome, read_json(empty.trial(cells.trials[0].id).outcome))
    assert search(matrix, empty, RayExecutor(), RunOptions(), announce=carry_out).progress.count("failed") == 0
    assert_account_agrees(empty)


def test_variants_are_trained_at_the_optimum_that_was_found(found: RunsFolder, tiny: Plan) -> None:
    """`learning_rate: search` takes each variant's own, to three digits; a budget that was not searched, too."""
    optima = {arm.sweep.arm: arm.optimum for arm in read_learning_rates(found, "tiny" + SEARCH_SUFFIX).arms}
    plan = tiny(seeds=2, learning_rate="search")
    matrix = plan_study(plan, searched(found))
    assert len(matrix.variants) == 2
    for variant in matrix.variants:
        rate, best = variant.config.training.optimizer.learning_rate, optima[variant.label]
        assert best is not None
        assert rate == float(f"{best:.3g}")
        assert 0.003 < rate < 0.3
    budgets = {"model.gate.position": ["none", "sdpa"], "training.tokens": [1280, 2560]}
    ladder = plan_study(tiny(seeds=2, learning_rate="search", axes=budgets), searched(found))
    for variant in ladder.variants:
        best = optima[f"position={variant.levels['model.gate.position']}"]
        assert best is not None
        assert variant.config.training.optimizer.learning_rate == float(f"{best:.3g}")
    assert len(ladder.variants) == 4
    more = {"model.gate.position": ["none", "value"]}
    with pytest.raises(StudyError, match=r"no optimum for position=value: .* another configuration"):
        plan_study(tiny(seeds=2, learning_rate="search", axes=more), searched(found))
    with pytest.raises(StudyError, match=r"no optimum for position=none; position=sdpa: .* another configuration"):
        plan_study(tiny({"model.ffn_size": 24}, seeds=2, learning_rate="search"), searched(found))
    with pytest.raises(StudyError, match="no optimum for position=none; position=sdpa: it has not been searched"):
        plan_study(tiny(name="another", learning_rate="search"), searched(found))
    reasons: dict[str, None] = {}
    shown = plan_study(tiny(name="another", learning_rate="search"), searched_or_given(found, reasons))
    assert {variant.config.training.optimizer.learning_rate for variant in shown.variants} == {1e-2}
    assert len(reasons) == 1


def test_a_study_that_is_to_take_the_optimum_can_be_searched(tiny: Plan) -> None:
    """It says `search` before there is anything to take: the search begins at what is given."""
    matrix: Matrix = plan_search(tiny(seeds=2, learning_rate="search"))
    assert [trial.id for trial in matrix.trials] == [trial.id for trial in plan_search(tiny(seeds=2)).trials]
    with pytest.raises(StudyError, match=rf"axes.{LEARNING_RATE}: varies the learning rate, which is to be searched"):
        plan_search(tiny(axes={LEARNING_RATE: [0.1, 0.2]}))


def test_the_budget_stops_a_search_that_grows(empty: RunsFolder, tiny: Plan) -> None:
    """The limit on trials counts those that the search adds, too."""
    with pytest.raises(StudyError, match=r"budget.trials = 5: the search would come to 6 trials"):
        search(plan_search(tiny(seeds=1, budget={"trials": 5})), empty, RayExecutor(), RunOptions())
    assert count_attempts(empty) == 0
    assert read_json(empty.study("tiny" + SEARCH_SUFFIX).record) is None

    matrix = plan_search(tiny(seeds=1, budget={"trials": 7}))
    found = search(matrix, empty, RayExecutor(), RunOptions(), announce=by_hand(matrix, empty))
    assert found.unfinished.startswith("the search would come to ")
    assert len(found.progress.trials) == 6  # the window is kept, and shown
    assert not empty.study("tiny" + SEARCH_SUFFIX).located.exists()


def test_the_account_is_readable_without_gatelab(found: RunsFolder) -> None:
    """optuna.log is a file of lines of JSON, for whatever reads Optuna's journals."""
    lines = (found.study("tiny" + SEARCH_SUFFIX).path / "optuna.log").read_text(encoding="utf-8").splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    best = account(found)["position=none"].best_trial
    sweep = known(found)["position=none"]
    assert best.params["learning_rate"] == sweep.rates[np.argmin(sweep.mean)]
