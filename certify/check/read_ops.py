"""ONNX ops that compute: with weights, by elements, over windows and axes. Units as docs/certificate.md lists them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from certify.check.build import Call, Tensor, Value, handles, inner
from certify.check.constants import ONE, Constant, add, divide, exact, multiply, negative, square_root, weight_of
from certify.check.errors import Rejected
from certify.check.network import Conv, ConvTranspose, Index, Shape, Sigmoid, SumAxes


def fitted(shape: Shape, out: Shape) -> Shape:
    """The shape in which something of ONNX shape `shape` broadcasts to inner(out)."""
    padded = (1,) * (len(out) - len(shape)) + shape
    return padded[len(out) - len(inner(out)) :] if out else (1,)


def fit(constant: Constant, out: Shape) -> Constant:
    return constant.move(lambda a: a.reshape(fitted(constant.shape, out)))


def operands(call: Call) -> tuple[list[int], list[Constant], Shape, list[int]]:
    """All inputs shaped to broadcast: nodes, constants; the shape in the end; the places of the nodes."""
    tensors = [t if isinstance(t, Constant) else call.as_value(t) for t in call.inputs if t is not None]
    out = np.broadcast_shapes(*(t.shape for t in tensors))
    nodes = [call.sketch.view(t.node, fitted(t.shape, out)) for t in tensors if isinstance(t, Value)]
    constants = [fit(t.float64(), out) for t in tensors if isinstance(t, Constant)]
    return nodes, constants, out, [i for i, t in enumerate(tensors) if isinstance(t, Value)]


@handles("Add", "Sub", since=(7, 13, 14))
@handles("Sum", "Mean", since=(6, 8, 13))
def _(call: Call) -> Tensor:
    count = len(call.inputs)
    signs = [1, -1] if call.op == "Sub" else [1] * count
    nodes, constants, out, where = operands(call)
    own = [signs[i] for i in where]
    rest = [s for i, s in enumerate(signs) if i not in where]
    node = nodes[0] if own == [1] else call.sketch.negative(nodes[0]) if own == [-1] else call.sketch.add(nodes, own)
    for sign, constant in zip(rest, constants, strict=True):  # one by one, as a runtime may: roundings are of this size
        node = call.sketch.scale(node, ONE, constant if sign > 0 else negative(constant))
    if call.op == "Mean":
        node = call.sketch.scale(node, divide(ONE, exact(np.float64(count))))
    return Value(call.sketch.broadcast(node, inner(out)), out)


@handles("Mul", "Div", since=(7, 13, 14))
@handles("Pow", since=(7, 12, 13, 15))
def _(call: Call) -> Tensor:
    nodes, constants, out, where = operands(call)
    if len(constants) != 1 or (call.op != "Mul" and where != [0]):
        raise Rejected("a product, quotient or power of activations")
    factor = divide(ONE, constants[0]) if call.op == "Div" else constants[0]
    if call.op == "Pow" and not (factor.exact and (factor.lower == 1).all()):
        raise Rejected("an exponent other than 1")
    return Value(call.sketch.broadcast(call.sketch.scale(nodes[0], factor), inner(out)), out)


@handles("Neg", since=(6, 13))
def _(call: Call) -> Tensor:
    return Value(call.sketch.negative(call.value().node), call.value().shape)


def turned(call: Call, value: Value) -> Value:
    """The last two axes exchanged."""
    moved = call.move(value, lambda a: np.swapaxes(a, -1, -2))
    assert isinstance(moved, Value)
    return moved


def times(call: Call, value: Value, matrix: Constant) -> Value:
    """value M^T, on the last axis."""
    if not value.shape:
        raise Rejected("a scalar in a matrix product")
    return Value(call.sketch.linear(call.core(value), matrix), (*value.shape[:-1], matrix.shape[0]))


def transposed(matrix: Constant) -> Constant:
    return matrix.move(lambda a: np.swapaxes(a, -1, -2))


@handles("MatMul", since=(1, 9, 13))
def _(call: Call) -> Tensor:
    left, right = call.data(0), call.data(1)
    given, value = (right, left) if isinstance(right, Constant) else (left, right)
    if not isinstance(given, Constant) or math.prod(given.shape[:-2]) != 1 or not given.shape or not value.shape:
        raise Rejected("a product of activations, or with a stack of matrices")
    value, given, after = call.as_value(value), given.float64(), isinstance(right, Constant)
    row_or_column = (-1, 1) if after else (1, -1)
    matrix = given.move(lambda a: a.reshape(a.shape[-2:] if a.ndim > 1 else row_or_column))
    if after:
        node = times(call, value, transposed(matrix)).node
    elif len(value.shape) == 1:
        node = times(call, value, matrix).node
    else:
        node = turned(call, times(call, turned(call, value), matrix)).node
    shape = product_shape(left.shape, right.shape)
    return Value(call.sketch.view(node, inner(shape)), shape)


def product_shape(left: Shape, right: Shape) -> Shape:
    """Of numpy.matmul."""
    stack = np.broadcast_shapes(left[:-2], right[:-2])
    return (*stack, *(left[-2:-1] if len(left) > 1 else ()), *(right[-1:] if len(right) > 1 else ()))


@handles("Gemm", since=(7, 9, 11, 13))
def _(call: Call) -> Tensor:
    """alpha A B + beta C."""
    alpha, beta = (exact(np.float64(call.attribute(name, 1.0))) for name in ("alpha", "beta"))
    flips = (call.attribute("transA", 0), call.attribute("transB", 0))
    left, right, third = call.data(0), call.data(1), call.input(2)
    if isinstance(left, Constant) == isinstance(right, Constant) or len(left.shape) != 2 or len(right.shape) != 2:
        raise Rejected("a product of activations, or not of matrices")
    if isinstance(right, Constant):
        value = turned(call, call.value(0)) if flips[0] else call.value(0)
        matrix = right if flips[1] else transposed(right)
        out = times(call, value, multiply(alpha, matrix))
    else:
        assert isinstance(left, Constant)
        value = call.value(1) if flips[1] else turned(call, call.value(1))
        matrix = transposed(left) if flips[0] else left
        out = turned(call, times(call, value, multiply(alpha, matrix)))
    if third is None:
        return out
    if isinstance(third, Constant):
        shift = fit(multiply(beta, third), out.shape)
        node = call.sketch.scale(call.core(out), ONE, shift)
    else:
        term = call.sketch.scale(call.sketch.view(call.as_value(third).node, fitted(third.shape, out.shape)), beta)
        node = call.sketch.add([call.core(out), term], [1, 1])
    return Value(call.sketch.view(node, inner(out.shape)), out.shape)


@dataclass(frozen=True)
class Windows:
    """How windows move over `spatial`: one number an axis; pads are begins, then ends."""

    spatial: Shape
    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: Shape
    ceil: bool = False

    @property
    def counts(self) -> Shape:
        """Windows per axis. With `ceil` a last partial one counts, unless it starts beyond data and begin padding."""
        rank, found = len(self.kernel), []
        for i, (n, k) in enumerate(zip(self.spatial, self.kernel, strict=True)):
            room = n + self.pads[i] + self.pads[rank + i] - (k - 1) * self.dilation[i] - 1
            count = (-(-room // self.stride[i]) if self.ceil else room // self.stride[i]) + 1
            if self.ceil and (count - 1) * self.stride[i] >= n + self.pads[i]:
                count -= 1
            if (room < 0 and not self.ceil) or count < 1:
                raise Rejected(f"a kernel {self.kernel} larger than the padded input {self.spatial}")
            found.append(count)
        return tuple(found)

    def coordinates(self, i: int) -> Index:
        """(kernel, windows): where tap t of window w reads on axis i, which may lie outside."""
        taps, starts = np.arange(self.kernel[i]), np.arange(self.counts[i])
        return taps[:, None] * self.dilation[i] + starts * self.stride[i] - self.pads[i]


def windows(call: Call, spatial: Shape, kernel: Shape) -> Windows:
    """Of a convolution or pooling; auto_pad worked out."""
    rank = len(spatial)
    stride = tuple(call.attribute("strides", [1] * rank))
    dilation = tuple(call.attribute("dilations", [1] * rank))
    pads = tuple(call.attribute("pads", [0] * (2 * rank)))
    auto = call.attribute("auto_pad", "NOTSET")
    if not len(kernel) == len(stride) == len(dilation) == rank > 0 or len(pads) != 2 * rank:
        raise Rejected(f"kernel {kernel}, strides {stride}, dilations {dilation} and pads {pads} for axes {spatial}")
    if min(*kernel, *stride, *dilation) < 1 or min(pads) < 0:
        raise Rejected(f"kernel {kernel}, strides {stride}, dilations {dilation} or pads {pads} out of range")
    if auto == "VALID":
        pads = (0,) * (2 * rank)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(spatial, kernel, stride, dilation, strict=True)
        total = [(-(-n // s) - 1) * s + (k - 1) * d + 1 - n for n, k, s, d in sizes]
        if call.op.endswith("Pool") and (
            min(total) < 0 or max(dilation) > 1
        ):  # onnxruntime places the windows otherwise
            raise Rejected(f"auto_pad {auto} with strides {stride} and dilations {dilation} of a kernel {kernel}")
        pads = halved([max(t, 0) for t in total], auto)
    elif auto != "NOTSET":
        raise Rejected(f"auto_pad {auto!r}")
    ceil = bool(call.attribute("ceil_mode", 0)) if call.op.endswith("Pool") else False
    return Windows(spatial, kernel, stride, dilation, pads, ceil)


def halved(total: Sequence[int], auto: str) -> Shape:
    """Padding on both sides; where it is odd, SAME_UPPER has more at the end, everything else at the beginning."""
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*small, *large) if auto == "SAME_UPPER" else (*large, *small)


def convolution(call: Call, channel: int) -> tuple[int, Constant, Constant | None, Windows]:
    """Node, weight, bias, windows; channel: the weight's axis of x's channels."""
    x, weight = call.sample(call.value()), call.weights(1)
    bias = None if call.input(2) is None else call.weights(2)
    size, shape, groups = weight.shape, call.sketch.shape(x), call.attribute("group", 1)
    if len(size) != len(shape) + 1 or len(size) < 3 or groups < 1 or size[0] % groups:
        raise Rejected(f"weights {size} in {groups} groups for an input {shape}")
    if shape[0] != (size[1] * groups if channel else size[0]):
        raise Rejected(f"weights {size} in {groups} groups for {shape[0]} channels")
    if tuple(call.attribute("kernel_shape", size[2:])) != size[2:]:
        raise Rejected(f"kernel_shape that is not that of the weights {size}")
    filters = size[0] if channel else size[1] * groups
    if bias is not None and bias.shape != (filters,):
        raise Rejected(f"a bias {bias.shape} for {filters} filters")
    return x, weight, bias, windows(call, shape[1:], size[2:])


@handles("Conv", since=(1, 11, 22))
def _(call: Call) -> Tensor:
    x, constant, shift, w = convolution(call, 1)
    weight, error = weight_of(constant)
    op = Conv(weight, None, w.stride, w.pads, w.dilation, call.attribute("group", 1), error)
    node = call.sketch.append(op, [x], (len(weight), *w.counts))
    return with_bias(call, node, shift)


def with_bias(call: Call, node: int, shift: Constant | None) -> Value:
    """A convolution and its bias, one number a filter."""
    if shift is not None:
        ones = (1,) * (len(call.sketch.shape(node)) - 1)
        node = call.sketch.scale(node, ONE, shift.move(lambda a: a.reshape(-1, *ones)))
    return Value(node, (1, *call.sketch.shape(node)))


@handles("ConvTranspose", since=(1, 11, 22))
def _(call: Call) -> Tensor:
    x, constant, shift, w = convolution(call, 0)
    weight, error = weight_of(constant)
    rank, groups, auto = len(w.kernel), call.attribute("group", 1), call.attribute("auto_pad", "NOTSET")
    extra = tuple(call.attribute("output_padding", [0] * rank))
    wanted = call.attribute("output_shape")
    reach = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(w.spatial, w.stride, w.kernel, w.dilation, extra, strict=True)
    ]
    if wanted is None and auto.startswith("SAME"):
        wanted = [n * s for n, s in zip(w.spatial, w.stride, strict=True)]
    if wanted is not None:
        total = [r - n for r, n in zip(reach, wanted, strict=True)]
        if min(total) < 0:
            raise Rejected(f"output_shape {wanted} beyond what the kernel reaches")
        pads = halved(total, auto)
    else:
        pads = w.pads
    out = tuple(r - pads[i] - pads[rank + i] for i, r in enumerate(reach))
    if min(extra) < 0 or min(out) < 1:
        raise Rejected(f"pads {pads} and output_padding {extra}")
    op = ConvTranspose(weight, None, w.stride, pads, w.dilation, out, groups, error)
    return with_bias(call, call.sketch.append(op, [x], (weight.shape[1] * groups, *out)), shift)


@handles("BatchNormalization", since=(7, 9, 14, 15))
def _(call: Call) -> Tensor:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta."""
    call.expect("training_mode", 0)
    call.expect("spatial", 1)
    call.attribute("momentum")
    x = call.sample(call.value())
    shape = call.sketch.shape(x)
    gamma, beta, mean, variance = (call.weights(i) for i in range(1, 5))
    if any(call.used[1:]) or any(c.shape != shape[:1] for c in (gamma, beta, mean, variance)):
        raise Rejected(f"in training mode, or its constants do not fit {shape[0]} channels")
    epsilon = exact(np.float64(call.attribute("epsilon", float(np.float32(1e-5)))))
    factor = divide(gamma, square_root(add(variance, epsilon)))
    shift = add(beta, negative(multiply(factor, mean)))
    factor, shift = (c.move(lambda a: a.reshape(-1, *(1,) * (len(shape) - 1))) for c in (factor, shift))
    return Value(call.sketch.scale(x, factor, shift), call.value().shape)


