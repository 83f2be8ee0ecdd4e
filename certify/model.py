"""A network as imported: the graph that is bounded, beside the ONNX file that replay and checkers read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from certify.graph import Graph


@dataclass(frozen=True, eq=False)
class Model:
    """One network.

    graph: the network in our ops; constants are numpy arrays in the file's dtype or float64.
    onnx_bytes: a self-contained serialized ONNX model that onnxruntime runs (external data and any
        prepended normalisation inside); the judge of every witness.
    source: the path or name as the user gave it. sha256: of the file the user gave (uncompressed).
    input_name, input_dtype: of the ONNX input. onnx_shape: its shape with batch, -1 where dynamic.
    notes: what the import did that a user should know ("dropped the final Softmax", ...).
    metadata: the file's metadata_props (data set, input range, normalisation, training recipe).
    """

    graph: Graph
    onnx_bytes: bytes
    source: str
    sha256: str
    input_name: str
    input_dtype: np.dtype[np.generic]
    onnx_shape: tuple[int, ...]
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
