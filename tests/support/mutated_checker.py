"""The checker with mutants in it: a mutant is a module, what is there, and what it has instead."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

import certify

PREFIXES = ("certify.check", "check_laws", "check_cases")
Mutant = tuple[str, str, str]


@contextmanager
def mutated(*mutants: Mutant) -> Iterator[ModuleType]:
    """The laws, around a package in which the mutants are at work (importers last); afterwards all is as before."""
    kept = {name: module for name, module in sys.modules.items() if name.startswith(PREFIXES)}
    for name in kept:
        del sys.modules[name]
    before = getattr(certify, "check", None)
    try:
        for module in dict.fromkeys(mutant[0] for mutant in mutants):
            _load(module, [mutant[1:] for mutant in mutants if mutant[0] == module])
        yield importlib.import_module("check_laws")
    finally:
        for name in [n for n in sys.modules if n.startswith(PREFIXES)]:
            del sys.modules[name]
        sys.modules.update(kept)
        if before is not None:
            certify.check = before  # type: ignore[attr-defined]


def _load(module: str, changes: list[tuple[str, str]]) -> None:
    spec = importlib.util.find_spec(f"certify.check.{module}")
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    for old, new in changes:
        assert source.count(old) == 1, f"{module}: {old!r} stands there {source.count(old)} times"
        source = source.replace(old, new)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    exec(compile(source, spec.origin, "exec"), made.__dict__)


def broken(laws: ModuleType, word: str = "") -> str | None:
    """The first law that does not hold; those with the word in their names come first."""
    for law in sorted(laws.LAWS, key=lambda law: word not in law.__name__):
        try:
            with np.errstate(all="ignore"):
                law()
        except Exception:  # a mutant may also stumble
            return str(law.__name__)
    return None
