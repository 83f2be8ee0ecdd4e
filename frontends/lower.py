"""Builder: lowers what networks are written in to the few ops of certify.ops.

Both front ends use it. A method takes node indices and constants, appends nodes and returns an index. The
graph means the stored weights in real arithmetic: moves are exact, and constants that have to be computed state
their error (certify.frontends.inexact). Shapes carry no batch axis; axes are numbered without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from certify import ops
from certify.arrays import Array, is_torch, to_numpy
from certify.errors import ModelError
from certify.frontends import inexact, windows
from certify.frontends.fold import fold
from certify.frontends.inexact import Known, known
from certify.graph import Graph, Node, Shape
from certify.rules import Op, cast

Constant = Array | Known | float
Index = np.ndarray[Any, np.dtype[np.int64]]


class Builder:
    """Builds a Graph node by node.

    input_shape: of one sample. sample: an array whose library, dtype and device all constants shall have (None: numpy,
    as given). Set `name` before calling a method: it becomes the name of the nodes that the method appends.
    """

    def __init__(self, input_shape: Sequence[int], sample: Array | None = None) -> None:
        self.name = "input"
        self.sample = sample
        self.nodes: list[Node] = [Node("input", ops.Input(), (), tuple(int(n) for n in input_shape))]

    @property
    def input(self) -> int:
        """The index of the network's input."""
        return 0

    def shape(self, x: int) -> Shape:
        """The shape of node x, without batch."""
        return self.nodes[x].shape

    def graph(self, output: int) -> Graph:
        """The network whose output is the node: without dead nodes, neighbouring affine ops folded, output last."""
        return Graph(fold(self.nodes, output))

    def append(self, op: Op, inputs: Sequence[int], shape: Sequence[int]) -> int:
        """Append a core op as it is; the caller vouches for its shape."""
        if self.sample is not None:
            op = cast(op, self.sample)
        self.nodes.append(Node(self.name, op, tuple(inputs), tuple(int(n) for n in shape)))
        return len(self.nodes) - 1

    # Affine ops

    def linear(self, x: int, weight: Constant, bias: Constant | None = None) -> int:
        """x W^T + b on the last axis; weight (m, n), bias (m,)."""
        rows, columns = known(weight).shape
        shape = self.shape(x)
        if shape[-1:] != (columns,):
            raise ModelError(f"node {self.name}: weight ({rows}, {columns}) does not fit an input of shape {shape}")
        return self._weighted(ops.Linear, x, weight, bias, shape=(*shape[:-1], rows))

    def scale(self, x: int, multiplier: Constant = 1.0, shift: Constant | None = None) -> int:
        """multiplier * x + shift, elementwise; x is broadcast where the constants are larger."""
        factor = known(multiplier)
        offset = None if shift is None else known(shift)
        shape = np.broadcast_shapes(self.shape(x), factor.shape, () if offset is None else offset.shape)
        x = self.broadcast(x, shape)
        if offset is not None and not is_torch(offset.value) and not np.any(offset.value) and not np.any(offset.error):
            offset = None
        if offset is None and not is_torch(factor.value) and np.all(factor.value == 1) and not np.any(factor.error):
            return x
        return self._weighted(ops.Scale, x, factor, offset, shape=shape)

    def conv(
        self, x: int, weight: Constant, bias: Constant | None = None, *, geometry: windows.Geometry, groups: int = 1
    ) -> int:
        """Cross-correlation as in ONNX: x (C, *spatial), weight (M, C/groups, *kernel), bias (M,)."""
        size = known(weight).shape
        shape = self.shape(x)
        if len(shape) != len(size) - 1 or shape[0] != size[1] * groups or size[0] % groups:
            raise ModelError(
                f"node {self.name}: convolution weight {size}, {groups} group(s), input {shape} do not fit"
            )
        spatial = windows.out_spatial(shape[1:], size[2:], geometry)
        fields = {"stride": geometry.stride, "pads": geometry.pads, "dilation": geometry.dilation, "groups": groups}
        bias = _per_channel(bias, len(spatial))
        return self._weighted(ops.Conv, x, weight, bias, shape=(size[0], *spatial), fields=fields)

    def conv_transpose(
        self,
        x: int,
        weight: Constant,
        bias: Constant | None = None,
        *,
        geometry: windows.Geometry,
        groups: int = 1,
        output_padding: Sequence[int] | None = None,
    ) -> int:
        """Transposed convolution as in ONNX: x (C, *spatial), weight (C, M/groups, *kernel), bias (M,)."""
        size = known(weight).shape
        shape = self.shape(x)
        rank = len(size) - 2
        if len(shape) != rank + 1 or shape[0] != size[0] or size[0] % groups:
            raise ModelError(f"node {self.name}: transposed convolution weight {size} does not fit an input {shape}")
        extra = tuple(output_padding) if output_padding else (0,) * rank
        spatial = tuple(
            (shape[1 + i] - 1) * geometry.stride[i]
            + (size[2 + i] - 1) * geometry.dilation[i]
            + 1
            + extra[i]
            - geometry.pads[i]
            - geometry.pads[rank + i]
            for i in range(rank)
        )
        if min(spatial) < 1:
            raise ModelError(f"node {self.name}: pads {geometry.pads} crop the whole output")
        fields = {"stride": geometry.stride, "pads": geometry.pads, "dilation": geometry.dilation, "groups": groups}
        fields["out_spatial"] = spatial
        bias = _per_channel(bias, rank)
        return self._weighted(ops.ConvTranspose, x, weight, bias, shape=(size[1] * groups, *spatial), fields=fields)

    def batch_norm(
        self, x: int, gamma: Constant, beta: Constant, mean: Constant, variance: Constant, eps: float
    ) -> int:
        """gamma (x - mean) / sqrt(variance + eps) + beta, per channel (axis 0)."""
        deviation = inexact.square_root(inexact.add(known(variance), known(float(eps))))
        factor = inexact.divide(known(gamma), deviation)
        shift = inexact.subtract(known(beta), inexact.multiply(factor, known(mean)))
        ones = (1,) * (len(self.shape(x)) - 1)
        return self.scale(x, factor.reshape((-1, *ones)), shift.reshape((-1, *ones)))

    def add(self, *xs: int, signs: Sequence[int] | None = None) -> int:
        """sum_i signs[i] x_i, broadcast to one shape."""
        signs = (1,) * len(xs) if signs is None else tuple(signs)
        shape = np.broadcast_shapes(*(self.shape(x) for x in xs))
        return self.append(ops.Add(signs), [self.broadcast(x, shape) for x in xs], shape)

    def sub(self, a: int, b: int) -> int:
        """a - b."""
        return self.add(a, b, signs=(1, -1))

    def neg(self, x: int) -> int:
        """-x."""
        return self.scale(x, -1.0)

    # Moves

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        """The same numbers in row-major order; -1 may stand for one axis."""
        size = math.prod(self.shape(x))
        target = tuple(int(n) for n in shape)
        if -1 in target:
            rest = -math.prod(target)
            target = tuple(size // rest if n == -1 else n for n in target)
        if math.prod(target) != size:
            raise ModelError(f"node {self.name}: cannot reshape {self.shape(x)} to {target}")
        if isinstance(self.nodes[x].op, ops.Reshape):
            x = self.nodes[x].inputs[0]
        node = self.nodes[x]
        if isinstance(node.op, ops.Select):
            return self.append(ops.Select(node.op.index, target), node.inputs, target)
        return x if self.shape(x) == target else self.append(ops.Reshape(target), [x], target)

    def select(self, x: int, index: Index, shape: Sequence[int]) -> int:
        """y.flat[k] = x.flat[index[k]], 0 where index[k] is -1; index is an array of prod(shape) integers."""
        flat = np.ascontiguousarray(index, dtype=np.int64).reshape(-1)
        size = math.prod(self.shape(x))
        assert flat.size == math.prod(shape), "select: index and shape disagree"
        assert flat.size == 0 or (flat.min() >= -1 and flat.max() < size), "select: index out of range"
        while isinstance(self.nodes[x].op, ops.Reshape | ops.Select):
            op = self.nodes[x].op
            if isinstance(op, ops.Select):
                flat = np.where(flat < 0, -1, op.index[flat])
            x = self.nodes[x].inputs[0]
        if np.array_equal(flat, np.arange(math.prod(self.shape(x)))):
            return self.reshape(x, shape)
        return self.append(ops.Select(flat, tuple(int(n) for n in shape)), [x], shape)

    def places(self, x: int) -> Index:
        """Row-major positions 0, 1, ... in the shape of x: move them with numpy, then `move`."""
        return np.arange(math.prod(self.shape(x)), dtype=np.int64).reshape(self.shape(x))

    def move(self, x: int, moved: Index) -> int:
        """The numbers of x moved as `places(x)` was moved to give `moved`; -1 is a zero."""
        return self.select(x, moved, moved.shape)

    def transpose(self, x: int, permutation: Sequence[int]) -> int:
        """Axes permuted as numpy.transpose does."""
        return self.move(x, self.places(x).transpose(tuple(permutation)))

    def slice(self, x: int, where: tuple[slice | int, ...]) -> int:
        """x[where] with basic indexing."""
        return self.move(x, self.places(x)[where])

    def gather(self, x: int, index: Index, axis: int) -> int:
        """numpy.take(x, index, axis)."""
        return self.move(x, np.take(self.places(x), index, axis=axis))

    def pad(self, x: int, widths: Sequence[tuple[int, int]], value: float = 0.0, mode: str = "constant") -> int:
        """numpy.pad per axis; a negative width crops. mode: constant, edge, reflect or wrap."""
        crop = tuple(slice(-min(b, 0), max(n + min(e, 0), 0)) for (b, e), n in zip(widths, self.shape(x), strict=True))
        grow = [(max(b, 0), max(e, 0)) for b, e in widths]
        places = self.places(x)[crop]
        if any(n < 1 or (mode == "reflect" and max(g) >= n) for n, g in zip(places.shape, grow, strict=True)):
            raise ModelError(f"node {self.name}: pads {widths} cut off, or reflect, more than {self.shape(x)} has")
        if mode == "constant":
            moved = np.pad(places, grow, mode="constant", constant_values=-1)
        elif mode in ("edge", "reflect", "wrap"):
            moved = np.pad(places, grow, mode=mode)  # type: ignore[call-overload]
        else:
            raise ModelError(f"node {self.name}: padding mode {mode!r} is not supported")
        y = self.move(x, moved)
        return y if value == 0 else self.scale(y, 1.0, np.where(moved < 0, np.float64(value), 0.0))

    def broadcast(self, x: int, shape: Sequence[int]) -> int:
        """numpy.broadcast_to."""
        target = tuple(int(n) for n in shape)
        if self.shape(x) == target:
            return x
        return self.move(x, np.broadcast_to(self.places(x), target))

    def concat(self, xs: Sequence[int], axis: int) -> int:
        """Join along an axis."""
        if len(xs) == 1:
            return xs[0]
        shapes = [self.shape(x) for x in xs]
        axis %= len(shapes[0])
        shape = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
        if any(s[:axis] + s[axis + 1 :] != shape[:axis] + shape[axis + 1 :] for s in shapes):
            raise ModelError(f"node {self.name}: cannot concatenate shapes {shapes} along axis {axis}")
        return self.append(ops.Concat(axis), xs, shape)

    def sum_axes(self, x: int, axes: Sequence[int], keepdims: bool = True) -> int:
        """Sum over axes."""
        shape = self.shape(x)
        over = tuple(sorted({a % len(shape) for a in axes}))
        kept = tuple(1 if i in over else n for i, n in enumerate(shape))
        y = x if kept == shape else self.append(ops.SumAxes(over), [x], kept)
        return y if keepdims else self.reshape(y, tuple(n for i, n in enumerate(kept) if i not in over))

    def mean_axes(self, x: int, axes: Sequence[int], keepdims: bool = True) -> int:
        """Mean over axes."""
        shape = self.shape(x)
        count = math.prod(shape[a] for a in {a % len(shape) for a in axes})
        return self.scale(self.sum_axes(x, axes, keepdims), inexact.divide(known(1.0), known(float(count))))

    # Piecewise-linear and smooth ops

    def relu(self, x: int) -> int:
        """max(x, 0)."""
        return self.append(ops.Relu(), [x], self.shape(x))

    def sigmoid(self, x: int) -> int:
        """1 / (1 + exp(-x))."""
        return self.append(ops.Sigmoid(), [x], self.shape(x))

    def tanh(self, x: int) -> int:
        """2 sigmoid(2 x) - 1."""
        return self.scale(self.sigmoid(self.scale(x, 2.0)), 2.0, -1.0)

    def leaky_relu(self, x: int, slope: Constant) -> int:
        """slope x + (1 - slope) relu(x): LeakyReLU, or PReLU with an array that broadcasts to x."""
        rest = inexact.subtract(known(1.0), known(slope))
        return self.add(self.scale(x, slope), self.scale(self.relu(x), rest))

    def clip(self, x: int, low: Constant | None, high: Constant | None) -> int:
        """min(max(x, low), high) as low + relu(x - low) and high - relu(high - .); None is no limit."""
        if low is not None:
            x = self.scale(self.relu(self.scale(x, 1.0, inexact.negative(known(low)))), 1.0, low)
        if high is not None:
            x = self.scale(self.relu(self.scale(x, -1.0, high)), -1.0, high)
        return x

    def maximum(self, a: int, b: int) -> int:
        """max(a, b) = b + relu(a - b), broadcast to one shape."""
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        a, b = self.broadcast(a, shape), self.broadcast(b, shape)
        return self.append(ops.MaxOfTwo(), [a, b, self.relu(self.sub(a, b))], shape)

    def minimum(self, a: int, b: int) -> int:
        """min(a, b) = -max(-a, -b)."""
        return self.neg(self.maximum(self.neg(a), self.neg(b)))

    def abs(self, x: int) -> int:
        """|x| = max(x, -x)."""
        return self.maximum(x, self.neg(x))

    # Pooling over x of shape (C, *spatial)

    def max_pool(self, x: int, kernel: Sequence[int], geometry: windows.Geometry) -> int:
        """Maximum over windows by a tree of pairwise maxima; padding never wins."""
        taps = windows.taps(self.shape(x), tuple(kernel), geometry)  # (taps, C, *out), every one a real cell
        return self.max_first(self.move(x, taps))

    def max_first(self, x: int) -> int:
        """Maximum over the first axis, which goes away."""
        current = x
        spare: list[int] = []
        while (count := self.shape(current)[0]) > 1:
            half = count // 2
            if count % 2:
                spare.append(self.slice(current, (slice(count - 1, count),)))
            first, second = self.slice(current, (slice(0, half),)), self.slice(current, (slice(half, 2 * half),))
            current = self.maximum(first, second)
        for other in spare:
            current = self.maximum(current, other)
        return self.reshape(current, self.shape(x)[1:])

    def average_pool(
        self, x: int, kernel: Sequence[int], geometry: windows.Geometry, count_include_pad: bool = False
    ) -> int:
        """Mean over windows: a convolution with ones per channel, then a division by each window's number of cells."""
        shape = self.shape(x)
        ones = np.ones((shape[0], 1, *kernel), dtype=np.float32)
        counts = windows.counts(shape[1:], tuple(kernel), geometry, count_include_pad)
        total = self.conv(x, ones, geometry=windows.reached(shape[1:], tuple(kernel), geometry), groups=shape[0])
        if np.all(counts == counts.flat[0]):
            counts = counts.reshape(-1)[0]
        return self.scale(total, inexact.divide(known(1.0), known(np.float64(counts))))

    def _weighted(
        self,
        kind: type[ops.Weighted],
        x: int,
        weight: Constant,
        bias: Constant | None,
        *,
        shape: Sequence[int],
        fields: dict[str, Any] | None = None,
    ) -> int:
        """Append a weighted op with the errors of its constants."""
        numbers, weight_error = inexact.relative(known(weight), f"node {self.name}")
        shift = None if bias is None else known(bias)
        for values in (numbers, None if shift is None else shift.value):
            if values is not None and not np.all(np.isfinite(to_numpy(values))):
                raise ModelError(f"node {self.name}: its weights hold NaN or infinity; no bound of it means anything")
        op = kind(
            numbers,
            None if shift is None else shift.value,
            weight_error,
            0.0 if shift is None else shift.error,
            **(fields or {}),
        )
        return self.append(op, [x], shape)


def _per_channel(bias: Constant | None, rank: int) -> Known | None:
    return None if bias is None else known(bias).reshape((-1, *(1,) * rank))
