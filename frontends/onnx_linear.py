"""ONNX ops with weights: Gemm, MatMul, Conv, ConvTranspose, BatchNormalization, and arithmetic with constants."""

from __future__ import annotations

import math

import numpy as np

from certify.frontends import inexact, windows
from certify.frontends.inexact import Known
from certify.frontends.onnx_nodes import (
    Call,
    ShapeN,
    Tensor,
    Unsupported,
    Value,
    align,
    aligned,
    core_shape,
    exact,
    finite,
    handles,
    weights,
)

BILINEAR = "both operands depend on the input; products of activations are not supported"


def combine(call: Call, tensors: list[Tensor], signs: tuple[int, ...]) -> Value:
    """sum_i signs[i] tensor_i with numpy broadcasting; at least one is an activation."""
    values = [(s, t) for s, t in zip(signs, tensors, strict=True) if not isinstance(t, Known)]
    constants = [(s, t) for s, t in zip(signs, tensors, strict=True) if isinstance(t, Known)]
    out = np.broadcast_shapes(*(t.shape for t in map_values(call, tensors)))
    nodes = [call.view(v, aligned(v.shape, out)) for v in (call.as_value(t) for _, t in values)]
    own = tuple(s for s, _ in values)
    node = nodes[0] if own == (1,) else None
    shift: Known | None = None
    for sign, constant in constants:
        term = align(weights(finite(constant)), out)
        term = term if sign > 0 else inexact.negative(term)
        shift = term if shift is None else inexact.add(shift, term)
    if node is None and len(nodes) > 1:
        node = call.builder.add(*nodes, signs=own)
    if node is None:
        return Value(call.builder.scale(nodes[0], -1.0, shift), out)
    if shift is not None:
        node = call.builder.scale(node, 1.0, shift)
    return Value(call.builder.broadcast(node, core_shape(out)), out)


def map_values(call: Call, tensors: list[Tensor]) -> list[Value | Known]:
    """The same tensors, a misplaced Softmax refused."""
    return [t if isinstance(t, Known) else call.as_value(t) for t in tensors]


def given(call: Call) -> list[Tensor]:
    """All inputs of a variadic op."""
    return [t for t in call.inputs if t is not None]


@handles("Add", versions=(7, 13, 14))
def _(call: Call) -> Tensor:
    return combine(call, given(call), (1, 1))


@handles("Sub", versions=(7, 13, 14))
def _(call: Call) -> Tensor:
    return combine(call, given(call), (1, -1))


@handles("Sum", versions=(6, 8, 13))
def _(call: Call) -> Tensor:
    return combine(call, given(call), (1,) * len(call.inputs))


@handles("Mean", versions=(6, 8, 13))
def _(call: Call) -> Tensor:
    total = combine(call, given(call), (1,) * len(call.inputs))
    share = inexact.divide(exact(1.0), exact(float(len(call.inputs))))
    return Value(call.builder.scale(total.node, share), total.shape)


def multiply(call: Call, value: Value, factor: Known) -> Value:
    """factor * value, broadcast."""
    out = np.broadcast_shapes(value.shape, factor.shape)
    node = call.view(value, aligned(value.shape, out))
    node = call.builder.scale(node, align(factor, out))
    return Value(call.builder.broadcast(node, core_shape(out)), out)


@handles("Mul", versions=(7, 13, 14))
def _(call: Call) -> Tensor:
    left, right = call.input(0), call.input(1)
    if isinstance(left, Known):
        left, right = right, left
    if not isinstance(right, Known):
        raise Unsupported(BILINEAR)
    assert left is not None
    return multiply(call, call.as_value(left), weights(finite(right)))


@handles("Div", versions=(7, 13, 14))
def _(call: Call) -> Tensor:
    divisor = call.input(1)
    if not isinstance(divisor, Known):
        raise Unsupported("division by something that depends on the input is not supported")
    return multiply(call, call.value(0), inexact.divide(exact(1.0), weights(finite(divisor))))


@handles("Pow", versions=(7, 12, 13, 15))
def _(call: Call) -> Tensor:
    exponent = call.constant(1, "the exponent")
    if not np.all(exponent.value == 1) or np.any(exponent.error):
        raise Unsupported("only the exponent 1 is supported")
    value = call.value(0)
    out = np.broadcast_shapes(value.shape, exponent.shape)
    return Value(call.builder.broadcast(call.view(value, aligned(value.shape, out)), core_shape(out)), out)


