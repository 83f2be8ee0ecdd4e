"""Losses on features: Max-Mahalanobis centres (Pang et al. 2018, 2020) and, to compare with, MM-LDA and center loss.

A network for them is Sequential(body, head): `body` ends in a linear layer of D features, `head` maps them to logits.
With centres of one length the nearest centre is the largest <mu_i, z>, so the head 2 M z is piecewise linear and a
difference of logits is a difference of squared distances: what is certified is the decision by distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.errors import UsageError
from certify.trainers.ascent import ascend, wrongness
from certify.trainers.objective import Ball, Batch, need_rising, ramped

if TYPE_CHECKING:
    import torch


def centres(classes: int, features: int, length: float = 10.0) -> torch.Tensor:
    """L points of the given length in R^D with <mu_i, mu_j> = -length^2 / (L - 1), D >= L - 1: (L, D), float64.

    The recursion of Pang et al. 2018 (alg. 1): no L points of that length lie further apart from each other.
    """
    import torch

    if classes < 2 or features < classes - 1:
        raise UsageError(f"{classes} centres need at least {max(classes - 1, 1)} features, not {features}")
    mu = torch.zeros(classes, features, dtype=torch.float64)
    mu[0, 0] = 1
    for k in range(1, classes):
        for j in range(k):
            mu[k, j] = -(1 / (classes - 1) + mu[k] @ mu[j]) / mu[j, j]
        if k < classes - 1:
            mu[k, k] = math.sqrt(max(0.0, 1 - float(mu[k] @ mu[k])))
    return length * mu


def with_centres(body: torch.nn.Module, mu: torch.Tensor) -> torch.nn.Module:
    """Sequential(body, z -> 2 M z), the centres fixed; mu (L, D), all of one length."""
    import torch

    head = torch.nn.Linear(mu.shape[1], mu.shape[0], bias=False)
    with torch.no_grad():
        head.weight.copy_(2 * mu)
    head.weight.requires_grad_(False)
    return torch.nn.Sequential(body, head)


def parts(module: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Linear]:
    """(body, head) of a network on features."""
    import torch

    if isinstance(module, torch.nn.Sequential) and len(module) == 2 and isinstance(module[1], torch.nn.Linear):
        return module[0], module[1]
    raise UsageError("this objective needs Sequential(body, Linear head), as certify.trainers.mahalanobis makes it")


@dataclass(frozen=True)
class Mmc:
    """mean |z - mu_y|^2 / 2, z the features (Pang et al. 2020); with epsilon > 0 at adversarial examples.

    The attack is PGD on the head's own margins, which are differences of squared distances and never saturate as a
    softmax of them does. length is C_MM. ramp: the fractions of the training between which the radius grows linearly
    from 0.
    """

    epsilon: float = 0.0
    low: float = 0.0
    high: float = 1.0
    steps: int = 10
    step: float = 0.25
    length: float = 10.0
    features: int = 256
    ramp: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if any(self.ramp):
            need_rising(self.ramp)

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        body, head = parts(module)
        points, epsilon = batch.x, self.epsilon * ramped(batch.progress, self.ramp)
        if epsilon > 0:
            ball = Ball(epsilon, "linf", self.low, self.high)
            with batch.attacking(module):
                start = ball.draw(points, batch.generator)
                score = lambda p: wrongness(module(p).to(p.dtype), batch.y)  # noqa: E731
                points = ascend(score, points, start, ball, self.steps, self.step * epsilon)
        apart = body(points) - head.weight[batch.y] / 2
        loss: torch.Tensor = apart.square().sum(1).mean() / 2
        return loss


@dataclass(frozen=True)
class MmLda:
    """mean cross-entropy of the softmax over -|z - mu_i|^2 / 2, i.e. of half the head's logits (Pang et al. 2018)."""

    length: float = 10.0
    features: int = 256

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        return torch.nn.functional.cross_entropy(module(batch.x) / 2, batch.y)


@dataclass(frozen=True)
class CenterLoss:
    """mean CE(head(z), y) + weight/2 mean |z - c_y|^2; the c move to their classes' features (Wen et al. 2016).

    rate: c_j -= rate sum_{y = j} (c_j - z) / (1 + n_j) after each batch.
    """

    weight: float = 0.1
    rate: float = 0.5
    features: int = 256

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        body, head = parts(module)
        z = body(batch.x)
        means = batch.memory.get("centres")
        if means is None:
            means = torch.zeros_like(head.weight)
        means = means.detach()
        near: torch.Tensor = (z - means[batch.y]).square().sum(1).mean() / 2
        if module.training:
            change = torch.zeros_like(means).index_add_(0, batch.y, means[batch.y] - z.detach())
            count = torch.bincount(batch.y, minlength=len(means)).to(z.dtype)
            batch.memory["centres"] = means - self.rate * change / (1 + count)[:, None]
        return self.weight * near + torch.nn.functional.cross_entropy(head(z), batch.y)


def expected_distance(apart: float) -> float:
    """E|apart/2 + N(0, 1)|: how far a sample of N(mu_i, I) lies from the border to N(mu_j, I), apart = |mu_i - mu_j|.

    sqrt(2/pi) exp(-apart^2/8) + apart/2 (1 - 2 Phi(-apart/2)) (Pang et al. 2018, theorem 1).
    """
    half = apart / 2
    return math.sqrt(2 / math.pi) * math.exp(-(half**2) / 2) + half * math.erf(half / math.sqrt(2))


def best_robustness(classes: int, length: float) -> float:
    """sqrt(L / (2 (L - 1))) length: half the least distance of L centres of that length is at most this.

    Pang et al. 2018, theorem 2; the Max-Mahalanobis centres attain it.
    """
    return length * math.sqrt(classes / (2 * (classes - 1)))
