"""The examples of docs/api.md run as they are printed: the script, and the notebook with the same steps."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples/gate_position.py"
NOTEBOOK = ROOT / "examples/gate_position.ipynb"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the script has run, and what it printed."""
    folder = tmp_path_factory.mktemp("example")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        done = subprocess.run([sys.executable, SCRIPT], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_documented_example_is_the_script() -> None:
    """Whoever copies it from the page has what is tested."""
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert SCRIPT.read_text(encoding="utf-8") in re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_script_ends_in_a_table(ran: tuple[Path, str]) -> None:
    """It plans nine trials, compares three variants and names the best."""
    _, printed = ran
    assert "9 trials of 3 variants" in printed
    comparison = printed[printed.index("gate-position-tiny: validation/loss") :]
    assert re.findall(r"^\| \**(none|value|sdpa)\** \|.*\| \**3\** \|", comparison, re.MULTILINE)
    assert len(re.findall(r"^\| \**(?:none|value|sdpa)\** \|", comparison, re.MULTILINE)) == 3
    assert re.search(r"^lowest loss: position=\w+, \d\.\d{4} nats/token$", printed, re.MULTILINE)


def test_notebook_has_the_steps_of_the_script() -> None:
    """And no outputs: they would be those of another machine."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    script = SCRIPT.read_text(encoding="utf-8")
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert cells[1].source.startswith("study = gl.Study(")
    assert cells[1].source in script
    steps = [line for cell in cells for line in cell.source.splitlines() if " = " in line and not line.startswith(" ")]
    of_script = [line.partition("  #")[0] for line in script.splitlines() if re.match(r"\w+ = ", line)]
    assert [line.partition("  #")[0] for line in steps if not line.startswith("diagnostics")] == of_script


def test_notebook_runs_and_shows_tables_and_figures(ran: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the script's folder: its trials are kept, and its table is shown again."""
    folder, printed = ran
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    ExecutePreprocessor(timeout=600, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(folder)}})
    shown = {cell.source: output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output}
    tables = [source.splitlines()[-1] for source, data in shown.items() if "text/html" in data]
    assert tables == ["study.plan()", "comparison"]
    comparison = next(data for source, data in shown.items() if source.endswith("\ncomparison"))
    assert comparison["text/plain"] in printed
    assert sum("image/png" in data for data in shown.values()) == 3
