"""Cases, judges and hostile dual variables for the laws of the complete search by splits of neurons."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from exact import exact, run, values
from random_nets import boxes_for, random_flat, random_image, relu_mlp, samples

from certify import ops
from certify.bab.branching import Splits, children, split_points
from certify.bab.root import begin
from certify.bab.search import grow
from certify.bounding.alpha import AlphaOptions
from certify.bounding.margins import Networks, prove
from certify.judge import Asked
from certify.judge import judge as judge_proofs
from certify.property import Box, Case, LpBall, Polytope, Property
from certify.verdict import Witness

CPU = torch.device("cpu")


def polytope(coeff, offset):
    """{y : coeff y <= offset}, meant exactly."""
    offset = np.asarray(offset, dtype=np.float64)
    return Polytope(np.asarray(coeff, dtype=np.float64), offset, offset, np.zeros(len(offset), dtype=bool))


def case_of(inputs, *polytopes):
    """Pairs (rows (R, m), offsets (R,)) of the unsafe polytopes."""
    return Case(inputs, tuple(polytope(c, d) for c, d in polytopes))


def ball(lower, upper, p, cut=1.0):
    """An Lp ball about the middle of a box, as wide as its widest side; cut < 1: by a box."""
    center, eps = (lower + upper) / 2, float((upper - lower).max()) + 1e-3
    return LpBall(center, eps, eps, p, Box.exact(center - cut * eps, center + 1.25 * cut * eps))


def inside(inputs, x):
    """The point pulled into the set's box, and straight into its ball, if it is in the set then, in rationals; else
    None.
    """
    box = inputs.box if isinstance(inputs, LpBall) else inputs
    x = np.clip(x.reshape(box.lower.shape), box.lower, box.upper)
    if isinstance(inputs, LpBall):
        step = x - inputs.center
        size = np.linalg.norm(step.ravel(), inputs.p)
        x = np.clip(inputs.center + step * min(1.0, inputs.eps * (1 - 1e-6) / max(size, 1e-300)), box.lower, box.upper)
        steps = [abs(a - b) for a, b in zip(exact(x).ravel(), exact(inputs.center).ravel(), strict=True)]
        if sum(s**inputs.p for s in steps) > Fraction(inputs.eps) ** inputs.p:
            return None
    return x


def points_of(inputs, seed, count):
    """Up to `count` points of the set."""
    if not isinstance(inputs, LpBall):
        return samples(inputs.lower, inputs.upper, seed, count)
    rng = np.random.default_rng([41, seed])
    steps = rng.standard_normal((count, inputs.center.size)) * (rng.random((count, inputs.center.size)) < 0.6)
    size = np.abs(steps).sum(axis=1) if inputs.p == 1 else np.sqrt((steps * steps).sum(axis=1))
    steps *= (inputs.eps * rng.choice([1 - 1e-9, 0.5], count) / np.maximum(size, 1e-300))[:, None]
    found = [inside(inputs, inputs.center + s.reshape(inputs.center.shape)) for s in steps]
    return np.stack([x for x in found if x is not None])


def margins(case, y):
    """(N,) of outputs y (N, m), in floats: > 0 where safe."""
    return np.min([np.max(y @ p.coeff.T - p.offset, axis=1) for p in case.unsafe], axis=0)


def judge(graph, case):
    """A replay that evaluates the graph itself, in rationals."""

    def replay(points):
        for x in points:
            x = inside(case.inputs, x)
            if x is None:
                continue
            y = run(graph, x)
            if any((exact(p.coeff) @ y <= exact(p.offset)).all() for p in case.unsafe):
                return Witness(x, np.array([float(v) for v in y]))
        return None

    return replay


def accepted(model, case, tree):
    """Does the checker accept a closed tree, at once or after the search went on where it finds it open?"""
    for _ in range(4):
        (answer,) = judge_proofs(model, [Asked(Property((case,)), [tree.proof()])])
        if answer.open is None:
            return answer.accepted
        tree.reopen(*answer.open[1:])
        grow(tree, time.monotonic() + 60.0)
    return False


def start_of(graph, case, *, wide=False, iterations=20):
    """What alpha-CROWN leaves open; None where it leaves nothing. wide: the search, too, in float64."""
    nets = Networks.of(graph, CPU)
    if wide:
        nets = Networks(nets.exact, nets.exact, None, nets.sample)
    return prove(nets, [case], "alpha-crown", options=AlphaOptions(iterations=iterations))[0].start


def net(kind, seed):
    """A small network with three outputs (two for images) and a wide box."""
    make = {
        "mlp": lambda: relu_mlp(seed, 3, 6, 6, 3),
        "flat": lambda: random_flat(seed, smooth=False, outputs=3),
        "smooth": lambda: random_flat(seed, smooth=True, outputs=3),
        "image": lambda: random_image(seed, smooth=seed % 2 == 1),
    }
    graph = make[kind]()
    lower, upper = (x[2] for x in boxes_for(graph, seed))
    return graph, lower, upper


def open_root(kind, seed, *, p=0, wide=False, scale=1.0, cut=0.8, share=None):
    """(graph, case, root): polytopes of one, two and three rows that no bound excludes; p: a box or a ball.

    share: about so many of the points are in each polytope; None: all are.
    """
    graph, lower, upper = net(kind, seed)
    graph = rescaled(graph, scale)
    inputs = ball(lower, upper, p, cut) if p else Box.exact(lower, upper)
    rng = np.random.default_rng([42, seed])
    y = graph(points_of(inputs, seed, 100)).reshape(-1, int(np.prod(graph.output_shape)))
    rows = [rng.standard_normal((count, y.shape[1])) for count in (1, 3, 2)]
    if share is None:
        offsets = [np.max(y @ c.T, axis=0) + np.abs(y @ c.T).max() for c in rows]
    else:
        offsets = [np.full(len(c), np.quantile(np.max(y @ c.T, axis=1), share)) for c in rows]
    case = case_of(inputs, *zip(rows, offsets, strict=True))
    return graph, case, begin(start_of(graph, case, wide=wide, iterations=2))


def rescaled(graph, scale):
    """The network with its last weights and biases times `scale`, where these are an op's own."""
    last = graph.nodes[-1]
    if scale == 1.0 or not isinstance(last.op, ops.Linear):
        return graph
    shift = None if last.op.bias is None else last.op.bias * scale
    op = replace(last.op, weight=last.op.weight * scale, bias=shift)
    return type(graph)((*graph.nodes[:-1], replace(last, op=op)))


