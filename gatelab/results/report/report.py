"""The report of a study: what it asked, what came out, how sure that is, and where every number comes from.

Its sections are in `sections`, what these are made of in `context`; `page` makes an HTML page of it.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gatelab.results.analyses.comparison import DEFAULT_METRIC
from gatelab.results.report.context import Context, read_context
from gatelab.results.report.parts import Section, listed
from gatelab.results.report.sections import SECTIONS
from gatelab.results.report.stamp import Stamp, make_stamp
from gatelab.results.report.summary import summary
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.runs import STATUSES


@dataclass(frozen=True)
class Report:
    """The contents of a page."""

    study: str
    question: str
    answer: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    stamp: Stamp | None = None
    """Stamp of its comparison."""


def report(folder: RunsFolder, study: str, metric: str = DEFAULT_METRIC) -> Report:
    """Collect what there is to say of a study.

    Args:
        folder: where its trials are.
        study: its name.
        metric: by which variants are compared.

    Raises NotFound, and WrongRequest for an unknown metric.
    """
    context = read_context(folder, study, metric)
    runs, comparison = context.runs, context.comparison
    sections = (collect(context) for collect in SECTIONS)
    return Report(
        study=study,
        question=context.record.question,
        answer=tuple(summary(runs, comparison, context.claims, context.learning_rates, context.scaling)),
        facts=tuple(_facts(context)),
        sections=tuple(section for section in sections if section is not None),
        stamp=make_stamp(runs, "comparison", metric=metric, margin=comparison.margin),
    )


def _facts(context: Context) -> Iterator[tuple[str, str]]:
    """Yield the facts of the study: names and numbers."""
    runs, record = context.runs, context.record
    counts = Counter(runs["outcome"].to_pylist())
    yield "Trials", ", ".join(f"{counts[outcome]} {outcome}" for outcome in STATUSES if counts[outcome])
    yield "Variants", f"{len(record.variants)}"
    seeds = sorted(set(runs["seed"].to_pylist()))
    yield "Seeds", f"{len(seeds)} ({listed(map(str, seeds))})"
    yield "Parameters", _range(runs["parameters"].to_pylist())
    if tokens := [count for count in runs["tokens"].to_pylist() if count is not None]:
        yield "Tokens of each trial", _range(tokens)
    matched = record.match
    yield "Matched", matched if matched != "none" else "nothing"
    for axis in record.axes:
        levels = dict.fromkeys(one.levels[axis] for one in record.variants.values() if axis in one.levels)
        if levels:
            yield axis, listed(levels)


def _range(numbers: Collection[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
