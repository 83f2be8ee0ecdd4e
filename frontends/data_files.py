"""A user's own samples: arrays, .npz, .csv and image folders."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import DataError
from certify.frontends.dataset import Dataset, make_dataset

Range = tuple[float, float] | None

LABEL_NAMES = ("label", "y")
# What numpy and zipfile raise on damaged, encrypted or pickled content.
NPZ_FAILURES = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
GREY_MODES = frozenset({"1", "L"})
COLOUR_MODES = frozenset({"P", "RGB", "RGBA"})


def load_npz(path: Path, input_range: Range) -> Dataset:
    """The arrays `x` (N, ...) and `y` (N,) of a .npz file; pickled objects are refused."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: not a .npz archive; save it with numpy.savez(path, x=x, y=y)")
        with file:
            missing = [key for key in ("x", "y") if key not in file.files]
            if missing:
                raise DataError(
                    f"{path}: no array {' and '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}"
                )
            x, y = file["x"], file["y"]
    except NPZ_FAILURES as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return make_dataset(str(path), x, y, input_range=input_range)


def load_csv(path: Path, input_range: Range) -> Dataset:
    """One sample per line, comma-separated: the label, and all other columns as features, x (N, n).

    With a header the label is the column `label` or `y` (either case), else the last column; without one it is the
    last column. A note says which. Raises DataError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = text.splitlines()
    filled = next((i for i, line in enumerate(lines) if line.strip()), None)
    if filled is None:
        raise DataError(f"{path}: the file is empty")
    first = [cell.strip() for cell in next(csv.reader([lines[filled]]))]
    header = not all(map(_is_number, first))
    label, note = _label_column(path, first, header)
    body = lines[filled + 1 :] if header else lines[filled:]
    table = _table(path, body, filled + 2 if header else filled + 1)
    if table.shape[1] != len(first):
        raise DataError(f"{path}: the header has {len(first)} columns, the data {table.shape[1]}")
    x, y = np.delete(table, label, axis=1), table[:, label]
    return make_dataset(str(path), x, y, notes=(note,), input_range=input_range)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label_column(path: Path, first: list[str], header: bool) -> tuple[int, str]:
    if len(first) < 2:
        raise DataError(f"{path}: one column; a sample needs a label and at least one feature, separated by commas")
    if not header:
        if [float(cell) for cell in first] == list(range(len(first))):
            raise DataError(f"{path}: the first line counts 0, 1, 2, ...: a header or a sample? Name the label column")
        return len(first) - 1, "no header: the last column is the label"
    values = [cell for cell in first if _is_number(cell) and not cell.isdigit()]
    if values:
        raise DataError(f"{path}: the first line mixes names and values such as {values[0]}: a header or a sample?")
    if "" in first:
        raise DataError(f"{path}: column {first.index('') + 1} has no name (an index column?); name or remove it")
    named = [i for i, cell in enumerate(first) if cell.lower() in LABEL_NAMES]
    if len(named) > 1:
        raise DataError(f"{path}: {len(named)} columns are named {' or '.join(LABEL_NAMES)}; keep one")
    column = named[0] if named else len(first) - 1
    why = "" if named else f" (the last one, as none is named {' or '.join(LABEL_NAMES)})"
    return column, f"the label is column {first[column]!r}{why}"


def _table(path: Path, body: list[str], first_line: int) -> NDArray[np.float64]:
    """The numbers (N, columns); quoted cells are allowed, comments are not."""
    if not any(line.strip() for line in body):
        raise DataError(f"{path}: no sample below the header")
    try:
        return np.loadtxt(io.StringIO("\n".join(body)), delimiter=",", comments=None, ndmin=2, quotechar='"')
    except ValueError:
        raise DataError(f"{path}{_broken_line(body, first_line)}") from None


def _broken_line(body: list[str], first_line: int) -> str:
    """Where and why the table is not rectangular and numeric."""
    width = 0
    for number, line in enumerate(body, first_line):
        cells = next(csv.reader([line]), [])
        if not line.strip():
            continue
        width = width or len(cells)
        if len(cells) != width:
            return f", line {number}: {len(cells)} columns, {width} before"
        for cell in cells:
            if not _is_number(cell):
                return f", line {number}: {cell[:40]!r} is not a number"
    return ": not a table of numbers"


def load_image_folder(path: Path, input_range: Range) -> Dataset:
    """One folder per class, classes numbered in sorted order (torchvision's ImageFolder), pixels / 255 in float32.

    Shape (1, H, W) if every image is grey, else (3, H, W). All images must have one size. Raises DataError.
    """
    try:
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not classes:
        raise DataError(f"{path}: no class folder inside; an image folder has one folder of images per class")
    files = [(file, label) for label, name in enumerate(classes) for file in _images_in(path / name)]
    empty = [name for name in classes if not _images_in(path / name)]
    if empty:
        raise DataError(f"{path}: no image in class folder {empty[0]!r} (known types: {', '.join(IMAGE_SUFFIXES)})")
    pictures = [_open_image(file) for file, _ in files]
    grey = all(mode in GREY_MODES for mode, _ in pictures)
    arrays = []
    for (file, _), (_, picture) in zip(files, pictures, strict=True):
        pixels = np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.uint8)
        arrays.append(pixels[None] if grey else np.moveaxis(pixels, -1, 0))
        if arrays[-1].shape != arrays[0].shape:
            raise DataError(
                f"{file}: size {arrays[-1].shape[1:]} differs from {arrays[0].shape[1:]} of {files[0][0]}; "
                "bring all images to one size (height, width)"
            )
    notes = [f"classes: {', '.join(f'{i} = {name}' for i, name in enumerate(classes))}"]
    if all(name.isdecimal() for name in classes) and [int(name) for name in classes] != list(range(len(classes))):
        notes.append("the folders' names are numbers, but not the classes': classes count the folders in sorted order")
    if any(mode == "RGBA" for mode, _ in pictures):
        notes.append("the transparency channel of RGBA images was dropped")
    x = np.stack(arrays).astype(np.float32) / np.float32(255)
    y = np.array([label for _, label in files], dtype=np.int64)
    return make_dataset(str(path), x, y, notes=notes, input_range=input_range)


def _images_in(folder: Path) -> list[Path]:
    """Image files below a class folder, in torchvision's order."""
    return [
        Path(root) / name
        for root, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]


def _open_image(file: Path) -> tuple[str, Any]:
    """(mode, picture) of one image, fully read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            picture = image.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from error
    if picture.mode not in GREY_MODES | COLOUR_MODES:
        raise DataError(f"{file}: colour mode {picture.mode} is not supported; convert it to 8-bit grey or RGB")
    return picture.mode, picture
