"""Aten ops that compute: affine ops, elementwise functions, pooling. See certify.frontends.torch_rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from certify.frontends import inexact
from certify.frontends.inexact import known
from certify.frontends.torch_rules import RULES, Lowering, Ref, per_axis, row_major, rule
from certify.frontends.windows import Geometry

if TYPE_CHECKING:
    import torch


# Affine ops


@rule("linear.default")
def _(lo: Lowering, x: Any, weight: Any, bias: Any = None) -> Ref:
    if isinstance(weight, Ref) or isinstance(bias, Ref):
        raise lo.refuse("weights that depend on the input are not supported")
    if weight.ndim == 1:
        return row_major(lo, Ref(lo.build.linear(x.index, weight[None], None if bias is None else bias.reshape(1))))
    return Ref(lo.build.linear(x.index, weight, bias))


@rule("addmm.default")
def _(lo: Lowering, bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Ref:
    if isinstance(bias, Ref) or isinstance(weight, Ref):
        raise lo.refuse("only x W + b with constant W and b is supported")
    y = lo.build.scale(lo.build.linear(x.index, weight.T), float(alpha))
    shift = inexact.multiply(known(lo.constant(bias, 2)), known(float(beta)))
    return Ref(lo.build.scale(y, 1.0, shift))


@rule("mm.default", "matmul.default")
def _(lo: Lowering, a: Any, b: Any) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        raise lo.refuse("the product of two values that depend on the input is not supported")
    if isinstance(a, Ref):
        if b.ndim == 1:
            return row_major(lo, Ref(lo.build.linear(a.index, b[None])))
        if b.ndim != 2:
            raise lo.refuse(f"a matrix product with a constant of shape {tuple(b.shape)} is not supported")
        return Ref(lo.build.linear(a.index, b.T))
    if a.ndim != 2 or lo.rank(b) < 3:
        raise lo.refuse(f"a matrix product with a constant of shape {tuple(a.shape)} on the left is not supported")
    order = list(range(lo.rank(b) - 1))
    order[-1], order[-2] = order[-2], order[-1]
    return Ref(lo.build.transpose(lo.build.linear(lo.build.transpose(b.index, order), a), order))


@rule("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def _(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Ref:
    if isinstance(weight, Ref) or isinstance(bias, Ref):
        raise lo.refuse("weights that depend on the input are not supported")
    rank = weight.ndim - 2
    steps, spread = per_axis(stride, rank), per_axis(dilation, rank)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise lo.refuse(f"padding {padding!r} is not supported")
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spread, weight.shape[2:], strict=True)]
        pads = (*(t // 2 for t in total), *(t - t // 2 for t in total))
    else:
        pads = per_axis(padding, rank) * 2
    geometry = Geometry(steps, pads, spread)
    return Ref(lo.build.conv(x.index, weight, bias, geometry=geometry, groups=groups))


@rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _(
    lo: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Ref:
    if isinstance(weight, Ref) or isinstance(bias, Ref):
        raise lo.refuse("weights that depend on the input are not supported")
    rank = weight.ndim - 2
    geometry = Geometry(per_axis(stride, rank), per_axis(padding, rank) * 2, per_axis(dilation, rank))
    extra = per_axis(output_padding, rank)
    y = lo.build.conv_transpose(x.index, weight, bias, geometry=geometry, groups=groups, output_padding=extra)
    return Ref(y)


@rule("_native_batch_norm_legit_no_training.default")
def _(lo: Lowering, x: Ref, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    gamma = mean.new_ones(mean.shape) if weight is None else weight
    beta = mean.new_zeros(mean.shape) if bias is None else bias
    return (Ref(lo.build.batch_norm(x.index, gamma, beta, mean, var, eps)), None, None)


# Elementwise arithmetic


def _sum(lo: Lowering, a: Any, b: Any, factor: float) -> Ref:
    """a + factor b."""
    if isinstance(a, Ref) and isinstance(b, Ref):
        if lo.rank(a) != lo.rank(b):
            raise lo.refuse("broadcasting between values of different rank would move the batch axis")
        if abs(factor) == 1:
            return Ref(lo.build.add(a.index, b.index, signs=(1, int(factor))))
        return Ref(lo.build.add(a.index, lo.build.scale(b.index, float(factor))))
    if isinstance(a, Ref):
        shift = inexact.multiply(known(lo.constant(b, lo.rank(a))), known(float(factor)))
        return Ref(lo.build.scale(a.index, 1.0, shift))
    return Ref(lo.build.scale(b.index, float(factor), lo.constant(a, lo.rank(b))))


@rule("add.Tensor", "add.Scalar")
def _(lo: Lowering, a: Any, b: Any, alpha: float = 1) -> Ref:
    return _sum(lo, a, b, alpha)


@rule("sub.Tensor", "sub.Scalar")
def _(lo: Lowering, a: Any, b: Any, alpha: float = 1) -> Ref:
    return _sum(lo, a, b, -alpha)


@rule("rsub.Tensor", "rsub.Scalar")
def _(lo: Lowering, a: Any, b: Any, alpha: float = 1) -> Ref:
    return _sum(lo, b, a, -alpha)


@rule("mul.Tensor", "mul.Scalar")
def _(lo: Lowering, a: Any, b: Any) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        raise lo.refuse("the product of two values that depend on the input is not supported")
    x, factor = (a, b) if isinstance(a, Ref) else (b, a)
    return Ref(lo.build.scale(x.index, lo.constant(factor, lo.rank(x))))


@rule("div.Tensor", "div.Scalar")
def _(lo: Lowering, a: Any, b: Any) -> Ref:
    if isinstance(b, Ref):
        raise lo.refuse("division by a value that depends on the input is not supported")
    return Ref(lo.build.scale(a.index, inexact.divide(known(1.0), known(lo.constant(b, lo.rank(a))))))


@rule("neg.default")
def _(lo: Lowering, x: Ref) -> Ref:
    return Ref(lo.build.neg(x.index))


# Piecewise-linear and smooth ops


@rule("relu.default")
def _(lo: Lowering, x: Ref) -> Ref:
    return Ref(lo.build.relu(x.index))


@rule("leaky_relu.default")
def _(lo: Lowering, x: Ref, negative_slope: float = 0.01) -> Ref:
    return Ref(lo.build.leaky_relu(x.index, float(negative_slope)))


@rule("prelu.default", "_prelu_kernel.default")
def _(lo: Lowering, x: Ref, weight: torch.Tensor) -> Ref:
    slope = weight.reshape(-1)
    return Ref(lo.build.leaky_relu(x.index, slope.reshape(-1, *(1,) * (lo.rank(x) - 2))))


@rule("relu6.default")
def _(lo: Lowering, x: Ref) -> Ref:
    return Ref(lo.build.clip(x.index, 0.0, 6.0))


@rule("hardtanh.default")
def _(lo: Lowering, x: Ref, min_val: float = -1, max_val: float = 1) -> Ref:
    return Ref(lo.build.clip(x.index, float(min_val), float(max_val)))


@rule("clamp.default", "clamp.Tensor")
def _(lo: Lowering, x: Ref, min: Any = None, max: Any = None) -> Ref:
    if isinstance(min, Ref) or isinstance(max, Ref):
        raise lo.refuse("limits that depend on the input are not supported")
    low, high = (None if v is None else lo.constant(v, lo.rank(x)) for v in (min, max))
    return Ref(lo.build.clip(x.index, low, high))


@rule("clamp_min.default")
def _(lo: Lowering, x: Ref, min: float) -> Ref:
    return Ref(lo.build.clip(x.index, float(min), None))


@rule("clamp_max.default")
def _(lo: Lowering, x: Ref, max: float) -> Ref:
    return Ref(lo.build.clip(x.index, None, float(max)))


@rule("sigmoid.default")
def _(lo: Lowering, x: Ref) -> Ref:
    return Ref(lo.build.sigmoid(x.index))


@rule("tanh.default")
def _(lo: Lowering, x: Ref) -> Ref:
    return Ref(lo.build.tanh(x.index))


@rule("abs.default")
def _(lo: Lowering, x: Ref) -> Ref:
    return Ref(lo.build.abs(x.index))


@rule("maximum.default", "max.other")
def _(lo: Lowering, a: Any, b: Any) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        if lo.rank(a) != lo.rank(b):
            raise lo.refuse("broadcasting between values of different rank would move the batch axis")
        return Ref(lo.build.maximum(a.index, b.index))
    x, limit = (a, b) if isinstance(a, Ref) else (b, a)
    return Ref(lo.build.clip(x.index, lo.constant(limit, lo.rank(x)), None))


@rule("minimum.default", "min.other")
def _(lo: Lowering, a: Any, b: Any) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        if lo.rank(a) != lo.rank(b):
            raise lo.refuse("broadcasting between values of different rank would move the batch axis")
        return Ref(lo.build.minimum(a.index, b.index))
    x, limit = (a, b) if isinstance(a, Ref) else (b, a)
    return Ref(lo.build.clip(x.index, None, lo.constant(limit, lo.rank(x))))


# Pooling and sums


@rule("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def _(
    lo: Lowering,
    x: Ref,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Ref:
    rank = lo.rank(x) - 2
    kernel = per_axis(kernel_size, rank)
    pads = per_axis(padding, rank) * 2
    steps = per_axis(stride, rank) or kernel
    return Ref(lo.build.max_pool(x.index, kernel, Geometry(steps, pads, per_axis(dilation, rank), ceil_mode)))


@rule("max_pool2d_with_indices.default")
def _(lo: Lowering, x: Ref, kernel_size: Any, *args: Any, **kwargs: Any) -> Any:
    return (RULES["max_pool2d.default"](lo, x, kernel_size, *args, **kwargs), None)


@rule("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _(
    lo: Lowering,
    x: Ref,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Ref:
    if divisor_override is not None:
        raise lo.refuse("avg_pool with divisor_override is not supported")
    rank = lo.rank(x) - 2
    kernel = per_axis(kernel_size, rank)
    geometry = Geometry(per_axis(stride, rank) or kernel, per_axis(padding, rank) * 2, (1,) * rank, ceil_mode)
    return Ref(lo.build.average_pool(x.index, kernel, geometry, count_include_pad))


@rule("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default")
def _(lo: Lowering, x: Ref, output_size: Sequence[int]) -> Ref:
    spatial = lo.build.shape(x.index)[1:]
    if any(n % m for n, m in zip(spatial, output_size, strict=True)):
        raise lo.refuse(f"adaptive average pooling of {spatial} to {tuple(output_size)} has uneven windows")
    kernel = tuple(n // m for n, m in zip(spatial, output_size, strict=True))
    zeros, ones = (0,) * (2 * len(kernel)), (1,) * len(kernel)
    return Ref(lo.build.average_pool(x.index, kernel, Geometry(kernel, zeros, ones)))


@rule("mean.dim")
def _(lo: Lowering, x: Ref, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: Any = None) -> Ref:
    return Ref(lo.build.mean_axes(x.index, _reduced(lo, x, dim, dtype), keepdim))


@rule("sum.dim_IntList")
def _(lo: Lowering, x: Ref, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: Any = None) -> Ref:
    return Ref(lo.build.sum_axes(x.index, _reduced(lo, x, dim, dtype), keepdim))


def _reduced(lo: Lowering, x: Ref, dim: Sequence[int] | None, dtype: Any) -> list[int]:
    if not dim:
        raise lo.refuse("a sum or mean over all axes mixes the samples of a batch")
    sample = lo.build.sample
    assert sample is not None
    if dtype is not None and dtype != sample.dtype:
        raise lo.refuse(f"a sum in {dtype} is not supported")
    return [lo.axis(x, d) for d in dim]
