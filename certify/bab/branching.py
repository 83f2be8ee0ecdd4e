"""Which neuron to split: cheap scores choose candidates, whose children are then bounded (filtered smart branching).

Two scores, both of how much a neuron's relaxation costs the bound: at the relaxed minimiser (where the search cheats
now), and at its worst point (the intercepts of BaBSR, Bunel et al. 2020). The best few of each are tried without
optimisation (De Palma et al. 2021); the neuron whose children gain most, by the product of their gains, wins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.bab.dual import Ascent, Batch, Pass, Problem, bound
from certify.bab.subproblem import Subproblems
from certify.ops.relu import Relu
from certify.rules import evaluate, is_affine

NARROW = 1e-4  # a smooth neuron's box below this width is not split further: its relaxation is as good as exact
LOPSIDED = 0.1  # zero cuts a smooth neuron's box only where the smaller part has this share
CHUNK = 64_000_000  # numbers that one pass over candidates may hold
EPSILON = 1e-6


@dataclass(frozen=True, eq=False)
class Splits:
    """B splits: neurons (B,), positions among all free neurons, starts in ascending order; points (B,)."""

    neurons: Tensor
    points: Tensor


def split_points(problem: Problem, subs: Subproblems) -> tuple[Tensor, Tensor]:
    """(points, allowed), each (N, U over all starts): where each free neuron would be split, and whether it may be."""
    none = torch.zeros(len(subs), 0, dtype=problem.offset.dtype, device=problem.offset.device)
    points, allowed = [none], [none > 0]
    for start in problem.free:
        lower, upper = subs.boxes[start]
        crosses = (lower < 0) & (upper > 0)
        nodes = problem.graph.nodes
        readers = [nodes[i].op for i in problem.graph.consumers[start] if not is_affine(nodes[i].op)]
        if all(isinstance(op, Relu) for op in readers):
            points.append(torch.zeros_like(lower))
            allowed.append(crosses)
            continue
        middle = 0.5 * (lower + upper)
        at_zero = crosses & (torch.minimum(-lower, upper) > LOPSIDED * (upper - lower))
        points.append(torch.where(at_zero, torch.zeros_like(lower), middle))
        # Between large numbers may lie none: such a split would leave the box as it is.
        allowed.append((upper - lower > NARROW) & (lower < points[-1]) & (points[-1] < upper))
    return torch.cat(points, dim=1), torch.cat(allowed, dim=1)


def candidates(batch: Batch, taken: Pass, step: Ascent, allowed: Tensor, count: int) -> Tensor:
    """(B, 2 count) positions of free neurons that promise most by either score."""
    here, worst = scores(batch, taken, step)
    best = []
    for score in (here, worst):
        marked = torch.where(allowed, score, torch.full_like(score, -1.0))
        best.append(marked.topk(min(count, marked.shape[1]), dim=1).indices)
    return torch.cat(best, dim=1)


def scores(batch: Batch, taken: Pass, step: Ascent) -> tuple[Tensor, Tensor]:
    """(at the minimiser, at the worst point), each (B, U over all starts)."""
    problem = batch.problem
    here = {s: torch.zeros_like(box[0]) for s, box in batch.boxes.items()}
    worst = {s: torch.zeros_like(box[0]) for s, box in batch.boxes.items()}
    for index, (positive, negative) in taken.post.items():
        start, lines = problem.graph.nodes[index].inputs[0], taken.lines[index]
        op, (lower, upper) = problem.graph.nodes[index].op, batch.boxes[start]
        z = torch.minimum(torch.maximum(step.values[start][:, problem.free[start]], lower), upper)
        for kind, points in ((here, (z,)), (worst, (lower, lower.clamp(min=0).minimum(upper), upper))):
            gaps = torch.zeros_like(z)
            for point in points:
                value = evaluate(op, point)
                below = value - (lines.lower_slope * point + lines.lower_intercept)
                above = lines.upper_slope * point + lines.upper_intercept - value
                gaps = torch.maximum(gaps, positive * below - negative * above)
            kind[start] = kind[start] + gaps
    return torch.cat(list(here.values()), dim=1), torch.cat(list(worst.values()), dim=1)


def children(problem: Problem, subs: Subproblems, splits: Splits) -> Subproblems:
    """2 N subproblems: first all lower parts (z <= point), then all upper parts."""
    count = len(subs)
    both = subs.take(torch.arange(count, device=subs.lower.device).repeat(2))
    rows = torch.arange(count, device=subs.lower.device)
    first = 0
    for start, free in problem.free.items():
        mine = (splits.neurons >= first) & (splits.neurons < first + len(free))
        place, row, point = splits.neurons[mine] - first, rows[mine], splits.points[mine]
        both.boxes[start][1][row, place] = point
        both.boxes[start][0][row + count, place] = point
        first += len(free)
    return replace(both, depth=both.depth + 1)


def choose(problem: Problem, subs: Subproblems, tried: Tensor, points: Tensor, allowed: Tensor) -> Splits:
    """The best of the tried neurons (B, K): the one whose children's gains have the largest product."""
    count, width = tried.shape
    owner = torch.arange(count, device=tried.device).repeat_interleave(width)
    flat = tried.reshape(-1)
    piece = max(1, CHUNK // (2 * problem.widths()))
    gains = []
    for first in range(0, len(flat), piece):
        some = slice(first, first + piece)
        split = Splits(flat[some], points[owner[some], flat[some]])
        parts = children(problem, subs.take(owner[some]), split)
        value = bound(*Batch.of(problem, parts)).value.reshape(2, -1)
        gains.append(value)
    value = torch.cat(gains, dim=1).reshape(2, count, width)
    parent = subs.lower.to(value.dtype)[:, None]
    ceiling = -parent.clamp(max=-EPSILON)
    gain = (value - parent).clamp(min=0).minimum(ceiling) + EPSILON * ceiling
    score = torch.where(allowed.gather(1, tried), gain[0] * gain[1], torch.full_like(gain[0], -1.0))
    best = tried.gather(1, score.argmax(dim=1, keepdim=True))
    return Splits(best[:, 0], points.gather(1, best)[:, 0])
