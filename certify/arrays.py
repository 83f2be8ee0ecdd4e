"""The few array operations that the array API lacks, for numpy and torch alike.

Everything else goes through `namespace(x)`, the array-API namespace of x's library. torch is imported
only when a torch tensor comes in.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import array_api_compat
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = Any  # a numpy array or a torch tensor: whatever `namespace` knows

NUMPY_IS_COMPLETE = np.lib.NumpyVersion(np.__version__) >= "2.1.0"
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11}
# The smallest normal number: flush-to-zero may lose as much as this in one product.
UNDERFLOW = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14}


def namespace(*arrays: Array) -> Any:
    """The array-API namespace of the arrays' library.

    numpy's own where it is complete (2.1): array_api_compat's copy takes 40 ms to make, as it touches every attribute.
    """
    kind = type(arrays[0])
    if any(type(x) is not kind for x in arrays):
        return array_api_compat.array_namespace(*arrays)
    found = _SPACES.get(kind)
    if found is None:  # asking each time took 4 us, a thousand times in a pass
        whole = NUMPY_IS_COMPLETE and kind is np.ndarray
        found = _SPACES[kind] = np if whole else array_api_compat.array_namespace(arrays[0])
    return found


_SPACES: dict[type, Any] = {}


def is_torch(x: Array) -> bool:
    return bool(array_api_compat.is_torch_array(x))


def dtype_name(x: Array) -> str:
    """ "float64", "float32" or "float16"."""
    return _name(x.dtype)


@cache
def _name(dtype: Any) -> str:
    """numpy takes 5 us to spell a dtype."""
    return str(dtype).removeprefix("torch.")


def computes_float32(device: Any) -> bool:
    """Are torch's float32 sums on this device sums of float32 products, for certain?

    Elsewhere the error terms of float32 bounds do not hold: GPUs may use TF32 or Winograd, and oneDNN rounds operands
    to bfloat16 or TF32 where the user, or the environment (AWS advises it for Graviton), allows faster modes.
    """
    import os

    import torch

    modes = (os.environ.get(f"{name}_DEFAULT_FPMATH_MODE", "") for name in ("ONEDNN", "DNNL"))
    if device.type != "cpu" or any(mode.upper() not in ("", "STRICT") for mode in modes):
        return False
    try:
        highest = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch's answer where its older and newer settings were both used
        return False
    # Settings by kind of op came with torch 2.9; before, there is nothing to read.
    kinds = (getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv"))
    return highest and all(getattr(kind, "fp32_precision", "none") in ("none", "ieee") for kind in kinds)


def keep_buffers() -> None:
    """Let glibc keep freed buffers of up to 32 MB instead of handing each back to the system.

    Its threshold for that follows the largest block freed so far, 128 KB at first, and 32 MB is its ceiling. A pass
    allocates and frees tens of buffers of some MB; page faults on fresh ones took a sixth of CROWN's time. The block
    here is never touched, and costs nothing; other allocators do as they like.
    """
    for size in (2**25 - 2**16, 2**25 - 2**13):
        np.empty(size, dtype=np.uint8)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    return x.detach().cpu().numpy() if is_torch(x) else np.asarray(x)


def like(value: Any, x: Array) -> Array:
    """`value` as an array of x's library, dtype and device (rounded to nearest)."""
    if is_torch(x):
        import torch

        if isinstance(value, np.ndarray):
            value = value.astype(dtype_name(x))  # a copy: torch must not share a read-only buffer
        return torch.as_tensor(value, dtype=x.dtype, device=x.device)
    with np.errstate(over="ignore"):  # an overflow gives inf, which casts and bounds refuse by themselves
        return np.asarray(value, dtype=x.dtype)


def take(x: Array, index: np.ndarray[Any, np.dtype[np.int64]], fill: float = 0.0) -> Array:
    """x[..., index] on the last axis; index -1 gives `fill`."""
    missing = index < 0
    if is_torch(x):
        import torch

        out = x[..., torch.as_tensor(np.where(missing, 0, index), device=x.device)]
        if missing.any():
            out = torch.where(torch.as_tensor(missing, device=x.device), torch.full_like(out, fill), out)
        return out
    out = x[..., np.where(missing, 0, index)]
    return np.where(missing, np.asarray(fill, dtype=x.dtype), out) if missing.any() else out


