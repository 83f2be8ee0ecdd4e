"""VNN-LIB: the unsafe set that a file states, in exact rationals, and whether a certificate's property covers it.

Read: `(declare-const X_0 Real)`, `(declare-fun Y_0 () Real)` and `(assert F)`, F being `and`/`or` over comparisons of
linear terms in one input, or in outputs. The file states a disjunction of pairs (box of inputs, polytope of outputs).
Version 2 is turned into these commands first (certify.check.vnnlib2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from certify.check.content import Cases, Float64
from certify.check.errors import Rejected, Unreadable
from certify.check.vnnlib2 import as_version1, is_version2, joined

TOKEN = re.compile(r"[()]|[^\s()]+")
COMMENT = re.compile(r";[^\r\n]*")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})", re.ASCII)
MOST_DIGITS, MOST_EXPONENT = 1000, 1000  # no number that a float64 could be near needs more
MOST_DEPTH = 50
MOST_CLAUSES, MOST_ATOMS = 100_000, 5_000_000

Variable = tuple[str, int]
Term = dict[Variable | None, Fraction]  # None: the constant


@dataclass(frozen=True, eq=False)
class Bound:
    """X_input <= value, or >= where not `upper`; strict: without equality."""

    input: int
    upper: bool
    value: Fraction
    strict: bool


@dataclass(frozen=True)
class Row:
    """sum of coefficient * Y_i <= offset, the first coefficient 1 or -1. (Where the file says <: a little more.)"""

    terms: tuple[tuple[int, Fraction], ...]
    offset: Fraction


Clause = tuple[Bound | Row, ...]


@dataclass(frozen=True, eq=False)
class Disjunct:
    """The file's box, rounded outward, and rows that its unsafe outputs satisfy: direction -> smallest offset."""

    lower: Float64
    upper: Float64
    rows: dict[tuple[tuple[int, Fraction], ...], Fraction]


def read_spec(data: bytes, inputs: int, outputs: int) -> list[Disjunct]:
    """The unsafe set of a VNN-LIB file for a network of so many inputs and outputs."""
    try:
        text = COMMENT.sub(" ", data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"spec: not a text ({error})") from error
    if not text.isascii():
        raise Unreadable("spec: other than ASCII characters outside of comments")
    commands = _lists(joined(text))
    if is_version2(commands):
        commands = as_version1(commands)
    declared: set[Variable] = set()
    factors = []
    for command in commands:
        match command:
            case ["assert", list() as formula]:
                factors.append(_formula(formula, declared))
            case ["declare-const", str() as name, "Real"] | ["declare-fun", str() as name, [], "Real"]:
                variable = _variable(name)
                if variable is None or variable in declared:
                    raise Rejected(f"spec: {name!r} is declared twice, or is neither X_i nor Y_i")
                declared.add(variable)
            case _:
                raise Rejected(f"spec: the command {str(command)[:60]} is not known")
    if declared != {("X", i) for i in range(inputs)} | {("Y", i) for i in range(outputs)}:
        raise Rejected(f"spec: it does not declare X_0 ... X_{inputs - 1} and Y_0 ... Y_{outputs - 1}")
    found = [d for clause in _every(factors) if (d := _disjunct(clause, inputs)) is not None]
    if not found:
        raise Rejected("spec: its assertions contradict each other")
    return found


def covers(stated: Cases, disjuncts: Sequence[Disjunct]) -> None:
    """Rejected unless every disjunct lies in a polytope of a case whose box holds the disjunct's.

    A polytope holds the disjunct's if each of its rows is a positive multiple of one of the disjunct's, or looser.
    """
    rows = [[_rows(p.coeff, p.offset) for p in case.polytopes] for case in stated.cases]
    same: dict[tuple[bytes, bytes], list[int]] = {}  # nearly always a case has the very box
    for k, case in enumerate(stated.cases):
        same.setdefault((case.lower.tobytes(), case.upper.tobytes()), []).append(k)
    for number, disjunct in enumerate(disjuncts):
        alike = same.get((disjunct.lower.tobytes(), disjunct.upper.tobytes()), [])
        candidates = [*alike, *(k for k, case in enumerate(stated.cases) if k not in alike and _holds(case, disjunct))]
        if not any(_contains(polytope, disjunct) for k in candidates for polytope in rows[k]):
            raise Rejected(f"spec: disjunct {number} of the file is not covered by the certificate's property")


