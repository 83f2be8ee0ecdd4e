"""Neuron bounds sharpened by what a counterexample must satisfy (Clip-and-Verify, 2025; Kotha et al. 2023).

Where a subproblem's counterexample lives its margin is at most 0, and so is the margin's certified plane: h x + k <= 0.
With the root's planes of the neurons, s z >= a x + c, this gives for every beta >= 0

    s z >= min over the set of (a + beta h) x + c + beta k.

All terms are at hand; a product of matrices tells which neurons gain, and only those are bounded, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certify.arrays import to_numpy
from certify.attacks.probe import products
from certify.bab.branching import scores
from certify.bab.dual import Batch, ascent, bound, minimiser
from certify.bab.root import Certified, Root
from certify.bab.subproblem import Subproblems
from certify.bounding.crown import plane, unit_form
from certify.bounding.region import Region, minimum
from certify.ops.base import gamma

LEAST = 16  # neurons sharpened per subproblem at least: more where they cost no more than half a pass
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0)  # in units of |a| r / |h| r, where both planes vary alike
CACHED = 100_000  # numbers of the arrays at work: what the caches hold
CHUNK = 256  # neurons of one pass for the planes
MOST = 40_000_000  # numbers that the planes may take
PASSES = 4  # the product that tells which neurons gain may cost as much as so many passes


@dataclass(frozen=True, eq=False)
class Planes:
    """sign z >= coeff x + constant over the root's set, for M (neuron, sign) pairs; float64. `most` are used at once.

    coeff (M, n_0), constant (M,). narrow, points: (M, n_0) in the search's dtype, the coefficients and where the planes
    are least. sizes, reaches: (M,), |coeff| r and |coeff| max |x|, rounded up. start (M,), neuron (M,): the node, and
    the place among its free neurons; sign (M,): 1 or -1.
    """

    coeff: Tensor
    constant: Tensor
    narrow: Tensor
    points: Tensor
    sizes: Tensor
    reaches: Tensor
    start: Tensor
    neuron: Tensor
    sign: Tensor
    most: int


def planes(root: Root) -> Planes | None:
    """Planes of the free neurons that matter most at the root: as many as a few passes pay for."""
    inputs = root.known.region.lower.shape[1]
    parts = []
    for start, chosen in _relevant(root, min(PASSES * products(root.known.graph), MOST) // (2 * inputs)).items():
        for first in range(0, len(chosen), CHUNK):
            place = chosen[first : first + CHUNK]
            parts += [(torch.full_like(place, start), place, torch.full_like(place, sign)) for sign in (1, -1)]
    if not parts:
        return None
    start_of, neuron, signs = (torch.cat(column) for column in zip(*parts, strict=True))
    return planes_of(root, start_of, neuron, signs)


def planes_of(root: Root, start: Tensor, neuron: Tensor, sign: Tensor) -> Planes:
    """The planes of M (neuron, sign) pairs, those of one node and sign side by side."""
    known, region = root.known, root.known.region
    inputs = region.lower.shape[1]
    marks = torch.stack([start, sign])
    breaks = torch.nonzero((marks[:, 1:] != marks[:, :-1]).any(dim=0))[:, 0] + 1
    ends = [0, *breaks.tolist(), len(start)]
    parts = []
    for first, end in pairwise(ends):
        node, side = int(start[first]), int(sign[first])
        for at in range(first, end, CHUNK):
            place = neuron[at : min(at + CHUNK, end)]
            found = plane(known, unit_form(known, node, root.problem.free[node][None, place], side))
            parts.append((found.coeff[0], found.constant[0]))
    coeff, constant = (torch.cat(column) for column in zip(*parts, strict=True))
    narrow = root.problem.region
    small = coeff.to(narrow.lower.dtype)
    sizes, reaches = (
        coeff.abs() @ x[0] * (1 + gamma(inputs + 8, "float64"))
        for x in (0.5 * (region.upper - region.lower), region.lower.abs().maximum(region.upper.abs()))
    )
    points = minimiser(small, narrow)
    most = max(LEAST, products(known.graph) // (2 * inputs))
    return Planes(coeff, constant, small, points, sizes, reaches, start, neuron, sign, most)


def _relevant(root: Root, count: int) -> dict[int, Tensor]:
    """Start node -> places among its free neurons: those of the largest scores at the roots of the polytopes' trees."""
    batch, variables = Batch.of(root.problem, root.subproblems)
    taken = bound(batch, variables)
    worst = scores(batch, taken, ascent(batch, variables, taken))[1].sum(dim=0)
    chosen = torch.zeros_like(worst, dtype=torch.bool)
    chosen[worst.topk(max(0, min(count, len(worst)))).indices] = True
    found, first = {}, 0
    for start, free in root.problem.free.items():
        places = torch.nonzero(chosen[first : first + len(free)])[:, 0]
        first += len(free)
        if start and len(places):
            found[start] = places
    return found


@dataclass(frozen=True, eq=False)
class Sharpened:
    """What cut a box: rows of the subproblems, planes, and the multipliers of the half-spaces; each (Q,)."""

    rows: NDArray[np.int64]
    planes: NDArray[np.int64]
    betas: NDArray[np.float64]


