"""Convolution and transposed convolution of any rank, with groups, dilation and uneven padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from certify.arrays import Array, convolve, convolve_transposed
from certify.ops.base import Weighted, affine_interval, register_weighted
from certify.rules import Interval, interval, linear, terms, transpose

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Conv(Weighted):
    """Cross-correlation as in ONNX: weight (M, C/groups, *kernel), bias (M, 1, ...) broadcastable to the output.

    stride, dilation: one number per spatial axis; pads: begins, then ends (zeros); x is (C, *spatial).
    """

    stride: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class ConvTranspose(Weighted):
    """The transpose of a Conv as an op of its own: weight (C, M/groups, *kernel) as in ONNX, x is (C, *spatial).

    out_spatial: the spatial shape of the output, which `pads` (begins, ends) crop.
    """

    stride: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    out_spatial: tuple[int, ...] = ()


register_weighted(Conv)
register_weighted(ConvTranspose)


@linear.register(Conv)
def _(op: Conv, x: Array) -> Array:
    return convolve(x, op.weight, op.stride, op.pads, op.dilation, op.groups)


@transpose.register(Conv)
def _(op: Conv, a: Array, shapes: Shapes) -> tuple[Array, ...]:
    return (convolve_transposed(a, op.weight, op.stride, op.pads, op.dilation, op.groups, shapes[0][1:]),)


@linear.register(ConvTranspose)
def _(op: ConvTranspose, x: Array) -> Array:
    return convolve_transposed(x, op.weight, op.stride, op.pads, op.dilation, op.groups, op.out_spatial)


@transpose.register(ConvTranspose)
def _(op: ConvTranspose, a: Array, shapes: Shapes) -> tuple[Array, ...]:
    # Outputs past the last tap exist only through output padding; dropping them keeps the window count right.
    spatial = shapes[0][1:]
    kernel = tuple(op.weight.shape[2:])
    ends = tuple(
        (n - 1) * s + (k - 1) * d + 1 - b - o
        for n, s, k, d, b, o in zip(
            spatial, op.stride, kernel, op.dilation, op.pads[: len(spatial)], op.out_spatial, strict=True
        )
    )
    begins = op.pads[: len(spatial)]
    crop = tuple(slice(None, None if e >= 0 else e) for e in ends)
    a = a[(slice(None), slice(None), *crop)]
    return (convolve(a, op.weight, op.stride, begins + tuple(max(e, 0) for e in ends), op.dilation, op.groups),)


@terms.register(Conv, ConvTranspose)
def _(op: Conv | ConvTranspose, shapes: Shapes) -> int:
    kernel = int(np.prod(op.weight.shape[2:]))
    return max(int(op.weight.shape[0]) // op.groups, int(op.weight.shape[1])) * kernel


@interval.register(Conv, ConvTranspose)
def _(op: Weighted, shapes: Shapes, box: Interval) -> Interval:
    return affine_interval(op, shapes, box)
