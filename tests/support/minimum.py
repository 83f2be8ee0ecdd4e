"""The exact minimum of tiny ReLU networks over a box: an LP per activation pattern."""

from __future__ import annotations

import itertools

import numpy as np
from exact import matrices
from random_nets import boxes_for, relu_mlp
from scipy.optimize import linprog

from certify import ops
from certify.bounding.interval import ibp
from certify.rules import bias

MAX_UNSTABLE = 8
SHAPES = [(2, 4, 2), (3, 3, 3, 2), (2, 2, 2, 2, 1), (4, 5, 2), (2, 3, 3, 1)]


def affine_maps(graph):
    """Float matrices and biases of every affine node."""
    found = {}
    for index, node in enumerate(graph.nodes):
        if index and not isinstance(node.op, ops.Relu):
            shapes = [graph.nodes[i].shape for i in node.inputs]
            shift = bias(node.op)
            flat = np.zeros(int(np.prod(node.shape))) if shift is None else np.broadcast_to(shift, node.shape).ravel()
            found[index] = ([m.astype(np.float64) for m in matrices(node.op, shapes)], flat)
    return found


def minima(graph, lower, upper):
    """Per output a point of least value: every activation pattern of the unstable neurons is an LP."""
    boxes = ibp(graph, lower[None], upper[None])
    maps, relus = affine_maps(graph), [i for i, n in enumerate(graph.nodes) if isinstance(n.op, ops.Relu)]
    unstable = []
    for r in relus:
        low, high = (side[0].ravel() for side in boxes[graph.nodes[r].inputs[0]])
        unstable += [(r, k) for k in np.flatnonzero((low < 0) & (high > 0))]
    assert len(unstable) <= MAX_UNSTABLE, "too many patterns for a test"
    best, where = np.full(int(np.prod(graph.output_shape)), np.inf), {}
    for pattern in itertools.product((0.0, 1.0), repeat=len(unstable)):
        (weight, shift), (lhs, rhs) = _pattern(graph, boxes, maps, dict(zip(unstable, pattern, strict=True)))
        for out in range(len(best)):
            limits = list(zip(lower.ravel(), upper.ravel(), strict=True))
            solved = linprog(weight[out], A_ub=lhs, b_ub=rhs, bounds=limits, method="highs")
            if solved.status == 0 and solved.fun + shift[out] < best[out]:
                best[out] = solved.fun + shift[out]
                where[out] = np.clip(solved.x, lower.ravel(), upper.ravel()).reshape(lower.shape)
    return [where[out] for out in range(len(best))]


def _pattern(graph, boxes, maps, phases):
    """The output as an affine function of the input under one pattern, and the rows lhs x <= rhs that select it."""
    size = int(np.prod(graph.input_shape))
    forms, lhs, rhs = [(np.eye(size), np.zeros(size))], [], []
    for index, node in enumerate(graph.nodes[1:], start=1):
        if index in maps:
            parts, shift = maps[index]
            pairs = [(m, forms[i]) for m, i in zip(parts, node.inputs, strict=True)]
            forms.append((sum(m @ f[0] for m, f in pairs), sum(m @ f[1] for m, f in pairs) + shift))
            continue
        weight, shift = forms[node.inputs[0]]
        active = (boxes[node.inputs[0]][0][0].ravel() >= 0).astype(np.float64)
        for k in range(len(shift)):
            if (index, k) in phases:
                active[k] = phases[index, k]
                side = -1 if active[k] else 1
                lhs.append(side * weight[k])
                rhs.append(-side * shift[k])
        forms.append((weight * active[:, None], shift * active))
    return forms[-1], (np.array(lhs), np.array(rhs)) if lhs else (None, None)


def tiny_case(seed):
    """A ReLU network and a box with few unstable neurons."""
    for attempt in itertools.count():
        graph = relu_mlp(1000 * attempt + seed, *SHAPES[seed % len(SHAPES)])
        lower, upper = (x[seed % 3] for x in boxes_for(graph, seed))
        boxes = ibp(graph, lower[None], upper[None])
        inputs = [node.inputs[0] for node in graph.nodes if isinstance(node.op, ops.Relu)]
        count = sum(int(((boxes[i][0] < 0) & (boxes[i][1] > 0)).sum()) for i in inputs)
        if count <= MAX_UNSTABLE and (count or seed % 3 == 0):
            return graph, lower, upper
    raise AssertionError
