"""What decides a search by splits of neurons: lower bounds in exact rationals, whatever is handed over."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from bab_cases import belongs, case_of, descent, exact_values, hostile, margin_of, open_root, start_of
from exact import exact, run
from random_nets import Builder, relu_mlp

from certify import ops
from certify.bab.branching import Splits, children
from certify.bab.envelope import framed, with_planes
from certify.bab.root import begin, certified
from certify.graph import Graph, Node
from certify.property import Box

SCALES = (1.0, 1e-12, 1e12, 1e-25, 1e25, 1e-150, 1e120)  # beyond 1e+-28 the weights do not fit into float32
CASES = [(kind, seed) for kind in ("mlp", "flat", "smooth", "image") for seed in (2, 3, 6)]


def compare(graph, case, root, generations, found):
    """No point that satisfies the splits is below the bound, nor below the weighted plane at the point, exactly."""
    compared = 0
    for subs in generations:
        result = certified(root, subs)
        for row, lower in enumerate(result.lower.tolist()):
            inside = [x for x in found if belongs(root, subs, row, x)]
            if not np.isfinite(lower):
                assert not lower > 0
                continue
            plane = exact(result.coeff[row]), Fraction(float(result.constant[row]))
            weight = exact(subs.mix[row].clamp(min=0) * root.problem.rows[subs.polytope[row]]).sum()
            for x in inside:
                truth = margin_of(root, subs.polytope[row], x[-1].ravel())
                assert Fraction(lower) <= truth
                assert (plane[0] * x[0].ravel()).sum() + plane[1] <= weight * truth
                compared += 1
    return compared


@pytest.mark.parametrize(("kind", "seed"), CASES)
@pytest.mark.parametrize("turn", [0, 1])
def test_no_point_is_below_what_is_certified(kind, seed, turn):
    """Any slopes, multipliers and weights of the rows, at every scale of the weights."""
    p = (turn + seed) % 3
    rng = np.random.default_rng([50, seed, p])
    scale = SCALES[(seed + 3 * p) % len(SCALES)]
    graph, case, root = open_root(kind, seed, p=p, scale=scale)
    found = exact_values(graph, case, seed, 12)
    generations = (hostile(root, subs, rng, float(rng.choice([0, 1, scale]))) for subs in descent(root, rng, 4))
    assert compare(graph, case, root, generations, found) > 20


@pytest.mark.parametrize("p", [0, 1, 2])
@pytest.mark.parametrize("seed", [2, 3, 4, 6])
def test_no_point_is_below_what_planes_certify(seed, p):
    """Any shares of the weights, any part of the upper bounds."""
    rng = np.random.default_rng([54, seed, p])
    graph, case, root = open_root("mlp", seed, p=p, scale=SCALES[seed])
    root = framed(root)
    found = exact_values(graph, case, seed, 12)
    first = with_planes(root, root.subproblems)
    tables = {
        node: torch.as_tensor(rng.integers(0, 256, tuple(table.shape))).to(torch.uint8)
        for node, table in first.shares.tables.items()
    }
    lifted = replace(root, subproblems=replace(first, shares=replace(first.shares, tables=tables)))
    generations = [hostile(root, subs, rng, SCALES[seed]) for subs in descent(lifted, rng, 4)]
    plain = replace(generations[0], shares=None, slopes={k: v[:1] for k, v in generations[0].slopes.items()})
    assert not torch.equal(certified(root, generations[0]).lower, certified(root, plain).lower)
    assert compare(graph, case, root, generations, found) > 20


@pytest.mark.parametrize("seed", range(4))
def test_variables_out_of_range_prove_nothing_wrong(seed):
    """Slopes beyond [0, 1], negative weights, weights of padding rows, NaN and infinities."""
    rng = np.random.default_rng([51, seed])
    graph, case, root = open_root("mlp", 4)
    found = exact_values(graph, case, seed, 15)

    def damage(x):
        bad = rng.choice(
            [1.0, -1.0, 3.0, 1e30, np.inf, np.nan], size=tuple(x.shape), p=[0.8, 0.1, 0.07, 0.01, 0.01, 0.01]
        )
        return x * torch.as_tensor(bad).to(x.dtype)

    def damaged(subs):
        subs = hostile(root, subs, rng)
        slopes = {k: damage(v + 0.5) for k, v in subs.slopes.items()}
        multipliers = {k: damage(v) for k, v in subs.multipliers.items()}
        return replace(subs, slopes=slopes, multipliers=multipliers, mix=damage(subs.mix + 0.1))

    generations = [damaged(subs) for _ in range(4) for subs in descent(root, rng, 4)]
    assert compare(graph, case, root, generations, found) > 50


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_points_and_thin_boxes(seed):
    """Boxes with lower == upper in some or all coordinates: rounding is all there is."""
    graph = relu_mlp(seed, 3, 6, 6, 2)
    rng = np.random.default_rng([52, seed])
    for free in (0, 1):
        x = rng.standard_normal(3)
        upper = x.copy()
        upper[:free] += 2.0
        y = run(graph, x)
        rows = rng.standard_normal((2, 2))
        case = case_of(Box.exact(x, upper), (rows, [float(v) for v in exact(rows) @ y]))
        start = start_of(graph, case)
        if start is None:
            continue
        root = begin(start)
        generations = [hostile(root, subs, rng) for subs in descent(root, rng, 3)]
        compare(graph, case, root, generations, exact_values(graph, case, seed, 10))
        lower = certified(root, root.subproblems).lower
        assert Fraction(float(lower[0])) <= max(exact(rows) @ y - exact(case.unsafe[0].offset))


def absolute_value(count):
    """y = |x| written with its input as the start node of a ReLU."""
    b = Builder((count,))
    return b.graph(b.sub(b.linear(b.relu(0), 2 * np.eye(count)), 0))


@pytest.mark.parametrize("seed", range(3))
def test_the_input_itself_may_be_split(seed):
    rng = np.random.default_rng([53, seed])
    graph = absolute_value(3)
    rows = rng.standard_normal((2, 3)) + 1
    case = case_of(Box.exact(-np.ones(3), 1 + rng.random(3)), (rows, [0.5, 0.5]))
    root = begin(start_of(graph, case))
    assert list(root.problem.free) == [0]
    found = exact_values(graph, case, seed, 40)
    generations = [hostile(root, subs, rng) for _ in range(3) for subs in descent(root, rng, 4)]
    assert compare(graph, case, root, generations, found) > 50


def test_a_multiplier_lends_the_box_of_a_split_by_hand():
    """min |x| over x >= 1/2, a split at the input: with multiplier 1 the bound is 1/2, without it 0."""
    graph = absolute_value(1)
    case = case_of(Box.exact(-np.ones(1), np.ones(1)), (np.ones((1, 1)), [0.0]))
    root = begin(start_of(graph, case))
    kids = children(root.problem, root.subproblems, Splits(torch.tensor([0]), torch.tensor([0.5])))
    upper = kids.take(torch.tensor([1]))
    plain = replace(upper, multipliers={0: torch.zeros(1, 1)})
    lent = replace(upper, multipliers={0: torch.ones(1, 1)})
    assert float(certified(root, lent).lower) == pytest.approx(0.5, abs=1e-12)
    assert float(certified(root, lent).lower) <= 0.5
    assert float(certified(root, plain).lower) < 0


def test_mixed_rows_whose_weights_underflow_prove_nothing():
    """Weights times coefficients below the normal numbers: their rounding meets outputs of 1e200."""
    graph = Graph((Node("x", ops.Input(), (), (1,)), Node("y", ops.Linear(np.full((2, 1), 1e200)), (0,), (2,))))
    tiny = 5e-324
    rows = np.array([[3 * tiny, 0.0], [0.0, -3 * tiny]])
    offset = np.array([1e-123, 1e-123])
    case = case_of(Box.exact(np.ones(1), np.ones(1)), (rows, offset))
    root = begin(start_of(graph, case))
    truth = margin_of(root, 0, run(graph, np.ones(1)))
    for weight in np.linspace(0.01, 0.99, 60):
        mix = torch.tensor([[weight, 1 - weight]], dtype=root.subproblems.mix.dtype)
        assert exact(certified(root, replace(root.subproblems, mix=mix)).lower)[0] <= truth


def test_nonlinear_nodes_may_feed_one_another():
    """relu(sigmoid(x)) and sigmoid(relu(x)): a start node that is itself nonlinear crashed what decides."""
    b = Builder((2,))
    x = b.linear(0, np.array([[1.0, -1.0], [1.0, 1.0]]))
    graph = b.graph(b.linear(b.concat([b.relu(b.sigmoid(x)), b.sigmoid(b.relu(x))], 0), np.ones((1, 4))))
    case = case_of(Box.exact(-np.ones(2), np.ones(2)), (np.ones((1, 1)), [2.0]))
    root = begin(start_of(graph, case))
    found = exact_values(graph, case, 0, 30)
    rng = np.random.default_rng(54)
    generations = [hostile(root, subs, rng) for subs in descent(root, rng, 4)]
    assert compare(graph, case, root, generations, found) > 20


def test_the_root_certifies_what_alpha_crown_did():
    for kind, seed in CASES:
        _, _, root = open_root(kind, seed)
        lower, subs = certified(root, root.subproblems).lower, root.subproblems
        assert (
            torch.allclose(torch.fmax(lower, subs.lower), subs.lower, rtol=1e-6, atol=1e-9)
            or (lower > subs.lower).any()
        )


@pytest.mark.parametrize("seed", [2, 4])
def test_polytopes_that_are_excluded_already_are_left_out_but_bound_the_margin(seed):
    graph = relu_mlp(seed, 3, 6, 6, 2)
    lower, upper = -np.ones(3), np.ones(3)
    y = graph(np.zeros((1, 3)))[0]
    near, far = ([[1.0, 0.0]], [float(y[0]) + 0.1]), ([[0.0, 1.0]], [float(y[1]) - 100.0])
    root = begin(start_of(graph, case_of(Box.exact(lower, upper), near, far)))
    assert len(root.subproblems) == 1
    assert root.problem.coeff[0, 0].tolist() == [1.0, 0.0]
    assert 0 < root.lower < 101
