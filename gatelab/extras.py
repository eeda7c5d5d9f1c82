"""Optional packages: which extra of gatelab brings each, and what to say where one is missing."""

import importlib.util

from gatelab.errors import GatelabError

EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "tokenizers": "train",
    "psutil": "train",
    "ray": "ray",
    "mlflow": "mlflow",
    "optuna": "optuna",
    "sklearn": "importance",
    "datasets": "datasets",
    "lm_eval": "evaluation",
}
"""Name of an importable package -> the extra that installs it."""


class MissingExtra(GatelabError, ImportError):
    """A package that an extra brings is not installed; the text names the command that installs it."""

    def __init__(self, package: str) -> None:
        extra = EXTRAS[package]
        super().__init__(
            f"this needs the package {package}: pip install 'gatelab[{extra}]', or 'gatelab[all]' for all of gatelab"
        )
        self.name = package


def require(*packages: str) -> None:
    """Raise MissingExtra unless all of these packages are installed; import none of them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package)


def missing_extra(error: ImportError) -> MissingExtra | None:
    """Return what to tell a user whose import failed, or None where no extra brings the package."""
    package = (error.name or "").partition(".")[0]
    absent = package in EXTRAS and importlib.util.find_spec(package) is None
    return MissingExtra(package) if absent else None
