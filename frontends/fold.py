"""Passes over a lowered network: dead nodes out, neighbouring affine ops folded where it is cheap, errors stated."""

from __future__ import annotations

from collections.abc import Sequence

from certify.arrays import Array
from certify.graph import Node


def fold(nodes: Sequence[Node], output: int, sample: Array | None) -> tuple[Node, ...]:
    """The nodes that `output` needs, in order, output last."""
    return live(nodes, output)


def live(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes that `output` depends on (and the input), renumbered."""
    needed = {0, output}
    for i in range(output, 0, -1):
        if i in needed:
            needed.update(nodes[i].inputs)
    kept = sorted(needed)
    number = {old: new for new, old in enumerate(kept)}
    return tuple(Node(n.name, n.op, tuple(number[i] for i in n.inputs), n.shape) for n in (nodes[i] for i in kept))
