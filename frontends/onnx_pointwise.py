"""ONNX ops without weights: activations, maxima, pooling, reductions, Softmax at the end."""

from __future__ import annotations

from functools import reduce

import numpy as np

from certify.frontends import inexact
from certify.frontends.inexact import Known
from certify.frontends.onnx_linear import geometry, given, map_values
from certify.frontends.onnx_nodes import (
    Call,
    FinalSoftmax,
    ShapeN,
    Tensor,
    Unsupported,
    Value,
    align,
    aligned,
    core_shape,
    finite,
    handles,
    number,
    weights,
)


@handles("Relu", versions=(6, 13, 14))
def _(call: Call) -> Tensor:
    value = call.value(0)
    return Value(call.builder.relu(value.node), value.shape)


@handles("Sigmoid", versions=(6, 13))
def _(call: Call) -> Tensor:
    value = call.value(0)
    return Value(call.builder.sigmoid(value.node), value.shape)


@handles("Tanh", versions=(6, 13))
def _(call: Call) -> Tensor:
    value = call.value(0)
    return Value(call.builder.tanh(value.node), value.shape)


@handles("Abs", versions=(6, 13))
def _(call: Call) -> Tensor:
    value = call.value(0)
    return Value(call.builder.abs(value.node), value.shape)


@handles("Neg", versions=(6, 13))
def _(call: Call) -> Tensor:
    value = call.value(0)
    return Value(call.builder.neg(value.node), value.shape)


@handles("HardSigmoid", versions=(6, 22))
def _(call: Call) -> Tensor:
    value = call.value(0)
    slope = float(call.attribute("alpha", float(np.float32(0.2))))
    node = call.builder.scale(value.node, slope, float(call.attribute("beta", 0.5)))
    return Value(call.builder.clip(node, 0.0, 1.0), value.shape)


@handles("PRelu", versions=(7, 9, 16))
def _(call: Call) -> Tensor:
    value = call.value(0)
    slope = weights(call.constant(1, "the slope"))
    if np.broadcast_shapes(value.shape, slope.shape) != value.shape:
        raise Unsupported(f"slope of shape {slope.shape} does not broadcast to the input {value.shape}")
    return Value(call.builder.leaky_relu(call.core(value), align(slope, value.shape)), value.shape)


@handles("LeakyRelu", versions=(6, 16))
def _(call: Call) -> Tensor:
    value = call.value(0)
    slope = float(call.attribute("alpha", float(np.float32(0.01))))
    return Value(call.builder.leaky_relu(value.node, slope), value.shape)


@handles("Clip", versions=(6, 11, 12, 13))
def _(call: Call) -> Tensor:
    value = call.value(0)
    limits: list[float | None] = []
    for position, (name, side) in enumerate((("min", -1.0), ("max", 1.0)), start=1):
        given_limit = call.input(position)
        if given_limit is None:
            limit, kind = call.attribute(name), np.dtype(np.float32)
        elif isinstance(given_limit, Known):
            limit, kind = number(given_limit), given_limit.value.dtype
        else:
            raise Unsupported(f"{name} must be a constant")
        if limit is not None and np.isnan(limit):
            raise Unsupported(f"{name} is NaN")
        # The outermost number of float32 or float64 means no limit; lowered to a ReLU it would only drown the bounds in
        # rounding errors of its size. float16's lies within reach of real networks, and does limit them.
        largest = max(float(np.finfo(kind).max), float(np.finfo(np.float32).max))
        limits.append(None if limit is None or side * limit >= largest else float(limit))
    if limits == [None, None]:
        return value
    return Value(call.builder.clip(value.node, limits[0], limits[1]), value.shape)


def _extreme(call: Call, largest: bool) -> Tensor:
    tensors = map_values(call, given(call))
    out = np.broadcast_shapes(*(t.shape for t in tensors))
    build = call.builder
    nodes = [call.view(t, aligned(t.shape, out)) for t in tensors if isinstance(t, Value)]
    node = reduce(build.maximum if largest else build.minimum, nodes)
    for constant in (t for t in tensors if isinstance(t, Known)):
        limit = align(weights(finite(constant)), out)
        node = build.clip(node, limit, None) if largest else build.clip(node, None, limit)
    return Value(build.broadcast(node, core_shape(out)), out)


@handles("Max", versions=(6, 8, 12, 13))
def _(call: Call) -> Tensor:
    return _extreme(call, largest=True)


@handles("Min", versions=(6, 8, 12, 13))
def _(call: Call) -> Tensor:
    return _extreme(call, largest=False)


