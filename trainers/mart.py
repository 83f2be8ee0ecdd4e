"""MART (Wang et al. 2020): adversarial training that weighs the KL by how unsure the network is of the clean sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.trainers.ascent import ascend, cross_entropies
from certify.trainers.objective import Ball, Batch
from certify.trainers.trades import START

if TYPE_CHECKING:
    import torch

ABOVE = 1.0001  # their code's 1 in log(1 - p), which keeps its argument positive


@dataclass(frozen=True)
class Mart:
    """mean of -log q_y - log(1 - max_{k != y} q_k) + beta KL(p || q) (1 - p_y), p = p(x), q = p(x').

    As the authors' code: x' is the end of PGD on the cross-entropy from x + 0.001 randn in evaluation mode; the loss is
    in training mode with gradients through p and q. The defaults are theirs for CIFAR-10.
    """

    epsilon: float
    low: float = 0.0
    high: float = 1.0
    steps: int = 10
    step: float = 0.007
    beta: float = 6.0

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        x, y = batch.x, batch.y
        ball = Ball(self.epsilon, "linf", self.low, self.high)
        noise = torch.randn(x.shape, generator=batch.generator, device=x.device, dtype=x.dtype)
        with batch.attacking(module):
            points = ascend(cross_entropies(module, y), x, x + START * noise, ball, self.steps, self.step)
        clean, moved = module(x).log_softmax(1), module(points).log_softmax(1)
        label = torch.nn.functional.one_hot(y, clean.shape[1]).bool()
        rival = moved.exp().masked_fill(label, 0).amax(1)
        apart = (clean.exp() * (clean - moved)).sum(1)
        loss: torch.Tensor = -moved[label] - (ABOVE - rival).log() + self.beta * apart * (1 - clean[label].exp())
        return loss.mean()
