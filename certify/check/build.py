"""A network being read: nodes appended one by one, activations and constants alike, and the calls of ONNX ops.

The network is read as what it computes for one sample: a tensor has its ONNX shape with the batch axis at length 1, so
that Shape chains are plain numbers, and every rearrangement has a clear meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from certify.check import constants
from certify.check.constants import ONE, Constant, bias_of, exact, negative, weight_of
from certify.check.errors import Rejected
from certify.check.network import (
    Add,
    Conv,
    ConvTranspose,
    Index,
    Input,
    Linear,
    Maximum,
    Node,
    Operation,
    Relu,
    Scale,
    Select,
    Shape,
)

Array = NDArray[Any]
LARGEST = 1 << 31  # numbers of a tensor: more is damage, or a bomb


@dataclass(frozen=True)
class Value:
    """An activation: the numbers of a node in row-major order, under the ONNX shape. softmax: the Softmax of them."""

    node: int
    shape: Shape
    softmax: bool = False


Tensor = Value | Constant


def inner(shape: Shape) -> Shape:
    """The shape that a node gets for an ONNX shape: without a leading 1, never of rank 0."""
    if not shape:
        return (1,)
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


@dataclass
class Sketch:
    """The nodes so far; `name`: of the ONNX node at work; `doubts`: see Network."""

    nodes: list[Node] = field(default_factory=list)
    name: str = "input"
    doubts: list[str] = field(default_factory=list)

    def doubt(self, why: str) -> None:
        self.doubts.append(f"{self.name!r}: {why}")

    def append(self, op: Operation, inputs: Sequence[int], shape: Shape) -> int:
        if math.prod(shape) > LARGEST or min(shape, default=1) < 1:
            raise Rejected(f"a tensor of shape {shape}")
        self.nodes.append(Node(self.name, op, tuple(inputs), tuple(int(n) for n in shape)))
        return len(self.nodes) - 1

    def shape(self, x: int) -> Shape:
        return self.nodes[x].shape

    def select(self, x: int, index: Index) -> int:
        """x.flat[index], 0 for -1; one Select after another becomes one."""
        flat = np.ascontiguousarray(index, dtype=np.int64).reshape(-1)
        if flat.size == 0 or flat.min() < -1 or flat.max() >= self.nodes[x].size:
            raise Rejected("it yields nothing, or reads outside of its input")
        op = self.nodes[x].op
        if isinstance(op, Select):
            flat = np.where(flat < 0, -1, op.index[flat])
            x = self.nodes[x].inputs[0]
        if index.shape == self.shape(x) and np.array_equal(flat, np.arange(flat.size)):
            return x
        return self.append(Select(flat), [x], index.shape)

    def places(self, x: int) -> Index:
        """0, 1, ... in x's shape."""
        return np.arange(self.nodes[x].size, dtype=np.int64).reshape(self.shape(x))

    def view(self, x: int, shape: Shape) -> int:
        """The same numbers in the same order."""
        if self.shape(x) == shape:
            return x
        if math.prod(shape) != self.nodes[x].size:
            raise Rejected(f"shape {self.shape(x)} does not fit {shape}")
        return self.select(x, self.places(x).reshape(shape))

    def broadcast(self, x: int, shape: Shape) -> int:
        return x if self.shape(x) == shape else self.select(x, np.broadcast_to(self.places(x), shape))

    def linear(self, x: int, matrix: Constant) -> int:
        """x M^T on the last axis."""
        shape = self.shape(x)
        if len(matrix.shape) != 2 or shape[-1] != matrix.shape[1]:
            raise Rejected(f"weights {matrix.shape} do not fit an input {shape}")
        weight, error = weight_of(matrix)
        return self.append(Linear(np.ascontiguousarray(weight), None, error), [x], (*shape[:-1], len(weight)))

    def scale(self, x: int, factor: Constant, shift: Constant | None = None) -> int:
        """factor x + shift, in the shape that all broadcast to."""
        shape = np.broadcast_shapes(self.shape(x), factor.shape, () if shift is None else shift.shape)
        x = self.broadcast(x, shape)
        weight, error = weight_of(factor)
        bias, bias_error = (None, 0.0) if shift is None else bias_of(shift)
        if error == 0.0 and (weight == 1).all():
            if bias is None or not (bias.any() or np.any(bias_error)):
                return x
            if not np.any(bias_error) and (merged := self._with_bias(x, bias)) is not None:
                return merged
        return self.append(Scale(weight, bias, error, bias_error), [x], shape)

    def _with_bias(self, x: int, bias: NDArray[np.float64]) -> int | None:
        """A linear op without bias once more, now with this one, if it is the same for all of a row or channel."""
        node = self.nodes[x]
        if not isinstance(node.op, Linear | Conv | ConvTranspose) or node.op.bias is not None:
            return None
        channel = len(node.shape) - 1 if isinstance(node.op, Linear) else 0
        full = (1,) * (len(node.shape) - bias.ndim) + bias.shape
        if any(n != 1 for i, n in enumerate(full) if i != channel):
            return None
        bias = np.broadcast_to(bias.reshape(-1), (node.shape[channel],))
        return self.append(replace(node.op, bias=bias), node.inputs, node.shape)

    def add(self, xs: Sequence[int], signs: Sequence[int]) -> int:
        shape = np.broadcast_shapes(*(self.shape(x) for x in xs))
        return self.append(Add(tuple(signs)), [self.broadcast(x, shape) for x in xs], shape)

    def negative(self, x: int) -> int:
        return self.scale(x, negative(ONE))

    def relu(self, x: int) -> int:
        return self.append(Relu(), [x], self.shape(x))

    def maximum(self, a: int, b: int) -> int:
        """max(a, b) = b + relu(a - b)."""
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        a, b = self.broadcast(a, shape), self.broadcast(b, shape)
        return self.append(Maximum(), [a, b, self.relu(self.add([a, b], [1, -1]))], shape)

    def minimum(self, a: int, b: int) -> int:
        return self.negative(self.maximum(self.negative(a), self.negative(b)))

    def at_least(self, x: int, low: Constant) -> int:
        """low + relu(x - low)."""
        return self.scale(self.relu(self.scale(x, ONE, negative(low))), ONE, low)

    def at_most(self, x: int, high: Constant) -> int:
        """high - relu(high - x)."""
        return self.scale(self.relu(self.scale(x, negative(ONE), high)), negative(ONE), high)

    def tree(self, x: int) -> int:
        """The maximum over the first axis by pairs: halves against halves, odd ones put aside and joined at the end."""
        aside = []
        while (count := self.shape(x)[0]) > 1:
            places, half = self.places(x), count // 2
            if count % 2:
                aside.append(self.select(x, places[-1:]))
            x = self.maximum(self.select(x, places[:half]), self.select(x, places[half : 2 * half]))
        for other in aside:
            x = self.maximum(x, other)
        return self.view(x, self.shape(x)[1:] or (1,))