@handles("Relu", since=(6, 13, 14))
def _(call: Call) -> Tensor:
    return Value(call.sketch.relu(call.value().node), call.value().shape)


@handles("Sigmoid", "Tanh", since=(6, 13))
def _(call: Call) -> Tensor:
    """tanh(x) = 2 sigmoid(2 x) - 1."""
    two = exact(np.float64(2.0))
    x, tanh = call.value().node, call.op == "Tanh"
    x = call.sketch.scale(x, two) if tanh else x
    y = call.sketch.append(Sigmoid(), [x], call.sketch.shape(x))
    return Value(call.sketch.scale(y, two, negative(ONE)) if tanh else y, call.value().shape)


@handles("Abs", since=(6, 13))
def _(call: Call) -> Tensor:
    x = call.value().node
    return Value(call.sketch.maximum(x, call.sketch.negative(x)), call.value().shape)


@handles("LeakyRelu", since=(6, 16))
@handles("PRelu", since=(7, 9, 16))
def _(call: Call) -> Tensor:
    """s x + (1 - s) relu(x)."""
    value = call.value()
    slope = exact(np.float64(call.attribute("alpha", float(np.float32(0.01)))))
    if call.op == "PRelu":
        slope = call.weights(1)
        if np.broadcast_shapes(value.shape, slope.shape) != value.shape:
            raise Rejected(f"slopes {slope.shape} for an input {value.shape}")
        slope = fit(slope, value.shape)
    x = call.core(value)
    active = call.sketch.relu(x)
    rest = call.sketch.scale(active, add(ONE, negative(slope)))
    return Value(call.sketch.add([call.sketch.scale(x, slope), rest], [1, 1]), value.shape)


