"""Studies in a simulated world, where any moment may bring a kill, a power cut, a full disk or a second driver.

`python -m tests.simulation --histories 100000` plays more of them; a seed that is named there can be played alone.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gatelab.orchestrator import study_run
from tests.simulation.history import FAULTS, History, play, small_matrix
from tests.simulation.many import Tally, play_all, play_in_processes
from tests.simulation.world import Disk, World, inhabited

HISTORIES = 8_000


def test_whatever_happens_the_table_is_the_undisturbed_one() -> None:
    """No finished trial is trained again, no committed row is lost or doubled, every run ends or says why not."""
    total = Tally()
    for part in play_in_processes(range(HISTORIES), os.cpu_count() or 1):
        total.add(part)
    assert total.problems == {}
    assert total.histories == HISTORIES
    assert set(total.faults) == set(FAULTS)  # each kind was among them
    assert min(total.faults.values()) > HISTORIES / 20


def test_a_history_is_a_function_of_its_seed(tmp_path: Path) -> None:
    """What was found once can be found again: same seed, same faults at the same operations, same end."""
    for seed in (5, 17, 29, 1907):
        one, two = (play(seed, tmp_path) for _ in range(2))
        assert (one.happened, one.world.operations, one.world.now) == (
            two.happened,
            two.world.operations,
            two.world.now,
        )


def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk forget whatever it can."""
    monkeypatch.setattr(Disk, "fsync", lambda disk, descriptor: None)


def believing_only_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a driver wait for an answer that was lost, though the outcome is on disk."""
    monkeypatch.setattr(study_run._StudyRun, "_believe", lambda run, entry: None)


@pytest.mark.parametrize(
    ("break_it", "symptom"), [(without_fsync, "trained again"), (believing_only_messages, "has not ended")]
)
def test_what_is_broken_is_found(
    break_it: Callable[[pytest.MonkeyPatch], None], symptom: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The histories can tell: each protection, taken away, shows within a few hundred of them."""
    break_it(monkeypatch)
    for start in range(0, 1_000, 20):
        problems = play_all(range(start, start + 20), tmp_path).problems
        if any(symptom in problem for found in problems.values() for problem in found):
            return
    pytest.fail("nothing was found")


class Studies(RuleBasedStateMachine):
    """The same world, in which Hypothesis chooses what happens and makes a failing history short."""

    folder: Path

    @initialize(seed=st.integers(0, 2**32 - 1), locks=st.booleans())
    def begin(self, seed: int, locks: bool) -> None:
        """Make an empty world."""
        self.root = self.folder / f"world-{len(list(self.folder.iterdir()))}"
        self.root.mkdir()
        matrices = (small_matrix("one", ("none", "sdpa")), small_matrix("two", ("sdpa", "value")))
        self.history = History(seed, self.root, matrices, World(seed, self.root, locks=locks))
        self.contexts = [inhabited(self.history.world), self.history.patched()]
        for context in self.contexts:
            context.__enter__()

    @rule(study=st.integers(0, 1), machine=st.sampled_from(["one", "two"]))
    def start(self, study: int, machine: str) -> None:
        """A user runs a study."""
        self.history.start_driver(self.history.matrices[study], machine)

    @precondition(lambda self: hasattr(self, "history") and self.history.world.living())
    @rule(fault=st.sampled_from(FAULTS))
    def fault(self, fault: str) -> None:
        """Something goes wrong."""
        self.history.happen(fault)

    @rule(operations=st.integers(1, 60))
    def go_on(self, operations: int) -> None:
        """The world goes on for a while."""
        world = self.history.world
        until = world.operations + operations
        world.run(lambda: world.operations >= until, 20.0)

    @invariant()
    def nothing_is_trained_again(self) -> None:
        """A finished trial is never trained again."""
        if hasattr(self, "history"):
            assert self.history.rerun == []

    def teardown(self) -> None:
        """Run everything once more in peace, and compare with what is known."""
        if hasattr(self, "history"):
            self.history.finish()
            for context in reversed(self.contexts):
                context.__exit__(None, None, None)
            assert self.history.problems == []


def test_hypothesis_finds_no_history_that_ends_otherwise(tmp_path: Path) -> None:
    """Nor does a search that knows how to make its examples short."""
    machine = type("StudiesHere", (Studies,), {"folder": tmp_path})
    chosen = settings(
        max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine, settings=chosen)
