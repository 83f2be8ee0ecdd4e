"""Constants of an ONNX file: as stored, exact; or computed from such, in real arithmetic, and then an enclosure.

Float64 sums, products, quotients and square roots are correctly rounded (IEEE 754), so that the true value lies between
the two neighbours of the computed one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.check.errors import Rejected

Array = NDArray[Any]
Float64 = NDArray[np.float64]
FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
LARGEST_ERROR = 2.0**-20  # relative, of a weight: more means that computing it has lost what the file meant


@dataclass(frozen=True, eq=False)
class Constant:
    """lower <= the constant <= upper. Where it is exact, both are one array, of the type that the file stores."""

    lower: Array
    upper: Array

    @property
    def exact(self) -> bool:
        return self.lower is self.upper

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lower.shape

    @property
    def is_float(self) -> bool:
        return self.lower.dtype in FLOATS

    def move(self, change: Callable[[Array], Array]) -> Constant:
        """The same numbers elsewhere."""
        lower = change(self.lower)
        return Constant(lower, lower if self.exact else change(self.upper))

    def float64(self) -> Constant:
        """As float64, which is exact; only finite floats pass."""
        if not self.is_float:
            raise Rejected(f"a constant of type {self.lower.dtype} where weights are needed")
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all()):
            raise Rejected("a constant holds NaN or infinity")
        return self.move(lambda a: a.astype(np.float64, copy=False))

    def integers(self) -> list[int]:
        if not self.exact or self.lower.dtype.kind not in "iu":
            raise Rejected("constant integers are needed")
        return [int(n) for n in self.lower.reshape(-1)]

    def number(self) -> float:
        """Its only number, which must be exact."""
        if not self.exact or self.lower.size != 1 or not self.is_float:
            raise Rejected("one exact floating-point number is needed")
        return float(self.lower.reshape(-1)[0])


def exact(value: Any) -> Constant:
    """The constant that the array is."""
    array = np.asarray(value)
    return Constant(array, array)


ZERO, ONE = exact(np.float64(0.0)), exact(np.float64(1.0))


def _enclosed(lower: Array, upper: Array, is_exact: Array | bool) -> Constant:
    """One step outward, save where the result is exact."""
    below, above = np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf)
    found = Constant(np.where(is_exact, lower, below), np.where(is_exact, upper, above))
    if not (np.isfinite(found.lower).all() and np.isfinite(found.upper).all()):
        raise Rejected("computing a constant overflows")
    return exact(found.lower) if np.array_equal(found.lower, found.upper) else found


def negative(a: Constant) -> Constant:
    """-a."""
    return exact(-a.lower) if a.exact else Constant(-a.upper, -a.lower)


def add(a: Constant, b: Constant) -> Constant:
    """a + b. A sum is exact where its error, which TwoSum (Knuth) computes, is 0."""
    a, b = a.float64(), b.float64()
    lower, upper = a.lower + b.lower, a.upper + b.upper
    if not (a.exact and b.exact):
        return _enclosed(lower, upper, False)
    back = lower - a.lower
    return _enclosed(lower, upper, (a.lower - (lower - back)) + (b.lower - back) == 0)


def multiply(a: Constant, b: Constant) -> Constant:
    """a b. Products with 0 and those of two float32 numbers need no rounding."""
    a, b = a.float64(), b.float64()
    if a.exact and a.shape == () and a.lower == 1:
        return b
    products = [x * y for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
    is_exact = ((a.lower == 0) & (a.upper == 0)) | ((b.lower == 0) & (b.upper == 0))
    if a.exact and b.exact:
        with np.errstate(over="ignore"):
            short = (a.lower.astype(np.float32) == a.lower) & (b.lower.astype(np.float32) == b.lower)
        is_exact = is_exact | short | (np.abs(a.lower) == 1) | (np.abs(b.lower) == 1)
    return _enclosed(np.minimum.reduce(products), np.maximum.reduce(products), is_exact)


def divide(a: Constant, b: Constant) -> Constant:
    """a / b; b must not be 0. Quotients by powers of two that multiply back are exact, and 0 / b is."""
    a, b = a.float64(), b.float64()
    if not ((b.lower > 0) | (b.upper < 0)).all():
        raise Rejected("a constant divides by zero")
    quotients = [x / y for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
    is_exact = (a.lower == 0) & (a.upper == 0)
    if a.exact and b.exact:
        is_exact = is_exact | ((np.abs(np.frexp(b.lower)[0]) == 0.5) & (quotients[0] * b.lower == a.lower))
    return _enclosed(np.minimum.reduce(quotients), np.maximum.reduce(quotients), is_exact)


def square_root(a: Constant) -> Constant:
    """The root of positive numbers."""
    a = a.float64()
    if not (a.lower > 0).all():
        raise Rejected("a constant under a square root is not positive")
    return _enclosed(np.sqrt(a.lower), np.sqrt(a.upper), False)


def weight_of(a: Constant) -> tuple[Float64, float]:
    """(value, e): every entry lies within e |value| of value."""
    value, error = bias_of(a)
    error = np.asarray(error)
    if not error.any():
        return value, 0.0
    if (error[value == 0] > 0).any():
        raise Rejected("a computed weight may be 0")
    ratio = np.nextafter(error[value != 0] / np.abs(value[value != 0]), np.inf)
    worst = float(ratio.max(initial=0.0))
    if not worst < LARGEST_ERROR:
        raise Rejected("computing a weight loses most of its digits")
    return value, worst


def bias_of(a: Constant) -> tuple[Float64, Float64 | float]:
    """(value, e): every entry lies within e of value; e is 0.0 where all are exact, else an array."""
    a = a.float64()
    if a.exact:
        return a.lower, 0.0
    value = np.asarray(a.lower + (a.upper - a.lower) / 2)
    error = np.nextafter(np.maximum(a.upper - value, value - a.lower), np.inf)
    error = np.asarray(np.where(a.lower < a.upper, error, 0.0))
    if not (np.isfinite(value).all() and np.isfinite(error).all()):
        raise Rejected("a computed constant is too wide")
    return value, error


# Ops by which onnx's reference computes exactly on exact numbers: they choose, compare and move.
CHOOSE = {
    *("Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Relu", "Max", "Min", "Where", "ReduceMax", "ReduceMin", "Clip"),
    *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "IsInf", "IsNaN", "NonZero", "Trilu", "ScatterND"),
    *("Compress", "ConstantOfShape", "Pad"),
}
COUNT = {  # exact on integers and booleans
    *("Add", "Sub", "Mul", "Div", "Mod", "Not", "And", "Or", "Xor", "ReduceProd", "ReduceSum", "CumSum", "Sum"),
    *("Range", "TopK", "OneHot", "ArgMax", "ArgMin"),
}
POWERS: dict[float, Callable[[Constant], Constant]] = {
    1.0: lambda a: a,
    2.0: lambda a: multiply(a, a),
    0.5: square_root,
    -0.5: lambda a: divide(ONE, square_root(a)),
    -1.0: lambda a: divide(ONE, a),
}
BINARY = {"Add": add, "Sub": lambda a, b: add(a, negative(b)), "Mul": multiply, "Div": divide}


def computed(op: str, operands: list[Constant]) -> Constant:
    """An op on stored floats in real arithmetic; exact only where their type holds it, so that a runtime gets it."""
    found = arithmetic(op, operands)
    held = found.lower.astype(operands[0].lower.dtype)
    if found.exact and np.array_equal(held, found.lower):
        return exact(held)
    return Constant(found.lower, found.upper.copy())


def arithmetic(op: str, operands: list[Constant]) -> Constant:
    """An op on stored floats in real arithmetic."""
    if op in BINARY and len(operands) == 2:
        return BINARY[op](*operands)
    if op == "Neg":
        return negative(operands[0].float64())
    if op == "Sqrt":
        return square_root(operands[0])
    if op == "Reciprocal":
        return divide(ONE, operands[0])
    if op == "Pow" and len(operands) == 2:
        power = POWERS.get(operands[1].number())
        if power is not None and operands[1].lower.ndim <= operands[0].lower.ndim:
            return power(operands[0].float64())
    raise Rejected("constants are computed in a way that is not supported; fold them in the file")
