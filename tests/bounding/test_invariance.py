"""Bounds do not depend on how a network is written down: order of neurons, scale, folding, batch, splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from exact import matrices
from random_nets import Builder, boxes_for, random_flat, random_image, relu_mlp, samples

from certify import ops
from certify.bounding import propagate as propagate_module
from certify.bounding.api import bounds
from certify.bounding.interval import ibp
from certify.bounding.margins import Networks, prove
from certify.bounding.region import Region
from certify.frontends.windows import Geometry
from certify.graph import Graph, Node
from certify.ops import Slopes
from certify.options import BOUND_METHODS
from certify.property import Box, Case, Polytope
from certify.rules import bias

every_method = pytest.mark.parametrize("method", BOUND_METHODS)
linear_methods = pytest.mark.parametrize("method", BOUND_METHODS[:2])
every_seed = pytest.mark.parametrize("seed", range(6))


def outputs(graph, lower, upper, method, dtype=torch.float64):
    low, high = bounds(graph, torch.tensor(lower, dtype=dtype), torch.tensor(upper, dtype=dtype), method, iterations=5)
    return low.numpy(), high.numpy()


def assert_same(mine, theirs, tolerance=1e-10):
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def with_linear(graph, index, weight, shift):
    """The graph with other constants in one Linear node."""
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], op=replace(nodes[index].op, weight=weight, bias=shift))
    return Graph(tuple(nodes))


def linears(graph):
    return [i for i, node in enumerate(graph.nodes) if isinstance(node.op, ops.Linear)]


@every_seed
@every_method
def test_permuting_neurons_changes_nothing(seed, method):
    graph = relu_mlp(seed, 3, 7, 6, 2)
    lower, upper = boxes_for(graph, seed)
    rng = np.random.default_rng([70, seed])
    other = graph
    for here, there in zip(linears(graph)[:-1], linears(graph)[1:], strict=True):
        order = rng.permutation(graph.nodes[here].shape[0])
        first, second = other.nodes[here].op, other.nodes[there].op
        other = with_linear(other, here, first.weight[order], first.bias[order])
        other = with_linear(other, there, second.weight[:, order], second.bias)
    tolerance = 1e-6 if method == "alpha-crown" else 1e-10
    for b in range(len(lower)):  # one by one: in a batch, settled neurons that fill up a group are bounded anew, too
        box = lower[b : b + 1], upper[b : b + 1]
        assert_same(outputs(graph, *box, method), outputs(other, *box, method), tolerance)


@every_seed
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@linear_methods
def test_power_of_two_rescaling_changes_nothing_not_even_the_last_bit(seed, method, dtype):
    """Row i of a layer times 2^k, column i of the next times 2^-k: floats compute the same, and so do their bounds.

    Up to the constants that stand in for underflow, which do not scale; they are invisible beside numbers near 1.
    """
    graph = relu_mlp(seed, 3, 6, 5, 2)
    lower, upper = boxes_for(graph, seed)
    rng = np.random.default_rng([71, seed])
    other = graph
    for here, there in zip(linears(graph)[:-1], linears(graph)[1:], strict=True):
        factor = 2.0 ** rng.integers(-20, 21, graph.nodes[here].shape[0])
        first, second = other.nodes[here].op, other.nodes[there].op
        other = with_linear(other, here, first.weight * factor[:, None], first.bias * factor)
        other = with_linear(other, there, second.weight / factor, second.bias)
    mine, theirs = outputs(graph, lower, upper, method, dtype), outputs(other, lower, upper, method, dtype)
    assert_same(mine, theirs, 1e-12 if dtype == torch.float64 else 2e-6)


@every_seed
def test_scaling_the_output_by_a_power_of_two_scales_the_bounds_exactly(seed):
    graph = relu_mlp(seed, 3, 6, 2)
    lower, upper = boxes_for(graph, seed)
    last = linears(graph)[-1]
    other = with_linear(graph, last, graph.nodes[last].op.weight * 1024.0, graph.nodes[last].op.bias * 1024.0)
    for method in BOUND_METHODS[:2]:
        for a, b in zip(outputs(graph, lower, upper, method), outputs(other, lower, upper, method), strict=True):
            np.testing.assert_array_equal(a * 1024.0, b)


@every_seed
@linear_methods
def test_folding_batch_norm_costs_only_its_rounding(seed, method):
    """conv, then scale and shift as a node of its own, against the same folded into the convolution."""
    rng = np.random.default_rng([72, seed])
    weight, shift = rng.standard_normal((3, 2, 2, 2)), rng.standard_normal(3)
    gamma, beta, mean = rng.standard_normal((3, 3))
    variance, geometry = 0.5 + rng.random(3), Geometry((1, 1), (1, 0, 0, 1), (1, 1))
    head = rng.standard_normal((2, 48))
    found = []
    for folded in (True, False):
        b = Builder((2, 4, 4))
        x = b.conv(0, weight, shift, geometry=geometry)
        if folded:
            x = b.batch_norm(x, gamma, beta, mean, variance, 1e-5)
        else:
            factor = gamma / np.sqrt(variance + 1e-5)
            x = b.append(ops.Scale(factor.reshape(3, 1, 1), (beta - factor * mean).reshape(3, 1, 1)), [x], b.shape(x))
            x = b.reshape(b.reshape(x, (48,)), (3, 4, 4))
        x = b.linear(b.reshape(b.relu(x), (48,)), head)
        graph = b.graph(x) if folded else Graph(tuple(b.nodes))
        lower, upper = boxes_for(graph, seed)
        found.append((graph, outputs(graph, lower, upper, method)))
    kinds = [[type(n.op) for n in graph.nodes] for graph, _ in found]
    assert ops.Scale not in kinds[0]
    assert ops.Scale in kinds[1]
    # IBP merges nothing across nodes: a Scale after a box is exact, so both agree there, too.
    assert_same(found[0][1], found[1][1], 1e-9)


@every_method
def test_gemm_is_matmul_and_add(method, tmp_path):
    """The same network as Gemm and as MatMul + Add, through the ONNX front end."""
    from onnx import TensorProto, helper, numpy_helper, save

    from certify.frontends.onnx_import import load_model

    rng = np.random.default_rng(73)
    weights = [rng.standard_normal(s).astype(np.float32) for s in ((3, 6), (6, 2))]
    shifts = [rng.standard_normal(s).astype(np.float32) for s in (6, 2)]
    found = []
    for gemm in (True, False):
        nodes, constants, x = [], [], "x"
        for i, (w, s) in enumerate(zip(weights, shifts, strict=True)):
            constants += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(s, f"b{i}")]
            if gemm:
                nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [f"z{i}"]))
            else:
                nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"]))
                nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"z{i}"]))
            x = f"z{i}"
            if i == 0:
                nodes.append(helper.make_node("Relu", [x], ["r"]))
                x = "r"
        shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", 3), (x, 2))]
        proto = helper.make_graph(nodes, "net", shape[:1], shape[1:], constants)
        path = tmp_path / f"{gemm}.onnx"
        save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
        graph = load_model(str(path)).graph
        lower, upper = boxes_for(graph, 0)
        found.append(outputs(graph, lower, upper, method))
    assert_same(*found, 1e-12)


def densified(graph):
    """Every convolution, selection and sum as the dense matrix that it is, between two reshapes."""
    nodes, number = [graph.nodes[0]], [0]
    for node in graph.nodes[1:]:
        inputs = tuple(number[i] for i in node.inputs)
        if isinstance(node.op, ops.Conv | ops.ConvTranspose | ops.Select | ops.SumAxes):
            shape = graph.nodes[node.inputs[0]].shape
            (dense,) = matrices(node.op, [shape])
            shift = bias(node.op)
            flat = None if shift is None else np.broadcast_to(shift, node.shape).ravel().copy()
            op = ops.Linear(dense.astype(np.float64), flat)
            nodes.append(Node("flat", ops.Reshape((dense.shape[1],)), inputs, (dense.shape[1],)))
            nodes.append(Node(node.name, op, (len(nodes) - 1,), (dense.shape[0],)))
            nodes.append(Node("unflat", ops.Reshape(node.shape), (len(nodes) - 1,), node.shape))
        else:
            nodes.append(Node(node.name, node.op, inputs, node.shape))
        number.append(len(nodes) - 1)
    return Graph(tuple(nodes))


@every_seed
@linear_methods
def test_convolutions_are_their_dense_matrices(seed, method):
    graph = random_image(seed, depth=3, smooth=False)
    other = densified(graph)
    assert not any(isinstance(n.op, ops.Conv | ops.ConvTranspose) for n in other.nodes)
    lower, upper = boxes_for(graph, seed)
    assert_same(outputs(graph, lower, upper, method), outputs(other, lower, upper, method), 1e-8)


@every_seed
@every_method
def test_a_sample_alone_is_bounded_as_in_a_batch(seed, method):
    graph = random_image(seed) if seed % 2 and method != "alpha-crown" else random_flat(seed, depth=4)
    lower, upper = boxes_for(graph, seed, count=4)
    together = outputs(graph, lower, upper, method)
    for b in range(4):
        alone = outputs(graph, lower[b : b + 1], upper[b : b + 1], method)
        # alpha-CROWN optimises different paddings of neurons in a batch, in the last digits of Adam's steps.
        assert_same([side[b : b + 1] for side in together], alone, 1e-3 if method == "alpha-crown" else 1e-10)


@every_seed
def test_the_prover_bounds_a_case_alone_as_in_a_batch(seed):
    graph = random_flat(seed, depth=3)
    lower, upper = boxes_for(graph, seed, count=4)
    nets = Networks.of(graph, torch.device("cpu"))
    rng = np.random.default_rng([74, seed])
    cases = []
    for low, high in zip(lower, upper, strict=True):
        rows = rng.standard_normal((int(rng.integers(1, 4)), 2))
        parts = tuple(Polytope(r[None], np.ones(1), np.ones(1), np.zeros(1, dtype=bool)) for r in rows)
        cases.append(Case(Box.exact(low, high), parts))
    together = prove(nets, cases, "crown")
    for case, proof in zip(cases, together, strict=True):
        (alone,) = prove(nets, [case], "crown")
        np.testing.assert_allclose(alone.lower, proof.lower, rtol=1e-6, atol=1e-6)


@every_seed
def test_intervals_of_two_halves_lie_inside_those_of_the_whole(seed):
    """IBP: splitting a box never loosens, and the halves' union is the whole again for the outputs' hull."""
    graph = random_flat(seed, depth=3)
    lower, upper = (x[2] for x in boxes_for(graph, seed))
    axis = int(np.argmax(upper - lower))
    middle = (lower[axis] + upper[axis]) / 2
    left, right = upper.copy(), lower.copy()
    left[axis] = right[axis] = middle
    whole = ibp(graph, lower[None], upper[None])
    halves = ibp(graph, np.stack([lower, right]), np.stack([left, upper]))
    for (low, high), (low2, high2) in zip(whole, halves, strict=True):
        slack = 1e-12 * (1 + np.abs(low) + np.abs(high))
        assert (low2 >= low - slack).all()
        assert (high2 <= high + slack).all()
    for low, high in halves:
        assert (low[0] <= high[1] + 1e-12).all(), "the halves share the middle, so their images meet"
        assert (low[1] <= high[0] + 1e-12).all()


@every_seed
@every_method
def test_the_halves_of_a_box_cover_what_the_whole_reaches(seed, method):
    """The worse of the halves' bounds is a bound of the whole: no sampled value of the whole passes it."""
    graph = random_flat(seed, depth=3)
    lower, upper = (x[2] for x in boxes_for(graph, seed))
    axis = int(np.argmax(upper - lower))
    left, right = upper.copy(), lower.copy()
    left[axis] = right[axis] = (lower[axis] + upper[axis]) / 2
    low, high = outputs(graph, np.stack([lower, right]), np.stack([left, upper]), method)
    values = graph(samples(lower, upper, seed, 2000))
    assert (low.min(axis=0) <= values.min(axis=0) + 1e-9).all()
    assert (high.max(axis=0) >= values.max(axis=0) - 1e-9).all()


