"""A network as imported: the graph that is bounded, beside the ONNX file that replay and checkers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from certify.graph import Graph


@dataclass(frozen=True)
class Before:
    """What goes before the network: (x - mean) / std, one number or one per channel, and another layout ("nhwc")."""

    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    layout: str | None = None


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
    file: the content of the user's file (uncompressed), which the checker of certificates reads by itself. outside: the
        files of its external data, relative to its folder. before: what was put before the network. softmax_dropped: a
        final (Log)Softmax was left out.
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
    file: bytes = b""
    outside: tuple[str, ...] = ()
    before: Before = Before()
    softmax_dropped: bool = False
