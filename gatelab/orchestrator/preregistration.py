"""Preregistration: claims are written down when a study is launched, and whenever they have changed since."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gatelab.ablations.matrix import Matrix, claimed_of
from gatelab.results.store.layout import RunsFolder
from gatelab.results.store.preregistration import chain_hash, read_entries
from gatelab.results.store.records import write_json
from gatelab.results.store.trials import is_over


def register_claims(folder: RunsFolder, matrix: Matrix) -> None:
    """Write down a study's claims and the trials on which each is judged, if either is new or has changed.

    Raises RegisterChanged where earlier entries are not as they were written.
    """
    path = folder.study(matrix.plan.study.name).claims
    entries = read_entries(path)
    claims = _claims(matrix)
    before: dict[str, Any] = entries[-1] if entries else {"claims": {}, "hash": ""}
    changes = claim_changes(before["claims"], claims)
    if not changes:
        return
    entry: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": sum(is_over(folder.trial(trial.id)) for trial in matrix.trials),
        "trials": len(matrix.trials),
        "changes": changes,
        "claims": claims,
    }
    write_json(path, {"entries": [*entries, {**entry, "hash": chain_hash(entry, before["hash"])}]})


def _claims(matrix: Matrix) -> dict[str, Any]:
    """Return each claim as it was written, with the seeds of the variants it is judged on, their baselines included."""
    claims = {}
    for name, claim in matrix.plan.study.claims.items():
        variants = claimed_of(matrix, claim)
        judged = {*variants, *(matrix.variant(label).baseline for label in variants)}
        seeds: dict[str, list[int]] = {}
        for trial in matrix.trials:
            if trial.variant in judged:
                seeds.setdefault(trial.variant, []).append(trial.seed)
        claims[name] = {**claim.model_dump(mode="json"), "judged_on": seeds}
    return claims


def claim_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Map each claim that has changed to what has changed in it, for people."""
    changes = {}
    for name in dict.fromkeys([*before, *now]):
        if name not in now:
            changes[name] = "withdrawn"
        elif name not in before:
            changes[name] = "new"
        else:
            fields = [field for field, value in now[name].items() if before[name].get(field) != value]
            if fields:
                changes[name] = ", ".join(_change(field, before[name].get(field), now[name][field]) for field in fields)
    return changes


def _change(field: str, before: Any, now: Any) -> str:
    if field != "judged_on":
        return f"{field} {before} -> {now}"
    counts = [sum(map(len, (seeds or {}).values())) for seeds in (before, now)]
    return f"judged on {counts[0]} -> {counts[1]} trials" if counts[0] != counts[1] else "judged on other trials"
