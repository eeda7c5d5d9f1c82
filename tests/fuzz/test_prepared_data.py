"""A short run over damaged data; the long one is `python -m tests.fuzz.prepared_data`."""

from collections import Counter

from tests.fuzz.prepared_data import check, digest_of, mutated, prepared


def test_damaged_data_are_refused_in_a_sentence_or_read_as_they_were() -> None:
    """No damage becomes another error than gatelab's own, or other tokens under checksums."""
    assert len({digest_of(index) for index in range(len(prepared()))}) == 2
    cases = [mutated(seed) for seed in range(150)]
    became = Counter(f"{case.kind} {check(case)}" for case in cases)
    assert became["prepared refused"] > 30
    assert became["corpus read"] > 5
    assert became["tokenizer refused"] > 10