@handles("MaxPool", versions=(1, 8, 10, 11, 12, 22))
def _(call: Call) -> Tensor:
    if any(call.used_outputs[1:]):
        raise Unsupported("its second output (indices) is not supported")
    call.attribute("storage_order")  # says how the indices output is numbered, nothing else
    x = call.sample_first(call.value(0))
    kernel = tuple(call.attribute("kernel_shape"))
    shape = geometry(call, call.builder.shape(x)[1:], kernel, bool(call.attribute("ceil_mode", 0)))
    node = call.builder.max_pool(x, kernel, shape)
    return Value(node, (1, *call.builder.shape(node)))


@handles("AveragePool", versions=(7, 10, 11, 19, 22))
def _(call: Call) -> Tensor:
    x = call.sample_first(call.value(0))
    kernel = tuple(call.attribute("kernel_shape"))
    shape = geometry(call, call.builder.shape(x)[1:], kernel, bool(call.attribute("ceil_mode", 0)))
    node = call.builder.average_pool(x, kernel, shape, bool(call.attribute("count_include_pad", 0)))
    return Value(node, (1, *call.builder.shape(node)))


@handles("GlobalAveragePool", versions=(1, 22))
def _(call: Call) -> Tensor:
    x = call.sample_first(call.value(0))
    node = call.builder.mean_axes(x, range(1, len(call.builder.shape(x))))
    return Value(node, (1, *call.builder.shape(node)))


@handles("GlobalMaxPool", versions=(1, 22))
def _(call: Call) -> Tensor:
    value = call.value(0)
    return _maximum_over(call, value, tuple(range(2, len(value.shape))), keepdims=True)


def _axes(call: Call, value: Value) -> tuple[int, ...]:
    """The axes of a reduction, from the attribute or the second input."""
    listed = call.settings("axes", 1)
    keep_all = bool(call.attribute("noop_with_empty_axes", 0))
    if not listed:
        return () if keep_all else tuple(range(len(value.shape)))
    if any(not -len(value.shape) <= a < len(value.shape) for a in listed):
        raise Unsupported(f"axes {listed} do not exist in shape {value.shape}")
    return tuple(sorted({a % len(value.shape) for a in listed}))


def _reduced(shape: ShapeN, axes: tuple[int, ...], keepdims: bool) -> ShapeN:
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


@handles("ReduceSum", "ReduceMean", versions=(1, 11, 13, 18))
def _(call: Call) -> Tensor:
    value = call.value(0)
    axes = _axes(call, value)
    out = _reduced(value.shape, axes, bool(call.attribute("keepdims", 1)))
    total = call.builder.sum_axes(call.view(value, value.shape or (1,)), axes) if axes else value.node
    if call.op_type == "ReduceMean":
        count = float(np.prod([value.shape[a] for a in axes]))
        total = call.builder.scale(total, inexact.divide(inexact.known(1.0), inexact.known(count)))
    return Value(total, out)


def _maximum_over(call: Call, value: Value, axes: tuple[int, ...], keepdims: bool) -> Value:
    """Maximum over axes, as a tree of pairwise maxima."""
    rest = tuple(i for i in range(len(value.shape)) if i not in axes)
    count = int(np.prod([value.shape[a] for a in axes]))
    kept = tuple(value.shape[i] for i in rest)
    stacked = call.move(value, lambda a: a.transpose(*axes, *rest).reshape(count, *kept))
    assert isinstance(stacked, Value)
    node = call.builder.max_first(call.view(stacked, (count, *core_shape(kept))))
    return Value(node, _reduced(value.shape, axes, keepdims))


@handles("ReduceMax", versions=(1, 11, 12, 13, 18, 20))
def _(call: Call) -> Tensor:
    value = call.value(0)
    return _maximum_over(call, value, _axes(call, value), bool(call.attribute("keepdims", 1)))


@handles("ReduceMin", versions=(1, 11, 12, 13, 18, 20))
def _(call: Call) -> Tensor:
    value = call.value(0)
    negative = Value(call.builder.neg(value.node), value.shape)
    top = _maximum_over(call, negative, _axes(call, value), bool(call.attribute("keepdims", 1)))
    return Value(call.builder.neg(top.node), top.shape)


@handles("Softmax", "LogSoftmax", versions=(1, 11, 13))
def _(call: Call) -> Tensor:
    value = call.value(0)
    axis = call.attribute("axis", -1 if call.since >= 13 else 1) % max(len(value.shape), 1)
    over = value.shape[axis : axis + 1] if call.since >= 13 else value.shape[axis:]
    if np.prod(over) != np.prod(value.shape):
        raise Unsupported(f"it normalises axis {axis} of shape {value.shape}, not all classes of a sample at once")
    return FinalSoftmax(value, call.op_type)
