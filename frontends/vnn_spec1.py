"""VNN-LIB 1: a strict parser of its SMT-LIB subset, with line numbers in every error.

Accepted: `(declare-const X_0 Real)`, `(declare-fun X_0 () Real)` and `(assert F)`, where F nests `and`/`or` over
comparisons `<= >= < > =` of linear terms in one input, or in outputs. Numbers are read as exact rationals.
Format: https://www.vnnlib.org, version 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from certify.errors import PropertyError
from certify.frontends.spec_cases import build_property
from certify.frontends.spec_formula import (
    MAX_DEPTH,
    Bound,
    Exact,
    Formula,
    Linear,
    Source,
    compare,
    conjunction,
    disjunction,
    enclose,
    product,
)
from certify.property import Property

TOKEN = re.compile(r"[()]|[^\s()]+")
COMMENT = re.compile(r";[^\n]*")
NUMBER = re.compile(
    r"([+-]?)([0-9]+)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,9}))?|([+-]?)\.([0-9]+)(?:[eE]([+-]?[0-9]{1,9}))?"
)
VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]*)")
INFINITE = re.compile(r"[+-]?(inf|infinity|oo|nan)", re.IGNORECASE)
# Beyond the range of float64 by far; an exact rational with a huge exponent would fill the memory.
MAX_EXPONENT = 1000

COMPARISONS = frozenset({"<=", ">=", "<", ">", "="})

# A parsed list: [number of its opening token, item, ...] with items str or such lists.
Node = list[Any]


def parse_version1(text: str, input_shape: tuple[int, ...], output_size: int, name: str) -> Property:
    """The property that a VNN-LIB 1 text states for a network of this input shape (no batch) and output size.

    Inputs X_i are in row-major order of input_shape. Raises PropertyError with `name` and the line number.
    """
    text = COMMENT.sub("", text)
    tokens = TOKEN.findall(text)
    source = Source(name, _line_counter(text), lambda index: f"X_{index}")
    reader = _Reader(source, tokens)
    for command in _commands(tokens, source):
        reader.command(command)
    sizes = {"X": math.prod(input_shape), "Y": output_size}
    for kind, size in sizes.items():
        reader.check_declared(kind, size)
    declared = [reader.declared["X", i] for i in range(sizes["X"])]
    if not reader.formulas:
        raise PropertyError(f"{name}: no assertion; a property needs bounds of its inputs and unsafe outputs")
    return build_property(reader.formulas, declared, input_shape, output_size, source)


def _line_counter(text: str) -> Callable[[int], int]:
    """Token number -> line, found by reading again: only errors pay for it."""

    @cache
    def line_of(where: int) -> int:
        for number, match in enumerate(TOKEN.finditer(text)):
            if number == where:
                return text.count("\n", 0, match.start()) + 1
        return text.count("\n") + 1

    return line_of


def _commands(tokens: Sequence[str], source: Source) -> list[Node]:
    """The top-level lists, by an explicit stack."""
    top: list[Node] = []
    current: Node = top
    stack: list[Node] = []
    for number, token in enumerate(tokens):
        if token == "(":
            if len(stack) >= MAX_DEPTH:
                raise source.error(number, f"parentheses nested deeper than {MAX_DEPTH}")
            stack.append(current)
            current = [number]
        elif token == ")":
            if not stack:
                raise source.error(number, "unbalanced parentheses: ')' closes nothing")
            done, current = current, stack.pop()
            current.append(done)
        elif stack:
            current.append(token)
        else:
            raise source.error(number, f"expected a command in parentheses, found {token!r}")
    if stack:
        opened = (stack[1] if len(stack) > 1 else current)[0]
        raise source.error(opened, "unbalanced parentheses: the command that begins here is never closed")
    return top


@dataclass
class _Reader:
    """Declarations and assertions in the order of the file."""

    source: Source
    tokens: Sequence[str]
    declared: dict[tuple[str, int], int] = field(default_factory=dict)
    variables: dict[str, tuple[bool, int]] = field(default_factory=dict)
    numbers: dict[str, Exact] = field(default_factory=dict)
    formulas: list[Formula] = field(default_factory=list)

    def command(self, node: Node) -> None:
        match node[1:]:
            case ["assert", list() as formula]:
                self.formulas.append(self.formula(formula))
            case ["declare-const", str() as name, str() as kind]:
                self.declare(node[0], name, kind)
            case ["declare-fun", str() as name, [_], str() as kind]:
                self.declare(node[0], name, kind)
            case ["assert", *_]:
                raise self.source.error(node[0], "assert takes one formula in parentheses")
            case ["declare-fun", _, [_, _, *_], *_]:
                raise self.source.error(node[0], "functions with arguments are not supported; declare constants")
            case ["declare-const" | "declare-fun" as head, *_]:
                form = "(declare-const X_0 Real)" if head == "declare-const" else "(declare-fun X_0 () Real)"
                raise self.source.error(node[0], f"malformed declaration; the form is {form}")
            case []:
                raise self.source.error(node[0], "empty parentheses where a command is expected")
            case [head, *_]:
                shown = repr(head) if isinstance(head, str) else "a list"
                raise self.source.error(
                    node[0], f"unknown command {shown}; VNN-LIB 1 has declare-const, declare-fun and assert"
                )

    def declare(self, where: int, name: str, kind: str) -> None:
        match = VARIABLE.fullmatch(name)
        if match is None:
            raise self.source.error(where, f"unknown variable {name!r}: inputs are X_0, X_1, ... and outputs Y_0, ...")
        if kind != "Real":
            raise self.source.error(where, f"{name} has type {kind}; only Real is supported")
        key = match[1], int(match[2])
        if key in self.declared:
            first = self.source.line_of(self.declared[key])
            raise self.source.error(where, f"{name} is declared twice (first on line {first})")
        self.declared[key] = where
        self.variables[name] = (key[0] == "Y", key[1])

    def check_declared(self, kind: str, size: int) -> None:
        """Exactly kind_0 ... kind_(size-1) must be declared."""
        what = "input" if kind == "X" else "output"
        indices = {index: where for (k, index), where in self.declared.items() if k == kind}
        if len(indices) != size or any(index >= size for index in indices):
            extra = min((index for index in indices if index >= size), default=None)
            at = indices[extra] if extra is not None else max(self.declared.values(), default=0)
            gap = next((i for i in range(size) if i not in indices), None)
            detail = f"{kind}_{gap} is missing" if gap is not None else f"{kind}_{extra} has no counterpart"
            raise self.source.error(
                at,
                f"the file declares {len(indices)} {what}s {kind}_i, the network has {size}: {detail}; "
                "is this the right network for the property?",
            )

    def formula(self, node: Node) -> Formula:
        head = node[1] if len(node) > 1 else None
        if isinstance(head, str) and head in COMPARISONS:
            return self.comparison(node)
        if head not in ("and", "or"):
            raise self.source.error(
                node[0], f"unknown operator {_shown(head)}; expected and, or, <=, >=, <, > or = of terms"
            )
        if len(node) == 2:
            raise self.source.error(node[0], f"{head} without operands")
        for part in node[2:]:
            if not isinstance(part, list):
                raise self.source.error(self.find(node[0], part), f"{part!r} is not a formula")
        parts = [(part[0], self.formula(part)) for part in node[2:]]
        return disjunction(self.source, parts) if head == "or" else conjunction([part for _, part in parts])

    def comparison(self, node: Node) -> Formula:
        where, operator = node[0], node[1]
        if len(node) != 4:
            raise self.source.error(where, f"{operator} takes two terms, here {len(node) - 2}")
        left, right = node[2], node[3]
        if operator != "=" and isinstance(left, str) and isinstance(right, str):
            # The commonest form by far, `(<= X_0 0.5)`, without building linear terms.
            variable = self.variables.get(left)
            if variable is not None and not variable[0] and right not in self.variables:
                return Bound(variable[1], operator[0] == "<", self.limit(where, left, right), len(operator) == 1, where)
        return compare(self.source, where, operator, self.term(where, left), self.term(where, right))

    def limit(self, where: int, label: str, token: str) -> Exact:
        """The number as a bound of an input."""
        known = self.numbers.get(token)
        if known is None:
            try:
                known = enclose(self.number(where, token))
            except OverflowError:
                known = None
            if known is None or not (math.isfinite(known.down) and math.isfinite(known.up)):
                raise self.source.error(where, f"the bound of {label} is not finite in float64")
            self.numbers[token] = known
        return known

    def term(self, where: int, item: str | Node) -> Linear:
        """A linear term: a number, a variable, or + - * / of such."""
        if isinstance(item, str):
            variable = self.variables.get(item)
            if variable is not None:
                return Linear({variable: Fraction(1)}, Fraction(0))
            return Linear({}, self.number(where, item))
        where = item[0]
        head = item[1] if len(item) > 1 else None
        if head not in ("+", "-", "*", "/"):
            raise self.source.error(where, f"unknown operator {_shown(head)} in a term; expected +, -, * or /")
        terms = [self.term(where, part) for part in item[2:]]
        if not terms:
            raise self.source.error(where, f"{head} without operands")
        if head == "*":
            return product(self.source, where, terms)
        if head == "/":
            return self.quotient(where, terms)
        if head == "-" and len(terms) == 1:
            return terms[0].times(Fraction(-1))
        total = Linear(dict(terms[0].terms), terms[0].constant)
        for term in terms[1:]:
            total = total.plus(term, 1 if head == "+" else -1)
        return total

    def quotient(self, where: int, terms: list[Linear]) -> Linear:
        if len(terms) < 2:
            raise self.source.error(where, "/ takes a term and one or more numbers")
        result = terms[0]
        for divisor in terms[1:]:
            if divisor.terms:
                raise self.source.error(where, "division by a variable is not linear")
            if not divisor.constant:
                raise self.source.error(where, "division by zero")
            result = result.times(1 / divisor.constant)
        return result

    def number(self, where: int, token: str) -> Fraction:
        match = NUMBER.fullmatch(token)
        if match is None:
            raise self.unknown(where, token)
        sign, whole, decimals, exponent, bare_sign, bare, bare_exponent = match.groups()
        digits = (whole or "") + (decimals or bare or "")
        power = int(exponent or bare_exponent or "0") - len(decimals or bare or "")
        if abs(power) > MAX_EXPONENT or len(digits) > MAX_EXPONENT:
            raise self.source.error(
                self.find(where, token), f"{token[:40]}: more than {MAX_EXPONENT} digits or decimal places"
            )
        value = -int(digits) if "-" in (sign, bare_sign) else int(digits)
        return Fraction(value * 10**power) if power >= 0 else Fraction(value, 10**-power)

    def unknown(self, where: int, token: str) -> PropertyError:
        at = self.find(where, token)
        if VARIABLE.fullmatch(token):
            return self.source.error(at, f"{token} is used but not declared before; add (declare-const {token} Real)")
        if INFINITE.fullmatch(token):
            return self.source.error(at, f"{token} is not a finite number; every input needs finite bounds")
        return self.source.error(at, f"unknown variable or malformed number {token!r}")

    def find(self, where: int, token: str) -> int:
        """The first token equal to `token` from `where` on: its own line in an error."""
        return self.tokens.index(token, where)


def _shown(head: object) -> str:
    return repr(head) if isinstance(head, str) else "(nothing)" if head is None else "(a list)"
