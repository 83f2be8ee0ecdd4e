"""Planes above ReLUs hold on the whole set, whatever their shares; moved, they reach a ReLU's hull over the box."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from bab_cases import case_of, start_of
from exact import exact
from random_nets import Builder, relu_mlp, samples
from small_models import network

from certify.bab import search
from certify.bab.ascend import AscentOptions, ascend
from certify.bab.dual import Batch, bound
from certify.bab.envelope import framed, planes_pay, with_planes
from certify.bab.hull import LEVELS, Frame, Planes, certified_planes
from certify.bab.root import begin, certified
from certify.bab.subproblem import Shares
from certify.bounding.propagate import propagate
from certify.bounding.region import region_of
from certify.check import tree as checker
from certify.judge import Asked, judge
from certify.property import Box, Property


def frame_of(weight, bias, lower, upper, dtype=torch.float32):
    """(frame, graph) of relu(weight x + bias) over a box."""
    b = Builder((weight.shape[1],))
    graph = b.graph(b.linear(b.relu(b.linear(0, weight, bias)), np.ones((1, len(weight))))).cast(
        torch.zeros(1).double()
    )
    known = propagate(graph, region_of([Box.exact(lower, upper)]).cast(torch.zeros(1).double()), crown=False)
    return Frame.of(known, 1, torch.arange(len(weight)), dtype)


def planes_of(frame, levels):
    levels = torch.as_tensor(levels).to(torch.uint8)
    return Planes(frame, torch.arange(len(levels)), levels)


def test_the_facets_of_a_conjunction_by_hand():
    """relu(x1 + x2 - 1) over the unit square lies below x1, below x2, and below the triangle's (x1 + x2) / 2."""
    frame = frame_of(np.ones((3, 2)), -np.ones(3), np.zeros(2), np.ones(2))
    planes = planes_of(frame, [[LEVELS, 0], [0, LEVELS], [51 * 3, 51 * 2]])
    assert planes.coeff.tolist() == [[1, 0], [0, 1], pytest.approx([0.6, 0.4])]
    assert planes.constant.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    constant = certified_planes(planes)[1]
    assert constant.tolist() == pytest.approx([0, 0, 0], abs=1e-7)
    assert (constant >= 0).all()
    assert frame.triangles().unique().tolist() == [round(LEVELS / 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(6))
def test_no_point_lies_above_a_plane(seed, dtype):
    """In rationals, at corners too, for any shares and after any moves."""
    rng = np.random.default_rng([60, seed])
    scale = 10.0 ** rng.choice([-30, -8, 0, 8, 30])
    lower = rng.standard_normal(5)
    upper = lower + rng.choice([0, 1e-9, 1.0, 3.0], 5)
    weight, bias = rng.standard_normal((8, 5)) * scale, rng.standard_normal(8) * scale
    frame = frame_of(weight, bias, lower, upper, dtype)
    planes = planes_of(frame, rng.integers(0, LEVELS + 1, (8, 5)))
    points = np.concatenate([samples(lower, upper, seed, 30), np.where(rng.random((30, 5)) < 0.5, lower, upper)])
    for _ in range(3):
        coeff, constant = (exact(part) for part in certified_planes(planes)[:2])
        for x in points:
            z = exact(weight) @ exact(x) + exact(bias)
            assert (np.maximum(z, Fraction(0)) <= coeff @ exact(x) + constant).all()
        planes.move(torch.as_tensor(points[rng.integers(len(points))]).to(dtype), float(rng.random()))
        planes.keep()


def lifted(graph, case):
    """(root, subproblems) with planes, from alpha-CROWN."""
    root = framed(begin(start_of(graph, case)))
    return root, with_planes(root, root.subproblems)


def test_planes_close_what_the_triangle_leaves_open():
    """x1 - relu(x1 + x2 - 1) >= 0 on the unit square, where the triangle's bound is -1/2."""
    b = Builder((2,))
    hidden = b.relu(b.linear(0, np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([-1.0, 0.0])))
    graph = b.graph(b.linear(hidden, np.array([[-1.0, 1.0]])))
    case = case_of(Box.exact(np.zeros(2), np.ones(2)), (np.ones((1, 1)), [0.0]))
    root, subs = lifted(graph, case)
    assert float(subs.lower[0]) == pytest.approx(-0.5, abs=1e-6)
    batch, variables = Batch.of(root.problem, subs)
    best = ascend(batch, variables, AscentOptions(iterations=60, decay=0.97))
    assert -0.02 < float(best.value[0]) <= 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_gives_the_bound_that_was_found(seed):
    """But for the rounding of the shares, which are kept as bytes; and it is certified."""
    graph = relu_mlp(seed, 4, 8, 5, 1)
    root, subs = lifted(graph, case_of(Box.exact(-np.ones(4), np.ones(4)), (np.ones((1, 1)), [50.0])))
    batch, variables = Batch.of(root.problem, subs)
    best = ascend(batch, variables, AscentOptions(iterations=20))
    kept = best.variables
    found = replace(subs, slopes=kept.slopes, multipliers=kept.multipliers, mix=kept.mix, shares=best.shares)
    size = float(best.value.abs().max())
    assert float(best.value[0]) >= float(bound(batch, variables).value[0])
    assert float(bound(*Batch.of(root.problem, found)).value[0]) == pytest.approx(float(best.value[0]), abs=0.01 * size)
    assert float(certified(root, found).lower[0]) == pytest.approx(float(best.value[0]), abs=0.01 * size)


@pytest.mark.parametrize("seed", range(3))
def test_subproblems_keep_their_planes_when_taken_and_joined(seed):
    rng = np.random.default_rng([61, seed])
    table = torch.as_tensor(rng.integers(0, 256, (4, 3, 2))).to(torch.uint8)
    shares = Shares(torch.tensor([2, 0, 2, 3, 1]), {7: table})
    rows = torch.as_tensor(rng.integers(0, 5, 6))
    mask = torch.as_tensor(rng.random(5) < 0.5)
    for parts, own in (([rows], shares.own[rows]), ([mask, rows], torch.cat([shares.own[mask], shares.own[rows]]))):
        found = Shares.join([shares.take(part) for part in parts])
        assert torch.equal(found.tables[7][found.own], table[own])
        assert torch.equal(found.apart().tables[7], table[own])


def test_planes_are_for_dense_first_layers():
    dense = relu_mlp(0, 4, 8, 5, 1)
    case = case_of(Box.exact(-np.ones(4), np.ones(4)), (np.ones((1, 1)), [50.0]))
    assert planes_pay(begin(start_of(dense, case)))
    b = Builder((4,))
    sparse = b.graph(b.linear(b.relu(b.linear(0, np.eye(4))), np.ones((1, 4))))
    assert framed(begin(start_of(sparse, case))) is None


def test_the_checker_finds_no_less_than_the_search(monkeypatch):
    """Regression: the search rounded planes to float32 and scaled the rows' weights anew; its bounds were up to 1e-7
    above the checker's, to whom leaves that a linear program had closed were open. Without sharpening, whose boxes are
    float32's on purpose.
    """
    monkeypatch.setattr("certify.bab.search.LIFT_AFTER", 0)
    monkeypatch.setattr("certify.bab.search.PLANES_AFTER", math.inf)
    ours, theirs = {}, {}
    close, bounded = search._close, checker._Work._bounded

    def closing(tree, subs, margin):
        total = (subs.mix.double() * tree.root.problem.rows[subs.polytope]).sum(dim=1)
        ours.update(zip(subs.node.tolist(), (margin.lower * total).tolist(), strict=True))
        return close(tree, subs, margin)

    def checking(self, known, entries):
        found = bounded(self, known, entries)
        theirs.update(zip(self.tree.entry_node[entries].tolist(), found[0].tolist(), strict=True))
        return found

    monkeypatch.setattr(search, "_close", closing)
    monkeypatch.setattr(checker._Work, "_bounded", checking)
    model = network(5, (2, 8, 8, 2))
    box = Box.exact(-np.ones(2), np.ones(2))
    rows = np.random.default_rng([62, 5]).standard_normal((2, 2))
    least = np.min(np.max(model.graph(samples(box.lower, box.upper, 0, 5000)) @ rows.T, axis=1))
    case = case_of(box, (rows, np.full(2, least - 0.08 * abs(least))))
    tree = search.Tree.plant(begin(start_of(model.graph, case, iterations=1)), lambda points: None)
    search.grow(tree, math.inf)
    assert tree.root.problem.frames
    (answer,) = judge(model, [Asked(Property((case,)), [tree.proof()])])
    assert answer.accepted
    assert len(theirs) > 100
    assert min(value - ours[node] for node, value in theirs.items()) > -1e-12