@handles("HardSigmoid", since=(6, 22))
def _(call: Call) -> Tensor:
    alpha, beta = call.attribute("alpha", float(np.float32(0.2))), call.attribute("beta", 0.5)
    x = call.sketch.scale(call.value().node, exact(np.float64(alpha)), exact(np.float64(beta)))
    x = call.sketch.at_least(x, exact(np.float64(0.0)))
    return Value(call.sketch.at_most(x, ONE), call.value().shape)


@handles("Clip", since=(6, 11, 12, 13))
def _(call: Call) -> Tensor:
    value = call.value()
    x = value.node
    for i, name, side in ((1, "min", -1), (2, "max", 1)):
        limit = exact(np.float32(call.attribute(name, side * np.inf))) if call.input(i) is None else call.constant(i)
        number = limit.number()
        if math.isnan(number):
            raise Rejected(f"{name} is NaN")
        largest = np.finfo(np.float64 if limit.lower.dtype == np.float64 else np.float32).max
        if side * number < largest:  # else it is no limit
            shift = exact(np.float64(number))
            x = call.sketch.at_least(x, shift) if side < 0 else call.sketch.at_most(x, shift)
    return Value(x, value.shape)


@handles("Max", "Min", since=(6, 8, 12, 13))
def _(call: Call) -> Tensor:
    nodes, constants, out, _ = operands(call)
    largest = call.op == "Max"
    x = reduce(call.sketch.maximum if largest else call.sketch.minimum, nodes)
    for limit in constants:
        x = call.sketch.at_least(x, limit) if largest else call.sketch.at_most(x, limit)
    return Value(call.sketch.broadcast(x, inner(out)), out)


