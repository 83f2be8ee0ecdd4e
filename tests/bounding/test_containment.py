"""Every bound of every node holds every point: random networks of all ops, sampled in floats, judged in rationals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact import exact, values
from random_nets import boxes_for, random_flat, random_image, samples

from certify.bounding.api import bounds
from certify.bounding.deviation import Draft
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.ops import AFFINE_OPS, NONLINEAR_OPS

FLAT_SEEDS = range(18)
IMAGE_SEEDS = range(10)
NETS = [("flat", s) for s in FLAT_SEEDS] + [("image", s) for s in IMAGE_SEEDS]
every_net = pytest.mark.parametrize(("kind", "seed"), NETS, ids=[f"{k}-{s}" for k, s in NETS])
SAMPLES = 400
FLOAT_ERROR = (
    1e-9  # of the sampled float64 evaluation: a coarse net for gross errors; the exact points have no tolerance
)


def network(kind, seed):
    return random_flat(seed, depth=2 + seed % 4) if kind == "flat" else random_image(seed, depth=2 + seed % 3)


def extreme_points(graph, lower, upper, seed):
    """The sampled points where some output is least or greatest, and the float values of all nodes at all samples."""
    xs = samples(lower, upper, seed, SAMPLES)
    nodes = graph.evaluate(xs)
    out = nodes[-1].reshape(SAMPLES, -1)
    chosen = sorted({*out.argmin(axis=0).tolist(), *out.argmax(axis=0).tolist()})[:3]
    return xs[chosen], nodes


def test_the_random_networks_hold_every_op():
    seen = {type(node.op) for kind, seed in NETS for node in network(kind, seed).nodes}
    assert not [op.__name__ for op in (*AFFINE_OPS, *NONLINEAR_OPS) if op not in seen]


@pytest.mark.parametrize("crown", [False, True], ids=["IBP", "CROWN"])
@every_net
def test_every_node_of_a_random_network_stays_inside(kind, seed, crown):
    graph = network(kind, seed)
    lower, upper = boxes_for(graph, seed)
    count = len(lower)
    wide = Region(lower.reshape(count, -1), upper.reshape(count, -1))
    runs = {}
    for name, sample in {
        "numpy64": np.zeros(1),
        "numpy32": np.zeros(1, np.float32),
        "torch64": torch.zeros(1).double(),
    }.items():
        runs[name] = propagate(graph.cast(sample), wide.cast(sample), crown=crown)
    narrow = torch.zeros(1)
    draft = Draft(graph.cast(narrow), narrow)
    wide_torch = wide.cast(torch.zeros(1).double())
    runs["draft"] = propagate(graph.cast(torch.zeros(1).double()), wide_torch, crown=crown, draft=draft)
    for b in range(count):
        points, nodes = extreme_points(graph, lower[b], upper[b], seed)
        truth = [values(graph, x) for x in points]
        for name, known in runs.items():
            for index in range(len(graph.nodes)):
                low, high = (np.asarray(side[b]) for side in known.boxes[index])
                assert not np.isnan(low).any(), (name, index)
                assert not np.isnan(high).any(), (name, index)
                size = FLOAT_ERROR * (1 + np.abs(nodes[index]))
                assert (nodes[index] >= low - size).all(), (name, index)
                assert (nodes[index] <= high + size).all(), (name, index)
                for point in truth:
                    assert (exact(low) <= point[index]).all(), (name, index)
                    assert (exact(high) >= point[index]).all(), (name, index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
@pytest.mark.parametrize(("kind", "seed"), NETS[::2], ids=[f"{k}-{s}" for k, s in NETS[::2]])
def test_outputs_of_a_random_network_stay_inside(kind, seed, method, dtype):
    graph = network(kind, seed)
    lower, upper = boxes_for(graph, seed)
    if dtype == torch.float32:  # boxes that both dtypes hold
        lower, upper = (x.astype(np.float32).astype(np.float64) for x in (lower, upper))
    low, high = bounds(graph, torch.tensor(lower, dtype=dtype), torch.tensor(upper, dtype=dtype), method, iterations=4)
    assert low.dtype == dtype
    for b in range(len(lower)):
        points, _ = extreme_points(graph, lower[b], upper[b], seed)
        for x in points:
            y = values(graph, x)[-1]
            assert (exact(low[b]) <= y).all()
            assert (exact(high[b]) >= y).all()


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown"])
def test_rows_are_bounds_of_the_combinations(method):
    graph = random_flat(3, depth=4)
    lower, upper = boxes_for(graph, 3)
    rows = np.array([[1.0, -1.0], [-2.0, 0.5], [0.0, 0.0]])
    low, high = bounds(graph, torch.tensor(lower), torch.tensor(upper), method, rows=torch.tensor(rows), iterations=4)
    assert tuple(low.shape) == (len(lower), 3)
    for b in range(len(lower)):
        points, _ = extreme_points(graph, lower[b], upper[b], 3)
        for x in points:
            y = exact(rows) @ values(graph, x)[-1].ravel()
            assert (exact(low[b]) <= y).all()
            assert (exact(high[b]) >= y).all()
