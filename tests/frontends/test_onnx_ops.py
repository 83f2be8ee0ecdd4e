"""One table: a network of one op in one attribute form means to us what it means to onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import IMAGE, VECTOR, assert_same, outputs
from onnx_tables import TABLE, Case, network

from certify.check.content import Before
from certify.check.errors import Rejected
from certify.check.read_onnx import read_network
from certify.errors import ModelError
from certify.frontends.onnx_import import load_model


@pytest.mark.parametrize("case", TABLE, ids=[f"{i}-{c.op}-{c.opset}" for i, c in enumerate(TABLE)])
def test_op_means_what_onnxruntime_computes(case: Case) -> None:
    assert_same(network(case), case.shape)


def test_every_op_and_revision_in_the_table_is_the_registered_one() -> None:
    """Every handler is exercised by the table (two-branch and Shape ops have tests of their own)."""
    from certify.frontends.onnx_lower import HANDLERS

    elsewhere = {"Shape", "Size", "Softmax", "LogSoftmax", "CastLike", "GatherND"}
    assert set(HANDLERS) - {c.op for c in TABLE} <= elsewhere


def test_a_clip_at_the_largest_float16_limits() -> None:
    """Regression: it was dropped as no limit, but a sum of float16 numbers can exceed 65504, and is then cut there."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Clip", ["m", "", "high"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, VECTOR)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, VECTOR)],
        [numpy_helper.from_array(np.float16(60000), "w"), numpy_helper.from_array(np.float16(65504), "high")],
    )
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
    np.testing.assert_allclose(outputs(model, np.full(VECTOR, 1.5)), 65504)


@pytest.mark.parametrize(
    ("words", "attributes"),
    [
        ("larger than the padded input", {"kernel_shape": [8, 2]}),
        ("larger than the padded input", {"kernel_shape": [2, 9], "strides": [1, 2], "ceil_mode": 1}),
        ("auto_pad.*state the pads", {"kernel_shape": [2, 2], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_windows_that_hold_nothing_or_lie_elsewhere_are_refused(
    op: str, words: str, attributes: dict[str, Any]
) -> None:
    """Regression: a pooling without windows was an IndexError when the import was checked."""
    proto = network(Case(op, IMAGE, [], attributes, opset=19))
    with pytest.raises(ModelError, match=f"op.*{words}"):
        load_model(proto)
    with pytest.raises(Rejected, match="'op'"):
        read_network(proto.SerializeToString(), Before(), "kept")
