"""Budgets that share a trunk: which trials may branch off, and where."""

from collections.abc import Callable

import pytest

from gatelab.ablations.matrix import Matrix
from gatelab.ablations.shared_prefix import forks
from gatelab.training.optimizer import learning_rate

Plan = Callable[..., Matrix]

LADDER = """
    base:
      training: {batch_size: 1, sequence_length: 10, log_every: 4, schedule: {kind: wsd, warmup: 5, decay: 0.25}}
    axes:
      model.gate.position: [none, sdpa]
      training.tokens: [400, 800, 1600]
    seeds: 2
    """


def test_shorter_budgets_leave_the_longest(plan: Plan) -> None:
    """Each of one variant and seed at the last look before its decay: 30 -> 28, 60 -> 60 of 40 and 80 steps."""
    matrix = plan(LADDER)
    found = forks(matrix.trials)
    by_id = {trial.id: trial for trial in matrix.trials}
    assert len(found) == 2 * 2 * 2
    for id, branch in found.items():
        short, trunk = by_id[id], by_id[branch.trunk]
        assert (short.seed, short.config.model) == (trunk.seed, trunk.config.model)
        assert trunk.config.training.tokens == 1600
        assert branch.step == {40: 28, 80: 60}[short.config.training.steps]


def test_branches_are_where_schedules_agree(plan: Plan) -> None:
    """Up to its branch a trial's learning rates are those of its trunk; soon after they are not."""
    matrix = plan(LADDER)
    by_id = {trial.id: trial.config.training for trial in matrix.trials}
    for id, branch in forks(matrix.trials).items():
        own, trunk = by_id[id], by_id[branch.trunk]
        assert [learning_rate(own, step) for step in range(branch.step)] == [
            learning_rate(trunk, step) for step in range(branch.step)
        ]
        assert learning_rate(own, own.steps - 1) < learning_rate(trunk, own.steps - 1)


@pytest.mark.parametrize(
    "schedule",
    [
        "{kind: cosine, warmup: 5}",
        "{kind: wsd, warmup: 0.1}",
        "{kind: wsd, warmup: 35, decay: 0.25}",
        "{kind: wsd, warmup: 5, decay: 1}",
    ],
)
def test_other_schedules_share_nothing(plan: Plan, schedule: str) -> None:
    """A cosine knows its end from the start, a fraction is another warm-up, and a decay that begins early ends it."""
    matrix = plan(
        LADDER.replace("{kind: wsd, warmup: 5, decay: 0.25}", schedule).replace("[400, 800, 1600]", "[400, 800]")
    )
    assert forks(matrix.trials) == {}


def test_the_plan_says_what_keeps_budgets_apart(plan: Plan) -> None:
    """A warm-up in steps would let budgets share a trunk: a fraction of one is pointed out, a number is not."""
    fraction = plan(LADDER.replace("warmup: 5", "warmup: 0.1"))
    assert [note for note in fraction.notes if "could share one trunk" in note]
    assert not [note for note in plan(LADDER).notes if "trunk" in note]
