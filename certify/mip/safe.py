"""What an LP's duals prove: our own backward pass, in float64 with rounding, along the multipliers that they name.

The dual of the equation z = expression is the coefficient that a backward pass carries from z to what lies before
(Salman et al. 2019: LP duality and slopes are the same thing). So duals become the slopes of relaxations and, where a
coefficient is none that a slope can give, multipliers of z's own box. Any duals, however wrong, give a valid bound
(Neumaier & Shcherbina 2004); optimal ones attain the LP's optimum up to rounding. How the program was encoded, scaled
and merged, and what the solver made of it, does not enter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from certify.arrays import Array
from certify.bounding.crown import Form, Knowledge, backward, relaxation
from certify.mip.encode import Cut, Encoding
from certify.ops.base import Slopes
from certify.ops.relu import Relu
from certify.property import Float64
from certify.rules import is_affine, transpose

STEEPEST = 0.25  # of the sigmoid
TINY = 1e-12  # coefficients below are not divided by; relative to the largest


@dataclass(frozen=True, eq=False)
class Steering:
    """Slopes and multipliers for certify.bounding.crown.backward, arrays (B, S, n)."""

    slopes: dict[int, Slopes]
    multipliers: dict[int, Array]


def certified(encoding: Encoding, form: Form, duals: Float64, known: Knowledge | None = None) -> Float64:
    """Lower bounds (B, S) of a form over encoding.node, whatever duals (B, S, rows) are; +-inf and NaN count as 0.

    known: another knowledge than the encoding's, of B subproblems of its region.
    """
    known = known or encoding.known
    assert known.lines is None, "ready-made relaxations take no slopes"
    duals = np.nan_to_num(duals, nan=0.0, posinf=0.0, neginf=0.0)
    steering = steer(encoding, known, form, duals)
    value = backward(known, form, slopes=steering.slopes, multipliers=steering.multipliers, sharp=True)
    return np.where(np.isnan(value), -np.inf, value)


def steer(encoding: Encoding, known: Knowledge, form: Form, duals: Float64) -> Steering:
    """The slopes and multipliers under which a backward pass of the form carries the duals."""
    walk = _Walk(known, duals, encoding.cuts)
    graph, pending = known.graph, dict(form.coeff)
    count, specs = form.constant.shape
    for index in range(max(pending), 0, -1):
        a = pending.pop(index, None)
        a = walk.arrive(index, a)
        if a is None:
            continue
        node = graph.nodes[index]
        if not is_affine(node.op):
            walk.wait(index, a)
            continue
        shapes = tuple(graph.nodes[i].shape for i in node.inputs)
        for i, part in zip(
            node.inputs, transpose(node.op, a.reshape((count * specs, *node.shape)), shapes), strict=True
        ):
            part = part.reshape((count, specs, -1))
            pending[i] = pending[i] + part if i in pending else part
    walk.arrive(0, None)
    return Steering(walk.slopes, walk.multipliers)


@dataclass
class _Walk:
    """Nonlinear nodes wait with their coefficients until the walk reaches the node that they read."""

    known: Knowledge
    duals: Float64
    cuts: tuple[Cut, ...]
    slopes: dict[int, Slopes] = field(default_factory=dict)
    multipliers: dict[int, Array] = field(default_factory=dict)
    waiting: dict[int, list[tuple[int, Array]]] = field(default_factory=dict)

    def wait(self, index: int, a: Array) -> None:
        self.waiting.setdefault(self.known.graph.nodes[index].inputs[0], []).append((index, a))

    def arrive(self, source: int, a: Array | None) -> Array | None:
        """What goes on backward from a node: `a` from its affine readers, and what its nonlinear readers hand back.

        The multiplier takes what relaxations give and the duals do not want.
        """
        readers = self.waiting.pop(source, [])
        if not readers:
            return a
        given = np.zeros_like(readers[0][1]) if a is None else a
        wanted = given
        cuts = {cut.node: cut for cut in self.cuts if cut.source == source}
        last = next((c for c in cuts.values() if c.defines), None)
        # The reader whose equation defines the source is left with what the others do not take.
        for index, coeff in sorted(readers, key=lambda r: last is not None and r[0] == last.node):
            cut = cuts.get(index)
            if cut is None:
                part = self._through(index, coeff, None)
                given, wanted = given + part, wanted + part
                continue
            target = np.full_like(coeff, np.nan)
            target[..., cut.neurons] = self.duals[..., cut.rows] * cut.scales
            if cut.defines:
                target = target - wanted
            part = self._through(index, coeff, target)
            given = given + part
            wanted = wanted + np.where(np.isnan(target), part, target)
        if source:
            self.multipliers[source] = given - wanted
        return wanted

    def _through(self, index: int, a: Array, target: Array | None) -> Array:
        """Coefficients behind a nonlinear node, with slopes that come as near to the target as they can; NaN: free."""
        if target is not None:
            small = np.abs(a) <= TINY * np.max(np.abs(a), axis=-1, keepdims=True, initial=0.0)
            default = relaxation(self.known, index, Slopes()).lower_slope
            ratio = np.where(small | np.isnan(target), default, target / np.where(small, 1.0, a))
            if isinstance(self.known.graph.nodes[index].op, Relu):
                self.slopes[index] = Slopes(np.clip(np.where(a > 0, ratio, default), 0.0, 1.0))
            else:
                slope = np.clip(ratio, 0.0, STEEPEST)
                self.slopes[index] = Slopes(slope, slope)
        lines = relaxation(self.known, index, self.slopes.get(index, Slopes()))
        positive = np.clip(a, 0, None)
        return positive * lines.lower_slope + (a - positive) * lines.upper_slope
