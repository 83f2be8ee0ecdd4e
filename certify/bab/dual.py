"""The Lagrangian bound of a batch of subproblems, and its gradient in closed form.

For fixed slopes alpha, multipliers v and row weights mix, one backward pass of a single row per subproblem gives a
lower bound of its margin (alpha-CROWN, Xu et al. 2021; beta-CROWN, Wang et al. 2021). It is piecewise linear in v and
mix, and its gradient is read off the point that attains it: x at the input, carried forward through the lines that were
taken. So an iteration costs two passes and keeps no tape. Float32 without rounding terms: everything here proposes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from certify.bab.subproblem import Subproblems
from certify.bounding.region import Region, minimum
from certify.graph import Graph
from certify.ops.base import Relaxation, Slopes
from certify.ops.relu import Relu
from certify.rules import bias, evaluate, is_affine, relax, transpose


@dataclass(frozen=True, eq=False)
class Problem:
    """What all subproblems of a case share, in float32 on one device.

    region: one input set. boxes: start node -> the root's (lower, upper), (1, n). free: start node -> (U,) indices of
    its unsettled neurons. coeff (P, R, m), offset (P, R): the unsafe polytopes' rows, padded; rows (P, R): which are
    real.
    """

    graph: Graph
    region: Region
    boxes: dict[int, tuple[Tensor, Tensor]]
    free: dict[int, Tensor]
    coeff: Tensor
    offset: Tensor
    rows: Tensor

    def widths(self) -> int:
        """Numbers that one pass holds per subproblem."""
        return sum(math.prod(node.shape) for node in self.graph.nodes)


@dataclass(frozen=True, eq=False)
class Variables:
    """The dual variables of B subproblems over all neurons: slopes node -> (K, B, n), multipliers start -> (B, n)."""

    slopes: dict[int, Tensor]
    multipliers: dict[int, Tensor]
    mix: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B subproblems spread over all neurons: boxes start -> (lower, upper), (B, n); lines: the parts of ReLU's
    relaxations that no slope changes; allowed: start -> the signs that a multiplier may take, (lowest, highest), (B,
    n).
    """

    problem: Problem
    polytope: Tensor
    boxes: dict[int, tuple[Tensor, Tensor]]
    lines: dict[int, Relaxation]
    allowed: dict[int, tuple[Tensor, Tensor]]

    @staticmethod
    def of(problem: Problem, subs: Subproblems) -> tuple[Batch, Variables]:
        """The batch and the variables that it starts from."""
        count = len(subs)
        boxes, allowed, multipliers = {}, {}, {}
        for start, free in problem.free.items():
            root = problem.boxes[start]
            lower, upper = (_spread(r, free, part, count) for r, part in zip(root, subs.boxes[start], strict=True))
            boxes[start] = lower, upper
            zero = torch.zeros_like(lower)
            narrowed = (upper < root[1]), (lower > root[0])
            infinite = torch.full_like(lower, math.inf)
            allowed[start] = torch.where(narrowed[0], -infinite, zero), torch.where(narrowed[1], infinite, zero)
            multipliers[start] = _spread(zero[:1], free, subs.multipliers[start], count)
        slopes = {}
        for node, stored in subs.slopes.items():
            source = problem.graph.nodes[node].inputs[0]
            blank = torch.zeros_like(boxes[source][0][:1])
            slopes[node] = torch.stack([_spread(blank, problem.free[source], part, count) for part in stored])
        batch = Batch(problem, subs.polytope, boxes, {}, allowed)
        batch = replace(batch, lines=_fixed_lines(batch, slopes))
        return batch, Variables(slopes, multipliers, subs.mix)

    def gather(self, variables: Variables, subs: Subproblems) -> Subproblems:
        """The subproblems with these variables."""
        nodes, free = self.problem.graph.nodes, self.problem.free
        return replace(
            subs,
            slopes={n: s[:, :, free[nodes[n].inputs[0]]] for n, s in variables.slopes.items()},
            multipliers={s: v[:, free[s]] for s, v in variables.multipliers.items()},
            mix=variables.mix,
        )


