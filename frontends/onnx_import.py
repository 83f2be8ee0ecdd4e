"""ONNX files to Models: read, normalise, lower, check against onnxruntime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from certify.errors import ImportMismatch, ModelError
from certify.frontends.import_check import Runtime, check_import
from certify.frontends.locate import first_difference
from certify.frontends.onnx_file import Source, opset_of, prepare, read_source, serialize
from certify.frontends.onnx_lower import Lowering, lower_nodes, needed_nodes
from certify.frontends.onnx_nodes import FinalSoftmax, Value
from certify.frontends.prepend import prepend
from certify.graph import Graph
from certify.model import Before, Model

FLOATS: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
}
Channels = float | Sequence[float] | None
# Bounds of the raw input, numbers or arrays that broadcast to its shape; or a function that tells them for the graph.
InputRange = tuple[Any, Any] | Callable[[Graph], tuple[Any, Any]]


@dataclass(frozen=True)
class InputForm:
    """The network's input. onnx_shape: -1 where the batch is dynamic. full: with a batch of 1. core: of one sample."""

    name: str
    dtype: np.dtype[Any]
    onnx_shape: tuple[int, ...]
    full: tuple[int, ...]
    core: tuple[int, ...]


def load_model(
    model: str | Path | bytes | onnx.ModelProto,
    *,
    mean: Channels = None,
    std: Channels = None,
    layout: str | None = None,
    input_range: InputRange = (0.0, 1.0),
    check: bool = True,
    drop_softmax: bool = True,
) -> Model:
    """The network of an ONNX file (path, bytes or ModelProto, .gz too) as a Model, checked against onnxruntime.

    mean, std: prepends (x - mean) / std, one number or one per channel; layout="nhwc": the network reads
    (N, H, W, C) and shall be fed (N, C, H, W). input_range: bounds of the raw input, for the check: numbers or
    arrays, or a function of the imported graph that gives them. drop_softmax: a final (Log)Softmax is dropped, which
    keeps the order of the classes but not the outputs' values: say False where these matter (VNN-LIB), and it is
    refused. check=False skips onnxruntime; the batch axis then counts as fixed to 1.

    The graph's output has shape (n,), its input the ONNX shape without batch. Raises ModelError, UnsupportedOps
    (all nodes at once) or ImportMismatch.
    """
    source = read_source(model)
    try:
        return _load(source, Before(mean, std, layout), input_range, check, drop_softmax)
    except ModelError as error:
        if str(error).startswith(source.name):
            raise
        raise type(error)(f"{source.name}: {error}") from error


def _load(
    source: Source,
    before: Before,
    input_range: InputRange,
    check: bool,
    drop_softmax: bool,
) -> Model:
    proto = prepare(source)
    notes = choose_ends(proto)
    proto = prepend(proto, proto.graph.input[0].name, before.mean, before.std, before.layout)
    form = input_form(proto)
    state = lower_nodes(proto, opset_of(proto, source.name), form.name, form.full, form.core)
    result = state.tensors.get(proto.graph.output[0].name)
    dropped = isinstance(result, FinalSoftmax)
    if isinstance(result, FinalSoftmax):
        notes.append(_drop_softmax(proto, state, result, drop_softmax))
        result = result.logits
    if not isinstance(result, Value):
        raise ModelError("its output does not depend on its input: there is nothing to verify")
    graph = state.builder.graph(state.builder.reshape(result.node, (-1,)))
    data = serialize(proto, source.name)
    shape = form.onnx_shape
    if check:
        runtime = Runtime(data, form.name, form.dtype, shape, _precision(proto, form.dtype))
        bounds = input_range(graph) if callable(input_range) else input_range
        if not _checked(graph, runtime, bounds, state):
            notes.append("its batch axis is declared dynamic, but only batches of one sample work: samples run singly")
            shape = (1, *shape[1:])
    elif shape[0] == -1:
        shape = (1, *shape[1:])
    metadata = {p.key: p.value for p in source.proto.metadata_props}
    return Model(
        graph,
        data,
        source.name,
        source.sha256,
        form.name,
        form.dtype,
        shape,
        tuple(notes),
        metadata,
        file=source.data,
        outside=source.outside,
        before=before,
        softmax_dropped=dropped,
    )


def _checked(graph: Graph, runtime: Runtime, input_range: Any, state: Lowering) -> bool:
    """check_import; a mismatch names the first node that differs."""
    try:
        return check_import(graph, runtime, input_range)
    except ImportMismatch as error:
        where = first_difference(state, runtime, input_range)
        raise ImportMismatch(f"{error}; {where}") from error


