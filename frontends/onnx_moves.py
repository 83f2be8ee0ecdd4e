"""ONNX ops that only move numbers: reshapes, slices, joins, pads, casts. They take activations and constants alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from certify.frontends.inexact import Known
from certify.frontends.onnx_nodes import Array, Call, ShapeN, Tensor, Unsupported, Value, core_shape, exact, handles

# The coordinate and rounding modes under which nearest neighbours with whole scales repeat every number.
REPEATING = (
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_floor"),
)
SINCE_21 = (21, 23, 24, 25)  # revisions that only widened the types


def relabel(tensor: Tensor, shape: ShapeN) -> Tensor:
    """The same numbers in the same order under another ONNX shape."""
    if math.prod(tensor_shape(tensor)) != math.prod(shape):
        raise Unsupported(f"cannot reshape {tensor_shape(tensor)} to {shape}")
    return tensor.reshape(shape) if isinstance(tensor, Known) else Value(as_moved(tensor).node, shape)


def tensor_shape(tensor: Tensor) -> ShapeN:
    """The ONNX shape, batch axis of size 1."""
    return tensor.shape if isinstance(tensor, Known) else as_moved(tensor).shape


def as_moved(tensor: Tensor) -> Value:
    """An activation; a Softmax before it is refused."""
    if not isinstance(tensor, Value):
        raise Unsupported("a Softmax before it is supported only as the last op; export the network up to its logits")
    return tensor


def data(call: Call) -> Tensor:
    """Input 0."""
    tensor = call.input(0)
    if tensor is None:
        raise Unsupported("input 0 is missing")
    return tensor


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis as 0 ... rank - 1."""
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis % rank