def _spread(root: Tensor, free: Tensor, values: Tensor, count: int) -> Tensor:
    """root (1, n) for all subproblems, with values (B, U) at the free neurons."""
    out = root.expand(count, -1).clone()
    out[:, free] = values
    return out


def _fixed_lines(batch: Batch, slopes: dict[int, Tensor]) -> dict[int, Relaxation]:
    found = {}
    for index, node in enumerate(batch.problem.graph.nodes):
        if index and isinstance(node.op, Relu) and node.inputs[0] in batch.boxes:
            found[index] = relax(node.op, *batch.boxes[node.inputs[0]], Slopes())
    return found


@dataclass(frozen=True, eq=False)
class Pass:
    """One backward pass: value (B,), the bounds; first (B, n_0), the coefficients of the input; post: nonlinear node
    -> its coefficients' (positive, negative) parts; lines: the relaxations taken.
    """

    value: Tensor
    first: Tensor
    post: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lines: dict[int, Relaxation] = field(default_factory=dict)


def bound(batch: Batch, variables: Variables) -> Pass:
    """Lower bounds (B,) of the subproblems' margins under these variables."""
    problem = batch.problem
    graph = problem.graph
    weight = variables.mix[:, None, :]
    row = torch.bmm(weight, problem.coeff[batch.polytope])[:, 0]
    constant = -torch.sum(variables.mix * problem.offset[batch.polytope], dim=1)
    count = len(row)
    pending = {graph.output: row}
    result = Pass(constant, row)
    for index in range(graph.output, 0, -1):
        a = pending.pop(index, None)
        if a is None:
            continue
        a, change = _lent(batch, variables, index, a)
        constant = constant + change
        node = graph.nodes[index]
        if is_affine(node.op):
            shift = bias(node.op)
            if shift is not None:
                constant = constant + a @ shift.broadcast_to(node.shape).reshape(-1)
            shapes = tuple(graph.nodes[i].shape for i in node.inputs)
            parts = transpose(node.op, a.reshape(count, *node.shape), shapes)
        else:
            lines = _lines(batch, variables, index)
            positive = a.clamp(min=0)
            negative = a - positive
            change = positive * lines.lower_intercept + negative * lines.upper_intercept
            constant = constant + torch.sum(change, dim=1)
            result.post[index] = positive, negative
            result.lines[index] = lines
            parts = (positive * lines.lower_slope + negative * lines.upper_slope,)
        for i, part in zip(node.inputs, parts, strict=True):
            flat = part.reshape(count, -1)
            pending[i] = pending[i] + flat if i in pending else flat
    first = pending.get(0)
    if first is None:
        first = torch.zeros_like(problem.region.lower).expand(count, -1)
    first, change = _lent(batch, variables, 0, first)
    constant = constant + change
    low = minimum(first[None], problem.region, rounding=False)[0]
    return replace(result, value=constant + low, first=first)


def _lent(batch: Batch, variables: Variables, index: int, a: Tensor) -> tuple[Tensor, Tensor | float]:
    """The coefficients (B, n) less the node's multipliers, and what its box adds for them
    (certify.bounding.crown.lent).
    """
    if index not in variables.multipliers:
        return a, 0.0
    v, (lower, upper) = variables.multipliers[index], batch.boxes[index]
    rising = v.clamp(min=0)
    return a - v, torch.sum(rising * lower + (v - rising) * upper, dim=1)


