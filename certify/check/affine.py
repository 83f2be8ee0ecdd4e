"""Affine nodes as maps between flat tensors: y = sum_i W_i x_i + b forward, A -> A W_i backward, |W_i| for errors.

Arrays are (B, n), a row a box or a form, of float64 or fractions: the code is the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from certify.check.errors import Rejected
from certify.check.network import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Float64,
    Linear,
    Maximum,
    Network,
    Node,
    Scale,
    Select,
    Shape,
    SumAxes,
)
from certify.check.rounding import Arithmetic, Numbers

Forward = Callable[..., Numbers]
PART = 1 << 20  # bytes of a product at once


@dataclass(frozen=True, eq=False)
class Affine:
    """One node. terms, back: the most products that are added up for one number, forward and backward; terms 0: nothing
    is rounded either way.

    forward, magnitude: one array (B, n_i) an operand -> (B, n), without bias, with W and with |W|; of float32 with |W|
    rounded upward. backward: (R, n) -> one array (R, n_i) an operand, None for zeros; of float32 with W rounded to it.
    weights: of a product, convolution or scaling, as numbers and, where a pass may be quick, as float32. bias: (n,).
    The true weights lie within weight_error |W|, the true bias within bias_error (n,).
    """

    forward: Forward
    magnitude: Forward
    backward: Callable[[Numbers], Sequence[Numbers | None]]
    terms: int
    back: int = 1
    weights: Sequence[Numbers] = ()
    bias: Numbers | None = None
    weight_error: float = 0.0
    bias_error: Float64 | None = None


def suits(weights: Sequence[Numbers], a: Numbers) -> Numbers:
    """The weights for coefficients of this type."""
    return weights[-1 if a.dtype == np.float32 else 0]


def affine(network: Network, node: Node, arithmetic: Arithmetic) -> Affine:
    """What an affine node does."""
    shapes = [network.nodes[i].shape for i in node.inputs]
    op = node.op
    match op:
        case Linear() | Scale() | Conv() | ConvTranspose():
            found = _weighted(op, shapes[0], node.shape, arithmetic)
            bias = None if op.bias is None else arithmetic.array(_spread(op.bias, op, node.shape))
            error = _spread(op.bias_error, op, node.shape)
            return replace(
                found, bias=bias, weight_error=float(op.weight_error), bias_error=error if error.any() else None
            )
        case Select():
            return _select(op.index.ravel(), math.prod(shapes[0]), arithmetic)
        case SumAxes():
            return _sum(op.axes, shapes[0])
        case Concat():
            return _concat(op.axis, shapes)
        case Add():
            return _add(op.signs)
        case Maximum():
            return Affine(lambda a, b, r: b + r, lambda a, b, r: b + r, lambda a: (None, a, a), 1)
    raise Rejected(f"{node.name}: no rule for {type(op).__name__}")


def _spread(values: Float64 | float, op: Linear | Scale | Conv | ConvTranspose, shape: Shape) -> Float64:
    """A bias for every element of the output, flat."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim and isinstance(op, Conv | ConvTranspose):
        array = array.reshape(-1, *(1,) * (len(shape) - 1))
    return np.ascontiguousarray(np.broadcast_to(array, shape)).ravel()


