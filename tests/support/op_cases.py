"""One table of small ops with their input shapes; the laws of tests/ops run over all of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from certify import ops
from certify.rules import Op


@dataclass(frozen=True)
class OpCase:
    """An op and the shapes (without batch) of its inputs."""

    name: str
    op: Op
    shapes: tuple[tuple[int, ...], ...]


def _array(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape)


def _conv(
    rng: np.random.Generator, name: str, x: tuple[int, ...], filters: int, kernel: tuple[int, ...], **how: Any
) -> OpCase:
    rank, groups = len(kernel), how.pop("groups", 1)
    stride = how.pop("stride", (1,) * rank)
    dilation = how.pop("dilation", (1,) * rank)
    pads = how.pop("pads", (0,) * (2 * rank))
    shift = _array(rng, filters, *(1,) * rank)
    weight = _array(rng, filters, x[0] // groups, *kernel)
    return OpCase(name, ops.Conv(weight, shift, stride=stride, pads=pads, dilation=dilation, groups=groups), (x,))


def _deconv(
    rng: np.random.Generator, name: str, x: tuple[int, ...], filters: int, kernel: tuple[int, ...], **how: Any
) -> OpCase:
    rank, groups = len(kernel), how.pop("groups", 1)
    stride = how.pop("stride", (1,) * rank)
    dilation = how.pop("dilation", (1,) * rank)
    pads = how.pop("pads", (0,) * (2 * rank))
    extra = how.pop("output_padding", (0,) * rank)
    spatial = tuple(
        (n - 1) * s + (k - 1) * d + 1 - b - e + o
        for n, s, k, d, b, e, o in zip(x[1:], stride, kernel, dilation, pads[:rank], pads[rank:], extra, strict=True)
    )
    weight = _array(rng, x[0], filters // groups, *kernel)
    shift = _array(rng, filters, *(1,) * rank)
    op = ops.ConvTranspose(
        weight, shift, stride=stride, pads=pads, dilation=dilation, groups=groups, out_spatial=spatial
    )
    return OpCase(name, op, (x,))


def conv_cases(seed: int = 0) -> list[OpCase]:
    """Convolutions of rank 1 to 3 with strides, groups, dilation, uneven pads and unread cells at the end."""
    rng = np.random.default_rng(seed)
    return [
        _conv(rng, "conv1d", (2, 7), 3, (3,), pads=(1, 1)),
        _conv(rng, "conv1d-strided-unread-cells", (2, 8), 3, (3,), stride=(3,), pads=(0, 0)),
        _conv(rng, "conv1d-kernel-1-stride-2", (2, 6), 2, (1,), stride=(2,)),
        _conv(rng, "conv2d", (2, 4, 5), 3, (3, 2)),
        _conv(rng, "conv2d-uneven-pads", (2, 4, 5), 3, (3, 3), pads=(0, 2, 1, 0), stride=(2, 1)),
        _conv(rng, "conv2d-wide-pads", (1, 3, 3), 2, (2, 2), pads=(2, 3, 3, 2), stride=(2, 3)),
        _conv(rng, "conv2d-dilated", (2, 6, 5), 2, (2, 3), dilation=(3, 2), pads=(1, 1, 0, 1)),
        _conv(rng, "conv2d-groups", (4, 3, 4), 6, (2, 3), groups=2, pads=(1, 0, 0, 1)),
        _conv(rng, "conv2d-depthwise-unread", (3, 5, 6), 3, (2, 2), groups=3, stride=(2, 4)),
        _conv(
            rng, "conv2d-all-at-once", (4, 7, 6), 2, (2, 2), groups=2, stride=(3, 2), dilation=(2, 3), pads=(1, 0, 2, 1)
        ),
        _conv(rng, "conv3d", (2, 3, 4, 3), 2, (2, 2, 2), stride=(1, 3, 2), pads=(1, 0, 0, 0, 0, 1)),
        _conv(rng, "conv3d-groups-dilated", (2, 3, 4, 3), 4, (2, 2, 1), groups=2, dilation=(2, 1, 1)),
    ]


def deconv_cases(seed: int = 1) -> list[OpCase]:
    """Transposed convolutions, with output padding smaller and larger than the last tap's reach."""
    rng = np.random.default_rng(seed)
    return [
        _deconv(rng, "deconv1d", (2, 4), 3, (3,), stride=(2,), pads=(1, 1), output_padding=(1,)),
        _deconv(rng, "deconv1d-stride-over-kernel", (2, 3), 2, (2,), stride=(4,), output_padding=(3,)),
        _deconv(
            rng, "deconv1d-output-padding-past-the-taps", (2, 3), 2, (2,), stride=(3,), pads=(0, 0), output_padding=(2,)
        ),
        _deconv(rng, "deconv2d", (2, 3, 3), 2, (3, 2)),
        _deconv(rng, "deconv2d-uneven-pads", (2, 3, 4), 3, (3, 3), stride=(2, 2), pads=(0, 1, 2, 0)),
        _deconv(rng, "deconv2d-groups", (4, 2, 3), 6, (2, 2), groups=2, stride=(2, 1), output_padding=(1, 0)),
        _deconv(rng, "deconv2d-dilated", (2, 3, 2), 2, (2, 3), dilation=(2, 3), pads=(1, 0, 0, 2), stride=(1, 2)),
        _deconv(rng, "deconv3d", (2, 2, 2, 3), 2, (2, 1, 2), stride=(2, 1, 3), pads=(0, 0, 1, 1, 0, 0)),
    ]


