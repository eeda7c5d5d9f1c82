"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest
import torch

# Without a CUDA device, Triton kernels run in Triton's interpreter: to be asked for before anything imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results must not depend on how many cores the machine has."""
    torch.set_num_threads(1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of real text, small enough to prepare in no time: a few modules of the standard library."""
    import sysconfig

    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("heapq.py", "bisect.py", "textwrap.py", "shlex.py", "string.py", "queue.py"):
        (folder / name).write_bytes((Path(sysconfig.get_path("stdlib")) / name).read_bytes())
    return folder
