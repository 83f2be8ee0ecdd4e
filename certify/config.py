"""Defaults of options in a file: `[tool.certify]` of pyproject.toml, or certify.toml, found from a folder upwards.

The nearest folder that has either holds for all below it. Every key is an option's long name without its dashes;
what is unknown, of another type or without meaning is refused by its name. Paths are relative to the file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certify.disk import disk
from certify.errors import UsageError

OWN = "certify.toml"
SHARED = "pyproject.toml"
TABLE = "tool.certify"

# A number stands for its text where an option takes text (eps = 0.03), a list for its parts with commas between.
KINDS = {"text": "text", "number": "a number", "whole number": "a whole number", "flag": "true or false"}


@dataclass(frozen=True)
class Key:
    """One key. kind: of KINDS. read: what the option makes of a value, raising UsageError.

    path: does it name a place, unless it is one of `words`?
    """

    kind: str
    read: Callable[[Any], Any]
    path: bool = False
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """What a file says: key -> value as the option takes it."""

    file: Path
    values: Mapping[str, Any]


def find_config(start: Path) -> Path | None:
    """The file that holds for `start`, the nearest above it; None without one. Raises UsageError, DiskError."""
    for folder in (start, *start.parents):
        own, shared = folder / OWN, folder / SHARED
        if own.is_file():
            if shared.is_file() and _table(shared) is not None:
                raise UsageError(f"{folder}: both {OWN} and [{TABLE}] in {SHARED}; keep one of them")
            return own
        if shared.is_file() and _table(shared) is not None:
            return shared
    return None


def read_config(file: Path, keys: Mapping[str, Key], *, here: Path) -> Config:
    """The values of a file, paths as seen from `here`. Raises UsageError, which names file and key."""
    table = _table(file)
    if table is None:
        raise UsageError(f"{file}: has no table [{TABLE}]")
    values = {}
    for name, value in table.items():
        if name not in keys:
            close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"valid are {', '.join(sorted(keys))}"
            raise UsageError(f"{file}: {name} is no key of certify; {hint}")
        key = keys[name]
        value = _of_kind(value, key.kind, f"{file}: {name}")
        try:
            place = key.path and value not in key.words
            values[name] = key.read(_placed(value, file.parent, here) if place else value)
        except UsageError as error:
            raise UsageError(f"{file}: {name}: {error}") from error
    return Config(file, values)


def _table(file: Path) -> dict[str, Any] | None:
    with disk(file, "make it readable, or give another file with --config"):
        content = file.read_bytes()
    try:
        whole = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: is no TOML file: {error}") from error
    if file.name != SHARED:
        return whole
    tools = whole.get("tool", {})
    found = tools.get("certify") if isinstance(tools, dict) else None
    if found is not None and not isinstance(found, dict):
        raise UsageError(f"{file}: {TABLE} is no table; write [{TABLE}] and the keys below it")
    return found


def _of_kind(value: Any, kind: str, what: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "flag" and isinstance(value, bool):
        return value
    if kind == "whole number" and number and isinstance(value, int):
        return value
    if kind == "number" and number:
        return value
    if kind == "text":
        parts = value if isinstance(value, list) and value else [value]
        if all(isinstance(p, str | int | float) and not isinstance(p, bool) for p in parts):
            return ",".join(map(str, parts))
    raise UsageError(f"{what} is {value!r}, it takes {KINDS[kind]}")


def _placed(path: str, folder: Path, here: Path) -> str:
    """`path`, written in a file of `folder`, as seen from `here`."""
    if folder == here or Path(path).is_absolute():
        return path
    whole = folder / path
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)
