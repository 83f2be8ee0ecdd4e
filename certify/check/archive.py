"""The arrays and the JSON of a certificate's file, and what its values may be: each in the type asked for, or Rejected.

Pickles, zip bombs, entries or keys that stand twice, and numbers that are not finite are refused here.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from certify.check.errors import Rejected, Unreadable

Array = NDArray[Any]
Kind = Literal["i", "f", "b", "s"]  # integers, floats, booleans, slopes (floats, or uint8 k meaning k / 255)
T = TypeVar("T")

LARGEST = 4 << 30  # bytes unpacked: a longer file is a bomb, or not of this world
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>|][a-z][0-9]+)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
ALLOWED = {"i": "iu", "f": "f", "b": "b", "s": "fu"}


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Archive:
    """The arrays of an .npz, each read when it is first asked for; pickles, bombs and doubles are refused."""

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            entries = self._zip.infolist()
        except Exception as error:  # whatever zipfile stumbles over
            raise Unreadable(f"not a certificate: no .npz archive ({error})") from error
        names = [e.filename for e in entries]
        if len(set(names)) != len(names) or any(not n.endswith(".npy") for n in names):
            raise Unreadable("not a certificate: entries of one name, or other than .npy")
        if sum(e.file_size for e in entries) > LARGEST:
            raise Unreadable(f"more than {LARGEST} bytes unpacked")
        self.unread = {n.removesuffix(".npy") for n in names}
        self._read: dict[str, Array] = {}

    def array(
        self, name: Any, place: str, kind: Kind, shape: tuple[int | None, ...] | None, *, raw: bool = False
    ) -> Any:
        """Entry `name` as int64, float64 or bool, finite, of a shape (None: any length, or any shape); raw: uint8."""
        if not isinstance(name, str):
            raise Rejected(f"{place}: {short(name)} is not the name of an entry")
        if name not in self._read:
            if name not in self.unread:
                raise Unreadable(f"{place}: the file has no entry {short(name)}")
            self.unread.discard(name)
            self._read[name] = self._load(name)
        found = self._read[name]
        if found.dtype.kind not in ALLOWED[kind] or (found.dtype.kind == "u" and kind == "s" and found.itemsize != 1):
            raise Rejected(f"{place}: numbers of type {found.dtype}")
        if shape is not None and (
            found.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, found.shape, strict=True))
        ):
            raise Rejected(f"{place}: shape {found.shape} instead of {str(shape).replace('None', 'any')}")
        if raw:
            return found
        if kind == "s" and found.dtype.kind == "u":
            return found / np.float64(255.0)
        found = found.astype({"i": np.int64, "b": np.bool_}.get(kind, np.float64))
        if kind in "fs" and not np.isfinite(found).all():
            raise Rejected(f"{place}: a number is not finite")
        return found

    def _load(self, name: str) -> Array:
        try:
            content = self._zip.read(name + ".npy")
            header = HEADER.match(content)
            if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
                raise ValueError("no .npy file as NumPy writes it")
            dtype, fortran = np.dtype(header[2].decode()), header[3] == b"True"
            shape = tuple(int(n) for n in header[4].split(b",") if n.strip())
            body = content[header.end() :]
            if dtype.kind not in "biuf" or dtype.itemsize > 8 or (dtype.kind, dtype.itemsize) in (("f", 2), ("u", 8)):
                raise ValueError(f"type {dtype}")
            if len(body) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{len(body)} bytes for shape {shape} of {dtype}")
            return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
        except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds
            raise Unreadable(f"entry {short(name)} is damaged: {short(str(error))}") from error


def parse(text: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"header: not JSON ({short(str(error))})") from error


def fields(value: Any, place: str, *needed: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The object with exactly these keys; what is optional is None where it is left out."""
    if not isinstance(value, dict):
        raise Rejected(f"{place}: {short(value)} is not an object")
    if missing := [k for k in needed if k not in value]:
        raise Rejected(f"{place}: {missing[0]!r} is missing")
    if unknown := [k for k in value if k not in needed and k not in optional]:
        raise Rejected(f"{place}: {short(unknown[0])} is not known")
    return {**dict.fromkeys(optional), **value}


def named(value: Any, place: str) -> dict[str, Any]:
    """An object, whatever its keys are."""
    if not isinstance(value, dict):
        raise Rejected(f"{place}: {short(value)} is not an object")
    return value


def a_list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise Rejected(f"{place}: {short(value)} is not a list")
    return value


def integer(value: Any, place: str, low: int, end: int | None = None) -> int:
    """An integer of low, ..., end - 1."""
    if type(value) is not int or value < low or (end is not None and value >= end):
        raise Rejected(f"{place}: {short(value)} is not an integer in [{low}, {'...' if end is None else end - 1}]")
    return value


def number(value: Any, place: str) -> float:
    if type(value) not in (int, float) or abs(value) > 1e300 or float(value) != value:
        raise Rejected(f"{place}: {short(value)} is not a float64 number")
    return float(value)


def choice(value: Any, place: str, choices: tuple[T, ...]) -> T:
    for choice in choices:
        if value is choice or (isinstance(value, str) and value == choice):
            return choice
    raise Rejected(f"{place}: {short(value)} is none of {choices}")


def sha256_of(value: Any, place: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise Rejected(f"{place}: {short(value)} is not a SHA-256 in lower-case hexadecimal digits")
    return value


def unit_name(name: str, count: int, place: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", name) or int(name) >= count:
        raise Rejected(f"{place}: {short(name)} is not a unit")
    return int(name)
