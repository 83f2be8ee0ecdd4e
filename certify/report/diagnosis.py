"""What `certify doctor` finds: facts of the file, support of its ops, and the usual mistakes, each tried out.

Suspicions about normalisation and labels are not guessed from names: onnxruntime runs the data as given and in the
suspected form, and a much higher accuracy is the finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from certify.attacks.replay import Replayer
    from certify.frontends.data import Dataset
    from certify.graph import Graph
    from certify.model import Model

TRIED_SAMPLES = 500  # enough to tell 50 % from 90 %
CLEARLY_BETTER = 0.2  # accuracy that a suspected form must gain before it is named
STANDARD_DOMAINS = ("", "ai.onnx")
SOFTMAX = ("Softmax", "LogSoftmax")


@dataclass(frozen=True)
class OpUse:
    """How often the file uses an op, and whether it is supported: "yes", where it is, or "not ..."."""

    name: str
    count: int
    support: str


@dataclass(frozen=True)
class FileFacts:
    """What the ONNX file says, whether or not it can be imported."""

    sha256: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    ops: tuple[OpUse, ...]
    metadata: dict[str, str]
    first_ops: tuple[str, ...]
    warnings: tuple[str, ...]


def file_facts(path: str) -> FileFacts:
    """Read the file without importing the network. Raises ModelError if it is no ONNX file."""
    from certify.frontends.onnx_file import read_source

    source = read_source(path)
    graph = source.proto.graph
    stored = {t.name for t in graph.initializer}
    inputs = [v for v in graph.input if v.name not in stored]
    opset = max((o.version for o in source.proto.opset_import if o.domain in STANDARD_DOMAINS), default=0)
    first = tuple(n.op_type for n in graph.node if n.op_type != "Constant")[:3]
    return FileFacts(
        sha256=source.sha256,
        opset=opset,
        inputs=tuple(map(_declared, inputs)),
        outputs=tuple(map(_declared, graph.output)),
        parameters=sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type in (1, 10, 11)),
        ops=_op_uses(graph.node, opset),
        metadata={p.key: p.value for p in source.proto.metadata_props},
        first_ops=first,
        warnings=tuple(_file_warnings(graph, inputs)),
    )


def relu_count(graph: Graph) -> int:
    """Neurons that pass through a ReLU in the imported graph (max of two counts as one)."""
    return sum(int(np.prod(node.shape)) for node in graph.nodes if type(node.op).__name__ in ("Relu", "MaxOfTwo"))


def graph_ops(graph: Graph) -> dict[str, int]:
    """Core op -> number of nodes."""
    return dict(Counter(type(node.op).__name__ for node in graph.nodes[1:]).most_common())


def accuracy(replayer: Replayer, x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    """Share of the samples whose class in onnxruntime is y."""
    return float(np.mean(replayer.clean_predictions(x) == y))


def data_warnings(model: Model, replayer: Replayer, data: Dataset, normalises: bool) -> Iterator[str]:
    """Mistakes that the data reveal. normalises: the user prepends (x - mean) / std."""
    x, y = data.x[:TRIED_SAMPLES], data.y[:TRIED_SAMPLES]
    classes = int(np.prod(model.graph.output_shape))
    if not len(y):
        return
    predicted = replayer.clean_predictions(x)
    base = float(np.mean(predicted == y))
    shifted = {shift: float(np.mean(predicted == y + shift)) for shift in (1, -1)}
    for shift, found in shifted.items():
        if found > base + CLEARLY_BETTER:
            yield (
                f"labels off by one: accuracy is {base:.1%}, and {found:.1%} with every label "
                f"{'raised' if shift > 0 else 'lowered'} by one; renumber the labels"
            )
    if y.min() < 0 or y.max() >= classes:
        yield f"labels run from {y.min()} to {y.max()}, the network has classes 0 to {classes - 1}"
    best = max(base, *shifted.values())
    for name, tried in _variants(x, normalises):
        found = accuracy(replayer, tried, y)
        if found > best + CLEARLY_BETTER:
            yield f"accuracy is {base:.1%}, and {found:.1%} {name}"
    if float(x.min()) < 0 and normalises:
        yield (
            f"looks normalised twice: the data hold values down to {x.min():.3g} as if normalised already, "
            "and --mean/--std normalise again; give raw data, or leave --mean and --std out"
        )


def normalisation_warnings(facts: FileFacts, normalises: bool) -> Iterator[str]:
    """A network that begins by shifting and scaling, with a second normalisation before it."""
    inside = any(op in ("Sub", "Div", "BatchNormalization") for op in facts.first_ops[:2])
    if normalises and inside:
        yield (
            f"looks normalised twice: the network itself begins with {', '.join(facts.first_ops[:2])}, and "
            "--mean/--std put another normalisation before it; leave them out if the file takes raw inputs"
        )


def _variants(x: NDArray[np.float32], normalises: bool) -> Iterator[tuple[str, NDArray[np.float32]]]:
    if x.min() >= 0 and x.max() <= 1:
        yield (
            "with inputs times 255: the network seems to take 0 to 255; use --mean 0 --std 0.00392156862745098",
            np.multiply(x, 255, dtype=np.float32),
        )
    elif x.min() >= 0 and x.max() > 2:
        yield "with inputs divided by 255: rescale the data to 0 to 1", np.divide(x, 255, dtype=np.float32)
    if normalises:
        return
    axes = tuple(a for a in range(x.ndim) if a != 1) if x.ndim == 4 else tuple(range(x.ndim))
    mean, std = x.mean(axis=axes, keepdims=True), x.std(axis=axes, keepdims=True)
    if float(std.min()) > 0:
        numbers = [",".join(f"{v:.4g}" for v in a.ravel()) for a in (mean, std)]
        yield (
            "with inputs normalised; the network was probably trained that way: use the --mean and --std of its "
            f"training (about {numbers[0]} and {numbers[1]})",
            ((x - mean) / std).astype(np.float32),
        )


def _op_uses(nodes: Any, opset: int) -> tuple[OpUse, ...]:
    uses = []
    for (domain, op), count in Counter((n.domain, n.op_type) for n in nodes).most_common():
        node = next(n for n in nodes if n.op_type == op and n.domain == domain)
        name = op if domain in STANDARD_DOMAINS else f"{domain}.{op}"
        uses.append(OpUse(name, count, _support(node, opset)))
    return tuple(uses)


def _support(node: Any, opset: int) -> str:
    from certify.frontends import onnx_import  # noqa: F401  fills the table of handlers
    from certify.frontends.onnx_constants import FOLDABLE
    from certify.frontends.onnx_file import since_version
    from certify.frontends.onnx_nodes import HANDLERS

    entry = HANDLERS.get(node.op_type)
    if node.domain not in STANDARD_DOMAINS:
        return f"not standard ONNX: of the op set {node.domain}"
    if node.op_type == "Constant":
        return "yes"
    if node.op_type in SOFTMAX:
        return "as the last node"
    if entry is None:
        return "on constants" if node.op_type in FOLDABLE else "not supported"
    return "yes" if since_version(node, opset) in entry.versions else f"not supported at opset {opset}"


def _file_warnings(graph: Any, inputs: list[Any]) -> Iterator[str]:
    last = {v.name for v in graph.output}
    for node in graph.node:
        if node.op_type in SOFTMAX:
            if set(node.output) & last:
                yield f"{node.op_type} at the end: it keeps the order of the classes; margins are those of the logits"
            else:
                yield f"{node.op_type} inside the network (node {node.name or node.output[0]}) is not supported"
    for value in inputs:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if len(dims) == 4 and dims[3] in (1, 3) and dims[1] not in (1, 3):
            yield (f"{_declared(value)} looks like NHWC, channels last; --layout nhwc lets it take channels-first data")


def _declared(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    dims = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} [{dims}] {kind}"
