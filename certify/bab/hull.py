"""Planes over the input above ReLUs: relu(z) <= s x + c on the whole input box, tighter than the triangle's upper line.

The triangle forgets which inputs make z. The hull of one ReLU over a box has a facet for every subset of the inputs
(Anderson et al. 2020); all of them, and more, are of one form: for any s whatever,

    relu(z) <= s x + c,   c = max(max over the box of -s x, max over the box of (z - s x)),

because relu(z) is 0 or z. So s is free, c is two minima of linear functions, and a linear upper bound w x + b of z does
in place of z. Here s_i = share_i w_i, shares in [0, 1]; where all are the same it is the triangle's line. A bound takes
planes with any multipliers e >= 0: e (s x + c - relu(z)) >= 0 is taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.arrays import UNDERFLOW, UNIT_ROUNDOFF
from certify.bounding.crown import Form, Knowledge, plane, unit_form
from certify.bounding.region import Region, minimum
from certify.ops.base import gamma, magnitude

CHUNK = 256  # neurons of one pass for their upper bounds
LEVELS = 255  # shares are kept as multiples of 1 / 255
MOMENTUM = 0.7
TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Frame:
    """What the planes of a ReLU node's U free neurons have in common.

    above: z <= coeff x + constant in real arithmetic, (U, n_0) and (U,), float64. In the search's dtype: weight (U,
    n_0), the coefficients; top, range (U,), z's largest value over the box and the width of its range; middle, width
    (n_0,), of the box.
    """

    above: tuple[Tensor, Tensor]
    region: Region
    weight: Tensor
    top: Tensor
    range: Tensor
    middle: Tensor
    width: Tensor

    @staticmethod
    def of(known: Knowledge, start: int, neurons: Tensor, dtype: torch.dtype) -> Frame:
        """The frame of a node's neurons, over one set."""
        coeff, constant = upper_planes(known, start, neurons)
        weight, region = coeff.to(dtype), known.region
        middle, width = 0.5 * (region.lower + region.upper)[0].to(dtype), (region.upper - region.lower)[0].to(dtype)
        reach = weight.abs() @ width
        return Frame(
            (coeff, constant),
            region,
            weight,
            weight @ middle + constant.to(dtype) + 0.5 * reach,
            reach.clamp(min=TINY),
            middle,
            width,
        )

    def triangles(self) -> Tensor:
        """(U, n_0) uint8: the shares that make the triangles' upper lines."""
        share = (self.top / self.range).clamp(0, 1)
        return (share * LEVELS).round().to(torch.uint8)[:, None].expand_as(self.weight)


def upper_planes(known: Knowledge, start: int, neurons: Tensor) -> tuple[Tensor, Tensor]:
    """z <= coeff x + constant over one set, in real arithmetic: coeff (U, n_0), constant (U,), float64."""
    parts = []
    for first in range(0, len(neurons), CHUNK):
        found = plane(known, unit_form(known, start, neurons[None, first : first + CHUNK], -1))
        parts.append((-found.coeff[0], -found.constant[0]))
    coeff, constant = zip(*parts, strict=True)
    return torch.cat(coeff), torch.cat(constant)


