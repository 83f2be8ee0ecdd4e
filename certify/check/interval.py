"""Intervals of all tensors over B boxes, carried forward outward, and what rounding costs the passes that go back.

Affine node y = W x + b, l <= x <= u: with m = fl((l + u) / 2), r >= max(u - m, m - l) and |x| <= M, y lies within |W|
r of W m + b. The computed sums are off by gamma (|W| M + |b|) at most, gamma for twice the number of terms and 8
roundings more (r's, the bias's and the ends'); underflow adds `tiny` a product; weights and biases that are not exact
weight_error |W| M + bias_error. For quick passes m, r, W and the sums are float32, too, r and |W| rounded upward, W to
nearest, which is one rounding more; gamma is then of float32's u.

A backward pass turns coefficients A of y into A' = fl(A W), and *takes these as its choice*. What they miss is |(A W -
A') x| <= gamma |A| |W| M, gamma for the terms of A W. So `loss` = gamma |W| M + gamma |b| + weight_error |W| M +
bias_error, a vector (n,) computed once, is what a pass loses per unit of |A|, the rounding of A b included: one dot
product a node in place of a second matrix product. Where weights are rounded to float32 for it, that is one of the 8
roundings that gamma has in reserve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from certify.check.affine import Affine, affine
from certify.check.errors import Rejected
from certify.check.network import Float64, Maximum, Network, Node, Relu, Sigmoid, Weighted
from certify.check.relax import Band, Lines, adapted, band, image, lines
from certify.check.rounding import LONGEST, SMALL, Arithmetic, Numbers, as_numbers, chain, finite


@dataclass(frozen=True, eq=False)
class Model:
    """A network ready for computing: maps[i] is None for the input and for units; units and their sources are nodes.

    arithmetic: of intervals and passes; first: the first unit's node, or the number of nodes.
    """

    network: Network
    arithmetic: Arithmetic
    maps: tuple[Affine | None, ...]
    units: tuple[int, ...]
    sources: tuple[int, ...]
    first: int

    def kind(self, unit: int) -> Relu | Sigmoid:
        op = self.network.nodes[self.units[unit]].op
        assert isinstance(op, Relu | Sigmoid)
        return op

    def source(self, unit: int) -> int:
        """The node that a unit reads, or the input for -1."""
        return self.sources[unit] if unit >= 0 else 0


def model_of(network: Network, arithmetic: Arithmetic) -> Model:
    """`arithmetic` is made wide where sums are too long for a quick pass, or weights no normal float32."""
    nodes, units = network.nodes, network.units
    if arithmetic.quick and not all(map(_is_quick, nodes)):
        arithmetic = arithmetic.wide
    maps = tuple(
        None if not i or isinstance(node.op, Relu | Sigmoid) else affine(network, node, arithmetic)
        for i, node in enumerate(nodes)
    )
    if arithmetic.quick and any(max(rule.terms, rule.back) > LONGEST for rule in maps if rule is not None):
        arithmetic = arithmetic.wide
    sources = tuple(nodes[u].inputs[0] for u in units)
    return Model(network, arithmetic, maps, units, sources, min(units, default=len(nodes)))


def _is_quick(node: Node) -> bool:
    op = node.op
    constants = [c for c in (op.weight, op.bias) if c is not None] if isinstance(op, Weighted) else []
    sizes = [np.abs(c[c != 0]) for c in constants]
    return node.size <= LONGEST and all(((s >= SMALL) & (s < 1 / SMALL)).all() for s in sizes)


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of B boxes: lower[i], upper[i] (B, n_i) of node i, None where not yet known.

    Nodes before `current` are carried forward, from all that is known of earlier ones. size[i]: (B, n_i) >= |x_i|.
    loss[i], floor[i]: (B, n_i) and (B,), what a backward pass loses at an affine node per unit of coefficient, and of
    products that may underflow. A row may stand for all boxes. `ready` remembers lines and bands.
    """

    model: Model
    lower: tuple[Float64 | None, ...]
    upper: tuple[Float64 | None, ...]
    size: tuple[Numbers | None, ...]
    loss: tuple[Numbers | None, ...]
    floor: tuple[Any, ...]
    current: int
    ready: dict[tuple[int, str], tuple[Lines, Band]]

    def interval(self, node: int) -> tuple[Float64, Float64]:
        lower, upper = self.lower[node], self.upper[node]
        assert lower is not None
        assert upper is not None
        return lower, upper

    def relaxed(self, unit: int, mode: Literal["adaptive", "parallel"]) -> tuple[Lines, Band]:
        """The lines of a unit over its present interval, and what a pass makes of them."""
        if (unit, mode) not in self.ready:
            source = self.model.source(unit)
            size = self.size[source]
            assert size is not None
            kind, ends = self.model.kind(unit), self.interval(source)
            if mode == "parallel":
                found = lines(kind, *ends)
            else:
                found = adapted(kind, *ends, self.relaxed(unit, "parallel")[0])
            self.ready[unit, mode] = found, band(self.model.arithmetic, found, size)
        return self.ready[unit, mode]


def over(model: Model, lower: Float64, upper: Float64) -> Bounds:
    """The bounds of B boxes (B, n) of the input, nothing else being known."""
    finite("the input set", lower, upper)
    if not (lower <= upper).all():
        raise Rejected("the input set: empty, lower > upper")
    none = (None,) * (len(model.network.nodes) - 1)
    size = model.arithmetic.array(np.maximum(np.abs(lower), np.abs(upper)))
    return Bounds(model, (lower, *none), (upper, *none), (size, *none), (None, *none), (0, *none), 1, {})