def scatter_add(x: Array, index: np.ndarray[Any, np.dtype[np.int64]], size: int) -> Array:
    """The transpose of `take`: out[..., index[k]] += x[..., k], out has last axis `size`; index -1 is dropped."""
    keep = np.flatnonzero(index >= 0)
    kept = index[keep]
    if is_torch(x):
        import torch

        if len(keep) != len(index):
            x = x[..., torch.as_tensor(keep, device=x.device)]
        out = torch.zeros(*x.shape[:-1], size, dtype=x.dtype, device=x.device)
        return out.index_add(-1, torch.as_tensor(kept, device=x.device), x)
    flat = x.reshape(-1, x.shape[-1])[:, keep]
    sums = np.zeros((size, flat.shape[0]), dtype=x.dtype)
    np.add.at(sums, kept, flat.T)
    return np.ascontiguousarray(sums.T).reshape(*x.shape[:-1], size)


def take_along(x: Array, index: Array) -> Array:
    """out[b, k] = x[b, index[b, k]] for x (B, n) and integers index (B, K)."""
    if is_torch(x):
        return x.gather(1, index)
    return np.take_along_axis(x, index, axis=1)


# Numbers a sample that pay for the calls of `inner` by pieces.
LONG_PIECES = 40_000


def inner(a: Array, vector: Array) -> Array:
    """sum_n a[..., n] vector[..., n], leading axes broadcast; no product meets more than `depth(n, dtype)` roundings.

    In float32 two levels of sums, whose rounding error is far below that of one sum of n. Where many rows meet one
    vector, batched products of rows of 2 sqrt(n) numbers with matrices (0.1 ns an element; 0.3 otherwise); torch's
    batched products of matrices with columns take 1.1. numpy's are fast (0.4 ns, two sums 1.5).
    """
    xp, count = namespace(a), a.shape[-1]
    wide = dtype_name(a) == "float64"
    if xp is np and wide:
        if vector.ndim == a.ndim > 1 and vector.shape[-2] == 1:
            return np.matmul(a, np.swapaxes(vector, -1, -2))[..., 0]
        return np.einsum("...n,...n->...", a, vector)
    if _pays_in_pieces(a, vector):
        return xp.stack([_by_pieces(a[b], vector[b, 0]) for b in range(len(a))])
    product, side = a * vector, math.isqrt(count)
    if side < 2 or wide:
        return xp.sum(product, axis=-1)
    end = count - count % side
    square = product if end == count else product[..., :end]
    total = xp.sum(xp.sum(square.reshape((*product.shape[:-1], side, -1)), axis=-2), axis=-1)
    return total if end == count else total + xp.sum(product[..., end:], axis=-1)


def _pays_in_pieces(a: Array, vector: Array) -> bool:
    if not (is_torch(a) and a.ndim == vector.ndim == 3 and vector.shape[1] == 1 and len(vector) == len(a)):
        return False
    return math.prod(a.shape[1:]) >= LONG_PIECES and not (a.requires_grad or vector.requires_grad)


def _by_pieces(a: Array, vector: Array) -> Array:
    """`inner` of torch's a (S, n) and vector (n,)."""
    count = len(vector)
    piece = 2 * math.isqrt(count)
    end = count - count % piece
    pieces = a[:, :end].unflatten(1, (-1, piece)).permute(1, 2, 0)
    total = (vector[:end].reshape(-1, 1, piece) @ pieces).sum(0)[0]
    return total if end == count else total + a[:, end:] @ vector[end:]


def blend(a: Array, s: Array, b: Array, t: Array) -> Array:
    """a s + b t, in the memory of a and b unless gradients need them: fresh buffers cost twice the arithmetic."""
    if is_torch(a) and (a.requires_grad or b.requires_grad or s.requires_grad or t.requires_grad):
        return a * s + b * t
    a *= s
    b *= t
    a += b
    return a


