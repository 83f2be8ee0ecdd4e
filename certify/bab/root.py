"""Where a search begins: alpha-CROWN's bounds of one case, the problem for the search, and one subproblem a
polytope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from certify.arrays import UNDERFLOW, UNIT_ROUNDOFF, narrow_interval
from certify.bab.dual import Batch, Problem, bound
from certify.bab.hull import less_planes
from certify.bab.subproblem import Subproblems
from certify.bounding.crown import Choice, Knowledge, plane, row_form
from certify.bounding.grounds import stored
from certify.bounding.margins import Networks, Rows, Start
from certify.bounding.propagate import starts, unsettled
from certify.certificate.content import CaseProof
from certify.ops.base import Slopes, gamma, magnitude
from certify.ops.relu import Relu
from certify.rules import is_affine


@dataclass(frozen=True, eq=False)
class Root:
    """known: bounds of every node, float64, one set. lower: certified bound of the margin of the polytopes that are
    already excluded. coeff (P, R, m), offset (P, R): the rows of the other polytopes, float64; polytopes: their numbers
    in the case. subproblems: one for each of them. grounds: the steps that gave all this.
    """

    nets: Networks
    known: Knowledge
    problem: Problem
    coeff: Tensor
    offset: Tensor
    lower: float
    subproblems: Subproblems
    polytopes: tuple[int, ...] = ()
    grounds: CaseProof = field(default_factory=CaseProof)


def begin(start: Start) -> Root:
    """The root of a case's search, from what alpha-CROWN left of it."""
    nets, known, rows, lower = start.nets, start.known, start.rows, start.lower
    assert not rows.hopeless.any(), "a polytope without rows cannot be excluded"
    margins = rows.best(lower)[0]
    polytopes = [int(p) for p in np.unique(rows.polytope[0]) if p >= 0]
    members = [np.flatnonzero(rows.polytope[0] == p) for p in polytopes]
    still = [m for m in members if not margins[m[0]] > 0]
    closed = min((float(margins[m[0]]) for m in members if margins[m[0]] > 0), default=math.inf)
    # Networks whose weights float32 cannot hold are searched in float64.
    dtype = torch.float64 if nets.fast is nets.exact else torch.float32
    narrow = torch.zeros(1, dtype=dtype, device=nets.device)
    boxes = {node: narrow_interval(known.flat(node), narrow) for node in starts(known.graph)}
    free = {node: _free(known, node) for node in boxes}
    coeff, offset, real = (part.to(nets.device) for part in _stacked(rows, still))
    region = known.region.cast(narrow)
    problem = Problem(
        nets.fast, region, boxes, free, _fixed(known, free, dtype), coeff.to(dtype), offset.to(dtype), real
    )
    first = _first(problem, (lower, still), start.slopes, margins)
    numbers = tuple(int(rows.polytope[0, m[0]]) for m in still)
    return Root(nets, known, problem, coeff, offset, closed, first, numbers, start.grounds)


def _free(known: Knowledge, start: int) -> Tensor:
    """Indices of a start node's unsettled neurons; of all where a smooth op reads them."""
    graph = known.graph
    if all(isinstance(graph.nodes[i].op, Relu) or is_affine(graph.nodes[i].op) for i in graph.consumers[start]):
        return torch.nonzero(unsettled(known, start)[0])[:, 0]
    return torch.arange(math.prod(graph.nodes[start].shape), device=known.floor.device)


