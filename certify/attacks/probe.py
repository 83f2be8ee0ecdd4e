"""A short attack in numpy: samples, corners, a few descents. Importing torch would take longer than all of it.

It proposes only: what comes near to unsafe goes to the replayer, which decides.
"""

from __future__ import annotations

import math
import time

import numpy as np

from certify.arrays import Array
from certify.attacks.pgd import AttackResult
from certify.attacks.replay import Replayer
from certify.bounding.target import Index, Target
from certify.graph import Graph
from certify.ops.base import Slopes
from certify.property import Box, Case, Float64
from certify.rules import is_affine, relax, terms, transpose
from certify.verdict import Witness

PRODUCTS = 4e8  # multiply-adds that an attack may take, about 0.1 s of one core
SAMPLES = 2048  # random points and corners, where few coordinates vary
FEW_COORDINATES = 20
TRACKS = 24
STEPS = 20
LEAKS = (0.0, 0.003, 0.0003)  # gradient slopes of inactive ReLUs, a round each: a plain gradient is often 0
FIRST_STEP, DECAY = 0.25, 0.02  # of the set's width; last step over first
NEAR = 1e-4  # relative to the outputs: candidates this close to unsafe are replayed
REPLAYS = 4  # candidates a time
CHUNK_NUMBERS = 1 << 22  # of the arrays of one evaluation


def products(graph: Graph) -> int:
    """Multiply-adds of one evaluation of the network, about."""
    total = 0
    for node in graph.nodes[1:]:
        if is_affine(node.op):
            total += math.prod(node.shape) * terms(node.op, tuple(graph.nodes[i].shape for i in node.inputs))
    return total


