"""Sliding windows: where convolutions and poolings read, and how many real cells each window holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from certify.errors import ModelError

Index = np.ndarray[Any, np.dtype[np.int64]]
Spatial = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """How windows move: one number per spatial axis; pads are begins, then ends. ceil: a last partial window counts."""

    stride: Spatial
    pads: Spatial
    dilation: Spatial
    ceil: bool = False

    @classmethod
    def plain(cls, rank: int) -> Geometry:
        """Stride 1, no padding, no dilation."""
        return cls((1,) * rank, (0,) * (2 * rank), (1,) * rank)


def out_spatial(spatial: Spatial, kernel: Spatial, geometry: Geometry) -> Spatial:
    """Number of windows per axis; with `ceil`, a window that would start past the data and left padding is dropped.

    Raises ModelError where there is none.
    """
    rank = len(kernel)
    out = []
    for i, (n, k) in enumerate(zip(spatial, kernel, strict=True)):
        begin, end, stride = geometry.pads[i], geometry.pads[rank + i], geometry.stride[i]
        room = n + begin + end - (k - 1) * geometry.dilation[i] - 1
        count = room // stride + 1
        if geometry.ceil:
            count = -(-room // stride) + 1
            if (count - 1) * stride >= n + begin:
                count -= 1
        out.append(count)
    if min(out, default=1) < 1:
        raise ModelError(f"kernel {kernel} is larger than the padded input {spatial}")
    return tuple(out)


def reached(spatial: Spatial, kernel: Spatial, geometry: Geometry) -> Geometry:
    """The same windows without `ceil`: the end padding is what the last window reaches to (never negative)."""
    rank = len(kernel)
    out = out_spatial(spatial, kernel, geometry)
    ends = []
    for i in range(rank):
        last = (out[i] - 1) * geometry.stride[i] + (kernel[i] - 1) * geometry.dilation[i] + 1
        ends.append(max(last - spatial[i] - geometry.pads[i], 0))
    return replace(geometry, pads=(*geometry.pads[:rank], *ends), ceil=False)


def _positions(spatial: Spatial, kernel: Spatial, geometry: Geometry) -> list[Index]:
    """Per axis the coordinate of tap t of window o, shape (kernel, out), in the unpadded data (may lie outside)."""
    out = out_spatial(spatial, kernel, geometry)
    return [
        np.arange(kernel[i])[:, None] * geometry.dilation[i]
        + np.arange(out[i])[None, :] * geometry.stride[i]
        - geometry.pads[i]
        for i in range(len(kernel))
    ]


def taps(shape: Spatial, kernel: Spatial, geometry: Geometry) -> Index:
    """Flat positions of the cells of each window: (prod kernel, C, *out) for x of shape (C, *spatial).

    A tap in the padding repeats a real cell of the same window, so that it cannot change a maximum.
    """
    spatial = shape[1:]
    axes = []
    for coordinate, n in zip(_positions(spatial, kernel, geometry), spatial, strict=True):
        real = (coordinate >= 0) & (coordinate < n)
        if not real.any(axis=0).all():
            raise ModelError("a pooling window lies entirely in the padding: its maximum is not a number")
        first = np.take_along_axis(coordinate, real.argmax(axis=0)[None, :], axis=0)
        axes.append(np.where(real, coordinate, first))
    flat = np.zeros((1,) * (2 * len(axes)), dtype=np.int64)
    for i, coordinate in enumerate(axes):
        view = [1] * (2 * len(axes))
        view[i], view[len(axes) + i] = coordinate.shape
        flat = flat * spatial[i] + coordinate.reshape(view)
    flat = flat.reshape(math.prod(kernel), 1, *flat.shape[len(axes) :])
    channel = np.arange(shape[0]).reshape(1, shape[0], *(1,) * len(axes))
    return channel * math.prod(spatial) + flat


def counts(spatial: Spatial, kernel: Spatial, geometry: Geometry, include_pad: bool) -> np.ndarray[Any, Any]:
    """Cells that an average divides by, shape (*out); `include_pad` counts declared padding, not ceil's."""
    rank = len(kernel)
    total = np.ones((1,) * rank)
    for i, coordinate in enumerate(_positions(spatial, kernel, geometry)):
        low = -geometry.pads[i] if include_pad else 0
        high = spatial[i] + (geometry.pads[rank + i] if include_pad else 0)
        held = ((coordinate >= low) & (coordinate < high)).sum(axis=0)
        view = [1] * rank
        view[i] = held.size
        total = total * held.reshape(view)
    return total
