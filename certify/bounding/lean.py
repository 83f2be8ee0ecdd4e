"""The fewest neurons that a proof must bound by CROWN, by an estimate: what is not bounded need not be checked.

A neuron that keeps its interval [l, u] from the layer before instead of CROWN's [l', u'] loosens its ReLU's upper
line: the intercept -l u / (u - l) rises from that of [l', u']. A row whose pass met the ReLU with coefficient A loses
about |A| times the difference. Neurons are left out as long as no row has lost its margin, those first that cost the
rows least of it. Slopes, and that neurons behind get looser too, are forgotten; that not all intercepts can be lost at
once makes up for it. Nothing rests on this: the checker bounds what is left, and what it rejects is proved whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from certify.arrays import Array, to_numpy
from certify.bounding.crown import Knowledge
from certify.certificate.write import units
from certify.ops.relu import Relu
from certify.property import Float64

# Of the margin that may be given up. WK17a, 476 images: 470 of 471 are accepted, 14 no longer hold for float32 (10 with
# all neurons, 20 with all of the margin).
SPENT = 0.7
# With more layers of units, what looser ones do to those behind is no longer small: all three tried were rejected.
LAYERS = 3

Index = np.ndarray[tuple[int], np.dtype[np.int64]]


def fewest(
    rough: Knowledge, known: Knowledge, reached: Mapping[int, Array], margins: Float64
) -> list[dict[int, Index]]:
    """For each of B cases: unit -> the places to bound. Empty where nothing is estimated: with a unit that is no ReLU,
    or with too many layers.

    rough, known: the intervals before and after CROWN. reached: nonlinear node -> the rows' coefficients (B, S, n) of
    its output. margins: (B, S), inf for rows that prove nothing.
    """
    graph, losses, open_ = known.graph, [], []
    numbers = units(graph)
    if len(numbers) > LAYERS or not all(isinstance(graph.nodes[node].op, Relu) for node in numbers):
        return []
    for node in numbers:
        source = graph.nodes[node].inputs[0]
        before, after = (_intercept(*map(to_numpy, k.flat(source))) for k in (rough, known))
        a = to_numpy(reached[node]) if node in reached else np.zeros((*margins.shape, before.shape[1]))
        losses.append(np.abs(a) * np.maximum(before - after, 0.0)[:, None, :])
        open_.append(before > 0)
    edges = np.cumsum([0, *(side.shape[1] for side in open_)])
    found = []
    for case, margin in enumerate(margins):
        places = np.flatnonzero(np.concatenate([side[case] for side in open_]))
        share = np.concatenate([loss[case] for loss in losses], axis=1)[:, places] / margin[:, None]
        order = np.argsort(share.max(axis=0), kind="stable")
        spent = np.cumsum(share[:, order], axis=1).max(axis=0)
        kept = np.sort(places[order[~(spent < SPENT)]])
        parts = np.split(kept, np.searchsorted(kept, edges[1:-1]))
        named = zip(numbers.values(), parts, edges, strict=False)
        found.append({unit: part - edge for unit, part, edge in named if len(part)})
    return found


def _intercept(lower: Float64, upper: Float64) -> Float64:
    """-l u / (u - l) where l < 0 < u, else 0."""
    crosses = (lower < 0) & (upper > 0)
    return np.where(crosses, -lower * upper / np.where(crosses, upper - lower, 1.0), 0.0)
