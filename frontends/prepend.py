"""Normalisation and layout as layers of the network itself: x -> network((x - mean) / std), HWC networks fed with CHW.

The ONNX model is rewritten, so that the import, the replay and every checker see the same network, and eps
always means the raw input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from certify.errors import UsageError

LAYOUTS = (None, "nchw", "nhwc")


def prepend(
    proto: Any,
    input_name: str,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    layout: str | None,
) -> Any:
    """The model with (x - mean) / std before it, per channel or one number for all, and a Transpose for layout="nhwc".

    With layout="nhwc" the network reads (N, H, W, C) and the new input is (N, C, H, W). The input keeps its name.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is not known; use 'nchw' or 'nhwc'")
    if mean is None and std is None and layout != "nhwc":
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    declared = next(v for v in graph.input if v.name == input_name)
    if layout == "nhwc":
        _to_channels_first(declared)
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in declared.type.tensor_type.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type)
    taken = {n for node in graph.node for n in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    nodes: list[Any] = []
    current = input_name

    def step(op_type: str, operands: list[str], **attributes: Any) -> None:
        nonlocal current
        output = _fresh(f"{input_name}_{op_type.lower()}", taken)
        nodes.append(helper.make_node(op_type, [current, *operands], [output], name=output, **attributes))
        current = output

    for op_type, what, numbers in (("Sub", "mean", mean), ("Div", "std", std)):
        if numbers is not None:
            constant = _shaped(numbers, what, dims, dtype)
            tensor_name = _fresh(f"{input_name}_{what}", taken)
            graph.initializer.append(numpy_helper.from_array(constant, tensor_name))
            step(op_type, [tensor_name])
    if layout == "nhwc":
        step("Transpose", [], perm=[0, 2, 3, 1])
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == input_name:
                node.input[i] = current
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return result


def _to_channels_first(declared: Any) -> None:
    """(N, H, W, C) -> (N, C, H, W) in the declaration of the input."""
    shape = declared.type.tensor_type.shape
    if len(shape.dim) != 4:
        raise UsageError(f"layout 'nhwc' needs an input with 4 axes; {declared.name!r} has {len(shape.dim)}")
    order = [onnx.TensorShapeProto.Dimension.FromString(shape.dim[i].SerializeToString()) for i in (0, 3, 1, 2)]
    del shape.dim[:]
    shape.dim.extend(order)


def _shaped(numbers: float | Sequence[float], what: str, dims: list[int], dtype: Any) -> np.ndarray[Any, Any]:
    """The numbers in the input's dtype, shaped to broadcast along the channel axis."""
    values = np.asarray(numbers, dtype=np.float64).reshape(-1)
    stored = values.astype(dtype)
    if not values.size or not np.all(np.isfinite(stored)) or (what == "std" and not np.all(stored > 0)):
        raise UsageError(f"{what} {values.tolist()} must be finite numbers{', all positive' if what == 'std' else ''}")
    if values.size == 1:
        return stored.reshape(())
    channel = 1 if len(dims) >= 2 else 0
    if not dims or dims[channel] != values.size:
        last = len(dims) == 4 and dims[-1] == values.size
        hint = "is it an NHWC network (--layout nhwc)?" if last else "give one number, or one per channel"
        channels = dims[channel] if dims else 0
        raise UsageError(f"{what} has {values.size} numbers, the input of shape {dims} has {channels} channels; {hint}")
    return stored.reshape((-1, *(1,) * (len(dims) - channel - 1)))


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
