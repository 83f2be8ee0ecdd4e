"""Backward passes: lower bounds of linear forms of the network's tensors.

A pass keeps  form >= sum_i A_i x_i + constant - spread - error  for every point of the boxes. At an affine node A_i W
is replaced by its rounded self and error grows by |A| . loss (certify.check.interval). At a unit, positive
coefficients take the line below and negative ones the line above (certify.check.relax.Band). Where a node has several
readers, the sum of what they ask is off by u |sum| |x|, charged sum by sum. A multiplier v leaves a - v (off by
u |a - v| |x|) and adds v l or v u. Each addition to the constant is charged u |constant|. All errors are sums of
non-negative numbers, which in the end grow by 2^-20 for their own rounding.

In a quick pass coefficients are float32 (certify.check.rounding), and slip_n, of float32's u, is charged for them in
place of gamma_n; constants and errors stay float64. |A| . loss is then a sum of float32 numbers, too, which is why
errors grow by 2^-6 in the end, and each of its products may underflow.

Coefficients of a convolution's neurons stay on the windows that they see as long as these are small
(certify.check.patches). A form has rows (R,); `box` (R,) says which of the B boxes each belongs to, None that there is
only one, or one a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from certify.check.affine import Affine, suits
from certify.check.content import Index, Slopes
from certify.check.interval import Bounds
from certify.check.network import Conv, Float64, Linear, Relu, Scale, Sigmoid
from certify.check.patches import Cells, Patch, Rows, filters, one_hot
from certify.check.region import Norm, minimum, spanned
from certify.check.relax import Band, Lines, band, chosen
from certify.check.rounding import LONGEST, Numbers, as_numbers, dot, finite

Mode = Literal["interval", "adaptive", "parallel"]
CHUNK = 1 << 20  # numbers in one array of a pass: more rows go through one after the other


@dataclass(frozen=True, eq=False)
class Multiplier:
    """value (M,) is taken off coefficient (row, place), both (M,), of a tensor."""

    row: Index
    place: Index
    value: Float64

    def and_also(self, other: Multiplier) -> Multiplier:
        """Both: what stands for one coefficient adds up."""
        row, place = np.concatenate([self.row, other.row]), np.concatenate([self.place, other.place])
        return Multiplier(row, place, np.concatenate([self.value, other.value]))


@dataclass(frozen=True, eq=False)
class Form:
    """rows . x_node + constant, known up to error: rows (R, n), constant and error (R,). more: of other nodes.

    rows may be numbers or coefficients.
    """

    node: int
    rows: Numbers | Patch
    constant: Numbers
    error: Numbers
    more: Mapping[int, Numbers] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Choice:
    """How a pass relaxes: the mode, slopes (R or 1 rows) of some neurons, multipliers of some nodes."""

    mode: Mode = "adaptive"
    slopes: Slopes = field(default_factory=dict)
    multipliers: Mapping[int, Multiplier] = field(default_factory=dict)


ADAPTIVE, PARALLEL = Choice(), Choice("parallel")


def neurons(bounds: Bounds, node: int, places: Index, sign: float | Float64, box: Index | None = None) -> Form:
    """sign * x_node[places]: (K,) forms, sign 1 or -1, or (K,). Those of a weighted sum start behind it, with its
    weights as they are.
    """
    arithmetic, nodes = bounds.model.arithmetic, bounds.model.network.nodes
    where, rule, loss = nodes[node], bounds.model.maps[node], bounds.loss[node]
    zero = arithmetic.zeros((len(places),))
    signs = arithmetic.array(np.broadcast_to(np.asarray(sign, dtype=np.float64), (len(places),)))
    op, source = where.op, where.inputs[0] if where.inputs else 0
    rows: Numbers | Patch
    short = arithmetic.coefficients(signs)
    if isinstance(op, Linear) and len(where.shape) == 1 and rule is not None and loss is not None:
        rows = suits(rule.weights, short)[places] * short[:, None]
    elif isinstance(op, Conv) and rule is not None and loss is not None:
        if op.groups > 1 or set(op.dilation) != {1}:
            return Form(node, one_hot(places, short, where.shape).of_boxes(box), zero, zero)
        weight, shapes = suits(rule.weights, short), (nodes[source].shape, where.shape)
        rows = filters(places, short, op, weight, shapes).of_boxes(box)
    else:
        return Form(node, one_hot(places, short, where.shape).dense(), zero, zero)
    constant = zero if rule.bias is None else signs * rule.bias[places]
    lost = loss[0, places] if len(loss) == 1 else loss[np.arange(len(places)) if box is None else box, places]
    return Form(source, rows, constant, arithmetic.wider * lost + arithmetic.tiny * _rows(bounds.floor[node], box))


def lowest(bounds: Bounds, form: Form, box: Index | None, choice: Choice, norm: Norm | None) -> Float64:
    """Lower bounds (R,) of the form."""
    found = _carried(bounds, form, box, choice).lowest(0, norm)
    finite(f"a bound of {bounds.model.network.nodes[form.node].name}", found)
    return found


def beyond(bounds: Bounds, form: Form, box: Index | None, mode: Mode, norm: Norm | None, enough: Float64) -> Float64:
    """Lower bounds (R,) of the form. A row goes no further than to a tensor whose interval puts it over enough (R,)."""
    walk, rows = _Walk(bounds, box, Choice(mode), form), np.arange(len(enough))
    found = np.zeros(len(enough))
    for index in range(form.node, 0, -1):
        if index in bounds.model.sources and walk.waits_for(index):
            found[rows] = walk.lowest(index)
            further = ~(found[rows] > enough[rows])  # NaN goes on, to its end
            if not further.any():
                break
            walk, rows = walk.only(index, further), rows[further]
        walk.step(index)
    else:
        found[rows] = walk.lowest(0, norm)
    finite(f"a bound of {bounds.model.network.nodes[form.node].name}", found)
    return found


def between(bounds: Bounds, form: Form, box: Index | None, norm: Norm | None) -> tuple[Float64, Float64]:
    """(lower, upper) bounds (R,) by one pass: parallel lines leave coefficients that serve both sides."""
    walk = _carried(bounds, form, box, PARALLEL)
    arithmetic = bounds.model.arithmetic
    low, high, error = walk.extremes(0, norm, upper=True)
    lower = arithmetic.floats(walk.below(low, walk.error + error), up=False)
    upper = arithmetic.floats(walk.above(high, walk.error + error), up=True)
    finite(f"a bound of {bounds.model.network.nodes[form.node].name}", lower, upper)
    return lower, upper


def plane(bounds: Bounds, form: Form, box: Index | None, choice: Choice) -> tuple[Numbers, Float64]:
    """form >= a . x + c: a (R, n) of the input's coordinates, c (R,)."""
    walk = _carried(bounds, form, box, choice)
    arithmetic = bounds.model.arithmetic
    constant = arithmetic.floats(walk.below(arithmetic.zeros(walk.constant.shape), walk.error), up=False)
    finite(f"a bound of {bounds.model.network.nodes[form.node].name}", constant)
    return walk.pending(), constant


