"""Scaling laws: losses by compute, or by parameters and tokens; what one gains over another."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """Data for fitting laws: the losses of each arm at each rung, n cells."""

    arm: Integers
    """[n], from 0 on."""
    rung: Integers
    """[n], from 0 on. Equal seeds of the same rung are paired."""
    x: Floats
    """[n]: compute, or with tokens the parameters."""
    losses: Floats
    """[n, seeds], a column for each seed; nan where there is none. Each cell has one at least."""
    tokens: Floats | None = None
    """[n]; None: a law of x alone."""

    @property
    def arms(self) -> int:
        """Number of arms."""
        return int(self.arm.max()) + 1

    def only(self, arm: int) -> "Cells":
        """Return the cells of one arm."""
        mine = self.arm == arm
        tokens = None if self.tokens is None else self.tokens[mine]
        return Cells(self.arm[mine] * 0, self.rung[mine], self.x[mine], self.losses[mine], tokens)

    @property
    def seeds(self) -> Integers:
        """[n] number of losses of each cell."""
        counts: Integers = np.isfinite(self.losses).sum(1)
        return counts

    @property
    def mean(self) -> Floats:
        """[n] mean log losses."""
        means: Floats = np.nanmean(np.log(self.losses), 1)
        return means


@dataclass(frozen=True)
class Law:
    """The curves of all arms; leading axes, if there are any, are those of bootstrap replicates."""

    offset: Floats
    """E: [..., 1] where arms share it, else [..., arms]."""
    scale: Floats
    """A: [..., arms]."""
    exponent: Floats
    """alpha: [..., arms]."""
    data: Floats | None = None
    """B and beta: [..., 2]; None without tokens."""

    @property
    def parameters(self) -> int:
        """Number of fitted parameters."""
        offsets, arms = self.offset.shape[-1], self.scale.shape[-1]
        return int(offsets + 2 * arms + (0 if self.data is None else 2))

    def losses(self, arm: npt.ArrayLike, x: npt.ArrayLike, tokens: npt.ArrayLike | None = None) -> Floats:
        """Return the losses [..., n] of arms [n] at x [..., n] and, if the law has a term of them, tokens [..., n].

        Infinite where a replicate's power overflows.
        """
        arms = np.atleast_1d(arm)
        offset = np.broadcast_to(self.offset, self.scale.shape)[..., arms]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            total: Floats = offset + self.scale[..., arms] * np.power(np.atleast_1d(x), -self.exponent[..., arms])
            if self.data is not None:
                assert tokens is not None
                total = total + self.data[..., :1] * np.power(np.atleast_1d(tokens), -self.data[..., 1:])
        return total

    def compute_exponent(self, arm: int) -> Floats:
        """Return the exponent [...] of the loss above E in compute: alpha, or at optimal N and D alpha beta / (alpha +
        beta).
        """
        alpha: Floats = self.exponent[..., arm]
        if self.data is None:
            return alpha
        beta = self.data[..., 1]
        product: Floats = alpha * beta / (alpha + beta)
        return product


def compute_gain(
    baseline: npt.ArrayLike, loss: npt.ArrayLike, offset: npt.ArrayLike, exponent: npt.ArrayLike
) -> Floats:
    """Return the factor of compute that takes the baseline from its loss to this one: ((Lb - E) / (L - E))^(1/alpha).

    Offset and exponent are the baseline's. Infinite where the loss is not above the offset, nan where neither is.
    """
    from_loss, to_loss = (np.maximum(np.subtract(each, offset), 0) for each in (baseline, loss))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gain: Floats = np.power(from_loss / to_loss, 1 / np.asarray(exponent))
    return gain


def crossover(law: Law, arm: int, baseline: int) -> Floats:
    """Return the x [...] at which arms that share an offset have equal losses: (A/A_base)^(1/(alpha - alpha_base))."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs = np.log(law.scale[..., arm] / law.scale[..., baseline])
        where: Floats = np.exp(logs / (law.exponent[..., arm] - law.exponent[..., baseline]))
    return where


def optimum(law: Law, arm: int, compute: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return the parameters and tokens [..., n] with the least loss of an arm for a compute [n] of 6 N D FLOPs."""
    assert law.data is not None
    alpha, scale, beta = law.exponent[..., arm, None], law.data[..., :1], law.data[..., 1:]
    product = np.atleast_1d(compute) / 6
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a replicate without a term has no optimum
        balance = (alpha * law.scale[..., arm, None] / (beta * scale)) ** (1 / (alpha + beta))
        parameters: Floats = balance * product ** (beta / (alpha + beta))
        tokens: Floats = product ** (alpha / (alpha + beta)) / balance
    return parameters, tokens


def log_losses(cells: Cells, law: Law) -> Floats:
    """Return the logarithms of the losses that a law gives cells."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Floats = np.log(law.losses(cells.arm, cells.x, cells.tokens))
    return logs
