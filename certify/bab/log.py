"""What a search did, as it goes: splits, what closed each part, and how neurons were sharpened; at the end, trees.

Nodes are numbered as they are made, over all polytopes' trees together; children in pairs. Arrays come in batches and
are joined when the certificate is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certify.arrays import to_numpy
from certify.bab.dual import Problem
from certify.bab.subproblem import Shares, Subproblems
from certify.certificate.content import NOT_SPLIT, SplitTree, UnitSlopes, quantised
from certify.certificate.write import sources, units
from certify.ops.relu import Relu

Index = NDArray[np.int64]
Numbers = NDArray[Any]
MOST_BYTES = 1 << 28  # of planes above ReLUs; a log with more is given up, and with it the certificate


@dataclass(frozen=True, eq=False)
class _Splits:
    """Nodes (K,) split at a place of a unit; their first children."""

    node: Index
    unit: Index
    place: Index
    cut: Numbers
    child: Index


@dataclass(frozen=True, eq=False)
class _Entries:
    """Nodes (K,) with the dual variables of their bounds; slopes: node of the graph -> (sides, K, U)."""

    node: Index
    mix: Numbers
    slopes: dict[int, Numbers]
    multipliers: dict[int, Numbers]


Caps = tuple[Index, Index, Index, Numbers, Numbers]  # entry, unit, place (K,), multiplier (K,), shares (K, n_0)


@dataclass(frozen=True, eq=False)
class Pages:
    """What the log of a part of a search says, as a value to be sent: count nodes, numbered on their own, those that
    the part began with first.
    """

    count: int
    owner: Index
    entries_made: int
    splits: tuple[_Splits, ...]
    entries: tuple[_Entries, ...]
    sharpenings: tuple[tuple[Index, Index, Numbers], ...]
    caps: tuple[Caps, ...]
    full: bool


@dataclass
class Log:
    """A search's record. owner: the polytope of every node, made as nodes are. full: it became too large to keep."""

    problem: Problem
    polytopes: Sequence[int]
    owner: list[Index] = field(default_factory=list)
    count: int = 0
    entries_made: int = 0
    splits: list[_Splits] = field(default_factory=list)
    entries: list[_Entries] = field(default_factory=list)
    planes: tuple[Index, Index, Index] | None = None
    sharpenings: list[tuple[Index, Index, Numbers]] = field(default_factory=list)
    caps: list[Caps] = field(default_factory=list)
    full: bool = False

    def roots(self, subs: Subproblems) -> None:
        """The first nodes: one for each of the subproblems, in order."""
        self.owner.append(to_numpy(subs.polytope))
        self.count = len(subs)

    def split(self, parents: Subproblems, neurons: Numbers, points: Numbers) -> Index:
        """Number the children (2 K,), first all lower parts. neurons: positions among all free ones, start by start."""
        free, first = self.problem.free, sources(self.problem.graph)
        unit = np.concatenate([np.full(len(f), first[start], dtype=np.int64) for start, f in free.items()])
        place = np.concatenate([to_numpy(f) for f in free.values()])
        child = self.count + 2 * np.arange(len(parents))
        self.splits.append(_Splits(to_numpy(parents.node), unit[neurons], place[neurons], points, child))
        self.owner.append(np.repeat(to_numpy(parents.polytope), 2))
        self.count += 2 * len(parents)
        return np.concatenate([child, child + 1])

    def bound(self, subs: Subproblems, lifts: Mapping[int, Tensor]) -> Index:
        """The dual variables of some subproblems' bounds, lifts those of planes above ReLUs; the entries' numbers."""
        graph = self.problem.graph
        slopes = {}
        for node, parts in subs.slopes.items():
            values = to_numpy(parts)
            relu = isinstance(graph.nodes[node].op, Relu)
            slopes[node] = quantised(values[:1].astype(np.float64)) if relu else values
        multipliers = {start: to_numpy(v) for start, v in subs.multipliers.items()}
        mix = np.clip(to_numpy(subs.mix), 0, None) * to_numpy(self.problem.rows[subs.polytope])
        self.entries.append(_Entries(to_numpy(subs.node), mix, slopes, multipliers))
        if subs.shares is not None:
            self._lift(subs.shares, lifts)
        self.entries_made += len(subs)
        return np.arange(self.entries_made - len(subs), self.entries_made)

    def _lift(self, shares: Shares, lifts: Mapping[int, Tensor]) -> None:
        number = units(self.problem.graph)
        for node, e in lifts.items():
            row, column = torch.nonzero(e > 0, as_tuple=True)
            kept = to_numpy(shares.tables[node][shares.own[row], column])
            place = self.problem.free[self.problem.graph.nodes[node].inputs[0]][column]
            unit = np.full(len(kept), number[node])
            values = to_numpy(e[row, column]).astype(np.float32)
            self.caps.append((to_numpy(row) + self.entries_made, unit, to_numpy(place), values, kept))
        self._bound_memory()

    def _bound_memory(self) -> None:
        if self.full or sum(cap[4].nbytes for cap in self.caps) > MOST_BYTES:
            self.full = True
            self.caps.clear()

    def use(self, starts: Numbers, neurons: Numbers, signs: Numbers) -> None:
        """The planes that sharpening uses: start nodes, places among their free neurons, signs."""
        first = sources(self.problem.graph)
        unit = np.array([first[int(s)] for s in starts], dtype=np.int64)
        place = np.array(
            [int(self.problem.free[int(s)][int(n)]) for s, n in zip(starts, neurons, strict=True)], dtype=np.int64
        )
        self.planes = unit, place, signs.astype(np.int64)

    def sharpen(self, entry: Index, plane: Index, beta: Numbers) -> None:
        """Intervals cut by planes under the half-spaces of entries."""
        self.sharpenings.append((entry, plane, beta))

    def pages(self) -> Pages:
        """All that it says so far."""
        return Pages(
            self.count,
            np.concatenate(self.owner),
            self.entries_made,
            tuple(self.splits),
            tuple(self.entries),
            tuple(self.sharpenings),
            tuple(self.caps),
            self.full,
        )

    def adopt(self, pages: Pages, nodes: Index) -> Index:
        """Go on below `nodes`, where a part of the search began, with what its pages say; all its nodes' numbers."""
        number = np.concatenate([nodes, self.count + np.arange(pages.count - len(nodes))])
        before = self.entries_made
        splits = [replace(s, node=number[s.node], child=number[s.child]) for s in pages.splits]
        entries = [replace(e, node=number[e.node]) for e in pages.entries]
        self.owner.append(pages.owner[len(nodes) :])
        self.count += pages.count - len(nodes)
        self.entries_made += pages.entries_made
        self.splits += splits
        self.entries += entries
        self.sharpenings += [(entry + before, plane, beta) for entry, plane, beta in pages.sharpenings]
        self.caps += [(entry + before, *rest) for entry, *rest in pages.caps]  # type: ignore[misc]
        self.full |= pages.full
        self._bound_memory()
        return number

    def numbers(self, tree: int, nodes: Sequence[int]) -> tuple[int, Index]:
        """(polytope, nodes) of this log for nodes of one of its `trees`."""
        owner = np.concatenate(self.owner)
        polytope = int(np.unique(owner)[tree])
        return polytope, np.flatnonzero(owner == polytope)[list(nodes)]

    def path(self, node: int) -> list[tuple[int, int, float, bool]]:
        """From the node up: the units and places that were split, where, and whether the upper part was taken."""
        parent: dict[int, tuple[int, int, int, float, bool]] = {}
        for s in self.splits:
            rows = zip(*(x.tolist() for x in (s.node, s.unit, s.place, s.cut, s.child)), strict=True)
            for above, unit, place, cut, child in rows:
                parent[child], parent[child + 1] = (above, unit, place, cut, False), (above, unit, place, cut, True)
        found = []
        while node in parent:
            node, *split = parent[node]
            found.append(tuple(split))
        return found  # type: ignore[return-value]

    def trees(self) -> tuple[SplitTree, ...]:
        """One tree for each polytope that was searched."""
        owner = np.concatenate(self.owner) if self.owner else np.zeros(0, dtype=np.int64)
        whole = _joined(self)
        return tuple(_part(self, whole, owner, int(p)) for p in np.unique(owner))


