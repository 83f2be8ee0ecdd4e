"""Branch and bound on phases with an LP at every node, each closed node proved by our own backward pass.

A MIP solver's "infeasible" leaves nothing to check. This search is what a MIP does at its core (Tjeng et al. 2018;
Bunel et al. 2020), on one model inside HiGHS whose column bounds change from node to node, so that a solve starts
from the basis of its parent; and every leaf has duals, from which certify.mip.margin proves it. Depth first, the
branch with the lower bound first: it is where a counterexample is, and the frontier stays small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from certify.bounding.crown import Knowledge
from certify.mip.encode import Phase
from certify.mip.margin import Margin, certified, is_empty
from certify.property import Float64
from certify.solvers.highs import HighsModel
from certify.solvers.program import Budget, Solution, Status

# Closed nodes proved in one batch: their coefficients stay within the caches.
PROVED_AT_ONCE = 64
# LP optima above this, relative to the root's, close a node; nearer to 0 the proof would fail by rounding.
CLEAR = 1e-7
# Neurons whose two children are both solved before one is chosen.
TRIED = 3

Look = Callable[[Float64], bool]  # a candidate input, flat -> stop the search?


@dataclass(frozen=True)
class Split:
    """Neurons by number in the list of open ones, with their phase: +1 active, -1 inactive."""

    phases: tuple[tuple[int, int], ...] = ()

    def add(self, neuron: int, phase: int) -> Split:
        return Split((*self.phases, (neuron, phase)))


@dataclass(frozen=True, eq=False)
class Closed:
    """A node that its LP closes. duals: of the LP, or the ray that shows it empty."""

    split: Split
    duals: Float64
    empty: bool


@dataclass(frozen=True)
class TreeAnswer:
    """lower: certified lower bound of the margin (positive: excluded). nodes: LPs solved. left: nodes still open.

    stopped: a candidate was accepted.
    """

    lower: float
    nodes: int
    left: int
    stopped: bool = False


def search(margin: Margin, look: Look, deadline: float) -> TreeAnswer:
    """Prove the margin positive, or find a candidate that `look` accepts, or run out of time (time.monotonic())."""
    return _Search(margin, look, deadline).run()


@dataclass
class _Search:
    margin: Margin
    look: Look
    deadline: float
    solves: int = 0
    stopped: bool = False
    lower: float = math.inf
    closed: list[Closed] = field(default_factory=list)
    stack: list[tuple[Split, Solution]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = HighsModel(self.margin.program)
        self.phases = self.margin.encoding.phases
        self.active = np.concatenate([np.zeros(0, dtype=np.int64), *(p.active for p in self.phases)])
        self.inactive = np.concatenate([np.zeros(0, dtype=np.int64), *(p.inactive for p in self.phases)])
        self.triangle = _triangle_rows(self.margin, self.active)
        self.fixed: Split = Split()

    def run(self) -> TreeAnswer:
        root = self.solve(Split())
        if not self.settle(Split(), root):
            self.stack.append((Split(), root))
        threshold = self.root_bound(root)
        while (self.stack or self.closed) and not self.stopped:
            if time.monotonic() >= self.deadline:
                return TreeAnswer(threshold, self.solves, len(self.stack) + len(self.closed))
            if not self.stack or len(self.closed) >= PROVED_AT_ONCE:
                self.prove()
                continue
            split, solution = self.stack.pop()
            if not self.branch(split, solution):
                return TreeAnswer(threshold, self.solves, 1 + len(self.stack) + len(self.closed))
        if self.stopped:
            return TreeAnswer(threshold, self.solves, len(self.stack) + len(self.closed), stopped=True)
        return TreeAnswer(self.lower, self.solves, 0)

    def root_bound(self, solution: Solution) -> float:
        if solution.row_dual is None:
            return -math.inf
        return float(certified(self.margin, solution.row_dual[None])[0])

    def solve(self, split: Split) -> Solution:
        """The LP of a node, from the basis of the one before."""
        now, before = dict(split.phases), dict(self.fixed.phases)
        changed = np.array([n for n in {*now, *before} if now.get(n) != before.get(n)], dtype=np.int64)
        if len(changed):
            columns = np.concatenate([self.active[changed], self.inactive[changed]])
            upper = self.margin.program.upper[columns].copy()
            phase = np.array([now.get(n, 0) for n in changed])
            upper[np.concatenate([phase < 0, phase > 0])] = 0.0
            self.model.set_bounds(columns, self.margin.program.lower[columns], upper)
        self.fixed = split
        self.solves += 1
        return self.model.solve(Budget(seconds=self.deadline - time.monotonic()))

    def settle(self, split: Split, solution: Solution) -> bool:
        """Is the node closed, or the search? A node without an answer stays open."""
        if solution.status is Status.INFEASIBLE and solution.ray is not None:
            self.closed.append(Closed(split, solution.ray, True))
            return True
        if solution.x is None or solution.row_dual is None:
            return False
        if solution.objective > CLEAR:
            self.closed.append(Closed(split, solution.row_dual, False))
            return True
        columns = self.margin.encoding.program.matrix.shape[1]
        self.stopped = self.look(self.margin.encoding.inputs(solution.x[:columns]))
        return self.stopped

    def branch(self, split: Split, solution: Solution) -> bool:
        """Split the node on the most promising neuron; False if there is none left to split on."""
        candidates = self.candidates(split, solution)
        best: list[tuple[Split, Solution]] = []
        best_score = -math.inf
        for neuron in candidates:
            pair = [(child := split.add(neuron, phase), self.solve(child)) for phase in (1, -1)]
            score = _gain([s for _, s in pair])
            if score > best_score:
                best, best_score = pair, score
            if math.isinf(score):
                break
        best.sort(key=lambda pair: -pair[1].objective)
        for child, answer in best:
            if not self.settle(child, answer):
                self.stack.append((child, answer))
            if self.stopped:
                break
        return bool(best)

    def candidates(self, split: Split, solution: Solution) -> list[int]:
        """The neurons whose relaxation the LP's optimum leans on most: dual of the triangle x how far it is used."""
        free = np.ones(len(self.active), dtype=bool)
        free[[n for n, _ in split.phases]] = False
        if solution.x is None or solution.row_dual is None:
            return [int(n) for n in np.flatnonzero(free)[:1]]
        used = np.minimum(solution.x[self.active], solution.x[self.inactive])
        price = np.where(self.triangle >= 0, np.abs(solution.row_dual[self.triangle]), 0.0)
        score = np.where(free, price * (used > 1e-9) + 1e-9 * used, -1.0)
        order = np.argsort(-score)[:TRIED]
        return [int(n) for n in order if score[n] > 0] or [int(n) for n in np.flatnonzero(free)[:1]]

    def prove(self) -> None:
        """Certify the closed nodes; those that rounding keeps open go back."""
        batch, self.closed = self.closed, []
        for empty in (True, False):
            some = [c for c in batch if c.empty is empty]
            if not some:
                continue
            known = self.knowledge(some)
            duals = np.stack([c.duals for c in some])
            value = certified(self.margin, duals, known)
            if empty:
                value = np.where(is_empty(self.margin, duals, known), math.inf, -math.inf)
            for node, bound in zip(some, value, strict=True):
                if bound > 0:
                    self.lower = min(self.lower, float(bound))
                else:
                    self.stack.append((node.split, Solution(Status.UNKNOWN)))

    def knowledge(self, nodes: list[Closed]) -> Knowledge:
        """The root's knowledge with the nodes' splits in its boxes."""
        return split_knowledge(self.margin.encoding.known, self.phases, [n.split for n in nodes])