def hostile(root, subs, rng, scale=1.0):
    """The subproblems with any slopes in range, any multipliers, any weights of the rows."""

    def some(shape, *factors):
        return torch.as_tensor(rng.choice(factors, size=tuple(shape)))

    slopes = {}
    for node, old in subs.slopes.items():
        ceiling = 1.0 if isinstance(root.problem.graph.nodes[node].op, ops.Relu) else 0.25
        slopes[node] = (some(old.shape, 0.0, 1.0, rng.random(), 1e-9) * ceiling).to(old.dtype)
    multipliers = {
        start: (torch.as_tensor(rng.standard_normal(tuple(v.shape))) * some(v.shape, 0, 1, 1e-30, 1e-3, 1e6) * scale)
        for start, v in subs.multipliers.items()
    }
    mix = torch.as_tensor(rng.random(tuple(subs.mix.shape)) + 1e-9) * some(subs.mix.shape, 1, 1e-8)
    mix = mix * root.problem.rows[subs.polytope]
    return replace(
        subs,
        slopes=slopes,
        multipliers={s: v.to(subs.mix.dtype) for s, v in multipliers.items()},
        mix=(mix / mix.sum(dim=1, keepdim=True)).to(subs.mix.dtype),
    )


def descent(root, rng, depth=5, keep=4):
    """Generations of subproblems, each of random children of the one before."""
    subs = root.subproblems
    for _ in range(depth):
        yield subs
        points, allowed = split_points(root.problem, subs)
        if not allowed.any(dim=1).all():
            return
        neurons = (allowed * torch.as_tensor(1 + rng.random(tuple(allowed.shape)))).argmax(dim=1)
        kids = children(root.problem, subs, Splits(neurons, points.gather(1, neurons[:, None])[:, 0]))
        subs = kids.take(torch.as_tensor(rng.permutation(len(kids))[:keep]))


def exact_values(graph, case, seed, count):
    """Every node's exact value at some points of the case's set."""
    return [values(graph, x) for x in points_of(case.inputs, seed, count)]


def belongs(root, subs, row, found):
    """Do these values satisfy the splits of one subproblem?"""
    for start, free in root.problem.free.items():
        z = found[start].ravel()[free.numpy()]
        lower, upper = (exact(side) for side in subs.boxes[start][:, row])
        if (z < lower).any() or (z > upper).any():
            return False
    return True


def margin_of(root, polytope_index, y):
    """The exact margin of one of the root's polytopes at an exact output."""
    real = root.problem.rows[polytope_index]
    return max(exact(root.coeff[polytope_index][real]) @ y - exact(root.offset[polytope_index][real]))