def _lines(batch: Batch, variables: Variables, index: int) -> Relaxation:
    op, source = batch.problem.graph.nodes[index].op, batch.problem.graph.nodes[index].inputs[0]
    box = batch.boxes.get(source, batch.problem.boxes.get(source))
    assert box is not None
    chosen = variables.slopes.get(index)
    if chosen is None:
        return relax(op, *box, Slopes())  # type: ignore[no-any-return]
    fixed = batch.lines.get(index)
    if fixed is None:
        return relax(op, *box, Slopes(chosen[0], chosen[1]))  # type: ignore[no-any-return]
    unstable = fixed.upper_intercept > 0
    return replace(fixed, lower_slope=torch.where(unstable, chosen[0], fixed.upper_slope))


@dataclass(frozen=True, eq=False)
class Ascent:
    """The gradient of a pass's value, and where it came from: values (B, n) of every node at the relaxed minimiser."""

    gradient: Variables
    values: list[Tensor]


def ascent(batch: Batch, variables: Variables, taken: Pass) -> Ascent:
    """Supergradient of `bound` at its variables, by a forward pass through the lines that were taken."""
    problem = batch.problem
    graph, count = problem.graph, len(taken.value)
    values = [minimiser(taken.first, problem.region)]
    slopes, multipliers = {}, {}
    for index, node in enumerate(graph.nodes):
        if index == 0:
            continue
        if is_affine(node.op):
            inputs = (values[i].reshape(count, *graph.nodes[i].shape) for i in node.inputs)
            values.append(evaluate(node.op, *inputs).reshape(count, -1))
        elif index not in taken.post:  # the row does not depend on it
            values.append(evaluate(node.op, values[node.inputs[0]]))
        else:
            z = values[node.inputs[0]]
            lines, (positive, negative) = taken.lines[index], taken.post[index]
            upper = negative < 0
            slope = torch.where(upper, lines.upper_slope, lines.lower_slope)
            values.append(z * slope + torch.where(upper, lines.upper_intercept, lines.lower_intercept))
            if index in variables.slopes:
                slopes[index] = _slope_gradient(batch, variables, index, (z, positive, negative))
    for start in variables.multipliers:
        lower, upper = batch.boxes[start]
        z = values[start]
        multipliers[start] = (lower - z).clamp(min=0) + (upper - z).clamp(max=0)
        v = variables.multipliers[start]
        multipliers[start] = torch.where(v > 0, lower - z, torch.where(v < 0, upper - z, multipliers[start]))
    rows = torch.bmm(problem.coeff[batch.polytope], values[graph.output][:, :, None])[:, :, 0]
    mix = rows - problem.offset[batch.polytope]
    return Ascent(Variables(slopes, multipliers, mix), values)


def _slope_gradient(batch: Batch, variables: Variables, index: int, point: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """d/d slopes of positive * (lower line at z) + negative * (upper line at z), (K, B, n)."""
    z, positive, negative = point
    if index in batch.lines:
        return torch.where(batch.lines[index].upper_intercept > 0, positive * z, torch.zeros_like(z))[None]
    with torch.enable_grad():
        free = variables.slopes[index].detach().requires_grad_()
        lines = _lines(batch, replace(variables, slopes={index: free}), index)
        value = positive * (lines.lower_slope * z + lines.lower_intercept)
        value = value + negative * (lines.upper_slope * z + lines.upper_intercept)
        (gradient,) = torch.autograd.grad(value.sum(), free)
    return gradient


def minimiser(a: Tensor, region: Region) -> Tensor:
    """Points (B, n) of one set where a . x is small, a (B, n): the minimum over a box; over a ball cut by a box close
    to it.
    """
    lower, upper = region.lower, region.upper
    if region.center is None or region.radius is None:
        return torch.where(a > 0, lower, upper)
    if region.p == 2:
        step = a * (region.radius[:, None] / a.norm(dim=1, keepdim=True).clamp(min=1e-30))
    else:
        largest = a.abs().argmax(dim=1, keepdim=True)
        sign = torch.sign(a.gather(1, largest))
        step = torch.zeros_like(a).scatter(1, largest, sign * region.radius[:, None])
    return torch.minimum(torch.maximum(region.center - step, lower), upper)