def taps(shape: Shape, w: Windows, *, repeat: bool) -> Index:
    """(taps, C, *out): places in x (C, *spatial). Outside: -1, or, with `repeat`, the window's first real cell."""
    rank = len(w.spatial)
    flat = np.zeros((1,) * (2 * rank), dtype=np.int64)
    outside = np.zeros((1,) * (2 * rank), dtype=np.bool_)
    for i, n in enumerate(w.spatial):
        at = w.coordinates(i)
        real = (at >= 0) & (at < n)
        if not real.any(axis=0).all():
            raise Rejected("a pooling window in the padding alone")
        start = np.take_along_axis(at, real.argmax(axis=0)[None], axis=0)
        along = [1] * (2 * rank)
        along[i], along[rank + i] = at.shape
        flat = flat * n + np.where(real, at, start).reshape(along)
        outside = outside | ~real.reshape(along)
    if not repeat:
        flat = np.where(outside, -1, flat)
    count, spatial = math.prod(w.kernel), math.prod(w.spatial)
    flat = flat.reshape(count, 1, *flat.shape[rank:])
    channels = np.arange(shape[0]).reshape(-1, *(1,) * rank) * spatial
    return np.where(flat < 0, -1, flat + channels)


@handles("MaxPool", since=(1, 8, 10, 11, 12, 22))
@handles("AveragePool", since=(7, 10, 11, 19, 22))
def _(call: Call) -> Tensor:
    x = call.sample(call.value())
    shape = call.sketch.shape(x)
    w = windows(call, shape[1:], tuple(call.attribute("kernel_shape")))
    if call.op == "MaxPool":
        call.attribute("storage_order")  # of the second output
        if any(call.used[1:]):
            raise Rejected("its indices are read")
        node = call.sketch.tree(call.sketch.select(x, taps(shape, w, repeat=True)))
    else:
        padded = bool(call.attribute("count_include_pad", 0))
        total = call.sketch.select(x, taps(shape, w, repeat=False))
        kept = (1, *call.sketch.shape(total)[1:])
        node = call.sketch.view(call.sketch.append(SumAxes((0,)), [total], kept), kept[1:])
        sizes = cells(w, padded)
        sizes = sizes.reshape(-1)[0] if (sizes == sizes.flat[0]).all() else sizes
        node = call.sketch.scale(node, divide(ONE, exact(sizes)))
    return Value(node, (1, *call.sketch.shape(node)))