def _fixed(known: Knowledge, free: dict[int, Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
    """Nonlinear node -> (1, n): 1 for its active neurons, else 0."""
    found = {}
    for index, node in enumerate(known.graph.nodes):
        if index and not is_affine(node.op):
            active = (known.flat(node.inputs[0])[0] >= 0).to(dtype)
            active[:, free[node.inputs[0]]] = 0
            found[index] = active
    return found


def _stacked(rows: Rows, still: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of some polytopes, padded: coeff (P, R, m), offset (P, R), and which are real (P, R)."""
    width = max((len(m) for m in still), default=1)
    coeff = np.zeros((len(still), width, rows.coeff.shape[2]))
    offset = np.zeros((len(still), width))
    real = np.zeros((len(still), width), dtype=bool)
    for p, members in enumerate(still):
        coeff[p, : len(members)], offset[p, : len(members)] = rows.coeff[0, members], rows.offset[0, members]
        real[p, : len(members)] = True
    return torch.as_tensor(coeff), torch.as_tensor(offset), torch.as_tensor(real)


def _first(
    problem: Problem, unsafe: tuple[np.ndarray, list[np.ndarray]], slopes: Choice, margins: np.ndarray
) -> Subproblems:
    """One subproblem a polytope: its best row's slopes, no multipliers."""
    lower, still = unsafe
    device = problem.coeff.device
    best = [int(m[np.argmax(np.nan_to_num(lower[0, m], nan=-np.inf, neginf=-np.inf))]) for m in still]
    count = len(still)
    mix = torch.zeros_like(problem.offset)
    for p, members in enumerate(still):
        mix[p, int(np.flatnonzero(members == best[p])[0])] = 1.0
    chosen = {}
    for node, s in slopes.items():
        free = problem.free[problem.graph.nodes[node].inputs[0]]
        parts = [part for part in (s.lower, s.upper) if part is not None]
        chosen[node] = torch.stack([part[0, best][:, free].to(mix.dtype) for part in parts])
    return Subproblems(
        torch.arange(count, device=device),
        torch.as_tensor([float(margins[m[0]]) for m in still], dtype=torch.float64, device=device),
        torch.zeros(count, dtype=torch.int64, device=device),
        {s: torch.stack([side[:, f].expand(count, -1) for side in problem.boxes[s]]) for s, f in problem.free.items()},
        chosen,
        {s: mix.new_zeros(count, len(f)) for s, f in problem.free.items()},
        mix,
        torch.arange(count, device=device),
    )


@dataclass(frozen=True, eq=False)
class Certified:
    """margin(x) >= lower, and the rows mixed by the subproblem's weights, at most their sum times the margin, are
    >= coeff x + constant, in real arithmetic, wherever its boxes hold: coeff (N, n_0), constant (N,), lower (N,),
    float64. lifts: ReLU node -> the multipliers (N, U) >= 0 of the planes above its free neurons.
    """

    coeff: Tensor
    constant: Tensor
    lower: Tensor
    lifts: dict[int, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor | slice) -> Certified:
        """Of some subproblems."""
        lifts = {node: e[rows] for node, e in self.lifts.items()}
        return Certified(self.coeff[rows], self.constant[rows], self.lower[rows], lifts)


def certified(root: Root, subs: Subproblems) -> Certified:
    """Bounds of the subproblems' margins under their dual variables.

    Boxes are the root's, cut by the subproblem's own. The margin of a polytope is max_r (C y - d)_r at its best
    point; any weights w >= 0 of the rows give a lower bound of it: w . (C y - d) / sum w. All are taken as the log
    keeps them: what is scaled anew no longer fits the multipliers, and a leaf's program leaves no room.
    """
    count = len(subs)
    known = narrowed(root, subs)
    nodes, free = root.known.graph.nodes, root.problem.free

    def wide(start: int, part: Tensor) -> Tensor:
        out = torch.zeros(count, 1, math.prod(nodes[start].shape), dtype=torch.float64, device=part.device)
        out[:, 0, free[start]] = part.double()
        return out

    # Clamped here, too: whoever proposed them, slopes outside make no valid lines, nor negative weights a bound.
    planes = {} if subs.shares is None else subs.shares.tables
    slopes = {
        n: Slopes(*(wide(nodes[n].inputs[0], part.clamp(0, 1)) for part in (parts[:1] if n in planes else parts)))
        for n, parts in subs.slopes.items()
    }
    slopes = {n: replace(s, lower=stored(root.known.graph, n, s.lower)) for n, s in slopes.items()}
    multipliers = {s: wide(s, v) for s, v in subs.multipliers.items()}
    row, offset, error, total = _mixed(root, known, subs)
    form = row_form(root.known.graph.output, row[:, None, :])
    lifts = {}
    if planes:
        batch, variables = Batch.of(root.problem, subs)
        taken = bound(batch, variables)
        for node, multiplier in taken.planes.items():
            start = nodes[node].inputs[0]
            lifts[node] = torch.nan_to_num(multiplier).clamp(min=0)
            e = wide(start, lifts[node])[:, 0]
            form = less_planes(form, batch.hulls[node], node, (free[start], e))
    found = plane(known, form, slopes=slopes, multipliers=multipliers, sharp=True)
    unit = 4 * UNIT_ROUNDOFF["float64"]
    loss = offset + error
    size = offset.abs() + error
    value, constant = found.value[:, 0], found.constant[:, 0]
    lower = value - loss - unit * (value.abs() + size)
    # A form without weights says nothing of the margin, unless it is positive where it is 0: nowhere.
    says = (total > 0) | (lower > 0)
    lower = lower / torch.where(total > 0, total, torch.ones_like(total))
    lower = lower - lower.abs() * (unit * (subs.mix.shape[1] + 2))
    nothing = torch.full_like(lower, -math.inf)
    constant = constant - loss - unit * (constant.abs() + size)
    constant, lower = torch.where(says, constant, nothing), torch.where(says, lower, nothing)
    return Certified(found.coeff[:, 0], constant, lower, lifts)


def _mixed(root: Root, known: Knowledge, subs: Subproblems) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted rows of each subproblem: coefficients (N, m), offset (N,), what their rounding may do (N,), and the
    weights' sum (N,).

    Without any weight the form is 0: a positive bound of it shows that the subproblem is empty.
    """
    mix = subs.mix.double().clamp(min=0) * root.problem.rows[subs.polytope]
    total = mix.sum(dim=1)
    coeff, offset = root.coeff[subs.polytope], root.offset[subs.polytope]
    row, shift = torch.bmm(mix[:, None], coeff)[:, 0], torch.sum(mix * offset, dim=1)
    if mix.shape[1] == 1 and bool((mix == 1).all()):  # exact
        return row, shift, torch.zeros_like(shift), total
    reach = magnitude(*known.flat(root.known.graph.output))
    size = torch.sum(torch.bmm(mix[:, None], coeff.abs())[:, 0] * reach, dim=1) + torch.sum(mix * offset.abs(), dim=1)
    count = mix.shape[1]
    tiny = 2 * count * UNDERFLOW["float64"] * (1 + reach.sum(dim=1))
    return row, shift, size * (2 * gamma(count + reach.shape[1] + 8, "float64")) + tiny, total


def narrowed(root: Root, subs: Subproblems) -> Knowledge:
    """The root's knowledge for every subproblem, with its boxes."""
    count = len(subs)
    known = root.known

    def many(x: Tensor) -> Tensor:
        return x.expand(count, *x.shape[1:])

    boxes = [None if box is None else (many(box[0]), many(box[1])) for box in known.boxes]
    for start, free in root.problem.free.items():
        lower, upper = (many(side).clone() for side in known.flat(start))
        lower[:, free] = torch.maximum(lower[:, free], subs.boxes[start][0].double())
        upper[:, free] = torch.minimum(upper[:, free], subs.boxes[start][1].double())
        shape = (count, *known.graph.nodes[start].shape)
        boxes[start] = lower.reshape(shape), upper.reshape(shape)
    weights = [None if w is None else many(w) for w in known.weights]
    region = replace(known.region, lower=many(known.region.lower), upper=many(known.region.upper))
    if region.center is not None and region.radius is not None:
        region = replace(region, center=many(region.center), radius=region.radius.expand(count))
    return replace(known, region=region, boxes=boxes, weights=weights, floor=known.floor.expand(count), lines=None)
