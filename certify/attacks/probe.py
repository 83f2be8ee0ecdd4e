"""A short attack in numpy: samples, corners, a few descents. Importing torch would take longer than all of it.

It proposes only: what comes near to unsafe goes to the replayer, which decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from certify.arrays import Array, like, namespace, to_numpy
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


@dataclass
class Descents:
    """Candidates and descents in one box of one case; `replay` judges what comes near to unsafe.

    graph: float64; sample: an array of its library. lower, upper: (n,), the box.
    """

    graph: Graph
    sample: Array
    target: Target
    lower: Float64
    upper: Float64
    replay: Callable[[Float64], Witness | None]
    witness: Witness | None = None
    steps: int = 0

    def evaluate(self, x: Float64) -> tuple[list[Array], Float64]:
        """Every node's values at x (K, n), and the slack (K, P, R) of every row; near misses are replayed."""
        values = self.graph.evaluate(like(x, self.sample).reshape((len(x), *self.graph.input_shape)))
        y = to_numpy(values[-1]).reshape(len(x), -1)
        slack = self.target.slack(y @ self.target.rows.T)
        margin = np.nan_to_num(margins(slack), nan=np.inf)
        near = NEAR * (1 + np.abs(y).max(axis=1))
        order = np.argsort(margin)[:REPLAYS]
        order = order[margin[order] <= near[order]]
        if self.witness is None and len(order):
            self.witness = self.replay(x[order])
        return values, slack

    def draw(self, count: int, random: np.random.Generator) -> Float64:
        """Random points and random corners by turns; the lowest margins first."""
        share = random.random((count, len(self.lower)))
        share[1::2] = share[1::2] < 0.5
        x = self.lower + share * (self.upper - self.lower)
        chunk = max(1, CHUNK_NUMBERS // sum(math.prod(node.shape) for node in self.graph.nodes))
        found = [margins(self.evaluate(x[first : first + chunk])[1]) for first in range(0, count, chunk)]
        ranked: Float64 = x[np.argsort(np.concatenate(found), kind="stable")]
        return ranked

    def descend(self, x: Float64, aims: Index, leak: float, deadline: float) -> None:
        """Signed steps of shrinking size against the gradient (PGD, Madry et al. 2018), all tracks x (K, n) at once.

        aims: (K,), the polytope that a track is after, -1 for the nearest. leak: the gradient's least slope at ReLUs.
        """
        ratio = DECAY ** (1 / max(STEPS - 1, 1))
        for step in range(STEPS):
            values, slack = self.evaluate(x)
            if self.witness is not None or time.monotonic() >= deadline:
                return
            rows = pull_rows(self.target, slack, aims)
            gradient = to_numpy(gradients(self.graph, values, like(rows, self.sample), leak))
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
    low, high = case.inputs.inner_lower.ravel(), case.inputs.inner_upper.ravel()
    low, high = np.minimum(low, high), np.maximum(low, high)
    center = 0.5 * low + 0.5 * high
    first = replayer.replay(center, case)
    if first.witness is not None or any(len(p.offset) == 0 for p in case.unsafe):
        return AttackResult(first.witness, first.margin, 0)
    best = [first.margin]

    def replay(points: Float64) -> Witness | None:
        replays = replayer.replay_batch(list(points), [case] * len(points))
        best.extend(r.margin for r in replays)
        return next((r.witness for r in replays if r.witness is not None), None)

    state = Descents(graph, np.zeros(1), Target.of(case), low, high, replay)
    passes = int(PRODUCTS / max(1, products(graph)))
    tracks = int(np.clip(passes // (3 * STEPS * len(LEAKS)), 1, TRACKS))
    few = (high > low).sum() <= FEW_COORDINATES and passes >= 4 * TRACKS
    with np.errstate(all="ignore"):
        starts = state.draw(
            min(SAMPLES, passes // 4) if few else tracks * len(LEAKS), np.random.default_rng([40, seed])
        )
        starts = np.concatenate([center[None], starts])
        for number, leak in enumerate(LEAKS):
            if state.witness is None and time.monotonic() < deadline:
                x = starts[number :: len(LEAKS)][:tracks]
                state.descend(x, spread_aims(len(x), len(case.unsafe), number), leak, deadline)
    return AttackResult(state.witness, min(best), state.steps)


def spread_aims(tracks: int, polytopes: int, turn: int) -> Index:
    """Every second track is after the nearest polytope (-1), the others after one of their own (Gowal et al. 2019)."""
    number = np.arange(tracks) + tracks * turn
    return np.where(number % 2 == 0, -1, number // 2 % polytopes)


def margins(slack: Float64) -> Float64:
    """(K,): the margins of slacks (K, P, R)."""
    lowest: Float64 = slack.max(axis=2).min(axis=1)
    return lowest


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


def gradients(graph: Graph, values: list[Array], rows: Array, leak: float = 0.0) -> Array:
    """(K, n): the gradients of rows (K, m) . f at the points whose values at every node are given.

    Slopes below `leak` count as that (certify.attacks.surrogate).
    """
    count, xp = rows.shape[0], namespace(rows)
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
            parts = (a * xp.clip(relax(node.op, z, z, Slopes()).upper_slope, min=leak),)
        for i, part in zip(node.inputs, parts, strict=True):
            part = part.reshape((count, -1))
            pending[i] = pending[i] + part if i in pending else part
    return pending.get(0, xp.zeros_like(values[0].reshape((count, -1))))
