"""ONNX ops that move numbers, or tell shapes. The rarer ones are run by onnx's reference on the numbers' places."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from onnx import TensorProto, helper

from certify.check.call import Call, handles
from certify.check.constants import FLOATS, ONE, Constant, exact
from certify.check.errors import Rejected
from certify.check.network import Concat
from certify.check.sketch import Array, Tensor, Value

WIDER = (21, 23, 24, 25)  # revisions that only added types
# Nearest neighbours with whole scales repeat every number under these coordinates and roundings.
REPEATING = (
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_floor"),
)


@handles("Reshape", since=(5, 13, 14, 19, *WIDER), moves=True)
def _(call: Call) -> Tensor:
    data, wanted = call.data(), call.constant(1).integers()
    if not call.attribute("allowzero", 0):  # 0: as it was
        wanted = [data.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if wanted.count(-1) > 1 or min(wanted, default=0) < -1 or (-1 in wanted and 0 in wanted):
        raise Rejected(f"shape {wanted}")
    return data.move(lambda a: a.reshape(wanted))


@handles("Flatten", since=(1, 9, 11, 13, *WIDER), moves=True)
def _(call: Call) -> Tensor:
    data, axis = call.data(), call.attribute("axis", 1)
    if not -len(data.shape) <= axis <= len(data.shape) or (axis < 0 and call.since < 11):
        raise Rejected(f"axis {axis} of an input of shape {data.shape}")
    return data.move(lambda a: a.reshape(math.prod(a.shape[:axis]), math.prod(a.shape[axis:])))


@handles("Squeeze", since=(1, 11, 13, *WIDER), moves=True)
def _(call: Call) -> Tensor:
    axes = call.settings("axes", 1)
    if axes == []:
        raise Rejected("no axes")  # all, or none
    return call.data().move(lambda a: np.squeeze(a, None if axes is None else tuple(axes)))


@handles("Unsqueeze", since=(1, 11, 13, *WIDER), moves=True)
def _(call: Call) -> Tensor:
    axes = call.settings("axes", 1)  # of the result, in any order
    if not axes:
        raise Rejected("no axes")
    return call.data().move(lambda a: np.expand_dims(a, tuple(axes)))


@handles("Transpose", since=(1, 13, *WIDER), moves=True)
def _(call: Call) -> Tensor:
    order, shape = call.attribute("perm"), call.data().shape
    if order is not None and sorted(order) != list(range(len(shape))):
        raise Rejected(f"perm {order} of an input of shape {shape}")
    return call.data().move(lambda a: np.transpose(a, order))


@handles("Expand", since=(8, 13), moves=True)
def _(call: Call) -> Tensor:
    shape = np.broadcast_shapes(call.data().shape, tuple(call.constant(1).integers()))
    if math.prod(shape) > 1 << 31:
        raise Rejected(f"it expands to {shape}")
    return call.data().move(lambda a: np.broadcast_to(a, shape))


@handles("Slice", since=(1, 10, 11, 13), moves=True)
def _(call: Call) -> Tensor:
    """Starts and ends are clamped as ONNX says, which is not Python's way where steps go backward."""
    found = call.data()
    starts, ends = call.settings("starts", 1) or [], call.settings("ends", 2) or []
    axes = call.settings("axes", 3) or range(len(starts))
    for start, end, axis, step in zip(starts, ends, axes, call.settings("steps", 4) or [1] * len(starts), strict=True):
        size = found.shape[axis]
        low, high = (0, size) if step > 0 else (-1, size - 1)
        start, end = (n + size if n < 0 else n for n in (start, end))
        places = list(range(min(max(start, 0), high), min(max(end, low), high), step))
        if step < 0 and not places:
            raise Rejected("a slice backward of nothing")  # onnxruntime reads one up to the largest integer as all
        found = found.move(partial(np.take, indices=np.array(places, dtype=np.int64), axis=axis))
    return found


