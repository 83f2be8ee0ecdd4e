"""The least value of a linear form over an input set: a box, cut by a ball |x - center|_p <= radius where there is one.

Box: sum of a_j l_j where a_j > 0, else a_j u_j. Ball: a . center - radius |a|_q with 1/p + 1/q = 1. Both at once: for
every way to write a = b + c, min >= (min of b over the box) + (min of c over the ball); the best b is found by
bisection.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from certify.check.patches import Cells, Rows
from certify.check.rounding import TINY, Arithmetic, Float64, Numbers, U, as_numbers, chain, finite

BISECTIONS = 30


@dataclass(frozen=True, eq=False)
class Norm:
    """|x - center|_p <= radius: center (n,)."""

    center: Float64
    radius: float
    p: Literal[1, 2]


def ball_box(center: Float64, eps: Fraction, low: float, high: float) -> tuple[Float64, Float64]:
    """The box around |x - center|_inf <= eps, cut with [low, high], outward: (1, n) each."""
    radius = rounded_up(eps)
    lower = np.nextafter(center - radius, -np.inf)
    upper = np.nextafter(center + radius, np.inf)
    finite("the input set", lower, upper)
    return np.maximum(lower, low)[None], np.minimum(upper, high)[None]


def rounded_up(value: Fraction) -> float:
    """A float64 >= value, the same where value is one."""
    near = float(value)
    return near if Fraction(near) >= value else float(np.nextafter(near, np.inf))


def minimum(
    arithmetic: Arithmetic, a: Numbers, box: tuple[Float64, Float64], norm: Norm | None = None
) -> tuple[Numbers, Numbers]:
    """(value, error), (R,): value - error <= a . x on the set. a (R, n), box (R, n) or (1, n)."""
    value, error = _over_box(arithmetic, a, box)
    if norm is None:
        return value, error
    part = arithmetic.array(_share(arithmetic.floats(a, up=False), box, norm))
    rest = a - part
    size = np.abs(norm.center) + norm.radius
    apart, wrong = _over_box(arithmetic, rest, box)
    # The difference was rounded: u |rest|, of an x within the box and within the ball.
    wrong = wrong + arithmetic.gamma(1) * (np.abs(rest) @ arithmetic.array(size))
    ball, slip = _over_ball(arithmetic, part, norm)
    joint, slip = apart + ball, slip + wrong + arithmetic.gamma(4) * (np.abs(apart) + np.abs(ball))
    whole, fault = _over_ball(arithmetic, a, norm)
    for other, loss in ((joint, slip), (whole, fault)):
        better = other - loss > value - error
        value, error = np.where(better, other, value), np.where(better, loss, error)
    return value, error


def extremes(arithmetic: Arithmetic, a: Numbers, box: tuple[Float64, Float64]) -> tuple[Numbers, Numbers, Numbers]:
    """(low, high, error), (R,): low - error <= a . x <= high + error on the box, rows or one for all."""
    return spanned(arithmetic, a, box, Rows())


def spanned(
    arithmetic: Arithmetic, a: Numbers, box: tuple[Float64, Float64], look: Rows | Cells
) -> tuple[Numbers, Numbers, Numbers]:
    """`extremes` with the box's ends (B, n) read by `look`.

    The box lies within r of m, so that a . m -+ |a| . r will do; their rounding is gamma |a| . (|m| + r).
    """
    lower, upper = (arithmetic.array(side) for side in box)
    half, slack = arithmetic.number(0.5), arithmetic.number(1.0) + arithmetic.gamma(1)
    short = arithmetic.coefficients(lower * half + upper * half)
    middle = as_numbers(short)
    radius = np.maximum(upper - middle, middle - lower) * slack
    large, count = np.abs(a), a.shape[1]
    value, spread = look.dots(short, a)[0], look.dots(arithmetic.roughly(radius), large)[0]
    most = (np.abs(middle) + radius).max(axis=1, keepdims=True)
    error = arithmetic.slip(2 * chain(count) + 4) * look.charge(large, most)
    return value - spread, value + spread, error + arithmetic.tiny * (8 * count)


def _over_box(arithmetic: Arithmetic, a: Numbers, box: tuple[Float64, Float64]) -> tuple[Numbers, Numbers]:
    value, _, error = extremes(arithmetic, a, box)
    return value, error


def _over_ball(arithmetic: Arithmetic, a: Numbers, norm: Norm) -> tuple[Numbers, Numbers]:
    center, radius, count = arithmetic.array(norm.center), arithmetic.number(norm.radius), a.shape[1]
    size = np.abs(a)
    if norm.p == 1:
        dual = size.max(axis=1)
    else:  # a root is no fraction: floats, upward, scaled so that squares neither overflow nor vanish
        near = arithmetic.floats(size, up=True)
        scale = np.maximum(near.max(axis=1, keepdims=True), TINY)
        root = np.sqrt(((near / scale) ** 2).sum(axis=1)) * scale[:, 0]
        dual = arithmetic.array(root * (1 + (2 * count + 16) * U) + 8 * count * TINY)
    error = arithmetic.gamma(count + 8) * (size @ np.abs(center) + radius * dual) + arithmetic.tiny * (8 * count)
    return a @ center - radius * dual, error


def _share(a: Float64, box: tuple[Float64, Float64], norm: Norm) -> Float64:
    """The part of a that the ball shall bound: a clipped to +- t, t = m (p = 1) or m times the room to the box's side
    (p = 2).

    That is where the Lagrangian's gradient for the multiplier m leaves a coordinate free; the best m is where the free
    coordinates and those at the sides together travel as far as the radius. Any m is valid.
    """
    lower, upper = box
    room = np.maximum(np.where(a > 0, norm.center - lower, upper - norm.center), 0.0)
    size = np.abs(a)
    low, high = np.zeros((len(a), 1)), size.max(axis=1, keepdims=True) + TINY
    if norm.p == 2:
        high = np.sqrt((size / high) ** 2).sum(axis=1, keepdims=True) * high / max(norm.radius, TINY)
    for _ in range(BISECTIONS):
        m = (low + high) / 2
        if norm.p == 1:
            travel = np.where(size > m, room, 0.0).sum(axis=1, keepdims=True)
            far = travel > norm.radius
        else:
            step = np.minimum(room, size / np.maximum(m, TINY))
            far = (step * step).sum(axis=1, keepdims=True) > norm.radius * norm.radius
        low, high = np.where(far, m, low), np.where(far, high, m)
    limit = high * room if norm.p == 2 else np.broadcast_to(high, room.shape)
    limit = np.where(np.isfinite(limit), limit, 0.0)
    return np.clip(a, -limit, limit)
