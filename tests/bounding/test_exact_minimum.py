"""Bounds never pass the exact minimum, found by an LP per activation pattern and evaluated in rationals there."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import exact, run, values
from minimum import minima, tiny_case
from random_nets import Builder, boxes_for, random_flat, samples
from scipy.optimize import minimize

from certify.bounding.api import bounds
from certify.bounding.interval import ibp
from certify.bounding.margins import Networks, prove
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.options import BOUND_METHODS
from certify.property import Box, Case, Polytope

every_method = pytest.mark.parametrize("method", BOUND_METHODS)


def lowest(graph, lower, upper, method, dtype=torch.float64, iterations=8):
    return bounds(
        graph,
        torch.tensor(lower[None], dtype=dtype),
        torch.tensor(upper[None], dtype=dtype),
        method,
        iterations=iterations,
    )


@pytest.mark.parametrize("seed", range(12))
def test_bounds_of_relu_networks_against_their_exact_minimum(seed):
    """lower <= exact minimum, without tolerance; alpha-CROWN >= CROWN >= IBP; float32 <= exact, too."""
    graph, lower, upper = tiny_case(seed)
    points = minima(graph, lower, upper)
    truth = [run(graph, x)[out] for out, x in enumerate(points)]
    found = {method: lowest(graph, lower, upper, method)[0] for method in BOUND_METHODS}
    for low in found.values():
        assert all(low_i <= true_i for low_i, true_i in zip(exact(low[0].ravel()), truth, strict=True))
    slack = 1e-12 * (1 + found["ibp"].abs())
    assert (found["crown"] >= found["ibp"] - slack).all()
    assert (found["alpha-crown"] >= found["crown"] - slack).all()
    # The points are minima indeed: no sample is lower, so the law above compares with the real thing.
    sampled = graph(samples(lower, upper, seed, 2000)).min(axis=0)
    assert (np.array([float(t) for t in truth]) <= sampled + 1e-9).all()


@pytest.mark.parametrize("seed", range(8))
def test_float32_bounds_are_below_float64_bounds_are_below_the_exact_minimum(seed):
    graph, lower, upper = tiny_case(seed)
    lower, upper = (x.astype(np.float32).astype(np.float64) for x in (lower, upper))
    points = samples(lower, upper, seed, 300)
    out = graph(points)
    for method in BOUND_METHODS[:2]:
        wide, narrow = (
            lowest(graph, lower, upper, method, dtype)[0][0].double() for dtype in (torch.float64, torch.float32)
        )
        assert (narrow <= wide + 1e-12).all()
        for k in range(out.shape[1]):
            truth = run(graph, points[out[:, k].argmin()])[k]
            assert exact(wide[k : k + 1])[0] <= truth
            assert exact(narrow[k : k + 1])[0] <= truth


@every_method
def test_a_network_without_unstable_neurons_is_bounded_exactly(method):
    """All neurons active: it is affine, and every method but IBP through several layers is exact to rounding."""
    rng = np.random.default_rng(60)
    first, second = rng.standard_normal((4, 3)), rng.standard_normal((2, 4))
    b = Builder((3,))
    graph = b.graph(b.linear(b.relu(b.linear(0, first, np.full(4, 30.0))), second, np.ones(2)))
    lower, upper = -np.ones(3), np.ones(3)
    low, high = lowest(graph, lower, upper, method)
    want = (second @ np.full(4, 30.0) + 1) - np.abs(second @ first).sum(axis=1)
    assert (low[0].numpy() <= want + 1e-12).all()
    if method != "ibp":
        np.testing.assert_allclose(low[0], want, rtol=1e-12)
        np.testing.assert_allclose(high[0], want + 2 * np.abs(second @ first).sum(axis=1), rtol=1e-12)


def test_crown_by_hand():
    """x in [-1, 1]^2, h = relu(x1 + x2), relu(x1 - x2), y = h1 + h2: IBP gives [0, 4], CROWN [0, 3].

    Lower lines of slope 0 give 0 (u = -l, the default); the upper lines (z + 2) / 2 sum to x1 + 2 <= 3.
    """
    b = Builder((2,))
    hidden = b.relu(b.linear(0, np.array([[1.0, 1.0], [1.0, -1.0]])))
    graph = b.graph(b.linear(hidden, np.array([[1.0, 1.0]])))
    lower, upper = -np.ones(2), np.ones(2)
    np.testing.assert_allclose([float(v[0, 0]) for v in lowest(graph, lower, upper, "ibp")], [0, 4], atol=1e-12)
    np.testing.assert_allclose([float(v[0, 0]) for v in lowest(graph, lower, upper, "crown")], [0, 3], atol=1e-12)
    np.testing.assert_allclose([float(v[0, 0]) for v in lowest(graph, lower, upper, "alpha-crown")], [0, 3], atol=1e-12)


@every_method
@pytest.mark.parametrize("seed", range(6))
def test_smooth_networks_against_sampling_and_local_search(seed, method):
    """lower <= the value at the best point found by dense sampling and a local search, judged in rationals."""
    graph = random_flat(40 + seed, depth=3, smooth=True)
    lower, upper = (x[1] for x in boxes_for(graph, seed))
    low, high = lowest(graph, lower, upper, method)
    xs = samples(lower, upper, seed, 3000)
    out = graph(xs)
    for k in range(out.shape[1]):
        for sign, bound in ((1, low), (-1, high)):
            start = xs[(sign * out[:, k]).argmin()]
            limits = list(zip(lower, upper, strict=True))
            better = minimize(
                lambda x, k=k, s=sign: s * graph(x[None])[0, k], start, bounds=limits, method="L-BFGS-B"
            ).x
            for x in (start, np.clip(better, lower, upper)):
                value = values(graph, x)[-1][k]
                assert sign * exact(bound[0].ravel())[k] <= sign * value


@pytest.mark.parametrize("seed", range(10))
def test_ibp_is_monotone_in_eps(seed):
    """A larger box never has tighter intervals, at any node, but for rounding."""
    graph = random_flat(seed, depth=4)
    center = np.random.default_rng([61, seed]).standard_normal(graph.input_shape)
    before = None
    for eps in (0.0, 1e-3, 0.03, 0.1, 0.5):
        boxes = ibp(graph, (center - eps)[None], (center + eps)[None])
        for index in range(len(graph.nodes)) if before is not None else ():
            slack = 1e-12 * (1 + np.abs(boxes[index][0]) + np.abs(boxes[index][1]))
            assert (boxes[index][0] <= before[index][0] + slack).all()
            assert (boxes[index][1] >= before[index][1] - slack).all()
        before = boxes


@pytest.mark.parametrize("seed", range(10))
def test_crown_of_a_smaller_box_is_within_ibp_of_the_larger(seed):
    """CROWN itself is not monotone in eps (its slopes jump), but it is always inside every enclosing interval."""
    graph = random_flat(seed, depth=4)
    center = np.random.default_rng([62, seed]).standard_normal(graph.input_shape)
    small, large = (
        propagate(graph, Region((center - e).reshape(1, -1), (center + e).reshape(1, -1)), crown=crown)
        for e, crown in ((0.1, True), (0.12, False))
    )
    for mine, theirs in zip(small.boxes, large.boxes, strict=True):
        slack = 1e-12 * (1 + np.abs(theirs[0]) + np.abs(theirs[1]))
        assert (mine[0] >= theirs[0] - slack).all()
        assert (mine[1] <= theirs[1] + slack).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_provers_margin_never_passes_the_exact_one_and_grows_with_the_method(seed):
    """prove(): margins of C y - d, over a union of polytopes and conjunctions of rows, batch of three boxes."""
    graph, lower, upper = tiny_case(seed)
    rng = np.random.default_rng([63, seed])
    outputs = graph.output_shape[0]
    cases = []
    for shrink in (1.0, 0.5, 0.1):
        middle = (lower + upper) / 2
        box = Box.exact(middle + (lower - middle) * shrink, middle + (upper - middle) * shrink)
        unsafe = tuple(_polytope(rng, outputs, rows) for rows in (1, 2))
        cases.append(Case(box, unsafe))
    nets = Networks.of(graph, torch.device("cpu"))
    proofs = {method: prove(nets, cases, method) for method in BOUND_METHODS}
    for b, case in enumerate(cases):
        xs = samples(case.inputs.lower, case.inputs.upper, seed, 500)
        worst = xs[np.argmin([_margin(case, y) for y in graph(xs)])]
        truth = _margin(case, run(graph, worst))
        lowers = [proofs[method][b].lower for method in BOUND_METHODS]
        assert all(Fraction(low) <= truth for low in lowers)
        assert lowers == sorted(lowers)


def _polytope(rng, outputs, rows):
    offset = rng.standard_normal(rows)
    return Polytope(rng.standard_normal((rows, outputs)), offset, offset, np.zeros(rows, dtype=bool))


def _margin(case, y):
    """min over polytopes of max over rows of C y - d: > 0 iff y is safe; exact for exact y."""
    if y.dtype == object:
        return min(max((exact(p.coeff) @ y) - exact(p.offset)) for p in case.unsafe)
    return min((p.coeff @ y - p.offset).max() for p in case.unsafe)


def test_a_polytope_without_rows_is_never_excluded_and_none_is_always():
    graph, lower, upper = tiny_case(0)
    box = Box.exact(lower, upper)
    everything = Polytope(np.zeros((0, graph.output_shape[0])), np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))
    nets = Networks.of(graph, torch.device("cpu"))
    proofs = prove(nets, [Case(box, (everything,)), Case(box, ())], "crown")
    assert proofs[0].lower == -np.inf
    assert proofs[1].lower == np.inf


@every_method
def test_a_conjunction_is_excluded_by_its_best_row_and_a_union_by_its_worst_polytope(method):
    """y = x on [0, 1]: {y <= -1 and y >= 9} is missed by 1 and by 8, so by 8; {y >= 3} by 2, {y >= 3/2} by 1/2."""
    b = Builder((1,))
    graph = b.graph(b.linear(0, np.ones((1, 1))))
    none = np.zeros(2, dtype=bool)
    both = Polytope(np.array([[1.0], [-1.0]]), np.array([-1.0, -9.0]), np.array([-1.0, -9.0]), none)
    far = Polytope(np.array([[-1.0]]), np.array([-3.0]), np.array([-3.0]), none[:1])
    near = Polytope(np.array([[-1.0]]), np.array([-1.5]), np.array([-1.5]), none[:1])
    box = Box.exact(np.zeros(1), np.ones(1))
    cases = [Case(box, (both,)), Case(box, (far,)), Case(box, (both, far)), Case(box, (far, near, both))]
    proofs = prove(Networks.of(graph, torch.device("cpu")), cases, method)
    np.testing.assert_allclose([p.lower for p in proofs], [8.0, 2.0, 2.0, 0.5], rtol=1e-12)
