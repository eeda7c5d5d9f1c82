"""gatelab: systematic ablations of gated attention, from a question to an answer with its doubt.

Example:
    >>> import gatelab as gl
    >>> study = gl.Study("gates", axes={"model.gate.position": ["none", "sdpa"]}, seeds=3)
    >>> results = study.run("gatelab-runs")
    >>> results.comparison()

Names are imported when they are first used: planning loads neither torch nor Ray, reading results no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatelab.api.finding import Finding as Finding
    from gatelab.api.finding import Plot as Plot
    from gatelab.api.plan import Plan as Plan
    from gatelab.api.results import Results as Results
    from gatelab.api.results import Runs as Runs
    from gatelab.api.results import open as open
    from gatelab.api.study import Study as Study
    from gatelab.errors import AnalysisUnavailable as AnalysisUnavailable
    from gatelab.errors import GatelabError as GatelabError
    from gatelab.errors import WrongRequest as WrongRequest
    from gatelab.kernels.attention import gated_attention as gated_attention
    from gatelab.orchestrator.inline import InlineExecutor as InlineExecutor
    from gatelab.orchestrator.ray_executor import RayExecutor as RayExecutor
    from gatelab.training.config import TrialConfig as TrialConfig
    from gatelab.training.loop import train as train

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Finding", "Plot"), "gatelab.api.finding"),
    **dict.fromkeys(("Results", "Runs", "open"), "gatelab.api.results"),
    "Plan": "gatelab.api.plan",
    "Study": "gatelab.api.study",
    **dict.fromkeys(("AnalysisUnavailable", "GatelabError", "WrongRequest"), "gatelab.errors"),
    "InlineExecutor": "gatelab.orchestrator.inline",
    "RayExecutor": "gatelab.orchestrator.ray_executor",
    "TrialConfig": "gatelab.training.config",
    "gated_attention": "gatelab.kernels",
    "train": "gatelab.training.loop",
}

__all__ = [
    "AnalysisUnavailable",
    "Finding",
    "GatelabError",
    "InlineExecutor",
    "Plan",
    "Plot",
    "RayExecutor",
    "Results",
    "Runs",
    "Study",
    "TrialConfig",
    "WrongRequest",
    "__version__",
    "gated_attention",
    "open",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
