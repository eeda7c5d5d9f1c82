"""Does a study survive that its processes are killed? Real kills of several studies, and one certificate of them all.

    python benchmarks/chaos.py [--kills 3] [--seeds 1] [--long] [--output chaos]

Run it from the top of the repository, whose docs the studies of benchmarks/chaos/ train on. It calls `gatelab chaos`
for each of them and each seed, and after each of these brings certificate.json and certificate.md up to date. What is
certified in the folder already is not done again. docs/reliability.md says what the words mean.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STUDIES = Path(__file__).parent / "chaos"


@dataclass(frozen=True)
class Case:
    """A study, and how it is disturbed."""

    study: str
    commands: tuple[str, ...] = ("run",)
    options: tuple[str, ...] = ()


RUN_EVALUATE = ("run", "evaluate")
SEARCH_RUN = ("lr-tolerance", "run")
SERVER, SMALL_DISK = ("--mlflow",), ("--disk", "64M")

SHORT = (
    Case("search", SEARCH_RUN),
    Case("divergence"),
    Case("budgets"),
    Case("continued", RUN_EVALUATE),
    Case("claims"),
)
LONG = (
    Case("positions", RUN_EVALUATE),
    Case("search", SEARCH_RUN),
    Case("divergence"),
    Case("budgets"),
    Case("continued", RUN_EVALUATE),
    Case("claims", options=SERVER),
    Case("spikes", options=SMALL_DISK),
    Case("norms"),
    Case("granularity"),
    Case("gates", RUN_EVALUATE),
    Case("tokenizers"),
    Case("mixtures", RUN_EVALUATE),
    Case("precision"),
    Case("ladder", ("scaling",)),
    Case("many"),
    Case("long", options=SMALL_DISK),
    Case("failing", ("run --keep-going",)),
    Case("measured", ("run --system-metrics",), SERVER),
    Case("blowup"),
    Case("chain"),
    Case("context", RUN_EVALUATE),
    Case("nuisance"),
    Case("seeds"),
    Case("evaluations"),
    Case("edges", SEARCH_RUN, SERVER),
)


def certify(case: Case, seed: int, arguments: argparse.Namespace) -> Path | None:
    """Return the certificate of a case; None if it could not be disturbed."""
    folder = arguments.output / f"{case.study}-seed-{seed}"
    path = folder / "certificate.json"
    if path.exists() and is_complete(read(path)):
        return path
    command = [sys.executable, "-m", "gatelab", "chaos", str(STUDIES / f"{case.study}.yaml"), "-o", str(folder)]
    command += ["--kills", str(arguments.kills), "--seed", str(seed), "--gap", str(arguments.gap)]
    command += [word for name in case.commands for word in ("--command", name)]
    command += ["--checkpoint-seconds", "0.3", *case.options]
    path.unlink(missing_ok=True)
    subprocess.run(command)
    return path if path.exists() else None


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def is_complete(certificate: dict[str, Any]) -> bool:
    return bool(certificate["rounds"]) and (sum(certificate["kills"].values()) >= certificate["wanted"])


def merge(certificates: list[dict[str, Any]], refused: list[str]) -> dict[str, Any]:
    """Sum certificates up."""
    kills, others, moments = (Counter[str]() for _ in range(3))
    for one in certificates:
        kills.update(one["kills"])
        others.update(one["others"])
        for each in one["rounds"]:
            moments.update(each["moments"])
    return {
        "certificates": len(certificates),
        "kills": sum(kills.values()),
        "kills_by_kind": dict(kills.most_common()),
        "others": dict(others.most_common()),
        "moments": dict(moments.most_common()),
        "runs": sum(len(one["rounds"]) for one in certificates),
        "trials": sum(one["trials"] * len(one["rounds"]) for one in certificates),
        "starts": sum(each["starts"] for one in certificates for each in one["rounds"]),
        "seconds": round(sum(each["seconds"] for one in certificates for each in one["rounds"]), 1),
        "seconds_lost": round(sum(one["seconds_lost"] for one in certificates), 1),
        "begun": min(one["begun"] for one in certificates),
        "machines": sorted({", ".join(one["machine"].values()) for one in certificates}),
        "versions": sorted({", ".join(map(" ".join, one["versions"].items())) for one in certificates}),
        "violations": [
            f"{one['study']}, seed {one['seed']}: {each}" for one in certificates for each in one["violations"]
        ],
        "refused": refused,
        "holds": all(one["holds"] for one in certificates) and not refused,
        "studies": certificates,
    }


def markdown(merged: dict[str, Any]) -> str:
    """Return the short form, for people."""
    rows = [
        "| study | commands | trials | seed | kills | in writes | runs | lost | SHA-256 of the table of trials | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in merged["studies"]:
        total = sum(one["kills"].values())
        writes = total - sum(each["moments"].get("at any time", 0) for each in one["rounds"])
        server = ", tracking server" if one["options"]["server"] else ""
        disk = ", small disk" if one["options"]["small_disk"] else ""
        cells = (
            f"{one['study']} | {', '.join(one['commands'])}{server}{disk} | {one['trials']} | {one['seed']} | {total}"
        )
        cells += (
            f" | {writes} | {len(one['rounds'])} | {one['seconds_lost']:.0f} s | `{one['undisturbed']['trials'][:12]}`"
        )
        rows.append(f"| {cells} | {'holds' if one['holds'] else '**does not hold**'} |")
    counts = "; ".join(f"{count} × {name}" for name, count in (merged["kills_by_kind"] | merged["others"]).items())
    lines = [
        f"**{merged['kills']} kills** in {merged['runs']} runs of {merged['certificates']} studies and seeds, "
        f"{merged['trials']} trials; {merged['seconds']:.0f} s, of which {merged['seconds_lost']:.0f} s were lost.",
        f"{counts}.",
        f"{', '.join(f'{count} {name}' for name, count in merged['moments'].items())}.",
        *merged["machines"],
        *merged["versions"],
        f"Begun {merged['begun']}.",
        "Verdict: " + ("**holds**" if merged["holds"] else "**does not hold**"),
        *(f"* {each}" for each in [*merged["violations"], *merged["refused"]]),
    ]
    return "\n".join(rows) + "\n\n" + "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=3, help="of each study")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--long", action="store_true", help="with a tracking server and a small disk, too")
    parser.add_argument("--gap", type=float, default=2.0, help="mean seconds between two kills")
    parser.add_argument("--output", type=Path, default=Path("chaos"))
    arguments = parser.parse_args()
    found, refused = [], []
    merged: dict[str, Any] = {"holds": False}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for case in LONG if arguments.long else SHORT:
            path = certify(case, seed, arguments)
            if path is None:
                refused.append(f"{case.study}, seed {seed}: could not be run")
            else:
                found.append(read(path))
            if found:
                merged = merge(found, refused)
                (arguments.output / "certificate.json").write_text(json.dumps(merged, indent=1), encoding="utf-8")
                (arguments.output / "certificate.md").write_text(markdown(merged), encoding="utf-8")
    print(markdown(merged))
    sys.exit(0 if merged["holds"] else 1)


if __name__ == "__main__":
    main()
