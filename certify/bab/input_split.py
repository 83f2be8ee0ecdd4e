"""Branch and bound over boxes of the input: complete search for networks of few input coordinates.

A step takes up to thousands of open boxes at once: CROWN bounds every row of the open polytopes (float64, with
rounding); a polytope is excluded in a box by one row, or a convex combination of rows, that is positive there. What
stays open is split at the coordinate that makes the relaxations loose (certify.bab.sensitivity). Corners that minimise
the bounds are candidates for a witness. Bounds only rise: a box has at least its parent's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from certify.arrays import UNDERFLOW, Array, keep_buffers, like, like_index, namespace, to_numpy
from certify.attacks.probe import LEAKS, Descents, margins, spread_aims
from certify.bab.frontier import Boxes, Frontier
from certify.bab.input_log import InputLog
from certify.bab.mixture import mixture
from certify.bab.result import Replay, SearchResult
from certify.bab.sensitivity import looseness
from certify.bounding.crown import Knowledge, backward, plane, row_form
from certify.bounding.propagate import propagate
from certify.bounding.region import Region, region_of
from certify.bounding.target import Index, Mask, Target
from certify.certificate.content import CaseProof
from certify.graph import Graph
from certify.ops.base import Weighted, gamma, magnitude
from certify.property import Case, Float64
from certify.verdict import Witness

FRONTIER_BYTES = 1 << 30
BATCH_NUMBERS = 1 << 24  # of the arrays that a step holds for its boxes
CLOSING = 0.75  # with fewer open boxes than this share of the most there were, a search is about to end
STEP_SECONDS = 0.5  # a step shall take less, or the deadline is kept badly
MIXTURE_STEPS = 8
# Descents of a step: a twentieth of what bounding its boxes takes. ACAS Xu 1_9 prop_7 falls to a hundred, to ten not.
BOXES_A_TRACK = 2
LEAST_TRACKS, TRACKS = 8, 256


@dataclass
class InputSearch:
    """A search that can go on. closed: lowest bound of what is closed; stuck: of boxes that no split makes smaller.
    width, most: boxes of the next step, and of any. peak: the most that were open. lent: what goes on elsewhere
    (certify.bab.subboxes), by the loans' numbers.
    """

    graph: Graph
    sample: Array
    target: Target
    attack: Descents
    frontier: Frontier
    free: Index
    log: InputLog
    closed: float = math.inf
    stuck: float = math.inf
    subproblems: int = 0
    left: int = 0
    steps: int = 0
    witness: Witness | None = None
    most: int = 1024
    width: int = 1024
    peak: int = 0
    lent: dict[int, Boxes] = field(default_factory=dict)
    loans: int = 0

    def __post_init__(self) -> None:
        keep_buffers()  # page faults on fresh ones took up to a tenth of a search's time

    @staticmethod
    def begin(graph: Graph, case: Case, replay: Replay, most: int = 1024) -> InputSearch:
        """Nothing done yet. graph: float64, numpy or torch. most: boxes a step. Every polytope needs a row."""
        sample = _sample_of(graph)
        region = region_of([case.inputs])
        root = Boxes(region.lower, region.upper, np.full((1, len(case.unsafe)), -np.inf), np.zeros(1, dtype=np.int64))
        free = np.flatnonzero(region.upper[0] > region.lower[0])
        capacity = max(most, FRONTIER_BYTES // (8 * (2 * root.lower.size + len(case.unsafe) + 1)))
        target = Target.of(case)
        attack = Descents(graph, sample, target, root.lower[0], root.upper[0], replay)
        size = sum(math.prod(node.shape) for node in graph.nodes)
        each = size * (len(free) + len(target.rows)) + 4 * target.index.size * root.lower.size
        most = max(1, min(most, BATCH_NUMBERS // each))
        log = InputLog(target.index.shape)
        return InputSearch(graph, sample, target, attack, Frontier(root, capacity), free, log, most=most, width=most)

    def part(self, boxes: Boxes, replay: Replay) -> InputSearch:
        """A search of its own over some of the boxes, whose nodes are numbered 0, 1, ...; nothing done yet."""
        attack = replace(self.attack, replay=replay, witness=None)
        frontier, log = Frontier(boxes, self.frontier.most), InputLog(self.log.shape, len(boxes))
        kept = self.graph, self.sample, self.target, attack, frontier, self.free, log
        return InputSearch(*kept, most=self.most, width=self.width)

    @property
    def waiting(self) -> int:
        """Boxes that are open here."""
        return len(self.frontier)

    @property
    def open(self) -> bool:
        """Is there anything left to do here?"""
        return self.witness is None and self.waiting > 0

    def go(self, deadline: float, patience: float = math.inf) -> SearchResult:
        """Split until every unsafe polytope is excluded everywhere, a witness is found, or time is over.

        deadline, patience: on time.monotonic()'s clock; past `patience` it goes on only while it is `promising`. The
        lower bound is sound whenever the search stops.
        """
        while self.open and self.promising(patience) and time.monotonic() < deadline:
            self.advance(deadline)
        return self.result()

    def promising(self, patience: float) -> bool:
        """Is it early, or does it close more boxes than it opens?"""
        return time.monotonic() < patience or self._unclosed() <= CLOSING * self.peak

    def advance(self, deadline: float) -> None:
        """One step, where something is open."""
        begin = time.monotonic()
        self.peak = max(self.peak, self._unclosed())
        _step(self, self.width, deadline)
        spent = time.monotonic() - begin
        self.width = max(1, self.width // 2) if spent > STEP_SECONDS else min(self.most, 2 * self.width)

    def reopen(self, nodes: Sequence[int]) -> None:
        """The parts that these closed nodes of the log split into are open again, whatever closed them."""
        node = np.array(nodes, dtype=np.int64)
        lower, upper = self.log.boxes(node, self.attack.lower, self.attack.upper)
        boxes = Boxes(lower, upper, np.full((len(node), self.log.shape[0]), -np.inf), node)
        self.frontier.push(_halve(self, boxes, np.zeros((len(nodes), len(self.free))))[0])

    def restore(self, loan: int) -> None:
        """What was lent is as open as it was; whatever comes of the loan is not taken any more."""
        boxes = self.lent.get(loan)
        if boxes is not None:
            self.frontier.push(boxes)
            del self.lent[loan]

    def _unclosed(self) -> int:
        return self.waiting + sum(map(len, self.lent.values()))

    def result(self) -> SearchResult:
        away = (float(boxes.bound.min()) for boxes in self.lent.values())
        lower = min(self.closed, self.stuck, self.frontier.lower, *away)
        proof = self.log.proof() if lower > 0 else None
        return SearchResult(lower, self.witness, self.subproblems, self._unclosed() + self.left, proof)


@dataclass(frozen=True, eq=False)
class _Bounded:
    """Rows of B boxes: values >= coeff x + constant, (B, S, n) and (B, S); their minimum; split scores (B, F).

    before: (B,), the boxes' bounds before.
    """

    coeff: Float64
    constant: Float64
    value: Float64
    scores: Float64
    before: Float64


def search_inputs(
    graph: Graph,
    case: Case,
    *,
    replay: Replay,
    deadline: float,
    patience: float = math.inf,
    most: int = 1024,
) -> SearchResult:
    """A whole search, as InputSearch's `begin` and `go`; a polytope without rows ends it at once."""
    if not case.unsafe or any(len(p.offset) == 0 for p in case.unsafe):
        lower = -math.inf if case.unsafe else math.inf
        return SearchResult(lower, left=int(bool(case.unsafe)), proof=None if case.unsafe else CaseProof())
    return InputSearch.begin(graph, case, replay, most).go(deadline, patience)


