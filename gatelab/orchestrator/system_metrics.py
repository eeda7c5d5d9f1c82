"""What a trial's machine was doing while it trained: samples of processor, memory and GPU, recorded with its metrics.

They go the way of all metrics, through the journal: a trial never talks to MLflow. Their names are those of MLflow's
own system metrics where it has such a one, so that its page for them shows them.
"""

import logging
import time
from collections.abc import Mapping

import psutil
import torch

from gatelab.metrics import MetricSpec
from gatelab.training.recorder import Recorder

SAMPLE_SECONDS = 5.0
SPECS = {
    "system/*_percentage": MetricSpec("%", kind="series"),
    "system/*_megabytes": MetricSpec("MB", kind="series"),
    "system/*_watts": MetricSpec("W", kind="series"),
}
"""Metrics of a sample."""

logger = logging.getLogger(__name__)


class SystemMetrics:
    """A recorder that passes everything on, and adds a sample every few seconds, between two steps."""

    def __init__(self, recorder: Recorder, device: torch.device, seconds: float = SAMPLE_SECONDS) -> None:
        self._recorder, self._device, self._seconds = recorder, device, seconds
        self._process = psutil.Process()
        self._step: int | None = None  # the last that was recorded
        self._sampled_at = -float("inf")
        self._asks_gpu = device.type == "cuda"
        psutil.cpu_percent()  # utilisation is that since the last call
        self._process.cpu_percent()

    def record(self, step: int, values: Mapping[str, float], layer: int | None = None) -> None:
        """Pass on."""
        self._recorder.record(step, values, layer)
        self._step = step

    def flush(self) -> None:
        """Add a sample to the last step if the last sample is long enough ago, and pass on."""
        if self._step is not None and time.monotonic() - self._sampled_at >= self._seconds:
            self._recorder.record(self._step, self._sample())
            self._sampled_at = time.monotonic()
        self._recorder.flush()

    def commit(self) -> None:
        """Pass on."""
        self._recorder.commit()

    def _sample(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        sample = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": 100 * memory.used / memory.total,
            "system/process_cpu_utilization_percentage": self._process.cpu_percent(),  # 100: one core
            "system/process_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
        }
        if self._asks_gpu:
            try:
                sample |= _gpu_sample(self._device)
            except Exception as error:  # of a driver, or of the library that asks it: no reason for a trial to fail
                self._asks_gpu = False
                logger.warning("no system metrics of the GPU: %s", error)
        return sample


def _gpu_sample(device: torch.device) -> dict[str, float]:
    """Sample the whole GPU, other processes' share included."""
    free, total = torch.cuda.mem_get_info(device)
    name = f"system/gpu_{device.index or 0}"
    return {
        f"{name}_memory_usage_megabytes": (total - free) / 1e6,
        f"{name}_memory_usage_percentage": 100 * (total - free) / total,
        f"{name}_utilization_percentage": float(torch.cuda.utilization(device)),
        f"{name}_power_usage_watts": torch.cuda.power_draw(device) / 1000,
    }
