"""An ONNX file -> Network: what certify.check bounds, read from the file anew, and by the ONNX specification.

What is not understood is Rejected, with the node named: an op, a revision of it, an attribute, a type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.inliner import inline_local_functions

from certify.check import read_moves, read_ops, read_windows
from certify.check.call import HANDLERS, Call
from certify.check.constants import ONE, Constant, divide, exact, negative
from certify.check.content import Before
from certify.check.errors import Rejected, Unreadable
from certify.check.network import Input, Network, Shape
from certify.check.sketch import Sketch, Tensor, Value

FAMILIES = (read_moves, read_ops, read_windows)  # importing them fills HANDLERS
FIRST_OPSET = 7
STANDARD = ("", "ai.onnx")
FLOATS = {
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.DOUBLE: np.float64,
}

FLAGS = {  # attributes that are 0 or 1: of others some runtimes think one thing, some another
    *("allowzero", "ceil_mode", "count_include_pad", "detect_negative", "detect_positive", "exclusive", "fmod"),
    *("keepdims", "largest", "noop_with_empty_axes", "reverse", "select_last_index", "sorted", "transA", "transB"),
    "upper",
}


def read_network(data: bytes, before: Before, softmax: str, path: Path | None = None) -> Network:
    """The network of an ONNX file's content, with `before` put before it; softmax: "dropped" or "kept".

    path: of the file, beside which external data lies.
    """
    try:
        with np.errstate(all="ignore"):  # whatever is not finite in the end is refused
            return _read(_parsed(data, path), before, softmax == "dropped")
    except MemoryError as error:
        raise Rejected("model: it does not fit into memory") from error


def fingerprint(data: bytes, path: Path | None = None) -> str:
    """SHA-256 of an ONNX file's content, and of the files of its external data after it, in order of their names."""
    try:
        return _fingerprint(data, tuple((file, file.stat().st_mtime_ns) for file in _outside(data, path)))
    except OSError as error:
        raise Unreadable(f"model: its external data {error.filename!r} cannot be read ({error.strerror})") from error


@lru_cache(maxsize=4)
def _fingerprint(data: bytes, files: Sequence[tuple[Path, int]]) -> str:
    """files: with their times, so that they are read anew when they change."""
    digest = hashlib.sha256(data)
    for file, _ in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _outside(data: bytes, path: Path | None) -> list[Path]:
    return _loaded(data, path)[1]


