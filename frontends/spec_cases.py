"""Formulas over inputs X and outputs Y in disjunctive normal form: a union of (box, polytope) pairs.

Both VNN-LIB front ends build the same formulas; here they become a `Property`. Numbers are exact rationals
until the last step, which rounds outward for proofs and inward for witnesses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from certify.errors import PropertyError
from certify.frontends.spec_formula import All, Atom, Bound, Either, Exact, Formula, Row, Source, enclose, more
from certify.property import Box, Case, Float64, Polytope, Property

# Limits of the normal form: beyond them memory runs out before any bound is computed.
MAX_DISJUNCTS = 100_000
MAX_ATOMS = 5_000_000
MAX_BOX_ENTRIES = 20_000_000

Clause = tuple[Atom, ...]


@dataclass(frozen=True)
class _Expansion:
    """A formula as a disjunction of clauses; `crossed` if two disjunctions were multiplied out."""

    clauses: list[Clause]
    crossed: bool


def _expand(formula: Formula, source: Source) -> _Expansion:
    if isinstance(formula, bool):
        return _Expansion([()] if formula else [], False)
    if isinstance(formula, Either):
        parts = [_expand(part, source) for part in formula.parts]
        clauses = [clause for part in parts for clause in part.clauses]
        _check_size(len(clauses), sum(map(len, clauses)), source)
        return _Expansion(clauses, any(part.crossed for part in parts))
    if isinstance(formula, All):
        common, several, crossed = _factors(formula.parts, source)
        if several is None:
            return _Expansion([], crossed)
        clauses = _cross([[tuple(common)], *several], source)
        return _Expansion(clauses, crossed or len(several) > 1)
    return _Expansion([(formula,)], False)


def _factors(parts: Iterable[Formula], source: Source) -> tuple[list[Atom], list[list[Clause]] | None, bool]:
    """A conjunction as (atoms that always hold, the disjunctions left, crossed); None where a part is false."""
    common: list[Atom] = []
    several: list[list[Clause]] = []
    crossed = False
    for part in parts:
        if isinstance(part, (Bound, Row)):
            common.append(part)
            continue
        expansion = _expand(part, source)
        crossed |= expansion.crossed
        if not expansion.clauses:
            return common, None, crossed
        if len(expansion.clauses) == 1:
            common.extend(expansion.clauses[0])
        else:
            several.append(expansion.clauses)
    return common, several, crossed


def _cross(factors: list[list[Clause]], source: Source) -> list[Clause]:
    """All ways to take one clause of every factor, joined."""
    result: list[Clause] = [()]
    for factor in factors:
        count = len(result) * len(factor)
        atoms = sum(map(len, result)) * len(factor) + sum(map(len, factor)) * len(result)
        _check_size(count, atoms, source)
        result = [left + right for left in result for right in factor]
    return result


def _check_size(clauses: int, atoms: int, source: Source) -> None:
    if clauses > MAX_DISJUNCTS or atoms > MAX_ATOMS:
        raise PropertyError(
            f"{source.name}: multiplied out, the assertions have more than {MAX_DISJUNCTS} disjuncts or {MAX_ATOMS} "
            f"comparisons (here {clauses} and {atoms}); split the file into several properties"
        )


@dataclass(frozen=True)
class _Edges:
    """The tightest bounds of every input so far; None where there is none yet."""

    lower: list[Bound | None]
    upper: list[Bound | None]

    def tightened(self, clause: Clause) -> _Edges:
        """These bounds intersected with the clause's."""
        lower, upper = self.lower.copy(), self.upper.copy()
        for atom in clause:
            if not isinstance(atom, Bound):
                continue
            edges = upper if atom.upper else lower
            old = edges[atom.coordinate]
            if old is None or _tighter(atom, old):
                edges[atom.coordinate] = atom
        return _Edges(lower, upper)


def _tighter(new: Bound, old: Bound) -> bool:
    a, b = new.bound.value, old.bound.value
    if a == b:
        return new.strict and not old.strict
    return a < b if new.upper else a > b


def build_property(
    formulas: Sequence[Formula],
    declared: Sequence[int],
    input_shape: tuple[int, ...],
    output_size: int,
    source: Source,
) -> Property:
    """The conjunction of `formulas` as a property: each satisfying (x, y) is unsafe.

    declared: mark of each input's declaration, in flat row-major order of input_shape. Disjuncts with the same
    input box become one case with several polytopes; a disjunct without outputs is the whole output space.
    A disjunct with an empty box adds nothing; a warning names the first, unless it arises only from multiplying
    several disjunctions out. Raises PropertyError: an unbounded input, nothing left, more disjuncts than MAX_DISJUNCTS.
    """
    common, several, crossed = _factors(formulas, source)
    clauses = [] if several is None else _cross(several, source)
    crossed = crossed or (several is not None and len(several) > 1)
    blank: list[Bound | None] = [None] * len(declared)
    base = _Edges(blank, blank).tightened(tuple(common))
    empty = _gap(base)
    if empty is not None:
        raise source.error(*_empty(empty, source))
    base_rows = [atom for atom in common if isinstance(atom, Row)]
    boxes: dict[bytes, Box] = {}
    unsafe: dict[bytes, list[Polytope]] = {}
    base_key: bytes | None = None
    gaps: list[tuple[Bound, Bound]] = []
    for clause in clauses:
        moved = any(isinstance(atom, Bound) for atom in clause)
        if moved or base_key is None:
            edges = base.tightened(clause) if moved else base
            gap = _gap(edges)
            if gap is not None:
                gaps.append(gap)
                continue
            _check_bounded(edges, declared, clause, source)
            box = _box(edges, input_shape)
            key = b"".join(part.tobytes() for part in (box.lower, box.upper, box.inner_lower, box.inner_upper))
            boxes.setdefault(key, box)
            if len(boxes) * len(declared) > MAX_BOX_ENTRIES:
                raise PropertyError(f"{source.name}: more than {MAX_BOX_ENTRIES} bounds in {len(boxes)} input boxes")
            base_key = base_key if moved else key
        else:
            key = base_key
        rows = base_rows + [atom for atom in clause if isinstance(atom, Row)]
        unsafe.setdefault(key, []).append(_polytope(rows, output_size, source))
    if gaps and not unsafe:
        where, text = _empty(gaps[0], source)
        raise source.error(where, f"{text}; every other branch is empty too" if len(clauses) > 1 else text)
    if gaps and not crossed:
        where, text = _empty(gaps[0], source)
        source.warn(where, f"{text}; this branch adds nothing{more(len(gaps))}")
    if not unsafe:
        raise PropertyError(f"{source.name}: the assertions contradict each other: no input and output satisfies them")
    return Property(tuple(Case(boxes[key], tuple(polytopes)) for key, polytopes in unsafe.items()))


