"""The imported graph against onnxruntime: on random, zero and corner inputs they agree up to float error.

What float error may amount to is measured, not guessed: a second float64 run in which every sum is disturbed by random
noise of the size of the network's own unit roundoff (stochastic arithmetic, Vignes 1993).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.arrays import UNIT_ROUNDOFF
from certify.errors import ImportMismatch, ModelError
from certify.graph import Graph, Shape
from certify.ops import Add, Relu, Sigmoid, SumAxes, Weighted
from certify.rules import absolute, bias, evaluate, linear

Array = np.ndarray[Any, Any]

# How many times more than the disturbed run the runtime may differ: the noise is one unit roundoff per sum, a sum of n
# terms may err by n, in practice by a few, and a sigmoid by a few. On 47 public networks the factor was 0.2 to 6.6, and
# what this one lets pass is 2e-6 to 8e-4 of the outputs' size.
SAFETY = 64.0
RANDOM_INPUTS = 3
RANDOM_CORNERS = 2
WIDER = 2.0  # one more random input from a range this much wider: kinks may lie outside of the given one


@dataclass(frozen=True, eq=False)
class Runtime:
    """The ONNX side: a self-contained model, its input's name, dtype and shape (-1: dynamic batch).

    precision: the coarsest floating-point type that it computes in.
    """

    onnx_bytes: bytes
    input_name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    precision: np.dtype[Any]


def check_import(graph: Graph, runtime: Runtime, input_range: tuple[Any, Any], seed: int = 0) -> bool:
    """Raise ImportMismatch unless graph and runtime agree; False if a dynamic batch axis works for one sample only.

    input_range: lower and upper bounds of the input, numbers or arrays that broadcast to its shape.
    """
    session = open_session(runtime.onnx_bytes)
    samples = probe_inputs(graph.input_shape, input_range, runtime.dtype, seed)
    exact = graph.evaluate(samples.astype(np.float64))
    gaps = float_gaps(graph, exact, runtime.precision, seed)
    ours = exact[-1].reshape(len(samples), -1)
    if not np.all(np.isfinite(ours)):
        raise ModelError("the network's outputs are not finite numbers; its weights are too large or damaged")
    single = np.stack([run(session, runtime, x[None]).reshape(-1) for x in samples])
    compare(ours, single, gaps[-1], samples)
    if runtime.shape[:1] != (-1,):
        return True
    try:
        together = run(session, runtime, samples)
    except ModelError:
        return False
    if together.size != ours.size or len(together) != len(samples):
        return False
    return bool(np.all(np.abs(together.reshape(ours.shape) - ours) <= SAFETY * gaps[-1]))


def open_session(onnx_bytes: bytes) -> Any:
    """An onnxruntime session on one CPU thread, the graph as it is in the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, one per status code
        raise ModelError(
            f"onnxruntime cannot load the network ({first_line(error)}); export it at an older opset or as float32"
        ) from error


def run(session: Any, runtime: Runtime, samples: Array) -> Array:
    """The outputs of onnxruntime for samples (B, *shape) in float64; B is 1 where the batch is not dynamic."""
    shape = runtime.shape
    feed = samples.reshape((len(samples), *shape[1:]) if shape[:1] == (-1,) else shape)
    try:
        (output,) = session.run(None, {runtime.input_name: feed})
    except Exception as error:  # as above
        raise ModelError(f"onnxruntime cannot run the network ({first_line(error)})") from error
    return np.asarray(output, dtype=np.float64)


def first_line(error: Exception) -> str:
    """The first line of a message, shortened."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def probe_inputs(shape: Shape, input_range: tuple[Any, Any], dtype: np.dtype[Any], seed: int) -> Array:
    """Zero, both extreme corners, random corners, random points, one point from a wider range: (B, *shape)."""
    rng = np.random.default_rng(seed)
    lower, upper = (np.broadcast_to(np.asarray(b, dtype=np.float64), shape) for b in input_range)
    if not (np.all(np.isfinite(lower)) and np.all(np.isfinite(upper)) and np.all(lower <= upper)):
        raise ModelError(f"the input range {input_range} is not a range of finite numbers")
    samples = [np.zeros(shape), lower, upper]
    samples += [np.where(rng.random(shape) < 0.5, lower, upper) for _ in range(RANDOM_CORNERS)]
    samples += [lower + rng.random(shape) * (upper - lower) for _ in range(RANDOM_INPUTS)]
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    samples.append(center + WIDER * radius * (2 * rng.random(shape) - 1))
    return np.stack(samples).astype(dtype)


def float_gaps(graph: Graph, exact: list[Array], dtype: np.dtype[Any], seed: int) -> list[float]:
    """For each node the largest difference, over samples and entries, that one unit roundoff of noise per sum makes."""
    rng = np.random.default_rng(seed + 1)
    unit = UNIT_ROUNDOFF[dtype.name]
    disturbed, gaps = [exact[0]], [0.0]
    for node, true in zip(graph.nodes[1:], exact[1:], strict=True):
        inputs = [disturbed[i] for i in node.inputs]
        value = evaluate(node.op, *inputs)
        if isinstance(node.op, Weighted | Add | SumAxes | Sigmoid):
            sizes = [np.abs(x) for x in inputs]
            size = np.ones_like(value) if isinstance(node.op, Sigmoid) else linear(absolute(node.op), *sizes)
            shift = None if isinstance(node.op, Sigmoid) else bias(node.op)
            size = size if shift is None else size + np.abs(shift)
            noise = unit * size
            value = value + noise * rng.uniform(-1, 1, value.shape)
            floor = float(noise.max(initial=0.0))
        else:
            floor = 0.0 if isinstance(node.op, Relu) else max((gaps[i] for i in node.inputs), default=0.0)
        disturbed.append(value)
        gaps.append(max(float(np.abs(value - true).max(initial=0.0)), floor))
    return gaps


def compare(ours: Array, theirs: Array, gap: float, samples: Array) -> None:
    """Raise ImportMismatch where the outputs (B, n) differ by more than float error."""
    if ours.shape != theirs.shape:
        raise ImportMismatch(f"the import has {ours.shape[1]} outputs, onnxruntime gives {theirs.shape[1]}: a bug here")
    if not np.all(np.isfinite(theirs)):
        raise ModelError("onnxruntime gives NaN or infinity on an input of the range; the network overflows its dtype")
    difference = np.abs(ours - theirs)
    if np.all(difference <= SAFETY * gap):
        return
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    raise ImportMismatch(
        f"the imported network and onnxruntime disagree: output {worst[1]} of probe input {worst[0]} is "
        f"{ours[worst]:.9g} here, {theirs[worst]:.9g} there, and float error explains only {SAFETY * gap:.3g}"
    )
