"""Statistics of a stream of batches, kept on the device until they are asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor

SQUARE = "second_moment"  # kept for the standard deviation
SAMPLE = 1 << 14
"""Values of a batch that quantiles are taken from: all, or this many drawn at random, always the same ones."""


class RunningStats:
    """Means, extremes, standard deviations and quantiles by name, of all batches together."""

    def __init__(self) -> None:
        self.weight = 1.0
        """Weight of the current batch in means: its size, where batches differ in it."""
        self._means: dict[str, tuple[Tensor, float]] = {}
        self._extremes: dict[str, Tensor] = {}
        self._samples: dict[str, tuple[list[Tensor], Mapping[str, float]]] = {}

    def mean(self, name: str, value: Tensor) -> None:
        """Take the mean of a batch; or several of them, `[n]`, of which the largest over all batches is wanted."""
        total, weight = self._means.get(name, (torch.zeros_like(value, dtype=torch.float64), 0.0))
        self._means[name] = total + value.double() * self.weight, weight + self.weight

    def largest(self, name: str, value: Tensor) -> None:
        """Take the largest value of a batch."""
        known = self._extremes.get(name)
        self._extremes[name] = value if known is None else torch.maximum(known, value)

    def smallest(self, name: str, value: Tensor) -> None:
        """Take the smallest value of a batch."""
        known = self._extremes.get(name)
        self._extremes[name] = value if known is None else torch.minimum(known, value)

    def moments(self, name: str, values: Tensor) -> None:
        """Take a batch of which name/mean and name/std (of the population) are wanted."""
        variance, mean = torch.var_mean(values, correction=0)
        self.mean(f"{name}/mean", mean)
        self.mean(f"{name}/{SQUARE}", variance.double() + mean.double().square())

    def quantiles(self, name: str, values: Tensor, wanted: Mapping[str, float]) -> None:
        """Take a batch of which quantiles are wanted, as name/KEY for each key of `wanted`."""
        flat = values.flatten()
        if len(flat) > SAMPLE:
            generator = torch.Generator().manual_seed(0)
            flat = flat[torch.randint(len(flat), (SAMPLE,), generator=generator).to(flat.device)]
        self._samples.setdefault(name, ([], wanted))[0].append(flat)

    def values(self) -> dict[str, float]:
        """Return all statistics, by name."""
        found = {name: (total / weight).amax() for name, (total, weight) in self._means.items()}
        found |= self._extremes
        for name in [name for name in found if name.endswith(SQUARE)]:
            stem = name.removesuffix(SQUARE)
            found[f"{stem}std"] = (found.pop(name) - found[f"{stem}mean"].square()).clamp(min=0).sqrt()
        for name, (samples, wanted) in self._samples.items():
            ranks = torch.tensor(list(wanted.values()), device=samples[0].device)
            several = torch.cat(samples).float().quantile(ranks)
            found |= {f"{name}/{key}": value for key, value in zip(wanted, several, strict=True)}
        return dict(zip(found, torch.stack([value.double() for value in found.values()]).tolist(), strict=True))
