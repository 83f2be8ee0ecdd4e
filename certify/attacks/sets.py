"""Batches of input sets in torch: starts inside them, steps scaled to them, and the nearest point of them.

What comes out is inside up to float rounding only: replay rounds inward before it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certify.property import Box, InputSet, LpBall

BISECTIONS = 30  # of a projection's multiplier: 1e-9 of its range, below float32's rounding
TINY = 1e-30
# An L1 step moves a coordinate by at most a share of its width, drawn for each step log-uniformly from here to all of
# it. On WK17a (L1 eps 10, 1000 images, 20 steps) 60 % withstand it; 64 % where one step in three is not limited, 68 %
# where none is, 88 % where the largest 2 to 30 % of the coordinates move by equal amounts.
LEAST_MOVE = 0.02


@dataclass(frozen=True, eq=False)
class TorchSets:
    """B input sets: boxes [lower, upper], cut by balls |x - center|_p <= radius where p is 1 or 2 (0: no ball).

    lower, upper, center: (B, n), flat; of the *inner* sets. radius: (B,). For balls the box is already cut to
    [center - radius, center + radius]; for boxes the center is the middle.
    """

    lower: Tensor
    upper: Tensor
    center: Tensor
    radius: Tensor
    p: int = 0

    @staticmethod
    def of(sets: Sequence[InputSet], sample: Tensor) -> TorchSets:
        """Sets of one kind (all boxes, or all balls of one p) in the dtype and on the device of `sample`."""
        boxes = [s if isinstance(s, Box) else s.box for s in sets]
        lower = np.stack([b.inner_lower.ravel() for b in boxes])
        upper = np.stack([b.inner_upper.ravel() for b in boxes])
        # An interval between two neighbouring floats is turned around by rounding inward: its middle is meant.
        lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
        center, radius, p = 0.5 * lower + 0.5 * upper, np.zeros(len(sets)), 0
        balls = [s for s in sets if isinstance(s, LpBall)]
        if balls:
            assert [b.p for b in balls] == [balls[0].p] * len(sets), "one kind of set per batch"
            p, radius = balls[0].p, np.array([b.inner_eps for b in balls])
            center = np.clip(np.stack([b.center.ravel() for b in balls]), lower, upper)
            lower, upper = np.maximum(lower, center - radius[:, None]), np.minimum(upper, center + radius[:, None])
        low, high, middle, size = (torch.as_tensor(a).to(sample) for a in (lower, upper, center, radius))
        return TorchSets(low, high, middle, size, p)

    def __getitem__(self, rows: Tensor) -> TorchSets:
        return TorchSets(self.lower[rows], self.upper[rows], self.center[rows], self.radius[rows], self.p)

    def random(self, generator: torch.Generator) -> Tensor:
        """One random point per set: uniform in a box; in a ball a random direction, mostly near the surface."""
        if self.p == 0:
            share = torch.rand(self.lower.shape, generator=generator, dtype=self.lower.dtype, device=self.lower.device)
            return self.lower + share * (self.upper - self.lower)
        away = torch.randn(self.lower.shape, generator=generator, dtype=self.lower.dtype, device=self.lower.device)
        if self.p == 1:
            share = torch.rand(len(away), 1, generator=generator, dtype=away.dtype, device=away.device)
            away = away * (torch.rand(away.shape, generator=generator, dtype=away.dtype, device=away.device) <= share)
        length = torch.linalg.vector_norm(away, ord=self.p, dim=1, keepdim=True).clamp_min(TINY)
        size = torch.rand(len(away), 1, generator=generator, dtype=away.dtype, device=away.device)
        return self.project(self.center + away / length * size.sqrt() * self.radius[:, None])

    def corner(self, generator: torch.Generator) -> Tensor:
        """One random corner of each set's box, projected onto the set."""
        share = torch.rand(self.lower.shape, generator=generator, dtype=self.lower.dtype, device=self.lower.device)
        return self.project(torch.where(share < 0.5, self.lower, self.upper))

    def advance(self, x: Tensor, gradient: Tensor, size: float, generator: torch.Generator) -> Tensor:
        """x moved against the gradient by `size` widths of its set, then projected.

        The steepest step of the set's norm: signs times each coordinate's width (box), the normalised gradient (L2),
        the largest coordinates as far as the box has room (L1; Tramer & Boneh 2019 move the largest few).
        """
        if self.p == 0:
            return self.project(x - size * (self.upper - self.lower) * gradient.sign())
        step = 2 * size * self.radius[:, None]
        if self.p == 1:
            draw = torch.rand(len(x), 1, generator=generator, dtype=x.dtype, device=x.device)
            return self.project(self._filled(x, gradient, step, LEAST_MOVE**draw))
        length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        return self.project(x - step * gradient / length.clamp_min(TINY))

    def extreme(self, gradient: Tensor, generator: torch.Generator) -> Tensor:
        """The point of each set that lies farthest against the gradient (K, n); nearly so for a cut L2 ball."""
        if self.p == 1:
            return self.project(self._filled(self.center, gradient, self.radius[:, None], torch.ones_like(gradient)))
        return self.advance(self.center, gradient, 0.5, generator)

    def _filled(self, x: Tensor, gradient: Tensor, length: Tensor, share: Tensor) -> Tensor:
        """x moved against the gradient by L1 `length` (K, 1): the largest coordinates first, each as far as allowed.

        That is to the side of the box, but at most `share` of its width. With share 1 this minimises gradient . d over
        |d|_1 <= length inside the box.
        """
        room = torch.where(gradient > 0, x - self.lower, self.upper - x).clamp_min(0) * (gradient != 0)
        room = torch.minimum(room, (self.upper - self.lower) * share)
        order = gradient.abs().argsort(dim=1, descending=True)
        sorted_room = room.gather(1, order)
        left = length - (sorted_room.cumsum(dim=1) - sorted_room)
        move = torch.minimum(sorted_room, left.clamp_min(0))
        return x - gradient.sign() * torch.zeros_like(x).scatter(1, order, move)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of each set to x (K, n), up to rounding.

        min |z - v|^2 / 2 over |z|_p <= radius, l <= z <= u (around the centre, which is inside): for a multiplier
        m >= 0, p = 1: clip(sign(v) max(|v| - m, 0)), p = 2: clip(v / (1 + m)). The norm falls in m, so bisect.
        """
        clipped = torch.minimum(torch.maximum(x, self.lower), self.upper)
        if self.p == 0:
            return clipped
        away, limits = x - self.center, (self.lower - self.center, self.upper - self.center)
        radius = self.radius[:, None]
        far = torch.linalg.vector_norm(clipped - self.center, ord=self.p, dim=1, keepdim=True) > radius
        if not bool(far.any()):
            return clipped
        norm = torch.linalg.vector_norm(away, ord=self.p, dim=1, keepdim=True)
        low = torch.zeros_like(norm)
        high = norm / radius.clamp_min(TINY) if self.p == 2 else away.abs().amax(dim=1, keepdim=True)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            inside = torch.linalg.vector_norm(_shrunk(away, middle, self.p, limits), self.p, 1, True) <= radius
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        return torch.where(far, self.center + _shrunk(away, high, self.p, limits), clipped)


def _shrunk(away: Tensor, multiplier: Tensor, p: int, limits: tuple[Tensor, Tensor]) -> Tensor:
    """The minimiser for one multiplier per set, of which projections are made."""
    shorter = away / (1 + multiplier) if p == 2 else away.sign() * (away.abs() - multiplier).clamp_min(0)
    return torch.minimum(torch.maximum(shorter, limits[0]), limits[1])
