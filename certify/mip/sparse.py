"""Affine ops as sparse matrices: y = sum_k M_k x_k + bias, x and y flat in row-major order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.lib.stride_tricks import sliding_window_view

from certify.graph import Graph
from certify.ops import Concat, Conv, ConvTranspose, Linear, Reshape, Scale, Select, SumAxes
from certify.ops.base import Weighted
from certify.rules import Op, RuleTable, transpose

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]
Sparse = Any  # a scipy.sparse CSR matrix

# Unit rows that go through `transpose` at once where an op has no rule of its own: 32 MB at 4,000 inputs.
UNIT_ROWS = 1024

matrix_rule: RuleTable[tuple[Sparse, ...]] = RuleTable("matrix")


class Matrices:
    """The sparse matrices of a graph's affine nodes, each made at first use. The graph is numpy float64."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._found: dict[int, tuple[Sparse, ...]] = {}

    def __getitem__(self, index: int) -> tuple[Sparse, ...]:
        if index not in self._found:
            node = self.graph.nodes[index]
            shapes = tuple(self.graph.nodes[i].shape for i in node.inputs)
            self._found[index] = matrices(node.op, shapes, node.shape)
        return self._found[index]


def matrices(op: Op, shapes: Shapes, out: Shape) -> tuple[Sparse, ...]:
    """The linear part of an affine op, one CSR matrix (outputs, inputs) per operand.

    Ops without a rule here are read off their transpose, unit row by unit row.
    """
    if type(op) in matrix_rule:
        return matrix_rule(op, shapes, out)
    size = math.prod(out)
    bands: list[list[Sparse]] = [[] for _ in shapes]
    for first in range(0, size, UNIT_ROWS):
        count = min(UNIT_ROWS, size - first)
        rows = np.zeros((count, size))
        rows[np.arange(count), first + np.arange(count)] = 1.0
        for band, part in zip(bands, transpose(op, rows.reshape((count, *out)), shapes), strict=True):
            band.append(sp.csr_matrix(part.reshape((count, -1))))
    return tuple(sp.vstack(band, format="csr") for band in bands)


@matrix_rule.register(Linear)
def _(op: Linear, shapes: Shapes, out: Shape) -> tuple[Sparse, ...]:
    weight = sp.csr_matrix(op.weight)
    lead = math.prod(out[:-1])
    return (weight if lead == 1 else sp.kron(sp.identity(lead), weight, format="csr"),)


@matrix_rule.register(Scale)
def _(op: Scale, shapes: Shapes, out: Shape) -> tuple[Sparse, ...]:
    return (sp.diags(np.broadcast_to(op.weight, out).ravel(), format="csr"),)


@matrix_rule.register(Reshape, Concat, SumAxes)
def _(op: Op, shapes: Shapes, out: Shape) -> tuple[Sparse, ...]:
    """Each input goes to one output, whose number the transpose of the outputs' numbers tells."""
    size = math.prod(out)
    numbers = transpose(op, np.arange(size, dtype=np.float64).reshape((1, *out)), shapes)
    return tuple(
        _entries(n.ravel().astype(np.int64), np.arange(n.size), np.ones(n.size), (size, n.size)) for n in numbers
    )


@matrix_rule.register(Select)
def _(op: Select, shapes: Shapes, out: Shape) -> tuple[Sparse, ...]:
    kept = np.flatnonzero(op.index >= 0)
    return (_entries(kept, op.index[kept], np.ones(len(kept)), (math.prod(out), math.prod(shapes[0]))),)


@matrix_rule.register(Conv)
def _(op: Conv, shapes: Shapes, out: Shape) -> tuple[Sparse, ...]:
    return (_conv_matrix(op, shapes[0], out),)


@matrix_rule.register(ConvTranspose)
def _(op: ConvTranspose, shapes: Shapes, out: Shape) -> tuple[Sparse, ...]:
    return (_conv_matrix(op, out, shapes[0]).T.tocsr(),)


def _conv_matrix(op: Weighted, image: Shape, out: Shape) -> Sparse:
    """The matrix of y[m, o] = sum_{c, t} w[m, c, t] x[c, o stride + t dilation - begin], x (C, *), y (M, *).

    Windows over an image of the inputs' numbers tell which input each tap reads; -1 is padding.
    """
    assert isinstance(op, Conv | ConvTranspose)
    rank, groups, weight = len(op.stride), op.groups, np.asarray(op.weight, dtype=np.float64)
    begin, end = op.pads[:rank], op.pads[rank:]
    numbers = np.arange(math.prod(image)).reshape(image)
    # A transposed convolution may have outputs past its last tap, which no window reads.
    numbers = np.pad(numbers, [(0, 0), *zip(begin, end, strict=True)], constant_values=-1)
    kernel = weight.shape[2:]
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, op.dilation, strict=True))
    windows = sliding_window_view(numbers, reach, axis=tuple(range(1, 1 + rank)))
    cut = (slice(None), *(slice(None, (n - 1) * s + 1, s) for n, s in zip(out[1:], op.stride, strict=True)))
    windows = windows[(*cut, *(slice(None, None, d) for d in op.dilation))]
    places = math.prod(out[1:])
    filters, channels = weight.shape[0], image[0] // groups
    # (M, O, C / groups, K): the inputs that filter m reads at place o.
    taps = windows.reshape(groups, channels, places, -1).transpose(0, 2, 1, 3)
    read = np.repeat(taps, filters // groups, axis=0)
    value = np.broadcast_to(weight.reshape(filters, 1, channels, -1), read.shape)
    row = np.broadcast_to(np.arange(filters * places).reshape(filters, places, 1, 1), read.shape)
    kept = (read >= 0) & (value != 0)
    return _entries(row[kept], read[kept], value[kept], (filters * places, math.prod(image)))


def _entries(row: Any, column: Any, value: Any, shape: tuple[int, int]) -> Sparse:
    return sp.csr_matrix((value, (row, column)), shape=shape)
