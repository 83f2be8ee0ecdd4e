"""Looseness says where a linear bound loses: exactly at the unstable ReLUs, and by whose width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_nets import boxes_for, random_flat

from certify.bab.sensitivity import gaps, looseness
from certify.bounding.crown import plane, relaxation, row_form
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.frontends.lower import Builder
from certify.ops.base import Slopes
from certify.rules import evaluate, is_affine


def scores(graph, lower, upper, row):
    known = propagate(graph, Region(lower, upper))
    found = plane(known, row_form(graph.output, row))
    free = np.flatnonzero((np.asarray(upper) > np.asarray(lower)).any(axis=0))
    one = found.constant * 0 + 1
    return found, looseness(known, found.reached, one, free)


def test_by_hand():
    """y = -relu(x0 + 2 x1) on [-1, 1]^2: the gap u |l| / (u - l) = 3/2, a third of it x0's, two thirds x1's."""
    b = Builder((2,))
    x = b.linear(b.relu(b.linear(0, np.array([[1.0, 2.0]]), np.zeros(1))), np.array([[-1.0]]), np.zeros(1))
    graph = b.graph(x).cast(np.zeros(1))
    found, score = scores(graph, -np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 1, 1)))
    assert np.allclose(score, [[0.5, 1.0]])
    assert np.allclose(found.value, -3.0)


def test_stable_networks_lose_nothing():
    b = Builder((2,))
    x = b.linear(b.relu(b.linear(0, np.eye(2), 5 * np.ones(2))), np.ones((1, 2)), np.zeros(1))
    graph = b.graph(x).cast(np.zeros(1))
    _, score = scores(graph, -np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 1, 1)))
    assert np.allclose(score, 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_gaps_of_relus_are_the_largest_distance_of_the_lines(seed):
    graph = random_flat(seed, smooth=False).cast(np.zeros(1))
    lower, upper = (side.reshape(len(side), -1) for side in boxes_for(graph, seed))
    known = propagate(graph, Region(lower, upper))
    for index, node in enumerate(graph.nodes):
        if index == 0 or is_affine(node.op):
            continue
        low, high = known.flat(node.inputs[0])
        lines = relaxation(known, index, Slopes())
        below, above = gaps(node.op, lines, low, high)
        for share in np.linspace(0, 1, 41):
            z = low + share * (high - low)
            value = evaluate(node.op, z)
            assert (value - (lines.lower_slope * z[:, None] + lines.lower_intercept)[:, 0] <= below + 1e-9).all()
            assert ((lines.upper_slope * z[:, None] + lines.upper_intercept)[:, 0] - value <= above + 1e-9).all()


@pytest.mark.parametrize("seed", range(6))
def test_numpy_and_torch_agree(seed):
    graph = random_flat(seed)
    lower, upper = (side.reshape(len(side), -1) for side in boxes_for(graph, seed))
    row = np.broadcast_to(np.array([[[1.0, -0.5]]]), (len(lower), 1, 2))
    one = scores(graph.cast(np.zeros(1)), lower, upper, row)[1]
    wide = graph.cast(torch.zeros(1, dtype=torch.float64))
    two = scores(wide, torch.tensor(lower), torch.tensor(upper), torch.tensor(row.copy()))[1]
    assert (one >= 0).all()
    assert np.allclose(one, two.numpy(), rtol=1e-6, atol=1e-9)
