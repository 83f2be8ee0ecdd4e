"""A network being read: its activations and what can be done with them, node by node.

The network is read as what it computes for one sample: a tensor has its ONNX shape with the batch axis at length 1, so
that Shape chains are plain numbers, and every rearrangement has a clear meaning. `finished` drops that axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.check import network as net
from certify.check.constants import ONE, Constant, bias_of, divide, exact, negative, weight_of
from certify.check.errors import Rejected
from certify.check.network import Index, Node, Operation, Shape

Array = NDArray[Any]
LARGEST = 1 << 31  # numbers of a tensor: more is damage, or a bomb


@dataclass
class Sketch:
    """The nodes so far, with the batch axis; `name`: of the ONNX node at work; `doubts`: see Network.

    kind: the file's type of all that depends on the input; void once there are several.
    """

    kind: np.dtype[Any]
    nodes: list[Node] = field(default_factory=list)
    name: str = "input"
    doubts: list[str] = field(default_factory=list)

    def doubt(self, why: str) -> None:
        self.doubts.append(f"{self.name!r}: {why}")

    def append(self, op: Operation, inputs: Sequence[int], shape: Shape) -> Value:
        if math.prod(shape) > LARGEST or min(shape, default=1) < 1:
            raise Rejected(f"a tensor of shape {shape}")
        self.nodes.append(Node(self.name, op, tuple(inputs), tuple(int(n) for n in shape)))
        return Value(self, len(self.nodes) - 1)

    def constant(self, numbers: Constant) -> Value:
        """A node that reads nothing."""
        return Value(self, 0).select(np.full(numbers.shape, -1)).scale(ONE, numbers)

    def finished(self, output: Value) -> net.Network:
        """What `output` needs, without the batch axis; the output flat. Moves that move nothing go."""
        self.name = "output"
        last = output.reshape((output.node.size,)).at
        needed = {0, last}
        for i in range(last, 0, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        number: dict[int, int] = {}
        kept: list[Node] = []
        for i in sorted(needed):
            node = self.nodes[i]
            shape, inputs = _inner(node.shape), tuple(number[k] for k in node.inputs)
            if isinstance(node.op, net.Select) and shape == kept[inputs[0]].shape and _is_identity(node.op.index):
                number[i] = inputs[0]
                continue
            number[i] = len(kept)
            kept.append(Node(node.name, _of_sample(node.op, node.shape), inputs, shape))
        return net.Network(tuple(kept), tuple(self.doubts))


def _inner(shape: Shape) -> Shape:
    """Without a leading 1, never of rank 0."""
    if not shape:
        return (1,)
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _of_sample(op: Operation, shape: Shape) -> Operation:
    """The operation that yields _inner(shape) of operands that have lost, or kept, their first axis alike."""
    less = len(shape) - len(_inner(shape))
    if isinstance(op, net.Concat):
        return net.Concat(op.axis - less)
    if isinstance(op, net.SumAxes):
        return net.SumAxes(tuple(axis - less for axis in op.axes))
    if isinstance(op, net.Scale) and less > 0:
        arrays = {name: getattr(op, name) for name in ("weight", "bias", "bias_error")}
        return replace(op, **{k: a.reshape(a.shape[1:]) for k, a in arrays.items() if np.ndim(a) == len(shape)})
    return op


def _is_identity(flat: Index) -> bool:
    return np.array_equal(flat, np.arange(flat.size))


@dataclass(frozen=True, eq=False)
class Value:
    """An activation: a node of a sketch. softmax: the Softmax of its numbers, which may only end the network."""

    sketch: Sketch
    at: int
    softmax: bool = False

    @property
    def node(self) -> Node:
        return self.sketch.nodes[self.at]

    @property
    def shape(self) -> Shape:
        return self.node.shape

    def append(self, op: Operation, shape: Shape) -> Value:
        """An operation on this tensor alone."""
        return self.sketch.append(op, [self.at], shape)

    def select(self, index: Index) -> Value:
        """The numbers at these places, 0 for -1; one Select after another becomes one."""
        x, flat = self, np.ascontiguousarray(index, dtype=np.int64).reshape(-1)
        if flat.size == 0 or flat.min() < -1 or flat.max() >= x.node.size:
            raise Rejected("it yields nothing, or reads outside of its input")
        if isinstance(op := x.node.op, net.Select):
            flat = np.where(flat < 0, -1, op.index[flat])
            x = Value(self.sketch, x.node.inputs[0])
        if index.shape == x.shape and _is_identity(flat):
            return x
        return x.append(net.Select(flat), index.shape)

    def move(self, change: Callable[[Array], Array]) -> Value:
        """A rearrangement of numbers, seen by what it does to their places; it may put -1 for a zero."""
        moved = np.asarray(change(np.arange(self.node.size, dtype=np.int64).reshape(self.shape)))
        if moved.dtype != np.int64:
            raise Rejected(f"moving places gives {moved.dtype}")
        return self.select(moved)

    def reshape(self, shape: Shape) -> Value:
        return self if shape == self.shape else self.move(lambda a: a.reshape(shape))

    def broadcast(self, shape: Shape) -> Value:
        return self if shape == self.shape else self.move(lambda a: np.broadcast_to(a, shape))

    def linear(self, matrix: Constant) -> Value:
        """x M^T on the last axis."""
        shape = self.shape
        if len(matrix.shape) != 2 or shape[-1] != matrix.shape[1]:
            raise Rejected(f"weights {matrix.shape} do not fit an input {shape}")
        weight, error = weight_of(matrix)
        op = net.Linear(np.ascontiguousarray(weight), None, error)
        return self.append(op, (*shape[:-1], len(weight)))

    def scale(self, factor: Constant, shift: Constant | None = None) -> Value:
        """factor x + shift, in the shape that all broadcast to."""
        x = self.broadcast(np.broadcast_shapes(self.shape, factor.shape, () if shift is None else shift.shape))
        weight, error = weight_of(factor)
        bias, bias_error = (None, 0.0) if shift is None else bias_of(shift)
        if error == 0.0 and (weight == 1).all():
            if bias is None or not (bias.any() or np.any(bias_error)):
                return x
            if not np.any(bias_error) and (merged := x.with_bias(bias)) is not None:
                return merged
        return x.append(net.Scale(weight, bias, error, bias_error), x.shape)

    def with_bias(self, bias: NDArray[np.float64]) -> Value | None:
        """A linear op without bias once more, now with this one, if it is the same for all of a row or channel."""
        node = self.node
        if not isinstance(node.op, net.Linear | net.Conv | net.ConvTranspose) or node.op.bias is not None:
            return None
        channel = len(node.shape) - 1 if isinstance(node.op, net.Linear) else 1
        full = (1,) * (len(node.shape) - bias.ndim) + bias.shape
        if any(n != 1 for i, n in enumerate(full) if i != channel):
            return None
        bias = np.broadcast_to(bias.reshape(-1), (node.shape[channel],))
        return self.sketch.append(replace(node.op, bias=bias), node.inputs, node.shape)

    def __neg__(self) -> Value:
        return self.scale(negative(ONE))

    def mean(self, count: int) -> Value:
        """x / count."""
        return self.scale(divide(ONE, exact(np.float64(count))))

    def sum(self, axes: Sequence[int]) -> Value:
        """Over axes, which stay with length 1."""
        shape = tuple(1 if i in axes else n for i, n in enumerate(self.shape))
        if shape == self.shape:
            return self
        batch = self if self.shape[0] == 1 else self.reshape((1, *self.shape))
        more = len(batch.shape) - len(shape)
        op = net.SumAxes(tuple(axis + more for axis in axes if self.shape[axis] > 1))
        return batch.append(op, (1,) * more + shape).reshape(shape)

    def relu(self) -> Value:
        return self.append(net.Relu(), self.shape)

    def sigmoid(self) -> Value:
        return self.append(net.Sigmoid(), self.shape)

    def at_least(self, low: Constant) -> Value:
        """low + relu(x - low)."""
        return self.scale(ONE, negative(low)).relu().scale(ONE, low)

    def at_most(self, high: Constant) -> Value:
        """high - relu(high - x)."""
        return self.scale(negative(ONE), high).relu().scale(negative(ONE), high)


def total(values: Sequence[Value], signs: Sequence[int]) -> Value:
    """The sum of the values with their signs."""
    if len(values) == 1:
        return values[0] if signs[0] > 0 else -values[0]
    shape = np.broadcast_shapes(*(v.shape for v in values))
    return values[0].sketch.append(net.Add(tuple(signs)), [v.broadcast(shape).at for v in values], shape)


def maximum(a: Value, b: Value) -> Value:
    """max(a, b) = b + relu(a - b)."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    a, b = a.broadcast(shape), b.broadcast(shape)
    return a.sketch.append(net.Maximum(), [a.at, b.at, total([a, b], [1, -1]).relu().at], shape)


def largest(x: Value) -> Value:
    """The maximum over the first axis by pairs: halves against halves, odd ones put aside and joined at the end."""

    def part(begin: int, end: int) -> Value:
        return x.move(lambda a: a[begin:end])

    aside = []
    while (count := x.shape[0]) > 1:
        half = count // 2
        if count % 2:
            aside.append(part(count - 1, count))
        x = maximum(part(0, half), part(half, 2 * half))
    for other in aside:
        x = maximum(x, other)
    return x.reshape(x.shape[1:])


Tensor = Value | Constant
