"""Sigmoid; tanh(z) = 2 sigmoid(2 z) - 1 is lowered to it."""

from __future__ import annotations

from dataclasses import dataclass

from certify.arrays import UNIT_ROUNDOFF, Array, dtype_name, is_torch, namespace
from certify.ops.base import Relaxation, Slopes
from certify.rules import Interval, Op, cast, evaluate, interval, relax

# Absolute error allowed for one evaluation of the library's sigmoid (values <= 1), in units of u: torch and numpy
# stay below 4; the margin also covers the inexact position of the touching point, which enters squared.
EVALUATION_ERROR = 32
BISECTION_STEPS = 24  # places the tangent point to 1e-7 of the interval; its slope need not be exact


@dataclass(frozen=True, eq=False)
class Sigmoid(Op):
    """y = 1 / (1 + exp(-z))."""


@evaluate.register(Sigmoid)
def _(op: Sigmoid, z: Array) -> Array:
    if is_torch(z):
        return z.sigmoid()
    xp = namespace(z)
    small = xp.exp(-xp.abs(z))
    return xp.where(z >= 0, 1 / (1 + small), small / (1 + small))


@cast.register(Sigmoid)
def _(op: Sigmoid, sample: Array) -> Op:
    return op


@interval.register(Sigmoid)
def _(op: Sigmoid, shapes: tuple[tuple[int, ...], ...], box: Interval) -> Interval:
    xp = namespace(box[0])
    error = EVALUATION_ERROR * UNIT_ROUNDOFF[dtype_name(box[0])]
    return xp.clip(evaluate(op, box[0]) - error, min=0), xp.clip(evaluate(op, box[1]) + error, max=1)


@relax.register(Sigmoid)
def _(op: Sigmoid, lower: Array, upper: Array, slopes: Slopes) -> Relaxation:
    """For any slope s the lower line s z + t, t = min over [l, u] of sigmoid(z) - s z, is valid and touches.

    The minimum lies at l, at u, or where sigmoid'(z) = s on the convex side, z = -(2 log(1 + r) - log(4 s)), r =
    sqrt(1 - 4 s). The upper line follows by sigmoid(z) = 1 - sigmoid(-z). slopes.lower and slopes.upper lie in [0,
    1/4].
    """
    low_slope, low_intercept = _lower_line(op, lower, upper, slopes.lower)
    up_slope, mirrored = _lower_line(op, -upper, -lower, slopes.upper)
    return Relaxation(low_slope, low_intercept, up_slope, (1 - mirrored) + 2 * UNIT_ROUNDOFF[dtype_name(lower)])


def _lower_line(op: Sigmoid, lower: Array, upper: Array, slope: Array | None) -> tuple[Array, Array]:
    """(slope, intercept) of a line below sigmoid on [lower, upper]."""
    xp = namespace(lower)
    if slope is None:
        slope = _touching_slope(op, lower, upper)
    slope = xp.clip(slope, min=1e-30, max=0.25)
    # At s = 1/4 the root has no derivative; 1e-6 instead of 0 moves the touching point by as much, the line by 1e-19.
    root = xp.sqrt(xp.clip(1 - 4 * slope, min=1e-12))
    touching = -(2 * xp.log(1 + root) - xp.log(4 * slope))
    middle = xp.minimum(xp.maximum(touching, lower), upper)
    candidates = [evaluate(op, z) - slope * z for z in (lower, middle, upper)]
    reach = xp.maximum(xp.abs(lower), xp.abs(upper))
    error = UNIT_ROUNDOFF[dtype_name(lower)] * (EVALUATION_ERROR + 8 * slope * reach)
    return slope, xp.minimum(xp.minimum(candidates[0], candidates[1]), candidates[2]) - error


def _touching_slope(op: Sigmoid, lower: Array, upper: Array) -> Array:
    """Slope of a lower line: chord where concave, else the tangent at the middle (where convex, the least area lies
    under it), or further left at the point whose tangent passes through u.
    """
    xp = namespace(lower)
    at_upper = evaluate(op, upper)

    def derivative(z: Array) -> Array:
        value = evaluate(op, z)
        return value * (1 - value)

    width = upper - lower
    narrow = width < 1e-3
    chord = (at_upper - evaluate(op, lower)) / xp.where(narrow, xp.ones_like(width), width)
    chord = xp.where(narrow, xp.minimum(derivative(lower), derivative(upper)), chord)
    # Tangent point d in [l, 0] whose tangent passes through (u, sigmoid(u)): h(d) = s'(d)(u - d) - (s(u) - s(d)) rises.
    left, right = lower, xp.clip(upper, max=0)
    for _ in range(BISECTION_STEPS):
        middle = (left + right) * 0.5
        too_steep = derivative(middle) * (upper - middle) > at_upper - evaluate(op, middle)
        left, right = xp.where(too_steep, left, middle), xp.where(too_steep, middle, right)
    tangent = derivative(xp.minimum(left, (lower + upper) * 0.5))
    concave = derivative(lower) * width >= at_upper - evaluate(op, lower)
    convex = upper <= 0
    return xp.where(convex, derivative((lower + upper) * 0.5), xp.where(concave | (lower >= 0), chord, tangent))
