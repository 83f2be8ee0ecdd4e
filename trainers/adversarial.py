"""Adversarial training: PGD (Madry et al. 2018), fast (Wong et al. 2020) and free (Shafahi et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.trainers.ascent import ascend, cross_entropies
from certify.trainers.objective import Ball, Batch, need_rising, ramped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PgdTraining:
    """mean CE(f(x'), y) at the end x' of PGD on the cross-entropy, from a random start (Madry et al. 2018).

    targeted: descend towards a random other class instead. ramp: the fractions of the training between which radius and
    steps grow linearly from 0; without it, a small network may stay at one class for a large radius. The attack runs in
    evaluation mode, the loss in training mode. The defaults of steps and step are the paper's for MNIST (epsilon 0.3).
    """

    epsilon: float
    norm: str = "linf"
    low: float = 0.0
    high: float = 1.0
    steps: int = 40
    step: float = 0.01
    targeted: bool = False
    ramp: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if any(self.ramp):
            need_rising(self.ramp)

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        grown = ramped(batch.progress, self.ramp)
        ball, step = Ball(self.epsilon * grown, self.norm, self.low, self.high), self.step * grown
        with batch.attacking(module):
            start = ball.draw(batch.x, batch.generator)
            if self.targeted:
                classes = module(batch.x[:1]).shape[1]
                target = other_classes(batch.y, classes, batch.generator)
                toward = cross_entropies(module, target)
                points = ascend(lambda p: -toward(p), batch.x, start, ball, self.steps, step)
            else:
                points = ascend(cross_entropies(module, batch.y), batch.x, start, ball, self.steps, step)
        return torch.nn.functional.cross_entropy(module(points), batch.y)


def other_classes(y: torch.Tensor, classes: int, generator: torch.Generator) -> torch.Tensor:
    """For each label (B,) another class, uniformly."""
    import torch

    shift = torch.randint(1, classes, y.shape, generator=generator, device=y.device)
    return (y + shift) % classes


@dataclass(frozen=True)
class FastTraining:
    """mean CE(f(x'), y) after one step of 1.25 epsilon from a random start (Wong et al. 2020).

    All in training mode, as the authors' code has it. Such training may collapse within one epoch ("catastrophic
    overfitting"): set the schedule's `drop`, which watches PGD's accuracy.
    """

    epsilon: float
    low: float = 0.0
    high: float = 1.0
    step_ratio: float = 1.25

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        ball = Ball(self.epsilon, "linf", self.low, self.high)
        start = ball.draw(batch.x, batch.generator)
        score = cross_entropies(module, batch.y)
        points = ascend(score, batch.x, start, ball, 1, self.step_ratio * self.epsilon)
        return torch.nn.functional.cross_entropy(module(points), batch.y)


@dataclass(frozen=True)
class FreeTraining:
    """mean CE(f(x + delta), y), whose one backward pass moves the weights and delta both (Shafahi et al. 2019).

    The schedule's `replays` is the paper's m: how often each batch is used. delta stays from batch to batch, cut so
    that x + delta lies in the input range; each step is of length epsilon.
    """

    epsilon: float
    low: float = 0.0
    high: float = 1.0

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        kept = batch.memory.get("delta")
        if kept is None:
            kept = torch.zeros_like(batch.x)
        count = len(batch.x)  # the last batch of an epoch may be smaller
        whole = kept if len(kept) >= count else torch.zeros_like(batch.x)
        # The gradient is taken at the cut point, so that pixels at the edge of the range move too.
        points = (batch.x + whole[:count]).clamp(self.low, self.high).requires_grad_()

        def move(slope: torch.Tensor) -> None:
            moved = whole.clone()
            moved[:count] = (points.detach() - batch.x + self.epsilon * slope.sign()).clamp(-self.epsilon, self.epsilon)
            batch.memory["delta"] = moved

        points.register_hook(move)  # type: ignore[no-untyped-call]
        return torch.nn.functional.cross_entropy(module(points), batch.y)