class Planes:
    """Planes above J neurons of a frame, which move: rows (J,) their places, coeff (J, n_0), constant (J,)."""

    def __init__(self, frame: Frame, rows: Tensor, levels: Tensor) -> None:
        self.frame, self.rows = frame, rows
        self._weight = frame.weight[rows]
        self._size = self._weight.abs()
        self._part = self._size * (1 / LEVELS) * levels
        self._top, self._range = frame.top[rows, None], frame.range[rows, None]
        self._ends, self._mean = torch.zeros_like(frame.middle), torch.zeros_like(self._top)
        self.best = self._part
        self._set()

    def _set(self) -> None:
        """coeff = share * weight, and the smallest constant that makes it a plane above."""
        self.coeff = torch.copysign(self._part, self._weight)
        height = self._part @ self.frame.width
        self.constant = (self._top[:, 0] - height).clamp(min=0) + 0.5 * height - self.coeff @ self.frame.middle

    def move(self, x: Tensor, step: float) -> None:
        """Shares fall on inputs whose x (n_0,) is at the end where z is large, and rise on the others.

        That is along the gradient of the bound at its minimiser x, less what would change c. Summed up over the steps
        it is dual averaging (Nesterov 2009).
        """
        frame, size = self.frame, self._size
        end = torch.where(x > frame.middle, 0.5, -0.5).to(x.dtype)
        self._ends.mul_(MOMENTUM).add_(end, alpha=1 - MOMENTUM)
        mean = (self._weight @ (frame.width * self._ends))[:, None] / self._range
        part = torch.addcmul(self._part, size, step * mean).addcmul_(self._weight, self._ends, value=-step)
        part = torch.minimum(part.clamp_(min=0), size)
        height = (part @ frame.width)[:, None]
        wanted = self._top.clamp(min=0).minimum(self._range)
        up = ((wanted - height) / (self._range - height).clamp(min=TINY)).clamp(0, 1)
        down = (wanted / height.clamp(min=TINY)).clamp(max=1)
        rises = height < wanted
        self._part = part.mul_(torch.where(rises, 1 - up, down)).addcmul_(size, torch.where(rises, up, 0.0))
        self._set()

    def keep(self) -> None:
        """Remember the planes as they are."""
        self.best = self._part

    @property
    def levels(self) -> Tensor:
        """The shares that are remembered, (J, n_0) uint8."""
        return (self.best / self._size.clamp(min=TINY) * LEVELS).round_().clamp_(0, LEVELS).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Hull:
    """The planes above a ReLU node in B subproblems: own (B,), which of `planes` each has; used (B, U): above what."""

    own: Tensor
    planes: list[Planes]
    used: Tensor

    @staticmethod
    def of(frame: Frame, own: Tensor, table: Tensor, used: Tensor) -> Hull:
        """From the shares (K, U, n_0) kept; used (B, U): where there is a plane."""
        planes = []
        for k in range(len(table)):
            rows = torch.nonzero(used[own == k].any(dim=0))[:, 0]
            planes.append(Planes(frame, rows, table[k, rows]))
        return Hull(own, planes, used)

    def back(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """e (B, U) times the planes: coefficients (B, n_0) of the input, and constants (B,)."""
        row = torch.zeros(len(e), len(self.planes[0].frame.middle), dtype=e.dtype, device=e.device)
        constant = torch.zeros_like(row[:, 0])
        for k, mine in self._owners():
            planes = self.planes[k]
            some = e[mine][:, planes.rows]
            row[mine], constant[mine] = some @ planes.coeff, some @ planes.constant
        return row, constant

    def at(self, x: Tensor) -> Tensor:
        """The planes' values (B, U) at points x (B, n_0); 0 where there is none."""
        out = torch.zeros(self.used.shape, dtype=x.dtype, device=x.device)
        for k, mine in self._owners():
            planes = self.planes[k]
            out[mine[:, None], planes.rows] = x[mine] @ planes.coeff.T + planes.constant
        return out

    def _owners(self) -> list[tuple[int, Tensor]]:
        if len(self.planes) == len(self.own):
            return list(enumerate(self.own[:, None]))
        return [(k, torch.nonzero(self.own == k)[:, 0]) for k in range(len(self.planes))]

    def move(self, points: Tensor, live: Tensor, step: float) -> None:
        """Every live subproblem's planes, each its own, by its point: points (B, n_0), live (B,)."""
        assert len(self.planes) == len(self.own)
        for b in torch.nonzero(live)[:, 0].tolist():
            self.planes[b].move(points[b], step)

    def keep(self, won: Tensor) -> None:
        """Remember the planes of some subproblems, won (B,), as they are."""
        for b in torch.nonzero(won)[:, 0].tolist():
            self.planes[b].keep()

    def kept(self) -> Tensor:
        """(B, U, n_0) uint8: the shares that are remembered, 0 where there is no plane."""
        middle = self.planes[0].frame.middle
        out = torch.zeros(*self.used.shape, len(middle), dtype=torch.uint8, device=middle.device)
        for b, planes in enumerate(self.planes):
            out[b, planes.rows] = planes.levels
        return out


def less_planes(form: Form, hull: Hull, node: int, use: tuple[Tensor, Tensor]) -> Form:
    """The form less e (s x + c - relu(z)) for the planes of a ReLU node: a lower bound of it, rounding included.

    use: free (U,), the neurons' places at the node, (n,) wide; e (B, n), float64, >= 0 and 0 elsewhere. form: (B, 1).
    """
    free, e = use
    inputs = len(hull.planes[0].frame.middle)
    row = torch.zeros(len(e), inputs, dtype=e.dtype, device=e.device)
    constant, error = form.constant.clone(), form.error.clone()
    for k, mine in hull._owners():
        planes = hull.planes[k]
        if not len(planes.rows):
            continue
        some = e[mine][:, free[planes.rows]]
        slope, above, reach, floor = certified_planes(planes)
        row[mine] = some @ slope
        constant[mine] -= (some @ above)[:, None]
        size = some @ (reach + above.abs())
        error[mine] += (2 * gamma(len(planes.rows) + 8, "float64") * size + floor)[:, None]
    # The factor 2 leaves room for the sums of several nodes' rows.
    coeff = {**form.coeff, node: e[:, None], 0: form.coeff.get(0, 0.0) - row[:, None]}
    return Form(coeff, constant, error)


def certified_planes(planes: Planes) -> tuple[Tensor, Tensor, Tensor, float]:
    """(s, c, reach, floor) of the remembered shares: relu(z) <= s x + c over the set in real arithmetic, (J, n_0) and
    (J,) float64; |s| max |x|; what the underflow of J products a coefficient may lose.

    s is what a checker makes of the shares: the search's own dtype would be off by 1e-7, more than the margin of a leaf
    that a linear program closes.
    """
    frame = planes.frame
    s = frame.above[0][planes.rows] * (planes.levels.double() / LEVELS)
    region, unit, tiny = frame.region, UNIT_ROUNDOFF["float64"], UNDERFLOW["float64"]
    far = magnitude(region.lower, region.upper)[0]
    shift = frame.above[1][planes.rows]
    inactive = -minimum(s[None], region, sharp=True)[0]
    rest = s - frame.above[0][planes.rows]
    least = minimum(rest[None], region, sharp=True)[0]
    # The subtraction's rounding, coefficient by coefficient, and that of the last sum.
    slack = 4 * unit * (rest.abs() @ far + least.abs() + shift.abs()) + tiny * (1 + far.sum())
    constant = torch.maximum(inactive, shift - least + slack)
    return s, constant, s.abs() @ far, float(len(s) * tiny * (2 + len(far) + far.sum()))
