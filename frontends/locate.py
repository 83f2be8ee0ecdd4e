"""Where an import goes wrong: the first ONNX tensor whose value differs between our graph and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from certify.errors import ModelError
from certify.frontends.import_check import SAFETY, Runtime, float_gaps, open_session, probe_inputs
from certify.frontends.onnx_lower import Lowering
from certify.frontends.onnx_nodes import Value
from certify.graph import Graph


def first_difference(state: Lowering, runtime: Runtime, input_range: tuple[Any, Any]) -> str:
    """A sentence naming the first node that differs, compared node by node before any folding."""
    graph = Graph(tuple(state.builder.nodes))
    samples = probe_inputs(graph.input_shape, input_range, runtime.dtype, seed=0)
    exact = graph.evaluate(samples.astype(np.float64))
    gaps = float_gaps(graph, exact, runtime.precision, seed=0)
    proto = onnx.ModelProto.FromString(runtime.onnx_bytes)
    pairs = [
        (node, name, tensor)
        for node in proto.graph.node
        for name in node.output
        if isinstance(tensor := state.tensors.get(name), Value) and name != runtime.input_name
    ]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for _, name, _ in pairs)
    try:
        session = open_session(proto.SerializeToString())
        feed = [x.reshape([max(n, 1) for n in runtime.shape]) for x in samples]
        runs = [session.run(None, {runtime.input_name: x}) for x in feed]
    except (ModelError, RuntimeError, ValueError):
        return "which node differs first could not be found out"
    for k, (node, name, tensor) in enumerate(pairs):
        theirs = np.stack([np.asarray(r[k], dtype=np.float64).reshape(-1) for r in runs])
        ours = exact[tensor.node].reshape(len(samples), -1)
        if theirs.shape != ours.shape or not np.all(np.abs(theirs - ours) <= SAFETY * gaps[tensor.node]):
            return (
                f"the first node that differs is {node.name or name} ({node.op_type}). Please report it with the file"
            )
    return "no single node differs: the error lies in folding. Please report it with the file"
