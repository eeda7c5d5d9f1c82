"""The study file that `gatelab init` writes."""

import json
from importlib import resources

import yaml

from gatelab.ablations.loading import make_study
from gatelab.ablations.yaml_source import parse_scalar


def study_template(name: str) -> str:
    """Return the text of a commented study file to start from. Raises StudyError if `name` cannot name a study."""
    text = resources.files("gatelab.ablations").joinpath("template.yaml").read_text(encoding="utf-8")
    make_study({**yaml.safe_load(text), "name": name}, "gatelab init", None)
    as_text = name if parse_scalar(name) == name else json.dumps(name)  # 1e5 would be read as a number
    return text.replace("name: NAME\n", f"name: {as_text}\n", 1)
