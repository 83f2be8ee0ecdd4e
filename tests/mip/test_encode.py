"""The program covers the network: its matrices are the ops', its points hold every value, its optimum is a bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from minimum import minima
from mip_cases import enumerable, known_of, network
from op_cases import AFFINE_CASES
from random_nets import Builder, relu_mlp, samples

from certify.mip.encode import encode
from certify.mip.sparse import Matrices, matrices
from certify.rules import evaluate, linear
from certify.solvers.highs import Highs, HighsModel
from certify.solvers.program import Budget, Status

NETS = [("flat", s) for s in range(14)] + [("image", s) for s in range(8)]
every_net = pytest.mark.parametrize(("kind", "seed"), NETS, ids=[f"{k}-{s}" for k, s in NETS])


def optimum(encoding, row):
    """The least value of row . x_node over the program."""
    matrix, offset = encoding.express(np.asarray(row)[None])
    program = replace(encoding.program, objective=matrix.toarray().ravel(), constant=float(offset[0]))
    solution = Highs().solve(program, Budget())
    assert solution.status is Status.OPTIMAL
    return solution


@pytest.mark.parametrize("case", AFFINE_CASES, ids=lambda c: c.name)
def test_the_sparse_matrices_are_the_ops_linear_parts(case):
    rng = np.random.default_rng(70)
    xs = [rng.standard_normal((1, *shape)) for shape in case.shapes]
    want = linear(case.op, *xs)
    found = matrices(case.op, case.shapes, want.shape[1:])
    value = sum(m @ x.ravel() for m, x in zip(found, xs, strict=True))
    np.testing.assert_allclose(value, want.ravel(), rtol=1e-12, atol=1e-12)


def test_an_op_without_a_rule_is_read_off_its_transpose(monkeypatch):
    from certify.mip import sparse

    monkeypatch.setattr(sparse, "matrix_rule", sparse.RuleTable("none"))
    monkeypatch.setattr(sparse, "UNIT_ROWS", 3)
    for case in AFFINE_CASES[:12]:
        xs = [np.random.default_rng(71).standard_normal((1, *shape)) for shape in case.shapes]
        want = linear(case.op, *xs)
        value = sum(m @ x.ravel() for m, x in zip(matrices(case.op, case.shapes, want.shape[1:]), xs, strict=True))
        np.testing.assert_allclose(value, want.ravel(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exact", [False, True], ids=["LP", "MIP"])
@every_net
def test_the_programs_optimum_is_below_every_sample(kind, seed, exact):
    graph, lower, upper = network(kind, seed)
    known = known_of(graph, lower, upper)
    encoding = encode(Matrices(known.graph), known, known.graph.output, np.eye(2), exact=exact)
    out = graph(samples(lower, upper, seed, 400)).reshape(400, -1)
    for k in range(2):
        low, high = optimum(encoding, np.eye(2)[k]).objective, -optimum(encoding, -np.eye(2)[k]).objective
        assert low <= out[:, k].min() + 1e-6
        assert high >= out[:, k].max() - 1e-6


@pytest.mark.parametrize(("kind", "seed"), [("flat", s) for s in range(8)] + [("image", s) for s in range(4)])
def test_the_mips_optimum_is_the_exact_minimum(kind, seed):
    """LP <= MIP = the minimum over all activation patterns, attained at the input that the MIP names."""
    graph, lower, upper = enumerable(kind, seed)
    known = known_of(graph, lower, upper, crown=False)
    points = minima(graph, lower, upper)
    matrices = Matrices(known.graph)
    for k, point in enumerate(points):
        exact = encode(matrices, known, known.graph.output, np.eye(2)[k : k + 1], exact=True)
        loose = encode(matrices, known, known.graph.output, np.eye(2)[k : k + 1])
        want = graph(point[None]).ravel()[k]
        found = optimum(exact, np.eye(2)[k])
        size = 1 + abs(want)
        assert found.objective == pytest.approx(want, abs=1e-5 * size)
        assert optimum(loose, np.eye(2)[k]).objective <= want + 1e-6 * size
        reached = graph(exact.inputs(found.x).reshape(1, *graph.input_shape)).ravel()[k]
        assert reached == pytest.approx(want, abs=1e-5 * size)


@pytest.mark.parametrize("seed", range(6))
def test_the_programs_optimum_of_a_smooth_network_is_below_every_sample(seed):
    graph, lower, upper = network("flat", 40 + seed, smooth=True)
    known = known_of(graph, lower, upper)
    encoding = encode(Matrices(known.graph), known, known.graph.output, np.eye(2))
    out = graph(samples(lower, upper, seed, 400))
    for k in range(2):
        assert optimum(encoding, np.eye(2)[k]).objective <= out[:, k].min() + 1e-6


def test_the_triangle_by_hand():
    """x in [-1, 3], y = relu(x), s = relu(-x): y - s = x >= -1; and (y + 3 s) / 4 <= 3 / 4, exact at both ends."""
    b = Builder((1,))
    y = b.relu(b.linear(0, np.array([[1.0], [-1.0]])))
    graph = b.graph(b.linear(y, np.array([[1.0, -1.0], [0.25, 0.75]])))
    known = known_of(graph, np.array([-1.0]), np.array([3.0]))
    for exact in (False, True):
        encoding = encode(Matrices(known.graph), known, known.graph.output, np.eye(2), exact=exact)
        assert optimum(encoding, [1.0, 0.0]).objective == pytest.approx(-1.0)
        assert -optimum(encoding, [0.0, -1.0]).objective == pytest.approx(0.75)


def test_stable_neurons_and_neurons_that_do_not_matter_cost_nothing():
    graph = relu_mlp(3, 3, 6, 2)
    known = known_of(graph, np.full(3, 0.2), np.full(3, 0.2))
    encoding = encode(Matrices(known.graph), known, known.graph.output, np.eye(2))
    assert encoding.program.matrix.shape == (0, 3)
    known = known_of(graph, -np.ones(3), np.ones(3))
    dead = encode(Matrices(known.graph), known, known.graph.output, np.zeros((1, 2)))
    assert dead.program.matrix.shape[0] == 0


@every_net
def test_every_variable_lies_within_0_and_1(kind, seed):
    graph, lower, upper = network(kind, seed, smooth=True)
    known = known_of(graph, lower, upper)
    encoding = encode(Matrices(known.graph), known, known.graph.output, np.eye(2))
    assert (encoding.program.lower >= 0).all()
    assert (encoding.program.upper <= 1).all()


@every_net
def test_points_of_the_network_are_points_of_the_program(kind, seed):
    """Fix the input of the MIP to a sample: the outputs that are left are the network's."""
    graph, lower, upper = network(kind, seed)
    known = known_of(graph, lower, upper)
    encoding = encode(Matrices(known.graph), known, known.graph.output, np.eye(2), exact=True)
    columns = np.arange(lower.size)
    matrix, offset = encoding.express(np.eye(2))
    for x in samples(lower, upper, seed, 2):
        width = (upper - lower).ravel()
        at = np.where(width > 0, (x - lower).ravel() / np.where(width > 0, width, 1), 0.0)
        y = evaluate_flat(graph, x)
        for k in range(2):
            for sign in (1, -1):
                objective, constant = sign * matrix[k].toarray().ravel(), sign * float(offset[k])
                model = HighsModel(replace(encoding.program, objective=objective, constant=constant))
                model.set_bounds(columns, at, at)
                assert sign * model.solve().objective == pytest.approx(y[k], abs=1e-5 * (1 + abs(y[k])))


def evaluate_flat(graph, x):
    return graph(x[None]).ravel()


def test_sigmoid_lines_touch_at_the_ends():
    b = Builder((1,))
    graph = b.graph(b.sigmoid(b.linear(0, np.ones((1, 1)))))
    known = known_of(graph, np.array([-2.0]), np.array([3.0]))
    encoding = encode(Matrices(known.graph), known, known.graph.output, np.ones((1, 1)))
    op = known.graph.nodes[known.graph.output].op
    ends = evaluate(op, np.array([-2.0, 3.0]))
    assert optimum(encoding, [1.0]).objective == pytest.approx(ends[0], abs=1e-6)
    assert -optimum(encoding, [-1.0]).objective == pytest.approx(ends[1], abs=1e-6)
