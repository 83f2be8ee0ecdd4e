"""Laws of the checker's engine, each a function that asserts: tests run them, and mutants of the engine must break
them.

What is compared with are exact rationals (tests/support/exact.py) and numbers worked by hand.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import check_cases
import numpy as np
from check_cases import ball, box, judge, network_of, tree
from exact import sigmoid, values
from random_nets import boxes_for, random_flat, random_image, relu_mlp, samples

from certify.check import relax
from certify.check.affine import Window
from certify.check.backward import ADAPTIVE, PARALLEL, Choice, Form, Multiplier, between, beyond, lowest, neurons, plane
from certify.check.caps import Caps
from certify.check.checker import Manner, _jobs, judge_all
from certify.check.content import Cases, Close, Crown, Polytope, Proof, Refine, UnitSlopes
from certify.check.errors import Rejected
from certify.check.interval import Bounds, forward, model_of, over
from certify.check.network import Add, Concat, Conv, Input, Linear, Network, Node, Relu, Scale, Select, Sigmoid
from certify.check.patches import Cells, Patch, Rows, filters, one_hot
from certify.check.region import Norm, ball_box, minimum
from certify.check.rounding import EXACT, QUICK, REAL, dot
from certify.check.rounding import chain as chain_of
from certify.check.single import deviation
from certify.check.steps import Claim, crown, execute, margin

ALL = Crown(None, None)


def fractions(array: Any) -> Any:
    return np.array([Fraction(float(v)) for v in np.ravel(array)], dtype=object).reshape(np.shape(array))


def accepts(net: Network, stated: Any, *proofs: Proof, **how: Any) -> bool:
    try:
        judge(net, stated, *proofs, **how)
    except Rejected:
        return False
    return True


def start(net: Network, lower: Any, upper: Any, arithmetic: Any = REAL) -> Bounds:
    sides = (np.asarray(v, dtype=np.float64).reshape(1, -1) for v in (lower, upper))
    return over(model_of(net, arithmetic), *sides)


def chain(*layers: tuple[Any, Any], kind: Any = Relu) -> Network:
    """Linear layers (weight, bias) with units between."""
    first = np.atleast_2d(np.asarray(layers[0][0], dtype=np.float64))
    nodes = [Node("x", Input(), (), (first.shape[1],))]
    for number, (weight, bias) in enumerate(layers):
        w = np.atleast_2d(np.asarray(weight, dtype=np.float64))
        b = None if bias is None else np.asarray(bias, dtype=np.float64)
        nodes.append(Node(f"linear {number}", Linear(w, b), (len(nodes) - 1,), (len(w),)))
        if number < len(layers) - 1:
            nodes.append(Node(f"unit {number}", kind(), (len(nodes) - 1,), (len(w),)))
    return Network(tuple(nodes))


def every_interval_holds(
    seeds: range = range(12), arithmetic: Any = REAL, makes: Any = (random_flat, random_image)
) -> None:
    """Every tensor's interval, after CROWN, holds the exact values of points and corners of the box."""
    for seed, make in itertools.product(seeds, makes):
        graph = make(seed)
        lower, upper = boxes_for(graph, seed)
        for low, high in zip(lower, upper, strict=True):
            bounds = crown(start(network_of(graph), low, high, arithmetic), [ALL], None)
            for x in samples(low, high, seed, 3):
                for node, value in enumerate(values(graph, x)):
                    inner, outer = bounds.interval(node)
                    assert all(a <= v <= b for a, v, b in zip(inner[0], value.ravel(), outer[0], strict=True))


