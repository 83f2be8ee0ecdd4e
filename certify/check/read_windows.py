"""ONNX ops whose windows move over space: convolutions and poolings. Units as docs/certificate.md lists them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certify.check.call import Call, handles
from certify.check.constants import ONE, divide, exact, weight_of
from certify.check.errors import Rejected
from certify.check.network import Conv, ConvTranspose, Index, Shape
from certify.check.sketch import Tensor, Value, largest


@dataclass(frozen=True)
class Windows:
    """How windows move over `spatial`: one number an axis; pads are begins, then ends."""

    spatial: Shape
    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: Shape
    ceil: bool

    @property
    def reach(self) -> Shape:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def counts(self) -> Shape:
        """Windows per axis. With `ceil` a last partial one counts, unless it starts beyond data and begin padding."""
        rank, found = len(self.kernel), []
        for i, (n, r, s) in enumerate(zip(self.spatial, self.reach, self.stride, strict=True)):
            room = n + self.pads[i] + self.pads[rank + i] - r
            count = (-(-room // s) if self.ceil else room // s) + 1
            found.append(count - 1 if self.ceil and (count - 1) * s >= n + self.pads[i] else count)
        if min(found) < 1:
            raise Rejected(f"a kernel {self.kernel} larger than the padded input {self.spatial}")
        return tuple(found)

    def taps(self) -> Index:
        """(taps, *windows): the place in `spatial` that a tap of a window reads, -1 in the padding, -2 beyond it."""
        rank, counts = len(self.spatial), self.counts
        places = np.arange(math.prod(self.spatial)).reshape(self.spatial)
        places = np.pad(places, list(zip(self.pads[:rank], self.pads[rank:], strict=True)), constant_values=-1)
        ends = [(c - 1) * s + r for c, s, r in zip(counts, self.stride, self.reach, strict=True)]
        short = [max(end - n, 0) for end, n in zip(ends, places.shape, strict=True)]
        places = np.pad(places, [(0, n) for n in short], constant_values=-2)
        view = np.lib.stride_tricks.sliding_window_view(places, self.reach)
        steps = [slice(0, c * s, s) for c, s in zip(counts, self.stride, strict=True)]
        view = view[(*steps, *(slice(None, None, d) for d in self.dilation))]
        found = np.moveaxis(view, range(rank), range(rank, 2 * rank)).reshape(-1, *counts)
        if not (found >= 0).any(axis=0).all():
            raise Rejected("a pooling window in the padding alone")
        return found


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
        # For these onnxruntime places the windows otherwise, or refuses.
        if call.op != "ConvTranspose" and (min(total) < -1 or max(dilation) > 1):
            raise Rejected(f"auto_pad {auto} with strides {stride} and dilations {dilation} of a kernel {kernel}")
        pads = halved([max(t, 0) for t in total], auto)
    elif auto != "NOTSET":
        raise Rejected(f"auto_pad {auto!r}")
    return Windows(spatial, kernel, stride, dilation, pads, bool(call.attribute("ceil_mode", 0)))


def halved(total: Sequence[int], auto: str) -> Shape:
    """Padding on both sides; where it is odd, SAME_UPPER has more at the end, everything else at the beginning."""
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (*small, *large) if auto == "SAME_UPPER" else (*large, *small)


@handles("Conv", "ConvTranspose", since=(1, 11, 22))
def _(call: Call) -> Tensor:
    """The op without its bias, which `scale` adds, or puts into it."""
    x, weight, groups = call.sample(), call.weights(1), call.attribute("group", 1)
    bias = None if call.input(2) is None else call.weights(2)
    size, channels, spatial = weight.shape, x.shape[1], x.shape[2:]
    if len(size) != len(x.shape) or len(size) < 3 or groups < 1 or size[0] % groups:
        raise Rejected(f"weights {size} in {groups} groups for an input {x.shape}")
    straight = call.op == "Conv"
    filters, read = (size[0], size[1] * groups) if straight else (size[1] * groups, size[0])
    if channels != read:
        raise Rejected(f"weights {size} in {groups} groups for {channels} channels")
    if tuple(call.attribute("kernel_shape", size[2:])) != size[2:]:
        raise Rejected(f"kernel_shape that is not that of the weights {size}")
    if bias is not None and bias.shape != (filters,):
        raise Rejected(f"a bias {bias.shape} for {filters} filters")
    w = windows(call, spatial, size[2:])
    value, error = weight_of(weight)
    if straight:
        result = x.append(Conv(value, None, w.stride, w.pads, w.dilation, groups, error), (1, filters, *w.counts))
    else:
        pads, out = transposed(call, w)
        op = ConvTranspose(value, None, w.stride, pads, w.dilation, out, groups, error)
        result = x.append(op, (1, filters, *out))
    return result if bias is None else result.scale(ONE, bias.move(lambda a: a.reshape(-1, *(1,) * len(spatial))))


def transposed(call: Call, w: Windows) -> tuple[Shape, Shape]:
    """The padding of a transposed convolution, and its output's axes: as stated, or what is reached less padding."""
    rank, auto, pads = len(w.kernel), call.attribute("auto_pad", "NOTSET"), w.pads
    extra = tuple(call.attribute("output_padding", [0] * rank))
    wanted = call.attribute("output_shape")
    sizes = zip(w.spatial, w.stride, w.reach, extra, strict=True)
    reach = [(n - 1) * s + r + e for n, s, r, e in sizes]
    if wanted is None and auto.startswith("SAME"):
        wanted = [n * s for n, s in zip(w.spatial, w.stride, strict=True)]
    if wanted is not None:
        total = [r - n for r, n in zip(reach, wanted, strict=True)]
        if min(total) < 0:
            raise Rejected(f"output_shape {wanted} beyond what the kernel reaches")
        pads = halved(total, auto)
    out = tuple(r - pads[i] - pads[rank + i] for i, r in enumerate(reach))
    if min(extra) < 0 or min(out) < 1:
        raise Rejected(f"pads {pads} and output_padding {extra}")
    return pads, out


