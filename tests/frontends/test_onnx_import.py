"""Importing whole files: opsets, forms of weights and inputs, notes, errors."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import (
    FLOAT,
    NEWEST,
    X,
    append,
    mlp,
    outputs,
)

from certify import ops
from certify.errors import ModelError, UnsupportedOps
from certify.frontends.onnx_file import since_version
from certify.frontends.onnx_import import load_model
from certify.frontends.onnx_lower import HANDLERS


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

    def test_casts_between_floats_are_the_identity(self) -> None:
        """Half precision inside widens what the check accepts; the graph stays the real network."""
        nodes = [helper.make_node("Cast", ["y"], ["low"], to=TensorProto.FLOAT16)]
        nodes.append(helper.make_node("Cast", ["low"], ["z"], to=FLOAT))
        model = load_model(append(mlp(), *nodes))
        np.testing.assert_array_equal(outputs(model, X), outputs(load_model(mlp()), X))

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

    def test_a_name_written_twice_is_refused(self) -> None:
        proto = append(
            mlp(), helper.make_node("Sigmoid", ["y"], ["h"], "again"), helper.make_node("Relu", ["h"], ["z"])
        )
        with pytest.raises(ModelError, match=r"writes 'h' twice"):
            load_model(proto, check=False)
        proto = mlp()  # onnxruntime would take the second bias, though nothing after it reads it
        proto.graph.node.append(helper.make_node("Constant", [], ["b2"], value_floats=[9.0, 9.0, 9.0]))
        with pytest.raises(ModelError, match=r"writes 'b2' twice"):
            load_model(proto, check=False)

    @pytest.mark.parametrize(
        ("domain", "attributes", "words"), [("", [], "standard domain"), ("own", ["alpha"], "does not give.*'alpha'")]
    )
    def test_a_function_that_runtimes_may_read_otherwise_is_refused(
        self, domain: str, attributes: list[str], words: str
    ) -> None:
        proto = mlp(opset=17)
        body = [helper.make_node("Add", ["a", "a"], ["b"])]
        opsets = [helper.make_opsetid("", 17)]
        proto.functions.append(helper.make_function(domain, "Abs", ["a"], ["b"], body, opsets, attributes=attributes))
        proto.opset_import.append(helper.make_opsetid("own", 1))
        with pytest.raises(ModelError, match=words):
            load_model(append(proto, helper.make_node("Abs", ["y"], ["z"], domain=domain)))

    def test_a_fixed_batch_is_refused(self) -> None:
        with pytest.raises(ModelError, match="fixed batch of 8"):
            load_model(mlp(shape=(8, 4)))

    def test_output_without_input(self) -> None:
        proto = mlp()
        proto.graph.node[0].input[0] = "w3"
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 4), np.float32), "w3"))
        with pytest.raises(ModelError):
            load_model(proto)
