"""Which input coordinate makes a bound loose: the looseness of every relaxation, shared out over the coordinates.

A linear bound loses at each nonlinear neuron at most |A_i| times the gap between its relaxation and the function. The
gap shrinks with the range of the neuron's input, and that range is, to first order, sum_j |dz_i/dx_j| width_j: its
terms say which coordinate to split. A coordinate's own coefficient in the bound, the usual score, says where the
bound is steep, not where it is wrong: splits by it never end where kinks of the first layer cross thin boxes
(ACAS Xu 5_7 prop_1: 517 boxes instead of more than 40,000).
"""

from __future__ import annotations

from collections.abc import Mapping

from certify.arrays import Array, like_index, namespace
from certify.bounding.crown import Knowledge, relaxation
from certify.ops.base import Relaxation, Slopes
from certify.rules import Op, evaluate, is_affine, linear


def looseness(known: Knowledge, reached: Mapping[int, Array], weight: Array, free: Array) -> Array:
    """(B, F) scores >= 0: what a linear bound loses at nonlinear nodes, shared out over the coordinates free (F,).

    reached: node -> coefficients (B, S, n), as crown.plane gives them. weight: (B, S) >= 0, of the rows.
    """
    graph, xp = known.graph, namespace(weight)
    count, coordinates = known.region.lower.shape[0], free.shape[0]
    spread: dict[int, Array] = {0: _directions(known, free)}
    total = xp.zeros((count, coordinates), dtype=weight.dtype, device=weight.device)
    for index, node in enumerate(graph.nodes):
        if index == 0 or not coordinates:
            continue
        inputs = [spread[i] for i in node.inputs]
        if is_affine(node.op):
            spread[index] = linear(node.op, *inputs)
            continue
        lines = relaxation(known, index, Slopes())
        flat = inputs[0].reshape((coordinates, count, -1))
        spread[index] = (flat * lines.upper_slope[:, 0, :]).reshape(inputs[0].shape)
        if index in reached:
            size = xp.abs(flat)
            lost = _lost(known, index, lines, reached[index], weight)
            lost = lost / xp.clip(xp.sum(size, axis=0), min=1e-300)
            total = total + xp.matrix_transpose(xp.sum(size * lost, axis=-1))
    return total


def _directions(known: Knowledge, free: Array) -> Array:
    """(F B, *input): for each free coordinate and box the vector from the one face to the other."""
    xp, region = namespace(known.region.lower), known.region
    count, size = region.lower.shape
    width = region.upper - region.lower
    unit = xp.eye(size, dtype=width.dtype, device=width.device)[like_index(free, width)]
    return (unit[:, None, :] * width).reshape((free.shape[0] * count, *known.graph.input_shape))


def _lost(known: Knowledge, index: int, lines: Relaxation, a: Array, weight: Array) -> Array:
    """(B, n): the weighted rows' coefficients times the gaps of the lines that they take."""
    xp = namespace(a)
    below, above = gaps(known.graph.nodes[index].op, lines, *known.flat(known.graph.nodes[index].inputs[0]))
    rising = xp.clip(a, min=0)
    return _weigh(weight, rising) * below + _weigh(weight, rising - a) * above


def _weigh(weight: Array, a: Array) -> Array:
    return namespace(a).matmul(weight[:, None, :], a)[:, 0, :]


def gaps(op: Op, lines: Relaxation, lower: Array, upper: Array) -> tuple[Array, Array]:
    """About the largest distance of the lower and of the upper line from the function on [lower, upper], (B, n) each.

    Looked up at both ends, the middle and the point nearest to 0: exact for ReLU.
    """
    xp = namespace(lower)
    below, above = xp.zeros_like(lower), xp.zeros_like(lower)
    nearest = xp.minimum(xp.maximum(xp.zeros_like(lower), lower), upper)
    for z in (lower, upper, (lower + upper) * 0.5, nearest):
        value = evaluate(op, z)
        below = xp.maximum(below, value - (lines.lower_slope * z[:, None] + lines.lower_intercept)[:, 0])
        above = xp.maximum(above, (lines.upper_slope * z[:, None] + lines.upper_intercept)[:, 0] - value)
    return below, above
