"""Duals only propose: any give a valid bound, optimal ones give the LP's optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import exact, run
from minimum import minima
from mip_cases import enumerable, known_of, network, row
from random_nets import Builder, samples

from certify.bounding.crown import backward, row_form
from certify.mip.margin import answer, certified, leaf, margin_program
from certify.mip.sparse import Matrices
from certify.property import Polytope
from certify.solvers.highs import HighsModel
from certify.solvers.program import Status

NETS = [("flat", s) for s in range(14)] + [("image", s) for s in range(8)]
every_net = pytest.mark.parametrize(("kind", "seed"), NETS, ids=[f"{k}-{s}" for k, s in NETS])


def solved(graph, known, polytope):
    margin = margin_program(Matrices(graph), known, polytope)
    return margin, HighsModel(margin.program).solve()


@every_net
def test_certified_duals_attain_the_lps_optimum(kind, seed):
    """... and with it CROWN's bound at least: its slopes are duals, too."""
    graph, lower, upper = network(kind, seed)
    known = known_of(graph, lower, upper)
    for polytope in (row(1.0, -1.0, offset=0.25), row(-0.5, 0.25)):
        margin, solution = solved(known.graph, known, polytope)
        assert solution.status is Status.OPTIMAL
        found = answer(margin, solution)
        assert found.lower == pytest.approx(solution.objective, abs=1e-6 * (1 + abs(solution.objective)))
        crown = backward(known, row_form(known.graph.output, polytope.coeff[None]))[0, 0] - polytope.offset[0]
        assert found.lower >= crown - 1e-9 * (1 + abs(crown))


@pytest.mark.parametrize("seed", range(10))
def test_certified_duals_of_smooth_networks_are_at_least_as_good_as_the_lp(seed):
    """Our pass has all tangents, the LP a few."""
    graph, lower, upper = network("flat", 40 + seed, smooth=True)
    known = known_of(graph, lower, upper)
    margin, solution = solved(known.graph, known, row(1.0, -1.0))
    assert answer(margin, solution).lower >= solution.objective - 1e-6 * (1 + abs(solution.objective))


@pytest.mark.parametrize("smooth", [False, True], ids=["relu", "smooth"])
@every_net
def test_damaged_duals_only_loosen_the_bound(kind, seed, smooth):
    """Random, zero, huge, scaled, not finite: below the LP's optimum, and below the network's samples, exactly."""
    graph, lower, upper = network(kind, seed, smooth=smooth)
    known = known_of(graph, lower, upper)
    polytope = row(1.0, -1.0)
    margin, solution = solved(known.graph, known, polytope)
    rng = np.random.default_rng([72, seed])
    dual = solution.row_dual
    damaged = [
        np.zeros_like(dual),
        rng.standard_normal(dual.shape),
        1e12 * rng.standard_normal(dual.shape),
        dual * (1 + 0.1 * rng.standard_normal(dual.shape)),
        -dual,
        np.where(rng.random(dual.shape) < 0.3, np.nan, dual),
        np.where(rng.random(dual.shape) < 0.3, np.inf, dual),
    ]
    best = answer(margin, solution).lower
    xs = samples(lower, upper, seed, 200)
    worst = xs[(graph(xs).reshape(200, -1) @ polytope.coeff[0]).argmin()]
    truth = (exact(polytope.coeff) @ run(graph, worst))[0] if not smooth else None
    for duals in damaged:
        bound = certified(margin, duals[None])[0]
        if not smooth:
            assert bound <= best + 1e-6 * (1 + abs(best))
            assert exact(np.array([bound]))[0] <= truth
        else:
            assert bound <= (graph(xs).reshape(200, -1) @ polytope.coeff[0]).min() + 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_the_certified_bound_is_below_the_exact_minimum(seed):
    graph, lower, upper = enumerable("flat", seed)
    known = known_of(graph, lower, upper)
    for k, point in enumerate(minima(graph, lower, upper)):
        found = leaf(Matrices(known.graph), known, row(*np.eye(2)[k]))
        assert exact(np.array([found.lower]))[0] <= run(graph, point)[k]


@every_net
def test_a_conjunction_is_bounded_by_its_best_mixture(kind, seed):
    """Two rows: the certified margin is the LP's, at least that of each row alone, and below max_r at samples."""
    graph, lower, upper = network(kind, seed)
    known = known_of(graph, lower, upper)
    rng = np.random.default_rng([73, seed])
    coeff, offset = rng.standard_normal((2, 2)), rng.standard_normal(2)
    both = Polytope(coeff, offset, offset, np.zeros(2, dtype=bool))
    matrices = Matrices(known.graph)
    found = leaf(matrices, known, both)
    assert found.lower == pytest.approx(found.solver, abs=1e-6 * (1 + abs(found.solver)))
    alone = [leaf(matrices, known, row(*c, offset=d)).lower for c, d in zip(coeff, offset, strict=True)]
    assert found.lower >= max(alone) - 1e-6
    out = graph(samples(lower, upper, seed, 300)).reshape(300, -1)
    assert found.lower <= (out @ coeff.T - offset).max(axis=1).min()


def wall(gap, weight=1.0):
    """y = weight * relu(x) - gap on [-1, 1]: its least value is -gap, at every x <= 0."""
    b = Builder((1,))
    return b.graph(b.linear(b.relu(b.linear(0, np.ones((1, 1)))), np.full((1, 1), weight), np.full(1, -gap)))


@pytest.mark.parametrize("gap", [1e-7, 1e-9, 1e-12, 1e-200])
def test_a_gap_below_the_solvers_tolerance_is_not_called_safe(gap):
    """DESIGN's trap: the solver takes -1e-9 for 0 or better; the pass in our arithmetic does not."""
    graph = wall(gap)
    known = known_of(graph, -np.ones(1), np.ones(1))
    assert leaf(Matrices(known.graph), known, row(1.0)).lower <= 0


@pytest.mark.parametrize("size", [1e-10, 1e-13, 1e-20])
def test_coefficients_that_the_solver_drops_are_not_called_safe(size):
    """y = size (x + 1) + size / 2 > 0 is safe and y = size x + size / 2 is not; both coefficients are dropped."""
    for shift, safe in ((1.5 * size, True), (0.5 * size, False)):
        b = Builder((1,))
        graph = b.graph(b.linear(0, np.full((1, 1), size), np.full(1, shift)))
        known = known_of(graph, -np.ones(1), np.ones(1))
        found = leaf(Matrices(known.graph), known, row(1.0))
        assert (found.lower > 0) is safe


def test_a_subproblem_that_its_splits_make_empty_is_proved_empty():
    """y1 = relu(x), y2 = relu(x - 1) on [-2, 2]: x inactive and x - 1 active at once is impossible."""
    b = Builder((1,))
    hidden = b.linear(0, np.ones((2, 1)), np.array([0.0, -1.0]))
    graph = b.graph(b.linear(b.relu(hidden), np.array([[1.0, 1.0]])))
    root = known_of(graph, np.array([-2.0]), np.array([2.0]))
    low, high = (side.copy() for side in root.boxes[1])
    high[0, 0], low[0, 1] = 0.0, 0.0
    boxes = list(root.boxes)
    boxes[1] = low, high
    split = type(root)(root.graph, root.region, boxes, root.weights, root.floor)
    assert leaf(Matrices(graph), split, row(1.0, offset=100.0), root=root).lower == math.inf
    high[0, 0], low[0, 0] = 2.0, 0.0  # the other way round it is not
    assert leaf(Matrices(graph), split, row(1.0, offset=100.0), root=root).lower == pytest.approx(1.0 - 100.0)