def _sample_of(graph: Graph) -> Array:
    """A number in the library and on the device that the graph was cast to."""
    for node in graph.nodes:
        if isinstance(node.op, Weighted):
            return node.op.weight.reshape((-1,))[:1]
    return np.zeros(1)


def _step(state: InputSearch, width: int, deadline: float) -> None:
    boxes = state.frontier.pop(width)
    try:
        state.frontier.push(_worked(state, boxes, deadline))
    except BaseException:  # out of memory, an interrupt: what was taken out is as open as before
        state.frontier.push(boxes)
        raise


def _worked(state: InputSearch, boxes: Boxes, deadline: float) -> Boxes:
    """What is open of some boxes after a step: the parts of those that did not close."""
    known, found = _bound(state, boxes, deadline)
    state.subproblems += len(boxes)
    boxes, found = _exclude(state, boxes, found, known)
    if not len(boxes):
        return boxes
    _attack(state, boxes, found, deadline)
    return boxes if state.witness is not None else _split(state, boxes, found)


def _bound(state: InputSearch, boxes: Boxes, deadline: float) -> tuple[Knowledge, _Bounded]:
    """CROWN's bounds of all nodes, and its planes of all rows."""
    target = state.target
    lower, upper = like(boxes.lower, state.sample), like(boxes.upper, state.sample)
    xp = namespace(lower)
    known = propagate(state.graph, Region(lower, upper), deadline=deadline)
    rows = like(target.rows, state.sample)
    form = row_form(state.graph.output, xp.broadcast_to(rows, (len(boxes), *rows.shape)))
    found = plane(known, form)
    weight = np.zeros(found.constant.shape)
    b, p = np.nonzero(~(boxes.margins > 0))
    for r in range(target.index.shape[1]):
        real = np.isfinite(target.offset[p, r])
        weight[b[real], target.index[p[real], r]] = 1.0
    scores = looseness(known, found.reached, like(weight, state.sample), state.free)
    coeff, constant, value = (to_numpy(a) for a in (found.coeff, found.constant, found.value))
    return known, _Bounded(coeff, constant, value, to_numpy(scores), boxes.bound)