def _check_bounded(edges: _Edges, declared: Sequence[int], clause: Clause, source: Source) -> None:
    for side, bounds in (("lower", edges.lower), ("upper", edges.upper)):
        if None in bounds:
            index = bounds.index(None)
            inside = f" in the disjunct of line {source.line_of(clause[0].where)}" if clause else ""
            raise source.error(
                declared[index],
                f"{source.input_label(index)} has no {side} bound{inside}; every input needs finite bounds",
            )


def _gap(edges: _Edges) -> tuple[Bound, Bound] | None:
    """The bounds of an input that no number satisfies, decided on the exact rationals; None if the box has points."""
    for low, high in zip(edges.lower, edges.upper, strict=True):
        if low is None or high is None or low.bound.up < high.bound.down:
            continue
        a, b = low.bound.value, high.bound.value
        if a > b or (a == b and (low.strict or high.strict)):
            return low, high
    return None


def _empty(gap: tuple[Bound, Bound], source: Source) -> tuple[int, str]:
    """Where a box is empty, and why, in words."""
    low, high = gap
    first = source.line_of(min(low.where, high.where))
    return max(low.where, high.where), (
        f"the input box is empty: with line {first}, {source.input_label(low.coordinate)} has lower bound "
        f"{float(low.bound.value)!r} and upper bound {float(high.bound.value)!r}"
    )


def _box(edges: _Edges, shape: tuple[int, ...]) -> Box:
    def array(values: list[float]) -> Float64:
        return np.array(values, dtype=np.float64).reshape(shape)

    lows = [low for low in edges.lower if low is not None]
    highs = [high for high in edges.upper if high is not None]
    lower = array([low.bound.down for low in lows])
    upper = array([high.bound.up for high in highs])
    # A strict bound that is itself a float64 number is not inside.
    inner_lower = array([_inside(low.bound.up, low, math.inf) for low in lows])
    inner_upper = array([_inside(high.bound.down, high, -math.inf) for high in highs])
    return Box(
        lower,
        upper,
        lower if np.array_equal(lower, inner_lower) else inner_lower,
        upper if np.array_equal(upper, inner_upper) else inner_upper,
    )


def _inside(edge: float, limit: Bound, inward: float) -> float:
    exact = limit.bound.down == limit.bound.up
    return math.nextafter(edge, inward) if limit.strict and exact else edge


def _polytope(rows: Sequence[Row], output_size: int, source: Source) -> Polytope:
    coeff = np.zeros((len(rows), output_size))
    offset = np.zeros(len(rows))
    inner_offset = np.zeros(len(rows))
    for r, row in enumerate(rows):
        terms, right = _representable(row, source)
        for index, value in terms:
            coeff[r, index] = value
        offset[r], inner_offset[r] = right.up, right.down
    strict: NDArray[np.bool_] = np.array([row.strict for row in rows], dtype=np.bool_)
    return Polytope(coeff, offset, inner_offset, strict)


def _representable(row: Row, source: Source) -> tuple[list[tuple[int, float]], Exact]:
    """The row, scaled by a positive rational if need be, with coefficients that float64 holds exactly.

    The scale is the common denominator over a power of two, so margins keep their size within a factor 2.
    """
    for scale in (Fraction(1), _common_scale(row)):
        try:
            exact = [(index, enclose(value * scale)) for index, value in row.terms]
            right = enclose(row.offset * scale)
        except OverflowError:
            continue
        finite = math.isfinite(right.down) and math.isfinite(right.up)
        if finite and all(value.down == value.up for _, value in exact):
            return [(index, value.down) for index, value in exact], right
    raise source.error(
        row.where,
        "the coefficients of this comparison cannot be scaled to float64 numbers exactly; use fewer decimals",
    )


def _common_scale(row: Row) -> Fraction:
    multiple = math.lcm(*(value.denominator for _, value in row.terms))
    divisor = math.gcd(*(int(value * multiple) for _, value in row.terms))
    scale = Fraction(multiple, divisor)
    power = scale.numerator.bit_length() - scale.denominator.bit_length()
    return scale / Fraction(2) ** power
