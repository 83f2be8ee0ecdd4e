"""Trees of splits: every path from the root must come to an entry that excludes the polytope, or to an empty interval.

What a node knows differs from the bounds of the steps in few numbers: those of the neurons (and coordinates) that the
tree splits or sharpens anywhere, its *columns* -- or in all that units read, where nodes are renewed. So a node is a
row of lower and upper ends (D,), and many nodes are worked on at once. What bounds rounding (sizes, losses) is taken
from the steps' bounds: it holds on every part of the input set.

Depth first, so that few rows wait. A polytope is *wanted* at a node as long as no node above has excluded it; the tree
fails where a node that is not split still wants one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.check.backward import CHUNK, Choice, Form, Multiplier, lowest, plane, planes
from certify.check.caps import Caps
from certify.check.content import NOT_SPLIT, Crown, Index, Tree
from certify.check.errors import NotExcluded, Rejected
from certify.check.interval import Bounds, over
from certify.check.network import Float64
from certify.check.region import minimum
from certify.check.rounding import Numbers, finite
from certify.check.single import short
from certify.check.steps import Claim, choice, crown, margin

NODES = 64  # worked on at once: more is slower, their coefficients leave the caches

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Nodes (B,), what they know of the columns (B, D), and which of the tree's polytopes they want excluded (B, P)."""

    nodes: Index
    lower: Float64
    upper: Float64
    wanted: Bools

    def parts(self) -> tuple[Any, ...]:
        return self.nodes, self.lower, self.upper, self.wanted

    def __getitem__(self, rows: Index | slice | Any) -> _Batch:
        return _Batch(*(part[rows] for part in self.parts()))


class Columns:
    """The numbers that nodes of a tree may know better: places of some nodes of the network, side by side."""

    def __init__(self, bounds: Bounds, tree: Tree) -> None:
        model = bounds.model
        unit = np.concatenate([tree.unit[tree.unit != NOT_SPLIT], tree.plane_unit])
        place = np.concatenate([tree.place[tree.unit != NOT_SPLIT], tree.plane_place])
        of_unit = np.array([*model.sources, 0], dtype=np.int64)  # the last is for -1
        sources = of_unit[unit]
        nodes = [0, *model.sources] if tree.renew.any() else sources.tolist()
        self.places: dict[int, Index] = {}
        self.parts: dict[int, slice] = {}
        self.width, self.of_unit = 0, of_unit
        for node in sorted(set(nodes)):
            every = np.arange(model.network.nodes[node].size)
            self.places[node] = every if tree.renew.any() else np.array(sorted(set(place[sources == node].tolist())))
            self.parts[node] = slice(self.width, self.width + len(self.places[node]))
            self.width += len(self.places[node])

    def of(self, unit: Index, place: Index) -> Index:
        """The columns of (unit, place)."""
        sources = self.of_unit[unit]
        found = np.zeros(len(unit), dtype=np.int64)
        for node, places in self.places.items():
            mine = sources == node
            found[mine] = self.parts[node].start + np.searchsorted(places, place[mine])
        return found

    def read(self, bounds: Bounds) -> tuple[Float64, Float64]:
        """What bounds of B boxes say: (B, D) each."""
        sides: tuple[list[Float64], list[Float64]] = ([], [])
        for node, places in self.places.items():
            for side, values in zip(sides, bounds.interval(node), strict=True):
                side.append(values[:, places])
        count = max((len(v) for v in sides[0]), default=1)
        joined = [[np.broadcast_to(v, (count, v.shape[1])) for v in side] for side in sides]
        lower, upper = (np.concatenate([np.zeros((count, 0)), *side], axis=1) for side in joined)
        return lower, upper

    def write(self, bounds: Bounds, lower: Float64, upper: Float64) -> Bounds:
        """The bounds with rows (R, D) put in: one row a form."""
        ends = [list(bounds.lower), list(bounds.upper)]
        for node, places in self.places.items():
            for side, values in zip(ends, (lower, upper), strict=True):
                old = side[node]
                assert old is not None
                new = np.array(np.broadcast_to(old, (len(values), old.shape[1])))
                new[:, places] = values[:, self.parts[node]]
                side[node] = new
        ready = {k: v for k, v in bounds.ready.items() if bounds.model.source(k[0]) not in self.places}
        return replace(bounds, lower=tuple(ends[0]), upper=tuple(ends[1]), ready=ready)


@dataclass(frozen=True, eq=False)
class Ask:
    """What a tree is asked: the claim, and `need` (m,), how far the outputs of float32 executions may be (None:
    anywhere). strict: nothing counts that does not hold for these, too.
    """

    claim: Claim
    need: Float64 | None
    strict: bool
    deadline: float | None = None