def planes(bounds: Bounds, unit: Index, place: Index, sign: Float64) -> tuple[Numbers, Float64]:
    """sign z >= a . x + c, adaptive, for neurons (unit, place) over one box: (P, n), (P,)."""
    slopes = bounds.model.arithmetic.zeros((len(unit), bounds.model.network.nodes[0].size))
    constants = np.zeros(len(unit))
    count = max(1, CHUNK // max(node.size for node in bounds.model.network.nodes))
    for u in sorted(set(unit.tolist())):
        mine = np.flatnonzero(unit == u)
        for start in range(0, len(mine), count):
            some = mine[start : start + count]
            form = neurons(bounds, bounds.model.source(u), place[some], sign[some])
            slopes[some], constants[some] = plane(bounds, form, None, ADAPTIVE)
    return slopes, constants


def bounds_of(bounds: Bounds, node: int, box: Index | None) -> tuple[Float64, Float64]:
    """The interval of a node for every row."""
    lower, upper = bounds.interval(node)
    return _rows(lower, box), _rows(upper, box)


def _rows(values: Any, box: Index | None) -> Any:
    return values if box is None or len(values) == 1 else values[box]


def _carried(bounds: Bounds, form: Form, box: Index | None, choice: Choice) -> _Walk:
    walk = _Walk(bounds, box, choice, form)
    for index in range(max([form.node, *form.more, *choice.multipliers]), -1, -1):
        walk.step(index)
    return walk


class _Walk:
    """One pass on its way."""

    def __init__(self, bounds: Bounds, box: Index | None, choice: Choice, form: Form) -> None:
        self.bounds, self.model, self.arithmetic = bounds, bounds.model, bounds.model.arithmetic
        self.box, self.choice = box, choice
        self.asked: dict[int, Numbers | Patch] = {}
        self.constant, self.error = form.constant, form.error
        self.spread = self.arithmetic.zeros(form.constant.shape)
        self.unit_of = {node: number for number, node in enumerate(self.model.units)}
        for node, rows in ((form.node, form.rows), *form.more.items()):
            self._ask(node, rows if isinstance(rows, Patch) else self._rounded(node, rows))

    def pending(self) -> Numbers:
        """The input's coefficients."""
        return as_numbers(self._dense(0))

    def waits_for(self, node: int) -> bool:
        """Whether the form is one of this node alone."""
        return list(self.asked) == [node]

    def only(self, node: int, keep: NDArray[np.bool_]) -> _Walk:
        """Some of the rows (R,) of a pass without slopes or multipliers that waits for this node."""
        if keep.all():
            return self
        box = np.flatnonzero(keep) if self.box is None else self.box[keep]
        form = Form(node, self._dense(node)[keep], self.constant[keep], self.error[keep])
        walk = _Walk(self.bounds, box, self.choice, form)
        walk.spread = self.spread[keep]
        return walk

    def lowest(self, node: int, norm: Norm | None = None) -> Float64:
        """Lower bounds (R,) by the interval of the node that the pass waits for, or by the input set."""
        value, _, error = self.extremes(node, norm, upper=False)
        return self.arithmetic.floats(self.below(value, self.error + error), up=False)

    def extremes(self, node: int, norm: Norm | None, upper: bool) -> tuple[Numbers, Numbers, Numbers]:
        """(least, most, error) of a node's part over its interval, of the input's (0) over the input set; `most` means
        something only with `upper`.
        """
        a, ends, arithmetic = self.asked.get(node), self.bounds.interval(node), self.arithmetic
        if norm is None and isinstance(a, Patch):
            return spanned(arithmetic, a.values, ends, Cells(a, self.box))
        rows = self._dense(node)
        if norm is None:
            return spanned(arithmetic, rows, ends, Rows(self.box))
        box, rows, arithmetic = bounds_of(self.bounds, node, self.box), as_numbers(rows), arithmetic.wide
        least, error = minimum(arithmetic, rows, box, norm)
        if not upper:
            return least, least, error
        most, other = minimum(arithmetic, -rows, box, norm)
        return least, -most, np.maximum(error, other)

    def below(self, least: Numbers, error: Numbers) -> Numbers:
        return self.constant + least - self.spread - self._slack(least, error)

    def above(self, most: Numbers, error: Numbers) -> Numbers:
        return self.constant + most + self.spread + self._slack(most, error)

    def _slack(self, end: Numbers, error: Numbers) -> Numbers:
        sizes: Numbers = np.abs(self.constant) + np.abs(end) + np.abs(self.spread)
        slack: Numbers = error * self.arithmetic.grow + self.arithmetic.gamma(4) * sizes
        return slack

    def _dense(self, node: int) -> Numbers:
        """A node's coefficients (R, n), zeros where nothing is asked of it."""
        a = self.asked.get(node)
        if a is None:
            zeros = self.arithmetic.zeros((len(self.constant), self.model.network.nodes[node].size))
            return self.arithmetic.coefficients(zeros)
        return a.dense() if isinstance(a, Patch) else a

    def step(self, index: int) -> None:
        """From a node's coefficients to those of its operands; the input keeps its own."""
        if index in self.choice.multipliers:
            self.asked[index] = self._lend(index, self._dense(index), self.choice.multipliers[index])
        if not index or index not in self.asked:
            return
        rule, node = self.model.maps[index], self.model.network.nodes[index]
        given = self.asked[index]
        patch = given if isinstance(given, Patch) and self._keeps(index, given) else None
        a = self._dense(index) if patch is None else patch.values
        look = Rows(self.box) if patch is None else Cells(patch, self.box)
        del self.asked[index]
        if rule is None:
            b = self._unit(index, a, look)
            parts: Any = () if b is None else (b if patch is None else replace(patch, values=b, clean=True),)
        else:
            self._affine(index, rule, a, look)
            parts = rule.backward(a) if patch is None else (self._moved(index, rule, patch, look),)
        for operand, part in zip(node.inputs, parts, strict=False):
            if part is not None:
                self._ask(operand, part)

    def _keeps(self, index: int, patch: Patch) -> bool:
        """Whether coefficients on a window stay on one, and that is smaller than the tensor."""
        op = self.model.network.nodes[index].op
        if patch.values.shape[1] > LONGEST:  # padding, too, stands between the blocks of a dot product
            return False
        if isinstance(op, Relu | Sigmoid):
            return self.choice.mode != "interval" and self.unit_of[index] not in self.choice.slopes
        return isinstance(op, Conv | Scale) and patch.small

    def _moved(self, index: int, rule: Affine, patch: Patch, look: Rows | Cells) -> Patch:
        """A patch behind a convolution or a scaling."""
        node = self.model.network.nodes[index]
        weight = suits(rule.weights, patch.values)
        if isinstance(node.op, Scale):
            return replace(patch, values=look.times(weight[None], patch.values))
        assert isinstance(node.op, Conv)
        return patch.through(node.op, weight, self.model.network.nodes[node.inputs[0]].shape)

    def _affine(self, index: int, rule: Affine, a: Numbers, look: Rows | Cells) -> None:
        """What an affine node adds to the constant and to the error."""
        arithmetic, loss = self.arithmetic, self.bounds.loss[index]
        if rule.bias is not None:
            self._add(look.dots(arithmetic.coefficients(rule.bias[None]), a)[0])
        if loss is not None:
            floor = arithmetic.tiny * _rows(self.bounds.floor[index], self.box)
            self.error = self.error + look.charge(np.abs(a), arithmetic.wider * loss) + floor

    def _ask(self, node: int, part: Numbers | Patch) -> None:
        if node not in self.asked:
            self.asked[node] = part
            return
        total = self._dense(node) + (part.dense() if isinstance(part, Patch) else part)
        self.asked[node] = total
        self._charge_rounding(node, total)

    def _rounded(self, node: int, rows: Numbers) -> Numbers:
        """Numbers as coefficients of a node."""
        short = self.arithmetic.coefficients(rows)
        if short.dtype != rows.dtype:
            self._charge_rounding(node, short)
        return short

    def _charge_rounding(self, node: int, rows: Numbers) -> None:
        """Coefficients that are off by u each, or by the least that there is."""
        arithmetic, size = self.arithmetic, self._size(node)
        floor = _rows(arithmetic.tiny * (size.sum(axis=1) + size.shape[1]), self.box)
        self.error = self.error + Rows(self.box).charge(np.abs(rows), arithmetic.slip(1) * size) + floor

    def _add(self, change: Numbers) -> None:
        self.constant = self.constant + change
        self.error = self.error + self.arithmetic.gamma(1) * np.abs(self.constant)

    def _size(self, node: int) -> Numbers:
        size = self.bounds.size[node]
        assert size is not None
        return size

    def _unit(self, index: int, a: Numbers, look: Rows | Cells) -> Numbers | None:
        """Through a ReLU or sigmoid."""
        arithmetic, mode, unit = self.arithmetic, self.choice.mode, self.unit_of[index]
        if mode == "interval":
            value, error = minimum(arithmetic.wide, as_numbers(a), bounds_of(self.bounds, index, self.box))
            self.error = self.error + error
            self._add(value)
            return None
        size, count = self._size(self.model.source(unit)), a.shape[1]
        self.error = self.error + _rows(arithmetic.tiny * (8 * count + size.sum(axis=1)), self.box)
        found = self.bounds.relaxed(unit, mode)[1]
        if unit in self.choice.slopes:
            found, look = self._named(unit), Rows()
        large = np.abs(a)
        if found.half is found.middle:  # one reading for both
            change, spread = look.dots(found.middle, a, large)
        else:
            change, spread = look.dots(found.middle, a)[0], look.dots(found.half, large)[0]
        self._add(change)
        self.spread = self.spread + spread
        self.error = self.error + look.charge(large, found.charge) + arithmetic.gamma(1) * np.abs(self.spread)
        rising = look.times(found.slope, a)
        if found.bend is not None:
            rising += look.times(found.bend, large, out=large)
        return rising

    def _named(self, unit: int) -> Band:
        """The lines of every row, with the slopes chosen for it."""
        source, named = self.model.source(unit), self.choice.slopes[unit]
        default = self.bounds.relaxed(unit, "adaptive")[0]
        below = None if default.below is None else _rows(default.below, self.box)
        sides = (_rows(v, self.box) for v in (default.above_slope, default.above))
        own = Lines(_rows(default.below_slope, self.box), below, *sides)
        ends = bounds_of(self.bounds, source, self.box)
        lines = chosen(self.model.kind(unit), ends, own, named.at, (named.lower, named.upper))
        return band(self.arithmetic, lines, _rows(self._size(source), self.box))

    def _lend(self, index: int, a: Numbers, given: Multiplier) -> Numbers:
        """a z = (a - v) z + v z >= (a - v) z + (v l if v > 0 else v u); several v of one place add up."""
        arithmetic = self.arithmetic
        places, column = np.unique(given.place, return_inverse=True)
        v = np.zeros((len(a), len(places)))
        np.add.at(v, (given.row, column), given.value)
        finite("multipliers", v)
        short = arithmetic.coefficients(arithmetic.array(v))  # off by what it may be: they are a choice
        lower, upper = (side[:, places] for side in bounds_of(self.bounds, index, self.box))
        value, error = minimum(arithmetic.wide, as_numbers(short), (lower, upper))
        rest = a.copy()
        rest[:, places] = a[:, places] - short
        size = _rows(self._size(index), self.box)[:, places]
        lost = arithmetic.slip(1) * dot(as_numbers(np.abs(rest[:, places])), size)
        self.error = self.error + error + lost + arithmetic.tiny * size.sum(axis=1)
        self._add(value)
        return rest
