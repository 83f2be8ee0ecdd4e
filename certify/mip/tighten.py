"""Tighter bounds of the neurons that nonlinear ops read: IBP -> CROWN -> LP -> complete search, per neuron (Tjeng et
al. 2018), as far as it pays.

The knowledge given has IBP and CROWN already. Layer by layer, open neurons get an LP a side, all on one model inside
HiGHS whose objective changes; then, where asked for, a few nodes of LP branch and bound. Every bound is certified from
duals, so the knowledge that comes out is as good as that of CROWN. A layer is left as soon as it stops paying.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from certify.bounding.crown import Knowledge, row_form
from certify.bounding.propagate import exact_starts, propagate, starts, unsettled
from certify.mip import safe
from certify.mip.branch import Tree
from certify.mip.encode import Encoding, Indices, encode
from certify.mip.margin import margin_program
from certify.mip.sparse import Matrices
from certify.property import Float64, Polytope
from certify.solvers.highs import HighsModel
from certify.solvers.program import Budget, Status

# Neurons of a layer that are tried first, the widest; the layer goes on if their intervals shrink by this much.
PROBE = 12
PAYS = 0.03
# Neurons whose duals are certified in one pass.
TOGETHER = 64


@dataclass(frozen=True)
class Effort:
    """seconds: for everything. nodes: LPs of branch and bound for each side of a neuron, 0 for none."""

    seconds: float = math.inf
    nodes: int = 0


def tighten(matrices: Matrices, known: Knowledge, effort: Effort) -> Knowledge:
    """The knowledge (batch 1) with certified tighter boxes; what it does to later layers is propagated."""
    deadline = time.monotonic() + effort.seconds
    graph = matrices.graph
    settled = exact_starts(graph) if known.region.p == 0 else {0}
    for start in starts(graph):
        if start in settled or time.monotonic() >= deadline:
            continue
        box = _layer(matrices, known, start, effort, deadline)
        if box is None:
            continue
        boxes = list(known.boxes)
        shape = (1, *graph.nodes[start].shape)
        boxes[start] = box[0].reshape(shape), box[1].reshape(shape)
        known = propagate(graph, known.region, previous=replace(known, boxes=boxes), deadline=deadline)
    return known


def _layer(
    matrices: Matrices, known: Knowledge, start: int, effort: Effort, deadline: float
) -> tuple[Float64, Float64] | None:
    """Tighter flat bounds of one node, or None where it does not pay."""
    mask = unsettled(known, start)[0]
    neurons = np.flatnonzero(mask)
    if not len(neurons):
        return None
    low, high = (side[0].copy() for side in known.flat(start))
    # The triangle's area says how much a neuron's interval costs.
    neurons = neurons[np.argsort(low[neurons] * high[neurons], kind="stable")]
    units = np.zeros((len(neurons), low.size))
    units[np.arange(len(neurons)), neurons] = 1.0
    encoding = encode(matrices, known, start, units)
    model = HighsModel(encoding.program)
    before = high - low
    for first in (0, *range(PROBE, len(neurons), TOGETHER)):
        some = neurons[first : PROBE if first == 0 else first + TOGETHER]
        if not len(some) or time.monotonic() >= deadline:
            break
        below, above = (_side(encoding, model, some, sign, deadline) for sign in (1, -1))
        low[some], high[some] = np.fmax(low[some], below), np.fmin(high[some], -above)
        if effort.nodes:
            _search(matrices, known, start, some, (low, high), effort.nodes, deadline)
        if first == 0 and np.mean((high - low)[some] / before[some]) > 1 - PAYS:
            break
    return low, high


def _side(encoding: Encoding, model: HighsModel, neurons: Indices, sign: int, deadline: float) -> Float64:
    """Certified lower bounds of sign * x[neurons]; -inf where the LP gave no duals in time."""
    size = math.prod(encoding.matrices.graph.nodes[encoding.node].shape)
    rows = np.zeros((len(neurons), size))
    rows[np.arange(len(neurons)), neurons] = sign
    matrix, offset = encoding.express(rows)
    duals = np.zeros((len(neurons), encoding.program.matrix.shape[0]))
    for k in range(len(neurons)):
        model.set_objective(matrix[k].toarray().ravel(), float(offset[k]))
        found = model.solve(Budget(deadline - time.monotonic()))
        if found.status is Status.OPTIMAL and found.row_dual is not None:
            duals[k] = found.row_dual
        elif time.monotonic() >= deadline:
            break
    # Duals of 0 give a bound, too: every dual does.
    return np.asarray(safe.certified(encoding, row_form(encoding.node, rows[None]), duals[None])[0])


def _search(
    matrices: Matrices,
    known: Knowledge,
    start: int,
    neurons: Indices,
    box: tuple[Float64, Float64],
    nodes: int,
    deadline: float,
) -> None:
    """Raise lower and lower upper bounds towards the exact range; `box` is changed in place."""
    size = box[0].size
    for neuron in neurons:
        for sign in (1.0, -1.0):
            if time.monotonic() >= deadline or not box[0][neuron] < 0 < box[1][neuron]:
                continue
            coeff = np.zeros((1, size))
            coeff[0, neuron] = sign
            row = Polytope(coeff, np.zeros(1), np.zeros(1), np.zeros(1, dtype=bool))
            # Above 0 the neuron is stable: no more is worth knowing.
            found = Tree(margin_program(matrices, known, row, node=start), lambda x: 0.0).run(deadline, nodes)
            if sign > 0:
                box[0][neuron] = max(box[0][neuron], found.lower)
            else:
                box[1][neuron] = min(box[1][neuron], -found.lower)