def cells(w: Windows, padded: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What each window's sum is divided by: its cells in the data, or (`padded`) in the stated padding too."""
    rank, total = len(w.spatial), np.ones((1,) * len(w.spatial))
    for i, n in enumerate(w.spatial):
        at = w.coordinates(i)
        low, high = (-w.pads[i], n + w.pads[rank + i]) if padded else (0, n)
        held = ((at >= low) & (at < high)).sum(axis=0)
        total = total * held.reshape([-1 if j == i else 1 for j in range(rank)])
    return total


def reduction(call: Call, value: Value) -> tuple[list[int], Shape]:
    """The axes that are reduced, ascending, and the shape without them, or with them at length 1."""
    rank, axes = len(value.shape), call.settings("axes", 1)
    keep = bool(call.attribute("keepdims", 1))
    if not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(rank))
    call.attribute("noop_with_empty_axes")
    if any(not -rank <= a < rank for a in axes):
        raise Rejected(f"axes {axes} of an input {value.shape}")
    axes = sorted({a % rank for a in axes})
    return axes, tuple(1 if i in axes else n for i, n in enumerate(value.shape) if keep or i not in axes)


@handles("ReduceSum", "ReduceMean", since=(1, 11, 13, 18))
@handles("GlobalAveragePool", since=(1, 22))
def _(call: Call) -> Tensor:
    value = call.value()
    if call.op == "GlobalAveragePool":
        call.sample(value)
        axes = list(range(2, len(value.shape)))
        out = (*value.shape[:2], *(1,) * len(axes))
    else:
        axes, out = reduction(call, value)
    node = value.node
    if axes:
        kept = tuple(1 if i in axes else n for i, n in enumerate(value.shape))
        node = call.sketch.append(SumAxes(tuple(axes)), [call.sketch.view(node, value.shape)], kept)
    if call.op != "ReduceSum":
        count = math.prod(value.shape[a] for a in axes)
        node = call.sketch.scale(node, divide(ONE, exact(np.float64(count))))
    return Value(call.sketch.view(node, inner(out)), out)


