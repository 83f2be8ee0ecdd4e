"""Coefficients that live on a window of an image: a convolution's neuron sees little of the layer before.

A window is the cells origin, ..., origin + size - 1 of a tensor (C, *spatial), all channels.
Cells outside of the tensor are padding: they are kept at 0, and vectors read 0 there. Geometry only: sums and
roundings are those of the dense rows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from certify.check.affine import Window
from certify.check.network import Conv, Index, Shape
from certify.check.rounding import Numbers, at_least, dot

DENSE = 1 << 18  # a convolution of windows of one size is one matrix, if that has no more numbers than this


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one size at origin (Q, rank) of a tensor of shape `whole`."""

    origin: Index
    size: Shape
    whole: Shape

    @cached_property
    def cells(self) -> Index:
        """(Q, P): the flat cells of every window, n for padding."""
        return _cells(self.origin.astype(np.int64).tobytes(), self.origin.shape, self.size, self.whole)


@lru_cache(maxsize=16)  # one network's certificates ask for the same windows again and again
def _cells(origins: bytes, shape: Shape, sizes: Shape, whole: Shape) -> Index:
    origin = np.frombuffer(origins, dtype=np.int64).reshape(shape)
    spatial, count = whole[1:], len(origin)
    flat = np.zeros((count, 1), dtype=np.int64)
    outside = np.zeros((count, 1), dtype=np.bool_)
    for axis, (wide, size) in enumerate(zip(spatial, sizes, strict=True)):
        at = origin[:, axis, None] + np.arange(size)
        flat = (flat[:, :, None] * wide + at[:, None, :]).reshape(count, -1)
        outside = (outside[:, :, None] | ((at < 0) | (at >= wide))[:, None, :]).reshape(count, -1)
    cells = np.arange(whole[0])[:, None] * math.prod(spatial) + flat[:, None, :]
    return np.where(outside[:, None, :], math.prod(whole), cells).reshape(count, -1)


@dataclass(frozen=True, eq=False)
class Patch:
    """values (K, C * size): row k on windows[place[k]].

    pairs: for many boxes, the boxes and windows (U,) that occur together, and of each row which (K,); else None. clean:
    the values on the padding are 0. Else they are anything; nobody reads them before `through`.
    """

    values: Numbers
    windows: Windows
    place: Index
    pairs: tuple[Index, Index, Index] | None = None
    clean: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def small(self) -> bool:
        """Whether a window is less than half of the tensor."""
        return 2 * math.prod(self.windows.size) < math.prod(self.windows.whole[1:])

    def of_boxes(self, box: Index | None) -> Patch:
        """The same, row k of box box[k]."""
        if box is None or not len(box):
            return self
        key, own = np.unique(box * len(self.windows.origin) + self.place, return_inverse=True)
        return replace(self, pairs=(*np.divmod(key, len(self.windows.origin)), own))

    def inside(self) -> Patch:
        """The same, its values with zeros on the padding."""
        real = self.windows.cells < math.prod(self.windows.whole)
        rim = np.asarray(~real.all(axis=1))[self.place]
        if self.clean or not rim.any():
            return self
        values = self.values.copy()
        values[rim] *= real[self.place[rim]]
        return replace(self, values=values, clean=True)

    def through(self, op: Conv, weight: Numbers, whole: Shape) -> Patch:
        """The coefficients carried back through a convolution with these weights from a tensor of shape `whole`."""
        old, given = self.windows, self.inside().values
        size = tuple(
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(old.size, op.stride, weight.shape[2:], op.dilation, strict=True)
        )
        narrow = (old.whole[0], *old.size)
        if math.prod(narrow) * whole[0] * math.prod(size) <= DENSE and weight.dtype != object:
            values = given @ _matrix(op, size, narrow, weight.dtype == np.float32)
        else:
            values = _window(op, whole[0], size, narrow).transpose(given, weight)
        origin = old.origin * np.array(op.stride) - np.array(op.pads[: len(size)])
        return replace(self, values=values, windows=Windows(origin, size, whole), clean=False)

    def dense(self) -> Numbers:
        """(K, n)."""
        out = np.zeros((len(self), math.prod(self.windows.whole) + 1), dtype=self.values.dtype)
        np.put_along_axis(out, self.windows.cells[self.place], self.values, axis=1)
        return out[:, :-1]


