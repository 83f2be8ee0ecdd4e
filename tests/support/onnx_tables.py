"""Networks of one op in every attribute form (TABLE), and of several as exporters write them (CHAINS)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import IMAGE, VECTOR, chain, f, half, i64


@dataclass
class Case:
    """op(x, *constants): an empty string in `constants` is a left-out input; `x_at` is the place of x."""

    op: str
    shape: tuple[int, ...]
    constants: list[Any] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    x_at: int = 0
    outputs: int = 1
    name: str = ""


def network(case: Case) -> Any:
    """x -> op -> output; several outputs are joined flat."""
    inputs, tensors = [], []
    for i, constant in enumerate(case.constants):
        if isinstance(constant, str):
            inputs.append(constant)
        else:
            tensors.append(numpy_helper.from_array(np.asarray(constant), f"c{i}"))
            inputs.append(f"c{i}")
    inputs.insert(case.x_at, "x")
    names = [f"y{i}" for i in range(case.outputs)]
    nodes = [helper.make_node(case.op, inputs, names, "op", **case.attributes)]
    if case.outputs > 1:
        nodes += [helper.make_node("Flatten", [n], [f"{n}f"]) for n in names]
        nodes += [helper.make_node("Concat", [f"{n}f" for n in names], ["out"], axis=1)]
        names = ["out"]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)


def case(op: str, shape: tuple[int, ...], *constants: Any, **more: Any) -> Case:
    """Keyword arguments that are fields of Case go there, the others are attributes."""
    own = {k: more.pop(k) for k in ("opset", "x_at", "outputs", "name") if k in more}
    return Case(op, shape, list(constants), more, **own)


LINEAR = [
    case("Gemm", VECTOR, f(5, 3)),
    case("Gemm", VECTOR, f(5, 3), f(3)),
    case("Gemm", VECTOR, f(3, 5), f(1, 3), transB=1, alpha=0.3, beta=-2.0),
    case("Gemm", VECTOR, f(5, 3), np.float32(0.25)),
    case("Gemm", VECTOR, f(5, 3), f(1), alpha=2.0),
    case("Gemm", VECTOR, f(5, 3), f(1, 1), opset=9),
    case("Gemm", VECTOR, f(5, 3), f(3), opset=7),
    case("Gemm", (5, 1), f(5, 3), f(1, 3), transA=1, opset=11),
    case("Gemm", (5, 2), f(3, 5), f(2, 3), transA=1, transB=1, alpha=0.7, beta=0.1),
    case("Gemm", (5, 2), f(3, 5), f(3, 2), x_at=1, alpha=0.7),
    case("Gemm", (2, 5), f(5, 3), f(3, 1), x_at=1, transA=1, transB=1),
    case("MatMul", VECTOR, f(5, 3), opset=7),
    case("MatMul", VECTOR, f(5)),
    case("MatMul", (1, 3, 5), f(5, 2)),
    case("MatMul", (1, 3, 5), f(1, 1, 5, 2)),
    case("MatMul", (5,), f(5, 2)),
    case("MatMul", (5,), f(2, 5), x_at=1),
    case("MatMul", (5,), f(5), x_at=1),
    case("MatMul", (1, 5, 3), f(2, 5), x_at=1),
    case("MatMul", (1, 5, 3), f(5), x_at=1),
    case("MatMul", (5, 3), f(1, 2, 5), x_at=1),
    case("Conv", IMAGE, f(6, 4, 3, 3)),
    case("Conv", IMAGE, f(6, 4, 3, 2), f(6), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]),
    case("Conv", IMAGE, f(6, 2, 3, 3), f(6), group=2, dilations=[2, 1], opset=11),
    case("Conv", IMAGE, f(4, 1, 2, 2), group=4, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, f(4, 4, 2, 4), auto_pad="SAME_LOWER", opset=7),
    case("Conv", IMAGE, f(4, 4, 2, 4), auto_pad="VALID", strides=[3, 1], opset=22),
    case("Conv", (1, 3, 9), f(2, 3, 4), f(2), strides=[2], pads=[2, 1]),
    case("Conv", (1, 2, 4, 5, 3), f(3, 2, 2, 2, 2), f(3), pads=[0, 1, 0, 1, 0, 1]),
    case("ConvTranspose", IMAGE, f(4, 3, 3, 3), f(3)),
    case("ConvTranspose", IMAGE, f(4, 3, 3, 2), strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 0]),
    case("ConvTranspose", IMAGE, f(4, 2, 3, 3), group=2, dilations=[2, 1], opset=7),
    case("ConvTranspose", IMAGE, f(4, 2, 3, 3), strides=[2, 2], output_shape=[14, 12]),
    case("ConvTranspose", IMAGE, f(4, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", opset=22),
    case("ConvTranspose", IMAGE, f(4, 2, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    case("ConvTranspose", (1, 3, 5), f(3, 2, 4), strides=[3]),
    case("BatchNormalization", IMAGE, f(4), f(4), f(4), np.abs(f(4)) + half, opset=7),
    case("BatchNormalization", IMAGE, f(4), f(4), f(4), np.abs(f(4)) + half, epsilon=0.1, momentum=0.5, opset=9),
    case("BatchNormalization", IMAGE, f(4), f(4), f(4), np.abs(f(4)) + half, training_mode=0, opset=14),
    case("BatchNormalization", VECTOR, f(5), f(5), f(5), np.abs(f(5)) + half, opset=15),
]

ARITHMETIC = [
    case("Add", IMAGE, f(4, 1, 1), opset=7),
    case("Add", IMAGE, f(6), x_at=1),
    case("Add", VECTOR, f(3, 1)),
    case("Add", (1, 1, 4), f(1, 3, 1)),
    case("Sub", IMAGE, np.float32(0.3)),
    case("Sub", IMAGE, f(1, 4, 1, 1), x_at=1),
    case("Sub", IMAGE, f(*IMAGE)),
    case("Mul", IMAGE, f(4, 1, 1)),
    case("Mul", (1, 1, 4), f(1, 3, 1), x_at=1),
    case("Mul", VECTOR, np.zeros(5, np.float32)),
    case("Div", IMAGE, np.float32(3.0)),
    case("Div", IMAGE, np.abs(f(4, 1, 1)) + half, opset=7),
    case("Pow", VECTOR, np.float32(1.0)),
    case("Sum", VECTOR, f(5), f(1, 1)),
    case("Mean", VECTOR, f(5), f(1, 1), opset=8),
    case("Neg", VECTOR),
]

POINTWISE = [
    *[case(op, IMAGE, opset=o) for op in ("Relu", "Sigmoid", "Tanh", "Abs", "Neg") for o in (7, 13)],
    case("LeakyRelu", IMAGE),
    case("LeakyRelu", IMAGE, alpha=0.3, opset=7),
    case("LeakyRelu", IMAGE, alpha=1.5, opset=16),
    case("PRelu", IMAGE, f(4, 1, 1), opset=7),
    case("PRelu", IMAGE, np.float32([0.2]), opset=9),
    case("PRelu", IMAGE, f(6), opset=16),
    case("HardSigmoid", VECTOR),
    case("HardSigmoid", VECTOR, alpha=0.4, beta=0.3, opset=22),
    case("Clip", VECTOR, min=-0.3, max=0.4, opset=7),
    case("Clip", VECTOR, max=0.4, opset=7),
    case("Clip", VECTOR, opset=7),
    case("Clip", VECTOR, np.float32(-0.3), np.float32(0.4), opset=11),
    case("Clip", VECTOR, "", np.float32(0.4), opset=12),
    case("Clip", VECTOR, np.float32(0.1)),
    case("Clip", VECTOR, np.float32(0.5), np.float32(-0.5)),
    case("Clip", VECTOR, np.float32(0), np.float32(np.inf)),
    case("Clip", VECTOR),
    case("Clip", VECTOR, np.finfo(np.float32).min, np.finfo(np.float32).max),
    case("Clip", VECTOR, "", np.finfo(np.float32).min),
    case("Clip", VECTOR, np.finfo(np.float32).max, np.float32(0.25)),
    case("Max", IMAGE, f(4, 1, 1), opset=8),
    case("Max", (1, 1, 4), f(1, 3, 1), np.float32(-0.5)),
    case("Min", IMAGE, f(*IMAGE), opset=12),
    case("Min", IMAGE, f(1), x_at=1),
    case("Max", VECTOR),
]

POOLING = [
    case("MaxPool", IMAGE, kernel_shape=[2, 2], opset=7),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], opset=8),
    case("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], dilations=[2, 1], opset=10),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, opset=11),
    case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1, opset=12),
    case("MaxPool", IMAGE, kernel_shape=[2, 7], strides=[2, 2], ceil_mode=1, name="wider than the data"),
    case("MaxPool", IMAGE, kernel_shape=[2, 3], auto_pad="SAME_UPPER", strides=[2, 2], opset=22),
    case("MaxPool", IMAGE, kernel_shape=[2, 3], auto_pad="SAME_LOWER"),
    case("MaxPool", (1, 2, 9), kernel_shape=[4], strides=[2], storage_order=0),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], opset=7),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1], opset=7),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 0, 1, 1], count_include_pad=1, opset=10),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, opset=11),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, opset=19),
    case(
        "AveragePool",
        IMAGE,
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1] * 4,
        ceil_mode=1,
        count_include_pad=1,
        opset=19,
    ),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3], opset=19),
    case("AveragePool", IMAGE, kernel_shape=[8, 2], strides=[2, 1], ceil_mode=1, name="wider than the data"),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2], opset=22),
    case("AveragePool", (1, 2, 9), kernel_shape=[4], strides=[2]),
    case("GlobalAveragePool", IMAGE),
    case("GlobalAveragePool", (1, 3, 5), opset=22),
    case("GlobalMaxPool", IMAGE, opset=7),
]

REDUCTIONS = [
    case("ReduceSum", IMAGE, axes=[2, 3], opset=11),
    case("ReduceSum", IMAGE, axes=[-1], keepdims=0, opset=7),
    case("ReduceSum", IMAGE, i64(1, 2), keepdims=0, opset=13),
    case("ReduceSum", IMAGE, keepdims=0, opset=13),
    case("ReduceSum", IMAGE, noop_with_empty_axes=1, opset=13),
    case("ReduceMean", IMAGE, axes=[1], opset=13),
    case("ReduceMean", IMAGE, i64(-1, -2), keepdims=0, opset=18),
    case("ReduceMean", IMAGE, opset=18),
    case("ReduceMean", IMAGE, i64(2, 3), noop_with_empty_axes=0, opset=20),
    case("ReduceMax", IMAGE, axes=[2], opset=13),
    case("ReduceMax", IMAGE, i64(1), keepdims=0, opset=18),
    case("ReduceMin", IMAGE, axes=[2, 3], keepdims=0, opset=13),
]

BIG = 2**31 - 1
MOVES = [
    case("Reshape", IMAGE, i64(1, 168)),
    case("Reshape", IMAGE, i64(0, -1), opset=7),
    case("Reshape", IMAGE, i64(-1, 6), opset=13),
    case("Reshape", IMAGE, i64(1, 7, -1, 2), allowzero=1, opset=14),
    case("Flatten", IMAGE, opset=7),
    case("Flatten", IMAGE, axis=2),
    case("Flatten", IMAGE, axis=-1, opset=11),
    case("Flatten", IMAGE, axis=0, opset=13),
    case("Squeeze", (1, 1, 4, 1), axes=[3], opset=11),
    case("Squeeze", (1, 1, 4, 1), opset=11),
    case("Squeeze", (1, 1, 4, 1), i64(-1, 1), opset=13),
    case("Unsqueeze", VECTOR, axes=[1, 3], opset=11),
    case("Unsqueeze", VECTOR, i64(-1), opset=13),
    case("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    case("Transpose", IMAGE, perm=[1, 0, 3, 2], opset=7),
    case("Transpose", IMAGE, opset=21),
    case("Concat", IMAGE, f(1, 2, 7, 6), axis=1),
    case("Concat", IMAGE, f(1, 4, 7, 1), axis=-1, x_at=1),
    case("Concat", VECTOR, f(2, 5), axis=0),
    case("Split", IMAGE, axis=1, split=[1, 3], outputs=2, opset=7),
    case("Split", IMAGE, axis=-1, outputs=3, opset=11),
    case("Split", IMAGE, i64(3, 4), axis=2, outputs=2, opset=13),
    case("Split", IMAGE, axis=2, num_outputs=3, outputs=3, opset=18),
    case("Slice", IMAGE, starts=[1, 0], ends=[3, -1], axes=[1, 3], opset=7),
    case("Slice", IMAGE, starts=[0, 1], ends=[1, BIG], opset=7),
    case("Slice", IMAGE, i64(1), i64(BIG), i64(2), i64(2), opset=10),
    case("Slice", IMAGE, i64(-1, 5), i64(-BIG, 1), i64(2, 3), i64(-2, -1), opset=11),
    case("Slice", IMAGE, i64(100), i64(-100), i64(-1), i64(-1)),
    case("Gather", IMAGE, i64(2, 0, -1), axis=1, opset=7),
    case("Gather", IMAGE, np.int64(3), axis=-1),
    case("Gather", IMAGE, np.array([[0, 1], [2, 3]]), axis=2),
    case("GatherElements", VECTOR, np.array([[4, 0, -1]]), axis=1),
    case("Pad", IMAGE, pads=[0, 0, 1, 2, 0, 0, 0, 1], opset=7),
    case("Pad", IMAGE, pads=[0, 0, 1, 2, 0, 0, 0, -1], value=0.5, opset=7),
    case("Pad", IMAGE, i64(0, 1, 0, 2, 0, 0, 1, 0), np.float32(-1.5), opset=11),
    case("Pad", IMAGE, i64(0, 0, 1, 2, 0, 0, 1, 1), mode="reflect", opset=13),
    case("Pad", IMAGE, i64(2, 1), "", i64(3), mode="edge", opset=18),
    case("Pad", IMAGE, i64(2, 1, 1, 1), "", i64(-1, 1), mode="wrap", opset=19),
    case("Expand", VECTOR, i64(1, 3, 5), opset=8),
    case("Expand", (1, 1, 4), i64(3, 1)),
    case("Tile", IMAGE, i64(1, 2, 1, 2)),
    case("DepthToSpace", IMAGE, blocksize=2, mode="CRD"),
    case("SpaceToDepth", (1, 2, 4, 6), blocksize=2),
    case("Upsample", IMAGE, scales=[1.0, 1.0, 2.0, 3.0], mode="nearest", opset=7),
    case("Upsample", IMAGE, np.float32([1, 1, 2, 3]), mode="nearest", opset=9),
    case("Resize", IMAGE, np.float32([1, 1, 2, 3]), mode="nearest", opset=10),
    case("Resize", IMAGE, f(0), np.float32([1, 1, 3, 2]), mode="nearest", opset=11),
    case(
        "Resize",
        IMAGE,
        "",
        "",
        i64(1, 4, 21, 12),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
        opset=13,
    ),
    case("Identity", VECTOR, opset=7),
    case("Dropout", VECTOR, ratio=0.3, opset=7),
    case("Dropout", VECTOR, np.float32(0.3), np.bool_(False), seed=3, opset=13),
    case("Cast", VECTOR, to=TensorProto.FLOAT),
]
TABLE = [*LINEAR, *ARITHMETIC, *POINTWISE, *POOLING, *REDUCTIONS, *MOVES]

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
