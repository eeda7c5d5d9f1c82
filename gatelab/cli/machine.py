"""gatelab presets, data, doctor: bases and studies, data, and this machine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from gatelab.ablations.flags import study_from_flags
from gatelab.cli import arguments as args
from gatelab.cli.console import console, fail, print_json, print_table
from gatelab.results.store.layout import RunsFolder
from gatelab.results.views.format import DASH
from gatelab.results.views.table import Column, Table

if TYPE_CHECKING:
    from gatelab.training.manifest import Manifest


def presets(
    name: Annotated[str | None, typer.Argument(help="Print the YAML of this one.", show_default=False)] = None,
    json: args.Json = False,
) -> None:
    """List the bases and studies that come with gatelab, or print one.

    Example: gatelab presets quickstart
    """
    import yaml

    from gatelab.ablations.errors import nearest
    from gatelab.ablations.loading import load_study
    from gatelab.ablations.presets import bases, study_files

    known, studies = bases(), study_files()
    if name is not None:
        if name in studies:
            console.print(escape(studies[name].read_text(encoding="utf-8")), end="")
        elif name in known:
            console.print(escape(yaml.safe_dump(known[name].tree, sort_keys=False)), end="")
        else:
            fail(f"no preset {name!r}; {nearest(name, [*known, *studies])}")
        return
    rows = [(base.name, "base", base.description) for base in known.values()]
    rows += [(key, "study", load_study(path).study.question) for key, path in studies.items()]
    if json:
        print_json([dict(zip(("name", "kind", "description"), row, strict=True)) for row in rows])
        return
    columns = (Column("name"), Column("kind"), Column("what it is"))
    note = "a study runs as it is (gatelab run --preset NAME); a base is what axes vary (--preset NAME --axis …)"
    print_table(Table("presets", columns, tuple(rows), notes=(note,)))


def data(
    study: args.StudyFile = None,
    preset: args.Preset = None,
    set_: args.Sets = [],
    runs: args.Runs = args.DEFAULT_RUNS,
    json: args.Json = False,
) -> None:
    """Prepare the data that a study trains on, and report their sources and what was skipped.

    Example: gatelab data studies/quickstart.yaml
    """
    from dataclasses import asdict

    from gatelab.orchestrator import planning

    plan = study_from_flags(study, preset=preset, sets=set_)
    manifests = planning.prepare_study(plan, RunsFolder(runs))
    if json:
        print_json([asdict(manifest) for manifest in manifests])
        return
    for manifest in manifests:
        numbers = ("documents", "bytes", "tokens", "lost bytes")
        columns = (Column("part"), *(Column(name, numeric=True) for name in numbers))
        domains = {f"validation, {name}": counts for name, counts in manifest.domains.items()}
        parts = {"train": manifest.train, "validation": manifest.validation, **domains}
        rows = tuple(
            (
                name,
                f"{p.documents:,}",
                f"{p.bytes:,}",
                f"{p.tokens:,}",
                DASH if p.lost_bytes is None else f"{p.lost_bytes:,}",
            )
            for name, p in parts.items()
        )
        title = f"{manifest.source}, tokenizer {manifest.tokenizer} ({manifest.vocab_size} tokens)"
        notes = (
            f"data {manifest.identity}",
            f"source {manifest.source_digest}",
            *_tokenizer_notes(manifest),
            *(f"skipped {entry.name}: {entry.reason}" for entry in manifest.skipped[:20]),
            *([f"… and {len(manifest.skipped) - 20} more skipped"] if len(manifest.skipped) > 20 else []),
        )
        print_table(Table(title, columns, rows, notes=notes))
        console.print(f"[dim]in {escape(str(RunsFolder(runs).data / manifest.identity))}[/]")


def _count(number: int | None) -> str:
    return DASH if number is None else f"{number:,}"


def _tokenizer_notes(manifest: "Manifest") -> Iterator[str]:
    """Say what should be known of a tokenizer before a model is trained on its tokens."""
    counts, kind = manifest.validation, manifest.tokenizer
    if counts.lost_bytes is None:
        yield f"{DASH}: an older version prepared the data and did not count what its tokens cannot give back"
    elif counts.lost_bytes or manifest.train.lost_bytes:
        yield (
            f"the tokenizer loses {100 * counts.lost_share:.2g} % of the validation text: tokens do not give it "
            "back, and bits per byte do not compare with those of another tokenizer"
        )
    if kind.startswith("bpe:") and manifest.vocab_size < (asked := int(kind.removeprefix("bpe:"))):
        yield (
            f"{kind}: the text is enough for {manifest.vocab_size:,} tokens only; models have {asked:,}, of which the "
            "others are never seen"
        )


def doctor(runs: args.Runs = args.DEFAULT_RUNS, json: args.Json = False) -> None:
    """Report what this machine supports: devices, attention backends, versions, disk.

    Example: gatelab doctor
    """
    from gatelab.orchestrator.machine import describe_machine

    findings = describe_machine(runs)
    if json:
        print_json(findings)
        return
    for section, entries in findings.items():
        console.print(f"[bold]{section}[/]")
        for key, value in entries.items():
            console.print(f"  {key:<28} {escape(str(value))}")
