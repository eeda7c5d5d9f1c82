"""The families that models are written as and read from."""

from collections.abc import Mapping
from typing import Any

from gatelab.interchange.authors import AUTHORS, SIGNS
from gatelab.interchange.laguna import LAGUNA
from gatelab.interchange.layout import CannotExchange, Family
from gatelab.interchange.own import OWN
from gatelab.interchange.qwen3 import QWEN3
from gatelab.interchange.qwen3_5 import QWEN3_5
from gatelab.models.config import ModelConfig

FAMILIES = {family.name: family for family in (QWEN3, QWEN3_5, LAGUNA, AUTHORS, OWN)}
STOCK = (QWEN3, QWEN3_5, LAGUNA)
"""Those that transformers loads without further code."""


def family_for(model: ModelConfig, wanted: str = "auto") -> Family:
    """Choose the family that a model is written as: the wanted one, or the first that transformers itself has.

    Raises CannotExchange where there is no such family, or it cannot hold the model.
    """
    if wanted == "auto":
        return next((family for family in STOCK if not family.refusal(model)), OWN)
    if wanted not in FAMILIES:
        raise CannotExchange(f"no family {wanted!r}: expected auto, {', '.join(FAMILIES)}")
    family = FAMILIES[wanted]
    if reason := family.refusal(model):
        raise CannotExchange(f"{wanted} cannot hold this model: {reason}; auto finds a family that can")
    return family


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json. Raises CannotExchange for one that gatelab does not read."""
    kind = config.get("model_type")
    if kind == "qwen3" and config.keys() & SIGNS:
        return AUTHORS
    known = {family.model_type: family for family in (*STOCK, OWN)}
    if not isinstance(kind, str) or kind not in known:
        raise CannotExchange(f"config.json: models of the type {kind!r} are not read, only {', '.join(known)}")
    return known[kind]
