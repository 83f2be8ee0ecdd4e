"""TRADES (Zhang et al. 2019): cross-entropy on clean samples, and how far the output moves within the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.trainers.ascent import ascend
from certify.trainers.objective import Ball, Batch

if TYPE_CHECKING:
    import torch

START = 0.001  # standard deviation of the inner loop's start: at x itself the KL has no slope


def divergence(logits: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """mean over the batch of KL(softmax(logits) || softmax(moved)), both (B, C); gradients flow to both."""
    import torch

    return torch.nn.functional.kl_div(moved.log_softmax(1), logits.softmax(1), reduction="batchmean")


@dataclass(frozen=True)
class Trades:
    """CE(f(x), y) + beta KL(p(x) || p(x')), x' maximising the KL (Zhang et al. 2019).

    As the authors' code: the inner loop starts at x + 0.001 randn and runs in evaluation mode with p(x) held fixed, the
    outer loss in training mode with p(x) not held. The defaults are those of their MNIST networks; CIFAR-10: epsilon
    0.031, step 0.007, 10 steps, beta 6. For L2 their step is 2 epsilon / steps.
    """

    epsilon: float
    norm: str = "linf"
    low: float = 0.0
    high: float = 1.0
    steps: int = 40
    step: float = 0.01
    beta: float = 1.0

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        points = self.worst(module, batch)
        clean = module(batch.x)
        natural = torch.nn.functional.cross_entropy(clean, batch.y)
        return natural + self.beta * divergence(clean, module(points))

    def worst(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The x' of the inner loop, (B, ...)."""
        import torch

        x = batch.x
        ball = Ball(self.epsilon, self.norm, self.low, self.high)
        noise = torch.randn(x.shape, generator=batch.generator, device=x.device, dtype=x.dtype)
        with batch.attacking(module):
            with torch.no_grad():
                clean = module(x).to(x.dtype)
            # The sum, not the mean, gives a step the same direction: it is a sign, or normalised sample by sample.
            return ascend(
                lambda p: divergence(clean, module(p).to(p.dtype)), x, x + START * noise, ball, self.steps, self.step
            )
