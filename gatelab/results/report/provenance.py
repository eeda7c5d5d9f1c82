"""The origin of a study's numbers: code, data, machines, configuration, commands."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from gatelab.names import SEARCH_SUFFIX
from gatelab.results.report.context import Context
from gatelab.results.report.parts import Listing, Section, listed
from gatelab.results.store.trials import PROVENANCE
from gatelab.results.views.table import Column, Table


def provenance_section(context: Context) -> Section:
    """Show where the numbers come from, and how to get them again."""
    record, runs = context.record, context.runs
    facts = [("Study", context.study), ("Study hash", str(record.hash))]
    if record.continues:
        facts.append(("Continues", str(record.continues)))
    facts.append(("Data hash", listed(_known(runs, "data")) or "–"))
    facts.append(("Learning rates", str(record.learning_rate)))
    attempts = [len(description.attempts) for description in context.descriptions.values()]
    begun = [one.attempts[0].started for one in context.descriptions.values() if one.attempts]
    if begun:
        facts.append(("First trial began", _date(min(begun))))
    if context.ended is not None:
        facts.append(("Last trial ended", _date(context.ended)))
    if seconds := [value for value in runs["train/seconds"].to_pylist() if value is not None]:
        facts.append(("Time in training", _hours(sum(seconds))))
    if resumed := sum(count > 1 for count in attempts):
        facts.append(("Trials that took several attempts", f"{resumed} of {len(attempts)}"))
    files = study_files(context)
    listings = [
        Listing("How to reproduce it", "\n".join(_commands(context, files))),
        *(Listing(name, text.rstrip(), folded=True) for name, text in files.items()),
    ]
    common, varying = common_configuration([one.config for one in context.descriptions.values()])
    prose = []
    if common:
        text = yaml.safe_dump(common, sort_keys=False).rstrip()
        listings.append(Listing("Configuration that all trials share", text, folded=True))
        others = [path for path in varying if path != "seed"]
        if others:
            prose.append(f"Trials differ in {', '.join(f'`{path}`' for path in others)} and in their seeds.")
    return Section(
        "provenance",
        "Provenance",
        prose=tuple(prose),
        facts=tuple(facts),
        tables=(_environments(context),),
        listings=tuple(listings),
    )


def _known(runs: pa.Table, column: str) -> list[str]:
    return sorted(value for value in pc.unique(runs[column]).to_pylist() if value is not None)


def _environments(context: Context) -> Table:
    """Return a row for each combination of code and machine that ran trials."""
    shown = [name for name in PROVENANCE if name not in ("data", "host")]
    kinds: dict[tuple[str, ...], list[str]] = {}
    for trial in context.runs.select(list(PROVENANCE)).to_pylist():
        if any(trial[name] for name in shown):
            kinds.setdefault(tuple(trial[name] or "–" for name in shown), []).append(trial["host"] or "–")
    rows = tuple((str(len(hosts)), *kind, listed(sorted(set(hosts)), 4)) for kind, hosts in kinds.items())
    columns = (Column("trials", numeric=True), *(Column(name) for name in (*shown, "hosts")))
    return Table("What the trials were carried out with", columns, rows)


def common_configuration(configs: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Split configurations: what they have in common, as one, and the dotted paths of what differs."""
    flat = [dict(_leaves(config)) for config in configs]
    paths = list(dict.fromkeys(path for one in flat for path in one))
    values = {path: {json.dumps(one.get(path), sort_keys=True) for one in flat} for path in paths}
    common: dict[str, Any] = {}
    for path in paths:
        if len(values[path]) == 1:
            *rooms, leaf = path.split(".")
            place = common
            for room in rooms:
                place = place.setdefault(room, {})
            place[leaf] = flat[0][path]
    return common, [path for path in paths if len(values[path]) > 1]


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def study_files(context: Context) -> dict[str, str]:
    """Return the study as it was asked, flags included: name of a file -> its text, and those that it continues.

    Empty for a study that was run by a version that did not keep it.
    """
    study = context.folder.study(context.study)
    path, files = study.file, {}
    name = f"{context.study.removesuffix(SEARCH_SUFFIX)}.yaml"
    while path.is_file() and name not in files:
        files[name] = path.read_text(encoding="utf-8")
        name = str(yaml.safe_load(files[name]).get("continues"))
        path = study.path / name
    return files


def _commands(context: Context, files: Mapping[str, str]) -> Iterator[str]:
    """Yield the commands that run the study again, from its files in the folder where it was run first."""
    name = context.study
    commits = sorted({commit for each in _known(context.runs, "commit") for commit in each.split(" then ")} - {""})
    if len(commits) == 1:
        changed = "; it had changes that were not committed" if commits[0].endswith("+") else ""
        yield f"git checkout {commits[0].removesuffix('+')}   # gatelab's sources{changed}"
    torch = sorted({version for each in _known(context.runs, "torch") for version in each.split(" then ")})
    if len(torch) == 1:
        yield f"pip install -c constraints.txt -e . torch=={torch[0].partition('+')[0]}"
    searched = name.removesuffix(SEARCH_SUFFIX)
    said = f"the file{'s' if len(files) > 1 else ''} below" if files else "its file, which was not kept when it was run"
    if context.record.learning_rate == "search":
        yield f"gatelab lr-tolerance {searched}.yaml"
    yield f"gatelab {'run' if name == searched else 'lr-tolerance'} {searched}.yaml   # {said}"
    if context.scaling is not None:
        yield f"gatelab scaling {name}"
    yield f"gatelab report {name}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{seconds / 3600:,.1f} h"
