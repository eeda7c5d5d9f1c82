"""What trained models do beyond their training: loss at other lengths and under another RoPE, retrieval, tasks."""

import re

import pyarrow as pa

from gatelab.errors import AnalysisUnavailable
from gatelab.results.analyses.comparison import Comparisons, compare
from gatelab.results.store.runs import metrics_of
from gatelab.results.store.trials import EvaluationResults

COMPARED = re.compile(r"length/\d+/[^/]+/(loss|loss/.+)|retrieval/.+/(accuracy|gain)|tasks/.+")


UNCOMPARED = re.compile(r"tasks/.+(_stderr(:.+)?|/samples|/cut)")


AMOUNTS = {"length": "tokens", "retrieval": "examples", "tasks": "documents of each task"}
"""Kind of a question -> what its amount counts."""


def evaluation(runs: pa.Table, answers: EvaluationResults) -> Comparisons:
    """Compare a study by each thing that was asked of its trained models. Raises AnalysisUnavailable."""
    names = [name for name in metrics_of(runs) if COMPARED.fullmatch(name) and not UNCOMPARED.fullmatch(name)]
    if not names:
        raise AnalysisUnavailable("nothing was asked of this study's models yet: gatelab evaluate")
    return Comparisons(tuple(compare(runs, name) for name in names), tuple(evaluation_notes(answers)))


def evaluation_notes(found: EvaluationResults) -> list[str]:
    """Say how much was asked for the metrics that count, and where trials' answers differ."""
    amounts: dict[str, set[str]] = {}
    origins: dict[str, set[str]] = {"code": set(), "device": set()}
    for each in found.values():
        newest = {name: answer for answer in each for name in answer.metrics}
        for answer in newest.values():
            kind, amount = answer.question.kind, answer.question.amount
            amounts.setdefault(kind, set()).add(f"{amount:,} {AMOUNTS[kind]}" if amount else "all documents")
            for name, values in origins.items():
                values.add(answer.provenance[name])
    notes = [f"{kind}: {' or '.join(sorted(values))}." for kind, values in sorted(amounts.items())]
    mixed = [kind for kind, values in amounts.items() if len(values) > 1]
    mixed += [name for name, values in origins.items() if len(values) > 1]
    if mixed:
        notes.append(f"Answers differ in {', '.join(sorted(mixed))}: ask all trials again with one setting.")
    return notes
