"""Lines below and above ReLU and sigmoid over intervals, in floats: the slope is a choice, the intercept follows,
outward.

For any slope s the line s z + t lies below f on [l, u] if t <= min (f(z) - s z), above if t >= max (f(z) - s z).

ReLU, l < 0 < u: relu(z) - s z is convex, so its maximum is at an end: max(-s l, u (1 - s)); for s in [0, 1] its
minimum is 0.

Sigmoid. exp(x) for x = -|z| in [-746, 0]: k = rint(x / ln 2), r = x - k hi - k lo, the sum r^i / i! up to 13, times
2^k. k hi is exact (hi has 32 bits), |r| <= 0.3466, the remainders of ln 2 and the roundings of r come to u; Horner's
rule is off by gamma_28 e^|r|, the series' tail by 2^-57: relatively together less than 60 u < 2^-46 (and 2^-1074 where
2^k underflows). Then e / (1 + e) and 1 / (1 + e) are off by 2^-45 at most. Below |x| > 746, exp is between 0 and
exp(-746) < 2^-1073. Nothing is asked of the library's exp.

g(z) = sigmoid(z) - s z is convex for z <= 0 and concave for z >= 0. So its minimum over the negative part is that of
any tangent of g there (best touching where sigmoid' = s), and over the positive part at an end. The maximum follows by
sigmoid(z) = 1 - sigmoid(-z).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from certify.check.network import Relu, Sigmoid
from certify.check.rounding import TINY, Arithmetic, Float64, Numbers, U, away, chain

LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
SIGMOID_ERROR = 2.0**-45
BISECTIONS = 40  # of the tangent point: a choice


@dataclass(frozen=True, eq=False)
class Lines:
    """below_slope z + below <= f(z) <= above_slope z + above; each (B, n), below None for 0."""

    below_slope: Float64
    below: Float64 | None
    above_slope: Float64
    above: Float64


@dataclass(frozen=True, eq=False)
class Band:
    """A f(z) >= (A slope + |A| bend) z + A middle - |A| (half + charge), each (B, n), bend None for 0; charge (B, 1).

    With lines s z + t below and S z + T above: slope, bend = (s +- S) / 2, middle, half = (T +- t) / 2, so that A > 0
    gets s and t, A < 0 gets S and T; parallel lines serve -A, too. |slope| + |bend| <= 1 and its halving, products and
    sum are off by 4 roundings, and 2 more where slopes become float32, which |A| gamma_4 |z| pays for; sums of the n
    products with the intercepts by gamma_chain(n) |A| (|middle| + |half|), which pays for rounding these, too; and
    4 tiny |A| (1 + |z|) for numbers that float32 cannot have. The charge is the largest of all neurons, since reading
    them one by one costs more than it is worth.
    """

    slope: Numbers
    bend: Numbers | None
    middle: Numbers
    half: Numbers
    charge: Numbers


def band(arithmetic: Arithmetic, found: Lines, size: Numbers) -> Band:
    """The lines as they are used; size (B, n) or (B, 1) >= |z|."""
    by = arithmetic.number(0.5)
    slope, bend = arithmetic.array(found.above_slope), None
    if found.below_slope is not found.above_slope:
        low = arithmetic.array(found.below_slope)
        slope, bend = (low + slope) * by, (low - slope) * by
    middle = half = arithmetic.array(found.above) * by
    if found.below is not None:
        below = arithmetic.array(found.below) * by
        middle, half = middle + below, half - below
    large, *both = (np.abs(v).max(axis=1, keepdims=True) for v in (size, middle, half))
    charge = arithmetic.slip(4) * large + arithmetic.slip(chain(middle.shape[1])) * sum(both)
    charge = charge + 4 * arithmetic.tiny * (1 + large)
    short = arithmetic.coefficients
    same, middle = half is middle, short(middle)
    return Band(short(slope), None if bend is None else short(bend), middle, middle if same else short(half), charge)


def lines(kind: Relu | Sigmoid, lower: Float64, upper: Float64) -> Lines:
    """The lines that docs/certificate.md calls parallel, on [lower, upper] (B, n)."""
    if isinstance(kind, Relu):
        slope = _chord(lower, upper)
        return Lines(slope, None, slope, _relu_above(lower, upper, slope))
    slope = _tangent(-upper, -lower)
    return Lines(slope, _sigmoid_below(lower, upper, slope), slope, _sigmoid_above(lower, upper, slope))


def adapted(kind: Relu | Sigmoid, lower: Float64, upper: Float64, parallel: Lines) -> Lines:
    """Those that it calls adaptive: the same above."""
    if isinstance(kind, Relu):
        return replace(parallel, below_slope=np.where((upper > -lower) | (lower >= 0), 1.0, 0.0))
    slope = _tangent(lower, upper)
    return replace(parallel, below_slope=slope, below=_sigmoid_below(lower, upper, slope))


def chosen(
    kind: Relu | Sigmoid,
    ends: tuple[Float64, Float64],
    default: Lines,
    at: np.ndarray[tuple[int], np.dtype[np.int64]],
    slopes: tuple[Float64, Float64 | None],
) -> Lines:
    """The default lines with slopes (R, U) below (and above, for sigmoids) put in at places (U,) that are unsettled.

    ends: (R, n) or (1, n). Slopes have been validated to lie in [0, 1], and in [0, 1/4] for sigmoids.
    """
    lower, upper = ends
    rows = max(len(lower), len(slopes[0]))

    def put(old: Float64, new: Float64, open_: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Float64:
        out = np.array(np.broadcast_to(old, (rows, old.shape[1])))
        out[:, at] = np.where(open_, new, out[:, at])
        return out

    low, high = lower[:, at], upper[:, at]
    if isinstance(kind, Relu):
        return replace(default, below_slope=put(default.below_slope, slopes[0], (low < 0) & (high > 0)))
    open_, below = low < high, slopes[0]
    assert default.below is not None
    found = replace(
        default,
        below_slope=put(default.below_slope, below, open_),
        below=put(default.below, _sigmoid_below(low, high, below), open_),
    )
    if slopes[1] is None:
        return found
    above = slopes[1]
    return replace(
        found,
        above_slope=put(default.above_slope, above, open_),
        above=put(default.above, _sigmoid_above(low, high, above), open_),
    )


def image(kind: Relu | Sigmoid, lower: Float64, upper: Float64) -> tuple[Float64, Float64]:
    """The interval of f over [lower, upper], outward."""
    if isinstance(kind, Relu):
        return np.maximum(lower, 0.0), np.maximum(upper, 0.0)
    return sigmoid(lower)[0], sigmoid(upper)[1]


def unsettled(kind: Relu | Sigmoid, lower: Float64, upper: Float64) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where a line is no exact reading of the function."""
    return (lower < 0) & (upper > 0) if isinstance(kind, Relu) else lower < upper


