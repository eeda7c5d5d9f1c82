"""A short run of the fuzzing of runs folders; `python -m tests.fuzz.store` is the long one."""

from tests.fuzz.store import KINDS, run_apart


def test_no_damage_is_another_value_or_a_crash() -> None:
    """Of journals, checkpoints, records, exports and exchanged files: the same values, or what is not is named."""
    found, failures = run_apart(0, 120)
    assert failures == []
    assert sum(found.values()) == 120
    assert {name.partition(":")[0] for name in found} == set(KINDS)
