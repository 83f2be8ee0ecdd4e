"""VNN-LIB files of either version -> Property, and the VNN-COMP text of a witness."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import PropertyError
from certify.frontends.vnn_spec1 import parse_version1
from certify.frontends.vnn_spec2 import parse_version2
from certify.property import Property

GZIP_MAGIC = b"\x1f\x8b"
BLANK = re.compile(r"(?:\s|;[^\n]*)*")
COMMAND = re.compile(r"\(\s*([^\s()]+)")
VERSION2_COMMANDS = ("vnnlib-version", "declare-network")


def load_property(path: str | os.PathLike[str], input_shape: tuple[int, ...], output_size: int) -> Property:
    """The property of a VNN-LIB file (version 1 or 2, plain or gzip) for one network.

    input_shape: the network's input without batch; X_i is its i-th entry in row-major order. output_size: number of
    outputs. Decimals are read exactly; `Box.lower/upper` and `Polytope.offset` enclose them, `inner_*` lie inside.
    Raises PropertyError, with file and line, for anything that cannot be read or is not supported.
    """
    return parse_property(_read_text(Path(path)), input_shape, output_size, name=str(path))


def parse_property(text: str, input_shape: tuple[int, ...], output_size: int, *, name: str = "<text>") -> Property:
    """As load_property, from a text."""
    # A comment ends with its line, also where lines end as on old systems.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    blank = BLANK.match(text)
    start = blank.end() if blank else 0
    if start == len(text):
        raise PropertyError(f"{name}: the file holds no VNN-LIB command")
    head = COMMAND.match(text, start)
    parse = parse_version2 if head is not None and head[1] in VERSION2_COMMANDS else parse_version1
    return replace(parse(text, tuple(input_shape), output_size, name), spec=text.encode())


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
        elif path.suffix == ".gz":
            raise PropertyError(f"{path}: named .gz but not gzip-compressed; decompress or rename it")
        return data.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise PropertyError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except UnicodeDecodeError as error:
        raise PropertyError(f"{path}: not a text file (byte {error.start}); is it a VNN-LIB file?") from error
    except OSError as error:
        raise PropertyError(f"{path}: cannot be read: {error.strerror or error}") from error


def format_witness(x: NDArray[np.generic], y: NDArray[np.generic]) -> str:
    """`((X_0 v)\\n (X_1 v) ... (Y_0 v))`, VNN-COMP's form of a counterexample; every v reads back to the same number.

    x, y: any shape, written flat in row-major order. Raises PropertyError if a value is not finite.
    """
    lines = []
    for kind, values in (("X", x), ("Y", y)):
        for index, value in enumerate(_floats(values)):
            if not math.isfinite(value):
                raise PropertyError(f"witness: {kind}_{index} is {value}; only finite numbers can be written")
            lines.append(f"({kind}_{index} {value!r})")
    return "(" + "\n ".join(lines) + ")"


def _floats(values: NDArray[Any]) -> list[float]:
    return [float(value) for value in np.ravel(values).astype(np.float64).tolist()]