def _chord(lower: Float64, upper: Float64) -> Float64:
    """Slope of ReLU's upper line, a choice in [0, 1]; exactly 0 or 1 where the ReLU is settled."""
    below, above = np.maximum(-lower, 0.0), np.maximum(upper, 0.0)
    width = below + above
    slope: Float64 = np.divide(above, width, out=np.zeros(width.shape), where=width > 0)
    return slope


def _relu_above(lower: Float64, upper: Float64, slope: Float64) -> Float64:
    top = np.maximum(-slope * lower, upper * (1 - slope))
    return np.where((lower < 0) & (upper > 0), top + away(top), 0.0)


def sigmoid(z: Float64) -> tuple[Float64, Float64]:
    """(lower, upper) bounds of 1 / (1 + exp(-z))."""
    near = _sigmoid(z)
    error = near * SIGMOID_ERROR + 2 * TINY
    return np.maximum(near - error, 0.0), np.minimum(near + error, 1.0)


def _sigmoid(z: Float64) -> Float64:
    x = -np.minimum(np.abs(z), 746.0)
    k = np.rint(x * (1 / math.log(2)))
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = np.full_like(r, 1 / math.factorial(13))
    for i in range(12, -1, -1):
        p = p * r + 1 / math.factorial(i)
    e = np.ldexp(p, k.astype(np.int64))
    found: Float64 = np.where(z >= 0, 1.0, e) / (1 + e)
    return found


def _steepness(z: Float64) -> tuple[Float64, Float64]:
    """Bounds of sigmoid'(z) = sigmoid(z) sigmoid(-z)."""
    (a, b), (c, d) = sigmoid(z), sigmoid(-z)
    return a * c * (1 - 2 * U) - TINY, b * d * (1 + 2 * U) + TINY


def _sigmoid_below(lower: Float64, upper: Float64, slope: Float64) -> Float64:
    """t <= min over [l, u] of g(z) = sigmoid(z) - s z."""

    def g(z: Float64) -> Float64:
        at = sigmoid(z)[0]
        return at - slope * z - away(at, np.abs(slope * z))

    end = np.minimum(upper, 0.0)
    with np.errstate(divide="ignore"):
        # sigmoid'(z) = s where z = -log((1 + q) / (1 - q)), q = sqrt(1 - 4 s); 1 - q = 4 s / (1 + q).
        flat = np.log(4 * slope) - 2 * np.log1p(np.sqrt(np.maximum(1 - 4 * slope, 0.0)))
    touch = np.minimum(np.maximum(flat, lower), end)
    steep_low, steep_high = _steepness(touch)
    tilt = np.minimum((steep_high - slope) * (lower - touch), (steep_low - slope) * (end - touch))
    tilt = tilt - away(tilt, (steep_high + slope) * (end - lower))
    tangent = g(touch) + np.minimum(tilt, 0.0)
    tangent = tangent - away(tangent)
    return np.where(
        lower >= 0, np.minimum(g(lower), g(upper)), np.where(upper <= 0, tangent, np.minimum(tangent, g(upper)))
    )


def _sigmoid_above(lower: Float64, upper: Float64, slope: Float64) -> Float64:
    """t >= max over [l, u] of sigmoid(z) - s z = 1 - min over [-u, -l] of (sigmoid(z) - s z)."""
    top = 1 - _sigmoid_below(-upper, -lower, slope)
    return top + away(top)


def _tangent(lower: Float64, upper: Float64) -> Float64:
    """The slope that docs/certificate.md calls adaptive, for the line below; in [0, 1/4]."""

    def derivative(z: Float64) -> Float64:
        return _sigmoid(z) * _sigmoid(-z)

    width, middle, at_upper = upper - lower, lower * 0.5 + upper * 0.5, _sigmoid(upper)
    rise = at_upper - _sigmoid(lower)
    narrow = width < 1e-3  # the quotient would be all rounding
    chord = np.where(narrow, np.minimum(derivative(lower), derivative(upper)), rise / np.where(narrow, 1.0, width))
    left, right = lower, np.minimum(upper, 0.0)
    for _ in range(BISECTIONS):  # derivative(d) (u - d) - (sigmoid(u) - sigmoid(d)) rises in d for d <= 0
        half = (left + right) * 0.5
        steep = derivative(half) * (upper - half) > at_upper - _sigmoid(half)
        left, right = np.where(steep, left, half), np.where(steep, half, right)
    found = np.where((derivative(lower) * width >= rise) | (lower >= 0), chord, derivative(np.minimum(left, middle)))
    return np.clip(np.where(upper <= 0, derivative(middle), found), 0.0, 0.25)
