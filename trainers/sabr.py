"""SABR (Mueller et al. 2023): intervals over a small box around an adversarial example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.trainers.ascent import ascend, cross_entropies
from certify.trainers.bounds import Live, interval_margins, intervals, worst_loss
from certify.trainers.certified import Certified
from certify.trainers.objective import Ball, Batch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Attacked(Certified):
    """Certified training that starts from adversarial examples: PGD in evaluation mode within `reach` times the ball.

    steps, step: of PGD; step is a multiple of the radius. reach: CTBench's attack range scale.
    """

    kappa: tuple[float, float] = (0.0, 0.0)
    steps: int = 8
    step: float = 0.5
    reach: float = 1.0

    def points(self, module: torch.nn.Module, batch: Batch, ball: Ball) -> torch.Tensor:
        """The ends of PGD on the cross-entropy from random starts."""
        wide = ball.scaled(self.reach)
        if wide.epsilon == 0:
            return batch.x
        with batch.attacking(module):
            start = wide.draw(batch.x, batch.generator)
            score = cross_entropies(module, batch.y)
            return ascend(score, batch.x, start, wide, self.steps, self.step * wide.epsilon)


@dataclass(frozen=True)
class Sabr(Attacked):
    """CE(-margins, y) by intervals over the box of radius small epsilon around x', |x' - x| <= (1 - small) epsilon.

    x' is the adversarial example pulled so far towards x that the small box lies within the whole one.
    """

    small: float = 0.4

    def robust(self, now: Live, batch: Batch, ball: Ball, points: torch.Tensor) -> torch.Tensor:
        """The worst cross-entropy by intervals over the small box."""
        center = ball.scaled(1 - self.small).project(points, batch.x)
        known = intervals(now.graph, *ball.scaled(self.small).box(center))
        return worst_loss(interval_margins(known, batch.y), batch.y)
