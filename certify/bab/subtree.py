"""Parts of a search over neurons that go on elsewhere: lent as values, grown in any process, and joined to the tree.

A loan takes nothing from the tree: what is lent counts as open, with the bounds it had, until what came of it is
adopted. So a process that dies, or answers too late, costs its own time and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from certify.arrays import to_numpy
from certify.bab.envelope import planes_pay
from certify.bab.halfspace import Planes, planes_of
from certify.bab.log import Log, Pages
from certify.bab.pool import Pool
from certify.bab.result import Replay
from certify.bab.root import Root
from certify.bab.search import SearchOptions, Tree, grow
from certify.bab.subproblem import Subproblems
from certify.certificate.content import CaseProof
from certify.verdict import Witness

if TYPE_CHECKING:
    from certify.bab.leaf import Leaves


@dataclass(eq=False)
class Ground:
    """What all parts of a search need, sent once. marks: start nodes, neurons and signs of the planes that sharpen
    neurons. planes, leaves: made where they are used, and kept there.
    """

    root: Root
    options: SearchOptions
    marks: tuple[Tensor, Tensor, Tensor] | None
    planes: Planes | None = None
    leaves: Leaves | None = None

    @staticmethod
    def of(tree: Tree) -> Ground:
        """The ground that the tree stands on now; planes above ReLUs change it."""
        root, known = tree.root, tree.planes
        nets, lean = replace(root.nets, draft=None), replace(root.known, lines=None)
        marks = None if known is None else (known.start, known.neuron, known.sign)
        return Ground(replace(root, nets=nets, known=lean, grounds=CaseProof()), tree.options, marks)


@dataclass(frozen=True, eq=False)
class Subtree:
    """Disjoint open subproblems of a search, their nodes numbered 0, 1, ...; width, most: of its steps, as the tree's;
    room: subproblems above which it goes depth-first. sharpens: are neurons sharpened?
    """

    loan: int
    subs: Subproblems
    width: int
    most: int
    room: int
    sharpens: bool

    def plant(self, ground: Ground, replay: Replay) -> Tree:
        """The subtree as a tree of its own, which may lend parts of itself."""
        root = ground.root
        pool, log = Pool(self.room), Log(root.problem, root.polytopes)
        pool.push(self.subs)
        log.roots(self.subs)
        tree = Tree(root, replay, ground.options, pool, math.inf, self.width, self.most, log)
        tree.asked = tree.lifted = True
        if self.sharpens and ground.planes is None and ground.marks is not None:
            with torch.no_grad():
                ground.planes = planes_of(root, *ground.marks)
        tree.planes, tree.leaves = ground.planes if self.sharpens else None, ground.leaves
        return tree

    def grow(self, ground: Ground, replay: Replay, deadline: float) -> Grown:
        """Go on until all is excluded, a witness is found, or the deadline (time.monotonic()) has come."""
        tree = self.plant(ground, replay)
        grow(tree, deadline)
        ground.leaves = tree.leaves
        return Grown.of(tree, self.loan)


@dataclass(frozen=True, eq=False)
class Grown:
    """What came of a subtree: its log, what is still open, with bounds, and the rest as in certify.bab.search.Tree."""

    loan: int
    pages: Pages
    open: Subproblems | None
    closed: float
    stuck: float
    left: int
    subproblems: int
    witness: Witness | None

    @staticmethod
    def of(tree: Tree, loan: int) -> Grown:
        """What a subtree came to; what it has lent is open."""
        for number in tuple(tree.lent):
            tree.restore(number)
        still = tree.pool.pop(len(tree.pool)) if len(tree.pool) else None
        if still is not None:
            tree.pool.push(still)
        return Grown(loan, tree.log.pages(), still, tree.closed, tree.stuck, tree.left, tree.subproblems, tree.witness)


def ground(tree: Tree) -> Ground | None:
    """What the whole tree stands on; None as long as planes may come that it will stand on then."""
    if not tree.asked:
        return None
    if not tree.lifted:
        tree.lifts = planes_pay(tree.root) if tree.lifts is None else tree.lifts
        if tree.lifts:
            return None
    return Ground.of(tree)


def donate(tree: Tree, hands: int, count: int) -> list[Subtree]:
    """Up to `count` open subproblems for each of some hands: the lowest bounds, dealt in turn to them and to the tree.

    What fails, for want of memory say, lends nothing.
    """
    if not len(tree.pool) or not count:
        return []
    subs, first = tree.pool.pop((hands + 1) * count), tree.loans
    try:
        order = torch.argsort(subs.lower, stable=True)
        parts = [subs.take(order[hand :: hands + 1]) for hand in range(min(hands + 1, len(subs)))]
        numbered = [replace(part, node=torch.arange(len(part), device=part.node.device)) for part in parts]
    except BaseException:
        tree.pool.push(subs)
        raise
    tree.loans += len(parts)
    tree.lent.update((first + k, part) for k, part in enumerate(parts))
    tree.restore(first)
    rest = (tree.width, tree.most, tree.pool.most, tree.planes is not None)
    return [Subtree(first + k, numbered[k], *rest) for k in range(1, len(parts))]


def adopt(tree: Tree, grown: Grown) -> bool:
    """Join what came of a loan to the tree; False, and nothing done, where it was given up meanwhile."""
    subs = tree.lent.get(grown.loan)
    if subs is None:
        return False
    number = torch.as_tensor(tree.log.adopt(grown.pages, to_numpy(subs.node)), device=subs.node.device)
    if grown.open is not None:
        tree.pool.push(replace(grown.open, node=number[grown.open.node]))
    tree.closed, tree.stuck = min(tree.closed, grown.closed), min(tree.stuck, grown.stuck)
    tree.left += grown.left
    tree.subproblems += grown.subproblems
    tree.witness = tree.witness or grown.witness
    del tree.lent[grown.loan]
    return True
