"""CROWN with multipliers (beta-CROWN): a bound over the points whose values lie in the boxes, whatever they are."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import exact, values
from op_cases import nasty
from random_nets import Builder, boxes_for, random_flat, random_image, samples

from certify.bounding.crown import backward, plane, row_form
from certify.bounding.propagate import propagate, starts
from certify.bounding.region import Region
from certify.bounding.steps import lent

every_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


def narrowed(known, at, seed):
    """The knowledge with the boxes of start nodes cut at random, but not where the values `at` of one point are."""
    rng = np.random.default_rng([90, seed])
    boxes = list(known.boxes)
    for start in starts(known.graph):
        lower, upper = boxes[start]
        z = at[start].astype(lower.dtype)[None]
        keep = (rng.choice([0, 0.5, 0.999], z.shape).astype(z.dtype) for _ in range(2))
        low, high = (side + (z - side) * share for side, share in zip((lower, upper), keep, strict=True))
        low, high = np.minimum(low, np.nextafter(z, -np.inf)), np.maximum(high, np.nextafter(z, np.inf))
        boxes[start] = np.maximum(low, lower), np.minimum(high, upper)
    return replace(known, boxes=boxes)


def holds(known, inside):
    """Do these exact values lie in the boxes of all nodes?"""
    boxes = [(exact(low[0]), exact(high[0])) for low, high in known.boxes]
    return all(((z >= low) & (z <= high)).all() for z, (low, high) in zip(inside, boxes, strict=True))


@every_dtype
@pytest.mark.parametrize("make", [random_flat, random_image], ids=["flat", "image"])
@pytest.mark.parametrize("seed", range(5))
def test_no_point_of_the_narrowed_boxes_is_below(make, seed, dtype):
    """Multipliers of every size, at every start node, the input among them; rows have their own, or share one set."""
    rng = np.random.default_rng([91, seed])
    graph = make(seed).cast(np.zeros(1, dtype=dtype))
    lower, upper = (x[2:].astype(dtype).reshape(1, -1) for x in boxes_for(graph, seed))
    wide = propagate(graph, Region(lower, upper))
    rows = rng.standard_normal((1, 3, int(np.prod(graph.output_shape)))).astype(dtype)
    points = samples(lower[0], upper[0], seed, 20).astype(dtype)
    exactly = [values(graph, x.reshape(graph.input_shape)) for x in points]
    known = narrowed(wide, exactly[0], seed)
    found = [inside for inside in exactly if holds(known, inside)]
    assert found
    for size in (0.0, 1.0, 1e-20, 1e12):
        multipliers = {}
        for start in (0, *starts(graph)):
            shape = (1, int(rng.choice([1, 3])), known.flat(start)[0].shape[1])
            multipliers[start] = (size * rng.standard_normal(shape) * (rng.random(shape) < 0.5)).astype(dtype)
        low = backward(known, row_form(graph.output, rows), multipliers=multipliers)
        flat = plane(known, row_form(graph.output, rows), multipliers=multipliers)
        assert np.isfinite(low).all()
        for inside in found:
            truth = exact(rows[0]) @ inside[-1].ravel()
            assert (exact(low[0]) <= truth).all()
            assert (exact(flat.coeff[0]) @ inside[0].ravel() + exact(flat.constant[0]) <= truth).all()


def test_multipliers_of_zero_change_nothing_and_numpy_agrees_with_torch():
    graph = random_flat(2, smooth=False)
    lower, upper = (x[2:].reshape(1, -1) for x in boxes_for(graph, 2))
    known = propagate(graph.cast(np.zeros(1)), Region(lower, upper))
    form = row_form(graph.output, np.eye(2)[None])
    zero = {s: np.zeros((1, 1, known.flat(s)[0].shape[1])) for s in starts(graph)}
    np.testing.assert_allclose(backward(known, form, multipliers=zero), backward(known, form), rtol=1e-9, atol=1e-9)
    some = {s: np.random.default_rng(s).standard_normal((1, 2, v.shape[2])) for s, v in zero.items()}
    here = backward(known, form, multipliers=some)
    wide = torch.zeros(1, dtype=torch.float64)
    region = Region(torch.as_tensor(lower), torch.as_tensor(upper))
    there = backward(
        propagate(graph.cast(wide), region),
        row_form(graph.output, torch.eye(2, dtype=torch.float64)[None]),
        multipliers={s: torch.as_tensor(v) for s, v in some.items()},
    )
    np.testing.assert_allclose(here, there.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rounding", [True, False])
def test_a_multiplier_lends_a_bound_by_hand(rounding):
    """min relu(x) - x / 2 over [-1, 1], where x >= 1/2 is known: 1/4; without multipliers -1/2."""
    b = Builder((1,))
    hidden = b.relu(0)
    graph = b.graph(b.sub(hidden, b.scale(0, 0.5))).cast(np.zeros(1))
    known = propagate(graph, Region(-np.ones((1, 1)), np.ones((1, 1))))
    boxes = [(np.full((1, 1), 0.5), np.ones((1, 1))), *known.boxes[1:]]
    known = replace(known, boxes=boxes)
    form = row_form(graph.output, np.ones((1, 1, 1)))
    lows = [backward(known, form, multipliers={0: np.full((1, 1, 1), v)}, rounding=rounding) for v in (0.5, 0.0)]
    np.testing.assert_allclose([float(low[0, 0]) for low in lows], [0.25, -0.5], atol=1e-12)


@every_dtype
@pytest.mark.parametrize("seed", range(6))
def test_what_is_lent_is_never_above_its_definition(seed, dtype):
    """a x >= (a - v) x + change - error for x in the box, in rationals, with hostile numbers: giants that cancel,
    subnormals, neighbours.
    """
    rng = np.random.default_rng([92, seed])
    for _ in range(30):
        a, v = nasty(rng, (2, 5), dtype), nasty(rng, (2, 5), dtype)
        v = np.where(rng.random(v.shape) < 0.4, a, v)
        ends = np.sort(nasty(rng, (2, 5), dtype), axis=0)
        box = ends[:1], ends[1:]
        left, change, error = (part[0] for part in lent(a[None], v[None], box))
        if not (np.isfinite(change).all() and np.isfinite(error).all()):
            continue
        for x in (ends[0], ends[1], ends[rng.integers(0, 2, 5), np.arange(5)]):
            for s in range(2):
                claim = (exact(left[s]) * exact(x)).sum() + exact(change[s : s + 1])[0] - exact(error[s : s + 1])[0]
                assert claim <= (exact(a[s]) * exact(x)).sum()


def test_the_error_of_what_is_lent_is_small():
    """A few ulps of what is summed: it decides how much of a proof is left."""
    a, v = np.full((1, 1, 3), 1.0), np.full((1, 1, 3), 0.25)
    _, change, error = lent(a, v, (np.full((1, 3), -2.0), np.full((1, 3), 3.0)))
    assert float(change[0, 0]) == 3 * 0.25 * -2.0
    assert 0 < Fraction(float(error[0, 0])) < Fraction(1, 10**13)
