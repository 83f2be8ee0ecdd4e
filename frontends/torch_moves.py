"""Aten ops that move numbers: reshapes, slices, gathers, joins, padding. See certify.frontends.torch_rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.arrays import to_numpy
from certify.frontends.torch_rules import Lowering, Ref, row_major, rule

if TYPE_CHECKING:
    import torch


@rule(
    "flatten.using_ints",
    "view.default",
    "_unsafe_view.default",
    "reshape.default",
    "unflatten.int",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
    "unsqueeze.default",
)
def _(lo: Lowering, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    return row_major(lo, x)


@rule("clone.default", "alias.default", "contiguous.default", "detach.default")
def _(lo: Lowering, x: Ref, **kwargs: Any) -> Ref:
    return x


@rule("dropout.default", "feature_dropout.default", "alpha_dropout.default")
def _(lo: Lowering, x: Ref, p: float, train: bool) -> Ref:
    if train:
        raise lo.refuse("dropout in training mode is random")
    return x


@rule("permute.default")
def _(lo: Lowering, x: Ref, dims: Sequence[int]) -> Ref:
    order = [d % lo.rank(x) for d in dims]
    if order[0] != 0:
        raise lo.refuse("a permutation moves the batch axis")
    return Ref(lo.build.transpose(x.index, [d - 1 for d in order[1:]]))


@rule("transpose.int")
def _(lo: Lowering, x: Ref, dim0: int, dim1: int) -> Ref:
    order = list(range(lo.rank(x) - 1))
    a, b = lo.axis(x, dim0), lo.axis(x, dim1)
    order[a], order[b] = order[b], order[a]
    return Ref(lo.build.transpose(x.index, order))


@rule("slice.Tensor")
def _(lo: Lowering, x: Ref, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Ref:
    if dim % lo.rank(x) == 0:
        if slice(start, end, step).indices(lo.batch) != (0, lo.batch, 1):
            raise lo.refuse("slices the batch axis")
        return x
    return _cut(lo, x, lo.axis(x, dim), slice(start, end, step))


@rule("select.int")
def _(lo: Lowering, x: Ref, dim: int, index: int) -> Ref:
    return _cut(lo, x, lo.axis(x, dim), index)


def _cut(lo: Lowering, x: Ref, axis: int, where: slice | int) -> Ref:
    return Ref(lo.build.slice(x.index, (*(slice(None),) * axis, where)))


@rule("split.Tensor")
def _(lo: Lowering, x: Ref, split_size: int, dim: int = 0) -> Any:
    axis = lo.axis(x, dim)
    size = lo.build.shape(x.index)[axis]
    return tuple(_cut(lo, x, axis, slice(i, i + split_size)) for i in range(0, size, split_size))


@rule("split_with_sizes.default")
def _(lo: Lowering, x: Ref, split_sizes: Sequence[int], dim: int = 0) -> Any:
    axis = lo.axis(x, dim)
    ends = np.cumsum(split_sizes)
    return tuple(_cut(lo, x, axis, slice(int(e) - s, int(e))) for e, s in zip(ends, split_sizes, strict=True))


@rule("unbind.int")
def _(lo: Lowering, x: Ref, dim: int = 0) -> Any:
    axis = lo.axis(x, dim)
    return tuple(_cut(lo, x, axis, i) for i in range(lo.build.shape(x.index)[axis]))


@rule("index_select.default")
def _(lo: Lowering, x: Ref, dim: int, index: torch.Tensor) -> Ref:
    return Ref(lo.build.gather(x.index, to_numpy(index), lo.axis(x, dim)))


@rule("index.Tensor")
def _(lo: Lowering, x: Ref, indices: Sequence[Any]) -> Ref:
    given = [(i, t) for i, t in enumerate(indices) if t is not None]
    if len(given) != 1 or isinstance(given[0][1], Ref) or to_numpy(given[0][1]).dtype != np.int64:
        raise lo.refuse("indexing is supported with one constant index of integers")
    dim, index = given[0]
    return Ref(lo.build.gather(x.index, to_numpy(index), lo.axis(x, dim)))


@rule("expand.default")
def _(lo: Lowering, x: Ref, size: Sequence[int], *, implicit: bool = False) -> Ref:
    if lo.shape is None or len(lo.shape) != lo.rank(x) or lo.shape[0] != lo.batch:
        raise lo.refuse("expands across the batch axis")
    return Ref(lo.build.broadcast(x.index, lo.shape[1:]))


@rule("cat.default")
def _(lo: Lowering, tensors: Sequence[Any], dim: int = 0) -> Ref:
    return Ref(lo.build.concat(_all_refs(lo, tensors), lo.axis(tensors[0], dim)))


@rule("stack.default")
def _(lo: Lowering, tensors: Sequence[Any], dim: int = 0) -> Ref:
    refs = _all_refs(lo, tensors)
    axis = dim % (lo.rank(tensors[0]) + 1)
    if axis == 0:
        raise lo.refuse("stacks along the batch axis")
    shape = lo.build.shape(refs[0])
    wide = (*shape[: axis - 1], 1, *shape[axis - 1 :])
    return Ref(lo.build.concat([lo.build.reshape(r, wide) for r in refs], axis - 1))


def _all_refs(lo: Lowering, tensors: Sequence[Any]) -> list[int]:
    if not all(isinstance(t, Ref) for t in tensors):
        raise lo.refuse("joining constants with values that depend on the input is not supported")
    return [t.index for t in tensors]


@rule("pad.default", "constant_pad_nd.default")
def _(lo: Lowering, x: Ref, pad: Sequence[int], mode: Any = "constant", value: Any = None) -> Ref:
    if not isinstance(mode, str):  # constant_pad_nd has the value in this place
        mode, value = "constant", mode
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    rank = lo.rank(x) - 1
    if len(pad) > 2 * rank or mode not in kinds:
        raise lo.refuse(f"padding {list(pad)} in mode {mode!r} is not supported")
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    widths = [(0, 0)] * (rank - len(pairs)) + pairs
    return Ref(lo.build.pad(x.index, widths, 0.0 if value is None else float(value), kinds[mode]))


@rule("flip.default")
def _(lo: Lowering, x: Ref, dims: Sequence[int]) -> Ref:
    axes = tuple(lo.axis(x, d) for d in dims)
    return Ref(lo.build.move(x.index, np.flip(lo.build.places(x.index), axes)))
