"""Every op by its definition, in rational arithmetic: the reference that the array code is judged by.

Written as plain loops over fractions (object arrays without batch axis), sharing nothing with certify.ops but the
fields of the op classes. Sigmoid, which is not rational, is enclosed by decimals of 80 digits.
"""

from __future__ import annotations

import decimal
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from certify import ops
from certify.graph import Graph

Exact = Any  # an object array of Fraction
DIGITS = 80
SIGMOID_ERROR = Fraction(1, 10**60)  # far above what 80 digits can lose, far below any float's ulp near 1


def exact(values: Any) -> Exact:
    """Floats as the rationals that they are."""
    array = np.asarray(values.detach().numpy() if hasattr(values, "detach") else values)
    out = np.empty(array.shape, dtype=object)
    for where in np.ndindex(array.shape):
        item = array[where]
        out[where] = item if isinstance(item, Fraction) else Fraction(float(item))
    return out


def sigmoid(z: Fraction) -> Fraction:
    """1 / (1 + exp(-z)) up to SIGMOID_ERROR."""
    with decimal.localcontext() as context:
        context.prec = DIGITS
        context.Emin, context.Emax = decimal.MIN_EMIN, decimal.MAX_EMAX
        if abs(z) > 10**4:  # exp(-10^4) is below 10^-4000
            return Fraction(int(z > 0))
        value = decimal.Decimal(z.numerator) / decimal.Decimal(z.denominator)
        return Fraction(int(1 / (1 + (-value).exp()) * 2**220), 2**220)  # few digits, or deep networks get slow


def forward(op: Any, *xs: Exact) -> Exact:
    """The op's value on exact inputs without batch axis."""
    return _affine(op, *xs) if not isinstance(op, ops.Relu | ops.Sigmoid) else _nonlinear(op, xs[0])


def _nonlinear(op: Any, x: Exact) -> Exact:
    out = np.empty(x.shape, dtype=object)
    for where in np.ndindex(x.shape):
        out[where] = max(x[where], Fraction(0)) if isinstance(op, ops.Relu) else sigmoid(x[where])
    return out


def _affine(op: Any, *xs: Exact) -> Exact:
    x = xs[0]
    match op:
        case ops.Linear():
            y = x @ exact(op.weight).T
        case ops.Scale():
            y = x * exact(op.weight)
        case ops.Conv() | ops.ConvTranspose():
            y = _conv(x, op)
        case ops.Reshape():
            y = x.reshape(op.shape)
        case ops.Select():
            flat = [*x.ravel(), Fraction(0)]
            y = np.array([flat[i] for i in op.index], dtype=object).reshape(op.shape)
        case ops.SumAxes():
            y = x
            for axis in op.axes:
                y = np.add.reduce(y, axis=axis, keepdims=True)
        case ops.Concat():
            y = np.concatenate(xs, axis=op.axis)
        case ops.Add():
            y = sum((sign * part for sign, part in zip(op.signs, xs, strict=True)), 0 * x)
        case ops.MaxOfTwo():
            y = xs[1] + xs[2]
        case _:
            raise AssertionError(f"no exact definition of {type(op).__name__}")
    shift = getattr(op, "bias", None)
    return y if shift is None else y + exact(shift)


