"""The graph means the stored weights in real arithmetic; folds state their errors."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from onnx_cases import (
    mlp,
)

from certify import ops
from certify.frontends.lower import Builder
from certify.frontends.onnx_import import load_model


class TestExactness:
    def test_the_graph_is_the_stored_network_in_real_arithmetic(self) -> None:
        proto = mlp()
        stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        x = [Fraction(1, 3), Fraction(-2, 7), Fraction(5, 11), Fraction(1)]

        def layer(values: list[Fraction], weight: Any, bias: Any) -> list[Fraction]:
            columns = [[Fraction(float(w)) for w in column] for column in weight.T]
            return [
                sum((w * v for w, v in zip(c, values, strict=True)), Fraction(float(b)))
                for c, b in zip(columns, bias, strict=True)
            ]

        hidden = [max(v, Fraction(0)) for v in layer(x, stored["w1"], stored["b1"])]
        expected = layer(hidden, stored["w2"], stored["b2"])
        values = x
        for node in load_model(proto).graph.nodes[1:]:
            if isinstance(node.op, ops.Relu):
                values = [max(v, Fraction(0)) for v in values]
            else:
                assert isinstance(node.op, ops.Linear)
                values = layer(values, node.op.weight.T, node.op.bias)
        assert values == expected

    @pytest.mark.parametrize("seed", range(5))
    def test_folded_batch_norm_states_its_error_honestly(self, seed: int) -> None:
        """The true constants lie within the stated errors, cancellation in the bias included."""
        rng = np.random.default_rng(seed)
        gamma, beta, mean, weight = (rng.standard_normal(s).astype(np.float32) for s in (3, 3, 3, (3, 4)))
        variance, bias = np.abs(rng.standard_normal(3)).astype(np.float32), mean + np.float32(1e-6)
        build = Builder((4,))
        node = build.batch_norm(build.linear(0, weight, bias), gamma, beta, mean, variance, 1e-5)
        graph = build.graph(build.scale(node, 1.0, -beta))
        assert len(graph.nodes) == 2
        op = graph.nodes[1].op
        assert isinstance(op, ops.Linear)
        errors = np.broadcast_to(op.bias_error, 3)
        assert 0 < op.weight_error < 1e-14
        for i in range(3):
            root = _root(Fraction(float(variance[i])) + Fraction(1e-5))
            factor = Fraction(float(gamma[i])) / root
            true_bias = factor * (Fraction(float(bias[i])) - Fraction(float(mean[i])))
            assert abs(true_bias - Fraction(float(op.bias[i]))) <= Fraction(float(errors[i]))
            for j in range(4):
                true, ours = factor * Fraction(float(weight[i, j])), Fraction(float(op.weight[i, j]))
                assert abs(true - ours) <= Fraction(op.weight_error) * abs(ours)

    def test_exact_folds_state_no_error(self) -> None:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((3, 4)).astype(np.float32)
        build = Builder((4,))
        node = build.scale(build.linear(0, weight), np.float32(0.25), np.ones(3, np.float32))
        op = build.graph(node).nodes[-1].op
        assert isinstance(op, ops.Linear)
        assert (op.weight_error, op.bias_error) == (0.0, 0.0)
        np.testing.assert_array_equal(op.weight, weight / 4)

    def test_a_scale_is_not_folded_into_what_others_read(self) -> None:
        build = Builder((4,))
        inner = build.linear(0, np.eye(4))
        graph = build.graph(build.add(inner, build.scale(inner, 3.0)))
        assert [type(n.op) for n in graph.nodes] == [ops.Input, ops.Linear, ops.Scale, ops.Add]


def _root(value: Fraction) -> Fraction:
    """The square root to 60 digits."""
    scale = 10**60
    return Fraction(isqrt(value.numerator * scale * scale // value.denominator), scale)
