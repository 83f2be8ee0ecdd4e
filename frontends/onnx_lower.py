"""An ONNX graph, node by node, into a Builder; every node that cannot be lowered is listed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import numpy_helper

from certify.errors import ModelError, UnsupportedOps
from certify.frontends import onnx_linear, onnx_moves, onnx_pointwise
from certify.frontends.inexact import Known
from certify.frontends.lower import Builder
from certify.frontends.onnx_constants import FOLDABLE, as_list, constant_node
from certify.frontends.onnx_file import since_version
from certify.frontends.onnx_nodes import HANDLERS, Call, FinalSoftmax, Tensor, Unsupported, Value, exact

FAMILIES = (onnx_linear, onnx_moves, onnx_pointwise)  # importing them fills HANDLERS
NO_HANDLER = "this op is not supported; replace it in the network, or export only the part before it"


@dataclass
class Lowering:
    """The state while lowering.

    tensors: what is known by name; stored: the file's weights; unknown: names that follow from unsupported nodes,
    which `problems` lists; softmax: the output name of a final Softmax.
    """

    proto: Any
    opset: int
    builder: Builder
    tensors: dict[str, Tensor]
    stored: dict[str, Any]
    unknown: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    softmax: str | None = None


def lower_nodes(proto: Any, opset: int, input_name: str, input_shape: Sequence[int], core: Sequence[int]) -> Lowering:
    """Lower every node that the (only) output needs; the result's `tensors` hold the output.

    input_shape: with the batch axis of 1; core: the shape of one sample in the Graph.
    """
    builder = Builder(core)
    stored = {t.name: t for t in proto.graph.initializer}
    state = Lowering(proto, opset, builder, {input_name: Value(builder.input, tuple(input_shape))}, stored)
    output = proto.graph.output[0].name
    nodes = needed_nodes(proto, {output})
    if output in stored:
        state.tensors[output] = _stored(stored[output])
    used = {name for node in nodes for name in node.input} | {output}
    for node in nodes:
        for name in node.input:
            if name in stored and name not in state.tensors:
                state.tensors[name] = _stored(stored[name])
        _lower_node(state, node, used)
    if state.problems:
        count = len(state.problems)
        listed = "\n  ".join(state.problems)
        raise UnsupportedOps(f"{count} node{'s' * (count > 1)} cannot be imported:\n  {listed}")
    return state


def _stored(tensor: Any) -> Known:
    try:
        return exact(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"weight {tensor.name!r} cannot be read, the file is damaged: {error}") from error


def needed_nodes(proto: Any, wanted: set[str]) -> list[Any]:
    """The nodes that the wanted tensors depend on, in file order (which ONNX says is topological)."""
    needed, kept = set(wanted), []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
    return kept[::-1]


def _lower_node(state: Lowering, node: Any, used: set[str]) -> None:
    """Lower one node, or note why not."""
    name = node.name or (node.output[0] if node.output else "?")
    domain = "" if node.domain in ("", "ai.onnx") else f" of domain {node.domain!r}"
    try:
        call = _call(state, node, name, used)
        if call is None:  # it reads what an unsupported node would have computed; only its op is looked at
            state.unknown.update(node.output)
            return
        state.builder.name = name
        results = _dispatch(call)
        for output, result in zip(node.output, results, strict=False):
            if output:
                state.tensors[output] = result
                if isinstance(result, FinalSoftmax) and node.op_type == result.op_type:
                    state.softmax = node.output[0]
    except Unsupported as reason:
        state.problems.append(f"node {name} ({node.op_type}{domain}, opset {state.opset}): {reason}")
        state.unknown.update(node.output)
    except ModelError as error:
        if str(error).startswith(f"node {name}"):
            raise
        raise ModelError(f"node {name} ({node.op_type}): {error}") from error
    except (ValueError, IndexError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"node {name} ({node.op_type}, opset {state.opset}) is malformed: {error}") from error


def _call(state: Lowering, node: Any, name: str, used: set[str]) -> Call | None:
    """The node with its inputs looked up, None if one of them is unknown; checks op, revision and attribute names."""
    since = since_version(node, state.opset)
    if since is None:
        raise Unsupported(NO_HANDLER)
    entry = HANDLERS.get(node.op_type)
    follows = bool(state.unknown.intersection(node.input))
    constant = all(not i or isinstance(state.tensors.get(i), Known) for i in node.input)
    if not constant and not (follows and node.op_type in FOLDABLE):
        if entry is None:
            raise Unsupported(NO_HANDLER)
        if since not in entry.versions:
            raise Unsupported(f"revision {since} of this op is not known; export at an older opset")
    known_names = onnx.defs.get_schema(node.op_type, state.opset, "").attributes
    attributes = {a.name: _attribute(a) for a in node.attribute}
    if unheard := sorted(set(attributes) - set(known_names)):
        raise Unsupported(f"attribute {', '.join(unheard)} is not part of this op")
    if follows:
        return None
    missing = [i for i in node.input if i and i not in state.tensors]
    if missing:
        raise ModelError(f"its input {missing[0]!r} is not computed before it; the file is damaged or not sorted")
    return Call(
        name,
        node.op_type,
        state.opset,
        since,
        tuple(state.tensors[i] if i else None for i in node.input),
        attributes,
        tuple(bool(o) and o in used for o in node.output),
        state.builder,
    )


def _dispatch(call: Call) -> list[Tensor]:
    if all(t is None or isinstance(t, Known) for t in call.inputs):
        results = constant_node(call)
    else:
        results = as_list(HANDLERS[call.op_type].function(call))
    if unread := sorted(set(call.attributes) - call.read):
        raise Unsupported(f"attribute {', '.join(unread)} is not supported here")
    return results


def _attribute(attribute: Any) -> Any:
    """The attribute's value: numbers, strings, lists of them, or a tensor as an array."""
    if attribute.ref_attr_name:
        raise Unsupported(f"attribute {attribute.name} refers to a function's attribute")
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.GraphProto | onnx.SparseTensorProto | onnx.TypeProto):
        raise Unsupported(f"attribute {attribute.name} holds control flow or a sparse tensor, which is not supported")
    if isinstance(value, float | int | str):
        return value
    items = list(value)
    if any(not isinstance(i, float | int) for i in items):
        raise Unsupported(f"attribute {attribute.name} holds a list that is not of numbers")
    return items