def holds(bounds: Bounds, tree: Tree, ask: Ask, place: str) -> bool:
    """Rejected unless the tree excludes its polytopes; does it also for float32 executions?"""
    work, deadline = _Work(bounds, tree, ask, place), ask.deadline
    lower, upper = work.columns.read(bounds)
    wanted = np.ones((1, len(tree.polytopes)), dtype=np.bool_)
    stack = [_Batch(np.zeros(1, dtype=np.int64), lower, upper, wanted)]
    later: list[_Batch] = []  # to be renewed: many at once cost less
    while stack or later:
        if deadline is not None and time.monotonic() > deadline:
            raise Rejected(f"{place}: out of time")
        if not stack or sum(len(b.nodes) for b in later) >= work.count:
            batch = _Batch(*(np.concatenate(parts) for parts in zip(*(b.parts() for b in later), strict=True)))
            later = [batch[work.count :]] if len(batch.nodes) > work.count else []
            batch = work.renewed(batch[: work.count])
        else:
            batch = stack.pop()
            if len(batch.nodes) > work.count:
                stack += [batch[work.count :], batch[: work.count]]
                continue
            renewed = tree.renew[batch.nodes]
            later += [batch[renewed]] if renewed.any() else []
            batch = batch[~renewed]
        children = work.children(work.answered(batch)) if len(batch.nodes) else batch
        if len(children.nodes):
            stack.append(children)
    if work.open:
        reason = f"{place}: node {work.open[0]} excludes not all that it must ({len(work.open)} such nodes)"
        raise NotExcluded(reason, work.open)
    return work.single