def _exclude(state: InputSearch, boxes: Boxes, found: _Bounded, known: Knowledge) -> tuple[Boxes, _Bounded]:
    """Margins raised by the rows' minima and by combinations of rows; closed boxes dropped."""
    target = state.target
    margins = np.fmax(boxes.margins, target.margins(found.value))
    b, p = np.nonzero((margins > 0) & ~(boxes.margins > 0))
    state.log.excluded(boxes.node[b], p, target.best_row(found.value)[b, p])
    b, p = np.nonzero(~(margins > 0))
    if target.index.shape[1] > 1 and len(b):
        coeff, constant = _planes(state, found, b, p)
        weight = mixture(boxes.lower[b], boxes.upper[b], coeff, constant, MIXTURE_STEPS)
        weight = weight.astype(np.float32).astype(np.float64)  # as the certificate holds them
        bounds = _combined(state, known, (b, p), weight)
        gone = bounds > 0
        state.log.mixed(boxes.node[b[gone]], p[gone], weight[gone])
        margins[b, p] = np.fmax(margins[b, p], bounds)
    return _keep_open(state, replace(boxes, margins=margins), found)


def _combined(state: InputSearch, known: Knowledge, pairs: tuple[Index, Index], weight: Float64) -> Float64:
    """(K,): certified bounds of sum_r w_r (row_r y - offset_r) / sum_r w_r, at most the margin; pairs: (box, polytope).

    One CROWN pass for the combined row, whose relaxations suit it better than the single rows' planes. What rounding
    does to the row, to the offset and to the weights' sum is charged against the outputs' largest values.
    """
    target, (b, p) = state.target, pairs
    rows, offset = target.rows[target.index[p]], np.where(weight > 0, target.offset[p], 0.0)
    coefficients = rows.shape[1] * rows.shape[2]
    known = known.narrow(like_index(b, state.sample))
    row = np.einsum("kr,krm->km", weight, rows)
    value = to_numpy(backward(known, row_form(state.graph.output, like(row, state.sample)[:, None, :])))[:, 0]
    reach = to_numpy(magnitude(*known.flat(state.graph.output)))
    size = np.einsum("kr,krm,km->k", weight, np.abs(rows), reach) + (weight * np.abs(offset)).sum(axis=1)
    bound = value - (weight * offset).sum(axis=1)
    slack = 8 * gamma(weight.shape[1] + 8, "float64")
    bound = bound - slack * (size + np.abs(bound)) - coefficients * UNDERFLOW["float64"] * (1 + reach.max())
    total = weight.sum(axis=1)
    valid = np.isfinite(bound) & (total > 0)
    bound = bound / np.where(valid, total, 1.0)
    best: Float64 = np.where(valid, bound - slack * np.abs(bound), -np.inf)
    return best


