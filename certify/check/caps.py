"""Caps: planes over the input above ReLUs, tighter than the chord of a neuron's interval.

Let z <= a x + b on the input set. relu(z) is 0 or z, so for any s at all

    relu(z) <= s x + c,   c = max(max over the input set of -s x, max over the input set of (a - s) x + b).

A form is at least itself less v (s x + c - relu(z)), v >= 0: v more on the ReLU's output, v s less on the input, v c
less in the constant. Sums of K such terms are off by gamma_K.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from certify.check.backward import Form, planes
from certify.check.content import Index, Tree
from certify.check.errors import Rejected
from certify.check.interval import Bounds
from certify.check.network import Relu
from certify.check.region import Norm, minimum
from certify.check.rounding import Numbers


class Caps:
    """The caps of one tree. bounds: of the whole input set, which `norm` cuts from its box."""

    def __init__(self, bounds: Bounds, tree: Tree, norm: Norm | None, place: str) -> None:
        self.bounds, self.tree, self.norm = bounds, tree, norm
        self.entry = np.argsort(tree.cap_entry, kind="stable")
        self.sorted = tree.cap_entry[self.entry]
        pairs = np.stack([tree.cap_unit, tree.cap_place])
        (unit, where), self.own = np.unique(pairs, axis=1, return_inverse=True)
        self.own = self.own.reshape(-1)
        if any(not isinstance(bounds.model.kind(u), Relu) for u in set(unit.tolist())):
            raise Rejected(f"{place}.caps: above a unit that is no ReLU")
        below, least = planes(bounds, unit, where, np.full(len(unit), -1.0))
        self.slope, self.top = -below, -least

    def taken_off(self, form: Form, entries: Index) -> Form:
        """The forms of some entries (R,) less their caps."""
        arithmetic, model = self.bounds.model.arithmetic, self.bounds.model
        more: dict[int, Numbers] = {}
        constant, error = form.constant.copy(), form.error.copy()
        for row, entry in enumerate(entries):
            mine = self.entry[slice(*np.searchsorted(self.sorted, [entry, entry + 1]))]
            if not len(mine):
                continue
            v = arithmetic.array(self.tree.cap_multiplier[mine])
            s, c = self._above(mine)
            node = np.array(model.units)[self.tree.cap_unit[mine]]
            for part in sorted({0, *node.tolist()}):
                if part not in more:
                    more[part] = arithmetic.zeros((len(entries), model.network.nodes[part].size))
            more[0][row] = -(v @ s)
            size = _one(self.bounds.size[0])
            lost = (v @ np.abs(s)) @ size + v @ np.abs(c)
            for part in sorted(set(node.tolist())):
                of = node == part
                where = self.tree.cap_place[mine[of]]
                np.add.at(more[part][row], where, v[of])
                lost = lost + v[of] @ _one(self.bounds.size[part])[where]
            change = v @ c
            constant[row] = constant[row] - change
            error[row] = error[row] + arithmetic.gamma(len(mine) + 1) * (lost + np.abs(constant[row]))
            error[row] = error[row] + arithmetic.tiny * (8 * len(mine)) * (1 + size.sum())
        return replace(form, constant=constant, error=error, more=more)

    def _above(self, mine: Index) -> tuple[Numbers, Numbers]:
        """(s, c) of some caps: relu(z) <= s x + c on the input set. The roundings of s only choose another s."""
        arithmetic, box = self.bounds.model.arithmetic, self.bounds.interval(0)
        a, b = self.slope[self.own[mine]], arithmetic.array(self.top[self.own[mine]])
        s = arithmetic.array(self.tree.cap_share[mine] / 255) * a
        value, error = minimum(arithmetic, s, box, self.norm)
        inactive = error * arithmetic.grow - value + arithmetic.gamma(4) * np.abs(value)
        rest = s - a
        value, error = minimum(arithmetic, rest, box, self.norm)
        error = (error + arithmetic.gamma(1) * (np.abs(rest) @ _one(self.bounds.size[0]))) * arithmetic.grow
        active = b - value + error + arithmetic.gamma(4) * (np.abs(b) + np.abs(value))
        return s, np.maximum(inactive, active)


def _one(size: Numbers | None) -> Numbers:
    """The sizes (1, n) of the one input set's tensor, as (n,)."""
    assert size is not None
    assert len(size) == 1
    row: Numbers = size[0]
    return row
