"""What the checker makes of an ONNX file: tensors in topological order, each by one of a few operations.

The file is read into this by certify.check.read_onnx; nothing here is shared with the rest of certify. Shapes carry no
batch axis. Numbers mean themselves, in real arithmetic; where one had to be computed (a BatchNorm's factor, 1/9), the
operation says how far it may be off: the true weight lies within weight_error * |weight| of `weight`, the true bias
within bias_error of `bias`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Index = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Input:
    """The network's input."""


@dataclass(frozen=True, eq=False)
class Linear:
    """x W^T + b on the last axis: weight (m, n), bias (m,) or None."""

    weight: Float64
    bias: Float64 | None = None
    weight_error: float = 0.0
    bias_error: Float64 | float = 0.0


@dataclass(frozen=True, eq=False)
class Scale:
    """factor * x + shift, elementwise; both broadcast to x's shape."""

    weight: Float64
    bias: Float64 | None = None
    weight_error: float = 0.0
    bias_error: Float64 | float = 0.0


@dataclass(frozen=True, eq=False)
class Conv:
    """Cross-correlation: x (C, *spatial), weight (M, C / groups, *kernel), bias (M,). pads: begins, then ends."""

    weight: Float64
    bias: Float64 | None
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    weight_error: float = 0.0
    bias_error: Float64 | float = 0.0


@dataclass(frozen=True, eq=False)
class ConvTranspose:
    """A cross-correlation's transpose: x (C, *spatial), weight (C, M / groups, *kernel), bias (M,); out: (*spatial)."""

    weight: Float64
    bias: Float64 | None
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]
    groups: int = 1
    weight_error: float = 0.0
    bias_error: Float64 | float = 0.0


@dataclass(frozen=True, eq=False)
class Select:
    """y.flat[k] = x.flat[index[k]], or 0 where index[k] is -1: transpositions, slices, paddings, repetitions."""

    index: Index


@dataclass(frozen=True, eq=False)
class SumAxes:
    """Sum over axes, which stay with length 1."""

    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Concat:
    """Joined along an axis."""

    axis: int


@dataclass(frozen=True, eq=False)
class Add:
    """sum_i signs[i] x_i over operands of one shape; signs are 1 or -1."""

    signs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Maximum:
    """max(a, b), operands (a, b, relu(a - b)): in backward passes b + relu(a - b), as an interval max of both."""


@dataclass(frozen=True, eq=False)
class Relu:
    """A unit: max(z, 0)."""


@dataclass(frozen=True, eq=False)
class Sigmoid:
    """A unit: 1 / (1 + exp(-z))."""


Weighted = Linear | Scale | Conv | ConvTranspose
Operation = Input | Linear | Scale | Conv | ConvTranspose | Select | SumAxes | Concat | Add | Maximum | Relu | Sigmoid


@dataclass(frozen=True, eq=False)
class Node:
    """operation applied to earlier nodes; `name` is of the ONNX node, for messages."""

    name: str
    op: Operation
    inputs: tuple[int, ...]
    shape: Shape

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Network:
    """nodes[0] is the input, the last node the output (flat). units: the ReLUs and sigmoids, in order.

    doubts: where a float32 runtime may depart from the nodes by more than their own roundings.
    """

    nodes: tuple[Node, ...]
    doubts: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[int, ...]:
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.op, Relu | Sigmoid))