@handles("Identity", versions=(1, 13, 14, 16, 19, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    return data(call)


@handles("Dropout", versions=(7, 10, 12, 13, 22), moves=True)
def _(call: Call) -> Tensor:
    call.attribute("ratio")
    call.attribute("seed")
    training = call.input(2)
    if training is not None and not (isinstance(training, Known) and not training.value.any()):
        raise Unsupported("it is in training mode; export the network in evaluation mode")
    if any(call.used_outputs[1:]):
        raise Unsupported("its mask output is read: the network was exported in training mode")
    return data(call)


@handles("Cast", versions=(6, 9, 13, 19, *SINCE_21, 28))
def _(call: Call) -> Tensor:
    from onnx import TensorProto

    call.attribute("saturate")  # of float8 only
    call.attribute("round_mode")  # of float8 only
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    if call.attribute("to") not in floats:
        raise Unsupported("it casts an activation to something else than float16, float32 or float64")
    return call.value(0)


@handles("CastLike", versions=(15, 19, *SINCE_21))
def _(call: Call) -> Tensor:
    call.attribute("saturate")
    call.attribute("round_mode")
    target = call.input(1)
    if isinstance(target, Known) and target.value.dtype.kind != "f":
        raise Unsupported("it casts an activation to integers")
    return call.value(0)


@handles("Shape", versions=(1, 13, 15, 19, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    shape = tensor_shape(data(call))
    start, end = call.attribute("start", 0), call.attribute("end")
    return exact(np.array(shape[start:end], dtype=np.int64))


@handles("Size", versions=(1, 13, 19, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    return exact(np.array(math.prod(tensor_shape(data(call))), dtype=np.int64))


@handles("Reshape", versions=(5, 13, 14, 19, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    tensor = data(call)
    wanted = call.integers(1, "the shape")
    if wanted is None:
        raise Unsupported("the shape is missing")
    shape = tensor_shape(tensor)
    keep_zero = bool(call.attribute("allowzero", 0))
    if (
        any(n == 0 and i >= len(shape) for i, n in enumerate(wanted))
        or wanted.count(-1) > 1
        or min(wanted, default=1) < -1
    ):
        raise Unsupported(f"shape {wanted} does not fit an input of shape {shape}")
    target = [shape[i] if n == 0 and not keep_zero else n for i, n in enumerate(wanted)]
    if -1 in target:
        rest = math.prod(n for n in target if n != -1)
        if rest == 0 or math.prod(shape) % rest:
            raise Unsupported(f"cannot reshape {shape} to {wanted}")
        target[target.index(-1)] = math.prod(shape) // rest
    return relabel(tensor, tuple(target))


@handles("Flatten", versions=(1, 9, 11, 13, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    tensor = data(call)
    shape = tensor_shape(tensor)
    axis = call.attribute("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise Unsupported(f"axis {axis} does not exist in shape {shape}")
    axis = axis + len(shape) if axis < 0 else axis
    return relabel(tensor, (math.prod(shape[:axis]), math.prod(shape[axis:])))


@handles("Squeeze", versions=(1, 11, 13, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    tensor = data(call)
    shape = tensor_shape(tensor)
    listed = call.settings("axes", 1)
    axes = [i for i, n in enumerate(shape) if n == 1] if listed is None else [axis_of(a, len(shape)) for a in listed]
    if any(shape[a] != 1 for a in axes):
        raise Unsupported(f"axes {listed} of shape {shape} are not all of size 1")
    return relabel(tensor, tuple(n for i, n in enumerate(shape) if i not in axes))


@handles("Unsqueeze", versions=(1, 11, 13, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    tensor = data(call)
    listed = call.settings("axes", 1)
    if listed is None:
        raise Unsupported("the axes are missing")
    rank = len(tensor_shape(tensor)) + len(listed)
    axes = {axis_of(a, rank) for a in listed}
    if len(axes) != len(listed):
        raise Unsupported(f"axes {listed} repeat")
    rest = iter(tensor_shape(tensor))
    return relabel(tensor, tuple(1 if i in axes else next(rest) for i in range(rank)))


@handles("Transpose", versions=(1, 13, *SINCE_21), moves=True)
def _(call: Call) -> Tensor:
    tensor = data(call)
    rank = len(tensor_shape(tensor))
    permutation = call.attribute("perm", list(range(rank))[::-1])
    if sorted(permutation) != list(range(rank)):
        raise Unsupported(f"perm {permutation} is not a permutation of the {rank} axes")
    return call.move(tensor, lambda a: a.transpose(permutation))


@handles("Concat", versions=(4, 11, 13), moves=True)
def _(call: Call) -> Tensor:
    tensors = [t for t in call.inputs if t is not None]
    rank = len(tensor_shape(tensors[0]))
    axis = axis_of(call.attribute("axis"), rank)
    if all(isinstance(t, Known) for t in tensors):
        return _concat_constants([t for t in tensors if isinstance(t, Known)], axis)
    values = [call.as_value(t) for t in tensors]
    values = [v for v in values if math.prod(v.shape)]
    if any(len(v.shape) != rank or _without(v.shape, axis) != _without(values[0].shape, axis) for v in values):
        raise Unsupported(f"shapes {[v.shape for v in values]} do not join along axis {axis}")
    out = (*values[0].shape[:axis], sum(v.shape[axis] for v in values), *values[0].shape[axis + 1 :])
    dropped = len(out) - len(core_shape(out))
    if axis < dropped:  # the batch axis of 1 itself: one input that is not empty
        return values[0]
    nodes = [call.view(v, v.shape[dropped:]) for v in values]
    return Value(call.builder.concat(nodes, axis - dropped), out)


def _without(shape: ShapeN, axis: int) -> ShapeN:
    return shape[:axis] + shape[axis + 1 :]


def _concat_constants(parts: list[Known], axis: int) -> Known:
    value = np.concatenate([p.value for p in parts], axis=axis)
    if not any(np.any(p.error) for p in parts):
        return Known(value)
    return Known(value, np.concatenate([np.broadcast_to(p.error, p.shape) for p in parts], axis=axis))


@handles("Split", versions=(2, 11, 13, 18), moves=True)
def _(call: Call) -> Sequence[Tensor]:
    tensor = data(call)
    shape = tensor_shape(tensor)
    axis = axis_of(call.attribute("axis", 0), len(shape))
    sizes = call.settings("split", 1)
    count = call.attribute("num_outputs", len(call.used_outputs))
    if sizes is None:
        size = -(-shape[axis] // count)
        sizes = [min(size, shape[axis] - i * size) for i in range(count)]
    if len(sizes) != len(call.used_outputs) or sum(sizes) != shape[axis] or min(sizes) < 0:
        raise Unsupported(f"sizes {sizes} do not split axis {axis} of shape {shape}")
    positions = np.split(np.arange(shape[axis]), np.cumsum(sizes)[:-1])
    return [
        call.move(tensor, partial(np.take, indices=part, axis=axis)) if used else exact(np.zeros(0))
        for part, used in zip(positions, call.used_outputs, strict=True)
    ]


@handles("Slice", versions=(1, 10, 11, 13), moves=True)
def _(call: Call) -> Tensor:
    tensor = data(call)
    rank = len(tensor_shape(tensor))
    starts, ends = call.settings("starts", 1), call.settings("ends", 2)
    if starts is None or ends is None:
        raise Unsupported("starts or ends are missing")
    axes = call.settings("axes", 3) or list(range(len(starts)))
    steps = call.integers(4, "the steps") or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise Unsupported(f"starts {starts}, ends {ends}, axes {axes}, steps {steps} do not fit together")
    where = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        i = axis_of(axis, rank)
        size = tensor_shape(tensor)[i]
        where[i] = _clamped(start, end, step, size)
        if step < 0 and not range(*where[i].indices(size)):  # onnxruntime takes the largest integer as "all"
            raise Unsupported(f"a slice backward from {start} to {end} of {size} is empty")
    return call.move(tensor, lambda a: a[tuple(where)])


def _clamped(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's clamping, which differs from Python's where a backward slice reaches past the first element."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step)


@handles("Gather", versions=(1, 11, 13), moves=True)
def _(call: Call) -> Tensor:
    tensor = data(call)
    shape = tensor_shape(tensor)
    index = call.input(1)
    if not isinstance(index, Known) or index.value.dtype.kind not in "iu":
        raise Unsupported("the indices must be constant integers")
    axis = axis_of(call.attribute("axis", 0), len(shape))
    size, positions = shape[axis], index.value.astype(np.int64)
    if np.any((positions < -size) | (positions >= size)):
        raise Unsupported(f"indices reach outside of axis {axis} of shape {shape}")
    return call.move(tensor, lambda a: np.take(a, positions % max(size, 1), axis=axis))


@handles("Expand", versions=(8, 13), moves=True)
def _(call: Call) -> Tensor:
    wanted = call.integers(1, "the shape")
    if wanted is None:
        raise Unsupported("the shape is missing")
    out = np.broadcast_shapes(tensor_shape(data(call)), tuple(wanted))
    return call.move(data(call), lambda a: np.broadcast_to(a, out))


@handles("Tile", versions=(6, 13), moves=True)
def _(call: Call) -> Tensor:
    repeats = call.integers(1, "the repeats")
    if repeats is None or len(repeats) != len(tensor_shape(data(call))):
        raise Unsupported(f"repeats {repeats} do not fit an input of shape {tensor_shape(data(call))}")
    return call.move(data(call), lambda a: np.tile(a, repeats))


@handles("Pad", versions=(2, 11, 13, 18, 19, *SINCE_21))
def _(call: Call) -> Tensor:
    value = call.value(0)
    rank = len(value.shape)
    pads = call.settings("pads", 1)
    axes = [axis_of(a, rank) for a in call.integers(3, "the axes") or range(rank)]
    if pads is None or len(pads) != 2 * len(axes):
        raise Unsupported(f"pads {pads} do not fit an input of shape {value.shape}")
    widths = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[len(axes) + i])
    fill = call.optional(2, "the padding value")
    number = float(call.attribute("value", 0.0)) if fill is None else float(fill.value.reshape(-1)[0])
    if (fill is not None and np.any(fill.error)) or not np.isfinite(number):
        raise Unsupported(f"padding with {number} is not supported; MaxPool can pad by itself")
    mode = call.attribute("mode", "constant")
    node = call.builder.pad(call.view(value, value.shape or (1,)), widths, number, mode)
    return Value(node, call.builder.shape(node))


@handles("DepthToSpace", "SpaceToDepth", "GatherElements", "GatherND", versions=(1, 11, 12, 13, 28))
def _(call: Call) -> Tensor:
    """Run by onnx's own reference on the positions of the numbers."""
    from certify.frontends.onnx_constants import reference

    for name in ("axis", "batch_dims", "blocksize", "mode"):
        call.attribute(name)
    others = [t.value for t in call.inputs[1:] if isinstance(t, Known)]
    if len(others) != len(call.inputs) - 1:
        raise Unsupported("the indices must be constant")

    def change(a: Array) -> Array:
        return reference(call, [a, *others])[0]

    return call.move(call.value(0), change)


@handles("Upsample", "Resize", versions=(7, 9, 10, 11, 13, 18, 19))
def _(call: Call) -> Tensor:
    """Nearest neighbours with whole scales: every number repeated."""
    value = call.value(0)
    call.expect("mode", "nearest")
    coordinates = call.attribute("coordinate_transformation_mode", "half_pixel" if call.since >= 11 else "asymmetric")
    rounding = call.attribute("nearest_mode", "round_prefer_floor" if call.since >= 11 else "floor")
    if (coordinates, rounding) not in REPEATING:
        raise Unsupported(
            f"coordinates {coordinates!r} with rounding {rounding!r} are not supported; use {REPEATING[0]}"
        )
    for name in ("cubic_coeff_a", "exclude_outside", "extrapolation_value", "antialias"):
        call.attribute(name)
    call.expect("keep_aspect_ratio_policy", "stretch")
    call.expect("axes", None)
    for scale in _scales(call, value):
        if scale < 1 or scale != int(scale):
            raise Unsupported(f"only whole scales are supported, not {scale}")
    factors = [int(s) for s in _scales(call, value)]

    def change(a: Array) -> Array:
        for axis, factor in enumerate(factors):
            a = np.repeat(a, factor, axis=axis)
        return a

    return call.move(value, change)


def _scales(call: Call, value: Value) -> list[float]:
    listed: Any = call.attribute("scales")
    position = 2 if call.op_type == "Resize" and call.since >= 11 else 1
    given = call.optional(position, "the scales")
    if given is not None and given.value.size:
        listed = [float(s) for s in given.value.reshape(-1)]
    sizes = call.integers(3, "the sizes") if position == 2 else None
    if sizes is not None and len(sizes) == len(value.shape):
        listed = [s / n for s, n in zip(sizes, value.shape, strict=True)]
    if listed is None or len(listed) != len(value.shape):
        raise Unsupported(f"scales {listed} do not fit an input of shape {value.shape}")
    return list(listed)
