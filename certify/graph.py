"""The network as a frozen graph: nodes in topological order, shapes known, batch axis first and implicit.

nodes[0] is the Input; the last node is the output. A node's `inputs` are indices of earlier nodes.
Shapes carry no batch axis. Nodes carry no bounds: functions map graphs and sets to bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from certify.arrays import Array
from certify.rules import Op, cast, evaluate

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """op applied to earlier nodes; `name` is the one of the source file, for messages."""

    name: str
    op: Op
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Graph:
    """A network of one input and one output."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        for index, node in enumerate(self.nodes):
            assert all(i < index for i in node.inputs), f"node {node.name}: inputs must come first"

    @property
    def input_shape(self) -> Shape:
        return self.nodes[0].shape

    @property
    def output(self) -> int:
        return len(self.nodes) - 1

    @property
    def output_shape(self) -> Shape:
        return self.nodes[-1].shape

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for i in dict.fromkeys(node.inputs):
                readers[i].append(index)
        return tuple(tuple(r) for r in readers)

    def __call__(self, x: Array) -> Array:
        """The output for a batch x of shape (B, *input_shape), in x's array type and the weights' dtype."""
        return self.evaluate(x)[-1]

    def evaluate(self, x: Array) -> list[Array]:
        """Every node's value, each of shape (B, *node.shape)."""
        assert tuple(x.shape[1:]) == self.input_shape, f"input {tuple(x.shape)} for network input {self.input_shape}"
        values: list[Array] = [x]
        for node in self.nodes[1:]:
            values.append(evaluate(node.op, *(values[i] for i in node.inputs)))
        return values

    def cast(self, sample: Array) -> Graph:
        """The same network with constants in the library, dtype and device of `sample`; rounding is accounted for."""
        return Graph(tuple(Node(n.name, cast(n.op, sample), n.inputs, n.shape) for n in self.nodes))

    def ancestors(self, index: int) -> Sequence[int]:
        """Indices of the nodes that `index` depends on, itself included, ascending."""
        needed = {index}
        for i in range(index, 0, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        return sorted(needed)
