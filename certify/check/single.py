"""How far any float32 execution of a network may be from its values in real arithmetic, over a case's input set.

A running bound e_i >= |computed - true| of every tensor, carried forward from the input: e = 0, its numbers being
float32 as the runtime gets them; where a coordinate's interval holds no float32, the gap between the two around it
(any of the interval is rounded to one of these). With u = 2^-24, X = |x| + e:

y = W x + b   e' = |W| e + gamma_{n+8} (|W| X + |b|) + 2^31 (weight_error |W| X + bias_error) + underflow ReLU, max
e' = e, the largest of the operands' (they are 1-Lipschitz and exact) sigmoid       e' = e / 4 + SIGMOID

gamma_{n+8} = (n + 8) u / (1 - (n + 8) u): sums of n products in any order, with or without FMA, blocked or not, and 8
roundings more for constants that the runtime folds or multiplies in at another place (bias, scale, batch
normalisation). weight_error and bias_error are what computing a constant in float64 may lose; computing it in float32
loses 2^29 times as much, and 4 times this is granted.

Assumed of the runtime: float32 throughout, each operation rounded to nearest (results below 2^-126 may be flushed to
zero); no Winograd, FFT or Strassen products; no float16, bfloat16, TF32 or quantised products; sigmoid to 2^-21, tanh
to 2^-20. What is shown is about the network's stated output: a Softmax that was left out may still round two classes
to a tie.
"""

from __future__ import annotations

import math

import numpy as np

from certify.check.content import Polytope
from certify.check.errors import Rejected
from certify.check.interval import Bounds, Model, model_of, row
from certify.check.network import Float64, Maximum, Relu, Sigmoid
from certify.check.rounding import REAL, SMALL, TINY, U32

LARGE = 2.0**127
SIGMOID = 2.0**-21
COMPUTED = 2.0**31


def short(polytope: Polytope, mix: Float64, need: Float64 | None) -> float:
    """By how much a margin of float32's outputs may be less than the real one: sum_r mix_r |C_r| need, upward.

    need: of `deviation`, (m,); None, which gives infinity, where float32 may be anywhere.
    """
    if need is None:
        return math.inf
    lost = mix[: len(polytope.offset)] @ np.abs(polytope.coeff) @ need
    found = float(lost * (1 + 2.0**-20) + polytope.coeff.size * TINY)
    return found if found >= 0 else math.inf


def needs(bounds: Bounds) -> list[Float64 | None]:
    """`deviation` of every box; None where float32 may be off by anything."""
    count = len(bounds.interval(0)[0])
    try:
        return list(deviation(bounds))
    except Rejected:
        return [None] if count == 1 else [needs(row(bounds, k))[0] for k in range(count)]


def deviation(bounds: Bounds) -> Float64:
    """(B, m): the bound for the output of every box. `bounds` carried forward to the end."""
    model = model_of(bounds.model.network, REAL) if bounds.model.arithmetic.exact else bounds.model
    nodes = model.network.nodes
    if model.network.doubts:
        raise Rejected(f"float32: node {model.network.doubts[0]}")
    found: list[Float64] = [_gap(*bounds.interval(0))]
    for index in range(1, len(nodes)):
        node = nodes[index]
        errors = [found[i] for i in node.inputs]
        match node.op:
            case Relu():
                error = errors[0]
            case Maximum():
                error = np.maximum(errors[0], errors[1])
            case Sigmoid():
                error = errors[0] / 4 + SIGMOID
            case _:
                sizes = [np.maximum(*map(np.abs, bounds.interval(i))) for i in node.inputs]
                error = _affine(model, index, errors, sizes)
        # Operations between non-negative float64 numbers: this pays for their own rounding.
        found.append(error * (1 + 2.0**-30))
    return found[-1]


def _gap(lower: Float64, upper: Float64) -> Float64:
    """How far rounding a number of [lower, upper] to a float32 may go; 0 where the interval holds one."""
    near = lower.astype(np.float32)
    below = np.where(near > lower, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)
    above = np.where(near < lower, np.nextafter(near, np.float32(np.inf)), near).astype(np.float64)
    return np.where(above <= upper, 0.0, above - below)


def _affine(model: Model, index: int, errors: list[Float64], sizes: list[Float64]) -> Float64:
    node, rule = model.network.nodes[index], model.maps[index]
    assert rule is not None
    if not rule.terms:
        same: Float64 = rule.forward(*errors)
        return same
    count = rule.terms + 8
    if not count * U32 < 0.5:
        raise Rejected(f"{node.name}: sums too long for float32")
    gamma = count * U32 / (1 - count * U32)
    large = [s + e for s, e in zip(sizes, errors, strict=True)]
    bias = np.zeros(1) if rule.bias is None else np.abs(rule.bias)
    relative = gamma + COMPUTED * rule.weight_error
    parts = (e + SMALL + relative * s for e, s in zip(errors, large, strict=True))
    found = model.arithmetic.above(rule.magnitude, *parts) + gamma * bias
    if not (found * (1 + gamma) < LARGE * gamma).all():  # found / gamma is at least |W| X + |b|
        raise Rejected(f"{node.name}: float32 may overflow")
    found = found + SMALL * 2 * count * (1 + max(float(s.max()) for s in large))
    result: Float64 = found + COMPUTED * (0.0 if rule.bias_error is None else rule.bias_error)
    return result
