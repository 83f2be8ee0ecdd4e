"""Training for randomized smoothing: Gaussian noise, SmoothAdv, MACER and TRADES with noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.trainers.ascent import ascend
from certify.trainers.objective import Ball, Batch
from certify.trainers.trades import divergence

if TYPE_CHECKING:
    import torch

SMALLEST = 1e-10  # added to a mean of softmaxes before its logarithm, as in MACER's code


def noisy(batch: Batch, sigma: float, copies: int = 1) -> torch.Tensor:
    """sigma N(0, I) for `copies` of each sample: (B copies, ...), the copies of one sample together."""
    import torch

    shape = (len(batch.x) * copies, *batch.x.shape[1:])
    return sigma * torch.randn(shape, generator=batch.generator, device=batch.x.device, dtype=batch.x.dtype)


@dataclass(frozen=True)
class GaussianNoise:
    """mean CE(f(x + sigma N(0, I)), y) (Cohen et al. 2019, section 3.3)."""

    sigma: float

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        return torch.nn.functional.cross_entropy(module(batch.x + noisy(batch, self.sigma)), batch.y)


@dataclass(frozen=True)
class SmoothAdv:
    """mean CE(f(x' + noise), y), x' an L2 attack on -log of the mean softmax over the same noise (Salman et al. 2019).

    samples: noise vectors for each x (the paper's m). Steps of 2 epsilon / steps from x, in evaluation mode.
    """

    sigma: float
    epsilon: float
    samples: int = 2
    steps: int = 2
    low: float = 0.0
    high: float = 1.0

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        m, y = self.samples, batch.y
        noise = noisy(batch, self.sigma, m)

        def smoothed(points: torch.Tensor) -> torch.Tensor:
            logits = module(points.repeat_interleave(m, 0) + noise).to(points.dtype)
            chances: torch.Tensor = logits.softmax(1).reshape(len(y), m, -1).mean(1)
            return -chances.gather(1, y[:, None]).clamp(min=SMALLEST).log()

        ball = Ball(self.epsilon, "l2", self.low, self.high)
        with batch.attacking(module):
            points = ascend(smoothed, batch.x, batch.x, ball, self.steps, 2 * self.epsilon / self.steps)
        logits = module(points.repeat_interleave(m, 0) + noise)
        return torch.nn.functional.cross_entropy(logits, y.repeat_interleave(m))


@dataclass(frozen=True)
class Macer:
    """-log p_y + weight sigma / 2 max(0, gamma - (Phi^-1(q_y) - Phi^-1(q_2))) for what is classified right.

    p: the mean softmax over the noise; q: that of logits times beta; q_2: its largest other entry (Zhai et al. 2020).
    As in the authors' code, a sample counts in the second term where the difference is finite and at most gamma.
    """

    sigma: float
    samples: int = 16
    weight: float = 12.0
    gamma: float = 8.0
    beta: float = 16.0

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        count, m = len(batch.x), self.samples
        points = batch.x.repeat_interleave(m, 0) + noisy(batch, self.sigma, m)
        logits = module(points).reshape(count, m, -1)
        soft = (logits.softmax(2).mean(1) + SMALLEST).log()
        loss = torch.nn.functional.nll_loss(soft, batch.y, reduction="sum")
        sharp = (self.beta * logits).softmax(2).mean(1)
        best = sharp.topk(2)
        first, second = best.values.unbind(1)
        gap = quantile(first.detach()) - quantile(second.detach())
        counts = (best.indices[:, 0] == batch.y) & gap.isfinite() & (gap.abs() <= self.gamma)
        missing = self.gamma - (quantile(first[counts]) - quantile(second[counts]))
        return (loss + self.weight * self.sigma / 2 * missing.sum()) / count


def quantile(p: torch.Tensor) -> torch.Tensor:
    """Phi^-1(p) of the standard normal distribution."""
    return math.sqrt(2) * (2 * p - 1).erfinv()


@dataclass(frozen=True)
class NoiseTrades:
    """CE(f(x), y) + beta KL(p(x) || p(x + sigma N(0, I))): TRADES whose attack is noise (Blum et al. 2020)."""

    sigma: float
    beta: float = 6.0

    def __call__(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        import torch

        clean = module(batch.x)
        moved = module(batch.x + noisy(batch, self.sigma))
        return torch.nn.functional.cross_entropy(clean, batch.y) + self.beta * divergence(clean, moved)
