"""VNN-LIB 2 as version 1: one network with one input and one output tensor, whose entries become X_i and Y_i.

`(vnnlib-version <2.0>)`, `(declare-network N (declare-input X float32 [1, 5]) (declare-output Y float32 [1, 2]))`, then
assertions over `X[0, 3]`, row-major, which may also use `==` and `!=`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from certify.check.errors import Rejected

BRACKETS = re.compile(r"\s*\[([^\[\]()]*)\]")
NAME = r"([A-Za-z_][A-Za-z0-9_]*)"
ENTRY = re.compile(NAME + r"(?:\[([0-9,]*)\])?", re.ASCII)
NUMBERS = re.compile(r"(?:[0-9]{1,9}(?:,[0-9]{1,9})*)?", re.ASCII)
MOST_ENTRIES = 10_000_000

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> X or Y, shape


def joined(text: str) -> str:
    """The text with every index written on to its name, without blanks: one word each."""
    return BRACKETS.sub(lambda found: "[" + "".join(found[1].split()) + "]", text)


def is_version2(commands: list[list[Any]]) -> bool:
    """Does the file begin as version 2 does?"""
    return bool(commands) and commands[0][:1] in (["vnnlib-version"], ["declare-network"])


def as_version1(commands: list[list[Any]]) -> list[list[Any]]:
    """The same property in version 1's commands; Rejected for what is not supported."""
    if commands[0][0] == "vnnlib-version":
        if "".join(map(str, commands[0][1:])) != "<2.0>":
            raise Rejected(f"spec: the version {str(commands[0][1:])[:40]} is not known")
        commands = commands[1:]
    match commands:
        case [["declare-network", str(), ["declare-input", *given], ["declare-output", *answer]], *rest]:
            tensors = {**_tensor("X", given), **_tensor("Y", answer)}
        case _:
            raise Rejected("spec: not one network with one input and one output")
    if len(tensors) != 2:
        raise Rejected("spec: its input and its output have the same name")
    if any(command[:1] != ["assert"] for command in rest):
        raise Rejected("spec: other commands than assertions after the network")
    declared: list[list[Any]] = []
    for kind, shape in tensors.values():
        declared += [["declare-const", f"{kind}_{i}", "Real"] for i in range(math.prod(shape))]
    return declared + [["assert", *(_renamed(part, tensors) for part in command[1:])] for command in rest]


def _tensor(kind: str, words: list[Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    match words:
        case [str() as name, str() as typed] if re.fullmatch(NAME, name, re.ASCII):
            entry = ENTRY.fullmatch(typed)
            if entry is not None and entry[2] is not None:
                shape = _numbers(entry[2])
                if 0 < math.prod(shape) <= MOST_ENTRIES:
                    return {name: (kind, shape)}
    raise Rejected(f"spec: the declaration {str(words)[:60]} is not known")


def _numbers(text: str) -> tuple[int, ...]:
    if NUMBERS.fullmatch(text) is None:
        raise Rejected(f"spec: [{text[:40]}] is no index or shape")
    return tuple(map(int, text.split(","))) if text else ()


def _renamed(part: Any, tensors: Tensors) -> Any:
    """An expression in version 1's variables and comparisons."""
    match part:
        case ["==", left, right]:
            return ["=", _renamed(left, tensors), _renamed(right, tensors)]
        case ["!=", left, right]:
            sides = [_renamed(left, tensors), _renamed(right, tensors)]
            return ["or", ["<", *sides], [">", *sides]]
        case list():
            return [item if k == 0 else _renamed(item, tensors) for k, item in enumerate(part)]
    entry = ENTRY.fullmatch(part)
    return part if entry is None else _variable(entry[1], _numbers(entry[2] or ""), tensors)


def _variable(name: str, index: tuple[int, ...], tensors: Tensors) -> str:
    if name not in tensors:
        raise Rejected(f"spec: {name} is not declared")
    kind, shape = tensors[name]
    if len(index) != len(shape) or any(i >= size for i, size in zip(index, shape, strict=True)):
        raise Rejected(f"spec: {name}[{','.join(map(str, index))}] is outside of its shape {list(shape)}")
    flat = 0
    for i, size in zip(index, shape, strict=True):
        flat = flat * size + i
    return f"{kind}_{flat}"
