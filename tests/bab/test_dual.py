"""The search's float bound: below every point of the subproblem, whatever the variables; its gradient is its slope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bab_cases import belongs, descent, exact_values, hostile, margin_of, open_root
from random_nets import Builder

from certify.bab.ascend import AscentOptions, ascend, to_simplex
from certify.bab.dual import Batch, Variables, ascent, bound, minimiser
from certify.bounding.region import Region, minimum
from certify.ops.relu import Relu

CASES = [("mlp", 2, 0), ("mlp", 4, 2), ("flat", 4, 0), ("flat", 6, 1), ("smooth", 2, 0), ("smooth", 4, 2)]
CASES += [("image", 1, 0), ("image", 3, 1), ("image", 6, 0)]
every_case = pytest.mark.parametrize(("kind", "seed", "p"), CASES)


@every_case
def test_no_point_of_a_subproblem_is_below_its_bound_whatever_the_variables(kind, seed, p):
    rng = np.random.default_rng([43, seed])
    graph, case, root = open_root(kind, seed, p=p, wide=True)
    found = exact_values(graph, case, seed, 25)
    compared = 0
    for subs in descent(root, rng):
        subs = hostile(root, subs, rng)
        value = bound(*Batch.of(root.problem, subs)).value.tolist()
        for row in range(len(subs)):
            inside = [
                float(margin_of(root, subs.polytope[row], x[-1].ravel())) for x in found if belongs(root, subs, row, x)
            ]
            compared += len(inside)
            assert all(value[row] <= m + 1e-9 * (1 + abs(value[row]) + abs(m)) for m in inside)
    assert compared > 50


def flatten(variables):
    return [*variables.slopes.values(), *variables.multipliers.values(), variables.mix]


def rebuilt(variables, leaves):
    leaves = iter(leaves)
    slopes = {k: next(leaves) for k in variables.slopes}
    return Variables(slopes, {k: next(leaves) for k in variables.multipliers}, next(leaves))


def generic(root, subs, rng):
    """Variables away from the kinks at their limits."""
    slopes = {k: torch.as_tensor(0.02 + 0.2 * rng.random(tuple(v.shape))) for k, v in subs.slopes.items()}
    multipliers = {k: torch.as_tensor(rng.standard_normal(tuple(v.shape))) for k, v in subs.multipliers.items()}
    return replace(hostile(root, subs, rng), slopes=slopes, multipliers=multipliers)


@every_case
def test_the_gradient_is_the_slope_of_the_bound(kind, seed, p):
    """Along random directions: a central difference, wherever the two one-sided ones agree (no kink between)."""
    rng = np.random.default_rng([44, seed])
    _, _, root = open_root(kind, seed, p=p, wide=True, cut=1.0)
    agreed = 0
    for subs in descent(root, rng, depth=4):
        batch, variables = Batch.of(root.problem, generic(root, subs, rng))
        taken = bound(batch, variables)
        gradient = ascent(batch, variables, taken).gradient
        for leaf in range(len(flatten(variables))):
            step = 1e-6 * torch.as_tensor(rng.standard_normal(tuple(flatten(variables)[leaf].shape)))
            ends = []
            for sign in (1, -1):
                moved = list(flatten(variables))
                moved[leaf] = moved[leaf] + sign * step
                ends.append(bound(batch, rebuilt(variables, moved)).value)
            slope = flatten(gradient)[leaf] * step
            along = slope.sum(dim=(0, 2) if slope.ndim == 3 else 1)
            small = 1e-11 * (1 + taken.value.abs())
            smooth = (ends[0] + ends[1] - 2 * taken.value).abs() < small
            wrong = (0.5 * (ends[0] - ends[1]) - along).abs() > 1e-3 * along.abs() + small
            assert not bool((smooth & wrong).any())
            agreed += int((smooth & (along.abs() > 1e3 * small)).sum())
    assert agreed > 20


@every_case
def test_an_ascent_never_loses_and_stays_where_the_bound_is_valid(kind, seed, p):
    rng = np.random.default_rng([45, seed])
    _, _, root = open_root(kind, seed, p=p)
    for subs in descent(root, rng, depth=4):
        batch, variables = Batch.of(root.problem, subs)
        first = bound(batch, variables).value
        best = ascend(batch, variables, AscentOptions(iterations=8))
        assert (best.value >= first).all()
        assert torch.equal(bound(batch, best.variables).value, best.value)
        for node, slope in best.variables.slopes.items():
            ceiling = 1.0 if isinstance(root.problem.graph.nodes[node].op, Relu) else 0.25
            assert ((slope >= 0) & (slope <= ceiling)).all()
        for start, v in best.variables.multipliers.items():
            assert ((v >= batch.lowest[start]) & (v <= batch.highest[start])).all()
        mix = best.variables.mix
        assert (mix >= 0).all()
        assert torch.allclose(mix.sum(dim=1), torch.ones(len(mix)))
        assert not bool(mix[~root.problem.rows[subs.polytope]].any())


def test_an_ascent_may_be_stopped():
    _, _, root = open_root("mlp", 0)
    batch, variables = Batch.of(root.problem, root.subproblems)
    asked = []

    def stop(value):
        asked.append(value)
        return len(asked) == 3

    ascend(batch, variables, AscentOptions(iterations=50), stop=stop)
    assert len(asked) == 3


def test_a_split_neurons_multiplier_closes_what_no_slope_can_by_hand():
    """y = relu(x) - x + relu(-x) = 0 on [-1, 1], with y <= -1/2 unsafe: after x >= 0 or x <= 0 the bound is 1/2."""
    from bab_cases import case_of, start_of

    from certify.bab.branching import Splits, children
    from certify.bab.root import begin, certified
    from certify.property import Box

    b = Builder((1,))
    both = b.relu(b.linear(0, np.array([[1.0], [-1.0]])))
    y = b.sub(b.linear(both, np.array([[1.0, 1.0]])), b.abs(0))
    graph = b.graph(y)
    case = case_of(Box.exact(-np.ones(1), np.ones(1)), (np.ones((1, 1)), [-0.5]))
    root = begin(start_of(graph, case))
    kids = root.subproblems
    total = sum(len(f) for f in root.problem.free.values())
    for neuron in range(total):
        kids = children(root.problem, kids, Splits(torch.full((len(kids),), neuron), torch.zeros(len(kids))))
    best = ascend(*Batch.of(root.problem, kids), AscentOptions(iterations=60))
    found = replace(kids, slopes=best.variables.slopes, multipliers=best.variables.multipliers)
    lower = certified(root, found).lower
    assert (lower >= 0.5 - 1e-3).all()  # empty children may rise above
    assert float(lower.min()) <= 0.5


@pytest.mark.parametrize("p", [0, 1, 2])
def test_the_minimiser_attains_the_minimum(p):
    rng = np.random.default_rng([46, p])
    a = torch.as_tensor(rng.standard_normal((20, 4)))
    center, radius = torch.as_tensor(rng.standard_normal((1, 4))), torch.tensor([0.7], dtype=torch.float64)
    low, high = center - 0.7, center + 0.7
    region = Region(low, high, center, radius, p) if p else Region(low, high)
    least = minimum(a[None], region, rounding=False)[0]
    x = minimiser(a, region)
    assert torch.allclose((a * x).sum(dim=1), least)
    assert ((x >= low) & (x <= high)).all()


@pytest.mark.parametrize("seed", range(5))
def test_to_simplex_is_the_projection(seed):
    """KKT: p >= 0, sum p = 1, and p = max(x - threshold, 0) for one threshold a row, among the allowed entries."""
    rng = np.random.default_rng([47, seed])
    x = torch.as_tensor(rng.standard_normal((50, 5)) * 10.0 ** rng.uniform(-4, 3, (50, 1)))
    allowed = torch.as_tensor(rng.random((50, 5)) < 0.6)
    allowed[:, 0] |= ~allowed.any(dim=1)
    p = to_simplex(x, allowed)
    assert (p >= 0).all()
    assert not bool(p[~allowed].any())
    assert torch.allclose(p.sum(dim=1), torch.ones(50, dtype=p.dtype))
    size = 1e-12 * (1 + x.abs().max(dim=1).values)
    for row in range(50):
        inside, outside = allowed[row] & (p[row] > 0), allowed[row] & (p[row] == 0)
        threshold = (x[row] - p[row])[inside]
        assert threshold.max() - threshold.min() <= size[row]
        assert (x[row][outside] <= threshold.max() + size[row]).all()


def test_to_simplex_by_hand():
    x = torch.tensor([[0.5, 0.5, 9.0], [3.0, 0.0, 0.0], [-5.0, -5.0, -5.0]])
    allowed = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    want = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert torch.allclose(to_simplex(x, allowed), want)
