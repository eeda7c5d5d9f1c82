"""gatelab: systematic ablations of gated attention."""

__version__ = "0.1.0"