def row(bounds: Bounds, number: int) -> Bounds:
    """The bounds of one of the boxes."""

    def of(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        whole = (isinstance(a, np.ndarray) and len(a) > 1 for a in arrays)
        return tuple(a[number : number + 1] if many else a for a, many in zip(arrays, whole, strict=True))

    ends = of(bounds.lower), of(bounds.upper)
    return Bounds(bounds.model, *ends, of(bounds.size), of(bounds.loss), of(bounds.floor), bounds.current, {})


def forward(bounds: Bounds, last: int | None = None) -> Bounds:
    """Intervals carried forward up to node `last` (None: to the end), intersected with what is known."""
    nodes = bounds.model.network.nodes
    end = len(nodes) if last is None else last + 1
    if bounds.current >= end:
        return bounds
    walk = _Walk(bounds)
    for index in range(bounds.current, end):
        walk.carry(index)
    return walk.found(end)


def sharpened(bounds: Bounds, node: int, lower: Float64, upper: Float64) -> Bounds:
    """The same with a better interval (B, n) for a node; later nodes wait for `forward`."""
    place = bounds.model.network.nodes[node].name
    finite(place, lower, upper)
    if not (lower <= upper).all():
        raise Rejected(f"{place}: bounds that contradict each other")
    walk = _Walk(bounds)
    walk.put(node, lower, upper)
    return walk.found(min(bounds.current, node + 1))


class _Walk:
    """Lists on the way to new Bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self.old, self.model = bounds, bounds.model
        self.lower, self.upper, self.size = list(bounds.lower), list(bounds.upper), list(bounds.size)
        self.loss, self.floor = list(bounds.loss), list(bounds.floor)
        self.changed: set[int] = set()

    def found(self, current: int) -> Bounds:
        old = self.old
        ready = {k: v for k, v in old.ready.items() if self.model.source(k[0]) not in self.changed}
        ends, size = (tuple(self.lower), tuple(self.upper)), tuple(self.size)
        return Bounds(old.model, *ends, size, tuple(self.loss), tuple(self.floor), current, ready)

    def put(self, index: int, lower: Float64, upper: Float64) -> None:
        self.lower[index], self.upper[index] = lower, upper
        self.size[index] = self.model.arithmetic.array(np.maximum(np.abs(lower), np.abs(upper)))
        self.changed.add(index)

    def carry(self, index: int) -> None:
        """One node's interval from its operands', within the old one."""
        node = self.model.network.nodes[index]
        ends = [(self.lower[i], self.upper[i]) for i in node.inputs]
        if isinstance(node.op, Relu | Sigmoid):
            lower, upper = image(node.op, *ends[0])  # type: ignore[arg-type]
        else:
            lower, upper = self._affine(index, ends)
        if isinstance(node.op, Maximum):
            (a, c), (b, d), _ = ends
            lower, upper = np.maximum(lower, np.maximum(a, b)), np.minimum(upper, np.maximum(c, d))  # type: ignore[arg-type]
        known = self.old.lower[index], self.old.upper[index]
        if known[0] is not None and known[1] is not None:
            lower, upper = np.maximum(lower, known[0]), np.minimum(upper, known[1])
        finite(node.name, lower, upper)
        if not (lower <= upper).all():
            raise Rejected(f"{node.name}: bounds that contradict each other")
        if known[0] is None or not (np.array_equal(lower, known[0]) and np.array_equal(upper, known[1])):  # type: ignore[arg-type]
            self.put(index, lower, upper)

    def _affine(self, index: int, ends: Sequence[tuple[Any, Any]]) -> tuple[Float64, Float64]:
        """The interval of an affine node; its `loss` and `floor` on the way."""
        arithmetic, rule = self.model.arithmetic, self.model.maps[index]
        node = self.model.network.nodes[index]
        assert rule is not None
        if not rule.terms:  # nothing is computed
            self.loss[index], self.floor[index] = None, 0
            sides = (rule.forward(*(arithmetic.array(e[k]) for e in ends)) for k in (0, 1))
            return tuple(arithmetic.floats(side, up=False) for side in sides)  # type: ignore[return-value]
        half, slack = arithmetic.number(0.5), arithmetic.number(1.0) + arithmetic.gamma(1)
        low, high = ([arithmetic.array(e[k]) for e in ends] for k in (0, 1))
        short = [arithmetic.coefficients(a * half + b * half) for a, b in zip(low, high, strict=True)]
        middle = map(as_numbers, short)
        radius = [np.maximum(b - m, m - a) * slack for a, m, b in zip(low, middle, high, strict=True)]
        value, spread = (
            as_numbers(v) for v in (rule.forward(*short), rule.magnitude(*map(arithmetic.roughly, radius)))
        )
        if rule.bias is not None:
            value = value + rule.bias
        sizes = [self.size[i] for i in node.inputs]
        large = arithmetic.above(rule.magnitude, *(s for s in sizes if s is not None))
        inexact = arithmetic.number(rule.weight_error) * slack
        spread = spread + (arithmetic.slip(2 * rule.terms + 8) + inexact) * large
        loss = (arithmetic.gamma(rule.back) + inexact) * large
        if rule.bias is not None:
            spread = spread + arithmetic.gamma(8) * np.abs(rule.bias)
            loss = loss + arithmetic.gamma(chain(node.size)) * np.abs(rule.bias)
        if rule.bias_error is not None:
            wrong = arithmetic.array(rule.bias_error) * slack
            spread, loss = spread + wrong, loss + wrong
        underflow = arithmetic.tiny * (8 * rule.terms + 64)
        spread, loss = spread + underflow, loss + underflow
        self.loss[index] = loss
        products = 8 * max(rule.terms, rule.back) + 64
        self.floor[index] = products * (sum(s.sum(axis=1) for s in sizes if s is not None) + node.size)
        return arithmetic.floats(value - spread, up=False), arithmetic.floats(value + spread, up=True)
