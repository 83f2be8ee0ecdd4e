"""Backward passes on receptive windows are the ordinary passes: same bounds, whatever the geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact import exact, values
from random_nets import Builder, boxes_for, samples

from certify.bounding.crown import backward, both, unit_form
from certify.bounding.propagate import bound_neurons, propagate
from certify.bounding.region import Region
from certify.bounding.windows import frames
from certify.frontends.windows import Geometry

GEOMETRIES = {
    "plain": [((1, 1), (0, 0, 0, 0), (1, 1), 1)] * 3,
    "padded": [((1, 1), (1, 1, 1, 1), (1, 1), 1)] * 3,
    "uneven": [((1, 1), (2, 0, 0, 1), (1, 1), 1), ((1, 1), (0, 1, 2, 0), (1, 1), 1), ((1, 1), (1, 0, 1, 1), (1, 1), 1)],
    "strided": [
        ((2, 1), (1, 0, 0, 1), (1, 1), 1),
        ((1, 2), (0, 1, 1, 0), (1, 1), 1),
        ((1, 1), (1, 1, 1, 1), (1, 1), 1),
    ],
    "dilated": [
        ((1, 1), (1, 2, 2, 1), (2, 1), 1),
        ((1, 1), (2, 0, 1, 2), (1, 2), 1),
        ((1, 1), (1, 1, 1, 1), (1, 1), 1),
    ],
    "groups": [((1, 1), (1, 1, 1, 1), (1, 1), 2), ((1, 1), (1, 0, 0, 1), (1, 1), 2), ((2, 2), (1, 1, 1, 1), (1, 1), 1)],
}
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)


def network(name, *, residual=False, between=("relu", "relu"), seed=0):
    """Three convolutions with ops between, on (2, 8, 9) images; the last one's neurons are the targets."""
    rng = np.random.default_rng([90, seed])
    b = Builder((2, 8, 9))
    x = 0
    for layer, (stride, pads, dilation, groups) in enumerate(GEOMETRIES[name]):
        weight = rng.standard_normal((4, b.shape(x)[0] // groups, 2, 3)) * 0.5
        y = b.conv(x, weight, 0.3 * rng.standard_normal(4), geometry=Geometry(stride, pads, dilation), groups=groups)
        if residual and b.shape(y) == b.shape(x):
            y = b.sub(x, y)
        if layer < 2:
            x = {"relu": b.relu, "sigmoid": b.sigmoid, "nothing": lambda x: x}[between[layer]](y)
    return b.graph(b.relu(y))


def residual_network(seed=0):
    """conv, relu, then x - conv(relu(conv(x))): windows of different sizes meet at x."""
    rng = np.random.default_rng([91, seed])
    b = Builder((2, 9, 8))

    def conv(x, kernel, pads):
        weight = rng.standard_normal((3, b.shape(x)[0], *kernel)) * 0.5
        return b.conv(x, weight, 0.2 * rng.standard_normal(3), geometry=Geometry((1, 1), pads, (1, 1)))

    x = b.relu(conv(0, (2, 2), (1, 0, 0, 1)))
    y = conv(b.relu(conv(x, (3, 1), (1, 0, 1, 0))), (1, 3), (0, 2, 0, 0))
    return b.graph(b.relu(b.sub(x, y)))


def start_of(graph):
    """The node whose neurons are bounded: what the last ReLU reads."""
    return graph.nodes[graph.output].inputs[0]


def knowledge(graph, seed, library="numpy"):
    lower, upper = boxes_for(graph, seed)
    region = Region(lower.reshape(len(lower), -1), upper.reshape(len(lower), -1))
    sample = np.zeros(1) if library == "numpy" else torch.zeros(1).double()
    return propagate(graph.cast(sample), region.cast(sample)), lower, upper


def compare(graph, library):
    known, _, _ = knowledge(graph, 0, library)
    start = start_of(graph)
    plan = frames(graph, start)
    assert len(plan) > 1, "no window is small enough here, so nothing is tested"
    count = int(np.prod(graph.nodes[start].shape))
    rng = np.random.default_rng(92)
    neurons = np.stack([rng.permutation(count)[:40] for _ in range(3)])
    neurons = neurons if library == "numpy" else torch.as_tensor(neurons)
    plain = backward(known, unit_form(known, start, neurons, 1)), -backward(known, unit_form(known, start, neurons, -1))
    assert_same(bound_neurons(known, start, neurons), plain)
    parallel = both(known, unit_form(known, start, neurons, 1))
    assert_same(bound_neurons(known, start, neurons, parallel=True), parallel)


def assert_same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("between", [("relu", "relu"), ("relu", "sigmoid"), ("relu", "nothing")], ids="-".join)
@every_geometry
def test_windows_give_the_ordinary_bounds(name, between):
    """Also where a convolution reads a convolution: coefficients in the padding must not come back into the image."""
    compare(network(name, between=between), "torch")


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_windows_of_residual_branches_give_the_ordinary_bounds(library):
    compare(residual_network(), library)


@pytest.mark.parametrize("net", [*GEOMETRIES, "residual"])
def test_sampled_points_stay_inside_bounds_from_windows(net):
    graph = residual_network(1) if net == "residual" else network(net, residual=True, seed=1)
    known, lower, upper = knowledge(graph, 1)
    start = start_of(graph)
    for b in range(len(lower)):
        xs = samples(lower[b], upper[b], 1, 300)
        got = graph.evaluate(xs)[start]
        low, high = (side[b] for side in known.boxes[start])
        assert (got >= low - 1e-9).all()
        assert (got <= high + 1e-9).all()
    truth = values(graph, xs[0])[start]
    assert (exact(low) <= truth).all()
    assert (exact(high) >= truth).all()


def test_windows_account_for_inexact_weights():
    """True weights anywhere within the stated errors: the window's error term is that of the ordinary pass."""
    from dataclasses import replace

    from certify.graph import Graph
    from certify.ops import Conv

    graph = network("padded")
    nodes = [
        replace(n, op=replace(n.op, weight_error=1e-3, bias_error=np.full((4, 1, 1), 1e-2)))
        if isinstance(n.op, Conv)
        else n
        for n in graph.nodes
    ]
    compare(Graph(tuple(nodes)), "numpy")
