"""VNN-LIB 2, read by the reference parser (PyPI `vnnlib`): one network, one input, one output tensor.

The package parses, checks scopes and types; its literals keep their text, which is read here as exact
rationals (its own float values and its compatibility layer are not used). Not supported, and said so:
several networks, inputs or outputs, hidden tensors, congruent networks, element types other than
real and float16/32/64, scientific notation (the reference grammar has none).
Format: https://www.vnnlib.org, version 2.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from certify.errors import PropertyError
from certify.frontends.spec_cases import build_property
from certify.frontends.spec_formula import (
    MAX_DEPTH,
    Formula,
    Linear,
    Source,
    compare,
    conjunction,
    disjunction,
    product,
)
from certify.property import Property

COMMENT = re.compile(r";[^\n]*")
VERSION = re.compile(r"\(\s*vnnlib-version\s*<\s*([0-9]+)\.([0-9]+)\s*>\s*\)")
LITERAL = re.compile(r"-?[0-9]{1,1000}(\.[0-9]{1,1000})?")
# `1e-3` would be read as three tokens; never let that pass as something else.
SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9_])[0-9]+\.?[0-9]*[eE][-+]?[0-9]")
ELEMENT_TYPES = ("Real", "F16", "F32", "F64")


def parse_version2(text: str, input_shape: tuple[int, ...], output_size: int, name: str) -> Property:
    """The property that a VNN-LIB 2 text states for a network of this input shape (no batch) and output size.

    Raises PropertyError with `name` and, where the parser knows it, the line number.
    """
    text = COMMENT.sub("", text)
    _check_text(text, name)
    import vnnlib

    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise PropertyError(f"{name}{_explain(str(error))}") from None
    network = _only(query.networks, "network", name)
    if network.equal_to or network.isometric_to or network.hidden:
        raise PropertyError(f"{name}: hidden tensors and congruent networks are not supported")
    inputs = _only(network.inputs, "input", name)
    outputs = _only(network.outputs, "output", name)
    for tensor in (inputs, outputs):
        if tensor.dtype.name not in ELEMENT_TYPES:
            raise PropertyError(
                f"{name}: the element type of {tensor.name} is not supported (parsed as {tensor.dtype.name}); "
                "use real, float16, float32 or float64, in lower case"
            )
    shape = tuple(inputs.shape)
    if _squeezed(shape) != _squeezed(input_shape):
        raise PropertyError(
            f"{name}: {inputs.name} has shape {list(shape)}, the network's input without batch is {list(input_shape)}"
        )
    if math.prod(outputs.shape) != output_size:
        raise PropertyError(
            f"{name}: {outputs.name} has shape {list(outputs.shape)}, the network has {output_size} outputs"
        )
    line = text.count("\n", 0, max(text.find("declare-input"), 0)) + 1
    source = Source(name, lambda where: where, lambda index: _label(inputs.name, shape, index))
    reader = _Reader(source, vnnlib, inputs.name)
    formulas = [reader.formula(assertion.expr) for assertion in query.assertions]
    return build_property(formulas, [line] * math.prod(shape), input_shape, output_size, source)


def _check_text(text: str, name: str) -> None:
    """Refuse what the parser would read differently from what is meant, or could not survive."""
    version = VERSION.match(text.lstrip())
    if version is None:
        raise PropertyError(f"{name}: a VNN-LIB 2 file begins with (vnnlib-version <2.0>)")
    if version.groups() != ("2", "0"):
        raise PropertyError(f"{name}: VNN-LIB version {version[1]}.{version[2]} is not supported, only 1 and 2.0")
    scientific = SCIENTIFIC.search(text)
    if scientific:
        line = text.count("\n", 0, scientific.start()) + 1
        raise PropertyError(
            f"{name}, line {line}: VNN-LIB 2 has no scientific notation ({scientific[0]}...); write plain decimals"
        )
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth > MAX_DEPTH:
            line = text.count("\n", 0, match.start()) + 1
            raise PropertyError(f"{name}, line {line}: parentheses nested deeper than {MAX_DEPTH}")


def _explain(message: str) -> str:
    """The parser's message as `, line 3: what (symbol): hint`."""
    try:
        report = json.loads(message)
        first = report["errors"][0]
        line, what = first["line"], first["message"]
        symbol, hint = first["offendingSymbol"], first["hint"]
    except (ValueError, LookupError, TypeError):
        found = re.search(r"at line (\d+)", message)
        line = found[1] if found else "unknown"
        return f", line {line}: {message} (VNN-LIB 2, parsed by the vnnlib package)"
    case = " Element types are written in lower case: real, float32." if "'Unknown'" in hint else ""
    decimals = " Constants of real and float tensors need a decimal point: 1.0." if "IntConstant" in hint else ""
    more = f" ({len(report['errors']) - 1} more errors)" if len(report["errors"]) > 1 else ""
    return f", line {line}: {what} ({symbol}): {hint}{case}{decimals}{more}"


