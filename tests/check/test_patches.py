"""Windows are only a shorter way to write dense coefficients (check_laws.windows_and_dense_rows_agree)."""

from __future__ import annotations

import numpy as np
from check_cases import network_of
from check_laws import ALL, deep, start
from random_nets import boxes_for, random_image

from certify.check.backward import neurons
from certify.check.content import Crown
from certify.check.network import Conv
from certify.check.patches import Patch
from certify.check.rounding import EXACT, REAL
from certify.check.steps import crown


def test_windows_in_fractions() -> None:
    net = deep(5)
    x = np.random.default_rng(6).normal(size=144)
    exact, real = (start(net, x - 0.1, x + 0.1, arithmetic) for arithmetic in (EXACT, REAL))
    step = Crown((1,), {1: np.array([0, 17, 40])})
    for a, b in zip(crown(exact, [step], None).interval(4), crown(real, [step], None).interval(4), strict=True):
        assert np.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_row_read_back_dense_is_the_row() -> None:
    """Coefficients of single neurons, some of them at the border, through one convolution: rows of its matrix."""
    for seed in range(6):
        graph = random_image(seed, smooth=False)
        net = network_of(graph)
        lower, upper = boxes_for(graph, seed)
        bounds = crown(start(net, lower[0], upper[0]), [ALL], None)
        for index, node in enumerate(net.nodes):
            rule = bounds.model.maps[index]
            if isinstance(node.op, Conv) and rule is not None:
                form = neurons(bounds, index, np.arange(node.size), -1)
                rows = form.rows.dense() if isinstance(form.rows, Patch) else form.rows
                (matrix,) = rule.backward(-np.eye(node.size)) if form.node != index else (-np.eye(node.size),)
                assert matrix is not None
                assert np.array_equal(rows, matrix)
