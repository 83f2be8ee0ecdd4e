"""Constants that had to be computed: a value and a bound on its distance from the real number it stands for.

numpy values are computed in float64, torch tensors in their own dtype (so that gradients flow). Errors are absolute
and elementwise; an operation that is exact in floating point states no error. Errors carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.arrays import UNDERFLOW, UNIT_ROUNDOFF, Array, dtype_name, is_torch, like, namespace, to_numpy
from certify.errors import ModelError

# The error terms are themselves computed in floating point, a dozen roundings each; this covers them many times over.
ERROR_INFLATION = 1 + 2.0**-18
# torch on a GPU may round division and square root less than correctly; one ulp either way is four half ulps.
TORCH_ROUNDOFFS = 4
# A product below this many times the smallest normal number may have lost digits to underflow.
UNDERFLOW_MARGIN = 4.0


@dataclass(frozen=True, eq=False)
class Known:
    """A constant: |true - value| <= error, elementwise; error 0.0 means exact."""

    value: Array
    error: Any = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def reshape(self, shape: tuple[int, ...]) -> Known:
        """The same numbers under another shape."""
        if isinstance(self.error, float):
            return Known(self.value.reshape(shape), self.error)
        return Known(self.value.reshape(shape), self._full_error().reshape(shape))

    def broadcast(self, shape: tuple[int, ...]) -> Known:
        """numpy.broadcast_to of value and error."""
        error = self.error
        if not isinstance(error, float):
            error = namespace(error).broadcast_to(error, shape)
        return Known(namespace(self.value).broadcast_to(self.value, shape), error)

    def move(self, change: Callable[[Array], Array]) -> Known:
        """A rearrangement of the numbers, the same for value and error."""
        return Known(change(self.value), self.error if isinstance(self.error, float) else change(self._full_error()))

    def _full_error(self) -> Array:
        return namespace(self.error).broadcast_to(self.error, self.shape)


def known(value: Array | Known | float) -> Known:
    """`value` itself, exact: arrays and Python numbers are taken at their word."""
    if isinstance(value, Known):
        return value
    return Known(value if is_torch(value) else np.asarray(value))


def plain(value: Array) -> Array:
    """The numbers of `value` without gradient."""
    return value.detach() if is_torch(value) else value


def add(a: Known, b: Known) -> Known:
    """a + b; the rounding error is known exactly (TwoSum, Knuth 1969)."""
    a, b = _common(a, b)
    total = a.value + b.value
    x, y, rounded = plain(a.value), plain(b.value), plain(total)
    back = rounded - x
    residual = (x - (rounded - back)) + (y - back)
    return _result(total, namespace(residual).abs(residual) + a.error + b.error)


def negative(a: Known) -> Known:
    """-a, exact."""
    return Known(-a.value, a.error)


def subtract(a: Known, b: Known) -> Known:
    """a - b."""
    return add(a, negative(b))


def multiply(a: Known, b: Known) -> Known:
    """a b; exact where both have at most 24 bits or one is a power of two, else half an ulp."""
    a, b = _common(a, b)
    product = a.value * b.value
    x, y, rounded = plain(a.value), plain(b.value), plain(product)
    xp = namespace(rounded)
    size = xp.abs(rounded)
    error = xp.where(_exact_product(x, y), xp.zeros_like(size), _unit(rounded) * size)
    error = error + _underflow(size, (x != 0) & (y != 0))
    return _result(product, error + scaled(xp.abs(x), b.error) + scaled(xp.abs(y) + b.error, a.error))


def divide(a: Known, b: Known) -> Known:
    """a / b; a divisor that may be zero is refused."""
    a, b = _common(a, b)
    x, y = plain(a.value), plain(b.value)
    xp = namespace(y)
    room = xp.abs(y) - b.error
    if not bool(xp.all(room > 0)):
        raise ModelError("a constant divides by zero; the network has no finite value there")
    quotient = a.value / b.value
    size = xp.abs(plain(quotient))
    error = _unit(size) * size
    if not is_torch(y):
        error = np.where(_is_power_of_two(y), 0.0, error)
    error = error + _underflow(size, x != 0)
    return _result(quotient, error + _divided(a.error, room) + scaled(size, _divided(b.error, room)))


def square_root(a: Known) -> Known:
    """The square root of a constant that must be positive."""
    x = widen(a.value)
    xp = namespace(x)
    if not bool(xp.all(plain(x) - a.error > 0)):
        raise ModelError("a constant under a square root (variance + epsilon) is not positive")
    root = xp.sqrt(x)
    rounded = plain(root)
    return _result(root, _unit(rounded) * rounded + a.error / rounded)


def relative(a: Known, what: str = "constant") -> tuple[Array, float]:
    """(value, e) with |true - value| <= e |value| for every entry, as Weighted.weight_error wants it."""
    if isinstance(a.error, float) and a.error == 0.0:
        return a.value, 0.0
    if not np.all(np.isfinite(to_numpy(a.value))):
        raise ModelError(f"{what}: computing it overflows; store the computed weights in the file")
    size = np.abs(to_numpy(plain(a.value))).astype(np.float64)
    error = np.broadcast_to(to_numpy(a.error), size.shape)
    if np.any(error[size == 0] > 0):
        raise ModelError(f"{what}: a weight comes out as 0 but not exactly; store the computed weights in the file")
    ratios = error[size > 0] / size[size > 0]
    worst = float(ratios.max()) * ERROR_INFLATION if ratios.size else 0.0
    if worst > 1e-3:
        raise ModelError(
            f"{what}: computing it loses all but {-np.log10(worst):.0f} digits; store the computed weights"
        )
    return a.value, worst


def widen(value: Array) -> Array:
    """float64 for numpy; torch tensors stay as they are."""
    return value if is_torch(value) else np.asarray(value, dtype=np.float64)


def _common(a: Known, b: Known) -> tuple[Known, Known]:
    """Both in one library and at working precision; what the conversion rounds is added to the errors."""
    x, y = Known(widen(a.value), a.error), Known(widen(b.value), b.error)
    if is_torch(x.value) == is_torch(y.value):
        return x, y
    return (x, _to_torch(y, x.value)) if is_torch(x.value) else (_to_torch(x, y.value), y)


def _to_torch(a: Known, sample: Array) -> Known:
    moved = like(a.value, sample)
    gap = np.abs(to_numpy(moved).astype(np.float64) - a.value) + a.error
    return Known(moved, like(gap * ERROR_INFLATION, sample)) if np.any(gap) else Known(moved)


def scaled(size: Array, error: Any) -> Any:
    """size * error, an error bound, of nonnegative numbers, never rounded down to nothing."""
    if isinstance(error, float) and error == 0.0:
        return 0.0
    product = size * error
    return product + _underflow(product, (size > 0) & (error > 0))


def _divided(error: Any, room: Array) -> Any:
    """error / room of nonnegative numbers, never rounded down to nothing."""
    if isinstance(error, float) and error == 0.0:
        return 0.0
    quotient = error / room
    return quotient + _underflow(quotient, (error > 0) & (room > 0))


def _underflow(size: Array, nonzero: Array) -> Array:
    """What a nonzero result that is this small may have lost to underflow."""
    xp = namespace(size)
    tiny = UNDERFLOW_MARGIN * UNDERFLOW[dtype_name(size)]
    return xp.where((size < tiny) & nonzero, xp.full_like(size, tiny), xp.zeros_like(size))


def _result(value: Array, error: Any) -> Known:
    if isinstance(error, float):
        return Known(value, error * ERROR_INFLATION)
    if not is_torch(error) and not np.any(error):
        return Known(value)
    return Known(value, error * ERROR_INFLATION)


def _unit(x: Array) -> float:
    return UNIT_ROUNDOFF[dtype_name(x)] * (TORCH_ROUNDOFFS if is_torch(x) else 1)


def _is_power_of_two(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.abs(np.frexp(x)[0]) == 0.5)


def _exact_product(x: Array, y: Array) -> Any:
    """Where x y needs no rounding for sure (numpy float64 only)."""
    if is_torch(x):
        return namespace(x).zeros_like(x * y, dtype=namespace(x).bool)
    with np.errstate(over="ignore"):
        narrow = (x.astype(np.float32) == x) & (y.astype(np.float32) == y)
    return narrow | _is_power_of_two(x) | _is_power_of_two(y)
