"""A grid of inputs, low + step k with whole k: what is rounded to it before the network sees it.

The smoothed classifier is that of x -> f(round(x)), for which the theory holds in real arithmetic, and the sum of a
grid point and a rounded noise is a sum of whole numbers (Voracek & Hein, arXiv 2207.07209: floating-point sums of an
input and a Gaussian tell which input it was, and a classifier that listens breaks certificates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import UsageError
from certify.property import Float64

Float32 = NDArray[np.float32]

# Data are taken to be multiples of one of these parts of the input range: 8-bit images, scikit-learn's digits.
LEVELS = (255, 256)
# float32(k / 255) * 255 is k up to 2e-5. What is left is deducted from the radius, so this decides no verdict.
OFF_LEVEL = 1e-3
# Steps in a standard deviation, at least: rounding then adds less than 0.01 % to the variance of the noise. More
# make draws slower, as more words are left over by the table (2.0 ns with 64, 2.2 with 128).
FINENESS = 30
# ... and for data on no such grid, whose distance to it is deducted from every radius. 16 bits hold the draws.
FINE = 3600
# Whole numbers that float32 holds, and so the sums of inputs and noise, are exact up to this.
EXACT = 2**24


def levels_of(x: NDArray[Any], input_range: tuple[float, float]) -> int | None:
    """The steps from low to high of which all values are multiples: 255 of 8-bit images; None if there are none."""
    low, high = input_range
    unit = (x.astype(np.float64) - low) / (high - low)
    return next((n for n in LEVELS if np.all(np.abs(unit * n - np.rint(unit * n)) <= OFF_LEVEL)), None)


@dataclass(frozen=True)
class Grid:
    """The points low + step k for whole k."""

    low: float
    step: float

    @staticmethod
    def of(x: NDArray[Any], input_range: tuple[float, float], deviation: float) -> Grid:
        """The coarsest grid that holds the data x and has FINENESS steps in `deviation`; else a fine one."""
        low, high = input_range
        levels = levels_of(x, input_range)
        coarse = deviation if levels is None else (high - low) / levels
        parts = FINE if levels is None else max(1, math.ceil(FINENESS * coarse / deviation))
        grid = Grid(low, coarse / parts)
        if (high - low + 10 * deviation) / grid.step >= EXACT:
            wrong, better = ("small", "larger") if deviation < high - low else ("large", "smaller")
            raise UsageError(
                f"sigma {deviation:g} is too {wrong} for inputs from {low:g} to {high:g}: noise and input have no grid "
                f"in common that float32 holds; give a {better} sigma"
            )
        return grid

    def places(self, x: NDArray[Any], order: float) -> tuple[Float64, float]:
        """k of the grid point nearest to x, and its distance from x in the norm of `order` (1, 2, inf), rounded up."""
        real = x.astype(np.float64)
        places = np.rint((real - self.low) / self.step)
        away = np.abs(real - (self.low + self.step * places))
        # Three roundings of numbers at most |x| + |low|.
        away += 2.0**-50 * (np.abs(real) + abs(self.low))
        return places, float(np.linalg.norm(away.ravel(), order) * (1 + 1e-9))

    def inputs(self, places: Float32) -> Float32:
        """What the network gets for the grid points of `places`, in place: a function of each whole number alone."""
        places *= np.float32(self.step)
        if self.low:
            places += np.float32(self.low)
        return places