def times_matrix(call: Call, value: Value, matrix: Known, bias: Known | None = None) -> Value:
    """x M^T + b on the last axis, M (m, n)."""
    rows = matrix.shape[0]
    if not value.shape or value.shape[-1] != matrix.shape[1]:
        raise Unsupported(f"shapes {value.shape} and {matrix.shape[::-1]} do not fit")
    shape = (*value.shape[:-1], rows)
    return Value(call.builder.linear(call.core(value), matrix, bias), shape)


def swap_last(call: Call, value: Value) -> Value:
    """The last two axes exchanged."""
    moved = call.move(value, lambda a: np.swapaxes(a, -1, -2))
    assert isinstance(moved, Value)
    return moved


def transposed(matrix: Known) -> Known:
    """The transposed matrix, contiguous."""
    return matrix.move(lambda a: np.ascontiguousarray(a.T))


def flat_matrix(matrix: Known) -> Known:
    """A constant operand of MatMul as one matrix; leading axes must be 1."""
    if math.prod(matrix.shape[:-2]) != 1:
        raise Unsupported(f"a stack of constant matrices {matrix.shape} is not supported; split it into single ones")
    return matrix.reshape(matrix.shape[-2:])


@handles("MatMul", versions=(1, 9, 13))
def _(call: Call) -> Tensor:
    left, right = call.input(0), call.input(1)
    if isinstance(right, Known):
        value, matrix = call.value(0), weights(finite(right))
        if len(matrix.shape) == 1:
            out = times_matrix(call, value, matrix.reshape((1, -1)))
            return Value(out.node, out.shape[:-1])
        out = times_matrix(call, value, transposed(flat_matrix(matrix)))
        return Value(out.node, (1,) * (len(matrix.shape) - max(len(value.shape), 2)) + out.shape)
    if not isinstance(left, Known):
        raise Unsupported(BILINEAR)
    value, matrix = call.value(1), weights(finite(left))
    single_row, single_column = len(matrix.shape) == 1, len(value.shape) == 1
    rows = matrix.reshape((1, -1)) if single_row else flat_matrix(matrix)
    if single_column:
        out = times_matrix(call, value, rows)
    else:
        out = swap_last(call, times_matrix(call, swap_last(call, value), rows))
        out = Value(out.node, (1,) * (len(matrix.shape) - len(value.shape)) + out.shape)
    if not single_row:
        return out
    return Value(out.node, out.shape[:-1] if single_column else (*out.shape[:-2], out.shape[-1]))


@handles("Gemm", versions=(7, 9, 11, 13))
def _(call: Call) -> Tensor:
    alpha, beta = exact(float(call.attribute("alpha", 1.0))), exact(float(call.attribute("beta", 1.0)))
    flip_left, flip_right = bool(call.attribute("transA", 0)), bool(call.attribute("transB", 0))
    left, right, third = call.input(0), call.input(1), call.input(2)
    if isinstance(left, Known) == isinstance(right, Known):
        raise Unsupported(BILINEAR)
    if isinstance(right, Known):
        value = swap_last(call, call.value(0)) if flip_left else call.value(0)
        matrix = finite(right) if flip_right else transposed(finite(right))
    else:
        assert isinstance(left, Known)
        value = call.value(1) if flip_right else swap_last(call, call.value(1))
        matrix = transposed(finite(left)) if flip_left else finite(left)
    matrix = _times(weights(matrix), alpha)
    bias = None if third is None or not isinstance(third, Known) else _times(weights(finite(third)), beta)
    row = _row_bias(bias, matrix.shape[0]) if isinstance(right, Known) else None
    out = times_matrix(call, value, matrix, row)
    if not isinstance(right, Known):
        out = swap_last(call, out)
    if row is not None or third is None:
        return out
    if bias is not None:
        return combine(call, [out, bias], (1, 1))
    return combine(call, [out, multiply(call, call.as_value(third), beta)], (1, 1))


def _times(constant: Known, factor: Known) -> Known:
    """The product; the constant itself, as stored, when the factor is 1."""
    return constant if factor.value == 1 else inexact.multiply(constant, factor)


def _row_bias(bias: Known | None, count: int) -> Known | None:
    """The bias as one number per column, if it is the same for every row."""
    if bias is None or math.prod(bias.shape[:-1]) != 1:
        return None
    return bias.reshape(bias.shape[-1:] or (1,)).broadcast((count,))