def _loaded(data: bytes, path: Path | None) -> tuple[Any, list[Path]]:
    """The model with its external data, and the files where these lie, in order of their names."""
    try:
        proto = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own kinds
        raise Unreadable(f"model: not an ONNX file ({error})") from error
    if not proto.opset_import or not proto.graph.output:
        raise Unreadable("model: not an ONNX file, or a truncated one")
    holders = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    attributes = [*(a for n in holders for a in n.attribute), *(a for f in proto.functions for a in f.attribute_proto)]
    places = set()
    for tensor in [*proto.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if path is None:
            raise Rejected("model: its weights lie in other files, and its place is not known")
        try:  # refuses what lies outside of the folder
            places.add({e.key: e.value for e in tensor.external_data}["location"])
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:
            raise Unreadable(f"model: weight {tensor.name!r} in another file cannot be read ({error})") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
    return proto, [path.parent / place for place in sorted(places)] if path is not None else []


def _parsed(data: bytes, path: Path | None) -> Any:
    """The model with its external data, functions inlined."""
    proto, _ = _loaded(data, path)
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if any(f.domain in STANDARD for f in proto.functions):
        raise Rejected("model: a function in the standard's domain: some runtimes take it, some the standard's op")
    for node in [*proto.graph.node, *(n for f in proto.functions for n in f.node)]:
        if (called := functions.get((node.domain, node.op_type, node.overload))) is not None:
            given = {a.name for a in node.attribute}
            if missing := set(called.attribute) - given:
                raise Rejected(f"model: node {node.name!r}: attribute {min(missing)!r} of its function is not given")
            node.attribute.extend(a for a in called.attribute_proto if a.name not in given)  # onnx's inliner does not
    try:
        return inline_local_functions(proto) if functions else proto
    except Exception as error:
        raise Rejected(f"model: its functions cannot be inlined ({error})") from error


def _read(proto: Any, before: Before, dropped: bool) -> Network:
    graph = proto.graph
    versions = {o.version for o in proto.opset_import if o.domain in STANDARD}
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not FIRST_OPSET <= min(versions) <= newest:
        raise Rejected(f"model: opset {sorted(versions)}; {FIRST_OPSET} to {newest} are read")
    if graph.sparse_initializer:
        raise Rejected("model: sparse weights")
    stored = {t.name: t for t in graph.initializer}
    inputs = [v for v in graph.input if v.name not in stored]
    written = [*(v.name for v in [*inputs, *graph.initializer]), *(o for n in graph.node for o in n.output if o)]
    if len(set(written)) != len(written):
        raise Rejected("model: a name that is written twice")  # which one is read, runtimes do not agree on
    source, result = _ends(graph, inputs)
    output = result.name
    nodes = _needed(graph, output)
    shape, kind = _input(source, result)
    sketch = Sketch(np.dtype(kind))
    if kind == np.float16:
        sketch.doubt("is float16")
    if kind == np.float64 and any(node.op_type in ("Cast", "CastLike") for node in nodes):
        sketch.doubt("may round its input, which is float64")
    known: dict[str, Tensor] = {source.name: _before(before, shape, kind, sketch)}
    used = {name for node in nodes for name in node.input} | {output}
    for node in nodes:
        name = sketch.name = node.name or next(iter(node.output), "?")
        try:
            for given in node.input:
                if given in stored and given not in known:
                    known[given] = exact(numpy_helper.to_array(stored[given]))
            results = _outputs(_call(node, min(versions), known, used, sketch))
            known |= zip(node.output, results, strict=False)
        except Rejected as reason:
            raise Rejected(f"model: node {name!r} ({node.op_type}): {reason.reason}") from reason
        except (ValueError, IndexError, TypeError, KeyError, AttributeError, AssertionError, ArithmeticError) as error:
            raise Rejected(f"model: node {name!r} ({node.op_type}) is malformed: {error}") from error
    last = known.get(output)
    if not isinstance(last, Value):
        raise Rejected("model: its output does not depend on its input")
    if last.softmax != dropped:
        raise Rejected(f"model: the certificate says softmax is {'dropped' if dropped else 'kept'}, the file disagrees")
    return sketch.finished(last)


def _ends(graph: Any, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """The only input that is read, and the only output that depends on it."""

    def read(output: Any) -> list[Any]:
        names = {output.name} | {i for node in _needed(graph, output.name) for i in node.input}
        return [v for v in inputs if v.name in names]

    outputs = [output for output in graph.output if len(graph.output) == 1 or read(output)]
    if len(outputs) != 1:
        raise Rejected(f"model: {len(outputs)} outputs that depend on the input")
    real = read(outputs[0])
    if len(real) != 1:
        raise Rejected(f"model: {len(real)} inputs")
    return real[0], outputs[0]


def _needed(graph: Any, output: str) -> list[Any]:
    """The nodes that the output needs, in the file's order, which is topological."""
    wanted, kept = {output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output) - {""}:
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _input(source: Any, output: Any) -> tuple[Shape, Any]:
    """The input's shape with the batch axis, which is its first if that is 1, 0 or dynamic, at length 1; its type."""
    tensor = source.type.tensor_type
    if tensor.elem_type not in FLOATS or not tensor.HasField("shape"):
        raise Rejected(f"model: input {source.name!r} is not of floats, or has no shape")
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    if dims and dims[0] < 1 and len(dims) > 1:
        dims[0] = 1
    if not dims or min(dims) < 1:
        raise Rejected(f"model: input {source.name!r} of shape {dims}; only the batch may be open")
    out = output.type.tensor_type.shape.dim
    if dims[0] != 1 and len(dims) > 1 and len(out) and out[0].dim_value == dims[0]:
        raise Rejected(f"model: input {source.name!r} has a fixed batch of {dims[0]}")
    return tuple(dims), FLOATS[tensor.elem_type]


def _before(before: Before, shape: Shape, kind: Any, sketch: Sketch) -> Value:
    """The network's input, and ((x - mean) / std, then axes) of it: constants rounded to the input's type."""
    if before.layout == "nhwc":
        if len(shape) != 4 or shape[0] != 1:
            raise Rejected(f"model: layout nhwc for an input {shape}")
        shape = tuple(shape[i] for i in (0, 3, 1, 2))
    rank = len(shape)
    channel = 1 if rank > 1 else 0

    def constant(numbers: float | Sequence[float], what: str) -> Constant:
        stored = np.asarray(numbers, dtype=np.float64).astype(kind)
        if not np.isfinite(stored).all() or (what == "std" and not (stored > 0).all()):
            raise Rejected(f"model.{what}: {numbers} in the input's type {np.dtype(kind)}")
        if stored.size != 1 and stored.shape != (shape[channel],):
            raise Rejected(f"model.{what}: {stored.size} numbers for an input of shape {shape}")
        return exact(stored.reshape(-1, *(1,) * (rank - channel - 1)) if stored.size > 1 else stored.reshape(()))

    value = sketch.append(Input(), [], shape)
    if before.mean is not None:
        value = value.scale(ONE, negative(constant(before.mean, "mean").float64()))
    if before.std is not None:
        value = value.scale(divide(ONE, constant(before.std, "std")))
    return value.move(lambda a: a.transpose(0, 2, 3, 1)) if before.layout == "nhwc" else value


def _call(node: Any, opset: int, known: dict[str, Tensor], used: set[str], sketch: Sketch) -> Call:
    """The node, its inputs looked up, its op, revision and attributes known."""
    if node.domain not in STANDARD:
        raise Rejected(f"an op of domain {node.domain!r}")
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise Rejected(f"opset {opset} has no such op") from error
    missing = [i for i in node.input if i and i not in known]
    if missing:
        raise Rejected(f"its input {missing[0]!r} is not computed before it")
    attributes = {a.name: _attribute(a) for a in node.attribute}
    if len(attributes) != len(node.attribute) or set(attributes) - set(schema.attributes) or schema.deprecated:
        raise Rejected("an attribute that the op does not have, or twice, or a deprecated op")
    if any(a.type != schema.attributes[a.name].type.value for a in node.attribute):
        raise Rejected("an attribute of another type than the op's")
    if wrong := [name for name in FLAGS & set(attributes) if attributes[name] not in (0, 1)]:
        raise Rejected(f"attribute {wrong[0]} = {attributes[wrong[0]]}")
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise Rejected(f"{len(node.input)} inputs")
    inputs = tuple(known[i] if i else None for i in node.input)
    outputs = tuple(bool(o) and o in used for o in node.output)
    node.domain = ""
    return Call(node, opset, schema.since_version, inputs, attributes, outputs, sketch)


def _attribute(attribute: Any) -> Any:
    """A number, a text, a list of numbers, or a tensor as an array."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, float | int) or (isinstance(value, list) and all(isinstance(n, float | int) for n in value)):
        return value
    raise Rejected(f"attribute {attribute.name!r}: control flow, sparse, or a list of other than numbers")


STORED = {
    "value": None,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def _outputs(call: Call) -> Sequence[Tensor]:
    handler, revisions, moves = HANDLERS.get(call.op, (None, (), False))
    if call.op == "Constant":
        ((name, value),) = call.attributes.items()
        if name not in STORED:
            raise Rejected(f"a constant given by {name}")
        return [exact(np.asarray(value, dtype=STORED[name]))]
    if all(t is None or isinstance(t, Constant) for t in call.inputs) and not moves:
        return call.folded()
    if handler is None:
        raise Rejected("this op is not known")
    if call.since not in revisions:
        raise Rejected(f"revision {call.since} of the op is not known")
    found = handler(call)
    if unread := sorted(set(call.attributes) - call.asked):
        raise Rejected(f"attribute {unread[0]} is not supported here")
    return found if isinstance(found, list) else [found]