def _keep_open(state: InputSearch, boxes: Boxes, found: _Bounded) -> tuple[Boxes, _Bounded]:
    still: Mask = ~(boxes.bound > 0)
    if not still.all():
        state.closed = min(state.closed, float(boxes.bound[~still].min()))
    return boxes[still], _select(found, still)


def _select(found: _Bounded, rows: Mask) -> _Bounded:
    return _Bounded(found.coeff[rows], found.constant[rows], found.value[rows], found.scores[rows], found.before[rows])


def _planes(state: InputSearch, found: _Bounded, b: Index, p: Index) -> tuple[Float64, Float64]:
    """(K, R, n), (K, R): the planes of polytope p in box b, less the offset; padding rows are 0 x - inf."""
    target = state.target
    rows = target.index[p]
    constant = np.nextafter(found.constant[b[:, None], rows] - target.offset[p], -np.inf)
    return found.coeff[b[:, None], rows], constant


def _split(state: InputSearch, boxes: Boxes, found: _Bounded) -> Boxes:
    """The parts of every box: halves, or quarters where another gain such as the last would leave it open."""
    short = -boxes.bound > boxes.bound - found.before
    few, _ = _halve(state, boxes[~short], found.scores[~short])
    many, _ = _halve(state, *_halve(state, boxes[short], found.scores[short]))
    return Boxes.join(few, many)


def _halve(state: InputSearch, boxes: Boxes, scores: Float64) -> tuple[Boxes, Float64]:
    """Every box cut in the middle of the coordinate of the highest score that can be cut; the scores of the halves."""
    lower, upper = boxes.lower[:, state.free], boxes.upper[:, state.free]
    middle = lower + 0.5 * (upper - lower)
    can = (lower < middle) & (middle < upper)
    rank = np.where(can, np.nan_to_num(scores), -1.0)
    rank = np.where(can & (rank.max(axis=1, keepdims=True, initial=-1) <= 0), upper - lower, rank)
    whole = np.asarray(can.any(axis=1))
    if not whole.all():
        state.stuck = min(state.stuck, float(boxes.bound[~whole].min()))
        state.left += int((~whole).sum())
    each = np.flatnonzero(whole)
    if not len(each):
        return boxes[:0], scores[:0]
    pick = rank[each].argmax(axis=1)
    at, cut = state.free[pick], middle[each, pick]
    boxes = boxes[each]
    left, right = boxes.upper.copy(), boxes.lower.copy()
    row = np.arange(len(each))
    left[row, at], right[row, at] = cut, cut
    scores = scores[each]
    scores[row, pick] *= 0.5
    first, second = state.log.split(boxes.node, at, cut)
    halves = Boxes.join(
        Boxes(boxes.lower, left, boxes.margins, first), Boxes(right, boxes.upper, boxes.margins, second)
    )
    return halves, np.concatenate([scores, scores])


def _attack(state: InputSearch, boxes: Boxes, found: _Bounded, deadline: float) -> None:
    """Replay of what is unsafe among the centres, the corners where the open planes are lowest, and descents from the
    best of them.
    """
    b, p = np.nonzero(~(boxes.margins > 0))
    coeff, constant = _planes(state, found, b, p)
    center, radius = 0.5 * (boxes.lower + boxes.upper), 0.5 * (boxes.upper - boxes.lower)
    highest = np.argmax(constant + np.einsum("krn,kn->kr", coeff, center[b]), axis=1)
    corner = center[b] - np.sign(coeff[np.arange(len(b)), highest]) * radius[b]
    points = np.concatenate([center, np.clip(corner, boxes.lower[b], boxes.upper[b])])
    _, slack = state.attack.evaluate(points)
    tracks = min(TRACKS, len(boxes) // BOXES_A_TRACK)
    if state.attack.witness is None and tracks >= LEAST_TRACKS:
        starts = points[np.argsort(margins(slack), kind="stable")[:tracks]]
        aims = spread_aims(len(starts), len(state.target.offset), state.steps)
        state.attack.descend(starts, aims, LEAKS[state.steps % len(LEAKS)], deadline)
    state.steps += 1
    state.witness = state.attack.witness