def plain_cases(seed: int = 2) -> list[OpCase]:
    """All other affine ops."""
    rng = np.random.default_rng(seed)
    repeated = np.array([3, 3, -1, 0, 5, 3, -1, 1], dtype=np.int64)
    return [
        OpCase("linear", ops.Linear(_array(rng, 3, 5), _array(rng, 3)), ((5,),)),
        OpCase("linear-no-bias", ops.Linear(_array(rng, 2, 4)), ((4,),)),
        OpCase("linear-on-matrices", ops.Linear(_array(rng, 3, 2), _array(rng, 4, 3)), ((4, 2),)),
        OpCase("scale", ops.Scale(_array(rng, 2, 3), _array(rng, 2, 3)), ((2, 3),)),
        OpCase("scale-per-channel", ops.Scale(_array(rng, 3, 1, 1), _array(rng, 3, 1, 1)), ((3, 2, 2),)),
        OpCase("reshape", ops.Reshape((3, 2)), ((2, 3),)),
        OpCase("select-repeats-and-zeros", ops.Select(repeated, (2, 4)), ((2, 3),)),
        OpCase("sum-axes", ops.SumAxes((1, 2)), ((2, 3, 2),)),
        OpCase("concat", ops.Concat(1), ((2, 1, 2), (2, 3, 2), (2, 2, 2))),
        OpCase("add", ops.Add((1, -1, 1)), ((2, 2), (2, 2), (2, 2))),
        OpCase("sub", ops.Add((-1, 1)), ((3,), (3,))),
    ]


MAX_OF_TWO = OpCase("max-of-two", ops.MaxOfTwo(), ((3,), (3,), (3,)))
AFFINE_CASES = [*plain_cases(), *conv_cases(), *deconv_cases(), MAX_OF_TWO]


def reweighted(op: Op, weight: np.ndarray[Any, Any], shift: np.ndarray[Any, Any] | None) -> Op:
    """The op with other constants."""
    assert isinstance(op, ops.Weighted)
    return replace(op, weight=weight, bias=shift)


def nasty(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    """Numbers that hurt: cancelling giants, subnormals, neighbours of 1, mixed scales."""
    giant = {"float64": 1e17, "float32": 1e9}[dtype]
    tiny = float(np.finfo(dtype).smallest_subnormal)
    ulp = float(np.finfo(dtype).eps)
    pool = [0.0, tiny, 7 * tiny, 1e5 * tiny, float(np.finfo(dtype).tiny), 1e-20, 1.0, 1 + ulp, 1 - ulp / 2, 1 / 3, 0.1]
    pool += [giant, giant * (1 + ulp), giant / 3, 3.0]
    values = rng.choice(pool, size=shape) * rng.choice([-1.0, 1.0], size=shape)
    return values.astype(dtype)


def box_around(
    rng: np.random.Generator, center: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Boxes of every kind of width around numbers: points, one ulp, relative, absolute."""
    dtype = center.dtype
    kinds = [
        np.zeros_like(center),
        np.spacing(np.abs(center)),
        np.abs(center) * dtype.type(1e-3),
        np.ones_like(center) * dtype.type(0.03),
    ]
    kinds.append(np.full_like(center, np.finfo(dtype).smallest_subnormal))
    width = np.choose(rng.integers(len(kinds), size=center.shape), kinds)
    lower, upper = center - width, center + width
    return np.minimum(lower, upper), np.maximum(lower, upper)
