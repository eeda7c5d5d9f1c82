"""The live view of a run: what there is to say is said once."""

import pytest

from gatelab.cli.live import LiveView
from gatelab.orchestrator.progress import Progress


def test_what_became_of_mlflow_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line as it comes, however often the view is brought up to date."""
    progress = Progress({})
    with LiveView() as view:
        for line in ("MLflow is away", "MLflow is back"):
            progress.tracking_lines.append(line)
            view(progress)
            view(progress)
    assert capsys.readouterr().out.splitlines() == ["MLflow is away", "MLflow is back"]
