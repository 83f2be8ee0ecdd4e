"""ReLU: the one piecewise-linear op; LeakyReLU, PReLU, Abs, Clip, Max, Min and MaxPool are lowered to it."""

from __future__ import annotations

from dataclasses import dataclass

from certify.arrays import UNDERFLOW, UNIT_ROUNDOFF, Array, dtype_name, namespace
from certify.ops.base import Relaxation, Slopes
from certify.rules import Interval, Op, cast, evaluate, interval, relax


@dataclass(frozen=True, eq=False)
class Relu(Op):
    """y = max(z, 0)."""


@evaluate.register(Relu)
def _(op: Relu, z: Array) -> Array:
    xp = namespace(z)
    return xp.clip(z, min=0)


@cast.register(Relu)
def _(op: Relu, sample: Array) -> Op:
    return op


@interval.register(Relu)
def _(op: Relu, shapes: tuple[tuple[int, ...], ...], box: Interval) -> Interval:
    xp = namespace(box[0])
    return xp.clip(box[0], min=0), xp.clip(box[1], min=0)


@relax.register(Relu)
def _(op: Relu, lower: Array, upper: Array, slopes: Slopes) -> Relaxation:
    """Upper line u/(u-l) (z - l), lower line alpha z for l < 0 < u (Zhang et al. 2018); exact where stable.

    The chord's slope may be rounded either way: its intercept max(-s l, (1 - s) u), rounded up, makes it
    valid. Default alpha: 1 if u > -l else 0. slopes.lower chooses alpha in [0, 1] for unstable neurons.
    """
    xp = namespace(lower)
    active = lower >= 0
    unstable = ~(active | (upper <= 0))  # NaN, from an overflow, counts as unstable and so stays NaN
    zero, one = xp.zeros_like(lower), xp.ones_like(lower)
    width = xp.where(unstable, upper - lower, one)
    chord = xp.where(unstable, xp.clip(upper / width, min=0, max=1), xp.where(active, one, zero))
    unit, tiny = UNIT_ROUNDOFF[dtype_name(lower)], UNDERFLOW[dtype_name(lower)]
    reach = xp.maximum(-chord * lower, (1 - chord) * upper)
    intercept = xp.where(unstable, reach * (1 + 8 * unit) + 4 * tiny, zero)
    alpha = xp.where(upper > -lower, one, zero) if slopes.lower is None else slopes.lower
    return Relaxation(xp.where(unstable, alpha, chord), zero, chord, intercept)