def sharpen(root: Root, known: Planes, subs: Subproblems, margin: Certified) -> tuple[Subproblems, Sharpened]:
    """The subproblems with boxes that need only hold where a counterexample is; lower > upper: there is none."""
    radius = (0.5 * (root.known.region.upper - root.known.region.lower))[0]
    reach = margin.coeff.abs() @ radius
    # The derivative in beta at 0: how far the half-space is violated where the neuron's plane is least.
    rise = margin.coeff.to(known.points.dtype) @ known.points.T + margin.constant.to(known.points.dtype)[:, None]
    gain = rise * (known.sizes[None] / reach[:, None].clamp(min=1e-30)).to(rise.dtype)
    gain = gain / _widths(known, subs)
    count = min(known.most, gain.shape[1])
    chosen = gain.topk(count, dim=1)
    index = chosen.indices
    rows = max(1, CACHED // (count * len(radius)))
    beta = torch.empty(index.shape, dtype=torch.float64, device=index.device)
    value = torch.empty_like(beta)
    for first in range(0, len(subs), rows):
        some = slice(first, first + rows)
        part = margin.take(some)
        beta[some] = _best_betas(root.problem.region, known, index[some], part).float().double()
        value[some] = _bounds(root, known, index[some], part, beta[some])
    value = torch.where(chosen.values > 0, value, torch.full_like(value, -math.inf))
    return _apply(known, subs, index, (value, beta))


def _widths(known: Planes, subs: Subproblems) -> Tensor:
    """(N, M): the width of the box of every plane's neuron; inf for what is settled by now."""
    out = torch.empty(len(subs), len(known.start), dtype=known.points.dtype, device=known.points.device)
    for start, (lower, upper) in subs.boxes.items():
        mine = known.start == start
        width = torch.where((lower < 0) & (upper > 0), upper - lower, torch.full_like(lower, math.inf))
        out[:, mine] = width[:, known.neuron[mine]].to(out.dtype)
    return out


def _bounds(root: Root, known: Planes, index: Tensor, margin: Certified, beta: Tensor) -> Tensor:
    """(N, K) float64: lower bounds of the chosen planes under each subproblem's half-space, with its multipliers."""
    region = root.known.region
    row = known.coeff[index] + beta[..., None] * margin.coeff[:, None, :]
    value = minimum(row.reshape(1, -1, row.shape[-1]), region).reshape(beta.shape)
    reach = region.lower.abs().maximum(region.upper.abs())[0]
    # Two roundings a coefficient, of the product and of the sum; then those of the constant.
    size = known.reaches[index] + beta * (margin.coeff.abs() @ reach)[:, None]
    shift = known.constant[index] + beta * margin.constant[:, None]
    size = size + known.constant[index].abs() + beta * margin.constant.abs()[:, None] + value.abs()
    bounds: Tensor = value + shift - 2 * gamma(len(reach) + 8, "float64") * size
    return bounds


def _best_betas(region: Region, known: Planes, index: Tensor, margin: Certified) -> Tensor:
    """(N, K): multipliers of the half-spaces that raise the planes' minima most, in the search's dtype."""
    center, radius = (0.5 * (region.lower + region.upper))[0], (0.5 * (region.upper - region.lower))[0]
    half, shift = margin.coeff.to(center.dtype), margin.constant.to(center.dtype)
    a = known.narrow[index]
    unit = (known.sizes[index] / (margin.coeff.abs() @ radius.double())[:, None].clamp(min=1e-30)).to(center.dtype)
    rise = (half @ center + shift)[:, None]
    best, chosen = torch.full_like(unit, -math.inf), torch.zeros_like(unit)
    for factor in BETAS:
        beta = factor * unit
        value = beta * rise - (a + beta[..., None] * half[:, None, :]).abs_() @ radius
        better = value > best
        best, chosen = torch.where(better, value, best), torch.where(better, beta, chosen)
    return chosen


def _apply(
    known: Planes, subs: Subproblems, index: Tensor, found: tuple[Tensor, Tensor]
) -> tuple[Subproblems, Sharpened]:
    """Boxes cut by the bounds found, rounded outward to the boxes' dtype; and which of them did cut."""
    value, beta = found
    cut = torch.zeros_like(index, dtype=torch.bool)
    boxes = {start: box.clone() for start, box in subs.boxes.items()}
    start, neuron, sign = known.start[index], known.neuron[index], known.sign[index]
    for node, box in boxes.items():
        for side in (1, -1):
            mine = (start == node) & (sign == side)
            row, column = torch.nonzero(mine, as_tuple=True)
            place = neuron[row, column]
            least = value[row, column].to(box.dtype)
            least = torch.nextafter(least, torch.full_like(least, -math.inf))
            if side == 1:
                cut[row, column] = least > box[0][row, place]
                box[0].index_put_((row, place), torch.fmax(box[0][row, place], least))
            else:
                cut[row, column] = -least < box[1][row, place]
                box[1].index_put_((row, place), torch.fmin(box[1][row, place], -least))
    row, column = torch.nonzero(cut, as_tuple=True)
    how = Sharpened(*(to_numpy(x) for x in (row, index[row, column], beta[row, column])))
    return replace(subs, boxes=boxes), how