def _only(items: Sequence[Any], what: str, name: str) -> Any:
    if len(items) != 1:
        raise PropertyError(f"{name}: {len(items)} {what}s declared; exactly one {what} is supported")
    return items[0]


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _label(name: str, shape: tuple[int, ...], index: int) -> str:
    where = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        where.append(rest)
    return f"{name}[{','.join(map(str, reversed(where)))}]" if shape else name


@dataclass(frozen=True)
class _Reader:
    """The package's typed syntax tree -> formulas; exact on classes, unknown ones raise."""

    source: Source
    vnnlib: Any
    input_name: str

    def formula(self, node: Any) -> Formula:
        v = self.vnnlib
        kind = type(node)
        if kind is v.And:
            return conjunction([self.formula(part) for part in node.args])
        if kind is v.Or:
            return disjunction(self.source, [(self.line(part), self.formula(part)) for part in node.args])
        operators = {
            v.LessEqual: "<=",
            v.GreaterEqual: ">=",
            v.LessThan: "<",
            v.GreaterThan: ">",
            v.Equal: "=",
            v.NotEqual: "!=",
        }
        if kind not in operators:
            raise PropertyError(f"{self.source.name}: {kind.__name__} is not supported: {str(node)[:80]}")
        left, right = node.lhs, node.rhs
        where = self.line(left) or self.line(right) or 1
        return compare(self.source, where, operators[kind], self.term(left), self.term(right))

    def line(self, node: Any) -> int:
        """The line of the first leaf; the tree has none for inner nodes."""
        while type(node) not in (self.vnnlib.Var, self.vnnlib.Float, self.vnnlib.Int):
            children = node.children()
            if not children:
                return 0
            node = children[0]
        return int(node.line)

    def term(self, node: Any) -> Linear:
        v = self.vnnlib
        kind = type(node)
        if kind is v.Var:
            return self.variable(node)
        if kind is v.Float or kind is v.Int:
            if not LITERAL.fullmatch(node.lexeme):
                raise self.source.error(node.line, f"unsupported number {node.lexeme[:40]!r}")
            return Linear({}, Fraction(node.lexeme))
        if kind is v.Negate:
            return self.term(node.expr).times(Fraction(-1))
        if kind is v.Multiply:
            return product(self.source, self.line(node), [self.term(part) for part in node.args])
        if kind is v.Plus or kind is v.Minus:
            first, *rest = node.args if kind is v.Plus else (node.head, *node.rest)
            total = self.term(first)
            for part in rest:
                total = total.plus(self.term(part), 1 if kind is v.Plus else -1)
            return total
        raise PropertyError(f"{self.source.name}: {kind.__name__} is not supported: {str(node)[:80]}")

    def variable(self, node: Any) -> Linear:
        kinds = self.vnnlib.SymbolKind
        if node.kind not in (kinds.Input, kinds.Output):
            raise self.source.error(node.line, f"{node.name} is neither an input nor an output")
        index = 0
        for position, size in zip(node.indices, node.shape, strict=True):
            index = index * size + position
        return Linear({(node.kind == kinds.Output, index): Fraction(1)}, Fraction(0))
