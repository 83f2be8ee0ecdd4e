"""Networks of several ops, as exporters write them, mean to us what they mean to onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx_cases import (
    IMAGE,
    VECTOR,
    assert_same,
    chain,
    f,
    half,
    i64,
)

CHAINS: dict[str, Callable[[], Any]] = {
    "residual": lambda: chain(
        [
            ("Conv", ["x", "w"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["t0"], {}),
            ("Conv", ["t1", "w"], {"pads": [1, 1, 1, 1]}),
            ("Add", ["t2", "x"], {}),
            ("Sub", ["t1", "t3"], {}),
            ("Max", ["t4", "t1", "x"], {}),
            ("Min", ["t5", "t3"], {}),
        ],
        {"w": f(4, 4, 3, 3) * np.float32(0.2)},
        IMAGE,
    ),
    "conv_bn_folds": lambda: chain(
        [
            ("Conv", ["x", "w"], {}),
            ("BatchNormalization", ["t0", "g", "b", "m", "v"], {}),
            ("ConvTranspose", ["t1", "u"], {"strides": [2, 2]}),
            ("BatchNormalization", ["t2", "g", "b", "m", "v"], {}),
            ("Mul", ["t3", "scale"], {}),
        ],
        {
            "w": f(6, 4, 3, 3),
            "u": f(6, 6, 2, 2),
            "g": f(6),
            "b": f(6),
            "m": f(6),
            "v": np.abs(f(6)) + half,
            "scale": np.float32(3),
        },
        IMAGE,
    ),
    "shape_chain": lambda: chain(
        [
            ("Shape", ["x"], {}),
            ("Gather", ["t0", "zero"], {"axis": 0}),
            ("Unsqueeze", ["t1", "axis"], {}),
            ("Concat", ["t2", "minus"], {"axis": 0}),
            ("Reshape", ["x", "t3"], {}),
            ("Shape", ["t4"], {"start": -1}),
            ("Cast", ["t5"], {"to": TensorProto.FLOAT}),
            ("Div", ["t4", "t6"], {}),
        ],
        {"zero": np.int64(0), "axis": i64(0), "minus": i64(-1)},
        IMAGE,
    ),
    "where_expand": lambda: chain(  # as torch exports x.expand(-1, 3, -1)
        [
            ("Shape", ["x"], {}),
            ("ConstantOfShape", ["rank"], {"value": numpy_helper.from_array(i64(1))}),
            ("Mul", ["t1", "minus"], {}),
            ("Equal", ["wanted", "t2"], {}),
            ("Where", ["t3", "t1", "wanted"], {}),
            ("Expand", ["x", "t4"], {}),
            ("Size", ["t5"], {}),
            ("Relu", ["t5"], {}),
        ],
        {"rank": i64(3), "minus": np.int64(-1), "wanted": i64(-1, 3, -1)},
        (1, 1, 4),
    ),
    "constant_arithmetic": lambda: chain(  # BatchNorm spelled out
        [
            ("Add", ["v", "eps"], {}),
            ("Sqrt", ["t0"], {}),
            ("Reciprocal", ["t1"], {}),
            ("Mul", ["t2", "g"], {}),
            ("Sub", ["x", "m"], {}),
            ("Mul", ["t4", "t3"], {}),
        ],
        {"v": np.abs(f(4, 1, 1)), "eps": np.float32(1e-3), "g": f(4, 1, 1), "m": f(4, 1, 1)},
        IMAGE,
    ),
    "nhwc": lambda: chain(  # as tf2onnx writes convolutions
        [
            ("Transpose", ["x"], {"perm": [0, 3, 1, 2]}),
            ("Conv", ["t0", "w"], {}),
            ("Transpose", ["t1"], {"perm": [0, 2, 3, 1]}),
            ("Add", ["t2", "b"], {}),
            ("Relu", ["t3"], {}),
            ("Reshape", ["t4", "flat"], {}),
            ("MatMul", ["t5", "m"], {}),
        ],
        {"w": f(3, 2, 3, 3), "b": f(3), "flat": i64(-1, 60), "m": f(60, 4)},
        (1, 6, 7, 2),
    ),
    "gemm_residual": lambda: chain(
        [("Gemm", ["x", "w", "x"], {"beta": 0.7}), ("Concat", ["t0", "c", "x"], {"axis": 1})],
        {"w": f(5, 5), "c": f(1, 2)},
        VECTOR,
    ),
    "unfused": lambda: chain(
        [
            ("MatMul", ["x", "w"], {}),
            ("Add", ["t0", "b"], {}),
            ("LeakyRelu", ["t1"], {"alpha": 0.125}),
            ("Mul", ["t2", "s"], {}),
            ("CastLike", ["t3", "s"], {}),
            ("GatherND", ["t4", "i"], {}),
        ],
        {"w": f(5, 3), "b": f(3), "s": f(3), "i": np.array([[[0, 2], [0, 0]]])},
        VECTOR,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chain_means_what_onnxruntime_computes(name: str) -> None:
    proto = CHAINS[name]()
    shape = tuple(d.dim_value or 1 for d in proto.graph.input[0].type.tensor_type.shape.dim)
    assert_same(proto, shape)