@dataclass(frozen=True, eq=False)
class _Whole:
    """All batches joined."""

    splits: _Splits
    entry_node: Index
    mix: Numbers
    slopes: dict[int, Numbers]
    multipliers: tuple[Index, Index, Index, Numbers]
    sharpenings: tuple[Index, Index, Numbers]
    caps: tuple[Numbers, ...]


def _joined(log: Log) -> _Whole:
    def cat(parts: Sequence[Numbers], empty: Numbers) -> Numbers:
        return np.concatenate(parts) if parts else empty

    none = np.zeros(0, dtype=np.int64)
    names = ("node", "unit", "place", "cut", "child")
    splits = _Splits(*(cat([getattr(s, name) for s in log.splits], none) for name in names))
    slopes = {
        node: np.concatenate([e.slopes[node] for e in log.entries], axis=1)
        for node in (log.entries[0].slopes if log.entries else {})
    }
    first, made = sources(log.problem.graph), 0
    columns: list[tuple[Numbers, ...]] = []
    for entry in log.entries:
        for start, value in entry.multipliers.items():
            row, column = np.nonzero(value)
            place = to_numpy(log.problem.free[start])[column]
            columns.append((row + made, np.full(len(row), first[start]), place, value[row, column]))
        made += len(entry.node)
    multipliers = tuple(cat([c[i] for c in columns], none) for i in range(4))
    sharpenings = tuple(cat([s[i] for s in log.sharpenings], none) for i in range(3))
    none_left = (none, none, none, none, np.zeros((0, 0), dtype=np.uint8))
    caps = tuple(cat([c[i] for c in log.caps], none_left[i]) for i in range(5))
    return _Whole(
        splits,
        cat([e.node for e in log.entries], none),
        cat([e.mix for e in log.entries], np.zeros((0, log.problem.rows.shape[1]))),
        slopes,
        multipliers,  # type: ignore[arg-type]
        sharpenings,  # type: ignore[arg-type]
        caps,
    )


