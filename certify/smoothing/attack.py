"""PGD on the smoothed classifier: descends -log E softmax under noise (Salman et al. 2019), PREDICT judges.

The network's probabilities are averaged over draws before the logarithm, as the smoothed classifier averages them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from certify.property import Float64
from certify.smoothing.certify import predict
from certify.smoothing.noise import ATTACK, REPLAY, Blocks, Noise
from certify.smoothing.radii import ABSTAIN, Smoothing
from certify.smoothing.votes import DrawnVotes, Network

if TYPE_CHECKING:
    import torch

    from certify.graph import Graph

STEPS, DRAWS = 20, 32
# Draws of PREDICT on the candidate, at most.
REPLAYED = 10_000
# Draws that first show whether the candidate is worth PREDICT.
LOOKED_AT = 100
# A sample so close to its grid point, as a part of eps, counts as that point: 8-bit images as float32 are within 1e-6.
NEAR = 1e-3
# Relative: 2/255 is two steps of 1/255 whatever float64 makes of it.
WITHIN = 1e-6
# Lengths tried when a way is rounded to whole steps.
PARTS = 200


@dataclass(frozen=True, eq=False)
class Attack:
    """How to attack. graph: the network for torch, in float32, on its device. draws, alpha: of PREDICT."""

    graph: Graph
    network: Network
    smoothing: Smoothing
    blocks: Blocks
    draws: int
    alpha: float
    input_range: tuple[float, float]
    device: str

    def falsifies(self, places: Float64, away: float, sample: int, label: int, ball: tuple[Fraction, str]) -> bool:
        """Is there a grid point in the ball (eps, norm) around `places` that PREDICT gives another class?

        Wrongly so with probability alpha at most. away: of the sample from `places`.
        """
        eps, norm = float(ball[0]), ball[1]
        if away > NEAR * eps:
            eps -= away
        steps = eps / self.smoothing.grid.step
        if steps < 1 - WITHIN:
            return False
        found = self._round(self._descend(places.ravel(), sample, label, steps, norm), steps, norm)
        moved = (places.ravel() + found).astype(np.float32)
        votes = DrawnVotes(self.network, self.smoothing, self.blocks, moved, sample)
        if int(np.argmax(votes(ATTACK, 0, LOOKED_AT))) == label:
            return False
        answer = predict(votes, min(self.draws, REPLAYED), self.alpha, REPLAY)
        return answer not in (label, ABSTAIN)

    def _descend(self, places: Float64, sample: int, label: int, steps: float, norm: str) -> Float64:
        """A perturbation in grid steps, of size `steps` in the norm, that keeps inside the input range."""
        import torch

        grid, (low, high) = self.smoothing.grid, self.input_range
        draws = Noise(self.blocks, sample, ATTACK).draws(LOOKED_AT, LOOKED_AT + STEPS * DRAWS)
        center = torch.from_numpy(places).to(self.device, torch.float32)
        floor, ceiling = (low - grid.low) / grid.step, (high - grid.low) / grid.step
        moved = torch.zeros_like(center)
        for step in range(STEPS):
            here = torch.from_numpy(draws[step * DRAWS : (step + 1) * DRAWS]).to(self.device)
            gradient = self._gradient(center + moved, here, label)
            size = steps * max(0.1, 1 - step / STEPS) / 2
            moved = _into_ball(moved + size * _direction(gradient, norm), steps, norm)
            moved = (center + moved).clamp(floor, ceiling) - center
        found: Float64 = moved.double().cpu().numpy()
        return found

    def _gradient(self, places: torch.Tensor, draws: torch.Tensor, label: int) -> torch.Tensor:
        import torch

        places = places.detach().requires_grad_()
        grid = self.smoothing.grid
        inputs = grid.low + grid.step * (places + draws)
        outputs = self.graph(inputs.reshape(len(inputs), *self.graph.input_shape)).reshape(len(inputs), -1)
        mean = torch.logsumexp(torch.log_softmax(outputs, dim=1)[:, label], dim=0)
        (gradient,) = torch.autograd.grad(-mean, places)
        return gradient

    def _round(self, moved: Float64, steps: float, norm: str) -> Float64:
        """Whole steps inside the ball: the nearest ones of the longest part of the way that has such."""
        if norm == "linf":
            whole = math.floor(steps * (1 + WITHIN))
            return np.clip(np.rint(moved), -whole, whole)
        order = 2 if norm == "l2" else 1
        ways = (np.rint(moved * part) for part in np.linspace(1, 0, PARTS + 1))
        return next(way for way in ways if np.linalg.norm(way, order) <= steps * (1 + WITHIN))


def _direction(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    """Where a step of size 1 in the norm gains most (L1: shared by the coordinates that gain at least half as much)."""
    size = gradient.abs()
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        gradient = gradient.sign() * (size >= size.max() / 2)
        return gradient / gradient.abs().sum().clamp_min(1)
    return gradient / size.square().sum().sqrt().clamp_min(1e-30)


def _into_ball(moved: torch.Tensor, steps: float, norm: str) -> torch.Tensor:
    """Inside the ball, by scaling for L2 and L1."""
    if norm == "linf":
        return moved.clamp(-steps, steps)
    size = moved.abs().sum() if norm == "l1" else moved.square().sum().sqrt()
    return moved * (steps / size).clamp(max=1.0)
