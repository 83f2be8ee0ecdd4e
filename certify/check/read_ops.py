"""ONNX ops that compute: with weights, by elements, over axes. Units as docs/certificate.md lists them."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from certify.check.call import Call, handles
from certify.check.constants import ONE, ZERO, Constant, add, divide, exact, multiply, negative, square_root
from certify.check.errors import Rejected
from certify.check.network import Shape
from certify.check.sketch import Array, Tensor, Value, largest, maximum, total


@handles("Add", "Sub", since=(7, 13, 14))
@handles("Sum", "Mean", since=(6, 8, 13))
def _(call: Call) -> Tensor:
    count = len(call.inputs)
    signs = [1, -1] if call.op == "Sub" else [1] * count
    terms = [(call.data(i), sign) for i, sign in enumerate(signs)]
    values = [(t, sign) for t, sign in terms if isinstance(t, Value)]
    result = total([t for t, _ in values], [sign for _, sign in values])
    for term, sign in terms:  # constants one by one, as a runtime may: roundings are of this size
        if isinstance(term, Constant):
            result = result.scale(ONE, term if sign > 0 else negative(term))
    return result.mean(count) if call.op == "Mean" else result


@handles("Mul", "Div", since=(7, 13, 14))
@handles("Pow", since=(7, 12, 13, 15))
def _(call: Call) -> Tensor:
    value, factor = call.data(0), call.data(1)
    if call.op == "Mul" and isinstance(value, Constant):
        value, factor = factor, value
    if isinstance(value, Constant) or isinstance(factor, Value):
        raise Rejected("a product, quotient or power of activations")
    if call.op == "Pow" and not (factor.exact and (factor.lower == 1).all()):
        raise Rejected("an exponent other than 1")
    return value.scale(divide(ONE, factor) if call.op == "Div" else factor)


@handles("Neg", since=(6, 13))
def _(call: Call) -> Tensor:
    return -call.value()


def turned(a: Array) -> Array:
    """The last two axes exchanged."""
    return np.swapaxes(a, -1, -2)


def rows(a: Array) -> Array:
    """A matrix as it is, a vector as a row."""
    return a.reshape(a.shape[-2:] if a.ndim > 1 else (1, -1))


def product(left: Tensor, right: Tensor) -> Value:
    """left @ right, as numpy.matmul has it; one is a matrix or vector, constant."""
    first, second = left.shape, right.shape
    if not first or not second:
        raise Rejected("a scalar in a matrix product")
    stack = np.broadcast_shapes(first[:-2], second[:-2])
    shape = (*stack, *first[-2:-1], *(second[-1:] if len(second) > 1 else ()))
    if isinstance(left, Value) and isinstance(right, Constant) and math.prod(second[:-2]) == 1:
        return left.linear((right.move(turned) if len(second) > 1 else right).move(rows)).reshape(shape)
    if isinstance(left, Constant) and isinstance(right, Value) and math.prod(first[:-2]) == 1:
        if len(second) == 1:
            return right.linear(left.move(rows)).reshape(shape)
        return right.move(turned).linear(left.move(rows)).move(turned).reshape(shape)
    raise Rejected("a product of activations, or with a stack of matrices")


@handles("MatMul", since=(1, 9, 13))
def _(call: Call) -> Tensor:
    return product(call.data(0), call.data(1))


@handles("Gemm", since=(7, 9, 11, 13))
def _(call: Call) -> Tensor:
    """alpha A B + beta C."""
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    left, right = call.data(0), call.data(1)
    factors = [
        left.move(turned) if call.attribute("transA", 0) else left,
        right.move(turned) if call.attribute("transB", 0) else right,
    ]
    if any(len(t.shape) != 2 for t in factors):
        raise Rejected("a product of other than matrices")
    result = product(*(multiply(alpha, t) if isinstance(t, Constant) else t for t in factors))
    shape, third = result.shape, call.input(2)
    if isinstance(third, Constant):
        result = result.scale(ONE, multiply(beta, third))
    elif third is not None:
        result = total([result, call.value(2).scale(beta)], [1, 1])
    if result.shape != shape:
        raise Rejected(f"a term C that does not fit {shape}")
    return result


@handles("BatchNormalization", since=(7, 9, 14, 15))
def _(call: Call) -> Tensor:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta."""
    call.expect("training_mode", 0)
    call.expect("spatial", 1)
    call.attribute("momentum")
    x = call.value()
    gamma, beta, mean, variance = constants = [call.weights(i) for i in range(1, 5)]
    if any(call.used[1:]) or len(x.shape) < 2 or any(c.shape != x.shape[1:2] for c in constants):
        raise Rejected(f"in training mode, or its constants do not fit an input {x.shape}")
    factor = divide(gamma, square_root(add(variance, call.number("epsilon", 1e-5))))
    shift = add(beta, negative(multiply(factor, mean)))
    factor, shift = (c.move(lambda a: a.reshape(-1, *(1,) * (len(x.shape) - 2))) for c in (factor, shift))
    return x.scale(factor, shift)


