"""MLflow: everything of gatelab that imports it is in here, so that this is read first."""

import os

from gatelab.extras import require

require("mlflow")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is first imported