def geometry(call: Call, spatial: ShapeN, kernel: ShapeN, ceil: bool = False) -> windows.Geometry:
    """Strides, dilations and pads of a convolution or pooling, auto_pad worked out."""
    rank = len(kernel)
    stride = tuple(call.attribute("strides", [1] * rank))
    dilation = tuple(call.attribute("dilations", [1] * rank))
    pads = tuple(call.attribute("pads", [0] * (2 * rank)))
    mode = call.attribute("auto_pad", "NOTSET")
    if (len(stride), len(dilation), len(pads)) != (rank, rank, 2 * rank) or len(spatial) != rank:
        raise Unsupported(
            f"strides, dilations, pads and kernel {kernel} do not fit an input of spatial shape {spatial}"
        )
    if min(pads) < 0 or min(stride) < 1 or min(dilation) < 1:
        raise Unsupported("negative pads or strides are not supported")
    if mode == "VALID":
        pads = (0,) * (2 * rank)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            (-(-n // s) - 1) * s + (k - 1) * d + 1 - n
            for n, s, k, d in zip(spatial, stride, kernel, dilation, strict=True)
        ]
        # Without enough to pad, or with dilations, onnxruntime places the windows otherwise, or refuses.
        if call.op_type != "ConvTranspose" and (min(total) < -1 or max(dilation) > 1):
            raise Unsupported(f"auto_pad={mode!r} with strides {stride} and dilations {dilation}: state the pads")
        total = [max(t, 0) for t in total]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = tuple(small + large if mode == "SAME_UPPER" else large + small)
    elif mode != "NOTSET":
        raise Unsupported(f"auto_pad={mode!r} is not known")
    return windows.Geometry(stride, pads, dilation, ceil)


def _kernel(call: Call, weight: Known) -> ShapeN:
    kernel = weight.shape[2:]
    stated = call.attribute("kernel_shape")
    if not kernel or (stated is not None and tuple(stated) != kernel):
        raise Unsupported(f"kernel_shape {stated} disagrees with the weight's shape {weight.shape}")
    return kernel


@handles("Conv", versions=(1, 11, 22))
def _(call: Call) -> Tensor:
    x = call.sample_first(call.value(0))
    weight = weights(call.constant(1, "the weight"))
    bias = call.optional(2, "the bias")
    kernel = _kernel(call, weight)
    shape = geometry(call, call.builder.shape(x)[1:], kernel)
    node = call.builder.conv(
        x, weight, None if bias is None else weights(bias), geometry=shape, groups=call.attribute("group", 1)
    )
    return Value(node, (1, *call.builder.shape(node)))


@handles("ConvTranspose", versions=(1, 11, 22))
def _(call: Call) -> Tensor:
    x = call.sample_first(call.value(0))
    weight = weights(call.constant(1, "the weight"))
    bias = call.optional(2, "the bias")
    kernel = _kernel(call, weight)
    spatial, rank = call.builder.shape(x)[1:], len(kernel)
    extra = tuple(call.attribute("output_padding", [0] * rank))
    target = call.attribute("output_shape")
    mode = call.attribute("auto_pad", "NOTSET")
    shape = geometry(call, spatial, kernel)
    if target is None and mode.startswith("SAME"):
        target = [n * s for n, s in zip(spatial, shape.stride, strict=True)]
    if target is not None:
        total = [
            (n - 1) * s + (k - 1) * d + 1 + e - int(t)
            for n, s, k, d, e, t in zip(spatial, shape.stride, kernel, shape.dilation, extra, target, strict=True)
        ]
        if min(total) < 0:
            raise Unsupported(f"output_shape {target} is larger than what the kernel reaches; use output_padding")
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = tuple(small + large if mode == "SAME_UPPER" else large + small)
        shape = windows.Geometry(shape.stride, pads, shape.dilation)
    node = call.builder.conv_transpose(
        x,
        weight,
        None if bias is None else weights(bias),
        geometry=shape,
        groups=call.attribute("group", 1),
        output_padding=extra,
    )
    return Value(node, (1, *call.builder.shape(node)))


@handles("BatchNormalization", versions=(7, 9, 14, 15))
def _(call: Call) -> Tensor:
    call.expect("training_mode", 0)
    call.expect("spatial", 1)
    call.attribute("momentum")
    if any(call.used_outputs[1:]):
        raise Unsupported("its statistics are read as outputs: the network was exported in training mode")
    value = call.value(0)
    gamma, beta, mean, variance = (
        weights(call.constant(i, what)) for i, what in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    x = call.sample_first(value)
    if any(c.shape != call.builder.shape(x)[:1] for c in (gamma, beta, mean, variance)):
        raise Unsupported(f"its constants do not have the {call.builder.shape(x)[0]} channels of the input")
    eps = float(call.attribute("epsilon", float(np.float32(1e-5))))
    return Value(call.builder.batch_norm(x, gamma, beta, mean, variance, eps), value.shape)
