"""What a search over boxes did: splits of coordinates, and what excluded each polytope where; at the end, one tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.certificate.content import INPUT, NOT_SPLIT, CaseProof, SplitTree
from certify.property import Float64

Index = NDArray[np.int64]


@dataclass
class InputLog:
    """shape: polytopes and rows of the longest. Node 0 is the whole box, or the first nodes are those that a part of a
    search begins with; children come in pairs.
    """

    shape: tuple[int, ...]
    count: int = 1
    splits: list[tuple[Index, Index, Float64, Index]] = field(default_factory=list)
    entries: list[tuple[Index, Index, NDArray[np.float32]]] = field(default_factory=list)

    def split(self, node: Index, coordinate: Index, cut: Float64) -> tuple[Index, Index]:
        """The numbers of the first and of the second parts."""
        child = self.count + 2 * np.arange(len(node))
        self.splits.append((node, coordinate, cut, child))
        self.count += 2 * len(node)
        return child, child + 1

    def excluded(self, node: Index, polytope: Index, row: Index) -> None:
        """Polytopes excluded in boxes by one of their rows."""
        self.mixed(node, polytope, np.eye(self.shape[1])[row])

    def mixed(self, node: Index, polytope: Index, weight: Float64) -> None:
        """Polytopes excluded in boxes by combinations of their rows."""
        if len(node):
            self.entries.append((node, polytope, weight.astype(np.float32)))

    def adopt(self, part: InputLog, nodes: Index) -> Index:
        """Go on at `nodes`, where a part of the search began, with what its log says; all its nodes' numbers."""
        number = np.concatenate([nodes, self.count + np.arange(part.count - len(nodes))])
        splits = [(number[node], at, cut, number[child]) for node, at, cut, child in part.splits]
        entries = [(number[node], polytope, mix) for node, polytope, mix in part.entries]
        self.splits += splits
        self.entries += entries
        self.count += part.count - len(nodes)
        return number

    def boxes(self, nodes: Index, lower: Float64, upper: Float64) -> tuple[Float64, Float64]:
        """(K, n) each: the parts of the whole box [lower, upper] that some nodes are."""
        parent, place = np.zeros((2, self.count), dtype=np.int64)
        cut, second = np.zeros(self.count), np.zeros(self.count, dtype=bool)
        for node, coordinate, point, child in self.splits:
            for half in (child, child + 1):
                parent[half], place[half], cut[half] = node, coordinate, point
            second[child + 1] = True
        ends = np.tile(lower, (len(nodes), 1)), np.tile(upper, (len(nodes), 1))
        here = np.asarray(nodes)
        while (rows := np.flatnonzero(here)).size:
            for end, tighter, side in zip(ends, (np.maximum, np.minimum), (True, False), strict=True):
                mine = rows[second[here[rows]] == side]
                at = place[here[mine]]
                end[mine, at] = tighter(end[mine, at], cut[here[mine]])
            here = parent[here]
        return ends

    def proof(self) -> CaseProof:
        """A tree over all polytopes, bounds made anew wherever one is excluded."""
        unit, (place, child) = np.full(self.count, NOT_SPLIT), np.zeros((2, self.count), dtype=np.int64)
        cut, renew = np.zeros(self.count), np.zeros(self.count, dtype=bool)
        for node, coordinate, point, first in self.splits:
            unit[node], place[node], cut[node], child[node] = INPUT, coordinate, point, first
        none: tuple[Any, ...] = (np.zeros(0, dtype=np.int64),) * 2 + (np.zeros((0, self.shape[1])),)
        joined = [np.concatenate(parts) for parts in zip(none, *self.entries, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        nodes, polytopes, mix = (part[order] for part in joined)
        renew[nodes] = True
        every = tuple(range(self.shape[0]))
        return CaseProof((), (SplitTree(every, unit, place, cut, child, renew, nodes, polytopes, mix),))
