"""Small networks with one box each, in the form that certify.mip takes."""

from __future__ import annotations

import itertools

import numpy as np
from random_nets import boxes_for, random_flat, random_image

from certify import ops
from certify.bounding.interval import ibp
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.property import Polytope


def known_of(graph, lower, upper, *, crown=True):
    """Knowledge of one box."""
    graph = graph.cast(np.zeros(1))
    return propagate(graph, Region(lower.reshape(1, -1), upper.reshape(1, -1)), crown=crown)


def row(*coeff, offset=0.0):
    """The polytope {y : coeff . y <= offset}."""
    return Polytope(np.array([coeff], dtype=np.float64), np.array([offset]), np.array([offset]), np.array([False]))


def network(kind, seed, *, smooth=False):
    """A random network of all ops and a box."""
    graph = random_flat(seed, smooth=smooth) if kind == "flat" else random_image(seed, smooth=smooth)
    lower, upper = (x[seed % 3] for x in boxes_for(graph, seed))
    return graph, lower, upper


def enumerable(kind, seed, most=8):
    """A random ReLU network of all ops and a box in which at most `most` neurons are unstable, and some are."""
    for attempt in itertools.count():
        graph = (random_flat if kind == "flat" else random_image)(7000 + 100 * seed + attempt, smooth=False)
        for lower, upper in zip(*boxes_for(graph, seed), strict=True):
            boxes = ibp(graph, lower[None], upper[None])
            inputs = [node.inputs[0] for node in graph.nodes if isinstance(node.op, ops.Relu)]
            if 0 < sum(int(((boxes[i][0] < 0) & (boxes[i][1] > 0)).sum()) for i in inputs) <= most:
                return graph, lower, upper
    raise AssertionError