class _Work:
    """One tree, and what is computed once for it."""

    def __init__(self, bounds: Bounds, tree: Tree, ask: Ask, place: str) -> None:
        claim = ask.claim
        self.bounds, self.tree, self.ask, self.claim, self.place = bounds, tree, ask, claim, place
        self.single = True
        self.columns = Columns(bounds, tree)
        self.open: list[int] = []  # nodes that fail
        widest = max(node.size for node in bounds.model.network.nodes)
        self.count = max(1, min(NODES, CHUNK // widest))
        self.split = np.zeros(len(tree.unit), dtype=np.int64)
        inner = np.flatnonzero(tree.unit != NOT_SPLIT)
        self.split[inner] = self.columns.of(tree.unit[inner], tree.place[inner])
        self.entry = _Owned(tree.entry_node, len(tree.unit))
        self.multiplier = _Owned(tree.multiplier_entry, len(tree.entry_node))
        self.sharpening = _Owned(tree.sharpen_entry, len(tree.entry_node))
        self.polytope = np.searchsorted(np.sort(tree.polytopes), tree.entry_polytope)
        self.polytope = np.argsort(tree.polytopes)[self.polytope]
        self.plane_column = self.columns.of(tree.plane_unit, tree.plane_place)
        self.planes = None
        if len(tree.sharpen_entry):
            self.planes = planes(bounds, tree.plane_unit, tree.plane_place, tree.plane_sign.astype(np.float64))
        self.caps = Caps(bounds, tree, claim.norm, place) if len(tree.cap_entry) else None

    def renewed(self, batch: _Batch) -> _Batch:
        """All that units read bounded anew over each node's own box."""
        box = self.columns.parts[0]
        anew = crown(over(self.bounds.model, batch.lower[:, box], batch.upper[:, box]), [Crown()], self.claim.norm)
        lower, upper = self.columns.read(anew)
        return replace(batch, lower=lower, upper=upper)

    def answered(self, batch: _Batch) -> _Batch:
        """The batch after its entries: less is wanted, more is known."""
        wanted, lower, upper = batch.wanted.copy(), batch.lower, batch.upper
        entries, rows = self.entry.of(batch.nodes)
        needed = wanted[rows, self.polytope[entries]]
        entries, rows = entries[needed], rows[needed]
        sharper = []
        for start in range(0, len(entries), self.count):
            part = slice(start, start + self.count)
            known = self.columns.write(self.bounds, lower[rows[part]], upper[rows[part]])
            value, short = self._bounded(known, entries[part])
            good = value > short if self.ask.strict else value > 0
            self.single &= bool((value > short)[good].all())
            wanted[rows[part][good], self.polytope[entries[part][good]]] = False
            sharper.append((entries[part][~good], rows[part][~good]))
        if self.planes is not None and sharper:
            lower, upper = self._sharpened(batch, *(np.concatenate([s[k] for s in sharper]) for k in (0, 1)))
            wanted[(lower > upper).any(axis=1)] = False
        stuck = wanted.any(axis=1) & (self.tree.unit[batch.nodes] == NOT_SPLIT)
        self.open += batch.nodes[stuck].tolist()
        wanted[stuck] = False
        return _Batch(batch.nodes, lower, upper, wanted)

    def children(self, batch: _Batch) -> _Batch:
        """The children of the nodes that still want something, as far as they are not empty."""
        batch = batch[batch.wanted.any(axis=1)]
        nodes, rows = batch.nodes, np.arange(len(batch.nodes))
        column, cut, child = self.split[nodes], self.tree.cut[nodes], self.tree.child[nodes]
        below, above = batch.upper.copy(), batch.lower.copy()
        below[rows, column] = np.minimum(below[rows, column], cut)
        above[rows, column] = np.maximum(above[rows, column], cut)
        both = _Batch(
            np.concatenate([child, child + 1]),
            np.concatenate([batch.lower, above]),
            np.concatenate([below, batch.upper]),
            np.concatenate([batch.wanted, batch.wanted]),
        )
        twice = np.concatenate([rows, rows + len(rows)])
        column = np.concatenate([column, column])
        return both[~(both.lower[twice, column] > both.upper[twice, column])]  # NaN is no empty node

    def _how(self, known: Bounds, entries: Index) -> Choice:
        """Slopes and multipliers of some entries."""
        tree = self.tree
        found = choice(known, tree.entry_slopes or {}, entries, self.place)
        numbers, rows = self.multiplier.of(entries)
        sources = self.columns.of_unit[tree.multiplier_unit[numbers]]
        multipliers = {}
        for node in sorted(set(sources.tolist())):  # np.unique imports numpy.ma, 8 ms
            mine = sources == node
            picked = numbers[mine]
            multipliers[node] = Multiplier(rows[mine], tree.multiplier_place[picked], tree.multiplier[picked])
        return replace(found, multipliers=multipliers)

    def _form(self, entries: Index) -> tuple[Form, Float64]:
        """The margins of some entries, less their caps, and by how much they may be less for float32."""
        parts = [(self.claim.polytopes[self.tree.entry_polytope[e]], self.tree.entry_mix[e]) for e in entries]
        form = margin(self.bounds, parts)
        lost = np.array([short(polytope, mix, self.ask.need) for polytope, mix in parts])
        return form if self.caps is None else self.caps.taken_off(form, entries), lost

    def _bounded(self, known: Bounds, entries: Index) -> tuple[Float64, Float64]:
        """Lower bounds of entries, one a row of `known`, and what of them float32 may lose."""
        form, lost = self._form(entries)
        return lowest(known, form, None, self._how(known, entries), self.claim.norm), lost

    def _sharpened(self, batch: _Batch, entries: Index, rows: Index) -> tuple[Float64, Float64]:
        """Better ends (B, D) for what follows, where only counterexamples are asked for: their margin is <= 0, or for
        float32 at most what it may lose.
        """
        lower, upper = batch.lower.copy(), batch.upper.copy()
        some = self.sharpening.count[entries] > 0
        entries, rows = entries[some], rows[some]
        for start in range(0, len(entries), self.count):
            part = slice(start, start + self.count)
            known = self.columns.write(self.bounds, batch.lower[rows[part]], batch.upper[rows[part]])
            form, lost = self._form(entries[part])
            h, k = plane(known, form, None, self._how(known, entries[part]))
            k = np.nextafter(k - lost, -np.inf) if self.ask.strict else k
            for number, (entry, row) in enumerate(zip(entries[part], rows[part], strict=True)):
                box = tuple(side[min(number, len(side) - 1)][None] for side in known.interval(0))
                column, up, found = self._cut(entry, h[number], k[number], (box[0], box[1]))
                np.maximum.at(lower[row], column[up], found[up])
                np.minimum.at(upper[row], column[~up], -found[~up])
        self.single &= self.ask.strict or not len(entries)  # a counterexample of float32 may have a margin above 0
        return lower, upper

    def _cut(self, entry: int, h: Numbers, k: float, box: tuple[Float64, Float64]) -> tuple[Index, Bools, Float64]:
        """The columns that an entry sharpens, whether from below, and sign z >= min (a + beta h) x + c + beta k."""
        arithmetic, tree = self.bounds.model.arithmetic, self.tree
        assert self.planes is not None
        numbers, _ = self.sharpening.of(np.array([entry]))
        which = tree.sharpen_plane[numbers]
        beta = arithmetic.array(tree.sharpen_beta[numbers])[:, None]
        a, c = self.planes[0][which], arithmetic.array(self.planes[1][which])
        more = beta * h
        joined, change = a + more, beta[:, 0] * arithmetic.number(float(k))
        size = arithmetic.array(np.maximum(np.abs(box[0]), np.abs(box[1])))[0]
        value, error = minimum(arithmetic, joined, box, self.claim.norm)
        error = error + arithmetic.gamma(2) * (
            (np.abs(a) + np.abs(more)) @ size + np.abs(c) + np.abs(change) + np.abs(value)
        )
        error = error * arithmetic.grow + arithmetic.tiny * (8 * len(size)) * (1 + size.sum())
        found = arithmetic.floats(value + c + change - error, up=False)
        finite(self.place, found)
        return self.plane_column[which], tree.plane_sign[which] > 0, found


class _Owned:
    """Things that belong to owners 0, 1, ..., n - 1: owner (T,)."""

    def __init__(self, owner: Index, owners: int) -> None:
        self.order = np.argsort(owner, kind="stable")
        self.count = np.bincount(owner, minlength=owners)
        self.start = np.concatenate([[0], np.cumsum(self.count)])

    def of(self, owners: Index) -> tuple[Index, Index]:
        """The things of some owners, and of each the owner's number in `owners`."""
        count = self.count[owners]
        rows = np.repeat(np.arange(len(owners)), count)
        offset = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        return self.order[np.repeat(self.start[owners], count) + offset], rows