@handles("Relu", since=(6, 13, 14))
def _(call: Call) -> Tensor:
    return call.value().relu()


@handles("Sigmoid", since=(6, 13))
def _(call: Call) -> Tensor:
    return call.value().sigmoid()


@handles("Tanh", since=(6, 13))
def _(call: Call) -> Tensor:
    """tanh(x) = 2 sigmoid(2 x) - 1."""
    two = exact(np.float64(2.0))
    return call.value().scale(two).sigmoid().scale(two, negative(ONE))


@handles("Abs", since=(6, 13))
def _(call: Call) -> Tensor:
    x = call.value()
    return maximum(x, -x)


@handles("LeakyRelu", since=(6, 16))
@handles("PRelu", since=(7, 9, 16))
def _(call: Call) -> Tensor:
    """s x + (1 - s) relu(x)."""
    x = call.value()
    slope = call.weights(1) if call.op == "PRelu" else call.number("alpha", 0.01)
    if np.broadcast_shapes(x.shape, slope.shape) != x.shape:
        raise Rejected(f"slopes {slope.shape} for an input {x.shape}")
    rest = x.relu().scale(add(ONE, negative(slope)))
    return total([x.scale(slope), rest], [1, 1])


@handles("HardSigmoid", since=(6, 22))
def _(call: Call) -> Tensor:
    x = call.value().scale(call.number("alpha", 0.2), call.number("beta", 0.5))
    return x.at_least(ZERO).at_most(ONE)


@handles("Clip", since=(6, 11, 12, 13))
def _(call: Call) -> Tensor:
    x = call.value()
    for i, name, side in ((1, "min", -1), (2, "max", 1)):
        limit = exact(np.float32(call.attribute(name, side * np.inf))) if call.input(i) is None else call.constant(i)
        number = limit.number()
        if math.isnan(number):
            raise Rejected(f"{name} is NaN")
        most = np.finfo(np.float64 if limit.lower.dtype == np.float64 else np.float32).max
        if side * number < most:  # else it is no limit
            shift = exact(np.float64(number))
            x = x.at_least(shift) if side < 0 else x.at_most(shift)
    return x


@handles("Max", "Min", since=(6, 8, 12, 13))
def _(call: Call) -> Tensor:
    """min(a, b) = -max(-a, -b)."""
    largest_ = call.op == "Max"
    tensors = [call.data(i) for i in range(len(call.inputs))]
    x = reduce(maximum if largest_ else lambda a, b: -maximum(-a, -b), (t for t in tensors if isinstance(t, Value)))
    for limit in tensors:
        if isinstance(limit, Constant):
            x = x.at_least(limit) if largest_ else x.at_most(limit)
    return x


def reduction(call: Call, shape: Shape) -> tuple[list[int], Shape]:
    """The axes that are reduced, ascending, and the shape without them, or with them at length 1."""
    rank = len(shape)
    if call.op.startswith("Global"):
        axes, keep = list(range(2, rank)), True
    else:
        axes, keep = call.settings("axes", 1) or [], bool(call.attribute("keepdims", 1))
        if not call.attribute("noop_with_empty_axes", 0) and not axes:
            axes = list(range(rank))
    if any(not -rank <= a < rank for a in axes):
        raise Rejected(f"axes {axes} of an input {shape}")
    axes = sorted({a % rank for a in axes})
    return axes, tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)


@handles("ReduceSum", "ReduceMean", since=(1, 11, 13, 18))
@handles("GlobalAveragePool", since=(1, 22))
def _(call: Call) -> Tensor:
    x = call.value()
    axes, out = reduction(call, x.shape)
    result = x.sum(axes)
    if call.op != "ReduceSum":
        result = result.mean(math.prod(x.shape[a] for a in axes))
    return result.reshape(out)


@handles("GlobalMaxPool", since=(1, 22))
@handles("ReduceMax", "ReduceMin", since=(1, 11, 12, 13, 18, 20))
def _(call: Call) -> Tensor:
    x = call.value()
    axes, out = reduction(call, x.shape)
    rest = [i for i in range(len(x.shape)) if i not in axes]
    count, kept = math.prod(x.shape[a] for a in axes), [x.shape[i] for i in rest]
    x = -x if call.op == "ReduceMin" else x
    top = largest(x.move(lambda a: a.transpose(*axes, *rest).reshape(count, *kept)))
    return (-top if call.op == "ReduceMin" else top).reshape(out)


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
    return Value(value.sketch, value.at, softmax=True)