def _precision(proto: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The coarsest of the input's type, the stored weights' types and the types that are cast to."""
    kinds = {t.data_type for t in proto.graph.initializer}
    kinds |= {a.i for n in proto.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    return min([dtype, *(FLOATS[k] for k in kinds if k in FLOATS)], key=lambda kind: kind.itemsize)


def choose_ends(proto: Any) -> list[str]:
    """Leave one input and one output in the model, if it is clear which; notes say what was left out."""
    graph = proto.graph
    if graph.sparse_initializer:
        raise ModelError("it stores sparse weights, which are not supported; store them densely")
    stored = {t.name for t in graph.initializer}
    inputs = [v for v in graph.input if v.name not in stored]
    written = [*(v.name for v in (*inputs, *graph.initializer)), *(o for n in graph.node for o in n.output if o)]
    if twice := [name for name, count in Counter(written).items() if count > 1]:
        raise ModelError(f"it writes {twice[0]!r} twice, and runtimes do not agree which to take; the file is damaged")
    notes = []
    if len(graph.output) > 1:
        real = [v for v in graph.output if _depends(proto, v.name, {i.name for i in inputs})]
        if len(real) != 1:
            names = ", ".join(v.name for v in graph.output)
            raise ModelError(
                f"it has {len(graph.output)} outputs ({names}); export it with only the one to be verified"
            )
        notes.append(f"took output {real[0].name!r}; the others do not depend on the input")
        _keep(graph.output, real[0])
    if len(inputs) != 1:
        needed = {n for node in needed_nodes(proto, {graph.output[0].name}) for n in node.input}
        real = [v for v in inputs if v.name in needed]
        if len(real) != 1:
            names = ", ".join(v.name for v in inputs) or "none"
            raise ModelError(f"it has {len(inputs)} inputs ({names}); a network of one input is needed")
        notes.append(f"took input {real[0].name!r}; the network does not read the others")
        inputs = real
    # Weights that are listed as inputs stay initializers; listing them would let a caller override them.
    _keep(graph.input, inputs[0])
    return notes


def _keep(values: Any, one: Any) -> None:
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(one)
    del values[:]
    values.append(kept)


def _depends(proto: Any, output: str, inputs: set[str]) -> bool:
    """Does the output depend on an input?"""
    if output in inputs:
        return True
    return any(inputs.intersection(node.input) for node in needed_nodes(proto, {output}))


def input_form(proto: Any) -> InputForm:
    """Shape and dtype of the input; a first axis that is 1, 0 or dynamic is the batch."""
    declared = proto.graph.input[0]
    name, kind = declared.name, declared.type.tensor_type
    if kind.elem_type not in FLOATS:
        stated = onnx.TensorProto.DataType.Name(kind.elem_type) if kind.elem_type else "no type"
        raise ModelError(f"input {name!r} has type {stated}; only float16, float32 and float64 inputs are supported")
    if not kind.HasField("shape"):
        raise ModelError(f"input {name!r} has no declared shape; export it with one (only the batch may be dynamic)")
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    if any(n < 1 for n in dims[1:]) or dims in ((), (-1,)):
        raise ModelError(
            f"input {name!r} has shape {dims}: every axis but the batch must have a fixed size (-1: dynamic)"
        )
    dtype = FLOATS[kind.elem_type]
    if dims[0] in (1, -1) and len(dims) > 1:
        return InputForm(name, dtype, dims, (1, *dims[1:]), dims[1:])
    output = proto.graph.output[0].type.tensor_type.shape.dim
    if len(dims) > 1 and len(output) and output[0].dim_value == dims[0]:
        raise ModelError(f"input {name!r} has shape {dims}, a fixed batch of {dims[0]}; export with batch 1 or dynamic")
    return InputForm(name, dtype, dims, dims, dims)


def _drop_softmax(proto: Any, state: Lowering, result: FinalSoftmax, allowed: bool) -> str:
    """Turn the final Softmax of the ONNX model into an Identity, so that the runtime compares logits too."""
    if not allowed:
        raise ModelError(
            f"it ends in {result.op_type}; the property is about its outputs, which are not piecewise linear. "
            "Export the network up to its logits and state the property about these"
        )
    for node in proto.graph.node:
        if state.softmax in node.output:
            node.op_type = "Identity"
            del node.attribute[:]
    return f"dropped the final {result.op_type}: the order of the classes is the same, outputs are logits"