@dataclass(frozen=True, eq=False)
class Rows:
    """Dense rows (K, n) against vectors (B, n) or (1, n); of boxes `box` (K,), None: one a row, or one for all.

    Rows and vectors are coefficients, their products numbers.
    """

    box: Index | None = None

    @cached_property
    def parts(self) -> list[tuple[int, slice]]:
        """The rows of each box, where they follow each other."""
        assert self.box is not None
        ends = np.flatnonzero(np.diff(self.box)) + 1
        edges = [0, *ends.tolist(), len(self.box)]
        return [(int(self.box[a]), slice(a, b)) for a, b in itertools.pairwise(edges) if a < b]

    def _short(self, a: Numbers) -> bool:
        """Whether a box's rows are so few numbers that one step of Python for each would cost more than copies."""
        return a.size < 4096 * len(self.parts)

    def dots(self, vector: Numbers, *rows: Numbers) -> list[Numbers]:
        """rows . vector, (K,) each."""
        if self.box is None or len(vector) == 1:
            return [dot(a, vector) for a in rows]
        if self._short(rows[0]):
            copied = vector[self.box]
            return [dot(a, copied) for a in rows]
        found = [np.zeros(len(a), dtype=object if a.dtype == object else np.float64) for a in rows]
        for box, part in self.parts:
            for out, a in zip(found, rows, strict=True):
                out[part] = dot(a[part], vector[box : box + 1])
        return found

    def times(self, vector: Numbers, a: Numbers, out: Numbers | None = None) -> Numbers:
        """Row by row, number by number: (K, n); out: where to put it."""
        one = self.box is None or len(vector) == 1
        if one or self._short(a):
            found: Numbers = np.multiply(a, vector if one else vector[self.box], out=out)
            return found
        out = np.empty_like(a) if out is None else out
        for box, part in self.parts:
            np.multiply(a[part], vector[box], out=out[part])
        return out

    def charge(self, large: Numbers, vector: Numbers) -> Numbers:
        """At least large . vector, neither negative: with many boxes, or a vector (B, 1), by a vector's largest number,
        for errors are small, and reading is what costs.
        """
        if len(vector) == 1 and vector.shape[1] > 1:
            return dot(large, at_least(vector, large.dtype))
        most = vector.max(axis=1)
        sums = dot(large, np.ones((1, large.shape[1]), dtype=large.dtype))
        found: Numbers = sums * (most if self.box is None or len(most) == 1 else most[self.box])
        return found


@dataclass(frozen=True, eq=False)
class Cells:
    """The same for a patch: vectors are read at the rows' cells, first window by window."""

    patch: Patch
    box: Index | None

    def read(self, vector: Numbers) -> Numbers:
        """(K, P)."""
        patch, cells = self.patch, self.patch.windows.cells
        padded = np.concatenate([vector, np.zeros_like(vector[:, :1])], axis=1)  # 0 on the padding
        if len(padded) == 1:
            return np.take(padded[0][cells], patch.place, axis=0)
        if patch.pairs is None:
            rows: Numbers = padded[np.arange(len(patch))[:, None], cells[patch.place]]
            return rows
        return np.take(np.take(padded.reshape(-1), self._flat), patch.pairs[2], axis=0)

    @cached_property
    def _flat(self) -> Index:
        """The cells of every pair in vectors (B, n + 1), flat."""
        assert self.patch.pairs is not None
        box, window, _ = self.patch.pairs
        return self.patch.windows.cells[window] + (box * (math.prod(self.patch.windows.whole) + 1))[:, None]

    def dots(self, vector: Numbers, *rows: Numbers) -> list[Numbers]:
        found = self.read(vector)
        return [dot(a, found) for a in rows]

    def times(self, vector: Numbers, a: Numbers, out: Numbers | None = None) -> Numbers:
        found: Numbers = np.multiply(a, self.read(vector), out=out)
        return found

    def charge(self, large: Numbers, vector: Numbers) -> Numbers:
        """By the largest number."""
        return Rows(self.box).charge(large, vector.max(axis=1, keepdims=True))


def _window(op: Conv, channels: int, size: Shape, narrow: Shape) -> Window:
    return Window(op.stride, (0,) * (2 * len(size)), op.dilation, op.groups, (channels, *size), narrow)


@lru_cache(maxsize=64)
def _matrix(op: Conv, size: Shape, narrow: Shape, quick: bool) -> Numbers:
    """A convolution of windows, transposed: the sums in a product with it have the same terms, and zeros."""
    found = _window(op, op.weight.shape[1] * op.groups, size, narrow).transpose(np.eye(math.prod(narrow)), op.weight)
    return found.astype(np.float32) if quick else found


def one_hot(places: Index, signs: Numbers, whole: Shape) -> Patch:
    """The coefficients signs (K,) of single neurons."""
    whole = whole if len(whole) > 1 else (*whole, 1)
    channel, origin, place = _spots(places, whole)
    values = np.zeros((len(places), whole[0]), dtype=signs.dtype)
    values[np.arange(len(places)), channel] = signs
    return Patch(values, Windows(origin, (1,) * (len(whole) - 1), whole), place)


def filters(places: Index, signs: Numbers, op: Conv, weight: Numbers, shapes: tuple[Shape, Shape]) -> Patch:
    """`one_hot` behind its convolution (one group, no dilation), shapes[0] to shapes[1]: rows of the weight."""
    whole, out = shapes
    channel, spots, place = _spots(places, out)
    origin = spots * np.array(op.stride) - np.array(op.pads[: len(op.stride)])
    values = weight.reshape(len(weight), -1)[channel]
    if not (signs == 1).all():
        values = values * signs[:, None]
    return Patch(values, Windows(origin, weight.shape[2:], whole), place)


def _spots(places: Index, whole: Shape) -> tuple[Index, Index, Index]:
    """Flat places (K,) as channels (K,), the different positions (Q, rank), and which of them each has (K,)."""
    channel, spot = np.divmod(places, math.prod(whole[1:]))
    spots, place = np.unique(spot, return_inverse=True)
    return channel, np.stack(np.unravel_index(spots, whole[1:]), axis=1), place