def _weighted(op: Linear | Scale | Conv | ConvTranspose, shape: Shape, out: Shape, arithmetic: Arithmetic) -> Affine:
    weight = arithmetic.array(op.weight)
    weights: tuple[Numbers, ...] = (weight,)
    sizes: tuple[Numbers, ...] = (np.abs(weight),)
    if arithmetic.quick:
        weights += (arithmetic.coefficients(weight),)
        sizes += (arithmetic.roughly(sizes[0]),)
    if isinstance(op, Linear):
        inner, outer = shape[-1], out[-1]

        def linear(x: Numbers, w: Numbers) -> Numbers:
            return (x.reshape(-1, inner) @ w.T).reshape(len(x), -1)

        def transposed(a: Numbers, w: Numbers) -> Numbers:
            return (a.reshape(-1, outer) @ w).reshape(len(a), -1)

        return _product(linear, transposed, (weight.shape[1], weight.shape[0]), (weights, sizes))
    if isinstance(op, Scale):
        factors = [np.ascontiguousarray(np.broadcast_to(w, out)).ravel() for w in weights]
        factor, large = factors[0], np.abs(factors[0])  # numbers, whatever they meet
        return Affine(lambda x: x * factor, lambda x: x * large, lambda a: (a * suits(factors, a),), 1, 1, factors)
    per_output, per_input = (n * math.prod(weight.shape[2:]) for n in (weight.shape[1], len(weight) // op.groups))
    wide, narrow = (shape, out) if isinstance(op, Conv) else (out, shape)
    window = Window(op.stride, op.pads, op.dilation, op.groups, wide, narrow)
    if narrow != (len(weight), *window.places(weight.shape[2:])) or wide[0] != weight.shape[1] * op.groups:
        raise Rejected(f"a convolution with weight {weight.shape} from {shape} to {out}")
    if isinstance(op, Conv):
        return _product(window.correlate, window.transpose, (per_output, per_input), (weights, sizes))
    return _product(window.transpose, window.correlate, (per_input, per_output), (weights, sizes))


def _product(
    there: Callable[[Numbers, Numbers], Numbers],
    back: Callable[[Numbers, Numbers], Numbers],
    counts: tuple[int, int],
    given: tuple[Sequence[Numbers], Sequence[Numbers]],
) -> Affine:
    """A product with weights, there and back; counts: of its terms; given: the weights, and their absolute values."""
    weights, sizes = given
    return Affine(
        lambda x: there(x, suits(weights, x)),
        lambda x: there(x, suits(sizes, x)),
        lambda a: (back(a, suits(weights, a)),),
        *counts,
        weights,
    )


@dataclass(frozen=True)
class Window:
    """The geometry of a cross-correlation from images of shape `wide` (C, *spatial) to `narrow` (M, *spatial)."""

    stride: tuple[int, ...]
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    wide: Shape
    narrow: Shape

    def correlate(self, x: Numbers, weight: Numbers) -> Numbers:
        """(B, wide) -> (B, narrow): y[m, o] = sum over c, t of w[m, c, t] x[c, o stride + t dilation - begin]."""
        count, groups, kernel = len(x), self.groups, weight.shape[2:]
        image = np.zeros((count, *self._padded(), self.wide[0]), dtype=x.dtype)
        image[(slice(None), *self._inside())] = np.moveaxis(x.reshape(count, *self.wide), 1, -1)
        reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True))
        windows = sliding_window_view(image, reach, tuple(range(1, len(reach) + 1)))  # (B, places, C, reach)
        steps = (slice(None), *(slice(None, None, s) for s in self.stride), slice(None))
        windows = windows[(*steps, *(slice(None, None, d) for d in self.dilation))]
        # (B places, K, groups, C / groups) -> (groups, B places, K C / groups)
        stacked = np.moveaxis(windows, len(reach) + 1, -1).reshape(-1, math.prod(kernel), groups, weight.shape[1])
        rows = stacked.transpose(2, 0, 1, 3).reshape(groups, len(stacked), -1)
        filters = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).transpose(0, 3, 2, 1)
        found = rows @ filters.reshape(groups, rows.shape[2], -1)  # (groups, B places, M / groups)
        return found.reshape(groups, count, -1, found.shape[2]).transpose(1, 0, 3, 2).reshape(count, -1)

    def transpose(self, a: Numbers, weight: Numbers) -> Numbers:
        """The transpose of `correlate`: (R, narrow) -> (R, wide). As many rows at once as fit into a cache."""
        kernel, places = weight.shape[2:], self.narrow[1:]
        scattered = self.wide[0] * math.prod(kernel) * math.prod(places)
        near, blocks, _ = self._blocks(kernel)
        gathered = len(weight) * math.prod(near) * math.prod(blocks)
        way = self._gathered if gathered <= scattered else self._scattered
        count = max(16, PART // (a.itemsize * min(gathered, scattered)))
        parts = [way(a[k : k + count], weight) for k in range(0, len(a), count)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _scattered(self, a: Numbers, weight: Numbers) -> Numbers:
        """One product, then its parts added tap by tap; rows last, so that the additions run along them."""
        count, groups, places = len(a), self.groups, self.narrow[1:]
        filters = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
        given = np.ascontiguousarray(a.T).reshape(groups, filters.shape[2], -1)
        parts = (filters @ given).reshape(self.wide[0], *weight.shape[2:], *places, count)
        if self.wide[1:] == weight.shape[2:] and not any(self.pads):  # one place, nothing overlaps
            return np.ascontiguousarray(parts.reshape(-1, count).T)
        out = np.zeros((self.wide[0], *self._padded(), count), dtype=a.dtype)
        for tap, where in self._taps(weight.shape[2:]):
            out[(slice(None), *where)] += parts[(slice(None), *tap)]
        return np.ascontiguousarray(out[(slice(None), *self._inside())].reshape(-1, count).T)

    def _gathered(self, a: Numbers, weight: Numbers) -> Numbers:
        """Blocks of `stride` cells of the padded image, each a product with the few outputs that meet it: block i with
        i - near + 1, ..., i. Rows last, so that copies run along them.
        """
        count, groups, rank = len(a), self.groups, len(self.stride)
        near, blocks, first = self._blocks(weight.shape[2:])
        image = np.zeros((len(weight), *(n + b - 1 for n, b in zip(near, blocks, strict=True)), count), dtype=a.dtype)
        start = [f - n + 1 for f, n in zip(first, near, strict=True)]
        seen = [
            slice(max(s, 0), min(s + m, o)) for s, m, o in zip(start, image.shape[1:], self.narrow[1:], strict=False)
        ]
        inner = (slice(w.start - s, w.stop - s) for w, s in zip(seen, start, strict=True))
        image[(slice(None), *inner)] = a.T.reshape(*self.narrow, count)[(slice(None), *seen)]
        image = image.reshape(groups, -1, *image.shape[1:])
        given = np.empty((groups, *near, image.shape[1], *blocks, count), dtype=a.dtype)
        for tap in itertools.product(*map(range, near)):
            where: tuple[Any, ...] = (slice(None), *tap)
            cut = (slice(t, t + b) for t, b in zip(tap, blocks, strict=True))
            given[where] = image[(slice(None), slice(None), *cut)]
        filters = self._phases(weight, near)
        found = filters @ given.reshape(groups, filters.shape[2], -1)
        found = found.reshape(groups, *self.stride, -1, *blocks, count)
        out = np.empty((groups, found.shape[rank + 1], *self.wide[1:], count), dtype=a.dtype)
        for phase in itertools.product(*map(range, self.stride)):
            cells: list[slice] = []
            sources: list[slice] = []
            for r, s, b, f, n in zip(phase, self.stride, self.pads, first, self.wide[1:], strict=False):
                block = -(-(b - r) // s)  # the first with a cell of this phase inside
                cell = block * s + r - b
                cells.append(slice(cell, None, s))
                sources.append(slice(block - f, block - f + len(range(cell, n, s))))
            source: tuple[Any, ...] = (slice(None), *phase, slice(None), *sources)
            out[(slice(None), slice(None), *cells)] = found[source]
        return np.ascontiguousarray(out.reshape(-1, count).T)

    def _blocks(self, kernel: Shape) -> tuple[list[int], list[int], list[int]]:
        """Along every axis: how many outputs meet a block, how many blocks the image meets, and the first of these."""
        near = [-(-((k - 1) * d + 1) // s) for k, d, s in zip(kernel, self.dilation, self.stride, strict=True)]
        first = [b // s for b, s in zip(self.pads, self.stride, strict=False)]
        ends = zip(self.pads, self.wide[1:], self.stride, first, strict=False)
        return near, [(b + n - 1) // s - f + 1 for b, n, s, f in ends], first

    def _phases(self, weight: Numbers, near: Sequence[int]) -> Numbers:
        """(groups, stride C / groups, near M / groups): of block i, cell r gets tap j stride + r of output i - j."""
        rank, full = len(near), [n * s for n, s in zip(near, self.stride, strict=True)]
        taps = np.zeros((*weight.shape[:2], *full), dtype=weight.dtype)
        dilated = (slice(0, (k - 1) * d + 1, d) for k, d in zip(weight.shape[2:], self.dilation, strict=True))
        taps[(slice(None), slice(None), *dilated)] = weight
        split = itertools.chain.from_iterable(zip(near, self.stride, strict=True))
        taps = taps.reshape(self.groups, -1, weight.shape[1], *split)
        outputs, cells = range(3, 2 * rank + 3, 2), range(4, 2 * rank + 3, 2)
        taps = np.flip(taps, tuple(outputs)).transpose(0, *cells, 2, *outputs, 1)
        return taps.reshape(self.groups, math.prod(self.stride) * weight.shape[1], -1)

    def places(self, kernel: Shape) -> Shape:
        """How often the kernel fits into the padded image, along every axis."""
        return tuple(
            (n - (k - 1) * d - 1) // s + 1
            for n, k, d, s in zip(self._padded(), kernel, self.dilation, self.stride, strict=True)
        )

    def _padded(self) -> list[int]:
        rank = len(self.stride)
        return [n + b + e for n, b, e in zip(self.wide[1:], self.pads[:rank], self.pads[rank:], strict=True)]

    def _inside(self) -> tuple[slice, ...]:
        return tuple(slice(b, b + n) for b, n in zip(self.pads, self.wide[1:], strict=False))

    def _taps(self, kernel: Shape) -> Sequence[tuple[Shape, tuple[slice, ...]]]:
        """Every tap, and the padded image's cells that it meets."""
        found = []
        for tap in itertools.product(*map(range, kernel)):
            where = tuple(
                slice(t * d, t * d + (o - 1) * s + 1, s)
                for t, d, s, o in zip(tap, self.dilation, self.stride, self.narrow[1:], strict=True)
            )
            found.append((tap, where))
        return found


def _select(index: np.ndarray[tuple[int], np.dtype[np.int64]], inputs: int, arithmetic: Arithmetic) -> Affine:
    real = np.flatnonzero(index >= 0)
    source = index[real]
    uses = np.bincount(source, minlength=inputs)
    order = np.argsort(source, kind="stable")
    used = np.flatnonzero(uses)
    starts = np.concatenate([[0], np.cumsum(uses[used])[:-1]]).astype(np.int64)
    whole = len(real) == len(index)

    def forward(x: Numbers) -> Numbers:
        if whole:
            return x[:, index]
        out = arithmetic.zeros((len(x), len(index)))
        out[:, real] = x[:, source]
        return out

    def backward(a: Numbers) -> Sequence[Numbers]:
        out = arithmetic.zeros((len(a), inputs)).astype(a.dtype, copy=False)
        if len(real):
            gathered = a[:, real[order]]
            out[:, used] = gathered if len(used) == len(real) else np.add.reduceat(gathered, starts, axis=1)
        return (out,)

    most = int(uses.max(initial=0))
    if inputs == len(index) and np.array_equal(index, np.arange(inputs)):
        return Affine(lambda x: x, lambda x: x, lambda a: (a,), 0)
    return Affine(forward, forward, backward, most if most > 1 else 0, most)


def _sum(axes: tuple[int, ...], shape: Shape) -> Affine:
    over = tuple(a % len(shape) + 1 for a in axes)
    kept = tuple(1 if i + 1 in over else n for i, n in enumerate(shape))

    def forward(x: Numbers) -> Numbers:
        found: Numbers = np.add.reduce(x.reshape(-1, *shape), axis=over).reshape(len(x), -1)
        return found

    def backward(a: Numbers) -> Sequence[Numbers]:
        spread = np.broadcast_to(a.reshape(-1, *kept), (len(a), *shape))
        return (np.ascontiguousarray(spread).reshape(len(a), -1),)

    return Affine(forward, forward, backward, math.prod(shape[a - 1] for a in over))


def _concat(axis: int, shapes: Sequence[Shape]) -> Affine:
    axis = axis % len(shapes[0])
    ends = np.cumsum([s[axis] for s in shapes])

    def forward(*xs: Numbers) -> Numbers:
        joined = np.concatenate([x.reshape(-1, *s) for x, s in zip(xs, shapes, strict=True)], axis=axis + 1)
        return joined.reshape(len(joined), -1)

    whole = (*shapes[0][:axis], int(ends[-1]), *shapes[0][axis + 1 :])

    def backward(a: Numbers) -> Sequence[Numbers]:
        return [p.reshape(len(a), -1) for p in np.split(a.reshape(-1, *whole), ends[:-1], axis=axis + 1)]

    return Affine(forward, forward, backward, 0)


def _add(signs: tuple[int, ...]) -> Affine:
    def forward(*xs: Numbers) -> Numbers:
        total = xs[0] * signs[0]
        for sign, x in zip(signs[1:], xs[1:], strict=True):
            total = total + sign * x
        return total

    def magnitude(*xs: Numbers) -> Numbers:
        total = xs[0]
        for x in xs[1:]:
            total = total + x
        return total

    return Affine(forward, magnitude, lambda a: [sign * a for sign in signs], len(signs) if len(signs) > 1 else 0)
