"""How far a class whose probability under noise is at least p stays the most likely one, and how sure p is.

With probability 1 - alpha over the draws, no perturbation smaller than the radius changes the smoothed class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from certify.errors import UsageError
from certify.smoothing.grid import Grid
from certify.smoothing.noise import Law

ABSTAIN = -1
# Of probabilities and, relative, of radii; quantiles and roots in float64 are closer by far.
ROUNDING = 2.0**-40
KINDS = ("gaussian", "uniform")


def lower_confidence(successes: int, n: int, alpha: float) -> float:
    """The one-sided Clopper-Pearson bound: the true probability is below it in at most alpha of the cases."""
    from statsmodels.stats.proportion import proportion_confint

    return float(proportion_confint(successes, n, alpha=2 * alpha, method="beta")[0])


def gaussian_radius(p: float, sigma: float) -> float:
    """sigma Phi^-1(p) in L2 (Cohen et al. 2019, theorem 1 with pB = 1 - pA); 0 up to p = 1/2."""
    from scipy.special import ndtri

    return max(0.0, sigma * float(ndtri(p)))


def uniform_radius(p: float, half_width: float) -> float:
    """2 lambda (p - 1/2) in L1 for noise on [-lambda, lambda]^d (Yang et al. 2020); 0 up to p = 1/2.

    Two such cubes, moved by v, differ in 1 - prod(1 - |v_i| / 2 lambda) <= |v|_1 / 2 lambda of their volume.
    """
    return max(0.0, 2 * half_width * (p - 0.5))


def convert(radius: float, native: str, norm: str, size: int) -> float:
    """The largest ball in `norm` inside the ball of this radius in the norm `native` (l1 or l2), `size` coordinates."""
    root = math.sqrt(size)
    shrink = {"l2": {"l1": 1.0, "l2": 1.0, "linf": root}, "l1": {"l1": 1.0, "l2": root, "linf": float(size)}}
    return radius / shrink[native][norm]


@dataclass(frozen=True)
class Smoothing:
    """Noise of a kind on a grid, for inputs of `size` coordinates. sigma: its standard deviation, in input units."""

    kind: str
    sigma: float
    grid: Grid
    size: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"noise {self.kind!r} is not known; choose one of {', '.join(KINDS)}")
        if not 0 < self.sigma < math.inf:
            raise UsageError(f"sigma {self.sigma}: give a number above 0")

    @property
    def native(self) -> str:
        """The norm of its own certificate."""
        return "l2" if self.kind == "gaussian" else "l1"

    @property
    def order(self) -> int:
        return int(self.native[1])

    @cached_property
    def law(self) -> Law:
        if self.kind == "gaussian":
            return Law.gaussian(self.sigma / self.grid.step)
        return Law.uniform(self._most)

    @property
    def half_width(self) -> float:
        """lambda of uniform noise: sqrt(3) sigma, to the nearest odd number of half steps."""
        return (self._most + 0.5) * self.grid.step

    @property
    def _most(self) -> int:
        return max(1, round(math.sqrt(3) * self.sigma / self.grid.step - 0.5))

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise, which is `sigma` up to uniform noise's whole steps."""
        return self.sigma if self.kind == "gaussian" else self.half_width / math.sqrt(3)

    def radius(self, p: float, norm: str, away: float = 0.0) -> float:
        """The certified radius in `norm` of a sample at distance `away` (native norm) from the grid; 0 for none.

        p: probability of the class as drawn; what the drawn noise may differ from its law is deducted. The radius is
        rounded down, so that the class holds on its border too.
        """
        real = p - self.size * self.law.error - ROUNDING
        gaussian = self.kind == "gaussian"
        native = gaussian_radius(real, self.sigma) if gaussian else uniform_radius(real, self.half_width)
        return max(0.0, convert(native - away, self.native, norm, self.size) * (1 - ROUNDING))

    def certified(self, p: float, eps: float, norm: str, away: float = 0.0) -> bool:
        """Does the class keep the majority in the closed ball of radius eps?"""
        radius = self.radius(p, norm, away)
        return radius > 0 and radius >= eps
