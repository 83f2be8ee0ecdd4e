"""The SDP relaxation of small dense ReLU networks (Raghunathan, Steinhardt & Liang 2018) through cvxpy: a cross-check.

With v = (1, x_0, ..., x_L) the matrix P stands for v v^T: a ReLU y = max(z, 0) is y >= 0, y >= z and y y = y z, which
is linear in P, and a box l <= x <= u is x x <= (l + u) x - l u. The triangle's upper line is added, so that the
optimum is at least the LP's. For tens of neurons; nothing is certified.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from certify.solvers.program import Budget, Float64, Solution, Status, missing

MOST_NEURONS = 200  # beyond, the matrix has more entries than these solvers take in minutes

Layer = tuple[Float64, Float64]  # (weight (m, n), bias (m,)): z = weight x + bias, x = relu(z) of the layer before
Box = tuple[Float64, Float64]


class SdpRelaxation:
    """min objective . x_L over boxes[0], where x_k = relu(W_k x_{k-1} + b_k); boxes[k] holds the values of z_k."""

    name = "cvxpy"

    def available(self) -> bool:
        return find_spec("cvxpy") is not None

    def solve(self, layers: Sequence[Layer], boxes: Sequence[Box], objective: Float64, budget: Budget) -> Solution:
        """boxes: of the input, then of each layer's z. objective: (n_L,)."""
        if not self.available():
            raise missing("cvxpy", "cvxpy")
        assert len(boxes) == len(layers) + 1
        sizes = [len(boxes[0][0]), *(len(bias) for _, bias in layers)]
        if sum(sizes) > MOST_NEURONS:
            raise ValueError(f"the SDP relaxation is for up to {MOST_NEURONS} neurons; this network has {sum(sizes)}")
        import cvxpy

        begin = time.perf_counter()
        ends = 1 + np.cumsum([0, *sizes])
        matrix = cvxpy.Variable((int(ends[-1]), int(ends[-1])), PSD=True)
        places = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        rules = [matrix[0, 0] == 1, *_box(cvxpy, matrix, places[0], *boxes[0])]
        for k, (weight, bias) in enumerate(layers):
            rules += _relu(cvxpy, matrix, (places[k], places[k + 1]), (weight, bias), boxes[k + 1])
        problem: Any = cvxpy.Problem(cvxpy.Minimize(objective @ matrix[0, places[-1]]), rules)
        options: dict[str, Any] = {}
        if np.isfinite(budget.seconds):
            options["time_limit"] = budget.seconds
        problem.solve(solver=cvxpy.CLARABEL, **options)
        seconds = time.perf_counter() - begin
        if problem.status != cvxpy.OPTIMAL:
            return Solution(Status.UNKNOWN, seconds=seconds)
        value: Any = matrix.value
        return Solution(Status.OPTIMAL, np.array(value[0, places[0]]), float(problem.value), seconds=seconds)


def _box(cvxpy: Any, matrix: Any, place: slice, low: Float64, high: Float64) -> list[Any]:
    x, square = matrix[0, place], cvxpy.diag(matrix[place, place])
    return [x >= low, x <= high, square <= cvxpy.multiply(low + high, x) - low * high]


def _relu(cvxpy: Any, matrix: Any, places: tuple[slice, slice], layer: Layer, box: Box) -> list[Any]:
    before, after = places
    weight, bias = layer
    low, high = box
    y, z = matrix[0, after], weight @ matrix[0, before] + bias
    product = cvxpy.diag(weight @ matrix[before, after]) + cvxpy.multiply(bias, y)  # y z, neuron by neuron
    rules = [y >= 0, y >= z, cvxpy.diag(matrix[after, after]) == product]
    slope = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / np.maximum(high - low, 1e-300)))
    above = cvxpy.multiply(slope, z) + np.where((low < 0) & (high > 0), -slope * low, 0.0)
    return [*rules, y <= above, *_box(cvxpy, matrix, after, np.maximum(low, 0), np.maximum(high, 0))]
