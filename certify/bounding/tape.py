"""Steps of differentiable backward passes with gradients of their own: less memory, and fewer walks over it.

A step over all neurons with autograd reads and writes arrays of the coefficients' size some thirty times. Here it is
four times; what has a free slope, the unstable neurons, is a tenth of them and gathered.
"""

from __future__ import annotations

from typing import Any

import torch

from certify.arrays import inner, take_along
from certify.ops.base import Slopes
from certify.rules import Interval, Op, relax


def through_unstable(a: torch.Tensor, op: Op, box: Interval, choice: Slopes) -> tuple[torch.Tensor, torch.Tensor]:
    """A ReLU's step without rounding: a (B, S, n) -> (coefficients of its input, change of the constant (B, S)).

    box: (B, n) each. The neurons outside `choice.at` are stable: both their lines are the chord.
    """
    at = choice.at
    assert at is not None
    chord = relax(op, *(side.detach() for side in box), Slopes()).upper_slope
    lower, upper = (take_along(side, at)[:, None, :] for side in box)
    lines = relax(op, lower, upper, Slopes(choice.lower))
    slopes = lines.lower_slope, lines.upper_slope, lines.upper_intercept
    out: tuple[torch.Tensor, torch.Tensor] = _Unstable.apply(a, *slopes, chord[:, None, :], at)  # type: ignore[no-untyped-call]
    return out


class _Unstable(torch.autograd.Function):
    """out = chord a; at the gathered neurons, with v their a: low max(v, 0) + high min(v, 0), change = sum t min(v, 0).

    low (B, S, U), high and t (B, 1, U).
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        t: torch.Tensor,
        chord: torch.Tensor,
        at: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        place = at[:, None, :].expand(-1, a.shape[1], -1)
        v = a.gather(2, place)
        falling = v.clamp(max=0)
        rising = v - falling
        ctx.save_for_backward(falling, rising, low, high, t, chord, at)
        out = (a * chord).scatter_(2, place, rising * low + falling * high)
        return out, (falling * t).sum(dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g, change), (falling, rising, low, high, t, chord, at) = gradients, ctx.saved_tensors
        place, change = at[:, None, :].expand(-1, g.shape[1], -1), change[:, :, None]
        near = g.gather(2, place)
        inside = torch.where(falling < 0, near * high + change * t, near * low)
        before = (g * chord).scatter_(2, place, inside)
        to_high, to_t = (near * falling).sum(dim=1, keepdim=True), (change * falling).sum(dim=1, keepdim=True)
        return before, near * rising, to_high, to_t, None, None


def box_minimum(a: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """min a . x over boxes (B, n), without rounding terms: a (B, S, n) -> (B, S)."""
    out: torch.Tensor = _BoxMinimum.apply(a, lower, upper)  # type: ignore[no-untyped-call]
    return out


class _BoxMinimum(torch.autograd.Function):
    """The gradient of a minimum is where it is attained: one array instead of five."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, lower, upper)
        a, center, radius = a.detach(), (lower + upper) * 0.5, (upper - lower) * 0.5
        value: torch.Tensor = inner(a, center[:, None, :]) - inner(a.abs(), radius[:, None, :])
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        a, lower, upper = ctx.saved_tensors
        point = torch.where(a > 0, lower[:, None, :], upper[:, None, :])
        return point.mul_(gradients[0][:, :, None]), None, None
