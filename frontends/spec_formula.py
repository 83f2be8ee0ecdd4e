"""Formulas over inputs X and outputs Y with exact rationals: what both VNN-LIB front ends read.

A comparison becomes a bound of one input or a row over the outputs; anything else is refused with its line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from certify.errors import PropertyError

# Nesting of a formula; real files have 4. Keeps recursions far from the interpreter's limit.
MAX_DEPTH = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a formula comes from: `where` marks (token numbers, or lines) become line numbers in errors."""

    name: str
    line_of: Callable[[int], int]
    input_label: Callable[[int], str]

    def error(self, where: int, message: str) -> PropertyError:
        return PropertyError(f"{self.name}, line {self.line_of(where)}: {message}")

    def warn(self, where: int, message: str) -> None:
        _log.warning("%s, line %d: %s", self.name, self.line_of(where), message)


class Exact(NamedTuple):
    """A rational with its enclosing float64 numbers: down <= value <= up, equal if representable."""

    value: Fraction
    down: float
    up: float


class Bound(NamedTuple):
    """X_i <= bound (or >= where not `upper`), i = coordinate; `strict` excludes equality."""

    coordinate: int
    upper: bool
    bound: Exact
    strict: bool
    where: int


class Row(NamedTuple):
    """sum of coefficient * Y_index <= offset; terms ascend by index, no coefficient is zero."""

    terms: tuple[tuple[int, Fraction], ...]
    offset: Fraction
    strict: bool
    where: int


class All(NamedTuple):
    """Every part holds."""

    parts: Sequence[Formula]


class Either(NamedTuple):
    """Some part holds."""

    parts: Sequence[Formula]


Atom = Bound | Row
Formula = Atom | All | Either | bool


def conjunction(parts: Sequence[Formula]) -> Formula:
    """Every part holds."""
    return False if any(part is False for part in parts) else All(parts)


def disjunction(source: Source, parts: Sequence[tuple[int, Formula]]) -> Formula:
    """Some part holds, parts being (mark, formula); a warning names the first that its constants make false."""
    false = [where for where, part in parts if part is False]
    if len(false) == len(parts):
        return False
    if false:
        source.warn(false[0], f"this branch is never true and adds nothing{more(len(false))}")
    return Either([part for _, part in parts])


def more(count: int) -> str:
    return f" ({count - 1} more like it)" if count > 1 else ""


class Linear(NamedTuple):
    """constant + sum of coefficient * variable; a variable is (is it an output?, flat index)."""

    terms: dict[tuple[bool, int], Fraction]
    constant: Fraction

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """self + factor * other."""
        terms = dict(self.terms)
        for key, value in other.terms.items():
            terms[key] = terms.get(key, Fraction(0)) + factor * value
        return Linear(terms, self.constant + factor * other.constant)

    def times(self, factor: Fraction) -> Linear:
        return Linear({key: value * factor for key, value in self.terms.items()}, self.constant * factor)


def product(source: Source, where: int, factors: Iterable[Linear]) -> Linear:
    """The product of linear terms of which at most one is not constant.

    Raises PropertyError if two factors hold variables: non-linear.
    """
    result = Linear({}, Fraction(1))
    for factor in factors:
        if result.terms and factor.terms:
            raise source.error(where, "a product of variables is not linear; only constant * variable is supported")
        result = factor.times(result.constant) if factor.terms else result.times(factor.constant)
    return result


def enclose(value: Fraction) -> Exact:
    """The float64 numbers next to a rational. Raises OverflowError beyond the float64 range."""
    numerator, denominator = value.numerator, value.denominator
    near = numerator / denominator  # int / int rounds to nearest, correctly
    top, bottom = near.as_integer_ratio()
    left, right = top * denominator, numerator * bottom
    return Exact(
        value,
        near if left <= right else math.nextafter(near, -math.inf),
        near if left >= right else math.nextafter(near, math.inf),
    )


def compare(source: Source, where: int, operator: str, left: Linear, right: Linear) -> Formula:
    """The formula `left operator right`, operator one of <= >= < > = !=.

    Raises PropertyError for what a union of (box, polytope) pairs cannot say: a comparison of inputs
    with each other or with outputs.
    """
    if operator == "=":
        return conjunction([compare(source, where, part, left, right) for part in ("<=", ">=")])
    if operator == "!=":
        return Either((compare(source, where, "<", left, right), compare(source, where, ">", left, right)))
    difference = left.plus(right, -1) if operator[0] == "<" else right.plus(left, -1)
    strict = len(operator) == 1
    offset = -difference.constant
    terms = sorted((key, value) for key, value in difference.terms.items() if value)
    if not terms:
        return offset > 0 if strict else offset >= 0
    if terms[0][0][0] != terms[-1][0][0]:
        raise source.error(where, "inputs and outputs in one comparison are not supported; compare them separately")
    if terms[0][0][0]:
        return Row(tuple((index, value) for (_, index), value in terms), offset, strict, where)
    if len(terms) > 1:
        raise source.error(
            where,
            f"a linear combination of {len(terms)} inputs is not supported; input sets are boxes: bound each input",
        )
    ((_, index), factor) = terms[0]
    return bound(source, where, index, factor > 0, offset / factor, strict)


def bound(source: Source, where: int, index: int, upper: bool, value: Fraction, strict: bool) -> Bound:
    """One bound of one input; PropertyError if it is beyond the float64 range."""
    try:
        exact = enclose(value)
    except OverflowError:
        exact = Exact(value, -math.inf, math.inf)
    if not (math.isfinite(exact.down) and math.isfinite(exact.up)):
        raise source.error(where, f"the bound of {source.input_label(index)} is not finite in float64")
    return Bound(index, upper, exact, strict, where)
