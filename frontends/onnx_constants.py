"""Nodes whose inputs are all constants: exact on integers and moves, with stated error on floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from certify.frontends import inexact
from certify.frontends.inexact import Known
from certify.frontends.onnx_nodes import HANDLERS, Array, Call, Tensor, Unsupported, exact, finite, weights

# Ops that onnx's reference implementation computes without rounding when their inputs are exact.
EXACT_ON_FLOATS = {
    *("Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Relu", "Max", "Min", "Where", "ReduceMax", "ReduceMin"),
    *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "IsInf", "IsNaN", "NonZero", "Trilu", "ScatterND"),
    *("DepthToSpace", "SpaceToDepth", "GatherElements", "GatherND", "Clip", "Pad", "Compress"),
}
# Ops that are exact on integers and booleans, besides those above.
EXACT_ON_INTEGERS = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Not", "And", "Or", "Xor", "ReduceProd", "ReduceSum", "CumSum", "Sum"),
    *("Range", "TopK", "OneHot", "ArgMax", "ArgMin"),
}
LARGEST_INTEGER = 2.0**31
SMALLEST = np.finfo(np.float64).smallest_subnormal
FOLDABLE = EXACT_ON_FLOATS | EXACT_ON_INTEGERS | {"Constant", "ConstantOfShape", "Sqrt", "Reciprocal"}


def constant_node(call: Call) -> list[Tensor]:
    """The outputs of a node that reads only constants."""
    entry = HANDLERS.get(call.op_type)
    if entry is not None and entry.moves:
        return as_list(entry.function(call))
    if call.op_type == "Constant":
        return [_stored(call)]
    if call.op_type == "ConstantOfShape":
        return [_filled(call)]
    if call.op_type in ("Cast", "CastLike"):
        return [_cast(call)]
    return _computed(call)


def as_list(result: Any) -> list[Tensor]:
    """What a handler returned, as a list of outputs."""
    return list(result) if isinstance(result, list | tuple) else [result]


def _computed(call: Call) -> list[Tensor]:
    constants = [t for t in call.inputs if isinstance(t, Known)]
    is_float = any(c.value.dtype.kind == "f" for c in constants)
    is_exact = not any(np.any(c.error) for c in constants)
    if is_exact and (call.op_type in EXACT_ON_FLOATS or (not is_float and call.op_type in EXACT_ON_INTEGERS)):
        call.read.update(call.attributes)
        if any(c.value.dtype.kind == "f" and np.isnan(c.value).any() for c in constants):
            raise Unsupported("its constants hold NaN, which runtimes treat differently")
        if call.op_type in ("Mod", "ReduceSum", "ReduceProd"):
            sizes = np.abs(constants[0].value, dtype=np.float64)
            if (sizes.clip(1).prod() if call.op_type == "ReduceProd" else sizes.sum()) >= LARGEST_INTEGER:
                raise Unsupported("for such large integers runtimes compute it in floats")
        arrays = [t.value if isinstance(t, Known) else None for t in call.inputs]
        return [exact(a) for a in reference(call, arrays)]
    if is_float:
        return [_as_computed(_arithmetic(call, [weights(finite(c)) for c in constants]), constants[0].value.dtype)]
    raise Unsupported("it cannot be folded; export with constant folding, or simplify the file before (onnxsim)")


def _as_computed(found: Known, kind: np.dtype[Any]) -> Known:
    """Exact only where the operands' type holds the number, which then is what a runtime computes."""
    if np.any(found.error):
        return found
    held = found.value.astype(kind)
    error = np.where(held == found.value, 0.0, SMALLEST)
    return Known(found.value, error) if error.any() else exact(held)


def _arithmetic(call: Call, constants: list[Known]) -> Known:
    """Real arithmetic on stored floats: float64 with the rounding stated."""
    binary = {"Add": inexact.add, "Sub": inexact.subtract, "Mul": inexact.multiply, "Div": inexact.divide}
    if call.op_type in binary and len(constants) == 2:
        return binary[call.op_type](*constants)
    one = exact(1.0)
    if call.op_type == "Neg":
        return inexact.negative(constants[0])
    if call.op_type == "Sqrt":
        return inexact.square_root(constants[0])
    if call.op_type == "Reciprocal":
        return inexact.divide(one, constants[0])
    if call.op_type == "Pow" and len(constants) == 2 and constants[1].value.size == 1 and not constants[1].error:
        exponent = float(constants[1].value.reshape(-1)[0])
        known_powers: dict[float, Callable[[Known], Known]] = {
            1.0: lambda x: x,
            2.0: lambda x: inexact.multiply(x, x),
            0.5: inexact.square_root,
            -0.5: lambda x: inexact.divide(one, inexact.square_root(x)),
            -1.0: lambda x: inexact.divide(one, x),
        }
        if exponent in known_powers:
            return known_powers[exponent](constants[0])
    raise Unsupported(
        "it computes weights from constants; export with constant folding, or simplify the file (onnxsim)"
    )


def _stored(call: Call) -> Known:
    for name, value in call.attributes.items():
        call.read.add(name)
        if name == "value":
            return exact(value)
        if name in ("value_float", "value_floats"):
            return exact(np.asarray(value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return exact(np.asarray(value, dtype=np.int64))
    raise Unsupported(f"a constant given by {', '.join(call.attributes)} is not supported; store it as a plain tensor")


def _filled(call: Call) -> Known:
    shape = call.integers(0, "the shape") or []
    value = call.attribute("value", np.zeros(1, dtype=np.float32))
    return exact(np.full(shape, np.asarray(value).reshape(-1)[0]))


def _cast(call: Call) -> Known:
    """Stored numbers are rounded to the type; between floats, a computed one stays the real number that it is."""
    source = call.input(0)
    assert isinstance(source, Known)
    if call.op_type == "CastLike":
        like = call.input(1)
        assert isinstance(like, Known)
        target = like.value.dtype
    else:
        target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(call.attribute("to")))
    call.attribute("saturate")
    call.attribute("round_mode")
    kind = source.value.dtype.kind
    if target.kind == kind == "f" and np.any(source.error):
        return source
    if target.kind not in "fiub" or kind not in "fiub" or np.any(source.error):
        raise Unsupported(f"a cast of a constant from {source.value.dtype} to {target} is not supported")
    with np.errstate(over="ignore", invalid="ignore"):
        result, number = source.value.astype(target), source.value.astype(np.float64)
        narrow = number.astype(np.float32).astype(target)
    mixed = target.kind != "b" and "f" in (kind, target.kind) and kind != target.kind
    if mixed and not np.array_equal(result, np.trunc(number)):
        raise Unsupported(f"a constant does not fit into {target}")
    if target == np.float16 and not np.array_equal(result, narrow, equal_nan=True):
        raise Unsupported(f"how a constant of {source.value.dtype} is rounded to float16 depends on the runtime")
    return exact(result)


def reference(call: Call, inputs: list[Array | None]) -> list[Array]:
    """The node computed by onnx's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    outputs = [f"y{i}" for i in range(len(call.used_outputs))]
    attributes = {
        k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in call.attributes.items()
    }
    node = onnx.helper.make_node(call.op_type, names, outputs, **attributes)
    empty = [onnx.helper.make_empty_tensor_value_info(n) for n in outputs]
    graph = onnx.helper.make_graph(
        [node], "constant", [onnx.helper.make_empty_tensor_value_info(n) for n in names if n], empty
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", call.opset)])
    try:
        feed = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
        return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, feed)]
    except Exception as error:  # whatever the reference trips over is a node that we cannot fold
        raise Unsupported(f"onnx's reference implementation cannot compute it: {error}") from error
