"""The plan of a study, as an object and as a table."""

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gatelab.ablations.study import StudyPlan
from gatelab.results.store.layout import RunsFolder
from gatelab.results.views.format import DASH, duration, level, quantity
from gatelab.results.views.table import Column, Table, to_html, to_markdown

if TYPE_CHECKING:
    from gatelab.ablations.matrix import Matrix, Trial, Variant


class Plan:
    """The plan of a study. In a notebook it shows itself as a table."""

    def __init__(self, matrix: "Matrix", notes: tuple[str, ...] = ()) -> None:
        self.matrix, self._notes = matrix, notes

    @classmethod
    def make(cls, plan: StudyPlan, folder: RunsFolder) -> "Plan":
        """Plan a study; `folder` knows what searches of learning rates found. Raises StudyError."""
        from gatelab.orchestrator import planning

        reasons: dict[str, None] = {}
        matrix = planning.plan_study(plan, planning.searched_or_given(folder, reasons))
        return cls(matrix, tuple(f"learning rates are not known yet: {reason}" for reason in reasons))

    @property
    def variants(self) -> "tuple[Variant, ...]":
        """Its variants: levels, configuration, parameters, FLOPs per token, memory in bytes."""
        return self.matrix.variants

    @property
    def trials(self) -> "tuple[Trial, ...]":
        """Its trials: one for each variant and seed, with their ids."""
        return self.matrix.trials

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that a careful reader would make."""
        return (*self.matrix.notes, *self._notes)

    def frame(self) -> pa.Table:
        """Return a row for each variant."""
        return pa.Table.from_pylist(
            [
                {
                    "variant": variant.label,
                    **variant.levels,
                    "baseline": variant.baseline,
                    "parameters": variant.parameters,
                    "added_parameters": variant.added_parameters,
                    "flops_per_token": variant.flops_per_token,
                    "memory_bytes": variant.memory,
                    "steps": variant.config.training.steps,
                    "learning_rate": variant.config.training.optimizer.learning_rate,
                }
                for variant in self.variants
            ]
        )

    def to_pandas(self) -> Any:
        """Return a row for each variant, as a pandas DataFrame."""
        return self.frame().to_pandas()

    @property
    def table(self) -> Table:
        """The variants, for people."""
        return plan_table(self.matrix)

    def _summary(self) -> list[str]:
        dropped = [f"{each.label}: {each.reason}" for each in self.matrix.dropped]
        return [f"{len(self.trials)} trials of {len(self.variants)} variants", *dropped, *self.notes]

    def __repr__(self) -> str:
        return "\n".join([to_markdown(self.table), *self._summary()])

    def _repr_html_(self) -> str:
        return to_html(self.table) + "".join(f"<p>{html.escape(line)}</p>" for line in self._summary())


def plan_table(matrix: "Matrix", seconds: Mapping[str, float] | None = None) -> Table:
    """Return the variants of a plan, for people; `seconds` are estimates for a trial of each variant."""
    axes = [axis.name for axis in matrix.plan.axes]
    columns = [Column(name) for name in matrix.plan.short_names.values()] or [Column("variant")]
    columns += [
        Column(heading, numeric=True)
        for heading in ("parameters", "added", "FLOPs/token", "memory", "tokens", "time/trial")
    ]
    rows = []
    for variant in matrix.variants:
        added, training = variant.added_parameters, variant.config.training
        rows.append(
            (
                *([level(variant.levels.get(axis)) for axis in axes] or [variant.label]),
                f"{variant.parameters:,}",
                DASH if added is None else f"{added:+,}" if added else "0",
                quantity(variant.flops_per_token),
                quantity(variant.memory, "B"),
                quantity(training.steps * training.tokens_per_step),
                duration((seconds or {}).get(variant.label)),
            )
        )
    baselines = {variant.baseline for variant in matrix.variants}
    count = len(matrix.variants)
    return Table(
        f"{matrix.plan.study.name}: {count} variant{'' if count == 1 else 's'}",
        tuple(columns),
        tuple(rows),
        tuple(variant.label in baselines for variant in matrix.variants),
        ("bold: baseline; – in an axis: it makes no difference to this variant",),
    )
