"""The JSON Schema of study files, for editors: `python -m gatelab.ablations.schema`."""

import json
from typing import Any

from gatelab.ablations.study import Study
from gatelab.training.config import TrialConfig


def study_schema() -> dict[str, Any]:
    """Build the JSON Schema of a study file. A base may be partial: nothing in it is required."""
    study, trial = Study.model_json_schema(), TrialConfig.model_json_schema()
    definitions = {**study.pop("$defs", {}), **trial.pop("$defs")}
    preset = {"type": "string", "description": "The named base that this configuration overrides."}
    base = {
        "type": "object",
        "properties": {"preset": preset, **trial["properties"]},
        "patternProperties": {r"^[a-z_]+\.": {"description": "A dotted path."}},
        "additionalProperties": False,
    }
    study["properties"]["base"]["anyOf"] = [{"type": "string"}, {"$ref": "#/$defs/Base"}]
    study["properties"]["seeds"]["anyOf"] = [
        {"type": "integer", "minimum": 1},
        *study["properties"]["seeds"].pop("oneOf"),
    ]
    study["required"] = []
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **study, "$defs": {**definitions, "Base": base}}


def render() -> str:
    """Write the schema as in studies/study.schema.json."""
    return json.dumps(study_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(render(), end="")