@every_seed
@linear_methods
def test_a_point_is_bounded_by_its_value(seed, method):
    graph = random_flat(seed, depth=4)
    x = boxes_for(graph, seed)[0]
    low, high = outputs(graph, x, x, method)
    np.testing.assert_allclose(low, graph(x), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(high, graph(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("limit", "p"), [(1, 0), (1, 2), (3000, 0), (3000, 1)])
@pytest.mark.parametrize("kind", ["flat", "image"])
def test_the_size_of_chunks_changes_nothing(kind, limit, p, monkeypatch):
    """Backward passes cut into single neurons or samples, put together rightly: same boxes, with chosen slopes, too."""
    graph = random_flat(7, depth=5) if kind == "flat" else random_image(4, depth=4)
    graph = graph.cast(torch.zeros(1).double())
    lower, upper = (torch.tensor(x.reshape(len(x), -1)) for x in boxes_for(graph, 7, count=3))
    ball = {} if p == 0 else {"center": (lower + upper) / 2, "radius": torch.full((3,), 0.3).double(), "p": p}
    region = Region(lower, upper, **ball)
    found = []
    for size in (propagate_module.CHUNK, limit):
        monkeypatch.setattr(propagate_module, "CHUNK", size)
        known = propagate_module.propagate(graph, region)
        sides = {start: chosen_slopes(known, start) for start in propagate_module.starts(graph)}
        sharper = propagate_module.propagate(graph, region, slopes=sides, previous=known)
        found.append([side for run in (known, sharper) for box in run.boxes for side in box])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


def chosen_slopes(known, start):
    """Random slopes of their own for every neuron of a start node, both sides."""
    torch.manual_seed(start)
    graph, count = known.graph, len(known.region.lower)
    size = int(np.prod(graph.nodes[start].shape))
    neurons = torch.stack([torch.randperm(size) for _ in range(count)])
    sides = []
    for _ in range(2):
        choice = {}
        for index in graph.ancestors(start):
            op, width = graph.nodes[index].op, int(np.prod(graph.nodes[index].shape))
            slope = torch.rand(count, size, width).double()
            if isinstance(op, ops.Relu):
                choice[index] = Slopes(slope)
            elif isinstance(op, ops.Sigmoid):
                choice[index] = Slopes(slope / 4, 0.25 - slope / 4)
        sides.append(choice)
    return propagate_module.Sides(neurons, *sides)


@every_seed
@pytest.mark.parametrize("kind", ["flat", "image"])
def test_bounds_under_any_chosen_slopes_hold_sampled_points(kind, seed):
    """Slopes are proposals: whatever they are, within their range, the nodes' boxes hold."""
    graph = random_flat(seed, depth=5) if kind == "flat" else random_image(seed, depth=4)
    graph = graph.cast(torch.zeros(1).double())
    lower, upper = boxes_for(graph, seed)
    region = Region(*(torch.tensor(x.reshape(len(x), -1)) for x in (lower, upper)))
    known = propagate_module.propagate(graph, region, crown=False)
    sides = {start: chosen_slopes(known, start) for start in propagate_module.starts(graph)}
    boxes = propagate_module.propagate(graph, region, slopes=sides).boxes
    for b in range(len(lower)):
        nodes = graph.evaluate(torch.tensor(samples(lower[b], upper[b], seed, 400)))
        for value, (low, high) in zip(nodes, boxes, strict=True):
            assert bool((value >= low[b] - 1e-9).all())
            assert bool((value <= high[b] + 1e-9).all())
