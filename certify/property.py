"""Properties: an input set and the unsafe outputs, a union of polytopes {y : C y <= d}.

A property holds when no input of the set is mapped into the unsafe set. Arrays here are float64
numpy; sets carry no batch axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from certify.errors import PropertyError

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Box:
    """{x : lower <= x <= upper}, the enclosing float64 box of what the user stated (rounded outward).

    lower, upper: shape of the network's input without batch. inner_lower, inner_upper: the same
    box rounded inward (for witnesses); equal to lower, upper where those are exact.
    """

    lower: Float64
    upper: Float64
    inner_lower: Float64
    inner_upper: Float64

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise PropertyError(f"box: lower has shape {self.lower.shape}, upper {self.upper.shape}")
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all()):
            raise PropertyError("box: bounds must be finite numbers")
        if (self.lower > self.upper).any():
            i = int(np.argmax((self.lower > self.upper).ravel()))
            raise PropertyError(
                f"box: empty, coordinate {i} has lower {self.lower.ravel()[i]} > upper {self.upper.ravel()[i]}"
            )

    @staticmethod
    def exact(lower: Float64, upper: Float64) -> Box:
        """A box whose float64 bounds are meant exactly."""
        lower = np.asarray(lower, dtype=np.float64)
        upper = np.asarray(upper, dtype=np.float64)
        return Box(lower, upper, lower, upper)


@dataclass(frozen=True, eq=False)
class LpBall:
    """{x : |x - center|_p <= eps} intersected with `box`; p is 1 or 2 (a Linf ball is a Box).

    eps is rounded up from what the user stated, inner_eps down.
    """

    center: Float64
    eps: float
    inner_eps: float
    p: int
    box: Box


InputSet = Box | LpBall


@dataclass(frozen=True, eq=False)
class Polytope:
    """{y : coeff y <= offset}, rows with strict[i] meaning `<`. Shapes (R, n), (R,), (R,).

    `offset` is rounded up (the set only grows) and inner_offset down, from what the user stated.
    Proofs treat strict rows as `<=`, witnesses as `<`.
    """

    coeff: Float64
    offset: Float64
    inner_offset: Float64
    strict: NDArray[np.bool_]

    def violation(self, y: Float64) -> float:
        """Smallest slack min_i (inner_offset - coeff y)_i; the point is inside iff it is >= 0 (> 0 on strict rows)."""
        return float(np.min(self.inner_offset - self.coeff @ y)) if len(self.offset) else np.inf

    def contains(self, y: Float64) -> bool:
        """Is y inside? Every row is evaluated in exact rationals."""
        for row, offset, strict in zip(self.coeff, self.inner_offset, self.strict, strict=True):
            value = sum(
                (Fraction(float(c)) * Fraction(float(v)) for c, v in zip(row, y, strict=True) if c != 0), Fraction(0)
            )
            if value > Fraction(float(offset)) or (strict and value == Fraction(float(offset))):
                return False
        return True


@dataclass(frozen=True, eq=False)
class Case:
    """One input set with the union of polytopes that is unsafe for it."""

    inputs: InputSet
    unsafe: tuple[Polytope, ...]


@dataclass(frozen=True, eq=False)
class Ball:
    """What was asked about a sample: no x' with |x' - center|_norm <= eps and low <= x' <= high gets another class than
    `label` of `classes`. eps is exact.
    """

    center: Float64
    eps: Fraction
    norm: str
    low: float
    high: float
    label: int
    classes: int


@dataclass(frozen=True, eq=False)
class Property:
    """All cases must be safe; a witness of any case falsifies.

    ball: what was asked, where it is about a sample; spec: the VNN-LIB file's text, where it is from one. The checker
    of certificates makes the cases from these anew.
    """

    cases: tuple[Case, ...]
    ball: Ball | None = None
    spec: bytes | None = None

    @staticmethod
    def around(ball: Ball, unsafe: tuple[Polytope, ...] | None = None) -> Property:
        """The property that the ball states; unsafe: its `misclassification`, where it is at hand."""
        unsafe = misclassification(ball.label, ball.classes) if unsafe is None else unsafe
        inputs = input_ball(ball.center, ball.eps, ball.norm, ball.low, ball.high)
        return Property((Case(inputs, unsafe),), ball)


def input_ball(x: Float64, eps: Fraction, norm: str, low: float, high: float) -> InputSet:
    """{x' : |x' - x|_norm <= eps, low <= x' <= high} around one sample x (no batch axis).

    norm: "linf", "l2" or "l1". Bounds are rounded outward for proofs and inward for witnesses.
    """
    x = np.asarray(x, dtype=np.float64)
    wide = _round_fraction(eps, up=True)
    narrow = _round_fraction(eps, up=False)
    range_box = Box.exact(np.full(x.shape, low), np.full(x.shape, high))
    if norm != "linf":
        return LpBall(x, wide, narrow, {"l1": 1, "l2": 2}[norm], range_box)
    lower = np.clip(np.nextafter(x - wide, -np.inf), low, high) if wide else x
    upper = np.clip(np.nextafter(x + wide, np.inf), low, high) if wide else x
    inner_lower = np.clip(np.nextafter(x - narrow, np.inf), low, high) if narrow else x
    inner_upper = np.clip(np.nextafter(x + narrow, -np.inf), low, high) if narrow else x
    return Box(lower, upper, np.minimum(inner_lower, x), np.maximum(inner_upper, x))


def misclassification(label: int, classes: int) -> tuple[Polytope, ...]:
    """{y : some rival's logit >= the label's}: one polytope y_label - y_j <= 0 per rival j, ascending."""
    rows = []
    for rival in range(classes):
        if rival != label:
            coeff = np.zeros((1, classes))
            coeff[0, label], coeff[0, rival] = 1.0, -1.0
            zero = np.zeros(1)
            # Strict: at a tie argmax may still answer the label, so a tie is no witness.
            rows.append(Polytope(coeff, zero, zero, np.array([rival > label])))
    return tuple(rows)


def _round_fraction(value: Fraction, *, up: bool) -> float:
    """The float64 next to a rational, rounded up or down."""
    near = float(value)
    if up and Fraction(near) < value:
        return float(np.nextafter(near, np.inf))
    if not up and Fraction(near) > value:
        return float(np.nextafter(near, -np.inf))
    return near