def first(shape: Shape) -> Sketch:
    """A sketch that holds the input."""
    sketch = Sketch()
    sketch.append(Input(), [], shape)
    return sketch


@dataclass
class Call:
    """One ONNX node with its inputs. What of its attributes no handler asks for is an error."""

    op: str
    opset: int
    since: int
    inputs: tuple[Tensor | None, ...]
    attributes: dict[str, Any]
    used: tuple[bool, ...]  # of the outputs
    sketch: Sketch
    asked: set[str] = field(default_factory=set)

    def attribute(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return self.attributes.get(name, default)

    def expect(self, name: str, only: Any) -> None:
        if (value := self.attribute(name, only)) != only:
            raise Rejected(f"attribute {name} = {value!r}")

    def input(self, i: int) -> Tensor | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def data(self, i: int = 0) -> Tensor:
        """Input i."""
        if (found := self.input(i)) is None:
            raise Rejected(f"input {i} is missing")
        return found

    def value(self, i: int = 0) -> Value:
        """Input i as an activation."""
        return self.as_value(self.data(i))

    def as_value(self, tensor: Tensor) -> Value:
        """An activation; a constant becomes a node that reads nothing."""
        if isinstance(tensor, Constant):
            nothing = self.sketch.select(0, np.full(inner(tensor.shape), -1))
            numbers = tensor.float64().move(lambda a: a.reshape(inner(tensor.shape)))
            return Value(self.sketch.scale(nothing, ONE, numbers), tensor.shape)
        if tensor.softmax:
            raise Rejected("it reads a Softmax, which may only end the network")
        return tensor

    def constant(self, i: int) -> Constant:
        found = self.data(i)
        if not isinstance(found, Constant):
            raise Rejected(f"input {i} must be constant")
        return found

    def weights(self, i: int) -> Constant:
        return self.constant(i).float64()

    def settings(self, name: str, i: int) -> list[int] | None:
        """Integers that older revisions keep in attribute `name`, newer ones in input i."""
        listed = self.attribute(name)
        if listed is not None:
            return [int(n) for n in listed]
        return None if self.input(i) is None else self.constant(i).integers()

    def core(self, value: Value) -> int:
        return self.sketch.view(value.node, inner(value.shape))

    def sample(self, value: Value) -> int:
        """The node of a value whose first axis is the batch of 1, without that axis."""
        if len(value.shape) < 2 or value.shape[0] != 1:
            raise Rejected(f"an input of shape {value.shape}, whose first axis is no batch of 1")
        return self.sketch.view(value.node, value.shape[1:])

    def move(self, tensor: Tensor, change: Callable[[Array], Array]) -> Tensor:
        """A rearrangement of numbers, -1 for a zero in activations."""
        if isinstance(tensor, Constant):
            return tensor.move(change)
        value = self.as_value(tensor)
        moved = np.asarray(change(np.arange(math.prod(value.shape), dtype=np.int64).reshape(value.shape)))
        if moved.dtype != np.int64:
            raise Rejected(f"moving places gives {moved.dtype}")
        return Value(self.sketch.select(value.node, moved.reshape(inner(moved.shape))), moved.shape)

    def reference(self, inputs: Sequence[Array | None]) -> list[Array]:
        """The node computed by onnx's reference implementation, with these inputs."""
        from onnx.reference import ReferenceEvaluator  # 0.1 s, which few files need

        self.asked.update(self.attributes)
        names = ["" if a is None else f"x{i}" for i, a in enumerate(inputs)]
        outputs = [f"y{i}" for i in range(len(self.used))]
        attributes = {
            k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in self.attributes.items()
        }
        node = onnx.helper.make_node(self.op, names, outputs, **attributes)
        ends = [[onnx.helper.make_empty_tensor_value_info(n) for n in group if n] for group in (names, outputs)]
        graph = onnx.helper.make_graph([node], "one", ends[0], ends[1])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)])
        feed = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
        try:
            return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, feed)]
        except Exception as error:  # whatever the reference stumbles over
            raise Rejected(f"onnx's reference cannot compute it: {error}") from error

    def folded(self) -> list[Constant]:
        """The outputs of a node all of whose inputs are exact or float constants."""
        operands = [t for t in self.inputs if isinstance(t, Constant)]
        is_float = any(t.is_float for t in operands)
        known = constants.CHOOSE if is_float else constants.CHOOSE | constants.COUNT
        if self.op in known and all(t.exact for t in operands):
            if self.attributes.get("reduction", "none") != "none":
                raise Rejected("it adds up constants")  # in their own type: that rounds
            if self.op in ("Div", "Mod") and any((t.lower < 0).any() for t in operands):
                raise Rejected("a quotient of negative integers")
            return [
                exact(a) for a in self.reference([t.lower if isinstance(t, Constant) else None for t in self.inputs])
            ]
        if not is_float:
            raise Rejected("this op on constants is not supported; fold constants in the file")
        self.sketch.doubt("computes a constant, which a runtime may round step by step")
        return [constants.arithmetic(self.op, operands)]


Handler = Callable[[Call], "Tensor | list[Tensor]"]
# op -> what reads it, in which revisions (`since_version`), and whether it also takes constants only.
HANDLERS: dict[str, tuple[Handler, tuple[int, ...], bool]] = {}


def handles(*ops: str, since: Sequence[int], moves: bool = False) -> Callable[[Handler], Handler]:
    """Decorator: the function reads these ops in these revisions."""

    def register(function: Handler) -> Handler:
        HANDLERS.update({op: (function, tuple(since), moves) for op in ops})
        return function

    return register
