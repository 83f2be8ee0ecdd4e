"""The search is complete on ReLU networks: it proves a margin exactly up to its minimum, and finds what lies below."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from exact import exact, run
from minimum import minima
from mip_cases import enumerable, known_of, network, row
from random_nets import samples

from certify.mip.branch import Split, Tree, split_knowledge
from certify.mip.margin import margin_program
from certify.mip.sparse import Matrices
from certify.property import Polytope


def far():
    return time.monotonic() + 100


def searcher(graph, known, polytope):
    """(answer, accepted candidate or None), candidates judged by the float64 network."""
    accepted = []

    def look(x):
        y = known.graph(x.reshape(1, *known.graph.input_shape)).ravel()
        if (polytope.coeff @ y - polytope.offset).max() <= 0:
            accepted.append(x)
        return -math.inf if accepted else 0.0

    answer = Tree(margin_program(Matrices(known.graph), known, polytope), look).run(far())
    return answer, accepted[0] if accepted else None


@pytest.mark.parametrize(("kind", "seed"), [("flat", s) for s in range(10)] + [("image", s) for s in range(5)])
def test_the_search_decides_on_both_sides_of_the_exact_minimum(kind, seed):
    graph, lower, upper = enumerable(kind, seed)
    known = known_of(graph, lower, upper)
    for k, point in enumerate(minima(graph, lower, upper)):
        least = graph(point[None]).ravel()[k]
        gap = 1e-4 * (1 + abs(least))
        safe, nothing = searcher(graph, known, row(*np.eye(2)[k], offset=least - gap))
        assert nothing is None
        assert 0 < safe.lower <= gap * (1 + 1e-6)
        assert exact(np.array([safe.lower]))[0] <= run(graph, point)[k] - exact(np.array([least - gap]))[0]
        unsafe, found = searcher(graph, known, row(*np.eye(2)[k], offset=least + gap))
        assert unsafe.stopped
        assert not unsafe.lower > 0
        assert found is not None


@pytest.mark.parametrize(("kind", "seed"), [("flat", s) for s in range(14)] + [("image", s) for s in range(6)])
def test_a_proof_is_below_every_sample(kind, seed):
    """Conjunctions of two rows, placed near the smallest sample; more neurons than can be enumerated."""
    graph, lower, upper = network(kind, seed)
    known = known_of(graph, lower, upper)
    rng = np.random.default_rng([74, seed])
    coeff = rng.standard_normal((2, 2))
    out = graph(samples(lower, upper, seed, 500)).reshape(500, -1)
    least = (out @ coeff.T).max(axis=1).min()
    for shift in (-0.05, 0.05):
        offset = np.full(2, least + shift * (1 + abs(least)))
        polytope = Polytope(coeff, offset, offset, np.zeros(2, dtype=bool))
        answer, found = searcher(graph, known, polytope)
        if answer.lower > 0:
            assert shift < 0
            assert answer.lower <= (out @ coeff.T - offset).max(axis=1).min()
        else:
            assert answer.stopped
            assert found is not None
        assert answer.stopped is (found is not None)


def test_the_boxes_of_splits_are_those_of_their_neurons():
    graph, lower, upper = enumerable("flat", 1)
    known = known_of(graph, lower, upper, crown=False)
    margin = margin_program(Matrices(known.graph), known, row(1.0, 0.0))
    phases = margin.encoding.phases
    total = sum(len(p.neurons) for p in phases)
    splits = [Split(((n, 1 if n % 2 else -1),)) for n in range(total)]
    split = split_knowledge(known, phases, [*splits, Split()])
    places = [(known.graph.nodes[p.node].inputs[0], n) for p in phases for n in p.neurons]
    for b, (source, neuron) in enumerate(places):
        low, high = (side[b] for side in split.flat(source))
        old_low, old_high = (side[0] for side in known.flat(source))
        others = np.arange(low.size) != neuron
        np.testing.assert_array_equal(low[others], old_low[others])
        assert (low[neuron], high[neuron]) == ((0, old_high[neuron]) if b % 2 else (old_low[neuron], 0))


def test_out_of_time_the_search_can_go_on_and_its_bound_only_rises():
    """In portions of a few nodes: the certified bound never falls, and ends where one portion ends."""
    graph, lower, upper = network("flat", 5)
    known = known_of(graph, lower, upper)
    polytope = row(1.0, 0.5)
    least = (graph(samples(lower, upper, 5, 3000)) @ polytope.coeff[0]).min() - 1e-3
    polytope = row(1.0, 0.5, offset=least)
    margin = margin_program(Matrices(known.graph), known, polytope)
    assert Tree(margin, lambda x: 0.0).run(-math.inf).lower == -math.inf
    tree, bounds = Tree(margin, lambda x: 0.0), []
    for _ in range(200):
        answer = tree.run(far(), nodes=3)
        bounds.append(answer.lower)
        if not answer.left:
            break
    assert bounds == sorted(bounds)
    whole = Tree(margin, lambda x: 0.0).run(far())
    assert (whole.lower > 0) is (bounds[-1] > 0)


@pytest.mark.parametrize("seed", range(8))
def test_minimising_ends_at_the_exact_minimum(seed):
    graph, lower, upper = enumerable("flat", seed)
    known = known_of(graph, lower, upper)
    for k, point in enumerate(minima(graph, lower, upper)):
        least = graph(point[None]).ravel()[k]
        gap, best = 1e-6 * (1 + abs(least)), [math.inf]

        def look(x, k=k, best=best, gap=gap):
            best[0] = min(best[0], float(known.graph(x.reshape(1, *known.graph.input_shape)).ravel()[k]))
            return best[0] - gap

        answer = Tree(margin_program(Matrices(known.graph), known, row(*np.eye(2)[k])), look, math.inf).run(far())
        assert answer.left == 0
        assert answer.lower <= least <= best[0] + 1e-9
        assert answer.lower >= best[0] - 2 * gap
