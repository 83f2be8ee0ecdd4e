"""One training loop for every objective: seeded batches, Adam, step-wise decay of the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.errors import UsageError

if TYPE_CHECKING:
    import torch

# (module, x, y, progress) -> scalar loss; progress runs from 0 to 1 over the training.
Objective = Callable[["torch.nn.Module", "torch.Tensor", "torch.Tensor", float], "torch.Tensor"]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    decay_at: fractions of the training at which the learning rate is divided by ten. clip: the largest norm of a
    gradient; bounds' gradients have rare large ones.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    decay_at: tuple[float, ...] = (0.7, 0.9)
    clip: float = 10.0

    def rate(self, progress: float) -> float:
        """The learning rate at a fraction of the training."""
        return self.learning_rate * 0.1 ** sum(progress >= point for point in self.decay_at)


def train(
    module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, objective: Objective, schedule: Schedule, *, seed: int
) -> None:
    """Minimise the objective over samples x (N, ...) and labels y (N,), in place; the module ends in evaluation mode.

    seed: of the order of the samples; the module's initialisation is the caller's. Raises UsageError on a loss
    that is not finite: the module is then of no use.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=schedule.learning_rate)
    batches = -(-len(x) // schedule.batch_size)
    module.train()
    for epoch in range(schedule.epochs):
        order = torch.randperm(len(x), generator=generator)
        for number, rows in enumerate(torch.split(order, schedule.batch_size)):
            progress = (epoch + number / batches) / schedule.epochs
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(progress)
            optimizer.zero_grad(set_to_none=True)
            loss = objective(module, x[rows], y[rows], progress)
            if not bool(torch.isfinite(loss)):
                raise UsageError(f"training diverged in epoch {epoch + 1}: the loss is {loss.item()}; lower the rate")
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), schedule.clip)
            optimizer.step()
    module.eval()


def accuracy(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Fraction of samples x (N, ...) whose largest logit is the label's."""
    import torch

    with torch.no_grad():
        return float((module(x).argmax(dim=1) == y).double().mean())