def _holds(case: Any, disjunct: Disjunct) -> bool:
    return case.lower.shape == disjunct.lower.shape and bool(
        (case.lower <= disjunct.lower).all() and (disjunct.upper <= case.upper).all()
    )


def _rows(coeff: Float64, offset: Float64) -> list[Row]:
    return [
        _row(((int(i), Fraction(float(row[i]))) for i in np.flatnonzero(row)), Fraction(float(limit)))
        for row, limit in zip(coeff, offset, strict=True)
    ]


def _row(terms: Iterable[tuple[int, Fraction]], offset: Fraction) -> Row:
    """Scaled so that the first coefficient is 1 or -1."""
    ordered = sorted((i, c) for i, c in terms if c)
    size = abs(ordered[0][1]) if ordered else Fraction(1)
    return Row(tuple((i, c / size) for i, c in ordered), offset / size)


def _contains(polytope: Sequence[Row], disjunct: Disjunct) -> bool:
    for row in polytope:
        known = disjunct.rows.get(row.terms) if row.terms else Fraction(0)
        if known is None or known > row.offset:
            return False
    return True


def _lists(text: str) -> list[list[Any]]:
    """The S-expressions of a text."""
    stack: list[list[Any]] = [[]]
    for token in TOKEN.findall(text):
        if token == "(":
            if len(stack) > MOST_DEPTH:
                raise Rejected(f"spec: nested deeper than {MOST_DEPTH}")
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise Rejected("spec: a ')' too many")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or any(isinstance(item, str) for item in stack[0]):
        raise Rejected("spec: a '(' that is not closed, or a word outside of parentheses")
    return stack[0]


def _variable(name: str) -> Variable | None:
    match = VARIABLE.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def _formula(formula: list[Any], declared: set[Variable]) -> list[Clause]:
    """Its disjunctive normal form."""
    match formula:
        case ["or", *parts] if parts and all(isinstance(p, list) for p in parts):
            return _limited([clause for part in parts for clause in _formula(part, declared)])
        case ["and", *parts] if parts and all(isinstance(p, list) for p in parts):
            return _every([_formula(part, declared) for part in parts])
        case ["=", left, right]:
            return _every([_formula([op, left, right], declared) for op in ("<=", ">=")])
        case [("<=" | "<" | ">=" | ">") as op, left, right]:
            low, high = (left, right) if op[0] == "<" else (right, left)
            return _comparison(_plus(_term(low, declared), _term(high, declared), Fraction(-1)), len(op) == 1)
    raise Rejected(f"spec: the formula {str(formula)[:60]} is not known")


def _every(factors: Sequence[list[Clause]]) -> list[Clause]:
    """A conjunction of disjunctions, multiplied out."""
    common = [atom for factor in factors if len(factor) == 1 for atom in factor[0]]
    found: list[Clause] = [tuple(common)]
    for factor in factors:
        if len(factor) != 1:
            if len(found) * len(factor) > MOST_CLAUSES:
                raise Rejected("spec: multiplied out, it has too many disjuncts")
            found = _limited([left + right for left in found for right in factor])
    return found


def _limited(clauses: list[Clause]) -> list[Clause]:
    if len(clauses) > MOST_CLAUSES or sum(map(len, clauses)) > MOST_ATOMS:
        raise Rejected("spec: multiplied out, it has too many disjuncts")
    return clauses


def _comparison(difference: Term, strict: bool) -> list[Clause]:
    """difference <= 0, or < 0: true is [()], false is []."""
    limit = -difference.get(None, Fraction(0))
    terms = {v: c for v, c in difference.items() if v is not None and c}
    if not terms:
        return [()] if limit > 0 or (limit == 0 and not strict) else []
    kinds = {kind for kind, _ in terms}
    if kinds == {"Y"}:
        return [(_row(((i, c) for (_, i), c in terms.items()), limit),)]
    if len(terms) > 1:
        raise Rejected("spec: a comparison of inputs with each other, or with outputs")
    (((_, index), factor),) = terms.items()
    return [(Bound(index, factor > 0, limit / factor, strict),)]


