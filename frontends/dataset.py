"""A labelled sample set, checked once on entry; selecting samples and fitting them to a network's input."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import DataError, NoSamples

UNIT_RANGE = (0.0, 1.0)
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Dataset:
    """N labelled samples in raw input space (before any normalisation).

    x: (N, *shape) float32, finite, inside input_range. y: (N,) labels >= 0. ids: (N,) index in the original set.
    notes: what a user should know ("2 of 5 training batches present"). input_range: (low, high) of valid inputs.
    sha256: of x and y as first loaded; selecting or reshaping keeps it, so it names the source.
    """

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: NDArray[np.int64]
    notes: tuple[str, ...]
    sha256: str
    input_range: tuple[float, float]

    def __len__(self) -> int:
        return len(self.y)


def make_dataset(
    name: str,
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    ids: NDArray[np.int64] | None = None,
    notes: Sequence[str] = (),
    input_range: tuple[float, float] | None = None,
) -> Dataset:
    """A checked Dataset from raw arrays: x (N, ...) numbers, y (N,) whole numbers.

    input_range defaults to (0, 1) and is never guessed from the data. Raises DataError: empty, lengths that differ,
    NaN or infinite values, values outside input_range, labels that are negative or not whole.
    """
    low, high = _checked_range(name, input_range)
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: x has type {x.dtype}, expected numbers")
    if x.ndim < 2:
        raise DataError(f"{name}: x has shape {x.shape}, expected (samples, features...)")
    labels = _checked_labels(name, y)
    if len(x) != len(labels):
        raise DataError(f"{name}: x has {len(x)} samples but y has {len(labels)} labels")
    if x.size == 0:
        raise DataError(f"{name}: the data set is empty, x has shape {x.shape}")
    _check_values(name, x, low, high)
    # The float32 numbers inside the range: rounding must not push a sample out of it.
    floor, ceiling = np.float32(low), np.float32(high)
    if float(floor) < low:
        floor = np.nextafter(floor, np.float32(np.inf))
    if float(ceiling) > high:
        ceiling = np.nextafter(ceiling, np.float32(-np.inf))
    values = np.clip(np.ascontiguousarray(x, dtype=np.float32), floor, ceiling)
    notes = tuple(notes)
    if not np.array_equal(values, x):
        notes += ("values were rounded to float32; the rounded samples are what is certified",)
    if ids is None:
        ids = np.arange(len(labels), dtype=np.int64)
    return Dataset(name, values, labels, ids, notes, _digest(values, labels), (low, high))


def _checked_range(name: str, input_range: tuple[float, float] | None) -> tuple[float, float]:
    low, high = UNIT_RANGE if input_range is None else (float(input_range[0]), float(input_range[1]))
    if not (-FLOAT32_MAX <= low < high <= FLOAT32_MAX) or np.float32(low) == np.float32(high):
        raise DataError(
            f"{name}: input range ({low}, {high}) is not two finite numbers, the first one smaller (both as float32)"
        )
    return low, high


def _checked_labels(name: str, y: NDArray[Any]) -> NDArray[np.int64]:
    if y.ndim != 1:
        raise DataError(f"{name}: y has shape {y.shape}, expected one class number per sample, shape (samples,)")
    if y.dtype.kind not in "biuf":
        raise DataError(f"{name}: y has type {y.dtype}, expected class numbers 0, 1, ...")
    if y.dtype.kind == "f":
        broken = ~np.isfinite(y) | (y != np.round(y))
        if broken.any():
            i = int(np.argmax(broken))
            raise DataError(f"{name}: label {y[i]} of sample {i} is not a whole number")
    if len(y) and (y.min() < 0 or y.max() >= 2**31):
        i = int(np.argmin(y)) if y.min() < 0 else int(np.argmax(y))
        raise DataError(f"{name}: label {y[i]} of sample {i} is out of range; classes are 0, 1, ...")
    return y.astype(np.int64)


def _check_values(name: str, x: NDArray[Any], low: float, high: float) -> None:
    """Finite and inside the range, whose ends may have been rounded to float32 by whoever made the data."""
    flat = x.reshape(len(x), -1)
    finite = np.isfinite(flat).all(axis=1)
    if not finite.all():
        i = int(np.argmin(finite))
        raise DataError(f"{name}: sample {i} holds NaN or infinite values ({int((~finite).sum())} such samples)")
    smallest, largest = float(flat.min()), float(flat.max())
    if smallest < min(low, float(np.float32(low))) or largest > max(high, float(np.float32(high))):
        raise DataError(
            f"{name}: values lie in [{smallest:g}, {largest:g}], outside the input range [{low:g}, {high:g}]; scale "
            f"the data, or state its range with --input-range LOW,HIGH (input_range=(low, high) in Python)"
        )


def _digest(x: NDArray[np.float32], y: NDArray[np.int64]) -> str:
    """SHA-256 of shape, x and y in little-endian order."""
    digest = hashlib.sha256(repr(x.shape).encode())
    digest.update(x.astype("<f4", copy=False).tobytes())
    digest.update(y.astype("<i8", copy=False).tobytes())
    return digest.hexdigest()


def select(
    dataset: Dataset,
    samples: int | None = None,
    start: int | None = None,
    end: int | None = None,
    ids: Sequence[int] | None = None,
) -> Dataset:
    """The first `samples` of the positions [start, end), or the samples with these `ids`, in the order given.

    Positions count from 0 within the data set; an end or number beyond it stops there, with a note.
    Raises NoSamples if nothing is left; DataError for negative numbers, unknown or repeated ids, ids with start/end.
    """
    for label, number in (("samples", samples), ("start", start), ("end", end)):
        if number is not None and number < 0:
            raise DataError(f"{label} is {number}; it must be 0 or more")
    notes = dataset.notes
    if ids is not None:
        if start is not None or end is not None:
            raise DataError("give either ids or start/end, not both")
        picked = _positions(dataset, ids)
    else:
        if end is not None and end > len(dataset):
            notes += (f"end {end} is beyond the {len(dataset)} samples of {dataset.name}",)
        picked = np.arange(len(dataset))[start:end]
    if samples is not None:
        if samples > len(picked):
            notes += (f"{samples} samples asked for, {len(picked)} available",)
        picked = picked[:samples]
    if not len(picked):
        raise NoSamples(
            f"{dataset.name}: no sample is selected out of {len(dataset)}; their positions run from 0 to "
            f"{len(dataset) - 1}, --end is exclusive"
        )
    return replace(dataset, x=dataset.x[picked], y=dataset.y[picked], ids=dataset.ids[picked], notes=notes)


def _positions(dataset: Dataset, ids: Sequence[int]) -> NDArray[np.int64]:
    where = {int(number): position for position, number in enumerate(dataset.ids)}
    missing = [number for number in ids if number not in where]
    if missing:
        raise DataError(
            f"{dataset.name}: no sample with id {missing[0]} ({len(missing)} unknown); ids run from "
            f"{dataset.ids.min()} to {dataset.ids.max()}"
        )
    if len(set(ids)) != len(ids):
        raise DataError(f"{dataset.name}: an id is given twice")
    return np.array([where[number] for number in ids], dtype=np.int64)


def fit_to_model(dataset: Dataset, input_shape: tuple[int, ...]) -> Dataset:
    """The samples in the network's input shape (no batch): the same numbers in the same row-major order.

    Axes of size 1 are added or dropped, flat data or flat inputs are reshaped. Raises DataError naming both shapes
    if sizes differ or axes would be mixed up.
    """
    shape, wanted = tuple(dataset.x.shape[1:]), tuple(input_shape)
    if math.prod(shape) != math.prod(wanted):
        raise DataError(
            f"{dataset.name}: a sample has shape {shape} ({math.prod(shape)} numbers), the network's input {wanted} "
            f"({math.prod(wanted)} numbers)"
        )
    ours, theirs = _squeezed(shape), _squeezed(wanted)
    if ours != theirs and min(len(ours), len(theirs)) > 1:
        raise DataError(
            f"{dataset.name}: a sample has shape {shape}, the network's input {wanted}: the same size, but a reshape "
            f"would mix up the axes; {_layout_advice(shape, wanted)}"
        )
    return replace(dataset, x=dataset.x.reshape(len(dataset), *wanted))


def _layout_advice(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if wanted == (*shape[1:], shape[0]):
        return "the network wants channels last: say --layout nhwc"
    if wanted == (shape[-1], *shape[:-1]):
        return "the network wants channels first: transpose the data to (samples, channels, height, width)"
    return "bring the data to the network's shape"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