@handles("GlobalMaxPool", since=(1, 22))
@handles("ReduceMax", "ReduceMin", since=(1, 11, 12, 13, 18, 20))
def _(call: Call) -> Tensor:
    value = call.value()
    if call.op == "GlobalMaxPool":
        axes = list(range(2, len(value.shape)))
        out = (*value.shape[:2], *(1,) * len(axes))
    else:
        axes, out = reduction(call, value)
    rest = [i for i in range(len(value.shape)) if i not in axes]
    places = np.arange(math.prod(value.shape), dtype=np.int64).reshape(value.shape).transpose(*axes, *rest)
    count = math.prod(value.shape[a] for a in axes)
    minimum = call.op == "ReduceMin"
    node = call.sketch.negative(value.node) if minimum else value.node
    top = call.sketch.tree(call.sketch.select(node, places.reshape(count, *(value.shape[i] for i in rest))))
    return Value(call.sketch.view(call.sketch.negative(top) if minimum else top, inner(out)), out)


@handles("Softmax", "LogSoftmax", since=(1, 11, 13))
def _(call: Call) -> Tensor:
    """Keeps the order of the classes, if they are all of a sample's numbers."""
    value = call.value()
    newer, rank = call.since >= 13, len(value.shape)
    axis = call.attribute("axis", -1 if newer else 1)
    if not -rank <= axis < rank:
        raise Rejected(f"axis {axis} of an input {value.shape}")
    axis %= rank
    over = value.shape[axis : axis + 1] if newer else value.shape[axis:]
    if math.prod(over) != math.prod(value.shape):
        raise Rejected(f"it normalises {over} of {value.shape}, not all classes at once")
    return Value(value.node, value.shape, softmax=True)
