"""VNN-LIB: the unsafe set that a file states, in exact rationals, and whether a certificate's property covers it.

Version 1 declares `(declare-const X_0 Real)` or `(declare-fun Y_0 () Real)`; version 2 begins `(vnnlib-version <2.0>)
(declare-network N (declare-input X float32 [1, 5]) (declare-output Y float32 [1, 2]))`, one input and one output
tensor, whose entries X[0, 3] are counted in row-major order. Then come `(assert F)`: F is `and`/`or` over comparisons
of linear terms in one input, or in outputs. The file states a disjunction of pairs (input box, output polytope).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from certify.check.content import Case, Cases, Float64
from certify.check.errors import Rejected, Unreadable

TOKEN = re.compile(r"[()\[\]]|[^\s()\[\]]+(?:\s*\[[^\[\]()]*\](?![^\s()]))?")  # an index belongs to its name
BLANKS, ZEROS = re.compile(r"\s*([\[\],])\s*"), re.compile(r"(?<=[\[,])0+(?=[0-9])")  # that an index may have too much
COMMENT = re.compile(r";[^\r\n]*")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,4}))?", re.ASCII)
PLAIN = re.compile(r"\(\s*assert\s*\(\s*([<>]=)\s+(X_[0-9]{1,9})\s+([-+.0-9][^\s()\[\]]*)\s*\)\s*\)")
MARK = "\N{SECTION SIGN}"  # no ASCII: no file can hold it
VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})", re.ASCII)
TYPED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\[((?:[0-9]{1,9}(?:,[0-9]{1,9})*)?)\]", re.ASCII)
MOST_DIGITS, MOST_EXPONENT = 1000, 1000  # no number that a float64 could be near needs more
MOST_DEPTH = 50
MOST_CLAUSES, MOST_ATOMS, MOST_VARIABLES = 100_000, 5_000_000, 10_000_000

ZERO, ONE = Fraction(0), Fraction(1)

Variable = tuple[str, int]  # ("X", i): input i; ("Y", i): output i
Term = dict[Variable | None, Fraction]  # None: the constant
Direction = tuple[tuple[int, Fraction], ...]  # coefficients by place, the first of them 1 or -1
Number = Fraction | Decimal  # which compare exactly; a Decimal is made faster, but rounds when it is computed with
Limit = tuple[Number, bool]  # strict: False, so that the tighter of two limits is the smaller
Limits = dict[tuple[int, int], Limit]  # (i, 1): of X_i, (i, -1): of -X_i
Box = tuple[Float64, Float64]


@dataclass(frozen=True, eq=False)
class Atom:
    """sum of coefficient * X_i (or Y_i) <= limit[0], or < where not limit[1]."""

    kind: str
    terms: Direction
    limit: tuple[Fraction, bool]


Clause = tuple[Atom, ...]


@dataclass(frozen=True, eq=False)
class Disjunct:
    """The file's box, rounded outward, and rows that its unsafe outputs satisfy: direction -> smallest offset.

    (Where the file says <: a little more.)
    """

    lower: Float64
    upper: Float64
    rows: dict[Direction, Fraction]


def read_spec(data: bytes, inputs: int, outputs: int) -> list[Disjunct]:
    """The unsafe set of a VNN-LIB file for a network of so many inputs and outputs."""
    try:
        text = COMMENT.sub(" ", data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"spec: not a text ({error})") from error
    if not text.isascii():
        raise Unreadable("spec: other than ASCII characters outside of comments")
    plain: list[tuple[str, str, str]] = []  # nearly all of most files: limits of inputs, each leaving a mark behind
    if "declare-network" not in text:  # version 2 names its variables as it likes
        plain, text = PLAIN.findall(text), PLAIN.sub(f"({MARK})", text)
    scope, commands = _declared(_lists(text))
    if sorted(scope.variables.values()) != [*(("X", i) for i in range(inputs)), *(("Y", i) for i in range(outputs))]:
        raise Rejected(f"spec: it does not declare X_0 ... X_{inputs - 1} and Y_0 ... Y_{outputs - 1}")
    factors = []
    for command in commands:
        match command:
            case ["assert", list() as formula]:
                factors.append(_formula(formula, scope))
            case [mark] if mark == MARK:
                pass
            case _:
                raise Rejected(f"spec: the command {str(command)[:60]} is not known here")
    limits: Limits = {}
    for op, name, number in plain:
        if scope.variables.get(name, ("",))[0] != "X":
            raise Rejected(f"spec: {name} is not declared")
        side, high = 1 if op == "<=" else -1, _decimal(number)
        _tighten(limits, (scope.variables[name][1], side), (high if side > 0 else _negative(high), True))

    @cache  # most files have one box for all disjuncts
    def box_of(bounds: Clause) -> Box | None:
        own = dict(limits)
        for bound in bounds:
            ((place, sign),) = bound.terms
            _tighten(own, (place, int(sign)), bound.limit)
        return _box(own, inputs)

    found = [d for clause in _every(factors) if (d := _disjunct(clause, box_of)) is not None]
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


def _holds(case: Case, disjunct: Disjunct) -> bool:
    return case.lower.shape == disjunct.lower.shape and bool(
        (case.lower <= disjunct.lower).all() and (disjunct.upper <= case.upper).all()
    )


def _rows(coeff: Float64, offset: Float64) -> list[tuple[Direction, Fraction]]:
    found = []
    for row, limit in zip(coeff, offset, strict=True):
        terms = {int(i): Fraction(float(row[i])) for i in np.flatnonzero(row)}
        found.append(_scaled(terms, Fraction(float(limit))))
    return found


def _scaled(terms: Mapping[int, Fraction], limit: Fraction) -> tuple[Direction, Fraction]:
    """Both divided by the size of the first coefficient."""
    ordered = sorted(terms.items())
    size = abs(ordered[0][1]) if ordered else ONE
    if size == 1:
        return tuple(ordered), limit
    return tuple((i, c / size) for i, c in ordered), limit / size


def _contains(polytope: Sequence[tuple[Direction, Fraction]], disjunct: Disjunct) -> bool:
    for terms, offset in polytope:
        known = disjunct.rows.get(terms) if terms else ZERO
        if known is None or known > offset:
            return False
    return True


def _lists(text: str) -> list[list[Any]]:
    """The S-expressions of a text; indices are written plainly."""
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
            stack[-1].append(ZEROS.sub("", BLANKS.sub(r"\1", token)) if "[" in token else token)
    if len(stack) != 1 or any(isinstance(item, str) for item in stack[0]):
        raise Rejected("spec: a '(' that is not closed, or a word outside of parentheses")
    return stack[0]


@dataclass(frozen=True)
class Scope:
    """The variables by their names; equal: how version 1 or 2 writes equality."""

    variables: Mapping[str, Variable]
    equal: tuple[str, ...]


def _declared(commands: list[list[Any]]) -> tuple[Scope, list[list[Any]]]:
    """What the file declares, and its other commands."""
    if commands and commands[0][:1] in (["vnnlib-version"], ["declare-network"]):
        if commands[0][0] == "vnnlib-version" and "".join(map(str, commands[0][1:])) == "<2.0>":
            commands = commands[1:]
        match commands:
            case [["declare-network", str(), ["declare-input", *given], ["declare-output", *answer]], *rest]:
                if given[:1] == answer[:1]:
                    raise Rejected("spec: its input and its output have the same name")
                return Scope({**_tensor("X", given), **_tensor("Y", answer)}, ("=", "==", "!=")), rest
        raise Rejected("spec: not version 2.0 with one network of one input and one output")
    declared: dict[str, Variable] = {}
    rest = []
    for command in commands:
        match command:
            case ["declare-const", str() as name, "Real"] | ["declare-fun", str() as name, [], "Real"]:
                found = VARIABLE.fullmatch(name)
                if found is None or name in declared:
                    raise Rejected(f"spec: {name!r} is declared twice, or is neither X_i nor Y_i")
                declared[name] = found[1], int(found[2])
            case _:
                rest.append(command)
    return Scope(declared, ("=",)), rest


def _tensor(kind: str, words: list[Any]) -> dict[str, Variable]:
    """Version 2's names of a tensor's entries, in row-major order."""
    match words:
        case [str() as name, str() as typed] if (found := TYPED.fullmatch(typed)) and TYPED.fullmatch(name + "[]"):
            shape = [int(n) for n in found[1].split(",") if n]
            if 0 < math.prod(shape) <= MOST_VARIABLES:
                places = itertools.product(*(map(str, range(n)) for n in shape))
                names = (f"{name}[{','.join(place)}]" if shape else name for place in places)
                return {entry: (kind, i) for i, entry in enumerate(names)}
    raise Rejected(f"spec: the declaration {str(words)[:60]} is not known")


def _formula(formula: list[Any], scope: Scope) -> list[Clause]:
    """Its disjunctive normal form."""
    match formula:
        case ["or", *parts] if parts and all(isinstance(p, list) for p in parts):
            return _limited([clause for part in parts for clause in _formula(part, scope)])
        case ["and", *parts] if parts and all(isinstance(p, list) for p in parts):
            return _every([_formula(part, scope) for part in parts])
        case ["!=" as op, left, right] if op in scope.equal:
            return _limited(_comparison(left, right, scope, strict=True) + _comparison(right, left, scope, strict=True))
        case [str() as op, left, right] if op in scope.equal:
            return _every([_comparison(left, right, scope), _comparison(right, left, scope)])
        case [("<=" | "<") as op, low, high] | [(">=" | ">") as op, high, low]:
            return _comparison(low, high, scope, strict=len(op) == 1)
    raise Rejected(f"spec: the formula {str(formula)[:60]} is not known")


def _every(factors: Sequence[list[Clause]]) -> list[Clause]:
    """A conjunction of disjunctions, multiplied out."""
    found: list[Clause] = [tuple(atom for factor in factors if len(factor) == 1 for atom in factor[0])]
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


def _comparison(low: Any, high: Any, scope: Scope, *, strict: bool = False) -> list[Clause]:
    """low <= high, or low < high: true is [()], false is []."""
    difference = _plus(_term(high, scope), _term(low, scope), -ONE)
    limit = difference.pop(None, ZERO)
    terms = {v: -c for v, c in difference.items() if v is not None and c}
    kinds = sorted({kind for kind, _ in terms})
    if not terms:
        return [()] if limit > 0 or (limit == 0 and not strict) else []
    if len(kinds) > 1 or (kinds == ["X"] and len(terms) > 1):
        raise Rejected("spec: a comparison of inputs with each other, or with outputs")
    direction, limit = _scaled({i: c for (_, i), c in terms.items()}, limit)
    return [(Atom(kinds[0], direction, (limit, not strict)),)]


def _term(item: Any, scope: Scope) -> Term:
    if isinstance(item, str):
        if item in scope.variables:
            return {scope.variables[item]: ONE}
        return {None: _number(item)}
    if len(item) < 2 or item[0] not in ("+", "-", "*", "/"):
        raise Rejected(f"spec: the term {str(item)[:60]} is not known")
    op, (result, *rest) = item[0], [_term(part, scope) for part in item[1:]]
    if op == "-" and not rest:
        return _plus({}, result, -ONE)
    for other in rest:
        if op in ("+", "-"):
            result = _plus(result, other, ONE if op == "+" else -ONE)
            continue
        if op == "*" and not result.keys() - {None}:
            result, other = other, result
        factor = other.get(None, ZERO)
        if other.keys() - {None} or (op == "/" and not factor):
            raise Rejected("spec: a product of variables, or a division by one or by 0")
        result = _plus({}, result, factor if op == "*" else 1 / factor)
    if op == "/" and not rest:
        raise Rejected("spec: / takes two terms")
    return result


def _plus(left: Term, right: Term, factor: Fraction) -> Term:
    """left + factor * right."""
    total = dict(left)
    for variable, value in right.items():
        total[variable] = total.get(variable, ZERO) + factor * value
    return total


def _number(token: str) -> Fraction:
    return Fraction(_decimal(token))


def _decimal(token: str) -> Decimal:
    found = NUMBER.fullmatch(token)
    if found is None or len(token) > MOST_DIGITS:
        raise Rejected(f"spec: {token[:60]!r} is no number, and no variable that is declared")
    if abs(int(found[1] or 0)) > MOST_EXPONENT:
        raise Rejected(f"spec: {token[:60]!r} is beyond float64")
    return Decimal(token)  # exact, whatever the context's precision


def _negative(value: Number) -> Number:
    """Exactly: the - of a Decimal would round."""
    return value.copy_negate() if isinstance(value, Decimal) else -value


def _disjunct(clause: Clause, box_of: Callable[[Clause], Box | None]) -> Disjunct | None:
    """None where no input satisfies it; Rejected where an input is not bounded. box_of: what atoms of inputs say."""
    rows: dict[Direction, Fraction] = {}
    for atom in clause:
        if atom.kind == "Y":
            rows[atom.terms] = min(atom.limit[0], rows.get(atom.terms, atom.limit[0]))
    box = box_of(tuple(atom for atom in clause if atom.kind == "X"))
    return None if box is None else Disjunct(*box, rows)


def _tighten(limits: Limits, key: tuple[int, int], limit: Limit) -> None:
    known = limits.get(key)
    limits[key] = limit if known is None else min(known, limit)


def _box(limits: Limits, inputs: int) -> Box | None:
    """Rounded outward; None where it is empty."""
    for (i, side), (high, closed) in limits.items():
        if side > 0 and (other := limits.get((i, -1))) is not None:
            low = _negative(other[0])
            if high < low or (high == low and not (closed and other[1])):
                return None
    if len(limits) != 2 * inputs:
        raise Rejected("spec: an input without a lower or an upper bound")
    lower = [_rounded(_negative(limits[i, -1][0]), -math.inf) for i in range(inputs)]
    return np.array(lower), np.array([_rounded(limits[i, 1][0], math.inf) for i in range(inputs)])


def _rounded(value: Number, toward: float) -> float:
    """The float64 next to the value on that side, or at it."""
    try:
        near = float(value)
    except OverflowError as error:
        raise Rejected("spec: a bound beyond float64") from error
    exact = type(value)(near)
    result = math.nextafter(near, toward) if (exact > value if toward < 0 else exact < value) else near
    if not math.isfinite(result):
        raise Rejected("spec: a bound beyond float64")
    return result