@handles("Split", since=(2, 11, 13, 18), moves=True)
@handles("Gather", since=(1, 11, 13), moves=True)
@handles("Tile", since=(6, 13), moves=True)
@handles("DepthToSpace", "SpaceToDepth", "GatherElements", "GatherND", since=(1, 11, 12, 13, 28), moves=True)
def _(call: Call) -> list[Tensor]:
    if call.attribute("num_outputs", len(call.used)) != len(call.used):
        raise Rejected(f"{len(call.used)} outputs")
    for i, given in enumerate(call.inputs[1:], 1):
        if given is not None:
            call.constant(i).integers()
    settings = [t.lower if isinstance(t, Constant) else None for t in call.inputs[1:]]

    def output(k: int) -> Tensor:
        return call.data().move(lambda a: call.reference([a, *settings])[k])

    return [output(k) if used else exact(np.zeros(0)) for k, used in enumerate(call.used)]


@handles("Shape", since=(1, 13, 15, 19, *WIDER), moves=True)
@handles("Size", since=(1, 13, 19, *WIDER), moves=True)
def _(call: Call) -> Tensor:
    shape = call.data().shape
    if call.op == "Size":
        return exact(np.int64(math.prod(shape)))
    return exact(np.array(shape[call.attribute("start", 0) : call.attribute("end")], dtype=np.int64))


@handles("Identity", since=(1, 13, 14, 16, 19, *WIDER), moves=True)
@handles("Dropout", since=(7, 10, 12, 13, 22), moves=True)
def _(call: Call) -> Tensor:
    """What it reads, which may be a Softmax."""
    call.attribute("ratio")
    call.attribute("seed")
    if any(call.used[1:]) or (call.input(2) is not None and call.constant(2).lower.any()):
        raise Rejected("it is in training mode")
    found = call.input(0)
    return call.data() if found is None else found


@handles("Cast", since=(6, 9, 13, 19, *WIDER, 28), moves=True)
@handles("CastLike", since=(15, 19, *WIDER), moves=True)
def _(call: Call) -> Tensor:
    """Stored numbers are rounded to the type; what depends on the input, or was computed, stays the real number."""
    call.attribute("saturate")
    call.attribute("round_mode")
    data = call.data()
    if call.op == "CastLike":
        like = call.data(1)
        kind = like.lower.dtype if isinstance(like, Constant) else call.sketch.kind
    else:
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(call.attribute("to", TensorProto.UNDEFINED)))
    if kind == np.float16:
        call.sketch.doubt("casts to float16")
    if kind in FLOATS and isinstance(data, Value):
        call.sketch.kind = kind if kind == call.sketch.kind else np.dtype("V")
        return data
    if kind in FLOATS and isinstance(data, Constant) and data.is_float and not data.exact:
        return data
    if not isinstance(data, Constant) or not data.exact or {kind.kind, data.lower.dtype.kind} - set("fiub"):
        raise Rejected(f"a cast to {kind}")
    result, number = data.lower.astype(kind), data.lower.astype(np.float64)
    if kind != np.bool_ and (kind in FLOATS) != data.is_float and not np.array_equal(result, np.trunc(number)):
        raise Rejected(f"numbers that do not fit into {kind}")
    if kind == np.float16 and not np.array_equal(result, number.astype(np.float32).astype(kind), equal_nan=True):
        raise Rejected("numbers that are rounded to float16 otherwise where float32 comes between")
    return exact(result)