def _term(item: Any, declared: set[Variable]) -> Term:
    if isinstance(item, str):
        if (variable := _variable(item)) is None:
            return {None: _number(item)}
        if variable not in declared:
            raise Rejected(f"spec: {item} is not declared")
        return {variable: Fraction(1)}
    if len(item) < 2 or item[0] not in ("+", "-", "*", "/"):
        raise Rejected(f"spec: the term {str(item)[:60]} is not known")
    op, (result, *rest) = item[0], [_term(part, declared) for part in item[1:]]
    if op == "-" and not rest:
        return _times(result, Fraction(-1))
    for other in rest:
        if op in ("+", "-"):
            result = _plus(result, other, Fraction(1 if op == "+" else -1))
            continue
        if op == "*" and not any(v is not None for v in result):
            result, other = other, result
        factor = other.get(None, Fraction(0))
        if any(v is not None for v in other) or (op == "/" and not factor):
            raise Rejected("spec: a product of variables, or a division by one or by 0")
        result = _times(result, factor if op == "*" else 1 / factor)
    if op == "/" and not rest:
        raise Rejected("spec: / takes two terms")
    return result


def _plus(left: Term, right: Term, factor: Fraction) -> Term:
    total = dict(left)
    for variable, value in right.items():
        total[variable] = total.get(variable, Fraction(0)) + factor * value
    return total


def _times(term: Term, factor: Fraction) -> Term:
    return {variable: value * factor for variable, value in term.items()}


def _number(token: str) -> Fraction:
    if NUMBER.fullmatch(token) is None or len(token) > MOST_DIGITS:
        raise Rejected(f"spec: {token[:60]!r} is no number")
    exponent = re.search(r"[eE](.*)", token)
    if exponent is not None and abs(int(exponent[1])) > MOST_EXPONENT:
        raise Rejected(f"spec: {token[:60]!r} is beyond float64")
    return Fraction(token)


def _disjunct(clause: Clause, inputs: int) -> Disjunct | None:
    """None where no input satisfies it; Rejected where an input is not bounded."""
    rows: dict[tuple[tuple[int, Fraction], ...], Fraction] = {}
    for atom in clause:
        if isinstance(atom, Row):
            rows[atom.terms] = min(atom.offset, rows.get(atom.terms, atom.offset))
    box = _box(tuple(atom for atom in clause if isinstance(atom, Bound)), inputs)
    return None if box is None else Disjunct(*box, rows)


@lru_cache(maxsize=4)  # most files have one box for all disjuncts
def _box(bounds: tuple[Bound, ...], inputs: int) -> tuple[Float64, Float64] | None:
    lowest: dict[int, Bound] = {}
    highest: dict[int, Bound] = {}
    for bound in bounds:
        edges, sign = (highest, 1) if bound.upper else (lowest, -1)
        old = edges.get(bound.input)
        if old is None or (sign * bound.value, not bound.strict) < (sign * old.value, not old.strict):
            edges[bound.input] = bound
    for i, low in lowest.items():
        high = highest.get(i)
        if high is not None and (low.value > high.value or (low.value == high.value and (low.strict or high.strict))):
            return None
    if len(lowest) != inputs or len(highest) != inputs:
        raise Rejected("spec: an input without a lower or an upper bound")
    lower = np.array([_rounded(lowest[i].value, -math.inf) for i in range(inputs)])
    upper = np.array([_rounded(highest[i].value, math.inf) for i in range(inputs)])
    return lower, upper


def _rounded(value: Fraction, toward: float) -> float:
    """The float64 next to the value on that side, or at it."""
    try:
        near = float(value)
    except OverflowError as error:
        raise Rejected("spec: a bound beyond float64") from error
    outside = Fraction(near) > value if toward < 0 else Fraction(near) < value
    result = math.nextafter(near, toward) if outside else near
    if not math.isfinite(result):
        raise Rejected("spec: a bound beyond float64")
    return result
