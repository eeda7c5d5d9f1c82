"""Named bases (model and training scale) and the studies that come with gatelab."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import gatelab
from gatelab.ablations.yaml_source import load_yaml


@dataclass(frozen=True)
class Base:
    """A named starting point: a partial trial configuration."""

    name: str
    description: str
    tree: dict[str, Any]


def bases() -> dict[str, Base]:
    """Return all named bases, by name."""
    folder = resources.files("gatelab.ablations").joinpath("bases")
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        tree, _ = load_yaml(Path(str(entry)))
        name = entry.name.removesuffix(".yaml")
        found[name] = Base(name, tree.pop("description"), tree)
    return found


def study_files() -> dict[str, Path]:
    """Find the study files that come with gatelab, by name: in a checkout beside the package, in a wheel inside it."""
    package = Path(gatelab.__file__).parent
    for folder in (package / "studies", package.parent / "studies"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}
