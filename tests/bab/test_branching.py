"""Splits: two children that cover their parent, at neurons that can be split, and the one that gains most by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bab_cases import belongs, case_of, descent, exact_values, open_root, start_of
from random_nets import Builder

from certify.bab.branching import NARROW, Splits, candidates, children, choose, split_points
from certify.bab.dual import Batch, ascent, bound
from certify.bab.root import begin
from certify.property import Box

CASES = [("mlp", 2), ("mlp", 4), ("flat", 4), ("flat", 6), ("smooth", 2), ("smooth", 4), ("image", 1), ("image", 6)]
every_case = pytest.mark.parametrize(("kind", "seed"), CASES)


def split(root, subs, rng):
    """One random allowed split of each."""
    points, allowed = split_points(root.problem, subs)
    neurons = (allowed * torch.as_tensor(1 + rng.random(tuple(allowed.shape)))).argmax(dim=1)
    return neurons, points.gather(1, neurons[:, None])[:, 0]


@every_case
def test_children_cover_their_parent_and_leave_it_as_it_was(kind, seed):
    """Only the split neuron's box changes; the parts meet in the point; every point of the parent is in one."""
    rng = np.random.default_rng([70, seed])
    graph, case, root = open_root(kind, seed)
    found = exact_values(graph, case, seed, 10)
    sizes = [len(f) for f in root.problem.free.values()]
    for subs in descent(root, rng, 4):
        if not split_points(root.problem, subs)[1].any(dim=1).all():
            break
        neurons, points = split(root, subs, rng)
        before = {s: box.clone() for s, box in subs.boxes.items()}
        kids = children(root.problem, subs, Splits(neurons, points))
        count = len(subs)
        assert all(torch.equal(before[s], subs.boxes[s]) for s in before)
        assert torch.equal(kids.lower, subs.lower.repeat(2))
        assert torch.equal(kids.depth, subs.depth.repeat(2) + 1)
        assert torch.equal(kids.polytope, subs.polytope.repeat(2))
        old, low, high = (
            torch.cat(list(boxes.values()), dim=2)
            for boxes in (before, *({s: b[:, part] for s, b in kids.boxes.items()} for part in halves(count)))
        )
        assert sum(sizes) == old.shape[2]
        for row in range(count):
            others = torch.arange(old.shape[2]) != neurons[row]
            for part in (low, high):
                assert torch.equal(part[:, row, others], old[:, row, others])
            mine = int(neurons[row])
            assert low[:, row, mine].tolist() == [old[0, row, mine], points[row]]
            assert high[:, row, mine].tolist() == [points[row], old[1, row, mine]]
            assert old[0, row, mine] < points[row] < old[1, row, mine]
        for x in found:
            for row in range(count):
                if belongs(root, subs, row, x):
                    assert belongs(root, kids, row, x) or belongs(root, kids, row + count, x)


def halves(count):
    return slice(0, count), slice(count, 2 * count)


@every_case
def test_what_is_chosen_can_be_split(kind, seed):
    rng = np.random.default_rng([72, seed])
    _, _, root = open_root(kind, seed)
    for tries in (1, 3, 100):
        for subs in descent(root, rng, 6):
            points, allowed = split_points(root.problem, subs)
            if not allowed.any(dim=1).all():
                break
            batch, variables = Batch.of(root.problem, subs)
            taken = bound(batch, variables)
            tried = candidates(batch, taken, ascent(batch, variables, taken), allowed, tries)
            assert allowed.gather(1, tried).any(dim=1).all()
            splits = choose(root.problem, subs, tried, points, allowed)
            assert allowed.gather(1, splits.neurons[:, None]).all()
            assert torch.equal(points.gather(1, splits.neurons[:, None])[:, 0], splits.points)


@every_case
def test_splits_come_to_an_end(kind, seed):
    """Down to leaves that nothing can split: ReLUs settled, smooth neurons narrow."""
    rng = np.random.default_rng([73, seed])
    _, _, root = open_root(kind, seed)
    subs = root.subproblems.take(torch.tensor([0]))
    steps = 0
    while bool(split_points(root.problem, subs)[1].any()):
        kids = children(root.problem, subs, Splits(*split(root, subs, rng)))
        subs = kids.take(torch.as_tensor(rng.integers(0, 2, 1)))
        steps += 1
    total = sum(len(f) for f in root.problem.free.values())
    assert steps <= total * 40
    for start, (lower, upper) in subs.boxes.items():
        readers = [type(root.problem.graph.nodes[i].op).__name__ for i in root.problem.graph.consumers[start]]
        if "Sigmoid" in readers:
            assert (upper - lower <= NARROW * 1.01).all()
        else:
            assert ((lower >= 0) | (upper <= 0)).all()


def test_neighbouring_floats_are_not_split():
    """A smooth neuron about 1e7, where float32 numbers lie 1 apart: no split leaves a box as it was."""
    b = Builder((1,))
    graph = b.graph(b.linear(b.sigmoid(b.linear(0, np.array([[1.0], [-1.0]]))), np.ones((1, 2))))
    case = case_of(Box.exact(np.full(1, 1e7), np.full(1, 1e7 + 6)), (np.ones((1, 1)), [1.0]))
    root = begin(start_of(graph, case))
    rng = np.random.default_rng(74)
    subs = root.subproblems
    steps = 0
    while steps < 40 and bool(split_points(root.problem, subs)[1].any()):
        subs = children(root.problem, subs, Splits(*split(root, subs, rng))).take(torch.tensor([0]))
        steps += 1
    assert steps < 40, "still splitting"


def test_nothing_can_be_split_in_an_affine_network():
    b = Builder((2,))
    graph = b.graph(b.linear(0, np.eye(2)))
    root = begin(start_of(graph, case_of(Box.exact(-np.ones(2), np.ones(2)), (np.eye(2), [0.0, 0.0]))))
    points, allowed = split_points(root.problem, root.subproblems)
    assert tuple(points.shape) == tuple(allowed.shape) == (1, 0)


@pytest.mark.parametrize("tries", [1, 3])
def test_the_neuron_that_matters_is_split_by_hand(tries):
    """y = 100 (relu(a) - relu(a')) + (relu(b) - relu(b')) / 1000 with a' = a, b' = b: the first two cost 50, the others
    1/2000.
    """
    b = Builder((2,))
    hidden = b.relu(b.linear(0, np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])))
    graph = b.graph(b.linear(hidden, np.array([[100.0, -100.0, 1e-3, -1e-3]])))
    root = begin(start_of(graph, case_of(Box.exact(-np.ones(2), np.ones(2)), (np.ones((1, 1)), [-1.0]))))
    assert float(root.subproblems.lower[0]) == pytest.approx(1 - 50.0005, rel=1e-3)
    batch, variables = Batch.of(root.problem, root.subproblems)
    taken = bound(batch, variables)
    points, allowed = split_points(root.problem, root.subproblems)
    tried = candidates(batch, taken, ascent(batch, variables, taken), allowed, tries)
    assert int(choose(root.problem, root.subproblems, tried, points, allowed).neurons[0]) in (0, 1)
