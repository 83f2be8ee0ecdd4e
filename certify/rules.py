"""The op base class, and the rule tables that say what an op means to each kind of computation.

Every op has `evaluate` and `interval`. An affine op states its mathematics by five more rules, from
which intervals, backward bounds and rounding errors all follow:

    linear(op, *xs)        the linear part, without bias; xs of shape (N, *input_shape)
    transpose(op, a, shapes)   its transpose: a of shape (N, *output_shape) -> one array per input
    bias(op)               the constant part, broadcastable to the output shape, or None
    absolute(op)           the same op with |weights| and |bias|
    terms(op, shapes)      the most products that are added up for one number, in either direction

A nonlinear op is elementwise and has `relax` (see certify.ops.base.Relaxation) instead. `cast` gives
an op with its constants in another library, dtype or device. The tables are filled by certify.ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from certify.arrays import Array

R = TypeVar("R")
Interval = tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class Op:
    """Base of all ops: frozen, constants as fields, no shapes (those belong to nodes)."""


class RuleTable(Generic[R]):
    """Maps the exact type of an op to a function; a second rule for one type raises."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._rules: dict[type, Callable[..., R]] = {}

    def register(self, *types: type) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Decorator: the function is the rule of each of `types`."""

        def add(function: Callable[..., R]) -> Callable[..., R]:
            for kind in types:
                if kind in self._rules:
                    raise ValueError(f"{self.name}: {kind.__name__} already has a rule")
                self._rules[kind] = function
            return function

        return add

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> R:
        try:
            rule = self._rules[type(op)]
        except KeyError:
            raise NotImplementedError(f"{self.name}: no rule for op {type(op).__name__}") from None
        return rule(op, *args, **kwargs)

    def __contains__(self, kind: type) -> bool:
        return kind in self._rules

    def covers(self, types: Iterable[type]) -> list[str]:
        """Names of the types without a rule, sorted; empty means complete."""
        return sorted(kind.__name__ for kind in types if kind not in self._rules)


evaluate: RuleTable[Array] = RuleTable("evaluate")
interval: RuleTable[Interval] = RuleTable("interval")
cast: RuleTable[Op] = RuleTable("cast")
linear: RuleTable[Array] = RuleTable("linear")
transpose: RuleTable[tuple[Array, ...]] = RuleTable("transpose")
bias: RuleTable[Array | None] = RuleTable("bias")
absolute: RuleTable[Op] = RuleTable("absolute")
terms: RuleTable[int] = RuleTable("terms")
relax: RuleTable[Any] = RuleTable("relax")


def is_affine(op: Op) -> bool:
    """Does the op state itself by `linear` and `transpose`?"""
    return type(op) in linear
