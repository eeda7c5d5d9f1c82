"""gatelab plan: the matrix of a study, before anything runs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from gatelab.ablations.claims import Claim
from gatelab.ablations.ladder import ladder
from gatelab.ablations.matrix import Matrix
from gatelab.ablations.shared_prefix import forks
from gatelab.api.plan import plan_table
from gatelab.cli import arguments as args
from gatelab.cli.console import console, plural, print_json, print_table
from gatelab.cli.options import StudyFlags, with_groups
from gatelab.orchestrator.reasons import Reason, why_each_runs
from gatelab.orchestrator.study_manifest import trial_entry
from gatelab.results.analyses.analysis import to_jsonable
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.trials import is_over
from gatelab.results.views.format import duration
from gatelab.results.views.table import Column, Table

if TYPE_CHECKING:
    from gatelab.orchestrator.planning import Estimate
    from gatelab.orchestrator.power import ClaimPower

LISTED = 12  # lines of a list on the terminal; --json has all


@with_groups
def plan(
    *,
    study: args.StudyFile = None,
    flags: StudyFlags,
    runs: args.Runs = args.DEFAULT_RUNS,
    estimate: Annotated[bool, typer.Option(help="Estimate the time from a few real steps on this machine.")] = True,
    why: Annotated[bool, typer.Option("--why", help="Say of each trial why it will run, or will not.")] = False,
    json: args.Json = False,
) -> None:
    """Show what a study would run, without running it.

    Example: gatelab plan studies/gate-position.yaml
    Example: gatelab plan studies/gate-position.yaml --why
    """
    from gatelab.orchestrator import planning

    folder = RunsFolder(runs)
    reasons: dict[str, None] = {}  # why the rates that are shown are not those that will be
    matrix = planning.plan_study(flags.plan(study), planning.searched_or_given(folder, reasons))
    cost = planning.estimate(matrix, folder) if estimate else None
    waiting = [sum(not is_over(folder.trial(trial.id)) for trial in parent.trials) for parent in matrix.chain[:-1]]
    powers = _powers(matrix, folder)
    told = why_each_runs(matrix, folder) if why else []
    if json:
        claims = {"claims": to_jsonable([asdict(power) for power in powers])}
        because = {"why": {reason.trial.id: reason.text for reason in told}} if why else {}
        print_json({**_as_json(matrix, cost, waiting), **claims, **because})
        return
    if why:
        print_table(_why_table(told))
        return
    print_table(plan_table(matrix, None if cost is None else cost.seconds))
    console.print()
    for line in [*_summary(matrix, cost), *_continued(matrix, waiting)]:
        console.print(line)
    for power in powers:
        console.print(_claim(power, matrix.plan.study.claims[power.claim]))
    for reason in reasons:
        console.print(f"[yellow]learning rates are not known yet[/], and shown as given: {escape(reason)}")


def _why_table(told: list[Reason]) -> Table:
    rows = tuple(
        (reason.trial.variant, str(reason.trial.seed), "trains" if reason.runs else "–", reason.text) for reason in told
    )
    count = sum(reason.runs for reason in told)
    title = f"{plural(count, 'trial')} of {len(told)} would run"
    return Table(title, (Column("variant"), Column("seed", True), Column("when run"), Column("why")), rows)


def _powers(matrix: Matrix, folder: RunsFolder) -> "list[ClaimPower]":
    if not matrix.plan.study.claims:
        return []
    from gatelab.orchestrator.power import claim_powers  # loads the statistics of results

    return list(claim_powers(matrix, folder))


def _summary(matrix: Matrix, cost: "Estimate | None") -> list[str]:
    study = matrix.plan.study
    folded = sum(map(len, matrix.folded.values())) - len(matrix.folded)
    each = f"{plural(len(matrix.variants), 'variant')} x {plural(len(study.common_seeds), 'seed')}"
    more = len(matrix.trials) - len(matrix.variants) * len(study.common_seeds)
    if more > 0:
        each += f" + {more} of baselines, whose noise is in every difference"
    lines = [
        f"[bold]{plural(len(matrix.trials), 'trial')}[/] = {each}; {plural(matrix.combinations, 'combination')}, "
        f"{folded} folded as equal, {len(matrix.excluded)} excluded, {len(matrix.impossible)} impossible"
    ]
    scientific = [axis.name for axis in matrix.plan.axes if axis.name not in study.nuisance]
    for role, names in (("scientific", scientific), ("nuisance", study.nuisance), ("fixed", study.fixed)):
        if names:
            lines.append(f"{role}: {escape(', '.join(names))}")
    if study.learning_rate != "given":
        rule = "the optimum of a search" if study.learning_rate == "search" else str(study.learning_rate)
        rates = {variant.config.training.optimizer.learning_rate: None for variant in matrix.variants}
        lines.append(f"learning rate: {escape(rule)} ({', '.join(f'{rate:g}' for rate in rates)})")
    if rungs := ladder(matrix.plan):
        lines.append(f"ladder: {escape(', '.join(rungs))}")
    if shared := forks(matrix.trials):
        lines.append(f"{plural(len(shared), 'trial')} branch off from longer ones: their budgets share a trunk")
    if study.match != "none":
        lines.append(f"matched {study.match}: the feed-forward layer is sized for it")
    lists = [
        ("folded", [f"{label}: {' = '.join(members)}" for label, members in matrix.folded.items()]),
        ("excluded", [f"{label} ({rule})" for label, rule in matrix.excluded.items()]),
        ("impossible", [f"{label}: {reason}" for label, reason in matrix.impossible.items()]),
        ("note", list(matrix.notes)),
    ]
    for kind, entries in lists:
        lines += [f"[yellow]{kind}[/] {escape(entry)}" for entry in entries[:LISTED]]
        if len(entries) > LISTED:
            lines.append(f"[yellow]{kind}[/] … and {len(entries) - LISTED} more (--json lists all)")
    if cost is not None and cost.total_seconds is not None:
        lines.append(
            f"about [bold]{duration(cost.total_seconds)}[/] for the {plural(cost.remaining, 'trial')} still to run, "
            f"{cost.concurrency} at a time on {escape(cost.device)}"
        )
    elif cost is not None:
        lines.append(f"time not estimated: {escape(cost.reason)}")
    return lines


def _claim(power: "ClaimPower", claim: Claim) -> str:
    """Return one line: what a study can decide about a claim."""
    head = f"[bold]claim[/] {escape(power.claim)} ({escape(power.metric)}, {plural(power.seeds, 'pair')}): "
    if power.obstacle:
        return f"{head}[yellow]cannot be supported[/]: {power.obstacle}"
    what = "margin" if claim.direction == "equivalent" else "difference"
    if power.noise is None:
        return (
            f"{head}smallest detectable {what} {power.detectable:.2g} standard deviations of the differences (80 % "
            "power); their noise is not known yet: no study with this metric was run here"
        )
    parts = [f"smallest detectable {what} {power.detectable:.2g} (80 % power)"]
    if claim.direction == "equivalent":
        parts.append(f"power {power.power:.0%} at the margin of {claim.margin:g}, if there is no difference")
    elif claim.expected is None:
        parts.append("power: say which difference is expected (expected: …)")
    else:
        needed = f"; 80 % takes {power.seeds_needed or 'more than 1,000'} seeds" if power.power < 0.8 else ""
        parts.append(f"power {power.power:.0%} at the expected {claim.expected:g}{needed}")
    return f"{head}{'; '.join(parts)}; {escape(str(power.noise))}"


def _continued(matrix: Matrix, waiting: list[int]) -> list[str]:
    """Return a line for each study that runs before this one; `waiting` counts its trials that are still to run."""
    return [
        f"continues [bold]{escape(parent.plan.study.name)}[/]: {left} of its {plural(len(parent.trials), 'trial')} "
        "still to run, before this study's"
        for parent, left in zip(matrix.chain[:-1], waiting, strict=True)
    ]


def _as_json(matrix: Matrix, cost: "Estimate | None", waiting: list[int]) -> dict[str, Any]:
    return {
        "study": matrix.plan.study.name,
        "hash": matrix.plan.hash,
        "combinations": matrix.combinations,
        "variants": [
            {
                "label": variant.label,
                "levels": variant.levels,
                "baseline": variant.baseline,
                "parameters": variant.parameters,
                "added_parameters": variant.added_parameters,
                "flops_per_token": variant.flops_per_token,
                "memory_bytes": variant.memory,
                "ffn_size": variant.config.model.ffn_size,
                "steps": variant.config.training.steps,
                "seconds_per_trial": cost.seconds.get(variant.label) if cost else None,
            }
            for variant in matrix.variants
        ],
        "trials": [trial_entry(trial) for trial in matrix.trials],
        "continues": [
            {"study": parent.plan.study.name, "trials": len(parent.trials), "remaining_trials": left}
            for parent, left in zip(matrix.chain[:-1], waiting, strict=True)
        ],
        "folded": {label: list(members) for label, members in matrix.folded.items()},
        "excluded": matrix.excluded,
        "impossible": matrix.impossible,
        "notes": list(matrix.notes),
        "estimate": None
        if cost is None
        else {
            "device": cost.device,
            "concurrency": cost.concurrency,
            "remaining_trials": cost.remaining,
            "seconds": cost.total_seconds,
            "device_hours": cost.device_hours,
            "reason": cost.reason,
        },
    }