class _Probe:
    """One attack on the box of one case; `best` is the smallest margin that onnxruntime showed."""

    def __init__(self, graph: Graph, replayer: Replayer, case: Case, seed: int) -> None:
        assert isinstance(case.inputs, Box)
        self.graph, self.replayer, self.case = graph, replayer, case
        low, high = case.inputs.inner_lower.ravel(), case.inputs.inner_upper.ravel()
        self.lower, self.upper = np.minimum(low, high), np.maximum(low, high)
        self.target = Target.of(case)
        self.random = np.random.default_rng([40, seed])
        self.steps = 0
        self.best = math.inf
        self.witness: Witness | None = None

    def evaluate(self, x: Float64) -> tuple[list[Array], Float64]:
        """Every node's values at x (K, n), and the slack (K, P, R) of every row; near misses are replayed."""
        values = self.graph.evaluate(x.reshape((len(x), *self.graph.input_shape)))
        y = values[-1].reshape(len(x), -1)
        slack = self.target.slack(y @ self.target.rows.T)
        self.consider(x, y, slack.max(axis=2).min(axis=1))
        return values, slack

    def consider(self, x: Float64, y: Float64, margin: Float64) -> None:
        """Replay the lowest margins, if they are near enough to 0."""
        near = NEAR * (1 + np.abs(y).max(axis=1))
        order = np.argsort(np.nan_to_num(margin, nan=np.inf))[:REPLAYS]
        order = order[margin[order] <= near[order]]
        if self.witness is None and len(order):
            for replay in self.replayer.replay_batch(list(x[order]), [self.case] * len(order)):
                self.best = min(self.best, replay.margin)
                self.witness = self.witness or replay.witness

    def sample(self, count: int) -> Float64:
        """Random points and random corners by turns; the lowest margins first."""
        share = self.random.random((count, len(self.lower)))
        share[1::2] = share[1::2] < 0.5
        x = self.lower + share * (self.upper - self.lower)
        chunk = max(1, CHUNK_NUMBERS // sum(math.prod(node.shape) for node in self.graph.nodes))
        margins = []
        for first in range(0, count, chunk):
            _, slack = self.evaluate(x[first : first + chunk])
            margins.append(slack.max(axis=2).min(axis=1))
        ranked: Float64 = x[np.argsort(np.concatenate(margins), kind="stable")]
        return ranked

    def descend(self, x: Float64, aims: Index, leak: float, deadline: float) -> None:
        """Signed steps of shrinking size against the gradient (PGD, Madry et al. 2018), all tracks at once.

        aims: (K,), the polytope that a track is after, -1 for the nearest.
        """
        ratio = DECAY ** (1 / max(STEPS - 1, 1))
        for step in range(STEPS):
            values, slack = self.evaluate(x)
            if self.witness is not None or time.monotonic() >= deadline:
                return
            rows = pull_rows(self.target, slack, aims)
            gradient = gradients(self.graph, values, rows, leak)
            self.steps += len(x)
            size = FIRST_STEP * ratio**step * (self.upper - self.lower)
            x = np.clip(x - size * np.sign(np.nan_to_num(gradient)), self.lower, self.upper)
        self.evaluate(x)


def probe(graph: Graph, replayer: Replayer, case: Case, *, seed: int, deadline: float) -> AttackResult:
    """Search the box of one case for an unsafe input, with some 1e8 multiply-adds; onnxruntime decides.

    graph: float64, numpy. deadline: on time.monotonic()'s clock. Balls are left to certify.attacks.pgd.
    """
    if not case.unsafe or not isinstance(case.inputs, Box):
        return AttackResult(None, math.inf, 0)
    center = 0.5 * case.inputs.inner_lower.ravel() + 0.5 * case.inputs.inner_upper.ravel()
    first = replayer.replay(center, case)
    if first.witness is not None or any(len(p.offset) == 0 for p in case.unsafe):
        return AttackResult(first.witness, first.margin, 0)
    state = _Probe(graph, replayer, case, seed)
    state.best = first.margin
    passes = int(PRODUCTS / max(1, products(graph)))
    tracks = int(np.clip(passes // (3 * STEPS * len(LEAKS)), 1, TRACKS))
    few = (state.upper > state.lower).sum() <= FEW_COORDINATES and passes >= 4 * TRACKS
    with np.errstate(all="ignore"):
        starts = state.sample(min(SAMPLES, passes // 4) if few else tracks * len(LEAKS))
        starts = np.concatenate([center[None], starts])
        for number, leak in enumerate(LEAKS):
            if state.witness is None and time.monotonic() < deadline:
                x = starts[number :: len(LEAKS)][:tracks]
                # Every second track is after one polytope of its own (Gowal et al. 2019).
                aims = np.arange(len(x)) + len(x) * number
                state.descend(x, np.where(aims % 2 == 0, -1, aims // 2 % len(case.unsafe)), leak, deadline)
    return AttackResult(state.witness, state.best, state.steps)


def pull_rows(target: Target, slack: Float64, aims: Index) -> Float64:
    """(K, m): what of the outputs to lower, from the slack (K, P, R) of each track.

    Of the polytope aimed at (-1: the nearest) the largest row, or, for every second pair of tracks, the sum of the rows
    that do not hold.
    """
    each = np.arange(len(slack))
    aims = np.where(aims < 0, slack.max(axis=2).argmin(axis=1), aims)
    mine = slack[each, aims]
    largest = np.arange(mine.shape[1]) == mine.argmax(axis=1)[:, None]
    weight = np.where(each[:, None] % 4 >= 2, (mine > 0) | largest, largest)
    rows: Float64 = np.einsum("kr,krm->km", weight.astype(np.float64), target.rows[target.index[aims]])
    return rows


def gradients(graph: Graph, values: list[Array], rows: Float64, leak: float = 0.0) -> Float64:
    """(K, n): the gradients of rows (K, m) . f at the points whose values at every node are given.

    Slopes below `leak` count as that (certify.attacks.surrogate).
    """
    count = len(rows)
    pending: dict[int, Array] = {graph.output: rows}
    for index in range(graph.output, 0, -1):
        a = pending.pop(index, None)
        if a is None:
            continue
        node = graph.nodes[index]
        a = a.reshape((count, *node.shape))
        parts: tuple[Array, ...]
        if is_affine(node.op):
            parts = transpose(node.op, a, tuple(graph.nodes[i].shape for i in node.inputs))
        else:
            z = values[node.inputs[0]]
            parts = (a * np.maximum(relax(node.op, z, z, Slopes()).upper_slope, leak),)
        for i, part in zip(node.inputs, parts, strict=True):
            part = part.reshape((count, -1))
            pending[i] = pending[i] + part if i in pending else part
    gradient: Float64 = pending.get(0, np.zeros((count, math.prod(graph.input_shape))))
    return gradient