def conv_matrix(shape: tuple[int, ...], op: Any) -> tuple[Exact, tuple[int, ...]]:
    """y[m, o] = sum over channels c of m's group and taps t of w[m, c, t] x[c, o stride + t dilation - begin]."""
    weight, rank = exact(op.weight), len(op.stride)
    begin, end = op.pads[:rank], op.pads[rank:]
    filters, per_group, *kernel = weight.shape
    spatial = tuple(
        (n + b + e - (k - 1) * d - 1) // s + 1
        for n, b, e, k, d, s in zip(shape[1:], begin, end, kernel, op.dilation, op.stride, strict=True)
    )
    matrix = np.full((filters, *spatial, *shape), Fraction(0), dtype=object)
    for m, o, c, t in _places(filters, spatial, per_group, kernel):
        at = tuple(oo * s + tt * d - b for oo, s, tt, d, b in zip(o, op.stride, t, op.dilation, begin, strict=True))
        if all(0 <= a < n for a, n in zip(at, shape[1:], strict=True)):
            matrix[(m, *o, m // (filters // op.groups) * per_group + c, *at)] += weight[(m, c, *t)]
    return matrix, (filters, *spatial)


def conv_transpose_matrix(shape: tuple[int, ...], op: Any) -> tuple[Exact, tuple[int, ...]]:
    """y[m, i stride + t dilation - begin] += w[c, m, t] x[c, i], as in ONNX."""
    weight = exact(op.weight)
    channels, per_group, *kernel = weight.shape
    begin = op.pads[: len(op.stride)]
    out = (per_group * op.groups, *op.out_spatial)
    matrix = np.full((*out, *shape), Fraction(0), dtype=object)
    for c, i, m, t in _places(channels, shape[1:], per_group, kernel):
        at = tuple(ii * s + tt * d - b for ii, s, tt, d, b in zip(i, op.stride, t, op.dilation, begin, strict=True))
        if all(0 <= a < n for a, n in zip(at, op.out_spatial, strict=True)):
            matrix[(c // (channels // op.groups) * per_group + m, *at, c, *i)] += weight[(c, m, *t)]
    return matrix, out


def _conv(x: Exact, op: Any) -> Exact:
    build = conv_matrix if isinstance(op, ops.Conv) else conv_transpose_matrix
    matrix, shape = build(x.shape, op)
    return (matrix.reshape(-1, x.size) @ x.ravel()).reshape(shape)


def _places(first: int, spatial: Sequence[int], second: int, kernel: Sequence[int]) -> Any:
    return itertools.product(range(first), np.ndindex(*spatial), range(second), np.ndindex(*kernel))


def matrices(op: Any, shapes: Sequence[tuple[int, ...]]) -> list[Exact]:
    """The op's exact dense matrices, one (outputs, inputs) per operand; by unit vectors where not by definition."""
    if isinstance(op, ops.Conv | ops.ConvTranspose):
        build = conv_matrix if isinstance(op, ops.Conv) else conv_transpose_matrix
        return [build(shapes[0], op)[0].reshape(-1, int(np.prod(shapes[0])))]
    zeros = [np.full(shape, Fraction(0), dtype=object) for shape in shapes]
    base = forward(op, *zeros).ravel()
    found = []
    for k, shape in enumerate(shapes):
        columns = []
        for where in np.ndindex(shape):
            xs = [z.copy() for z in zeros]
            xs[k][where] = Fraction(1)
            columns.append(forward(op, *xs).ravel() - base)
        found.append(np.stack(columns, axis=1))
    return found


def affine_image(op: Any, boxes: Sequence[tuple[Any, Any]]) -> tuple[Exact, Exact]:
    """The exact range of every output over the boxes and over all weights and biases within the op's stated errors."""
    shapes = [low.shape for low, _ in boxes]
    zeros = [np.full(shape, Fraction(0), dtype=object) for shape in shapes]
    base = forward(op, *zeros)
    slack = exact(np.broadcast_to(np.asarray(getattr(op, "bias_error", 0.0), dtype=np.float64), base.shape)).ravel()
    relative = Fraction(float(getattr(op, "weight_error", 0.0)))
    lower, upper = base.ravel() - slack, base.ravel() + slack
    for matrix, (low, high) in zip(matrices(op, shapes), boxes, strict=True):
        ends = [matrix * (1 + side * relative) * exact(x).ravel() for side in (-1, 1) for x in (low, high)]
        lower = lower + np.minimum.reduce(ends).sum(axis=1)
        upper = upper + np.maximum.reduce(ends).sum(axis=1)
    return lower.reshape(base.shape), upper.reshape(base.shape)


def values(graph: Graph, x: Any) -> list[Exact]:
    """Every node's value on one input without batch axis: exact but for sigmoids (SIGMOID_ERROR each)."""
    found = [exact(x)]
    for node in graph.nodes[1:]:
        found.append(forward(node.op, *(found[i] for i in node.inputs)))
    return found


def run(graph: Graph, x: Any) -> Exact:
    """The network's output on one input, flat."""
    return values(graph, x)[-1].ravel()
