"""TAPS: the second part's attack finds the box's worst point, slopes reach the bounds as stated, losses keep order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from certify.errors import UsageError
from certify.models.architectures import mlp
from certify.models.registry import build
from certify.trainers.bounds import interval_margins, intervals, live, worst_loss
from certify.trainers.certified import Ibp
from certify.trainers.objective import Batch
from certify.trainers.taps import Taps, linked, split_at, tail


def batch(x: torch.Tensor, y: list[int], progress: float = 1.0, seed: int = 0) -> Batch:
    return Batch(x, torch.tensor(y), progress, torch.Generator().manual_seed(seed))


def dense(*weights: list[list[float]]) -> nn.Module:
    """Linear layers of these weights without biases, ReLUs between them."""
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(len(weight[0]), len(weight), bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# h = relu(x, -x), of which one is 0; z = (0, h_1 + h_2).
SPLIT = [[1.0], [-1.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]


def test_the_loss_by_hand() -> None:
    """x in [-0.25, 0.75]: h_1 in [0, 0.75], h_2 in [0, 0.25]. Label 1's margin is least at h = 0, label 0's greatest at
    (0.75, 0.25): in the box, though no x reaches it."""
    module = dense(*SPLIT)
    objective = Taps(0.5, low=-1.0)
    for label, worst in ((1, 0.0), (0, 1.0)):
        loss = math.log1p(math.exp(worst))
        found = objective(module, batch(torch.tensor([[0.25]]), [label]))
        assert found.item() == pytest.approx(loss * loss, rel=1e-4), "the attack attains the box's bound"


def test_slopes_reach_the_bounds_that_a_point_is_near() -> None:
    lower, upper = torch.zeros(1, 1, 5, requires_grad=True), torch.ones(1, 1, 5, requires_grad=True)
    points = torch.tensor([[[0.0, 0.125, 0.5, 0.75, 1.0]]])
    moved = linked(points, lower, upper, 0.5)
    assert torch.equal(moved, points)
    moved.sum().backward()
    assert lower.grad is not None
    assert upper.grad is not None
    assert lower.grad.flatten().tolist() == pytest.approx([1.0, 0.75, 0.0, 0.0, 0.0])
    assert upper.grad.flatten().tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0])


@pytest.mark.parametrize("name", ["cnn3", "cnn7", "mlp"])
@pytest.mark.parametrize("training", [True, False])
def test_the_tail_continues_the_network_and_the_loss_lies_between_clean_and_ibp(name: str, training: bool) -> None:
    torch.manual_seed(0)
    module = build(name, (1, 6, 6), 3, width=1 / 16).double().train(training)
    given = batch(torch.rand(12, 1, 6, 6, dtype=torch.float64), [0, 1, 2] * 4)
    now = live(module, given.x)
    split = split_at(now.graph, 1)
    torch.testing.assert_close(tail(now.graph, split, now.graph.evaluate(given.x)[split]), now.at(given.x))
    known = intervals(now.graph, (given.x - 0.01).clamp(0, 1), (given.x + 0.01).clamp(0, 1))
    ibp = worst_loss(interval_margins(known, given.y), given.y).item()
    clean = nn.functional.cross_entropy(now.logits, given.y).item()
    loss = Taps(0.01)(module, given)
    assert clean * ibp * 0.99 <= loss.item() <= ibp * ibp
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def test_on_the_ramp_it_is_ibp() -> None:
    module, given = dense(*SPLIT), batch(torch.tensor([[0.25]]), [0], progress=0.3)
    assert Taps(0.5, low=-1.0)(module, given).item() == Ibp(0.5, low=-1.0, kappa=(0.0, 0.0))(module, given).item()


def test_the_gradient_of_the_estimate_is_boosted() -> None:
    slopes = []
    for boost in (1.0, 5.0):
        module = dense(*SPLIT)
        Taps(0.0, low=-1.0, boost=boost)(module, batch(torch.tensor([[0.25]]), [1])).backward()
        slopes.append(module[-1].weight.grad)  # type: ignore[index]
    # At radius 0 both factors are the clean loss: (1 + 1) L L' and (5 + 1) L L'.
    torch.testing.assert_close(slopes[1], 3 * slopes[0])


def test_the_split_counts_relus_from_the_end() -> None:
    graph = live(mlp((3,), 2, (4, 5, 6)), torch.zeros(1, 3)).graph
    assert [graph.nodes[split_at(graph, n)].shape for n in (1, 2, 3, 9)] == [(5,), (4,), (3,), (3,)]


def test_a_network_that_ends_in_branches_is_refused() -> None:
    with pytest.raises(UsageError, match="chain"):
        Taps(0.01, relus=3)(build("resnet18", (1, 8, 8), 3, width=1 / 16), batch(torch.rand(4, 1, 8, 8), [0, 1, 2, 0]))
