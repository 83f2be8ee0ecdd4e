"""ONNX files whose ops nobody here knows the mathematics of: onnxruntime answers, and that is all that is asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from certify.frontends.import_check import Runtime, open_session, run
from certify.frontends.onnx_file import prepare, read_source, serialize
from certify.frontends.onnx_import import choose_ends, input_form
from certify.frontends.prepend import prepend
from certify.graph import Graph, Node
from certify.model import Before, Model
from certify.ops.shape import Input
from certify.rules import Op


@dataclass(frozen=True, eq=False)
class Opaque(Op):
    """A whole network. It has no rules: whatever wants to know more than its outputs fails."""


def is_opaque(model: Model) -> bool:
    """Is the network known by its outputs alone?"""
    return isinstance(model.graph.nodes[-1].op, Opaque)


def load_opaque(path: str, before: Before) -> Model:
    """The network of an ONNX file as something that onnxruntime runs. Raises ModelError."""
    source = read_source(path)
    proto = prepare(source)
    notes = choose_ends(proto)
    proto = prepend(proto, proto.graph.input[0].name, before.mean, before.std, before.layout)
    form = input_form(proto)
    data = serialize(proto, source.name)
    runtime = Runtime(data, form.name, form.dtype, form.onnx_shape, form.dtype)
    output = run(open_session(data), runtime, np.zeros(form.full, dtype=form.dtype))
    graph = Graph((Node("input", Input(), (), form.core), Node("network", Opaque(), (0,), (output.size,))))
    notes.append("some of its ops are known to onnxruntime alone: nothing but its answers is looked at")
    metadata = {p.key: p.value for p in source.proto.metadata_props}
    return Model(
        graph, data, source.name, source.sha256, form.name, form.dtype, form.onnx_shape, tuple(notes), metadata
    )
