"""Networks made to fool floats: at a point of the box the exact output is unsafe, and floats do not see it.

Sources. Zombori, Banhelyi, Csendes, Megyeri, Jelasity, "Fooling a complete neural network verifier", ICLR 2021: a
switch relu(x + w) - w with w so large that floats lose x; over several layers; among other neurons. Jia & Rinard,
"Exploiting verified neural networks via floating point numerical error", SAS 2021: properties violated by a hair, or
satisfied by a hair in the reals and violated by what runs. Higham, "Accuracy and stability of numerical algorithms",
2002: sums that depend on their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from onnx_exact import exact_run, layers, net

f32, f64 = np.float32, np.float64


@dataclass(frozen=True)
class Trap:
    """Network `file` over the box [lower, upper]: y <= offset is unsafe, and at x the network is.

    safe: an offset that is comfortably true and that some method proves; None where it would be unfair to ask.
    """

    file: bytes
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    x: tuple[float, ...]
    offset: float
    safe: float | None = None


def wide(number: float, count: int) -> tuple[float, ...]:
    return (number,) * count


def switch(dtype: Any) -> Trap:
    """relu(x + w) - w is x, but 0 in floats; the margin 1/2 - x is then 1/2 everywhere."""
    w = 2.0**54 if dtype is f64 else 2.0**25
    file = layers(([[1.0]], [w]), ([[1.0]], [-w]), ([[-1.0]], [0.5]), dtype=dtype)
    return Trap(file, (0.0,), (1.0,), (1.0,), 0.0, -(2.0**14))


def split_switch(dtype: Any) -> Trap:
    """w grows by 2^6 a layer (or 2^5), no weight is large; x is carried along."""
    step, count = (64.0, 9) if dtype is f64 else (32.0, 5)
    first = ([[1.0], [0.0]], [0.0, 1.0])
    grow = ([[1.0, 0.0], [0.0, step]], [0.0, 0.0])
    both, apart = ([[1.0, 1.0], [0.0, 1.0]], [0.0, 0.0]), ([[1.0, -1.0]], [0.0])
    file = layers(first, *[grow] * count, both, apart, ([[-1.0]], [0.5]), dtype=dtype)
    return Trap(file, (0.0,), (1.0,), (1.0,), 0.0, -(2.0**14))


def hidden_switch(dtype: Any) -> Trap:
    """The switch spread over three layers, among eight other neurons a layer that read it and are read."""
    rng = np.random.default_rng(5)
    w, count, read = (2.0**18 if dtype is f64 else 2.0**8), 8, 4

    def dyadic(*shape: int) -> Any:
        return rng.integers(-8, 9, shape) / 8.0

    first = (np.vstack([np.eye(2, read), dyadic(count, read)]), np.concatenate([[0.0, w], dyadic(count)]))
    first[0][1] = 0
    grow = [[1.0, 0.0], [0.0, w]]
    blocks = []
    for top in (grow, grow, [[1.0, 1.0], [0.0, 1.0]]):
        weight = np.zeros((2 + count, 2 + count))
        weight[:2, :2], weight[2:, 2:] = top, dyadic(count, count) / 4
        weight[2:, 0] = dyadic(count) / 8
        blocks.append((weight, np.concatenate([[0.0, 0.0], dyadic(count)])))
    last = np.concatenate([[[1.0, -1.0]], np.zeros((1, count))], axis=1)
    keep = np.concatenate([np.zeros((count, 2)), np.eye(count)], axis=1)
    apart = (np.vstack([last, keep]), np.zeros(1 + count))
    out = np.concatenate([[[-1.0]], np.full((1, count), 2.0**-9)], axis=1)
    file = layers(first, *blocks, apart, (out, [0.5]), dtype=dtype)
    return Trap(file, wide(0.0, read), wide(1.0, read), (1.0, 0.0, 0.0, 0.0), 0.0, -(2.0**20))


def branches(dtype: Any) -> Trap:
    """y = (relu(w x) + x) - relu(w x) - 1/2: x is lost in the first sum."""
    w = 2.0**60 if dtype is f64 else 2.0**30
    nodes = [
        ("Mul", ("x", "w"), "big"),
        ("Relu", ("big",), "a"),
        ("Add", ("a", "x"), "sum"),
        ("Sub", ("sum", "a"), "back"),
        ("Sub", ("half", "back"), "y"),
    ]
    file = net(nodes, {"w": [[w]], "half": [[0.5]]}, 1, dtype)
    return Trap(file, (0.25,), (1.0,), (1.0,), 0.0, -(2.0**14))


def order_of_weights(dtype: Any) -> Trap:
    """w x0 + x1 - w x2 at (1, 1, 1) is 1; y = 1/2 - that."""
    w = 1e16 if dtype is f64 else 2.0**26
    hidden = ([[w, 1.0, -w], [-w, 1.0, w]], [0.0, 0.0])
    file = layers(hidden, ([[-1.0, 0.0]], [0.5]), dtype=dtype)
    return Trap(file, wide(1.0, 3), wide(1.0, 3), wide(1.0, 3), 0.0, -1e3)


def order_of_biases(dtype: Any) -> Trap:
    """((x + w) + 1) - w, the 1 being lost, then relu: 1/2 - (x + 1) is at most -1/2 in the reals."""
    w = 1e17 if dtype is f64 else 2.0**27
    nodes = [
        ("Add", ("x", "w"), "a"),
        ("Add", ("a", "one"), "b"),
        ("Sub", ("b", "w"), "c"),
        ("Relu", ("c",), "d"),
        ("Sub", ("half", "d"), "y"),
    ]
    file = net(nodes, {"w": [[w]], "one": [[1.0]], "half": [[0.5]]}, 1, dtype)
    return Trap(file, (0.0,), (0.0,), (0.0,), 0.0, -1e4)


def layer_of_ones(dtype: Any) -> Trap:
    """One large number and 2^12 small ones, each of which is lost when it is added to the large one alone."""
    count, w = 4096, (2.0**54 if dtype is f64 else 2.0**25)
    weight = np.concatenate([[w], np.ones(count), [-w]])[None]
    file = layers((weight, [0.0]), ([[-1.0]], [2048.0]), dtype=dtype)
    ones = wide(1.0, count + 2)
    return Trap(file, ones, ones, ones, 0.0, None)


def overflow(dtype: Any) -> Trap:
    """(w relu(w x) - w relu(w x)) + 1/2 - x: inf - inf in floats, 1/2 - x in the reals."""
    w = 1e300 if dtype is f64 else 1e38
    nodes = [
        ("Mul", ("x", "w"), "a"),
        ("Relu", ("a",), "b"),
        ("Mul", ("b", "w"), "c"),
        ("Sub", ("c", "c"), "d"),
        ("Sub", ("half", "x"), "e"),
        ("Add", ("d", "e"), "y"),
    ]
    return Trap(net(nodes, {"w": [[w]], "half": [[0.5]]}, 1, dtype), (0.5,), (1.0,), (1.0,), 0.0)


def overflow_that_returns(dtype: Any) -> Trap:
    """relu(v - w relu(w x)) is 0 where -inf goes in, and v / w^2 sized above: y = relu(x w w - v) / w / w, scaled."""
    w = 1e300 if dtype is f64 else 1e38
    file = layers(([[w]], [0.0]), ([[w]], [0.0]), ([[1 / w]], [0.0]), ([[-1 / w]], [0.25]), dtype=dtype)
    return Trap(file, (0.0,), (1.0,), (1.0,), 0.0)


def subnormal(dtype: Any) -> Trap:
    """x times the smallest number is lost; times two large ones it is x again."""
    info = np.finfo(dtype)
    tiny, back = float(info.smallest_subnormal), 2.0 ** (60 if dtype is f32 else 1000)
    rest = float(2.0 ** (-np.log2(tiny) - np.log2(back)))
    file = layers(([[tiny]], [0.0]), ([[back]], [0.0]), ([[-rest]], [0.25]), dtype=dtype)
    return Trap(file, (0.25,), (0.5,), (0.5,), 0.0)


def no_float32(dtype: Any) -> Trap:
    """2^30 (x - float32(0.1)) + 1 at x = 0.1, which is no float32: -0.6 in the reals, 1 for a runtime."""
    near = float(np.float32(0.1))
    file = layers(([[2.0**30], [-(2.0**30)]], [-near * 2.0**30, near * 2.0**30]), ([[1.0, -1.0]], [1.0]), dtype=dtype)
    return Trap(file, (0.1,), (0.1,), (0.1,), 0.0, -1.0)


def concave(scale: float, dtype: Any) -> tuple[bytes, tuple[float, ...], Fraction]:
    """-(a sum of ReLUs) of 3 inputs on [0, 1]^3: its least value is at a corner, which rationals find."""
    rng = np.random.default_rng(11)
    weight, bias = rng.normal(size=(6, 3)), 0.3 * rng.normal(size=6)
    file = layers((weight, bias), (-scale * np.abs(rng.normal(size=(1, 6))), [0.0]), dtype=dtype)
    corners = list(itertools.product((0.0, 1.0), repeat=3))
    values = [exact_run(file, c)[0] for c in corners]
    best = min(range(8), key=lambda k: values[k])
    return file, corners[best], values[best]


def hair(relative: float, scale: float, dtype: Any) -> Trap:
    """A piecewise linear network, and an offset that its least value misses by a hair."""
    file, x, least = concave(scale, dtype)
    offset = float(least * (1 - Fraction(relative)))  # least < 0
    while Fraction(offset) < least:
        offset = float(np.nextafter(offset, np.inf))
    return Trap(file, wide(0.0, 3), wide(1.0, 3), x, offset, float(least) * (1 + 1e-3))


TRAPS: dict[str, Callable[[], Trap]] = {
    f"{make.__name__}-{np.dtype(dtype).name}": lambda make=make, dtype=dtype: make(dtype)
    for make in (
        switch,
        split_switch,
        hidden_switch,
        branches,
        order_of_weights,
        order_of_biases,
        layer_of_ones,
        overflow,
        overflow_that_returns,
        subnormal,
        no_float32,
    )
    for dtype in (f32, f64)
}
TRAPS |= {
    f"hair-{relative:g}-of-{scale:g}-{np.dtype(dtype).name}": lambda r=relative, s=scale, d=dtype: hair(r, s, d)
    for relative, scale, dtype in (
        (1e-9, 1.0, f64),
        (1e-12, 1.0, f32),
        (1e-16, 1.0, f64),
        (0.0, 1.0, f32),
        (1e-3, 1e-10, f64),
        (1e-9, 1e-10, f32),
        (1e-9, 1e-40, f64),
        (1e-9, 1e12, f64),
    )
}


@cache
def trap(name: str) -> Trap:
    return TRAPS[name]()
