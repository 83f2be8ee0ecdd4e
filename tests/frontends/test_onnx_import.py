"""Importing whole files: opsets, forms of weights and inputs, notes, prepended layers, errors, the import check."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from certify import ops
from certify.errors import ImportMismatch, ModelError, UnsupportedOps, UsageError
from certify.frontends import import_check, onnx_import
from certify.frontends.lower import Builder
from certify.frontends.onnx_file import since_version
from certify.frontends.onnx_import import load_model
from certify.frontends.onnx_lower import HANDLERS
from certify.graph import Graph, Node
from certify.model import Model

NEWEST = onnx.defs.onnx_opset_version()
FLOAT = TensorProto.FLOAT


def mlp(opset: int = 13, shape: Any = (1, 4), dtype: Any = np.float32, seed: int = 0, ir_version: int = 8) -> Any:
    """x -> Gemm -> Relu -> Gemm, 4-6-3."""
    rng = np.random.default_rng(seed)
    weights = {"w1": (4, 6), "b1": (6,), "w2": (6, 3), "b2": (3,)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "second"),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [shape[0], 3])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(dtype), n) for n, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def append(proto: Any, *nodes: Any) -> Any:
    """The model with more nodes; the last one's output is the network's."""
    proto.graph.node.extend(nodes)
    proto.graph.output[0].name = nodes[-1].output[0]
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    return proto


def outputs(model: Model, x: Any) -> Any:
    return model.graph(np.asarray(x, dtype=np.float64).reshape(-1, *model.graph.input_shape))


X = np.random.default_rng(9).uniform(-1, 1, (5, 4))


class TestForms:
    @pytest.mark.parametrize("opset", range(7, NEWEST + 1))
    def test_the_opset_does_not_change_the_network(self, opset: int) -> None:
        model = load_model(mlp(opset, ir_version=min(onnx.IR_VERSION, 8 if opset < 24 else onnx.IR_VERSION)))
        np.testing.assert_array_equal(outputs(model, X), outputs(load_model(mlp(13)), X))

    def test_handlers_know_every_revision_from_opset_7_on(self) -> None:
        for op_type, entry in HANDLERS.items():
            revisions = set()
            for opset in range(7, NEWEST + 1):
                revisions.add(since_version(helper.make_node(op_type, [], []), opset))
            assert revisions - {None} <= set(entry.versions), op_type

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_weights_stay_as_stored(self, dtype: Any) -> None:
        proto = mlp(dtype=dtype)
        model = load_model(proto)
        first = next(n.op for n in model.graph.nodes if isinstance(n.op, ops.Linear))
        assert model.input_dtype == dtype
        assert first.weight.dtype == (np.float64 if dtype == np.float64 else np.float32)
        np.testing.assert_array_equal(first.weight.T, numpy_helper.to_array(proto.graph.initializer[0]))
        assert (first.weight_error, first.bias_error) == (0.0, 0.0)

    def test_weights_may_be_inputs_or_constants(self) -> None:
        expected = outputs(load_model(mlp()), X)
        as_inputs = mlp(ir_version=3)
        for tensor in as_inputs.graph.initializer:
            as_inputs.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
        as_constants = mlp()
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in as_constants.graph.initializer]
        nodes += as_constants.graph.node
        del as_constants.graph.initializer[:], as_constants.graph.node[:]
        as_constants.graph.node.extend(nodes)
        for proto in (as_inputs, as_constants):
            np.testing.assert_array_equal(outputs(load_model(proto), X), expected)

    @pytest.mark.parametrize(
        ("shape", "onnx_shape"), [((1, 4), (1, 4)), (("n", 4), (-1, 4)), ((None, 4), (-1, 4)), ((0, 4), (-1, 4))]
    )
    def test_batch_axis(self, shape: Any, onnx_shape: Any) -> None:
        model = load_model(mlp(shape=shape))
        assert (model.onnx_shape, model.graph.input_shape, model.graph.output_shape) == (onnx_shape, (4,), (3,))
        assert load_model(mlp(shape=shape), check=False).onnx_shape == (1, 4)

    def test_a_constant_reshape_to_one_sample_is_found_to_hold_for_one_sample_only(self) -> None:
        proto = append(mlp(shape=("n", 4)), helper.make_node("Reshape", ["y", "shape"], ["z"]))
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "shape"))
        model = load_model(proto)
        assert model.onnx_shape == (1, 4)
        assert "batches of one" in model.notes[0]

    def test_an_input_without_batch_axis(self) -> None:
        weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "flat",
            [helper.make_tensor_value_info("x", FLOAT, [4])],
            [helper.make_tensor_value_info("y", FLOAT, [2])],
            [weight],
        )
        model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
        assert (model.onnx_shape, model.graph.input_shape, model.graph.output_shape) == ((4,), (4,), (2,))

    @pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
    @pytest.mark.parametrize("opset", [11, 13])
    def test_a_final_softmax_is_dropped_with_a_note(self, op_type: str, opset: int) -> None:
        proto = append(mlp(opset), helper.make_node(op_type, ["y"], ["p"], "last", axis=1))
        model = load_model(proto)
        np.testing.assert_array_equal(outputs(model, X), outputs(load_model(mlp()), X))
        assert op_type in model.notes[0]
        with pytest.raises(ModelError, match="logits"):
            load_model(proto, drop_softmax=False)

    def test_a_softmax_in_the_middle_is_not_supported(self) -> None:
        nodes = [helper.make_node("Softmax", ["y"], ["p"], "soft"), helper.make_node("Relu", ["p"], ["q"], "after")]
        with pytest.raises(UnsupportedOps, match=r"after \(Relu.*only as the last"):
            load_model(append(mlp(), *nodes))

    def test_unused_inputs_and_constant_outputs_are_left_out(self) -> None:
        proto = mlp()
        proto.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, [1]))
        proto.graph.output.append(helper.make_tensor_value_info("w1", FLOAT, [4, 6]))
        assert len(load_model(proto).notes) == 2

    def test_functions_are_inlined(self) -> None:
        proto = mlp(opset=17)
        body = helper.make_function(
            "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
        proto.functions.append(body)
        proto.opset_import.append(helper.make_opsetid("own", 1))
        model = load_model(append(proto, helper.make_node("Twice", ["y"], ["z"], domain="own")))
        np.testing.assert_array_equal(outputs(model, X), 2 * outputs(load_model(mlp()), X))

    def test_metadata_is_read(self) -> None:
        proto = mlp()
        helper.set_model_props(proto, {"dataset": "digits"})
        assert load_model(proto).metadata == {"dataset": "digits"}

    def test_every_shared_network_imports(self, shared: Path) -> None:
        files = sorted((shared / "bench").rglob("*.onnx"))
        assert len(files) > 40
        for file in files:
            assert load_model(file).graph.nodes


class TestFiles:
    def test_path_bytes_and_gzip_agree(self, tmp_path: Path) -> None:
        data = mlp().SerializeToString()
        plain, packed = tmp_path / "net.onnx", tmp_path / "net.onnx.gz"
        plain.write_bytes(data)
        packed.write_bytes(gzip.compress(data))
        models = [load_model(m) for m in (plain, str(packed), data)]
        assert {m.sha256 for m in models} == {hashlib.sha256(data).hexdigest()}
        assert [m.source for m in models] == [str(plain), str(packed), "model"]

    def test_external_data_is_loaded_and_hashed(self, tmp_path: Path) -> None:
        path = tmp_path / "net.onnx"
        onnx.save(mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        model = load_model(path)
        np.testing.assert_array_equal(outputs(model, X), outputs(load_model(mlp()), X))
        again = load_model(model.onnx_bytes)
        np.testing.assert_array_equal(outputs(again, X), outputs(model, X))
        weights = tmp_path / "weights.bin"
        data = bytearray(weights.read_bytes())
        data[0] ^= 1
        weights.write_bytes(data)
        assert load_model(path).sha256 != model.sha256
        weights.write_bytes(data[:-100])
        with pytest.raises(ModelError, match=r"weights\.bin|truncated"):
            load_model(path)
        with pytest.raises(ModelError, match=r"weights\.bin"):
            load_model(path.read_bytes())
        weights.unlink()
        with pytest.raises(ModelError, match=r"weights\.bin.*one folder"):
            load_model(path)

    @pytest.mark.parametrize(
        "content",
        [b"", b"hello", b"<html>not here</html>", b"\x1f\x8b broken", mlp().SerializeToString()[:-40], b"\x08\x08"],
    )
    def test_what_is_no_onnx_file_says_so(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"net\.onnx.*(not an ONNX file|truncated)"):
            load_model(path)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no such file"):
            load_model(tmp_path / "none.onnx")
        with pytest.raises(ModelError, match="folder"):
            load_model(tmp_path)

    def test_newer_ir_versions_are_lowered_for_the_runtime(self) -> None:
        data = load_model(mlp(ir_version=onnx.IR_VERSION)).onnx_bytes
        assert onnx.ModelProto.FromString(data).ir_version <= 13


class TestErrors:
    def test_all_unsupported_nodes_are_listed_at_once(self) -> None:
        nodes = [
            helper.make_node("Erf", ["y"], ["a"], "first_bad"),
            helper.make_node("Gelu", ["a"], ["b"], "second_bad"),
            helper.make_node("Mul", ["y", "y"], ["c"], "third_bad"),
            helper.make_node("Fancy", ["c"], ["d"], "fourth_bad", domain="my.domain"),
            helper.make_node("Add", ["b", "d"], ["z"], "fine"),
        ]
        proto = append(mlp(opset=20), *nodes)
        proto.opset_import.append(helper.make_opsetid("my.domain", 1))
        with pytest.raises(UnsupportedOps) as caught:
            load_model(proto)
        text = str(caught.value)
        assert "4 nodes" in text
        assert "fine" not in text
        for words in (
            ("first_bad", "Erf", "opset 20"),
            ("second_bad", "Gelu"),
            ("third_bad", "Mul"),
            ("Fancy", "my.domain"),
        ):
            assert all(w in text for w in words)

    def test_unknown_attributes_are_refused(self) -> None:
        with pytest.raises(UnsupportedOps, match="surprise"):
            load_model(append(mlp(), helper.make_node("Relu", ["y"], ["z"], "r", surprise=1)))

    @pytest.mark.parametrize(
        ("node", "words"),
        [
            (helper.make_node("MaxPool", ["y4"], ["z", "i"], kernel_shape=[2, 2]), "indices"),
            (helper.make_node("Cast", ["y"], ["z"], to=TensorProto.INT64), "casts an activation"),
            (helper.make_node("Reshape", ["y", "bad"], ["z"]), "cannot reshape"),
            (helper.make_node("Gather", ["y", "far"], ["z"], axis=1), "outside"),
            (helper.make_node("Div", ["bad", "y"], ["z"]), "division"),
        ],
    )
    def test_refusals_name_the_node_and_the_reason(self, node: Any, words: str) -> None:
        node.name = "culprit"
        nodes = [helper.make_node("Unsqueeze", ["y", "axes"], ["y4"]), node]
        if len(node.output) > 1:
            nodes.append(helper.make_node("Concat", ["z", "i"], ["j"], axis=1))
        proto = append(mlp(opset=17), *nodes)
        for name, value in (("axes", [1, 2]), ("bad", [7]), ("far", [3])):
            proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        with pytest.raises(UnsupportedOps, match=f"culprit.*{words}"):
            load_model(proto)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_no_numbers(self, value: float) -> None:
        proto = mlp()
        weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
        weight[1, 2] = value
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
        with pytest.raises(ModelError, match=r"first.*NaN or infinity"):
            load_model(proto)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda p: p.opset_import[0].__setattr__("version", 6), "older than 7"),
            (lambda p: p.opset_import[0].__setattr__("version", NEWEST + 1), "update onnx"),
            (lambda p: p.graph.input.append(helper.make_tensor_value_info("w1_", FLOAT, [1])), None),
            (lambda p: p.graph.output.append(helper.make_tensor_value_info("r", FLOAT, [1, 6])), "2 outputs"),
            (lambda p: p.graph.sparse_initializer.add(), "sparse"),
            (lambda p: p.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.INT64), "INT64"),
            (lambda p: p.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_param", "m"), "fixed size"),
            (lambda p: p.graph.input[0].type.tensor_type.ClearField("shape"), "no declared shape"),
            (lambda p: p.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 5), "first"),
            (lambda p: p.graph.node[2].input.__setitem__(0, "nowhere"), "nowhere"),
        ],
    )
    def test_files_that_do_not_fit(self, change: Any, words: str | None) -> None:
        proto = mlp()
        change(proto)
        if words is None:
            assert load_model(proto).notes
            return
        with pytest.raises(ModelError, match=words):
            load_model(proto)

    def test_a_fixed_batch_is_refused(self) -> None:
        with pytest.raises(ModelError, match="fixed batch of 8"):
            load_model(mlp(shape=(8, 4)))

    def test_output_without_input(self) -> None:
        proto = mlp()
        proto.graph.node[0].input[0] = "w3"
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 4), np.float32), "w3"))
        with pytest.raises(ModelError):
            load_model(proto)


def image_net(shape: tuple[Any, ...], flat: int) -> Any:
    """x -> Flatten -> MatMul: the sum of all numbers weighted 1, 2, 3, ..."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "image",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, [1, 1])],
        [numpy_helper.from_array(np.arange(1, flat + 1, dtype=np.float32)[:, None], "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


class TestPrepend:
    def test_mean_and_std_per_channel(self) -> None:
        proto = image_net((1, 3, 2, 2), 12)
        mean, std = (0.5, 0.25, 0.125), (0.3, 0.2, 0.1)
        x = np.random.default_rng(0).random((4, 3, 2, 2))
        stored = np.array(std, np.float32).astype(float).reshape(3, 1, 1)
        normalised = (x - np.array(mean).reshape(3, 1, 1)) / stored
        model = load_model(proto, mean=mean, std=std)
        np.testing.assert_allclose(outputs(model, x), outputs(load_model(proto), normalised), rtol=1e-14)
        assert model.onnx_bytes != load_model(proto).onnx_bytes
        assert model.sha256 == load_model(proto).sha256

    def test_nhwc(self) -> None:
        proto = image_net(("n", 2, 4, 3), 24)
        x = np.random.default_rng(0).random((5, 3, 2, 4))
        model = load_model(proto, mean=[0.1, 0.2, 0.3], layout="nhwc")
        assert (model.onnx_shape, model.graph.input_shape) == ((-1, 3, 2, 4), (3, 2, 4))
        shifted = x - np.array([0.1, 0.2, 0.3], np.float32).astype(float).reshape(3, 1, 1)
        np.testing.assert_allclose(
            outputs(model, x), outputs(load_model(proto), shifted.transpose(0, 2, 3, 1)), rtol=1e-14
        )

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"mean": [0.1, 0.2]}, "2 numbers.*3 channels"),
            ({"std": [0.1, 0.0, 0.2]}, "positive"),
            ({"std": 1e-60}, "positive"),
            ({"mean": float("nan")}, "finite"),
            ({"layout": "chwn"}, "layout"),
            ({"mean": [0.1] * 2, "layout": "nchw"}, "nhwc"),
        ],
    )
    def test_what_does_not_fit(self, options: Any, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            load_model(image_net((1, 3, 4, 2), 24), **options)


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
    from math import isqrt

    return Fraction(isqrt(value.numerator * scale * scale // value.denominator), scale)


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
        with pytest.raises(ImportMismatch, match="NaN"):
            import_check.compare(np.zeros((1, 2)), np.full((1, 2), np.nan), 1.0, np.zeros((1, 2)))

    def test_the_input_range_is_probed(self) -> None:
        samples = import_check.probe_inputs((3,), (np.array([0.0, 1, 2]), 2.0), np.dtype(np.float32), 0)
        assert samples.dtype == np.float32
        assert any((s == 0).all() for s in samples)
        assert any((s == [0, 1, 2]).all() for s in samples)
        assert any((s == 2).all() for s in samples)

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
        network = onnx_import.load_model(proto).graph
        x = rng.random((8, 64))
        values = network.evaluate(x)
        gap = import_check.float_gaps(network, values, np.dtype(np.float32), 0)[-1]
        assert import_check.SAFETY * gap < 1e-3 * np.abs(values[-1]).max()
