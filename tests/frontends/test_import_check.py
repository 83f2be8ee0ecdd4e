"""A wrong import is an error; float error is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_cases import (
    FLOAT,
    mlp,
)

from certify import ops
from certify.errors import ImportMismatch, ModelError
from certify.frontends import import_check
from certify.frontends.lower import Builder
from certify.frontends.onnx_import import load_model
from certify.graph import Graph, Node


class TestImportCheck:
    """A wrong import is an error, however it is wrong."""

    @pytest.mark.parametrize("size", [1e-3, 1e-4])
    def test_one_slightly_wrong_weight_is_found(self, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Builder.graph

        def damaged(self: Builder, output: int) -> Graph:
            nodes = list(original(self, output).nodes)
            op = nodes[1].op
            assert isinstance(op, ops.Linear)
            weight = op.weight.copy()
            weight[np.unravel_index(np.abs(weight).argmax(), weight.shape)] *= 1 + size
            nodes[1] = Node(nodes[1].name, replace(op, weight=weight), nodes[1].inputs, nodes[1].shape)
            return Graph(tuple(nodes))

        monkeypatch.setattr(Builder, "graph", damaged)
        with pytest.raises(ImportMismatch, match="folding"):
            load_model(mlp())

    def test_the_first_wrong_node_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Builder, "relu", lambda self, x: self.clip_wrongly(x), raising=True)
        monkeypatch.setattr(Builder, "clip_wrongly", lambda self, x: self.scale(x, 2.0), raising=False)
        with pytest.raises(ImportMismatch, match=r"first node that differs is relu \(Relu\)"):
            load_model(mlp())

    def test_nan_from_the_runtime_is_an_error(self) -> None:
        with pytest.raises(ModelError, match="NaN"):
            import_check.compare(np.zeros((1, 2)), np.full((1, 2), np.nan), 1.0, np.zeros((1, 2)))

    def test_the_input_range_is_probed(self) -> None:
        samples = import_check.probe_inputs((3,), (np.array([0.0, 1, 2]), 2.0), np.dtype(np.float32), 0)
        assert samples.dtype == np.float32
        assert any((s == 0).all() for s in samples)
        assert any((s == [0, 1, 2]).all() for s in samples)
        assert any((s == 2).all() for s in samples)

    def test_the_range_may_depend_on_the_graph(self) -> None:
        """A property's box may lie anywhere: the check looks there, here at inputs that overflow the network."""
        proto = mlp()
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 6), 1e36, dtype=np.float32), "w1"))
        assert load_model(proto).graph.input_shape == (4,)
        with pytest.raises(ModelError, match="overflows"):
            load_model(proto, input_range=lambda graph: (np.full(graph.input_shape, 100.0), 200.0))

    def test_deep_networks_pass_and_leave_little_room(self) -> None:
        """Float error over 20 layers is accepted, and what is accepted stays far below the outputs' size."""
        rng = np.random.default_rng(3)
        nodes, tensors, name = [], [], "x"
        for k in range(20):
            tensors.append(numpy_helper.from_array((rng.standard_normal((64, 64)) / 6).astype(np.float32), f"w{k}"))
            nodes += [
                helper.make_node("MatMul", [name, f"w{k}"], [f"m{k}"]),
                helper.make_node("Relu", [f"m{k}"], [f"r{k}"]),
            ]
            name = f"r{k}"
        info = [helper.make_tensor_value_info(n, FLOAT, ["n", 64]) for n in ("x", name)]
        graph = helper.make_graph(nodes, "deep", info[:1], info[1:], tensors)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        network = load_model(proto).graph
        x = rng.random((8, 64))
        values = network.evaluate(x)
        gap = import_check.float_gaps(network, values, np.dtype(np.float32), 0)[-1]
        assert import_check.SAFETY * gap < 1e-3 * np.abs(values[-1]).max()
