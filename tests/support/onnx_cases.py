"""Small ONNX networks for the tests of the front end, and the comparison with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from certify.frontends.onnx_import import load_model
from certify.model import Model

RNG = np.random.default_rng(20)
FLOAT_TOLERANCE = 1e-5  # float32 against float64 on networks of one or two ops with values of order one
NEWEST = onnx.defs.onnx_opset_version()
FLOAT = TensorProto.FLOAT
IMAGE = (1, 4, 7, 6)
VECTOR = (1, 5)
half = 0.5


def f(*shape: int) -> np.ndarray[Any, Any]:
    """Random float32 weights."""
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


def assert_same(proto: Any, shape: tuple[int, ...], tolerance: float = FLOAT_TOLERANCE, **options: Any) -> Any:
    """Import, then compare with onnxruntime (default optimisation) on points in [-2, 2] and at 0."""
    model = load_model(proto, input_range=(-1.0, 1.0), **options)
    options_ = onnxruntime.SessionOptions()
    options_.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.onnx_bytes, options_, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for scale in (0.0, 1.0, 1.0, 2.0):
        x = (scale * rng.uniform(-1, 1, shape)).astype(np.float32)
        (theirs,) = session.run(None, {model.input_name: x})
        ours = model.graph(x.astype(np.float64).reshape(1, *model.graph.input_shape))
        assert model.graph.output_shape == (theirs.size,)
        size = tolerance * max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours.reshape(-1), theirs.reshape(-1), rtol=tolerance, atol=size)
    return model


Chain = list[tuple[str, list[str], dict[str, Any]]]


def chain(steps: Chain, constants: dict[str, Any], shape: tuple[int, ...], opset: int = 17) -> Any:
    """Nodes in order; the node at place k writes `t{k}`, the last one is the output."""
    nodes = [
        helper.make_node(op, inputs, [f"t{k}"], f"n{k}", **attributes)
        for k, (op, inputs, attributes) in enumerate(steps)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape[1:]])],
        [helper.make_tensor_value_info(f"t{len(steps) - 1}", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


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