@handles("Concat", since=(4, 11, 13), moves=True)
def _(call: Call) -> Tensor:
    tensors = [call.data(i) for i in range(len(call.inputs))]
    axis, rank = call.attribute("axis"), len(tensors[0].shape)
    if any(len(t.shape) != rank for t in tensors) or not -rank <= axis < rank:
        raise Rejected(f"shapes {[t.shape for t in tensors]} do not join along axis {axis}")
    axis %= rank
    constants = [t for t in tensors if isinstance(t, Constant)]
    if len(constants) == len(tensors):
        lower = np.concatenate([t.lower for t in constants], axis=axis)
        if all(t.exact for t in constants):
            return exact(lower)
        return Constant(lower, np.concatenate([t.upper for t in constants], axis=axis))
    values = [call.sketch.constant(t) if isinstance(t, Constant) else t for t in tensors if 0 not in t.shape]
    if len({(*v.shape[:axis], *v.shape[axis + 1 :]) for v in values}) != 1:
        raise Rejected(f"shapes {[v.shape for v in values]} do not join along axis {axis}")
    shape = (*values[0].shape[:axis], sum(v.shape[axis] for v in values), *values[0].shape[axis + 1 :])
    if len(values) == 1:
        return values[0]
    if axis == 0:  # which may be that of the batch: row after row
        flat = [v.reshape((v.node.size,)).at for v in values]
        return call.sketch.append(Concat(0), flat, (math.prod(shape),)).reshape(shape)
    return call.sketch.append(Concat(axis), [v.at for v in values], shape)


@handles("Pad", since=(2, 11, 13, 18, 19, *WIDER))
def _(call: Call) -> Tensor:
    """Where a pad is negative, numbers are cut off first."""
    value = call.value()
    shape, rank = value.shape, len(value.shape)
    pads = call.settings("pads", 1)
    axes = list(range(rank)) if call.input(3) is None else call.constant(3).integers()
    if pads is None or len(pads) != 2 * len(axes) or any(not -rank <= a < rank for a in axes):
        raise Rejected(f"pads {pads} of an input of shape {shape}")
    if len({a % rank for a in axes}) != len(axes):
        raise Rejected(f"axes {axes} repeat")
    widths = [(0, 0)] * rank
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        widths[axis] = (begin, end)
    grow = [(max(begin, 0), max(end, 0)) for begin, end in widths]
    crop = tuple(slice(max(-b, 0), max(n + min(e, 0), 0)) for n, (b, e) in zip(shape, widths, strict=True))
    places = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)[crop]
    fill = call.attribute("value", 0.0) if call.input(2) is None else call.constant(2).number()
    mode = call.attribute("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap") or not np.isfinite(fill):
        raise Rejected(f"mode {mode!r} with {fill}")
    if any(n < 1 or (mode == "reflect" and max(g) >= n) for g, n in zip(grow, places.shape, strict=True)):
        raise Rejected(f"pads {pads} that cut off, or reflect, more than an input of shape {shape} has")
    more = {"constant_values": -1} if mode == "constant" else {}
    places = np.pad(places, grow, mode=mode, **more)
    result = value.select(places)
    return result.scale(ONE, exact(np.where(places < 0, fill, 0.0))) if fill else result


@handles("Upsample", "Resize", since=(7, 9, 10, 11, 13, 18, 19))
def _(call: Call) -> Tensor:
    value = call.value()
    newer = call.since >= 11
    call.expect("mode", "nearest")
    coordinates = call.attribute("coordinate_transformation_mode", "half_pixel" if newer else "asymmetric")
    rounding = call.attribute("nearest_mode", "round_prefer_floor" if newer else "floor")
    if (coordinates, rounding) not in REPEATING:
        raise Rejected(f"coordinates {coordinates!r} with rounding {rounding!r}")
    for name in ("cubic_coeff_a", "exclude_outside", "extrapolation_value", "antialias"):
        call.attribute(name)  # of other modes
    call.expect("keep_aspect_ratio_policy", "stretch")
    call.expect("axes", None)
    place = 2 if call.op == "Resize" and newer else 1
    scales = call.attribute("scales")
    if call.input(place) is not None and call.weights(place).lower.size:
        scales = call.weights(place).lower.reshape(-1).tolist()
    if place == 2 and call.input(3) is not None and call.constant(3).lower.size:
        scales = [s / n for s, n in zip(call.constant(3).integers(), value.shape, strict=True)]
    if scales is None or len(scales) != len(value.shape) or any(s < 1 or s != int(s) for s in scales):
        raise Rejected(f"scales {scales} of an input of shape {value.shape}")

    def repeated(a: Array) -> Array:
        for axis, scale in enumerate(scales):
            a = np.repeat(a, int(scale), axis=axis)
        return a

    return value.move(repeated)
