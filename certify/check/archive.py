"""The arrays and the JSON of a certificate's file: each value as it is asked for, or Rejected with its place.

Pickles, zip bombs, entries or keys that stand twice, and numbers that are not finite are refused here.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from certify.check.content import Rule
from certify.check.errors import Rejected, Unreadable

Array = NDArray[Any]
T = TypeVar("T")

LARGEST = 4 << 30  # bytes unpacked: a longer file is a bomb, or not of this world
UNKNOWN_FLAGS = 0x61  # of a zip entry: encrypted, patched, strongly encrypted
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>|][a-z][0-9]+)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
ALLOWED = {"i": "iu", "f": "f", "b": "b", "u": "u", "s": "fu"}
AS_READ = {"i": np.int64, "f": np.float64, "b": np.bool_, "u": np.uint8, "s": np.float64}


Sizes = dict[str, int]  # lengths by name; a letter that is not there yet gets the length of the first array that has it


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Archive:
    """The arrays of an .npz, each read when it is first asked for; pickles, bombs and doubles are refused."""

    def __init__(self, data: bytes) -> None:
        try:
            entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
        except Exception as error:  # whatever zipfile stumbles over
            raise Unreadable(f"not a certificate: no .npz archive ({error})") from error
        names = [e.filename for e in entries]
        if len(set(names)) != len(names) or any(not n.endswith(".npy") for n in names):
            raise Unreadable("not a certificate: entries of one name, or other than .npy")
        if sum(e.file_size for e in entries) > LARGEST:
            raise Unreadable(f"more than {LARGEST} bytes unpacked")
        self._data = data
        self._entries = {e.filename.removesuffix(".npy"): e for e in entries}
        self.unread = set(self._entries)
        self._read: dict[str, Array] = {}

    def entry(self, name: str, place: str) -> Array:
        if name not in self._read:
            if name not in self.unread:
                raise Unreadable(f"{place}: the file has no entry {short(name)}")
            self.unread.discard(name)
            self._read[name] = self._load(name)
        return self._read[name]

    def _load(self, name: str) -> Array:
        try:
            content = _unpacked(self._data, self._entries[name])
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


def _unpacked(data: bytes, entry: zipfile.ZipInfo) -> bytes:
    """An entry's bytes, stored or deflated: as ZipFile.read, which takes six times as long."""
    start = entry.header_offset
    if start < 0 or data[start : start + 4] != b"PK\x03\x04" or entry.flag_bits & UNKNOWN_FLAGS:
        raise ValueError("no entry begins there, or one that is encrypted or patched")
    named, extra = struct.unpack_from("<HH", data, start + 26)
    begin = start + 30 + named + extra
    packed = data[begin : begin + entry.compress_size]
    if data[start + 30 : start + 30 + named] != entry.orig_filename.encode() or len(packed) != entry.compress_size:
        raise ValueError("another name, or fewer bytes, than the directory states")
    found = packed
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        stream = zlib.decompressobj(-15)
        found = stream.decompress(packed, entry.file_size + 1)
        if not stream.eof or stream.unused_data:
            raise ValueError("a stream that ends too late or too early")
    elif entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("neither stored nor deflated")
    if len(found) != entry.file_size or zlib.crc32(found) != entry.CRC:
        raise ValueError("another length, or another check sum, than it states")
    return found


class Item(NamedTuple):
    """A value of the header, and the place where it stands. Every method gives what is asked for, or Rejected."""

    value: Any
    place: str
    file: Archive

    def wrong(self, what: str) -> Rejected:
        return Rejected(f"{self.place}: {short(self.value)} is {what}")

    @property
    def stated(self) -> bool:
        return self.value is not None

    def named(self) -> dict[str, Item]:
        """An object, whatever its keys are."""
        if not isinstance(self.value, dict):
            raise self.wrong("not an object")
        path = "" if self.place == "header" else f"{self.place}."
        return {name: Item(value, f"{path}{name}", self.file) for name, value in self.value.items()}

    def kind(self, name: str, *choices: str) -> str:
        """What an object says under `name`: of which kind it is."""
        stated = self.value.get(name) if isinstance(self.value, dict) else None
        return Item(stated, f"{self.place}.{name}", self.file).choice(*choices)

    def fields(self, *needed: str, optional: tuple[str, ...] = ()) -> dict[str, Item]:
        """An object with exactly these keys; what is optional is null where it is left out."""
        found = self.named()
        if missing := [k for k in needed if k not in found]:
            raise Rejected(f"{self.place}: {missing[0]!r} is missing")
        if unknown := [k for k in found if k not in needed and k not in optional]:
            raise Rejected(f"{self.place}: {short(unknown[0])} is not known")
        return {**{k: Item(None, f"{self.place}.{k}", self.file) for k in optional}, **found}

    def items(self) -> list[Item]:
        """Of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("not a list")
        return [Item(value, f"{self.place}[{i}]", self.file) for i, value in enumerate(self.value)]

    def integer(self, low: int, end: int | None = None) -> int:
        """An integer of low, ..., end - 1."""
        if type(self.value) is not int or self.value < low or (end is not None and self.value >= end):
            raise self.wrong(f"not an integer in [{low}, {'...' if end is None else end - 1}]")
        return self.value

    def number(self) -> float:
        if type(self.value) not in (int, float) or abs(self.value) > 1e300 or float(self.value) != self.value:
            raise self.wrong("not a float64 number")
        return float(self.value)

    def choice(self, *choices: T) -> T:
        for choice in choices:
            if self.value is choice or (isinstance(self.value, str) and self.value == choice):
                return choice
        raise self.wrong(f"none of {choices}")

    def text(self, pattern: str, what: str) -> str:
        """A text of a pattern."""
        if not isinstance(self.value, str) or not re.fullmatch(pattern, self.value, re.ASCII):
            raise self.wrong(f"not {what}")
        return self.value

    def array(self, rule: Rule, sizes: Sizes | None = None) -> Any:
        """The entry of this name, as int64, float64, bool or (u) uint8, finite and by the rule."""
        place, kind, sizes = self.place, rule.kind, {} if sizes is None else sizes
        if not isinstance(self.value, str):
            raise self.wrong("not the name of an entry")
        found = self.file.entry(self.value, place)
        in_bytes = found.dtype == np.uint8
        if found.dtype.kind not in ALLOWED[kind] or (kind in "us" and found.dtype.kind == "u" and not in_bytes):
            raise Rejected(f"{place}: numbers of type {found.dtype}")
        if rule.shape is not None:
            wanted = [sizes.get(letter) for letter in rule.shape]
            if found.ndim != len(wanted) or any(n not in (None, m) for n, m in zip(wanted, found.shape, strict=True)):
                text = ", ".join("any" if n is None else str(n) for n in wanted)
                raise Rejected(f"{place}: shape {found.shape} instead of ({text})")
            sizes.update(zip(rule.shape, found.shape, strict=True))
        if kind in "us" and in_bytes:
            return found if kind == "u" else found / np.float64(255.0)
        found = found.astype(AS_READ[kind])
        if kind in "fs" and not np.isfinite(found).all():
            raise Rejected(f"{place}: a number is not finite")
        high = sizes[rule.high] - 1 if isinstance(rule.high, str) else rule.high
        bounded = rule.low > -math.inf or high < math.inf
        if bounded and found.size and (found.min() < rule.low or found.max() > high):
            raise Rejected(f"{place}: a number outside of [{rule.low}, {high}]")
        return found


def parsed(text: bytes) -> Any:
    """The JSON of the header, in which no key stands twice."""

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