def _part(log: Log, whole: _Whole, owner: Index, polytope: int) -> SplitTree:
    """One polytope's tree, its nodes and entries numbered anew in the same order, entries by node."""
    nodes = np.flatnonzero(owner == polytope)
    number = np.full(log.count, -1, dtype=np.int64)
    number[nodes] = np.arange(len(nodes))
    mine = owner[whole.splits.node] == polytope
    at = number[whole.splits.node[mine]]
    unit = np.full(len(nodes), NOT_SPLIT)
    place, child, cut = (np.zeros(len(nodes), dtype=kind) for kind in (np.int64, np.int64, np.float64))
    unit[at], place[at], cut[at] = whole.splits.unit[mine], whole.splits.place[mine], whole.splits.cut[mine]
    child[at] = number[whole.splits.child[mine]]
    entries = np.flatnonzero(owner[whole.entry_node] == polytope) if len(whole.entry_node) else whole.entry_node
    entries = entries[np.argsort(number[whole.entry_node[entries]], kind="stable")]
    entry = np.full(len(whole.entry_node), -1, dtype=np.int64)
    entry[entries] = np.arange(len(entries))

    def of_mine(parts: tuple[Numbers, ...]) -> tuple[Numbers, ...]:
        kept = entry[parts[0]] >= 0 if len(parts[0]) else np.zeros(0, dtype=bool)
        order = np.argsort(entry[parts[0][kept]], kind="stable")
        return (entry[parts[0][kept]][order], *(p[kept][order] for p in parts[1:]))

    return SplitTree(
        polytopes=(log.polytopes[polytope],),
        unit=unit,
        place=place,
        cut=cut,
        child=child,
        renew=None,
        entry_node=number[whole.entry_node[entries]],
        entry_polytope=np.full(len(entries), log.polytopes[polytope]),
        entry_mix=whole.mix[entries][:, : int(log.problem.rows[polytope].sum())],
        entry_slopes=_slopes(log, whole, entries),
        multipliers=of_mine(whole.multipliers),  # type: ignore[arg-type]
        planes=log.planes,
        sharpenings=of_mine(whole.sharpenings),  # type: ignore[arg-type]
        caps=of_mine(whole.caps) if len(whole.caps[0]) else None,  # type: ignore[arg-type]
    )


def _slopes(log: Log, whole: _Whole, entries: Index) -> dict[int, UnitSlopes]:
    number = units(log.problem.graph)
    found = {}
    for node, values in whole.slopes.items():
        at = to_numpy(log.problem.free[log.problem.graph.nodes[node].inputs[0]])
        upper = values[1, entries] if len(values) > 1 else None
        found[number[node]] = UnitSlopes(at, values[0, entries], upper)
    return found