def split_knowledge(known: Knowledge, phases: tuple[Phase, ...], splits: list[Split]) -> Knowledge:
    """One region's knowledge under several splits: boxes (B, ...) where a split narrows them, (1, ...) elsewhere."""
    graph, boxes, first = known.graph, list(known.boxes), 0
    for phase in phases:
        source = graph.nodes[phase.node].inputs[0]
        inside = [[(n - first, p) for n, p in s.phases if first <= n < first + len(phase.neurons)] for s in splits]
        first += len(phase.neurons)
        if not any(inside):
            continue
        low, high = replace(known, boxes=boxes).flat(source)
        low, high = (np.broadcast_to(side, (len(splits), side.shape[1])).copy() for side in (low, high))
        for row, part in enumerate(inside):
            for neuron, sign in part:
                at = phase.neurons[neuron]
                if sign > 0:
                    low[row, at] = max(low[row, at], 0.0)
                else:
                    high[row, at] = min(high[row, at], 0.0)
        shape = (len(splits), *graph.nodes[source].shape)
        boxes[source] = low.reshape(shape), high.reshape(shape)
    return replace(known, boxes=boxes)


def _gain(children: list[Solution]) -> float:
    """The worse child's optimum; inf where both are closed."""
    bounds = [
        math.inf if c.status is Status.INFEASIBLE else c.objective if c.row_dual is not None else -math.inf
        for c in children
    ]
    worse = min(bounds)
    return math.inf if worse > CLEAR else worse + 1e-3 * min(max(bounds), 1e3)


def _triangle_rows(margin: Margin, active: np.ndarray) -> np.ndarray:
    """For each open neuron the row y' + s' <= 1, -1 where the program needs none."""
    matrix = margin.encoding.program.matrix.tocsc()
    rows = np.full(len(active), -1, dtype=np.int64)
    bounded = (margin.encoding.program.row_lower == -np.inf) & (margin.encoding.program.row_upper == 1.0)
    counts = np.diff(margin.encoding.program.matrix.indptr)
    for k, column in enumerate(active):
        found = matrix.indices[matrix.indptr[column] : matrix.indptr[column + 1]]
        found = found[bounded[found] & (counts[found] == 2)]
        if len(found):
            rows[k] = found[0]
    return rows