def every_pass_is_below(
    seeds: range = range(12), arithmetic: Any = REAL, makes: Any = (random_flat, random_image)
) -> None:
    """Whatever the mode, the slopes and the multipliers: no pass exceeds the exact value of a point."""
    for seed, make in itertools.product(seeds, makes):
        rng, graph = np.random.default_rng(seed), make(seed)
        net = network_of(graph)
        model = model_of(net, arithmetic)
        lower, upper = boxes_for(graph, seed)
        for low, high in zip(lower, upper, strict=True):
            bounds = crown(start(net, low, high, arithmetic), [ALL], None)
            rows = rng.normal(size=(3, net.nodes[-1].size))
            zero = bounds.model.arithmetic.zeros((3,))
            form = Form(len(net.nodes) - 1, bounds.model.arithmetic.array(rows), zero, zero)
            slopes, multipliers = {}, {}
            for unit, node in enumerate(model.units):
                size = net.nodes[node].size
                at = rng.permutation(size)[: size // 2 + 1]
                smooth = isinstance(net.nodes[node].op, Sigmoid)
                top = 0.25 if smooth else 1.0
                chosen = rng.random((3, len(at))) * top
                slopes[unit] = UnitSlopes(at, chosen, rng.random((3, len(at))) * top if smooth else None)
                k = rng.integers(0, size, 4)
                multipliers[model.sources[unit]] = Multiplier(rng.integers(0, 3, 4), k, rng.normal(size=4))
            hows = (ADAPTIVE, PARALLEL, Choice("interval"), Choice(slopes=slopes), Choice(multipliers=multipliers))
            found = [lowest(bounds, form, None, how, None) for how in hows]
            below, above = between(bounds, form, None, None)
            planes = [plane(bounds, form, None, how) for how in hows[3:]]
            for x in samples(low, high, seed, 3):
                exact = fractions(rows) @ values(graph, x)[-1].ravel()
                for value in (*found, below):
                    assert all(v <= e for v, e in zip(value, exact, strict=True))
                assert all(v >= e for v, e in zip(above, exact, strict=True))
                for a, c in planes:
                    line = (a if arithmetic is EXACT else fractions(a)) @ fractions(x).ravel() + fractions(c)
                    assert (line <= exact).all()


def rows_stop_where_it_is_enough(seeds: range = range(3), arithmetic: Any = REAL) -> None:
    """A row that stops early is over its mark and under every point of its own box; the others go all the way."""
    early = 0
    for seed, make, mode in itertools.product(seeds, (random_flat, random_image), ("adaptive", "parallel", "interval")):
        rng, graph = np.random.default_rng(seed), make(seed)
        net = network_of(graph)
        low, high = (np.asarray(side).reshape(len(side), -1) for side in boxes_for(graph, seed))
        bounds = crown(over(model_of(net, arithmetic), low, high), [ALL] * len(low), None)
        box = np.sort(rng.integers(0, len(low), 12)) if len(low) > 1 else None
        rows = rng.normal(size=(12, net.nodes[-1].size))
        constant, error = rng.normal(size=12) * 9, rng.random(12)
        form = Form(len(net.nodes) - 1, *map(arithmetic.array, (rows, constant, error)))
        whole = lowest(bounds, form, box, Choice(mode), None)
        assert (beyond(bounds, form, box, mode, None, np.full(12, np.inf)) == whole).all()
        enough = whole - rng.exponential(4.0, 12)
        found = beyond(bounds, form, box, mode, None, enough)
        stopped = found != whole
        assert (found[stopped] > enough[stopped]).all()
        early += int(stopped.sum())
        for k, b in enumerate(np.zeros(12, dtype=int) if box is None else box):
            for x in samples(low[b], high[b], seed, 2):
                y = values(graph, x.reshape(graph.input_shape))[-1].ravel()
                assert found[k] <= fractions(rows[k]) @ y + fractions(constant - error)[k]
    assert early


def affine_bounds_are_exact_minima(tries: int = 60, arithmetic: Any = REAL) -> None:
    """Affine chains with cancelling weights: the true minimum, in rationals, is never exceeded, nor the maximum."""
    rng = np.random.default_rng(5)
    for number in range(tries):
        big = 10.0 ** rng.integers(0, 17)
        first = rng.normal(size=(4, 3)) * big
        shift = rng.normal(size=4) * (0, 1, big * big)[number % 3]
        row = rng.normal(size=(1, 4))
        # The last neuron takes away nearly all of what the others add up to.
        first[3], shift[3] = -(row[0, :3] @ first[:3]) / row[0, 3], -(row[0, :3] @ shift[:3]) / row[0, 3]
        net = chain((first, shift), (row, rng.normal(size=1) * (number % 2)))
        nodes = [net.nodes[0], net.nodes[1], Node("last", net.nodes[3].op, (1,), (1,))]
        net = Network(tuple(nodes))
        center = rng.normal(size=3)
        low, high = center - (number % 4) * 1e-3, center + (number % 4) * 1e-3
        bounds = forward(start(net, low, high, arithmetic))
        row_, first_ = fractions(row), fractions(first)
        a, c = (row_ @ first_)[0], (row_ @ fractions(shift))[0] + fractions(net.nodes[2].op.bias)[0]
        ends = a, fractions(low), fractions(high)
        least = c + sum(min(w * low_, w * high_) for w, low_, high_ in zip(*ends, strict=True))
        most = c + sum(max(w * low_, w * high_) for w, low_, high_ in zip(*ends, strict=True))
        form = neurons(bounds, 2, np.zeros(1, dtype=np.int64), 1)
        assert lowest(bounds, form, None, ADAPTIVE, None)[0] <= least
        direct = Form(1, row, np.zeros(1), np.zeros(1))
        assert lowest(bounds, direct, None, ADAPTIVE, None)[0] <= least - fractions(net.nodes[2].op.bias)[0]
        below, above = between(bounds, form, None, None)
        assert below[0] <= least
        assert above[0] >= most
        assert bounds.interval(2)[0][0, 0] <= least
        assert bounds.interval(2)[1][0, 0] >= most


def intervals_hold_where_sums_cancel(tries: int = 60, arithmetic: Any = REAL) -> None:
    """W x + b with x a point: the interval holds the exact value."""
    rng = np.random.default_rng(6)
    for _ in range(tries):
        w, x = rng.normal(size=(1, 6)), rng.normal(size=6)
        b = np.array([-(w @ x)[0]])
        bounds = forward(start(chain((w, b)), x, x, arithmetic))
        true = (fractions(w) @ fractions(x) + fractions(b))[0]
        lower, upper = bounds.interval(1)
        assert lower[0, 0] <= true <= upper[0, 0]


def readers_sums_are_charged(tries: int = 60, arithmetic: Any = REAL) -> None:
    """x read three times with coefficients that cancel, so that their sums round far more than the result shows."""
    rng = np.random.default_rng(7)
    for _ in range(tries):
        nodes = (Node("x", Input(), (), (1,)), Node("y", Concat(0), (0, 0, 0), (3,)))
        rows = rng.normal(size=(1, 3))
        rows[0, 1] = -rows[0, 0] * (1 + 2.0**-30)
        rows[0, 2] *= 2.0**-30
        rows = rows[:, rng.permutation(3)]
        x = rng.normal(size=1)
        bounds = forward(start(Network(nodes), x, x, arithmetic))
        found = lowest(bounds, Form(1, rows, np.zeros(1), np.zeros(1)), None, ADAPTIVE, None)
        assert found[0] <= fractions(rows).sum() * fractions(x)[0]


def deep(seed: int, *, groups: int = 1, dilation: int = 1, units: int = 2) -> Network:
    """Convolutions with strides and one-sided pads, on (2, 9, 8); ReLUs behind the first `units` of them."""
    rng = np.random.default_rng(seed)
    nodes = [Node("x", Input(), (), (2, 9, 8))]

    def add(op: object, shape: tuple[int, ...]) -> None:
        nodes.append(Node(f"{len(nodes)}", op, (len(nodes) - 1,), shape))  # type: ignore[arg-type]

    add(Conv(rng.normal(size=(4, 2, 3, 2)), rng.normal(size=4), (1, 2), (1, 0, 0, 1), (1, 1)), (4, 8, 4))
    if units:
        add(Relu(), (4, 8, 4))
    weight = rng.normal(size=(4, 4 // groups, 2, 2)) * 0.5
    height, width = 8 + 1 - dilation, 4 + 1 - dilation
    add(Conv(weight, None, (1, 1), (0, 1, 1, 0), (dilation, dilation), groups), (4, height, width))
    if units > 1:
        add(Scale(rng.normal(size=(4, 1, 1)), rng.normal(size=(4, 1, 1))), (4, height, width))
        add(Relu(), (4, height, width))
    last = (3, (height - 1) // 2 + 1, width - 1)
    pads = (1, 0, 0, 0) if units else (0, 0, 1, 0)  # so that, without units, a window's padding reaches the input
    add(Conv(rng.normal(size=(3, 4, 2, 2)), rng.normal(size=3), (2, 1), pads, (1, 1)), last)
    return Network(tuple(nodes))


def windows_and_dense_rows_agree() -> None:
    """Coefficients on windows give the bounds of dense rows, up to rounding: for all neurons, one box or several."""
    rng = np.random.default_rng(4)
    for net in (deep(1), deep(2, groups=2), deep(3, dilation=2), deep(4, units=1), deep(6, units=0)):
        for boxes in (1, 3):
            center = rng.normal(size=(boxes, 144))
            bounds = crown(over(model_of(net, REAL), center - 0.1, center + 0.1), [ALL], None)
            for node in (1, 3, len(net.nodes) - 1):
                where = rng.permutation(net.nodes[node].size)[: net.nodes[node].size // 2]
                box = None if boxes == 1 else rng.integers(0, boxes, len(where))
                zero = np.zeros(len(where))
                patch = neurons(bounds, node, where, 1, box)
                assert isinstance(patch.rows, Patch)
                dense = Form(node, one_hot(where, zero + 1, net.nodes[node].shape).dense(), zero, zero)
                found = [
                    (*between(bounds, form, box, None), lowest(bounds, form, box, ADAPTIVE, None))
                    for form in (patch, dense)
                ]
                for a, b in zip(*found, strict=True):
                    assert np.allclose(a, b, rtol=1e-11, atol=1e-11)


def windows_read_what_dense_rows_read() -> None:
    """Products with vectors of one box or several, row by row; and what is charged is at least the product."""
    rng = np.random.default_rng(41)
    whole, count = (2, 9, 8), 2 * 9 * 8
    for boxes, width in itertools.product((1, 3), (1, 60)):
        vector = np.abs(rng.normal(size=(boxes, count))) * 10.0 ** rng.integers(-3, 3, size=(boxes, 1))
        places = np.concatenate([rng.permutation(count)[:20] for _ in range(boxes * width)])
        box = np.repeat(np.arange(boxes), 20 * width)
        for own in (box, None) if boxes == 1 else (box,):
            op = Conv(rng.normal(size=(2, 2, 3, 3)), None, (1, 1), (1, 1, 1, 1), (1, 1))
            patch = filters(places, np.ones(len(places)), op, op.weight, (whole, whole)).of_boxes(own)
            dense, values = patch.dense(), patch.values
            true = np.einsum("kn,kn->k", dense, vector[box])
            cells, rows = Cells(patch, own), Rows(own)
            assert np.allclose(cells.dots(vector, values)[0], true)
            assert np.allclose(rows.dots(vector, dense)[0], true)
            assert np.allclose(replace(patch, values=cells.times(vector, values)).dense(), dense * vector[box])
            assert np.allclose(rows.times(vector, dense), dense * vector[box])
            least = np.einsum("kn,kn->k", np.abs(dense), vector[box]) * (1 - 1e-9)
            assert (cells.charge(np.abs(values), vector) >= least).all()
            assert (rows.charge(np.abs(dense), vector) >= least).all()


def transposes_are_adjoint() -> None:
    """A convolution's rows, carried back in either way, are those of its matrix: any geometry, exactly on integers."""
    rng = np.random.default_rng(8)
    # The second: a kernel as large as the image, and pads, which move it.
    shapes = [((2,), (3,), (0, 1), (1,), 1, 5), ((3,), (3,), (1, 1), (1,), 1, 3)]
    for _ in range(60):
        rank = int(rng.integers(1, 3))
        draw = [tuple(rng.integers(low, high, n).tolist()) for low, high, n in ((1, 4, rank), (1, 5, rank))]
        pads, dilation = (tuple(rng.integers(0, 3, 2 * rank).tolist()), tuple(rng.integers(1, 3, rank).tolist()))
        shapes.append((*draw, pads, dilation, int(rng.integers(1, 3)), int(rng.integers(1, 8))))  # type: ignore[arg-type]
    for stride, kernel, pads, dilation, groups, side in shapes:
        padded = [side + a + b for a, b in zip(pads, pads[len(kernel) :], strict=False)]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        places = tuple((n - r) // s + 1 for n, r, s in zip(padded, reach, stride, strict=True))
        if min(places) < 1:
            continue
        for inner, outer in ((1, 4), (3, 1)):
            weight = rng.integers(-4, 5, (outer * groups, inner, *kernel)).astype(float)
            wide = (inner * groups, *(side,) * len(kernel))
            window = Window(stride, pads, dilation, groups, wide, (outer * groups, *places))
            matrix = window.correlate(np.eye(math.prod(wide)), weight).T
            a = rng.integers(-9, 10, (3, len(matrix))).astype(float)
            assert np.array_equal(window.transpose(a, weight), a @ matrix)
            for way in (window._gathered, window._scattered):
                assert np.array_equal(way(a, weight), a @ matrix)
            row = int(rng.integers(len(matrix)))
            one, tap = divmod(row, math.prod(places)), np.zeros((wide[0], *padded))
            at = np.unravel_index(one[1], places)
            for t in itertools.product(*map(range, kernel)):
                cell = tuple(o * s + i * d for o, s, i, d in zip(at, stride, t, dilation, strict=True))
                group = one[0] // outer
                tap[(slice(group * inner, group * inner + inner), *cell)] = weight[(one[0], slice(None), *t)]
            inside = tuple(slice(b, b + side) for b in pads[: len(kernel)])
            assert np.array_equal(matrix[row], tap[(slice(None), *inside)].ravel())


def inexact_constants_are_granted() -> None:
    """The true weight and bias may lie anywhere within their errors: here at the end."""
    for op in (
        Linear(np.array([[3.0]]), None, weight_error=1e-3),
        Scale(np.array([3.0]), None, weight_error=1e-3),
        Linear(np.array([[3.0]]), np.array([0.0]), bias_error=np.array([6e-3])),
        Conv(np.array([[[3.0]]]), None, (1,), (0, 0), (1,), weight_error=1e-3),
    ):
        shape = (1, 1) if isinstance(op, Conv) else (1,)
        net = Network((Node("x", Input(), (), shape), Node("y", op, (0,), shape)))
        for arithmetic in (REAL, EXACT):
            bounds = forward(start(net, [1.0], [2.0], arithmetic))
            form = neurons(bounds, 1, np.zeros(1, dtype=np.int64), 1)
            slack = 6e-3  # 0.1 % of 3 x at x = 2
            assert lowest(bounds, form, None, ADAPTIVE, None)[0] <= 3.0 - slack / 2
            assert between(bounds, form, None, None)[1][0] >= 6.0 + slack * 0.999
            assert bounds.interval(1)[0][0, 0] <= 3.0 - slack / 2
            assert bounds.interval(1)[1][0, 0] >= 6.0 + slack * 0.999


def lines_hold(kind: str = "both") -> None:
    """Lines below lie below, lines above lie above, at ends, middles and random points, in exact arithmetic."""
    rng = np.random.default_rng(8)
    ends = np.sort(rng.normal(size=(60, 2)) * 10.0 ** rng.integers(-3, 3, size=(60, 1)), axis=1)
    ends[:6] = [[-1, 3], [-2, 1], [0, 1], [-1, 0], [-800, 900], [-40, 0.5]]
    lower, upper = ends[:, 0][None], ends[:, 1][None]
    for unit, top in ((Relu(), 1.0), (Sigmoid(), 0.25)):
        parallel = relax.lines(unit, lower, upper)
        every = [relax.adapted(unit, lower, upper, parallel), parallel]
        slopes = rng.random((1, 60)) * top
        at = np.arange(60)
        for low, high in ((slopes, None if top == 1 else rng.random((1, 60)) * top), (slopes * 0, slopes * 0)):
            pair = (low, None if top == 1 else high)
            every.append(relax.chosen(unit, (lower, upper), every[0], at, pair))
        for k in range(60):
            points = [lower[0, k], upper[0, k], *rng.uniform(lower[0, k], upper[0, k], 4)]
            if lower[0, k] <= 0 <= upper[0, k]:
                points.append(0.0)
            for z in map(Fraction, map(float, points)):
                f = max(z, Fraction(0)) if top == 1 else sigmoid(z)
                room = 0 if top == 1 else Fraction(1, 10**50)
                for line in every:
                    below = 0 if line.below is None else Fraction(float(line.below[0, k]))
                    assert Fraction(float(line.below_slope[0, k])) * z + below <= f + room
                    above = Fraction(float(line.above[0, k]))
                    assert Fraction(float(line.above_slope[0, k])) * z + above >= f - room


def sigmoid_is_enclosed() -> None:
    rng = np.random.default_rng(9)
    z = np.concatenate(
        [rng.normal(size=200) * 20, [0.0, 1e-300, -1e-300, 745.0, -745.0, -746.5, 1e308, -1e308, 36.7, -36.7]]
    )
    lower, upper = relax.sigmoid(z)
    for point, low, high in zip(z, lower, upper, strict=True):
        true, room = sigmoid(Fraction(float(point))), Fraction(1, 10**60)
        assert Fraction(float(low)) - room <= true <= Fraction(float(high)) + room
        assert 0 <= low <= high <= 1
        assert high - low <= 2.0**-43 * high + 1e-300


def relu_by_hand() -> None:
    """relu(x) on [-1, 3]: chord 3/4 (x + 1); -relu >= -9/4... the bounds of relu(x) - x / 2, which is 0.5 at -1 and 1.5
    at 3.
    """
    net = chain(([[1.0]], None), ([[1.0]], None))
    bounds = forward(start(net, [-1.0], [3.0]))
    form = neurons(bounds, 3, np.zeros(1, dtype=np.int64), -1)
    assert np.isclose(lowest(bounds, form, None, ADAPTIVE, None)[0], -3.0)
    two = chain(([[1.0], [-1.0]], None), ([[1.0, 1.0]], None))  # |x|
    bounds = forward(start(two, [-1.0], [3.0]))
    form = neurons(bounds, 3, np.zeros(1, dtype=np.int64), -1)
    # relu(x) <= 3/4 (x + 1), relu(-x) <= 1/4 (3 - x): together 3/2 + x / 2, at most 3 at x = 3.
    assert np.isclose(lowest(bounds, form, None, ADAPTIVE, None)[0], -3.0)
    form = neurons(bounds, 3, np.zeros(1, dtype=np.int64), 1)
    # adaptive: alpha 1 for relu(x), 0 for relu(-x): x >= -1. Slopes 1 and 1: x - x = 0.
    assert np.isclose(lowest(bounds, form, None, ADAPTIVE, None)[0], -1.0)
    ones = {0: UnitSlopes(np.arange(2), np.ones((1, 2)), None)}
    assert np.isclose(lowest(bounds, form, None, Choice(slopes=ones), None)[0], 0.0)
    # A multiplier 1 on -x, which lies in [-3, 1]: (0 - 1)(-x) + 1 (-3) = x - 3, and with x: 2 x - 3 >= -5.
    one = Multiplier(np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64), np.ones(1))
    assert np.isclose(lowest(bounds, form, None, Choice(multipliers={1: one}), None)[0], -5.0)
    # Off by -1: (0 + 1)(-x) + (-1)(1) = -x - 1, with x: -1.
    minus = Multiplier(np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64), -np.ones(1))
    assert np.isclose(lowest(bounds, form, None, Choice(multipliers={1: minus}), None)[0], -1.0)


def sigmoid_by_hand() -> None:
    """sigmoid(x) - x / 4 on [-1, 10]: with slope 1/4 below, the least value is at 10, 1 / (1 + exp(-10)) - 2.5."""
    nodes = (
        Node("x", Input(), (), (1,)),
        Node("s", Sigmoid(), (0,), (1,)),
        Node("x / 4", Scale(np.array([0.25])), (0,), (1,)),
        Node("y", Add((1, -1)), (1, 2), (1,)),
    )
    bounds = forward(start(Network(nodes), [-1.0], [10.0]))
    quarter = {0: UnitSlopes(np.zeros(1, dtype=np.int64), np.full((1, 1), 0.25), np.zeros((1, 1)))}
    form = neurons(bounds, 3, np.zeros(1, dtype=np.int64), 1)
    least = 1 / (1 + np.exp(-10.0)) - 2.5
    assert least - 1e-9 <= lowest(bounds, form, None, Choice(slopes=quarter), None)[0] <= least
    # From above with slope 0: 1 - x / 4 at -1 is 1.25 - (1 - sigmoid(10)).
    form = neurons(bounds, 3, np.zeros(1, dtype=np.int64), -1)
    most = -(1 / (1 + np.exp(-10.0)) + 0.25)
    assert most - 1e-9 <= lowest(bounds, form, None, Choice(slopes=quarter), None)[0] <= most


def multipliers_pay_for_their_rounding(tries: int = 60, arithmetic: Any = REAL) -> None:
    """On a point, (a - v) z + v z is a z whatever v is."""
    rng = np.random.default_rng(11)
    for _ in range(tries):
        w, x = rng.normal(size=(1, 1)), rng.normal(size=1)
        net = chain(([[1.0]], None), (w, None))
        bounds = forward(start(net, x, x, arithmetic))
        form = neurons(bounds, 3, np.zeros(1, dtype=np.int64), 1)
        v = Multiplier(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), rng.normal(size=1) * 1e12)
        true = fractions(w)[0, 0] * max(fractions(x)[0], Fraction(0))
        assert lowest(bounds, form, None, Choice(multipliers={1: v}), None)[0] <= true


def forms_pay_for_their_mix(tries: int = 60) -> None:
    """sum_r mix_r (C_r y - d_r) where the rows cancel, on a point."""
    rng = np.random.default_rng(12)
    for number in range(tries):
        coeff, mix, y = rng.normal(size=(3, 2)), rng.random(3), rng.normal(size=2)
        coeff[2] = -(mix[:2] @ coeff[:2]) / mix[2]
        offset = rng.normal(size=3) * (number % 2) * 1e6
        offset[2] = -(mix[:2] @ offset[:2]) / mix[2]
        net = chain((np.eye(2), None))
        bounds = forward(start(net, y, y))
        form = margin(bounds, [(Polytope(coeff, offset), mix)])
        true = fractions(mix) @ (fractions(coeff) @ fractions(y) - fractions(offset))
        assert lowest(bounds, form, None, ADAPTIVE, None)[0] <= true
        exact = start(net, y, y, EXACT)
        exact = forward(exact)
        form = margin(exact, [(Polytope(coeff, offset), mix)])
        found = lowest(exact, form, None, ADAPTIVE, None)[0]
        assert found <= true
        assert true - Fraction(float(found)) <= abs(true) * Fraction(1, 2**50)


def minima_over_sets_hold(tries: int = 40) -> None:
    """Boxes exactly; balls: no point of ball and box is below, and the joint bound is at least either one."""
    rng = np.random.default_rng(13)
    for number in range(tries):
        n = 3
        a, center = rng.normal(size=(2, n)) * 10.0 ** rng.integers(-3, 4), rng.normal(size=n)
        radius = float(rng.random() + 0.1)
        p = 1 + number % 2
        lower, upper = ball_box(center, Fraction(radius), *((-np.inf, np.inf), (-0.3, 0.4))[number % 3 == 0])
        if not (lower <= upper).all():
            continue
        short = a.astype(np.float32)
        for low, high in ((lower, upper), (center[None], center[None])):
            value, error = minimum(QUICK, short, (low, high))
            exact = (fractions(short) * np.where(a > 0, fractions(low), fractions(high))).sum(axis=1)
            assert all(Fraction(v) - Fraction(e) <= x for v, e, x in zip(value, error, exact, strict=True))
        for arithmetic in (REAL, EXACT):
            value, error = minimum(arithmetic, arithmetic.array(a), (lower, upper))
            least = np.where(a > 0, fractions(lower), fractions(upper))
            exact = (fractions(a) * least).sum(axis=1)
            assert all(Fraction(v) - Fraction(e) <= x for v, e, x in zip(value, error, exact, strict=True))
            point, wrong = minimum(arithmetic, arithmetic.array(a), (center[None], center[None]))
            exact = fractions(a) @ fractions(center)
            assert all(Fraction(v) - Fraction(e) <= x for v, e, x in zip(point, wrong, exact, strict=True))
            joint, slip = minimum(arithmetic, arithmetic.array(a), (lower, upper), Norm(center, radius, p))
            assert (joint - slip >= value - error).all()
            steps = rng.normal(size=(60, n))
            steps /= np.linalg.norm(steps, p, axis=1, keepdims=True)
            steps[:n], steps[n : 2 * n] = np.eye(n), -np.eye(n)
            points = center + radius * (1 - 1e-12) * steps
            points = points[((points >= lower) & (points <= upper)).all(axis=1)]
            if p == 2:
                worst = center - radius * (1 - 1e-12) * a / np.linalg.norm(a, axis=1, keepdims=True)
                points = np.concatenate([points, worst[((worst >= lower) & (worst <= upper)).all(axis=1)]])
            for k, x in itertools.product(range(2), points):
                assert Fraction(joint[k]) - Fraction(slip[k]) <= fractions(a[k]) @ fractions(x)


def close_needs_a_positive_bound() -> None:
    """relu(x) + 1 on [-1, 1] is at least 1: y <= d is excluded for d < 1 and not for d >= 1, with any slopes."""
    net = chain(([[1.0]], None), ([[1.0]], [1.0]))
    zero = {0: UnitSlopes(np.zeros(1, dtype=np.int64), np.zeros((1, 1)), None)}
    for how in ("interval", "adaptive", "parallel", zero):
        for d, expected in ((0.4, True), (1.0, False), (1.5, False)):
            proof = Proof((ALL, Close((0,), (0,), how)), ())
            good = accepts(net, box([-1.0], [1.0], ([[1.0]], [d])), proof)
            weak = how in ("parallel",)  # 0.5 x + 1 >= 0.5
            assert good == (expected if not weak else d < 0.5)
            assert not accepts(net, box([-1.0], [1.0], ([[1.0]], [0.4]), ([[1.0]], [2.0])), proof)
    # The row counts, not the polytope's first; and every polytope must be answered.
    both = box([-1.0], [1.0], ([[-1.0], [1.0]], [5.0, 0.4]))
    assert accepts(net, both, Proof((Close((0,), (1,), "adaptive"),), ()))
    assert not accepts(net, both, Proof((Close((0,), (0,), "adaptive"),), ()))
    assert not accepts(net, both, Proof((), ()))


def refining_sharpens_by_the_slopes_given() -> None:
    """relu(|x| - 1/2): slopes 1 and 1 give the exact bound -1/2; others never make bounds worse."""
    two = chain(([[1.0], [-1.0]], None), ([[1.0, 1.0]], [-0.5]), ([[1.0]], None))  # relu(|x| - 1/2)
    claim = Claim([], None)
    bounds, _ = execute(start(two, [-1.0], [3.0]), [[ALL]], [claim], "here")
    old = bounds.interval(3)
    ones = {0: UnitSlopes(np.arange(2), np.ones((1, 2)), None)}
    step = refine(1, [0], ones, {})
    bounds, _ = execute(bounds, [[step]], [claim], "here")
    assert np.isclose(bounds.interval(3)[0][0, 0], -0.5)
    assert -0.5 >= bounds.interval(3)[0][0, 0] >= old[0][0, 0]
    assert 2.5 <= bounds.interval(3)[1][0, 0] <= old[1][0, 0] + 1e-9
    wrong = {0: UnitSlopes(np.arange(2), np.zeros((1, 2)), None)}
    worse, _ = execute(bounds, [[refine(1, [0], wrong, wrong)]], [claim], "here")
    assert (worse.interval(3)[0] == bounds.interval(3)[0]).all()


def refining_takes_multipliers() -> None:
    """w = |x| + c - c on [-1, 3], c = x + 1: a pass says w >= x >= -1; with 1 taken off |x| >= 0 it says 0."""
    twice = ([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], None)
    net = chain(([[1.0], [-1.0], [1.0]], [0.0, 0.0, 1.0]), twice, ([[1.0, 1.0, -1.0]], None), ([[1.0]], None))
    claim, first = Claim([], None), np.zeros(1, dtype=np.int64)

    def interval(**lent: Any) -> tuple[float, float]:
        bounds, _ = execute(start(net, [-1.0], [3.0]), [[refine(2, [0], {}, {}, **lent)]], [claim], "here")
        return tuple(float(side[0, 0]) for side in bounds.interval(5))

    assert np.allclose(interval(), (-1, 3))
    assert np.allclose(interval(below_multipliers={1: (first, np.ones((1, 1)))}), (0, 3))
    # Above: -w with -1 taken off -|x| >= -4, where the chords say -3.
    assert np.allclose(interval(above_multipliers={1: (first, -np.ones((1, 1)))}), (-1, 4))
    assert not accepts(
        net,
        box([-1.0], [3.0], ([[1.0]], [-5.0])),
        Proof(
            (refine(1, [0], {}, {}, below_multipliers={2: (first, np.ones((1, 1)))}), Close((0,), (0,), "adaptive")), ()
        ),
    )
    rng = np.random.default_rng(31)
    for seed in range(12):
        net = network_of(relu_mlp(seed, 2, 4, 4, 1))
        low, high = -0.5 + rng.normal(size=2), 0.5 + rng.normal(size=2)
        low, high = np.minimum(low, high), np.maximum(low, high)
        lent = {u: (rng.permutation(4)[:3], rng.normal(size=(2, 3))) for u in (0, 1)}
        step = refine(1, [3, 1], {}, {}, below_multipliers=lent, above_multipliers=lent)
        bounds, _ = execute(start(net, low, high), [[step]], [claim], "here")
        for x in samples(low, high, seed, 4):
            for node, value in enumerate(values_of(net, x)):
                inner, outer = bounds.interval(node)
                assert all(a <= v <= b for a, v, b in zip(inner[0], value, outer[0], strict=True))


def refine(unit: int, places: Any, below: Any, above: Any, **lent: Any) -> Refine:
    """A step without multipliers, but for those given."""
    given = {"below_multipliers": {}, "above_multipliers": {}} | lent
    return Refine(unit, np.asarray(places, dtype=np.int64), below, above, **given)


def absolute() -> Network:
    """|x| as relu(x) + relu(-x): bound 0 needs both slopes 1, or a split."""
    return chain(([[1.0], [-1.0]], None), ([[1.0, 1.0]], None))


def split_tree(cut: float = 0.0, **more: Any) -> Any:
    """x = 0 splits |x|: first child x <= cut, second x >= cut; both neurons are then settled if cut is 0."""
    given = {"unit": [0, -2, -2], "place": [0, 0, 0], "cut": [cut, 0, 0], "child": [1, 0, 0]}
    return tree(**given | {"entry_node": [1, 2]} | more)


def trees_by_hand() -> None:
    """|x| >= 0 on [-1, 1]: y <= -0.01 is excluded by a split and beta, and nothing false is."""
    net = absolute()

    def good(d: float, given: Any, steps: Any = (ALL,), **how: Any) -> bool:
        return accepts(net, box([-1.0], [1.0], ([[1.0]], [d])), Proof(tuple(steps), (given,)), **how)

    # Unsplit: slopes 0 or 1, adaptive chooses 0 and 0 for [-1, 1]: y >= 0.
    assert good(-0.01, tree(entry_node=[0]))
    assert not good(0.01, tree(entry_node=[0]))
    # In the first child relu(x) = 0 and relu(-x) >= -x (slope 1), so y >= -1; with beta 1 on x <= 0, y >= 0.
    slopes = {0: UnitSlopes(np.array([0, 1]), np.ones((2, 2)), None)}
    assert not good(-0.01, split_tree(entry_slopes=slopes))
    # (In the second child relu(x) = x, and slope 1 for relu(-x) makes it 0 without.)
    betas = {"multiplier_entry": [0], "multiplier_unit": [0], "multiplier_place": [0], "multiplier": [-1.0]}
    assert good(-0.01, split_tree(entry_slopes=slopes, **betas))
    assert not good(0.01, split_tree(entry_slopes=slopes, **betas))
    assert not good(-0.01, split_tree(entry_slopes=slopes, **betas | {"multiplier": [1.0]}))
    assert not good(-0.01, split_tree(entry_slopes=slopes, **betas | {"multiplier_entry": [1]}))
    # A child that nobody answers, an entry at one leaf only, a polytope not its own.
    assert not good(-0.01, split_tree(entry_node=[1]))
    assert not good(-0.01, split_tree(entry_node=[2]))
    assert good(-0.01, split_tree(entry_node=[0]))
    # A cut beyond the interval leaves one child empty, and the other is all there is.
    assert good(-0.01, split_tree(cut=2.0, entry_node=[1]))
    assert not good(-0.01, split_tree(cut=2.0, entry_node=[2]))
    assert good(-0.01, split_tree(cut=-2.0, entry_node=[2]))
    assert not good(-0.01, split_tree(cut=-2.0, entry_node=[1]))
    # Input splits: x in [-1, 0] and [0, 1], all bounds anew.
    inputs = {"unit": [-1, -2, -2], "renew": [False, True, True]}
    hat = chain(([[1.0], [-1.0]], None), ([[-1.0, -1.0]], [1.0]))  # 1 - |x|, whose chords give 0 only on each half
    low = box([-1.0], [1.0], ([[1.0]], [-0.01]))
    assert accepts(hat, low, Proof((ALL,), (split_tree(**inputs),)))
    tent = box([-0.5], [1.0], ([[1.0]], [-0.01]))
    assert accepts(hat, tent, Proof((ALL,), (split_tree(**inputs),)))
    assert not accepts(hat, box([-1.1], [1.0], ([[1.0]], [-0.01])), Proof((ALL,), (split_tree(**inputs),)))
    assert not accepts(hat, box([-1.0], [1.1], ([[1.0]], [-0.01])), Proof((ALL,), (split_tree(**inputs),)))


def cuts_fall_on_their_sides() -> None:
    """relu(x) - relu(x - 1) ... y = x on [-1, 2]: x <= 0.5 in the first child only, x >= 0.5 in the second only."""
    net = chain(([[1.0]], [0.0]), ([[1.0]], None))  # relu(x)
    for d in (0.4, 0.6):
        # In the second child relu(x) >= 0.5 by a multiplier 1 on x >= 0.5; in the first y <= d is there.
        betas = {"multiplier_entry": [1], "multiplier_unit": [0], "multiplier_place": [0], "multiplier": [1.0]}
        given = split_tree(cut=0.5, **betas)
        assert not accepts(net, box([-1.0], [2.0], ([[1.0]], [d])), Proof((ALL,), (given,)))
        # On [0.55, 2] the first child is empty.
        assert accepts(net, box([0.55], [2.0], ([[1.0]], [d])), Proof((ALL,), (given,))) == (d < 0.5)
    # -relu(x) >= -0.5 in the first child: chord over [-1, 0.5] and x <= 0.5.
    minus = chain(([[1.0]], [0.0]), ([[-1.0]], None))
    leaf = {"multiplier_entry": [0], "multiplier_unit": [0], "multiplier_place": [0], "multiplier": [-1 / 3]}
    stated = box([-1.0], [2.0], ([[1.0]], [-0.51]))
    assert not accepts(minus, stated, Proof((ALL,), (split_tree(cut=0.5, entry_node=[1], **leaf),)))
    assert not accepts(minus, stated, Proof((ALL,), (split_tree(cut=0.5, **leaf),)))
    assert accepts(minus, box([-1.0], [2.0], ([[1.0]], [-2.01])), Proof((ALL,), (split_tree(cut=0.5, **leaf),)))


def no_tree_proves_a_falsehood(tries: int = 40) -> None:
    """Random trees with random multipliers, slopes and sharpenings never exclude a polytope that a point lies in."""
    rng = np.random.default_rng(17)
    for number in range(tries):
        graph = relu_mlp(number, 2, 3, 3, 1) if number % 2 else random_flat(number, depth=2, inputs=2, outputs=1)
        net = network_of(graph)
        model = model_of(net, REAL)
        center = rng.normal(size=2)
        low, high = center - 0.6, center + 0.6
        points = samples(low, high, number, 12)
        least = min(values(graph, x)[-1].ravel()[0] for x in points)
        stated = box(low, high, ([[1.0]], [float(least) + 1e-9]))
        assert not accepts(net, stated, Proof((ALL,), (_random_tree(rng, net, model),)))


def _random_tree(rng: Any, net: Network, model: Any) -> Any:
    unit, child, depth = [], [], [0]
    renew = []
    while len(unit) < len(depth):
        here = depth[len(unit)]
        split = here < 3 and rng.random() < 0.9
        unit.append(int(rng.integers(-1, len(model.units))) if split else -2)
        child.append(len(depth) if split else 0)
        renew.append(bool(rng.random() < 0.2))
        depth += [here + 1] * (2 * split)
    count = len(unit)
    sizes = [net.nodes[u].size for u in model.units] + [net.nodes[0].size]
    place = [int(rng.integers(sizes[u])) if u > -2 else 0 for u in unit]
    entry = sorted(range(count)) if rng.random() < 0.5 else [i for i in range(count) if unit[i] == -2]
    m = 3 * len(entry)
    owners = rng.integers(len(entry), size=m)
    units = rng.integers(-1, len(model.units), size=m)
    planes = rng.integers(len(model.units), size=4)
    q = 2 * len(entry)
    return tree(
        unit=unit,
        place=place,
        cut=rng.normal(size=count) * 0.3,
        child=child,
        renew=renew,
        entry_node=entry,
        entry_mix=rng.random((len(entry), 1)) + 0.1,
        multiplier_entry=owners,
        multiplier_unit=units,
        multiplier_place=[int(rng.integers(sizes[u])) for u in units],
        multiplier=rng.normal(size=m) * 0.3,
        plane_unit=planes,
        plane_place=[int(rng.integers(sizes[u])) for u in planes],
        plane_sign=rng.choice([-1, 1], size=4),
        sharpen_entry=rng.integers(len(entry), size=q),
        sharpen_plane=rng.integers(4, size=q),
        sharpen_beta=rng.random(q) * 2,
    )


def sharpening_by_hand() -> None:
    """y = z - relu(z) + ... : where y <= 0 only z near 0 is left, and a child of the sharpened node closes.

    y = 1 - x on [0, 2], polytope y <= 0.5, so x >= 0.5: the plane x >= x + 0 and margin 0.5 - x ... give x >= 0.5 with
    beta 1, and relu(x - 0.4) is active.
    """
    # units: a = relu(x - 0.4); y0 = 1 - x as 1 - (0.4 + a - relu(0.4 - x)).
    net = chain(([[1.0], [-1.0]], [-0.4, 0.4]), ([[-1.0, 1.0]], [0.6]))
    stated = box([0.0], [2.0], ([[1.0]], [0.5]))
    plane_ = {"plane_unit": [0], "plane_place": [0], "plane_sign": [1]}
    sharpen = {"sharpen_entry": [0], "sharpen_plane": [0], "sharpen_beta": [1.0]}
    # First child x - 0.4 <= 0.05 is empty once x - 0.4 >= 0.1 is known; the second is full of counterexamples.
    given = split_tree(cut=0.05, entry_node=[0, 2], **plane_, **sharpen)
    assert not accepts(net, stated, Proof((ALL,), (given,)))
    deep = {"unit": [0, -2, -2], "place": [0] * 3, "cut": [0.05, 0, 0], "child": [1, 0, 0]}
    proof = Proof((ALL,), (tree(**deep, entry_node=[0], **plane_, **sharpen),))
    assert not accepts(net, stated, proof)
    # y <= -1.5 is impossible (y >= -1): sharpening to x >= 2.5 empties the interval.
    impossible = box([0.0], [2.0], ([[1.0]], [-1.5]))
    assert accepts(net, impossible, Proof((ALL,), (tree(entry_node=[0], **plane_, **sharpen),)))
    # Nothing is wrong with a plane of the other sign, but it shows nothing here.
    assert not accepts(net, stated, Proof((ALL,), (tree(entry_node=[0], **plane_ | {"plane_sign": [-1]}, **sharpen),)))


def caps_by_hand() -> None:
    """y = x0 - relu(x0 + x1) on [-1, 1]^2 is at least -1; the chord says -2, the cap x0 + 1 says it all."""
    net = chain(([[1.0, 1.0], [1.0, 0.0]], [0.0, 1.0]), ([[-1.0, 1.0]], [-1.0]))
    wide = chain(([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 1.0]), ([[-1.0, 1.0, 1.0]], [-2.0]))

    def good(d: float, share: Any, multiplier: float = 1.0, on: Network = net, unit: int = 0, **how: Any) -> bool:
        caps = {"cap_unit": [unit], "cap_place": [0], "cap_multiplier": [multiplier], "cap_share": [share]}
        given = tree(entry_node=[0], cap_entry=[0], **caps)
        stated = box([-1.0, -1.0], [1.0, 1.0], ([[1.0]], [d]))
        return accepts(on, stated, Proof((ALL,), (given,)), **how)

    for exact in (False, True):
        assert good(-1.01, [255, 0], exact=exact)
        assert not good(-0.99, [255, 0], exact=exact)
        assert not good(-1.01, [255, 0], 0.5, exact=exact)  # half of the chord: -1.5
        assert good(-1.51, [255, 0], 0.5, exact=exact)
        assert not good(-1.01, [255, 0], 2.0, exact=exact)
        assert not good(-1.01, [0, 255], exact=exact)
        # relu(x0 + x1) <= 2 and <= x0 + x1 + 2: neither 0 nor x0 + x1, of which they are made.
        assert not good(-2.99, [0, 0], exact=exact)
        assert good(-3.01, [0, 0], exact=exact)
        # x0 + x1 - relu(x0 + x1) is -2 at (-1, -1).
        assert not good(-1.99, [255, 255], on=wide, exact=exact)
        assert good(-2.01, [255, 255], on=wide, exact=exact)
    # Two half caps are one.
    half = {"cap_unit": [0] * 2, "cap_place": [0] * 2, "cap_multiplier": [0.5] * 2, "cap_share": [[255, 0]] * 2}
    given = tree(entry_node=[0], cap_entry=[0, 0], **half)
    assert accepts(net, box([-1.0, -1.0], [1.0, 1.0], ([[1.0]], [-1.01])), Proof((ALL,), (given,)))
    # Only the entry that has it, and no unit but a ReLU.
    other = tree(entry_node=[0, 0], cap_entry=[0, 0], **half | {"cap_share": [[0, 0]] * 2})
    assert not accepts(net, box([-1.0, -1.0], [1.0, 1.0], ([[1.0]], [-1.01])), Proof((ALL,), (other,)))
    split = tree(
        entry_node=[0, 0], cap_entry=[0, 1], **half | {"cap_multiplier": [1.0] * 2, "cap_share": [[0, 0], [255, 0]]}
    )
    assert accepts(net, box([-1.0, -1.0], [1.0, 1.0], ([[1.0]], [-1.01])), Proof((ALL,), (split,)))
    smooth = chain(([[1.0, 1.0]], [-4.0]), ([[-1.0]], None), kind=Sigmoid)  # at most sigmoid(-2) = 0.119
    assert accepts(smooth, box([-1.0, -1.0], [1.0, 1.0], ([[1.0]], [-0.12])), Proof((ALL,), (tree(entry_node=[0]),)))
    assert not good(-0.05, [0, 0], on=smooth)


def caps_lie_above(tries: int = 40) -> None:
    """For random shares, over boxes and balls, relu(z) <= s x + c; and no form is more than itself with caps."""
    rng = np.random.default_rng(23)
    for number in range(tries):
        net = network_of(relu_mlp(number, 2, 3, 3, 1))
        arithmetic = (REAL, EXACT)[number % 8 == 7]
        model = model_of(net, arithmetic)
        center = rng.normal(size=2)
        radius = float(rng.choice([0.0, 1e-3, 0.7])) if number % 3 else 0.7
        norm = Norm(center, radius, 1 + number % 2) if number % 3 == 0 else None
        bounds = crown(over(model, (center - radius)[None], (center + radius)[None]), [ALL], norm)
        units, scale = len(model.units), 10.0 ** rng.integers(0, 13)
        count = 8
        given = tree(
            entry_node=[0] * 3,
            cap_entry=rng.integers(3, size=count),
            cap_unit=rng.integers(units, size=count),
            cap_place=rng.integers(3, size=count),
            cap_multiplier=rng.random(count) * scale,
            cap_share=rng.choice([0, 255, 17, 99, 200], size=(count, 2)),
        )
        caps = Caps(bounds, given, norm, "here")
        s, c = caps._above(np.arange(count))
        rows = rng.normal(size=(3, 1))
        zero = arithmetic.zeros((3,))
        form = Form(len(net.nodes) - 1, arithmetic.array(rows), zero, zero)
        found = lowest(bounds, caps.taken_off(form, np.arange(3)), None, ADAPTIVE, norm)
        points = [center] if norm is not None else samples(*(side[0] for side in bounds.interval(0)), number, 6)
        if norm is not None:
            step = rng.normal(size=(8, 2))
            step /= np.linalg.norm(step, norm.p, axis=1, keepdims=True)
            points = [center, *(center + radius * (1 - 1e-12) * step)]
        for x in points:
            every = values_of(net, x)
            for k in range(count):
                value = every[model.units[given.cap_unit[k]]][given.cap_place[k]]
                slope = s[k] if arithmetic is EXACT else fractions(s[k])
                assert slope @ fractions(x) + Fraction(c[k]) >= value
            assert all(v <= e for v, e in zip(found, fractions(rows)[:, 0] * every[-1][0], strict=True))


def caps_pay_for_their_rounding(tries: int = 60) -> None:
    """On a point, above relu(x): s x + c is relu(x) but for rounding; and sums of multipliers that round upward."""
    rng = np.random.default_rng(29)
    net = Network((Node("x", Input(), (), (1,)), Node("y", Relu(), (0,), (1,))))
    for number in range(tries):
        x = rng.normal(size=1)
        bounds = forward(start(net, x, x))
        given = tree(cap_entry=[0], cap_unit=[0], cap_place=[0], cap_multiplier=[1.0], cap_share=[[number + 1]])
        s, c = Caps(bounds, given, None, "here")._above(np.zeros(1, dtype=np.int64))
        true = max(fractions(x)[0], Fraction(0))
        assert fractions(s)[0, 0] * fractions(x)[0] + fractions(c)[0] >= true
    many, one = 20000, np.ones(1)
    small = np.full(many, 0.6 * 2.0**-52)
    small[0] = 1.0
    none = np.zeros(many, dtype=np.int64)
    given = tree(cap_entry=none, cap_unit=none, cap_place=none, cap_multiplier=small, cap_share=none[:, None] + 255)
    bounds = forward(start(net, one, one))
    form = Form(1, np.ones((1, 1)), np.zeros(1), np.zeros(1))
    found = Caps(bounds, given, None, "here").taken_off(form, np.zeros(1, dtype=np.int64))
    assert 1 - 1e-10 < lowest(bounds, found, None, ADAPTIVE, None)[0] <= 1


def values_of(net: Network, x: Any) -> list[Any]:
    """The exact values of a chain of linear layers and ReLUs at x."""
    found = [fractions(x)]
    for node in net.nodes[1:]:
        before = found[node.inputs[0]]
        if isinstance(node.op, Relu):
            found.append(np.array([max(v, Fraction(0)) for v in before], dtype=object))
        else:
            bias = 0 if node.op.bias is None else fractions(node.op.bias)
            found.append(fractions(node.op.weight) @ before + bias)
    return found


def singles_stay_within(tries: int = 30) -> None:
    """Float32 executions with sums in random orders stay within the deviation, and a margin below it is not enough."""
    rng = np.random.default_rng(19)
    for number in range(tries):
        widths = (4, 6, 5, 2)
        layers = []
        for a, b in itertools.pairwise(widths):
            layers.append((rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32)))
        kind = Sigmoid if number % 3 == 0 else Relu
        net = chain(*layers, kind=kind)
        x = rng.normal(size=4).astype(np.float32)
        bounds = forward(start(net, x, x))
        granted = deviation(bounds)[0]
        true = fractions(x)
        for k, (w, b) in enumerate(layers):
            true = fractions(w) @ true + fractions(b)
            if k < len(layers) - 1:
                true = np.array([max(v, Fraction(0)) if kind is Relu else sigmoid(v) for v in true], dtype=object)
        for _ in range(5):
            h = x
            for k, (w, b) in enumerate(layers):
                order = rng.permutation(len(h) + 1)
                terms = np.concatenate([w * h, b[:, None]], axis=1)[:, order]
                total = terms[:, 0]
                for t in terms.T[1:]:
                    total = np.float32(total + t)
                h = total
                if k < len(layers) - 1:
                    h = np.maximum(h, np.float32(0)) if kind is Relu else 1 / (1 + np.exp(-h))
                    assert h.dtype == np.float32
            for a, b, e in zip(h, true, granted, strict=True):
                assert abs(Fraction(float(a)) - b) <= Fraction(float(e))
    # ((1 + 2^-25) - 1) 2^20 is 2^-5, and 0 in float32: what the first sum loses grows with the rest.
    net = chain(([[1.0]], [2.0**-25]))
    more = tuple(
        Node(f"{k}", op, (k + 1,), (1,))
        for k, op in enumerate((Scale(np.ones(1), -np.ones(1)), Scale(np.array([2.0**20]))))
    )
    assert deviation(forward(start(Network((*net.nodes, *more)), [1.0], [1.0])))[0, 0] >= 2.0**-5
    # 1 + 2^-30 > 1 in real arithmetic, not in float32.
    net = chain(([[1.0]], [2.0**-30]))
    stated = box([1.0], [1.0], ([[1.0]], [1.0]))
    proof = Proof((Close((0,), (0,), "adaptive"),), ())
    assert accepts(net, stated, proof)
    assert not accepts(net, stated, proof, arithmetic="float32")
    assert accepts(net, box([1.0], [1.0], ([[1.0]], [0.99])), proof, arithmetic="float32")


def levels_are_told_apart() -> None:
    """What holds in the reals by less than float32 may do is not said to hold there: by steps, trees, and cases."""
    net = chain(([[1.0]], [2.0**-30]))

    def level(proof: Proof, *limits: float, **how: Any) -> str:
        return judge(net, box([1.0], [1.0], *(([[1.0]], [d]) for d in limits)), proof, **how)

    near, far = 1.0, 0.99
    by_step = Proof((Close((0,), (0,), "adaptive"),), ())
    by_tree = Proof((), (tree(entry_node=[0]),))
    both = Proof((Close((0, 1), (0, 0), "adaptive"),), ())
    for proof in (by_step, by_tree, Proof(by_step.steps, by_tree.trees)):
        assert level(proof, near) == "real"
        assert level(proof, far) == level(proof, far, exact=True) == "float32"
    assert not accepts(net, box([1.0], [1.0], ([[1.0]], [near])), by_tree, arithmetic="float32")
    assert accepts(net, box([1.0], [1.0], ([[1.0]], [far])), by_tree, arithmetic="float32")
    assert level(both, near, far) == level(both, far, near) == "real"
    assert level(both, far, far) == "float32"
    cases = box([1.0], [1.0], ([[1.0]], [far])).cases + box([1.0], [1.0], ([[1.0]], [near])).cases
    for pair in (cases, cases[::-1]):
        assert judge(net, Cases(None, pair), by_step, by_step) == "real"
    # Near 1000 float32 loses more than 1e-5, near 1 less.
    pairs = [(box([x], [x], ([[1.0]], [x - 1e-5])), by_step) for x in (1.0, 1000.0)]
    for some in (pairs, pairs[::-1]):
        every = [_jobs(check_cases.certificate(net, *pair), model_of(net, REAL), n)[0] for n, pair in enumerate(some)]
        judge_all(model_of(net, REAL), every, Manner())
        assert [job.level for job in every] == [judge(net, *pair) for pair in some]
        assert {job.level for job in every} == {"real", "float32"}
    doubtful = Network(net.nodes, doubts=("a node of float16",))
    assert judge(doubtful, box([1.0], [1.0], ([[1.0]], [far])), by_step) == "real"
    assert not accepts(doubtful, box([1.0], [1.0], ([[1.0]], [far])), by_step, arithmetic="float32")
    # y = relu(x) + 4 relu(-x) + 2^-30 <= 0 nowhere, but in float32 at x = 0. Where x >= 0, margin x + 2^-30 sharpens it
    # to x <= -2^-30; where x <= 0, margin -4 x + 2^-30 sharpens it to x >= 2^-32: both are empty, in the reals.
    vee = chain(([[1.0], [-1.0]], [0.0, 0.0]), ([[1.0, 4.0]], [2.0**-30]))
    slopes = {0: UnitSlopes(np.array([0, 1]), np.array([[1.0, 1.0], [1.0, 0.0]]), None)}
    sharpen = {"plane_unit": [0, 0], "plane_place": [0, 0], "plane_sign": [1, -1]}
    sharpen |= {"sharpen_entry": [0, 1], "sharpen_plane": [0, 1], "sharpen_beta": [0.25, 1.0]}
    given = Proof((), (split_tree(entry_slopes=slopes, **sharpen),))
    assert judge(vee, box([-1.0], [1.0], ([[1.0]], [0.0])), given) == "real"
    assert not accepts(vee, box([-1.0], [1.0], ([[1.0]], [0.0])), given, arithmetic="float32")
    assert accepts(vee, box([-1.0], [1.0], ([[1.0]], [-0.01])), given, arithmetic="float32")


def many_at_once_are_judged_as_alone() -> None:
    """Boxes that go through their steps together get the bounds and verdicts that they get alone."""
    rng, seen = np.random.default_rng(37), set[str]()
    for seed in range(6):
        net = network_of((relu_mlp(seed, 2, 6, 6, 3), random_image(seed))[seed % 2])
        model, inputs, outputs = model_of(net, REAL), net.nodes[0].size, net.nodes[-1].size
        pairs, modes = [], ("interval", "adaptive", "parallel")
        for number in range(10):
            center = rng.normal(size=inputs)
            bounds = crown(start(net, center - 0.1, center + 0.1), [ALL], None)
            low = [lowest(bounds, neurons(bounds, len(net.nodes) - 1, np.arange(outputs), 1), None, ADAPTIVE, None)[0]]
            rows = [(np.eye(outputs)[:1], [low[0] + d]) for d in rng.choice([-5.0, -3e-6, -1e-6, -1e-7, 1e-6], 2)]
            step = ALL
            if number % 3 == 0:  # other neurons of every box
                at = {u: rng.permutation(net.nodes[n].size)[: number + 1] for u, n in enumerate(model.units)}
                step = Crown(None, at, adaptive=False)
            steps = (Close((1,), (0,), modes[number % 3]), step, Close((1,), (0,), "adaptive"))
            if number % 2:
                proof = Proof((*steps, Close((0,), (0,), modes[number % 3])), ())
            else:
                proof = Proof(steps, (tree(entry_node=[0], polytopes=(0,)),))
            pairs.append((box(center - 0.1, center + 0.1, *rows), proof))
        alone = []
        for stated, proof in pairs:
            try:
                alone.append(judge(net, stated, proof))
            except Rejected:
                alone.append("")
        # One that is no set at all must not harm the others.
        for extra in ([], [(box(center + 0.1, center - 0.1, *rows), proof)]):
            every = [
                _jobs(check_cases.certificate(net, stated, proof), model, number)[0]
                for number, (stated, proof) in enumerate(pairs + extra)
            ]
            judge_all(model, every, Manner())
            assert [job.level for job in every] == alone + [""] * len(extra)
            assert [job.failure is not None for job in every] == [job.level == "" for job in every]
            for job in every:
                job.level, job.failure = "", None
            judge_all(model_of(net, QUICK), every, Manner())
            assert [job.failure is None for job in every] == [level != "" for level in alone] + [False] * len(extra)
        seen |= set(alone)
    assert seen == {"", "real", "float32"}


def balls_are_what_they_say() -> None:
    """A ball's rivals are all classes but the label, ties count as unsafe, and the norm's bound is used."""
    net = chain(([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], None))
    proof = Proof((Close((0, 1), (0, 0), "adaptive"),), ())
    point = [0.5, 0.1]
    assert accepts(net, ball(point, "0.19", 0, 3), proof)
    assert not accepts(net, ball(point, "0.2", 0, 3), proof)
    assert not accepts(net, ball(point, "0.01", 1, 3), proof)
    one = chain(([[1.0], [0.0]], None))
    cut = Proof((Close((0,), (0,), "adaptive"),), ())
    assert accepts(one, ball([0.5], "3/5", 0, 2, low=0.05), cut)
    assert not accepts(one, ball([0.5], "3/5", 0, 2, low=-0.05), cut)
    assert accepts(one, ball([-0.5], "3/5", 1, 2, high=-0.05), cut)
    # x0 - x1 >= 0.4 - sqrt(2) eps: 0.28 is small enough, 0.2 of the box would not be.
    assert accepts(net, ball(point, "0.28", 0, 3, norm="l2"), proof)
    assert not accepts(net, ball(point, "0.29", 0, 3, norm="l2"), proof)
    assert accepts(net, ball(point, "0.39", 0, 3, norm="l1"), proof)
    assert not accepts(net, ball(point, "0.41", 0, 3, norm="l1"), proof)
    assert not accepts(net, ball(point, "0.1", 0, 3), Proof((Close((0,), (0,), "adaptive"),), ()))


def exact_arithmetic_agrees(seeds: range = range(3)) -> None:
    """In fractions the same laws hold, and the floats' bounds are close to them."""
    every_interval_holds(seeds, EXACT, (random_flat,))
    every_pass_is_below(seeds, EXACT, (random_flat,))
    for seed in seeds:
        graph = random_flat(seed)
        lower, upper = boxes_for(graph, seed)
        net = network_of(graph)
        pair = [crown(start(net, lower[1], upper[1], arithmetic), [ALL], None) for arithmetic in (REAL, EXACT)]
        for a, b in zip(pair[0].lower, pair[1].lower, strict=True):
            assert np.allclose(a, b, rtol=1e-6, atol=1e-6)


def quick_passes_hold() -> None:
    """With coefficients in float32 the same laws hold: of numbers that are none, sums that cancel, multipliers."""
    every_interval_holds(range(4), QUICK)
    every_pass_is_below(range(4), QUICK)
    rows_stop_where_it_is_enough(range(1), QUICK)
    intervals_hold_where_sums_cancel(60, QUICK)
    affine_bounds_are_exact_minima(120, QUICK)
    readers_sums_are_charged(60, QUICK)
    multipliers_pay_for_their_rounding(60, QUICK)


def quick_sums_are_not_below_the_exact() -> None:
    """Long sums, weights that float32 rounds downward, numbers below its range: errors are not underestimated."""
    rng = np.random.default_rng(43)
    # One after the other, each addition rounded downward by 0.4 of a last digit at the end.
    step = np.full((1, 1 << 16), 1 + 0.4 * 2.0**-8)
    total = QUICK.above(lambda s: np.cumsum(s, axis=1)[:, -1:], step)[0, 0]
    assert fractions(step).sum() <= total <= fractions(step).sum() * Fraction(11, 10)
    for number in range(8):
        count = int(rng.integers(1, 300) if number else 2000)
        weight = np.full((1, count), 1 + 2.0**-25) * 10.0 ** rng.integers(
            -3, 3
        )  # float32 has them without the last bit
        sizes = rng.random((1, count)) * (1.0, 1e-50)[number % 2]
        net = chain((weight, None))
        above = QUICK.above(model_of(net, QUICK).maps[1].magnitude, sizes)[0, 0]  # type: ignore[union-attr]
        true = (fractions(weight) * fractions(sizes)).sum()
        assert true <= above <= true * 2 + Fraction(2) ** -100
        for kind, u in ((np.float64, 2.0**-53), (np.float32, 2.0**-24)):
            a, w = (rng.normal(size=(2, count)).astype(kind) for _ in range(2))
            for vector in (w, w[:1]):
                for found, x, y in zip(dot(a, vector), a, np.broadcast_to(vector, a.shape), strict=True):
                    each = fractions(x) * fractions(y)
                    assert abs(each.sum() - Fraction(found)) <= abs(each).sum() * Fraction(u) * chain_of(count)


def one_quick_pass_is_charged() -> None:
    """w (V x + b) on a point, where both w V and V x + b are nearly 0: what float32 loses by V, W and A W."""
    rng = np.random.default_rng(44)
    for number in range(60):
        width = int(rng.integers(2, 40))
        w, v = rng.normal(size=(1, width)), rng.normal(size=(width, width))
        v[-1] = -(w[0, :-1] @ v[:-1]) / w[0, -1]
        x = rng.normal(size=width) * 10.0 ** (number % 5)
        whole = chain((v, -(v @ x)), (w, None))
        net = Network((*whole.nodes[:2], Node("last", whole.nodes[3].op, (1,), (1,))))
        bounds = forward(start(net, x, x, QUICK))
        true = (fractions(w) @ (fractions(v) @ fractions(x) - fractions(v @ x)))[0]
        below, above = between(bounds, neurons(bounds, 2, np.zeros(1, dtype=np.int64), 1), None, None)
        assert below[0] <= true <= above[0]


def quick_bands_hold() -> None:
    """A f(z) >= (A slope + |A| bend) z + A middle - |A| (half + charge), computed in float32 number by number."""
    rng = np.random.default_rng(45)
    for number, kind in itertools.product(range(60), (Relu(), Sigmoid())):
        ends = np.sort(rng.normal(size=2)) * 10.0 ** rng.integers(-3, 2)
        ends[0] -= abs(ends[1]) * (number % 2)  # open, where it is a ReLU
        lower, upper = ends[:1, None], ends[1:, None]
        parallel = relax.lines(kind, lower, upper)
        for found in (parallel, relax.adapted(kind, lower, upper, parallel)):
            band = relax.band(QUICK, found, np.abs(ends).max().reshape(1, 1))
            a = np.float32(rng.normal())
            rising = a * band.slope + (0 if band.bend is None else abs(a) * band.bend)
            value, spread = a * band.middle, abs(a) * band.half
            assert {v.dtype for v in (rising, value, spread)} == {np.dtype(np.float32)}
            rest = sum(fractions(v)[0, 0] for v in (value, -spread, -abs(a) * band.charge))
            for z in (*ends, ends.mean()):
                true = max(Fraction(z), Fraction(0)) if isinstance(kind, Relu) else sigmoid(Fraction(z))
                assert Fraction(float(a)) * true >= fractions(rising)[0, 0] * Fraction(z) + rest


def float64_shows_what_quick_passes_miss() -> None:
    """A margin that float32's roundings hide is shown all the same; one that is none is not."""
    row = np.full((1, 3), 1.0)
    net = chain((row, None), ([[1.0]], None))
    proof = Proof((Close((0,), (0,), "adaptive"),), ())
    for narrow in (1e-9, 1e-12):
        assert accepts(net, box([1.0] * 3, [2.0] * 3, ([[1.0]], [3.0 - narrow])), proof)
        assert not accepts(net, box([1.0] * 3, [2.0] * 3, ([[1.0]], [3.0 + narrow])), proof)
    assert model_of(net, QUICK).arithmetic == QUICK
    # Neither sums nor weights that float32 cannot have are taken for quick ones.
    for weight in (row * 1e-40, row * 1e40, np.ones((1, (1 << 16) + 1))):
        assert model_of(chain((weight, None)), QUICK).arithmetic == REAL
    many = Network(
        (Node("x", Input(), (), (1,)), Node("y", Linear(np.ones(((1 << 16) + 1, 1))), (0,), ((1 << 16) + 1,)))
    )
    assert model_of(many, QUICK).arithmetic == REAL
    large = Network((Node("x", Input(), (), ((1 << 16) + 1,)), Node("y", Relu(), (0,), ((1 << 16) + 1,))))
    assert model_of(large, QUICK).arithmetic == REAL
    assert model_of(chain(([[1.0]], [1e-40])), QUICK).arithmetic == REAL
    assert model_of(chain(([[0.0, 1.0]], [0.0])), QUICK).arithmetic == QUICK


def nonsense_is_rejected() -> None:
    """Overflow, NaN and empty sets are no proofs."""
    huge = chain(([[1e308, 1e308]], None), ([[1e10]], None))
    proof = Proof((ALL, Close((0,), (0,), "adaptive")), ())
    for exact in (False, True):
        assert not accepts(huge, box([1.0, 1.0], [2.0, 2.0], ([[1.0]], [0.0])), proof, exact=exact)
    fine = chain(([[1.0]], None))
    assert not accepts(fine, box([2.0], [1.0], ([[1.0]], [0.0])), proof)
    assert not accepts(fine, box([np.nan], [1.0], ([[1.0]], [0.0])), proof)
    assert not accepts(fine, box([1.0], [np.inf], ([[1.0]], [0.0])), proof)
    assert accepts(fine, box([1.0], [2.0], ([[1.0]], [0.0])), proof)
    assert not accepts(chain(([[np.nan]], None)), box([1.0], [2.0], ([[1.0]], [0.0])), proof)
    # C y - d overflows, and inf - inf is no proof.
    for how in ("interval", "adaptive", "parallel"):
        last = Proof((Close((0,), (0,), how),), ())
        assert not accepts(fine, box([1e10], [2e10], ([[1e308]], [0.0])), last)
        assert not accepts(fine, box([1e10], [2e10], ([[1e308]], [0.0])), last, exact=True)
    empty = ball([2.0, 0.0], "0.5", 0, 2, low=0.0, high=1.0)
    assert not accepts(chain((np.eye(2), None)), empty, Proof((Close((0,), (0,), "adaptive"),), ()))


# The cheap ones first: a mutant goes through them until one sees it.
LAWS = (
    relu_by_hand,
    sigmoid_by_hand,
    close_needs_a_positive_bound,
    refining_sharpens_by_the_slopes_given,
    refining_takes_multipliers,
    trees_by_hand,
    cuts_fall_on_their_sides,
    sharpening_by_hand,
    caps_by_hand,
    caps_lie_above,
    caps_pay_for_their_rounding,
    levels_are_told_apart,
    balls_are_what_they_say,
    nonsense_is_rejected,
    inexact_constants_are_granted,
    intervals_hold_where_sums_cancel,
    affine_bounds_are_exact_minima,
    readers_sums_are_charged,
    transposes_are_adjoint,
    windows_and_dense_rows_agree,
    windows_read_what_dense_rows_read,
    multipliers_pay_for_their_rounding,
    forms_pay_for_their_mix,
    minima_over_sets_hold,
    sigmoid_is_enclosed,
    lines_hold,
    singles_stay_within,
    exact_arithmetic_agrees,
    no_tree_proves_a_falsehood,
    every_interval_holds,
    every_pass_is_below,
    many_at_once_are_judged_as_alone,
    rows_stop_where_it_is_enough,
    float64_shows_what_quick_passes_miss,
    one_quick_pass_is_charged,
    quick_bands_hold,
    quick_sums_are_not_below_the_exact,
    quick_passes_hold,
)
__all__ = ["LAWS", "Concat", "Select", "check_cases"]
