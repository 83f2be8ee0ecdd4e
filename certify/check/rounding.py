"""Numbers that bounds may be trusted with: floats whose every rounding is paid for, or fractions.

Assumed of float64 and float32: IEEE 754, to nearest, with subnormals (`verify_floats` tries it), so that every +, -, *,
/ and square root is off by a relative u at most (2^-53, 2^-24), products and quotients by the smallest normal number
more where they underflow. Sums of products, in any order, with or without FMA, are then off by gamma_n (sum of the
absolute products), n their number (Higham 2002, section 3.1); that holds for the matrix products of a BLAS that
multiplies matrices in the textbook's way.

Numbers are float64 (or fractions). The coefficients of a backward pass are as many as all else together, and take half
the time in float32: a *quick* pass keeps them so, with the same proof and float32's u. What it leaves open is computed
again in float64.

Constants that scale errors are computed in floats, too: `gamma` is larger than gamma_n by 8 u and a thousandth, which
pays for what few operations between non-negative numbers can lose (each a relative u).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from certify.check.errors import Rejected

Float64 = NDArray[np.float64]
Numbers = NDArray[Any]  # float64, or objects that are fractions

U = 2.0**-53
TINY = 2.0**-1022  # the smallest normal number
U32, SMALL = 2.0**-24, 2.0**-126  # the same of float32
LONGEST = 1 << 16  # products in a sum of a quick pass
BLOCK = 256  # products that `dot` adds up before it goes on in float64
_fraction: Callable[[Any], Numbers] = np.frompyfunc(Fraction, 1, 1)


@dataclass(frozen=True)
class Arithmetic:
    """How sums of products are computed: in float64, or exactly. Intervals and slopes are floats in both cases.

    quick: coefficients of backward passes, and what they are multiplied with, are float32.
    """

    exact: bool = False
    quick: bool = False

    def array(self, values: Float64) -> Numbers:
        """Floats as the numbers that are computed with."""
        if not self.exact:
            return values
        out = np.empty(values.shape, dtype=object)
        out[...] = _fraction(values)
        return out

    def zeros(self, shape: tuple[int, ...]) -> Numbers:
        return np.full(shape, Fraction(0), dtype=object) if self.exact else np.zeros(shape)

    def number(self, value: float) -> Any:
        return Fraction(value) if self.exact else value

    def gamma(self, n: int) -> Any:
        """What a sum of n products may be off by, relative to the sum of their absolute values, and 8 u more."""
        if self.exact:
            return Fraction(0)
        assert 0 <= n < 2**32, "so that n u < 2^-20"
        return (n + 8) * U * (1 + 2.0**-10)

    def slip(self, n: int) -> Any:
        """`gamma` of coefficients."""
        assert not self.quick or n <= 4 * LONGEST, "so that n u <= 2^-6"
        return self.gamma(n) * self.wider

    @property
    def wider(self) -> Any:
        """How many times as much coefficients lose as numbers do; 1 / (1 - n u) included."""
        return U32 / U * (1 + 2.0**-5) if self.quick else 1

    @property
    def tiny(self) -> Any:
        """What a product may lose by underflow."""
        return Fraction(0) if self.exact else SMALL if self.quick else TINY

    @property
    def grow(self) -> Any:
        """Sums of errors are multiplied by this: they were computed with fewer than 2^30 roundings in a chain, or 2^17
        of float32.
        """
        return Fraction(1) if self.exact else 1 + (2.0**-6 if self.quick else 2.0**-20)

    @property
    def wide(self) -> Arithmetic:
        """The same, coefficients no less precise than numbers."""
        return REAL if self.quick else self

    def coefficients(self, values: Numbers) -> Numbers:
        """Numbers as coefficients, to nearest: off by u and, where they underflow, by `tiny`."""
        return values.astype(np.float32) if self.quick else values

    def roughly(self, values: Numbers) -> Numbers:
        """Coefficients that are not less than these numbers >= 0."""
        return at_least(values, np.float32) if self.quick else values

    def above(self, function: Callable[..., Numbers], *sizes: Numbers) -> Numbers:
        """At least what a sum of products gives, none of them negative: for errors."""
        return cast(Numbers, as_numbers(function(*map(self.roughly, sizes))) * self.grow)

    def floats(self, values: Numbers, up: bool) -> Float64:
        """The numbers as float64, rounded up or down."""
        if not self.exact:
            return cast(Float64, values)
        return _outward(values, up)


REAL, EXACT, QUICK = Arithmetic(), Arithmetic(exact=True), Arithmetic(quick=True)


def _outward(values: Numbers, up: bool) -> Float64:
    out = np.empty(values.shape)
    for where in np.ndindex(values.shape):
        value: Any = values[where]
        if not isinstance(value, Fraction | int):
            raise Rejected(f"a {type(value).__name__} got into exact arithmetic")
        try:
            near = float(value)
        except OverflowError:
            raise Rejected("a number beyond float64") from None
        if (near < value) if up else (near > value):
            near = np.nextafter(near, np.inf if up else -np.inf)
        out[where] = near
    return out


def dot(a: Numbers, w: Numbers) -> Numbers:
    """sum_j a_rj w_rj -> (R,), as numbers; w (R, n), or (1, n) for all rows. Off as a sum of `chain(n)` products."""
    if a.dtype == object:
        return cast(Numbers, (a * w).sum(axis=1))
    count, each = a.shape[1], len(w) == 1
    if count < 2 * BLOCK:
        return as_numbers(a @ w[0] if each else np.einsum("rn,rn->r", a, w))
    size = _block(count)
    whole = count - count % size
    rows, vectors = a[:, :whole].reshape(len(a), -1, size), w[:, :whole].reshape(len(w), -1, size)
    if each:
        sums = np.add.reduce((rows.transpose(1, 0, 2) @ vectors[0, :, :, None])[:, :, 0], axis=0, dtype=np.float64)
    else:
        sums = np.add.reduce(np.einsum("rbn,rbn->rb", rows, vectors), axis=1, dtype=np.float64)
    if whole < count:
        a, w = a[:, whole:], w[:, whole:]
        sums = sums + (a @ w[0] if each else np.einsum("rn,rn->r", a, w))
    return cast(Numbers, sums)


@lru_cache(maxsize=256)
def _block(n: int) -> int:
    """BLOCK, or a little less if that leaves no rest."""
    return max((size for size in range(BLOCK // 2, BLOCK + 1) if n % size == 0), default=BLOCK)


def chain(n: int) -> int:
    """How many products in one sum lose as much as `dot` of n does: blocks are added up in float64."""
    return min(n, 2 * BLOCK) + 2 * n // BLOCK + 1


def as_numbers(coefficients: Numbers) -> Numbers:
    """The same, no longer float32."""
    return coefficients.astype(np.float64) if coefficients.dtype == np.float32 else coefficients


def at_least(values: Numbers, kind: Any) -> Numbers:
    """Coefficients of this type that are not less than these numbers >= 0."""
    return (values * (1 + 4 * U32) + SMALL).astype(np.float32) if kind == np.float32 else values


def finite(place: str, *arrays: Float64) -> None:
    """Rejected where a number is NaN or infinite."""
    for array in arrays:
        if not np.isfinite(array).all():
            raise Rejected(f"{place}: overflow")


def away(values: Float64, size: Float64 | None = None) -> Float64:
    """An upper bound of what 4 operations on numbers of at most |values| + size may be off by, each by u or TINY."""
    sizes = np.abs(values)
    return (sizes if size is None else sizes + size) * (8 * U) + 8 * TINY


def verify_floats() -> None:
    """Rejected on a machine whose floats do not round to nearest or flush subnormals to zero."""
    for kind, u, tiny in ((np.float64, U, TINY), (np.float32, U32, SMALL)):
        made: list[Numbers] = [np.full(9, v, dtype=kind) for v in (1, tiny, 0.5, 3)]
        one, small, half, three = made
        good = (one + kind(u) == one) & (one + kind(3 * u) == one + kind(4 * u)) & (small * half > 0)
        good &= one / three * three == one
        last = np.full((64, 64), 1 + 2 * u, dtype=kind)
        products = ((small * half)[:, None] @ one[None, :] > 0).all() and (last @ np.eye(64, dtype=kind) == last).all()
        if not good.all() or not products:
            raise Rejected(f"this machine's {kind.__name__} does not round as IEEE 754 says")