def multiply_columns(a: Array, live: Array, rows: Array, out: Array) -> None:
    """out[...] = a[:, live] @ rows."""
    if is_torch(a):
        import torch

        torch.mm(a.index_select(1, live), rows, out=out)
    else:
        np.matmul(a[:, live], rows, out=out)


def in_order(a: Array) -> Array:
    """The same numbers in row-major order in memory: steps that mix two orders take 5 to 10 times as long."""
    return a.contiguous() if is_torch(a) else a


def depth(count: int, dtype: str) -> int:
    """The roundings that a product may meet in `inner` of up to `count` products, its own included.

    float64 has room for any order of summation.
    """
    if dtype == "float64":
        return count
    piece = 2 * math.isqrt(count)
    return piece + -(-count // max(piece, 1)) + 3


def put_along(x: Array, index: Array, values: Array) -> Array:
    """A copy of x (B, n) with out[b, index[b, k]] = values[b, k]."""
    if is_torch(x):
        return x.scatter(1, index, values)
    out = x.copy()
    np.put_along_axis(out, index, values, axis=1)
    return out


def put_rows(x: Array, rows: np.ndarray[Any, np.dtype[np.int64]], values: Array) -> Array:
    """A copy of x with out[rows] = values."""
    if len(rows) == x.shape[0]:
        return values
    if is_torch(x):
        return x.index_copy(0, like_index(rows, x), values)
    out = x.copy()
    out[rows] = values
    return out


def like_index(index: np.ndarray[Any, np.dtype[np.integer[Any]]], x: Array) -> Array:
    """Integer indices in x's library and device."""
    if is_torch(x):
        import torch

        return torch.as_tensor(index, device=x.device)
    return index


def spread_rows(image: Array, places: Array, position: Array) -> Array:
    """out[b, k, w] = image[b, places[position[b, k], w]]: image (B or 1, n), places (P, W), position (B, K).

    Where rows share positions, the windows of all positions are laid out once, and rows copied from them.
    """
    xp, (count, size) = namespace(image), places.shape
    lead = tuple(position.shape)
    if image.shape[0] == 1 and math.prod(lead) < count:
        return image[0][places[position]]
    windows = xp.take(image, places.reshape((-1,)), axis=1).reshape((-1, size))
    if image.shape[0] > 1:
        position = position + count * xp.arange(image.shape[0], device=image.device)[:, None]
    return xp.take(windows, position.reshape((-1,)), axis=0).reshape((*lead, size))


def scatter_cells(values: Array, target: Array, size: int) -> Array:
    """out[..., target[..., w]] = values[..., w], zero elsewhere: (..., W) -> (..., size); target `size` is dropped,
    leading axes of `target` are broadcast.
    """
    lead = tuple(values.shape[:-1])
    if is_torch(values):
        import torch

        out = torch.zeros(*lead, size + 1, dtype=values.dtype, device=values.device)
        return out.scatter_(-1, target.expand(values.shape), values)[..., :size]
    blank = np.zeros((*lead, size + 1), dtype=values.dtype)
    np.put_along_axis(blank, np.broadcast_to(target, values.shape), values, axis=-1)
    return blank[..., :size]


def one_hot(index: Array, sample: Array) -> Array:
    """Unit rows e_index: integers (B, K) -> (B, K, n) with n the last axis of `sample`, in its dtype."""
    xp = namespace(sample)
    positions = xp.arange(sample.shape[-1], dtype=index.dtype, device=sample.device)
    return xp.astype(index[..., None] == positions, sample.dtype)


def narrow_interval(box: tuple[Array, Array], sample: Array) -> tuple[Array, Array]:
    """The interval in the sample's narrower dtype, one ulp outward."""
    if is_torch(sample):
        import torch

        infinity = torch.tensor(torch.inf, dtype=sample.dtype, device=sample.device)
        return torch.nextafter(box[0].to(sample.dtype), -infinity), torch.nextafter(box[1].to(sample.dtype), infinity)
    infinity = sample.dtype.type(np.inf)
    return np.nextafter(box[0].astype(sample.dtype), -infinity), np.nextafter(box[1].astype(sample.dtype), infinity)


def convolve(
    x: Array, weight: Array, stride: tuple[int, ...], pads: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> Array:
    """Cross-correlation of x (N, C, *spatial) with weight (M, C/groups, *kernel), zero padding `pads` = begins +
    ends.
    """
    rank = len(stride)
    begin, end = pads[:rank], pads[rank:]
    if is_torch(x):
        import torch.nn.functional as functional

        if begin != end:
            x = functional.pad(x, [p for b, e in zip(begin[::-1], end[::-1], strict=True) for p in (b, e)])
            begin = (0,) * rank
        call = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
        return call(x, weight, None, stride, begin, dilation, groups)
    x = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    kernel = weight.shape[2:]
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    axes = tuple(range(2, 2 + rank))
    windows = sliding_window_view(x, reach, axis=axes)
    windows = windows[
        (slice(None), slice(None), *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))
    ]
    out_shape = windows.shape[2 : 2 + rank]
    count, channels = x.shape[:2]
    # (N, C, *out, *kernel) -> (N, groups, *out, C/groups, *kernel)
    windows = windows.reshape(count, groups, channels // groups, *out_shape, *kernel)
    windows = np.moveaxis(windows, 2, 2 + rank)
    columns = windows.reshape(count, groups, int(np.prod(out_shape)), -1)
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    out = np.matmul(filters[None], np.swapaxes(columns, -1, -2))
    return out.reshape(count, weight.shape[0], *out_shape)


def convolve_transposed(
    x: Array,
    weight: Array,
    stride: tuple[int, ...],
    pads: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    out_spatial: tuple[int, ...],
) -> Array:
    """The transpose of `convolve` as a linear map: x (N, M, *spatial) -> (N, C, *out_spatial)."""
    rank = len(stride)
    begin = pads[:rank]
    kernel = tuple(weight.shape[2:])
    # Size that the transposed convolution yields without cropping; the input may have had unread cells at its end.
    full = tuple(
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], stride, kernel, dilation, strict=True)
    )
    if is_torch(x):
        import torch.nn.functional as functional

        if rank == 2 and groups == 1 and not weight.requires_grad and _taps_are_faster(x, stride):
            from certify.taps import Window, add_taps

            return add_taps(x, weight, Window(stride, pads, dilation, out_spatial))
        call = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
        extra = tuple(n - (f - 2 * b) for n, f, b in zip(out_spatial, full, begin, strict=True))
        if all(0 <= e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
            return call(x, weight, None, stride, begin, extra, groups, dilation)
        out = call(x, weight, None, stride, 0, 0, groups, dilation)
        missing = [max(0, n + b - f) for n, f, b in zip(out_spatial, full, begin, strict=True)]
        out = functional.pad(out, [p for more in reversed(missing) for p in (0, more)])
        return out[(slice(None), slice(None), *(slice(b, b + n) for b, n in zip(begin, out_spatial, strict=True)))]
    count = x.shape[0]
    channels = weight.shape[1] * groups
    room = tuple(max(f, n + b) for f, n, b in zip(full, out_spatial, begin, strict=True))
    spread = np.zeros((count, channels, *room), dtype=x.dtype)
    grouped = x.reshape(count, groups, x.shape[1] // groups, -1)
    filters = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *kernel)
    for tap in np.ndindex(*kernel):
        part = np.matmul(np.swapaxes(filters[(slice(None), slice(None), slice(None), *tap)], 1, 2)[None], grouped)
        where = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilation, x.shape[2:], stride, strict=True)
        )
        spread[(slice(None), slice(None), *where)] += part.reshape(count, channels, *x.shape[2:])
    crop = tuple(slice(b, b + n) for b, n in zip(begin, out_spatial, strict=True))
    return spread[(slice(None), slice(None), *crop)]


def _taps_are_faster(x: Array, stride: tuple[int, ...]) -> bool:
    """torch's own are good at stride 1 in float32 (100 GFlop/s a core); 2 to 5 times slower else."""
    return max(stride) > 1 or dtype_name(x) == "float64"
