"""What an objective is: the loss of one batch; and what robust ones share: a ball, ramps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from certify.errors import UsageError
from certify.frontends.torch_export import evaluation

if TYPE_CHECKING:
    import torch

NORMS = ("linf", "l2")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples x (B, ...) with labels y (B,), and where the training stands.

    progress: from 0 to 1 over the training. generator: the batch's own randomness, on x's device. memory: what an
    objective keeps from batch to batch by name; checkpoints hold it. amp: the schedule's.
    """

    x: torch.Tensor
    y: torch.Tensor
    progress: float
    generator: torch.Generator
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    amp: bool = False

    def proposing(self) -> AbstractContextManager[None]:
        """With `amp` products in bfloat16: an attack only proposes points, losses and bounds are computed anew."""
        import torch

        mixed: AbstractContextManager[None] = torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.amp)
        return mixed

    @contextmanager
    def attacking(self, module: torch.nn.Module) -> Iterator[None]:
        """Evaluation mode, and as `proposing`."""
        with evaluation(module), self.proposing():
            yield


# (module, batch) -> scalar loss
Objective = Callable[["torch.nn.Module", Batch], "torch.Tensor"]


@dataclass(frozen=True)
class Ball:
    """{x' : |x' - x| <= epsilon, low <= x' <= high}, norm "linf" or "l2", in raw input units."""

    epsilon: float
    norm: str = "linf"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"norm {self.norm!r} is not known for training; choose one of {', '.join(NORMS)}")
        if not self.epsilon >= 0:
            raise UsageError(f"epsilon is {self.epsilon}; give a radius of 0 or more")

    def scaled(self, factor: float) -> Ball:
        """The ball of factor times the radius."""
        return replace(self, epsilon=self.epsilon * factor)

    def project(self, points: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The points pulled into the balls around x, both (B, ...)."""
        moved = points - x
        if self.norm == "linf":
            moved = moved.clamp(-self.epsilon, self.epsilon)
        else:
            moved = moved * (self.epsilon / lengths(moved).clamp(min=1e-12)).clamp(max=1.0)
        return (x + moved).clamp(self.low, self.high)

    def box(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(lower, upper) of the Linf ball within the input range; x +- epsilon is rounded to nearest."""
        return (x - self.epsilon).clamp(self.low, self.high), (x + self.epsilon).clamp(self.low, self.high)

    def draw(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random point of each ball: uniform for Linf; for L2 a uniform direction and a uniform length."""
        import torch

        if self.norm == "linf":
            noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) * 2 - 1
            return (x + self.epsilon * noise).clamp(self.low, self.high)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        share = torch.rand((len(x), *(1,) * (x.ndim - 1)), generator=generator, device=x.device, dtype=x.dtype)
        return (x + self.epsilon * share * noise / lengths(noise).clamp(min=1e-12)).clamp(self.low, self.high)


def lengths(x: torch.Tensor) -> torch.Tensor:
    """The L2 norm of each sample (B, ...), as (B, 1, ...)."""
    size: torch.Tensor = x.flatten(1).norm(dim=1)
    return size.reshape(-1, *(1,) * (x.ndim - 1))


def need_rising(ramp: tuple[float, float]) -> None:
    """Raises UsageError unless the ramp is two rising fractions of the training."""
    if not 0 <= ramp[0] < ramp[1] <= 1:
        raise UsageError(f"ramp {ramp}: give two rising fractions of the training")


def ramped(progress: float, ramp: tuple[float, float]) -> float:
    """0 before the ramp, 1 after it, linear between; ramp: two fractions of the training."""
    begin, end = ramp
    if progress >= end:
        return 1.0
    return max(0.0, (progress - begin) / (end - begin))
