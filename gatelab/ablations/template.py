"""The study file that `gatelab init` writes."""

from importlib import resources

import yaml

from gatelab.ablations.loading import make_study


def study_template(name: str) -> str:
    """Return the text of a commented study file to start from. Raises StudyError if `name` cannot name a study."""
    text = resources.files("gatelab.ablations").joinpath("template.yaml").read_text(encoding="utf-8")
    make_study({**yaml.safe_load(text), "name": name}, "gatelab init", None)
    return text.replace("name: NAME\n", yaml.safe_dump({"name": name}), 1)
