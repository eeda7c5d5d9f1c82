"""What a study comes to: its variants, their trials, and what became of all other combinations of levels."""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from gatelab.ablations.claims import Claim
from gatelab.ablations.identity import canonical_variant
from gatelab.ablations.paths import level_label
from gatelab.ablations.study import StudyPlan
from gatelab.models.accounting import count_parameters, flops_per_token, training_memory
from gatelab.training.config import TrialConfig


@dataclass(frozen=True)
class Variant:
    """One combination of levels, seeds aside, with what it costs."""

    label: str
    levels: dict[str, str]
    """Axis -> label; an axis that makes no difference here is absent."""
    config: TrialConfig
    data_id: str
    """Identity of the data that it is trained on."""
    baseline: str | None = None
    """Label of the variant to compare with."""
    added_parameters: int | None = None
    """Over the baseline; None where there is no baseline."""
    parent: str | None = None
    """Label of the variant of the parent study whose trials it continues."""

    @cached_property
    def canonical(self) -> dict[str, Any]:
        """All that decides the results of its trials, seeds aside."""
        return canonical_variant(self.config, self.data_id)

    @cached_property
    def parameters(self) -> int:
        """Parameters of its model."""
        return count_parameters(self.config.model).total

    @cached_property
    def flops_per_token(self) -> int:
        """FLOPs to train on a token."""
        return flops_per_token(self.config.model, self.config.training.sequence_length)

    @cached_property
    def memory(self) -> int:
        """Bytes that its training takes, estimated."""
        training = self.config.training
        return training_memory(
            self.config.model, training.sequence_length, training.batch_size // training.accumulation
        )


@dataclass(frozen=True)
class Trial:
    """One variant at one seed: the unit of work."""

    id: str
    variant: str
    config: TrialConfig
    data_id: str
    """Identity of the data that it is trained on."""
    parent: str | None = None
    """Id of the trial of the parent study whose final weights it starts from; of imported weights, their SHA-256."""

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.seed


class Stage(StrEnum):
    """A stage of planning at which a combination can be dropped."""

    EXCLUDE = "exclude"
    """A rule of the study leaves it out."""
    CONFIGURE = "configure"
    """Its values do not go together."""
    PARENT = "attach parent"
    """The parent study has no trial that it could continue."""
    MATCH = "match"
    """No feed-forward width makes it as large as its baseline."""
    RATE = "set rate"
    """No search has found its learning rate."""


@dataclass(frozen=True)
class Dropped:
    """A combination, or a variant, that is not run."""

    label: str
    stage: Stage
    reason: str


@dataclass(frozen=True)
class Matrix:
    """All trials of a study, and what became of the other combinations."""

    plan: StudyPlan
    variants: tuple[Variant, ...]
    trials: tuple[Trial, ...]
    combinations: int
    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Variant -> labels of the equal combinations that it stands for, where there are several."""
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    variant_of: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Labels of a combination's levels, axis by axis -> variant."""
    parent: "Matrix | None" = None
    """The matrix of the study that this one continues."""

    @property
    def excluded(self) -> dict[str, str]:
        """Combination -> the rule that excludes it."""
        return {entry.label: entry.reason for entry in self.dropped if entry.stage is Stage.EXCLUDE}

    @property
    def impossible(self) -> dict[str, str]:
        """Combination or variant -> why there can be no such trial."""
        return {entry.label: entry.reason for entry in self.dropped if entry.stage is not Stage.EXCLUDE}

    @property
    def chain(self) -> "tuple[Matrix, ...]":
        """This matrix after those that it continues: the order in which they are run."""
        return (*(self.parent.chain if self.parent else ()), self)

    def variant(self, label: str) -> Variant:
        """Return the variant of a label."""
        return self._by_label[label]

    @cached_property
    def _by_label(self) -> dict[str, Variant]:
        return {variant.label: variant for variant in self.variants}


def claimed_of(matrix: Matrix, claim: Claim) -> list[str]:
    """List the variants that a claim is about: those that it names and that are compared with another."""
    compared = (variant for variant in matrix.variants if variant.baseline not in (None, variant.label))
    named = claimed_levels(matrix.plan, claim)
    return [
        variant.label
        for variant in compared
        if all(variant.levels.get(axis) in labels for axis, labels in named.items())
    ]


def claimed_levels(plan: StudyPlan, claim: Claim) -> dict[str, list[str]]:
    """Map each axis that a claim names to the labels of the levels that it is about."""
    return {
        axis: [plan.level(axis, level) or level_label(level) for level in claim.levels(axis)] for axis in claim.variant
    }
