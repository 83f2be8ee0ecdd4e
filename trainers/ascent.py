"""Projected gradient ascent on a batch of points: the inner loop of adversarial training (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from certify.frontends.torch_export import evaluation
from certify.trainers.objective import Ball, lengths

if TYPE_CHECKING:
    import torch

Score = Callable[["torch.Tensor"], "torch.Tensor"]  # points (B, ...) -> scores, summed or (B,)


def gradient(score: Score, points: torch.Tensor) -> torch.Tensor:
    """d sum score / d points; parameters collect no gradient."""
    import torch

    points = points.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(score(points).sum(), points)
    return slope


def ascend(score: Score, x: torch.Tensor, start: torch.Tensor, ball: Ball, steps: int, step: float) -> torch.Tensor:
    """Points of the balls around x reached from `start` by steps of length `step` uphill: signs for Linf, unit L2."""
    points = start.detach()
    for _ in range(steps):
        slope = gradient(score, points)
        direction = slope.sign() if ball.norm == "linf" else slope / lengths(slope).clamp(min=1e-12)
        points = ball.project(points + step * direction, x)
    return points


def cross_entropies(module: torch.nn.Module, y: torch.Tensor) -> Score:
    """x -> -log softmax(module(x))_y, (B,), in x's precision behind the logits."""
    import torch

    return lambda x: torch.nn.functional.cross_entropy(module(x).to(x.dtype), y, reduction="none")


def wrongness(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """max over rivals of z_j - z_y, (B,): positive where misclassified; unlike cross-entropy it never saturates."""
    import torch

    label = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    own = logits[label]
    return logits.masked_fill(label, -torch.inf).amax(1) - own


def attacked(
    module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, ball: Ball, generator: torch.Generator, steps: int = 20
) -> torch.Tensor:
    """Which samples keep their class under PGD on the margin (steps of 2.5 epsilon / steps), (B,) booleans.

    In evaluation mode. A sample that survives is not proved robust: this is an upper bound of the accuracy.
    """
    with evaluation(module):
        points = ascend(
            lambda p: wrongness(module(p), y), x, ball.draw(x, generator), ball, steps, 2.5 * ball.epsilon / steps
        )
        safe: torch.Tensor = (module(x).argmax(1) == y) & (module(points).argmax(1) == y)
    return safe
