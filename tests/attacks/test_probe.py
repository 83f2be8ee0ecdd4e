"""The attack without torch: true gradients, points inside the box, and nothing but what the replayer confirms."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from random_nets import boxes_for, random_flat, random_image, relu_mlp, samples

from certify.attacks.probe import Descents, gradients, probe, products, pull_rows, spread_aims
from certify.attacks.replay import Replay
from certify.bounding.target import Target
from certify.ops import Linear
from certify.property import Box, Case, LpBall, Polytope
from certify.verdict import Witness


class Judge:
    """A replayer that runs the graph in float64; `seen` are all points that it was asked about."""

    def __init__(self, graph):
        self.graph, self.seen = graph, []

    def replay(self, x, case):
        x = np.asarray(x).reshape(self.graph.input_shape)
        self.seen.append(x)
        y = self.graph(x[None])[0].ravel()
        margin = min(-p.violation(y) for p in case.unsafe)
        return Replay(Witness(x, y) if margin <= 0 else None, margin)

    def replay_batch(self, xs, cases):
        return [self.replay(x, case) for x, case in zip(xs, cases, strict=True)]


def unsafe(rows, offset):
    rows, offset = np.atleast_2d(rows).astype(float), np.atleast_1d(offset).astype(float)
    return Polytope(rows, offset, offset, np.zeros(len(offset), dtype=bool))


@pytest.mark.parametrize("make", [random_flat, random_image], ids=["flat", "image"])
@pytest.mark.parametrize("seed", range(6))
def test_gradients_are_those_of_autograd(make, seed):
    graph = make(seed)
    lower, upper = (side[1] for side in boxes_for(graph, seed))
    x = samples(lower, upper, seed, 5)
    rows = np.random.default_rng(seed).standard_normal((5, int(np.prod(graph.output_shape))))
    found = gradients(graph.cast(np.zeros(1)), graph.cast(np.zeros(1)).evaluate(x), rows)
    wide = torch.tensor(x, requires_grad=True)
    y = graph.cast(torch.zeros(1, dtype=torch.float64))(wide).reshape(5, -1)
    (true,) = torch.autograd.grad((y * torch.tensor(rows)).sum(), wide)
    assert np.allclose(found, true.numpy().reshape(5, -1), atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_a_counterexample_that_sampling_finds_is_found(seed):
    graph = relu_mlp(seed, 4, 10, 10, 3)
    lower, upper = -np.ones(4), np.ones(4)
    y = graph(samples(lower, upper, seed, 2000))
    case = Case(Box.exact(lower, upper), (unsafe(np.eye(3)[:2], y[7, :2] + 0.01), unsafe([0, 0, 1.0], -1e9)))
    judge = Judge(graph)
    found = probe(graph.cast(np.zeros(1)), judge, case, seed=seed, deadline=math.inf)
    assert found.witness is not None
    assert found.best_margin <= 0
    assert all((x >= lower).all() and (x <= upper).all() for x in judge.seen)


def test_only_the_replayer_decides():
    """Unsafe everywhere in our arithmetic, but the judge never agrees: no witness, and the judge's own margin."""
    graph = relu_mlp(0, 2, 3, 1)

    class Never(Judge):
        def replay(self, x, case):
            return Replay(None, 0.25)

    case = Case(Box.exact(np.zeros(2), np.ones(2)), (unsafe([1.0], 1e9),))
    found = probe(graph.cast(np.zeros(1)), Never(graph), case, seed=0, deadline=time.monotonic() + 60)
    assert found.witness is None
    assert found.best_margin == 0.25


def test_cases_that_it_does_not_take():
    graph = relu_mlp(0, 2, 3, 1)
    box = Box.exact(np.zeros(2), np.ones(2))
    ball = LpBall(np.zeros(2), 1.0, 1.0, 2, box)
    for case in (Case(box, ()), Case(ball, (unsafe([1.0], 1e9),))):
        found = probe(graph.cast(np.zeros(1)), Judge(graph), case, seed=0, deadline=math.inf)
        assert found.witness is None
        assert found.best_margin == math.inf


def test_what_is_pulled_down():
    """Two polytopes: y0 <= 1 and y1 <= 0, or y1 <= 5. At y = (3, 2): the nearest, or the one aimed at."""
    case = Case(Box.exact(np.zeros(1), np.ones(1)), (unsafe(np.eye(2), [1.0, 0.0]), unsafe([0.0, 1.0], 5.0)))
    target = Target.of(case)
    slack = target.slack(np.repeat(np.array([[3.0, 2.0]]) @ target.rows.T, 3, axis=0))
    rows = pull_rows(target, slack, np.array([-1, 0, 0]))
    assert rows.tolist() == [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


def test_aims_and_products():
    assert spread_aims(6, 2, 0).tolist() == [-1, 0, -1, 1, -1, 0]
    graph = relu_mlp(0, 2, 3, 1)
    assert products(graph) == sum(
        int(np.prod(n.shape)) * max(n.op.weight.shape) for n in graph.nodes if isinstance(n.op, Linear)
    )


def test_descents_run_on_torch_graphs_too():
    graph = relu_mlp(1, 3, 8, 2)
    case = Case(Box.exact(-np.ones(3), np.ones(3)), (unsafe([1.0, 0.0], -1e9),))
    found = []
    for sample in (np.zeros(1), torch.zeros(1, dtype=torch.float64)):
        state = Descents(graph.cast(sample), sample, Target.of(case), -np.ones(3), np.ones(3), lambda points: None)
        values, slack = state.evaluate(np.full((2, 3), 0.1))
        state.descend(np.full((2, 3), 0.1), np.array([-1, 0]), 0.0, math.inf)
        found.append((np.asarray(values[-1]), slack, state.steps))
    assert np.allclose(found[0][0], found[1][0])
    assert np.allclose(found[0][1], found[1][1])
    assert found[0][2] == found[1][2] == 40
