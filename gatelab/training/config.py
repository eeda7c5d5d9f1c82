"""What one trial is: its model, its training, its data, its evaluation, its seed. No torch here."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gatelab.configuration import Config, Count, assign_frozen, reject_combination
from gatelab.models.config import ModelConfig
from gatelab.training.vocabulary import parse_tokenizer, vocab_size

UNREADABLE_TOKENIZER = "unreadable_tokenizer"
"""Type of the error for a tokenizer whose file cannot be read."""


class DataConfig(Config):
    """The text that a trial trains and is evaluated on."""

    source: str = "stdlib"
    """stdlib (the source text of Python's standard library), a text, .jsonl or .parquet file, a folder of such
    files, or hf:NAME for a Hugging Face dataset (hf:NAME:CONFIGURATION)."""
    split: str = "train"
    """Which split of a Hugging Face dataset."""
    text_field: str = "text"
    """Which field of a JSONL, Parquet or Hugging Face record holds the text."""
    domain_field: str | None = None
    """Which field of a record names its domain (code, prose, …). A file's domain is the first folder on its path
    within the source, whatever this says."""
    tokenizer: Annotated[str, BeforeValidator(parse_tokenizer)] = "bytes"
    """bytes, bpe:N (trained on the corpus's training part), or the path of a tokenizer.json."""
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the text, by bytes, that is held out: whole documents, chosen by a hash."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, with the document separator. Raises ValueError if a file cannot be read."""
        return vocab_size(self.tokenizer)


class OptimizerConfig(Config):
    """AdamW with decoupled weight decay, on matrices only: norms, biases and constants are not decayed."""

    learning_rate: float = Field(3e-3, gt=0)
    """Peak of the schedule."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """Each step shrinks the weights by learning rate x weight_decay."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm; null: never."""


class ScheduleConfig(Config):
    """Learning rate over training, relative to its peak: linear warm-up, then the named shape."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine to `final`; wsd: constant, then linear to `final` over `decay`; constant."""
    warmup: float = Field(0.05, ge=0)
    """Below 1: a fraction of all steps; from 1 on: a number of steps."""
    final: float = Field(0.1, ge=0, le=1)
    """Last learning rate, as a fraction of the peak."""
    decay: float = Field(0.2, gt=0, le=1)
    """Fraction of all steps over which wsd decays; it means nothing to the others."""

    @model_validator(mode="after")
    def _reset_inactive_fields(self) -> "ScheduleConfig":
        if self.kind != "wsd":
            assign_frozen(self, decay=0.2)
        if self.kind == "constant":
            assign_frozen(self, final=1.0)
        return self


class TrainingConfig(Config):
    """How long, in what portions and by what rule a model trains."""

    tokens: Count = Field(2_000_000, ge=1)
    """Training budget; rounded up to whole steps."""
    sequence_length: Count = Field(128, ge=2)
    batch_size: Count = Field(16, ge=1)
    """Sequences per optimiser step."""
    accumulation: int = Field(1, ge=1)
    """Parts in which a batch is processed, to save memory."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 products where the device has fast ones (CUDA from compute capability 8.0), float32 elsewhere.
    Weights and optimiser state are float32 always."""
    log_every: int = Field(10, ge=1)
    """Steps between two logs of the metrics; each records every step since the last."""
    loss_bound: float = Field(3.0, gt=1)
    """A trial has diverged when its loss is not finite, or its mean over `log_every` steps exceeds this multiple of
    the loss of uniform guessing, ln(vocabulary)."""

    @model_validator(mode="after")
    def _check_combination(self) -> "TrainingConfig":
        if self.batch_size % self.accumulation:
            reject_combination(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation})"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees."""
        return self.batch_size * self.sequence_length

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return math.ceil(self.tokens / self.tokens_per_step)

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        warmup = self.schedule.warmup
        return round(warmup * self.steps if warmup < 1 else warmup)

    @property
    def decay_start(self) -> int:
        """Steps before the decay of wsd."""
        return self.steps - round(self.schedule.decay * self.steps)


class EvaluationConfig(Config):
    """Evaluation on held-out text."""

    tokens: Count = Field(65_536, ge=1)
    """Tokens to evaluate on: evenly spaced windows of the validation part; all of it if it has fewer."""
    points: int = Field(10, ge=1)
    """Evaluations during training, evenly spaced; the last one after the last step."""
    diagnostic_tokens: Count = Field(2048, ge=0)
    """Held-out tokens on which attention, activations and gates are measured at each evaluation, in whole sequences
    (at least one); 0: never."""


class TrialConfig(Config):
    """One trial: everything that decides its result, and nothing else."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = Field(0, ge=0, le=2**63 - 1)

    @classmethod
    def read_recorded(cls, content: Any) -> Self:
        """Read the configuration that a trial was recorded with: its tokenizer's file need not be there any more.

        Raises ValidationError.
        """
        return cls.model_validate(content, context=_RECORDED)

    @model_validator(mode="after")
    def _take_vocabulary_from_tokenizer(self, info: ValidationInfo) -> "TrialConfig":
        given = self.model.vocab_size
        if given is not None and info.context is _RECORDED:
            return self
        try:
            needed = self.data.vocab_size
        except ValueError as error:
            place = InitErrorDetails(
                type=PydanticCustomError(UNREADABLE_TOKENIZER, "{reason}", {"reason": str(error)}),
                loc=("data", "tokenizer"),
                input=self.data.tokenizer,
            )
            raise ValidationError.from_exception_data("TrialConfig", [place]) from error
        if given is None:
            assign_frozen(self, model=self.model.model_copy(update={"vocab_size": needed}))
        elif given < needed:
            reject_combination(f"model.vocab_size ({given}) is smaller than the tokenizer's ({needed})")
        return self


_RECORDED = {"recorded": True}
"""Context of a configuration that is read from a trial's own record."""
