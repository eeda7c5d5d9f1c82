"""A runs folder of its own with an empty default store: what happens to the store as a file is tried on it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatelab.results.tracking.sync import Mirror


@pytest.fixture
def own(laboratory: Callable[..., Any], tracked_root: Path, tmp_path: Path) -> Callable[..., Any]:
    """A laboratory whose folder has an empty default store: one takes seconds to create."""

    def build(positions: tuple[str, ...] = ("none",), seeds: Any = 1, steps: int = 5, **study: Any) -> Any:
        lab = laboratory(positions, seeds, steps, **study)
        if not lab.folder.database.exists():
            shutil.copy(tracked_root / "blank.db", lab.folder.database)
        return lab

    return build


@pytest.fixture
def mirror() -> Callable[..., Mirror]:
    """A new mirror of a laboratory, as a new process has it."""
    return lambda lab, uri=None: Mirror(lab.folder, lab.record, uri or lab.folder.tracking_uri)
