"""The SDP relaxation lies between the LP's optimum and the exact minimum."""

from __future__ import annotations

import numpy as np
import pytest
from minimum import minima, tiny_case

from certify import ops
from certify.bounding.interval import ibp
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.errors import UsageError
from certify.mip.margin import leaf
from certify.mip.sparse import Matrices
from certify.property import Polytope
from certify.solvers.cvxpy_sdp import SdpRelaxation
from certify.solvers.program import Budget, Status

SDP = SdpRelaxation()


def dense_layers(graph):
    """(weight, bias) of every Linear of a plain network, in order."""
    return [(n.op.weight, n.op.bias) for n in graph.nodes if isinstance(n.op, ops.Linear)]


@pytest.mark.parametrize("seed", range(8))
def test_lp_below_sdp_below_exact(seed):
    if not SDP.available():
        pytest.skip("solver cvxpy is not installed")
    graph, lower, upper = tiny_case(seed)
    layers = dense_layers(graph)
    boxes = ibp(graph, lower[None], upper[None])
    starts = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, ops.Linear)]
    spans = [(lower, upper), *((boxes[i][0][0], boxes[i][1][0]) for i in starts[:-1])]
    weight, bias = layers[-1]
    point = minima(graph, lower, upper)[0]
    truth = graph(point[None])[0, 0]
    found = SDP.solve(layers[:-1], spans, weight[0], Budget(seconds=60))
    assert found.status is Status.OPTIMAL
    value = found.objective + bias[0]
    known = propagate(graph.cast(np.zeros(1)), Region(lower[None], upper[None]), crown=False)
    first = np.eye(graph.output_shape[0])[:1]
    row = Polytope(first, np.zeros(1), np.zeros(1), np.zeros(1, dtype=bool))
    relaxed = leaf(Matrices(known.graph), known, row)
    size = 1e-4 * (1 + abs(truth))
    assert relaxed.solver - size <= value <= truth + size


def test_a_missing_cvxpy_says_what_to_install(monkeypatch):
    monkeypatch.setattr("certify.solvers.cvxpy_sdp.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'certify\[cvxpy\]'"):
        SDP.solve([], [(np.zeros(1), np.ones(1))], np.ones(1), Budget())
