"""What the MIPs propose is right up to the solver's tolerance, and says that it is a proposal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from minimum import minima
from mip_cases import enumerable, known_of, network, row
from random_nets import Builder, samples

from certify.mip.exact import least_distance, least_margin, reachable
from certify.mip.sparse import Matrices
from certify.property import Polytope
from certify.solvers.program import Budget
from certify.solvers.pulp_solvers import PulpSolver

NETS = [("flat", s) for s in range(8)] + [("image", s) for s in range(4)]
every_net = pytest.mark.parametrize(("kind", "seed"), NETS, ids=[f"{k}-{s}" for k, s in NETS])


def unit(k, offset=0.0):
    return row(*np.eye(2)[k], offset=offset)


@every_net
def test_the_least_margin_is_the_enumerated_one(kind, seed):
    """Over a union of two half-spaces: the smaller of the two exact minima."""
    graph, lower, upper = enumerable(kind, seed)
    known = known_of(graph, lower, upper)
    values = [graph(p[None]).ravel()[k] for k, p in enumerate(minima(graph, lower, upper))]
    shift = values[0] - values[1] + 0.125  # the second is then less by 1/8
    found = least_margin(Matrices(known.graph), known, (unit(0), unit(1, -shift)), Budget())
    want = min(values[0], values[1] + shift)
    assert found.rests_on_solver
    assert found.value == pytest.approx(want, abs=1e-5 * (1 + abs(want)))
    assert found.bound == pytest.approx(want, abs=1e-5 * (1 + abs(want)))
    y = graph(found.candidate.reshape(1, *graph.input_shape)).ravel()
    assert min(y[0], y[1] + shift) == pytest.approx(want, abs=1e-4 * (1 + abs(want)))


@every_net
def test_reachable_on_both_sides_of_the_minimum(kind, seed):
    graph, lower, upper = enumerable(kind, seed)
    known = known_of(graph, lower, upper)
    values = [graph(p[None]).ravel()[k] for k, p in enumerate(minima(graph, lower, upper))]
    gap = 1e-3 * (1 + np.abs(values))
    matrices = Matrices(known.graph)
    no = reachable(matrices, known, tuple(unit(k, values[k] - gap[k]) for k in range(2)), Budget())
    assert no.candidate is None
    assert no.rests_on_solver
    yes = reachable(matrices, known, (unit(0, values[0] - gap[0]), unit(1, values[1] + gap[1])), Budget())
    assert not yes.rests_on_solver
    assert graph(yes.candidate.reshape(1, *graph.input_shape)).ravel()[1] <= values[1] + gap[1] + 1e-5


@every_net
def test_conjunctions_need_all_their_rows(kind, seed):
    """{y0 <= a and y1 <= b} around a sample is reached there; shrunk below y1's minimum it is not."""
    graph, lower, upper = enumerable(kind, seed)
    known = known_of(graph, lower, upper)
    y = graph(samples(lower, upper, seed, 1)).ravel()
    least = graph(minima(graph, lower, upper)[1][None]).ravel()[1]
    matrices = Matrices(known.graph)
    for offset, want in ((y + 1e-3, True), (np.array([1e3, least - 1e-2]), False)):
        both = Polytope(np.eye(2), offset, offset, np.zeros(2, dtype=bool))
        found = reachable(matrices, known, (both,), Budget())
        assert (found.candidate is not None) is want
        assert found.rests_on_solver is not want


def test_the_least_distance_by_hand():
    """y = relu(x1) + relu(x2) - 1 >= 0 from the centre (0, 0): Linf 1/2 at (1/2, 1/2), L1 distance 1."""
    b = Builder((2,))
    graph = b.graph(b.linear(b.relu(b.linear(0, np.eye(2))), np.ones((1, 2)), np.array([-1.0])))
    known = known_of(graph, np.full(2, -2.0), np.full(2, 2.0))
    matrices, unsafe = Matrices(known.graph), (row(-1.0),)
    far = least_distance(matrices, known, unsafe, np.zeros(2), "linf", Budget())
    assert far.value == pytest.approx(0.5, abs=1e-6)
    assert far.candidate == pytest.approx([0.5, 0.5], abs=1e-5)
    near = least_distance(matrices, known, unsafe, np.array([0.25, -1.0]), "l1", Budget())
    assert near.value == pytest.approx(0.75, abs=1e-6)
    none = least_distance(matrices, known, (row(-1.0, offset=-50.0),), np.zeros(2), "linf", Budget())
    assert none.candidate is None
    assert none.bound == math.inf


@pytest.mark.parametrize("norm", ["linf", "l1"])
@every_net
def test_no_sample_is_nearer_than_the_least_distance(kind, seed, norm):
    graph, lower, upper = enumerable(kind, seed)
    known = known_of(graph, lower, upper)
    xs = samples(lower, upper, seed, 3000)
    out = graph(xs).reshape(len(xs), -1)[:, 0]
    offset = float(np.quantile(out, 0.1))
    center = (lower + upper) / 2
    found = least_distance(Matrices(known.graph), known, (unit(0, offset),), center, norm, Budget())
    away = np.abs(xs - center).reshape(len(xs), -1)
    distance = away.max(axis=1) if norm == "linf" else away.sum(axis=1)
    assert found.value <= distance[out <= offset].min() + 1e-6
    there = found.candidate.reshape(1, *graph.input_shape)
    assert graph(there).ravel()[0] <= offset + 1e-4 * (1 + abs(offset))


def test_a_smooth_network_never_rests_on_the_solver():
    """Its program is a relaxation: feasible says little, a closed bound is no exact minimum."""
    for seed in itertools.islice(itertools.count(), 3):
        graph, lower, upper = network("flat", 40 + seed, smooth=True)
        known = known_of(graph, lower, upper)
        assert not least_margin(Matrices(known.graph), known, (unit(0),), Budget(seconds=20)).rests_on_solver or all(
            type(n.op).__name__ != "Sigmoid" for n in graph.nodes
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")
def test_another_solver_answers_the_same():
    cbc = PulpSolver("cbc")
    if not cbc.available():
        pytest.skip("solver cbc is not installed")
    graph, lower, upper = enumerable("flat", 3)
    known = known_of(graph, lower, upper)
    answers = [least_margin(Matrices(known.graph), known, (unit(0), unit(1)), Budget(), s) for s in (None, cbc)]
    assert answers[0].value == pytest.approx(answers[1].value, abs=1e-5)
