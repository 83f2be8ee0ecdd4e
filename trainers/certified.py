"""Certified training by bounds alone: IBP (Gowal et al. 2018; fast recipe: Shi et al. 2021) and CROWN-IBP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.trainers.bounds import (
    Live,
    crown_margins,
    fused_loss,
    interval_margins,
    intervals,
    live,
    steadiness,
    worst_loss,
)
from certify.trainers.objective import Ball, Batch, need_rising, ramped

if TYPE_CHECKING:
    import torch

    from certify.bounding.crown import Knowledge

# Radius of the regularisers while the ramp has not begun (Shi et al.'s code): at 0 there are no widths.
LEAST_EPSILON = 1e-6


@dataclass(frozen=True)
class Certified(ABC):
    """What the objectives of certified training share.

    epsilon: the final Linf radius in raw input units. low, high: the input range that cuts the ball. ramp: the
    fractions of the training between which the radius grows linearly from 0. kappa: the clean loss's share at both ends
    of the ramp. regularise: weight of Shi et al.'s regularisers, which falls to 0 with the ramp.
    """

    epsilon: float
    low: float = 0.0
    high: float = 1.0
    ramp: tuple[float, float] = (0.1, 0.6)
    kappa: tuple[float, float] = (1.0, 0.5)
    regularise: float = 0.0

    def __post_init__(self) -> None:
        need_rising(self.ramp)

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        grown = ramped(batch.progress, self.ramp)
        ball = Ball(self.epsilon * grown, "linf", self.low, self.high)
        points = self.points(module, batch, ball)
        now = live(module, batch.x)
        share = self.kappa[0] + (self.kappa[1] - self.kappa[0]) * grown
        clean = torch.nn.functional.cross_entropy(now.logits, batch.y)
        fading = self.regularise * (1 - grown)
        penalty = fading * steadiness(self._whole(now, batch, ball)) if fading > 0 else 0.0
        if grown == 0:
            return clean + penalty
        return share * clean + (1 - share) * self.robust(now, batch, ball, points) + penalty

    def points(self, module: torch.nn.Module, batch: Batch, ball: Ball) -> torch.Tensor:
        """What the robust loss starts from, found before the clean pass; the samples themselves, or attacked ones."""
        return batch.x

    @abstractmethod
    def robust(self, now: Live, batch: Batch, ball: Ball, points: torch.Tensor) -> torch.Tensor:
        """The loss over the ball at the radius of now."""

    def _whole(self, now: Live, batch: Batch, ball: Ball) -> Knowledge:
        wide = Ball(max(ball.epsilon, LEAST_EPSILON), "linf", self.low, self.high)
        return intervals(now.graph, *wide.box(batch.x))


@dataclass(frozen=True)
class Ibp(Certified):
    """kappa CE(f(x), y) + (1 - kappa) CE(-margins, y), margins by intervals (Gowal et al. 2018)."""

    def robust(self, now: Live, batch: Batch, ball: Ball, points: torch.Tensor) -> torch.Tensor:
        """The worst cross-entropy by intervals."""
        return worst_loss(interval_margins(intervals(now.graph, *ball.box(batch.x)), batch.y), batch.y)


@dataclass(frozen=True)
class CrownIbp(Certified):
    """As IBP, the margins (1 - b) of intervals and b of one CROWN pass, b from 1 to 0 (Zhang et al. 2020).

    crown: b at both ends of the ramp. fusion: the losses are mixed instead of the margins, CROWN's is bounded as one
    function (Xu et al. 2020), for one row of the pass instead of one for each class.
    """

    crown: tuple[float, float] = (1.0, 0.0)
    fusion: bool = False

    def robust(self, now: Live, batch: Batch, ball: Ball, points: torch.Tensor) -> torch.Tensor:
        """The worst cross-entropy by the mixed margins; both are bounds, and so is their mean."""
        known = intervals(now.graph, *ball.box(batch.x))
        share = self.crown[0] + (self.crown[1] - self.crown[0]) * ramped(batch.progress, self.ramp)
        bounded = interval_margins(known, batch.y)
        if share == 0:
            return worst_loss(bounded, batch.y)
        if self.fusion:
            return (1 - share) * worst_loss(bounded, batch.y) + share * fused_loss(known, batch.y)
        return worst_loss((1 - share) * bounded + share * crown_margins(known, batch.y), batch.y)
