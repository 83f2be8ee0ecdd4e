"""Branch and bound over neurons (Bunel et al. 2020; Wang et al. 2021), batched: every unsafe polytope of a case is a
tree.

A step takes the open subproblems with the lowest bounds, splits each at one neuron, and raises the children's bounds by
a few ascent steps in float32. What counts is one pass more, in float64 with rounding. The points that attain the
bounds of what stays open are candidates for a witness. Bounds only rise: a child starts from its parent's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from certify.arrays import UNDERFLOW, to_numpy
from certify.bab.ascend import AscentOptions, Best, ascend
from certify.bab.branching import candidates, children, choose, split_points
from certify.bab.dual import Batch, ascent, bound
from certify.bab.envelope import framed, with_planes
from certify.bab.halfspace import Planes, planes, sharpen
from certify.bab.log import Log
from certify.bab.pool import Pool
from certify.bab.result import Replay, SearchResult
from certify.bab.root import Certified, Root, certified
from certify.bab.subproblem import Subproblems, unsettled
from certify.certificate.content import CaseProof, SplitTree
from certify.certificate.write import sources
from certify.verdict import Witness

if TYPE_CHECKING:
    from certify.bab.leaf import Leaves

FRONTIER_BYTES = 2 << 30
STEP_SECONDS = 0.5  # a step that takes less may take more subproblems: large products are faster
SLACK = 1e-5  # float32 bounds must be above this share of the rows' scale before the ascent may stop early
NEAR = 1e-3  # candidates are replayed when their float32 margin is below this share of the rows' scale
CLIPPED = UNDERFLOW["float64"]  # what is cut off has a positive margin
PLANES_AFTER = 16  # subproblems; smaller trees close sooner than the planes are made
LIFT_AFTER = 512  # subproblems; smaller trees close soon, and with a certificate
LIFTED = 50_000_000  # numbers that the planes of the subproblems at work may take, some five times over
# Factors of the multipliers' step, changed when the lowest bound does not rise: which scale is right differs between
# networks, and deep in a tree, by more than ten.
GEARS = (1.0, 0.05, 0.25)
TRIAL = 64  # subproblems after which sharpening goes on only if it settles PAYS neurons each
PAYS = 0.5
REPLAYS = 4  # candidates a step that onnxruntime is asked about


@dataclass(frozen=True)
class SearchOptions:
    """ascent: of the children's bounds. leaf: of what nothing can split any more. tries: candidates per branching
    score. smallest, largest: subproblems a step. lift: of the roots, when planes above ReLUs come in.
    """

    ascent: AscentOptions = field(default_factory=AscentOptions)
    leaf: AscentOptions = field(default_factory=lambda: AscentOptions(iterations=200, decay=0.98))
    lift: AscentOptions = field(default_factory=lambda: AscentOptions(iterations=30, decay=0.96))
    tries: int = 8
    smallest: int = 8
    largest: int = 512


@dataclass
class Tree:
    """A search that can go on. closed: the lowest bound of what is closed; stuck: of what nothing can split. width,
    most: subproblems of the next step, and of any. lifts: do planes above ReLUs pay? None: not asked yet; lifted: have
    they been tried? earlier: the trees of polytopes that were excluded before. lent: what goes on elsewhere
    (certify.bab.subtree), by the loans' numbers.
    """

    root: Root
    replay: Replay
    options: SearchOptions
    pool: Pool
    closed: float
    width: int
    most: int
    log: Log
    deadline: float = math.inf
    stuck: float = math.inf
    subproblems: int = 0
    left: int = 0
    witness: Witness | None = None
    asked: bool = False  # have the planes been made, or given up?
    planes: Planes | None = None
    lifts: bool | None = None
    lifted: bool = False
    leaves: Leaves | None = None
    earlier: tuple[SplitTree, ...] = ()
    gear: int = 0
    sharpened: int = 0
    settled: int = 0
    lent: dict[int, Subproblems] = field(default_factory=dict)
    loans: int = 0

    @staticmethod
    def plant(root: Root, replay: Replay, options: SearchOptions | None = None) -> Tree:
        """The tree of one case, with its polytopes' roots open."""
        options = options or SearchOptions()
        bytes_each = 64 + 24 * sum(len(f) for f in root.problem.free.values())
        pool = Pool(max(1000, FRONTIER_BYTES // bytes_each))
        pool.push(root.subproblems)
        log = Log(root.problem, root.polytopes)
        log.roots(root.subproblems)
        return Tree(root, replay, options, pool, root.lower, options.smallest, options.largest, log)

    @property
    def waiting(self) -> int:
        """Subproblems that are open here."""
        return len(self.pool)

    @property
    def open(self) -> bool:
        """Is there anything left to do here?"""
        return self.witness is None and len(self.pool) > 0

    @torch.no_grad()
    def advance(self, deadline: float) -> None:
        """One step, where something is open."""
        self.deadline = deadline
        begin, lowest = time.monotonic(), self.pool.lower
        if self.subproblems >= PLANES_AFTER and not self.asked:
            self.asked, self.planes = True, planes(self.root)
            if self.planes is not None:
                self.log.use(*(to_numpy(p) for p in (self.planes.start, self.planes.neuron, self.planes.sign)))
        if self.subproblems >= LIFT_AFTER and not self.lifted:
            self.lifted = True
            _lift(self)
        if self.open:
            _step(self, self.width)
        self.gear = 0 if self.pool.lower > lowest else (self.gear + 1) % len(GEARS)
        spent = time.monotonic() - begin
        if spent < STEP_SECONDS:
            self.width = min(2 * self.width, self.most)
        elif spent > 2 * STEP_SECONDS:
            self.width = max(self.width // 2, self.options.smallest)

    def proof(self) -> CaseProof | None:
        """Why the case is safe, once nothing is open or stuck; None where that takes too much memory to say."""
        return None if self.log.full else replace(self.root.grounds, trees=(*self.earlier, *self.log.trees()))

    def reopen(self, tree: int, nodes: Sequence[int]) -> None:
        """Nodes of one of the proof's trees, which turned out not to be closed, are open again, to be split."""
        if tree < len(self.earlier):
            return
        polytope, places = self.log.numbers(tree - len(self.earlier), nodes)
        first = sources(self.root.problem.graph)
        starts = {first[start]: start for start in self.root.problem.free}
        for node in places.tolist():
            sub = self.root.subproblems.take(torch.as_tensor([polytope], device=self.root.subproblems.node.device))
            boxes = {start: box.clone() for start, box in sub.boxes.items()}
            for unit, place, cut, above in self.log.path(node):
                column = torch.searchsorted(self.root.problem.free[starts[unit]], place)
                side = boxes[starts[unit]][0 if above else 1, 0]
                side[column] = max(float(side[column]), cut) if above else min(float(side[column]), cut)
            lower = torch.full_like(sub.lower, -math.inf)
            self.pool.push(replace(sub, boxes=boxes, lower=lower, node=torch.full_like(sub.node, node)))

    def restore(self, loan: int) -> None:
        """What was lent is as open as it was; whatever comes of the loan is not taken any more."""
        subs = self.lent.get(loan)
        if subs is not None:
            self.pool.push(subs)
            del self.lent[loan]

    def result(self) -> SearchResult:
        away = (float(torch.nan_to_num(subs.lower, nan=-math.inf).min()) for subs in self.lent.values())
        lower = min(self.closed, self.stuck, self.pool.lower, *away)
        left = len(self.pool) + self.left + sum(map(len, self.lent.values()))
        return SearchResult(lower, self.witness, self.subproblems, left)


def grow(tree: Tree, deadline: float) -> SearchResult:
    """Split until every subproblem is excluded, a witness is found, or the deadline (time.monotonic()) has come.

    May be called again for more.
    """
    while tree.open and time.monotonic() < deadline:
        tree.advance(deadline)
    return tree.result()


def _lift(tree: Tree) -> None:
    """Begin anew at the roots, with planes above ReLUs (certify.bab.hull), where these cost little."""
    root = framed(tree.root)
    if root is None:
        return
    for loan in tuple(tree.lent):
        tree.restore(loan)
    tree.root, first = root, root.subproblems
    subs = tree.pool.pop(len(tree.pool))
    tree.pool.push(subs)
    # A polytope's margin is at least the lowest of its parts'.
    known = torch.full_like(first.lower, math.inf).scatter_reduce_(0, subs.polytope, subs.lower, "amin")
    still = torch.unique(subs.polytope)
    first = replace(first, lower=torch.fmax(first.lower, known)).take(still)
    log = Log(root.problem, root.polytopes, planes=tree.log.planes)
    first = replace(first, node=torch.arange(len(first), device=first.node.device))
    log.roots(first)
    raised = _raise(tree, with_planes(root, first), tree.options.lift)
    tree.pool.pop(len(tree.pool))
    done = {root.polytopes[p] for p in range(len(root.polytopes))} - {root.polytopes[p] for p in still.tolist()}
    tree.earlier = tuple(t for t in tree.log.trees() if t.polytopes[0] in done)
    tree.log = log
    size = sum(frame.weight.numel() for frame in root.problem.frames.values())
    tree.pool.most = min(tree.pool.most, max(1000, FRONTIER_BYTES // size))
    tree.most = max(tree.options.smallest, min(tree.most, LIFTED // size))
    tree.width = min(tree.width, tree.most)
    try:
        _settle(tree, raised)
    except BaseException:
        tree.pool.push(raised[0])
        raise


def _step(tree: Tree, width: int) -> None:
    parents = tree.pool.pop(width)
    try:
        _work(tree, parents)
    except BaseException:  # out of memory, an interrupt: what was taken out is as open as before
        tree.pool.push(parents)
        raise


def _work(tree: Tree, parents: Subproblems) -> None:
    points, allowed = split_points(tree.root.problem, parents)
    can = allowed.any(dim=1)
    if not bool(can.all()):
        _leaves(tree, parents.take(~can))
    if bool(can.any()):
        _settle(tree, _split(tree, parents.take(can), points[can], allowed[can]))


def _split(tree: Tree, parents: Subproblems, points: Tensor, allowed: Tensor) -> tuple[Subproblems, Best]:
    """The children of the parents' best splits, with raised bounds."""
    problem = tree.root.problem
    batch, variables = Batch.of(problem, parents)
    taken = bound(batch, variables)
    tried = candidates(batch, taken, ascent(batch, variables, taken), allowed, tree.options.tries)
    splits = choose(problem, parents, tried, points, allowed)
    kids = children(problem, parents, splits)
    numbers = tree.log.split(parents, to_numpy(splits.neurons), to_numpy(splits.points))
    kids = replace(kids, node=torch.as_tensor(numbers, device=kids.node.device))
    options = tree.options.ascent
    return _raise(tree, kids, replace(options, multiplier_step=options.multiplier_step * GEARS[tree.gear]))


def _raise(tree: Tree, subs: Subproblems, options: AscentOptions) -> tuple[Subproblems, Best]:
    problem = tree.root.problem
    if subs.shares is not None:
        subs = replace(subs, shares=subs.shares.apart())
    batch, variables = Batch.of(problem, subs)
    enough = SLACK * _scale(tree.root)

    def stop(value: Tensor) -> bool:
        return bool((value > enough).all()) or time.monotonic() >= tree.deadline

    best = ascend(batch, variables, options, stop=stop)
    tree.subproblems += len(subs)
    kept = best.variables
    return replace(subs, slopes=kept.slopes, multipliers=kept.multipliers, mix=kept.mix, shares=best.shares), best


def _settle(tree: Tree, raised: tuple[Subproblems, Best]) -> None:
    """Certify; what is closed goes, what is open goes back to the pool, its points to the attack."""
    subs, best = raised
    margin = certified(tree.root, subs)
    subs = replace(subs, lower=torch.fmax(subs.lower, margin.lower))
    still = _close(tree, subs, margin)
    if not bool(still.any()):
        return
    _attack(tree, best.points[still])
    subs = subs.take(still)
    if tree.planes is not None:
        subs = _sharpen(tree, tree.planes, subs, margin.take(still))
    tree.pool.push(subs)


def _sharpen(tree: Tree, known: Planes, subs: Subproblems, margin: Certified) -> Subproblems:
    """Narrower boxes where that pays: a neuron settled is a split saved, which may halve a tree."""
    sharper, how = sharpen(tree.root, known, subs, margin)
    rows, place = np.unique(how.rows, return_inverse=True)
    some = torch.as_tensor(rows, device=subs.node.device)
    tree.log.sharpen(tree.log.bound(subs.take(some), margin.take(some).lifts)[place], how.planes, how.betas)
    tree.sharpened += len(subs)
    tree.settled += unsettled(subs) - unsettled(sharper)
    if tree.sharpened >= TRIAL and tree.settled < PAYS * tree.sharpened:
        tree.planes = None
    return _without_empty(tree, sharper)


def _close(tree: Tree, subs: Subproblems, margin: Certified) -> Tensor:
    """Marks what is still open; the rest is done with, and logged."""
    still = ~(subs.lower > 0)
    if not bool(still.all()):
        tree.closed = min(tree.closed, float(subs.lower[~still].min()))
        tree.log.bound(subs.take(~still), margin.take(~still).lifts)
    return still


def _without_empty(tree: Tree, subs: Subproblems) -> Subproblems:
    """The subproblems whose boxes are not empty; where one is, no counterexample can be."""
    empty = torch.stack([(box[0] > box[1]).any(dim=1) for box in subs.boxes.values()]).any(dim=0)
    # From here on bounds hold where a counterexample may be, so of all that is left no more than > 0 is known.
    tree.closed = min(tree.closed, CLIPPED)
    return subs.take(~empty) if bool(empty.any()) else subs


def _leaves(tree: Tree, subs: Subproblems) -> None:
    """What nothing can split: first a long ascent, then linear programs for what is left."""
    subs, best = _raise(tree, subs, tree.options.leaf)
    margin = certified(tree.root, subs)
    subs = replace(subs, lower=torch.fmax(subs.lower, margin.lower))
    still = _close(tree, subs, margin)
    if not bool(still.any()):
        return
    _attack(tree, best.points[still])
    subs = subs.take(still)
    for row in range(len(subs)):
        if tree.witness is not None or time.monotonic() >= tree.deadline:
            tree.pool.push(subs.take(torch.arange(row, len(subs))))  # there is more to be had
            return
        one, margin = _program(tree, subs.take(torch.as_tensor([row])))
        if bool(_close(tree, one, margin)[0]):
            tree.stuck = min(tree.stuck, float(one.lower[0]))
            tree.left += 1


def _program(tree: Tree, leaf: Subproblems) -> tuple[Subproblems, Certified]:
    """A leaf with the bound that its linear program's duals give; the program's point is replayed."""
    if tree.leaves is None:
        from certify.bab.leaf import Leaves  # scipy and HiGHS are loaded for those that need them

        tree.leaves = Leaves(tree.root)
    answer, solved = tree.leaves.solve(leaf, tree.deadline - time.monotonic())
    if answer.candidate is not None and not answer.lower > 0:
        tree.witness = tree.replay(answer.candidate[None])
    margin = certified(tree.root, solved)
    return replace(solved, lower=torch.fmax(leaf.lower, margin.lower)), margin


def _attack(tree: Tree, points: Tensor) -> None:
    """Run the network on the relaxed minimisers; the worst are replayed."""
    problem = tree.root.problem
    graph = problem.graph
    y = graph(points.reshape(len(points), *graph.input_shape)).reshape(len(points), -1)
    rows = torch.einsum("prm,bm->bpr", problem.coeff, y) - problem.offset
    rows = torch.where(problem.rows, rows, torch.full_like(rows, -math.inf))
    margin = rows.amax(dim=2).amin(dim=1)
    near = NEAR * _scale(tree.root)
    order = margin.argsort()[:REPLAYS]
    order = order[margin[order] < near]
    if len(order) and tree.witness is None:  # a leaf of the same step may have given one
        tree.witness = tree.replay(points[order].double().cpu().numpy())


def _scale(root: Root) -> float:
    """The size of the rows' values, for tolerances of proposals."""
    lower, upper = root.known.flat(root.known.graph.output)
    return 1e-30 + float(torch.maximum(lower.abs(), upper.abs()).mean())
