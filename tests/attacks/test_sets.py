"""Laws of the input sets: projections are nearest points, steps and starts stay inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from certify.attacks.sets import TorchSets
from certify.property import Box, LpBall

ATOL = 1e-5


def sets_of(p, count=5, n=7, seed=0):
    rng = np.random.default_rng(seed)
    center = rng.uniform(-1, 1, (count, n))
    box = Box.exact(np.full(n, -1.0), np.full(n, 1.0))
    if p == 0:
        return TorchSets.of([Box.exact(c - 0.3, c + rng.uniform(0, 1, n)) for c in center], torch.zeros(1))
    return TorchSets.of([LpBall(c, 0.7, 0.7, p, box) for c in center], torch.zeros(1))


def excess(sets, x):
    """How far outside the box or the ball the worst point is."""
    outside = torch.maximum(sets.lower - x, x - sets.upper).amax()
    if sets.p == 0:
        return float(outside)
    norm = torch.linalg.vector_norm(x - sets.center, ord=sets.p, dim=1)
    return float(torch.maximum(outside, (norm - sets.radius).amax()))


@pytest.mark.parametrize("p", [0, 1, 2])
def test_projections_are_inside_and_nearer_than_any_sampled_point(p):
    sets = sets_of(p)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sets.lower.shape, generator=generator) * 2
    nearest = sets.project(x)
    assert excess(sets, nearest) <= ATOL
    distance = torch.linalg.vector_norm(nearest - x, dim=1)
    for _ in range(300):
        assert (torch.linalg.vector_norm(sets.random(generator) - x, dim=1) >= distance - ATOL).all()
        # also against points close to the projection
        close = sets.project(nearest + 0.05 * torch.randn(x.shape, generator=generator))
        assert (torch.linalg.vector_norm(close - x, dim=1) >= distance - ATOL).all()


def test_projections_worked_by_hand():
    # L1 (Duchi et al. 2008): (3, 1, 0) onto radius 2: threshold 1 -> (2, 0, 0). L2: (3, 4) onto 1: (.6, .8).
    wide = [Box.exact(np.full(n, -9.0), np.full(n, 9.0)) for n in (3, 2)]
    one = TorchSets.of([LpBall(np.zeros(3), 2.0, 2.0, 1, wide[0])], torch.zeros(1))
    torch.testing.assert_close(one.project(torch.tensor([[3.0, 1.0, 0.0]])), torch.tensor([[2.0, 0.0, 0.0]]))
    two = TorchSets.of([LpBall(np.zeros(2), 1.0, 1.0, 2, wide[1])], torch.zeros(1))
    torch.testing.assert_close(two.project(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("p", [0, 1, 2])
def test_starts_and_steps_stay_inside_and_steps_go_downhill(p):
    sets = sets_of(p, seed=2)
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        x, corner = sets.random(generator), sets.corner(generator)
        gradient = torch.randn(x.shape, generator=generator)
        moved = sets.advance(x, gradient, 0.2, generator)
        for point in (x, corner, moved):
            assert excess(sets, point) <= ATOL
        assert ((gradient * (moved - sets.center)).sum(1) <= (gradient * (x - sets.center)).sum(1) + ATOL).all() or p


def test_degenerate_coordinates_do_not_move():
    sets = TorchSets.of([Box.exact(np.array([0.25, 0.0]), np.array([0.25, 1.0]))], torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    moved = sets.advance(sets.random(generator), torch.tensor([[1.0, -1.0]]), 1.0, generator)
    assert moved.tolist() == [[0.25, 1.0]]


def test_a_zero_radius_leaves_the_centre_only():
    box = Box.exact(np.zeros(2), np.ones(2))
    for p in (1, 2):
        sets = TorchSets.of([LpBall(np.array([0.25, 0.5]), 0.0, 0.0, p, box)], torch.zeros(1))
        generator = torch.Generator().manual_seed(0)
        assert sets.random(generator).tolist() == [[0.25, 0.5]]
        assert sets.project(torch.ones(1, 2)).tolist() == [[0.25, 0.5]]
