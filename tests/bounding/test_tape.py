"""Steps with gradients of their own are the plain steps: values and gradients, against autograd."""

from __future__ import annotations

import pytest
import torch

from certify.arrays import put_along, take_along
from certify.bounding.steps import through
from certify.bounding.tape import box_minimum, through_unstable
from certify.ops.base import Slopes
from certify.ops.relu import Relu
from certify.rules import relax


@pytest.mark.parametrize("seed", range(10))
def test_a_step_over_the_unstable_neurons_is_the_step_over_all(seed):
    """Stable neurons, padding among the unstable ones and neurons that became stable since included."""
    draw = torch.Generator().manual_seed(seed)
    center = torch.randn(2, 9, dtype=torch.float64, generator=draw)
    radius = torch.rand(2, 9, dtype=torch.float64, generator=draw)
    before = (center - 1.5 * radius < 0) & (center + 1.5 * radius > 0)
    at = before.byte().argsort(dim=1, descending=True, stable=True)[:, : int(before.sum(dim=1).max())]
    a = torch.randn(2, 4, 9, dtype=torch.float64, generator=draw).requires_grad_()
    alpha = torch.rand(2, 4, at.shape[1], dtype=torch.float64, generator=draw).requires_grad_()
    box = (center - radius).requires_grad_(), (center + radius).requires_grad_()

    found = through_unstable(a, Relu(), box, Slopes(alpha, at=at))

    wide = torch.zeros(2, 4, 9, dtype=torch.float64).scatter(2, at[:, None, :].expand(-1, 4, -1), alpha)
    # Neurons outside `at` are stable whatever their box: their bounds have no influence.
    inside = [put_along(side.detach(), at, take_along(side, at))[:, None, :] for side in box]
    out, change, _ = through(a, relax(Relu(), *inside, Slopes(wide)), None)
    torch.testing.assert_close(found[0], out)
    torch.testing.assert_close(found[1], change)
    weights = [torch.randn(x.shape, dtype=x.dtype, generator=draw) for x in found]
    leaves = (a, alpha, *box)
    slow = torch.autograd.grad((out * weights[0]).sum() + (change * weights[1]).sum(), leaves)
    fast = torch.autograd.grad((found[0] * weights[0]).sum() + (found[1] * weights[1]).sum(), leaves)
    for mine, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_minimum_over_boxes_and_where_it_is_attained():
    """min 2 x - y + z / 2 over [1, 3] x [-1, 4] x [5, 6] is 2 - 4 + 2.5, at (1, 4, 5)."""
    a = torch.tensor([[[2.0, -1.0, 0.5]]], requires_grad=True)
    value = box_minimum(a, torch.tensor([[1.0, -1.0, 5.0]]), torch.tensor([[3.0, 4.0, 6.0]]))
    assert value.tolist() == [[0.5]]
    (gradient,) = torch.autograd.grad(3 * value.sum(), a)
    assert gradient.tolist() == [[[3.0, 12.0, 15.0]]]