def cells(x: Value, taps: Index) -> Index:
    """(taps, C, *windows): places in x (1, C, *spatial), -1 where a tap is negative."""
    channels = np.arange(x.shape[1]).reshape(-1, *(1,) * (taps.ndim - 1)) * math.prod(x.shape[2:])
    return np.where(taps[:, None] < 0, -1, taps[:, None] + channels)


@handles("MaxPool", since=(1, 8, 10, 11, 12, 22))
def _(call: Call) -> Tensor:
    """A tap in the padding repeats the window's first real cell, axis by axis."""
    x = call.sample()
    w = windows(call, x.shape[2:], tuple(call.attribute("kernel_shape")))
    call.attribute("storage_order")  # of the second output
    if any(call.used[1:]):
        raise Rejected("its indices are read")
    taps = w.taps().reshape(*w.kernel, *w.counts)
    for axis in range(len(w.kernel)):
        real = np.take_along_axis(taps, (taps >= 0).argmax(axis, keepdims=True), axis)
        taps = np.where(taps < 0, real, taps)
    read = x.select(cells(x, taps.reshape(-1, *w.counts)))
    return largest(read).reshape((1, *read.shape[1:]))


@handles("AveragePool", since=(7, 10, 11, 19, 22))
def _(call: Call) -> Tensor:
    """Divided by a window's cells in the data, or with count_include_pad in the stated padding, too."""
    x = call.sample()
    w = windows(call, x.shape[2:], tuple(call.attribute("kernel_shape")))
    taps = w.taps()
    held = (taps >= (-1 if call.attribute("count_include_pad", 0) else 0)).sum(axis=0).astype(np.float64)
    held = held.flat[0] if (held == held.flat[0]).all() else held
    read = x.select(cells(x, taps)[None])
    return read.sum([1]).reshape((1, *read.shape[2:])).scale(divide(ONE, exact(held)))
