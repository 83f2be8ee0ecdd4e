"""Interval bound propagation (IBP, Gowal et al. 2018), rounded outward: every box holds the real-arithmetic values."""

from __future__ import annotations

from certify.arrays import Array
from certify.graph import Graph
from certify.rules import Interval, interval


def step(graph: Graph, index: int, boxes: list[Interval | None]) -> Interval:
    """The interval of one node from those of its inputs; boxes hold arrays of shape (B, *node.shape)."""
    node = graph.nodes[index]
    inputs = []
    for i in node.inputs:
        box = boxes[i]
        assert box is not None, f"node {node.name}: input {graph.nodes[i].name} has no interval yet"
        inputs.append(box)
    shapes = tuple(graph.nodes[i].shape for i in node.inputs)
    return interval(node.op, shapes, *inputs)


def ibp(graph: Graph, lower: Array, upper: Array) -> list[Interval]:
    """The interval of every node over the boxes [lower, upper], arrays of shape (B, *input_shape)."""
    boxes: list[Interval | None] = [(lower, upper)] + [None] * graph.output
    for index in range(1, len(graph.nodes)):
        boxes[index] = step(graph, index, boxes)
    return [box for box in boxes if box is not None]
