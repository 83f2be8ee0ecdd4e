"""How aten ops are lowered: the table of rules, and what a rule gets to work with.

A rule gets the Lowering (builder, output shape), then the op's arguments with the names and defaults of torch's own
schema. A `Ref` stands for a value that depends on the network's input; tensors are constants, with their gradients.
torch numbers axes with the batch, the Builder without; axis 0 is the batch and no rule mixes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certify.arrays import is_torch
from certify.errors import ModelError
from certify.frontends.lower import Builder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ref:
    """The value of a Builder node."""

    index: int


@dataclass(frozen=True)
class Lowering:
    """What a rule works with: the builder, the op's output shape with batch (None: several outputs), the batch size."""

    build: Builder
    shape: tuple[int, ...] | None
    batch: int

    def rank(self, x: Ref) -> int:
        """Number of axes of x, with batch."""
        return len(self.build.shape(x.index)) + 1

    def axis(self, x: Ref, dim: int) -> int:
        """torch's axis as the Builder numbers it; the batch axis is refused."""
        axis = dim % self.rank(x)
        if axis == 0:
            raise self.refuse("acts on the batch axis")
        return axis - 1

    def refuse(self, why: str) -> ModelError:
        return ModelError(f"node {self.build.name}: {why}; samples must be independent and every op supported")

    def constant(self, value: Any, rank: int) -> Any:
        """A tensor or number that meets values of `rank` axes (with batch), without its batch axis."""
        if not is_torch(value):
            return float(value)
        if value.ndim > rank or (value.ndim == rank and value.shape[0] != 1):
            raise self.refuse(f"a constant of shape {tuple(value.shape)} reaches into the batch axis")
        return self.floating(value[0] if value.ndim == rank else value)

    def floating(self, value: torch.Tensor) -> torch.Tensor:
        """Integer and boolean constants in the network's dtype."""
        sample = self.build.sample
        assert sample is not None
        return value if value.is_floating_point() else value.to(sample.dtype)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the function lowers the aten ops of these names; a duplicate raises."""

    def add(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"aten.{name} already has a rule")
            RULES[name] = function
        return function

    return add


def per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """torch's `2` or `[2]` for `[2, 2]`."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def row_major(lo: Lowering, x: Ref) -> Ref:
    """The same numbers in row-major order under the output's shape; the leading axis must stay the batch."""
    if lo.shape is None or not lo.shape or lo.shape[0] != lo.batch:
        raise lo.refuse("reshapes across the batch axis; write x.flatten(1) or x.view(x.shape[0], ...)")
    return Ref(lo.build.reshape(x.index, lo.shape[1:]))
