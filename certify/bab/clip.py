"""Boxes shrunk by what a counterexample must satisfy (Clip-and-Verify, 2025), in closed form, rounded outward.

Where a polytope's counterexample lives, every row's value is at most its offset, and so is the row's linear lower
bound: A x + c <= 0, c less the offset. Each coordinate has its room left by the others' smallest contributions. What
is cut off holds no counterexample of that polytope; where nothing is left, the polytope is excluded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from certify.arrays import UNDERFLOW
from certify.ops.base import gamma
from certify.property import Float64

Mask = NDArray[np.bool_]
TINY = UNDERFLOW["float64"]
SWEEPS = 3  # a later one shrinks by what the earlier ones have left; the third still gains a little on ACAS Xu


def clip(lower: Float64, upper: Float64, coeff: Float64, constant: Float64) -> tuple[Float64, Float64, Mask]:
    """The boxes (K, n) shrunk to where coeff (K, R, n) x + constant (K, R) <= 0 may hold in all rows, and which vanish.

    Every x of a box with all rows <= 0 in real arithmetic stays. Infinite or NaN numbers shrink nothing.
    """
    gone = np.zeros(len(lower), dtype=bool)
    with np.errstate(all="ignore"):
        for _ in range(SWEEPS):
            for row in range(coeff.shape[1]):
                lower, upper = _halfspace(lower, upper, coeff[:, row], constant[:, row])
            gone |= (lower > upper).any(axis=1)
            lower, upper = np.where(gone[:, None], upper, lower), upper
    return lower, upper, gone


def _halfspace(lower: Float64, upper: Float64, a: Float64, c: Float64) -> tuple[Float64, Float64]:
    """One row: a_j x_j <= -c - sum over the others of their least a_k x_k, for every coordinate j at once."""
    least = np.minimum(a * lower, a * upper)
    size = np.abs(a) * np.maximum(np.abs(lower), np.abs(upper))
    # n products, n + 2 sums on either side of a subtraction; doubled. The smallest normal number stands for underflow.
    error = 4 * gamma(a.shape[1] + 8, "float64") * (size.sum(axis=1) + np.abs(c)) + (a.shape[1] + 4) * TINY
    room = (error - c - least.sum(axis=1))[:, None] + least
    limit = room / a
    # One ulp outward makes up for the quotient's rounding, the tiny number for its underflow.
    high = np.nextafter(limit, np.inf) + TINY
    low = np.nextafter(limit, -np.inf) - TINY
    new_upper = np.where((a > 0) & (high < upper), high, upper)
    new_lower = np.where((a < 0) & (low > lower), low, lower)
    return new_lower, new_upper


def mixture(lower: Float64, upper: Float64, coeff: Float64, constant: Float64, steps: int) -> Float64:
    """Weights (K, R) >= 0 of rows, sum 1, that make the minimum over the box of their combination high.

    The largest row is at least any such combination. Exponentiated subgradient ascent, the best weights met; rows that
    are not finite get 0, and so may all. A proposal: the weights' bound is taken with rounding afterwards.
    """
    center, radius = 0.5 * (lower + upper), 0.5 * (upper - lower)
    live = np.isfinite(constant)
    constant = np.where(live, constant, 0.0)
    weight = live / np.maximum(live.sum(axis=1, keepdims=True), 1)
    best, chosen = np.full(len(coeff), -np.inf), weight.copy()
    with np.errstate(all="ignore"):
        for step in range(steps):
            a = np.einsum("kr,krn->kn", weight, coeff)
            point = center - np.sign(a) * radius
            slope = np.einsum("krn,kn->kr", coeff, point) + constant
            value = (weight * slope).sum(axis=1)
            better = value > best
            best, chosen[better] = np.where(better, value, best), weight[better]
            scale = np.abs(slope - slope.mean(axis=1, keepdims=True)).max(axis=1, keepdims=True)
            weight = weight * np.exp(slope / np.where(scale > 0, scale, 1.0) * (2.0 / (1 + step)))
            weight = np.nan_to_num(weight / weight.sum(axis=1, keepdims=True))
    total = chosen.sum(axis=1, keepdims=True)
    weights: Float64 = chosen / np.where(total > 0, total, 1.0)
    return weights
