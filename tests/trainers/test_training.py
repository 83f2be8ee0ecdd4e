"""Training lowers its loss, is repeatable from its seed, and the IBP objective bounds what it says it bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from certify.errors import UsageError
from certify.models.architectures import cnn, mlp
from certify.trainers.ibp import IbpObjective, worst_logits
from certify.trainers.loop import Schedule, accuracy, train
from certify.trainers.standard import cross_entropy


def blobs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clouds in the unit square, well apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(120) % 3
    centers = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
    return centers[y] + 0.05 * torch.randn(120, 2, generator=generator), y


def trained(objective: object, epochs: int = 30) -> nn.Module:
    torch.manual_seed(0)
    module = mlp((2,), 3, (16,))
    x, y = blobs()
    train(module, x, y, objective, Schedule(epochs, batch_size=40, learning_rate=2e-2), seed=0)
    return module


def test_standard_training_learns_and_repeats() -> None:
    first, second = trained(cross_entropy), trained(cross_entropy)
    assert accuracy(first, *blobs(1)) > 0.95
    assert not first.training
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ibp_training_certifies_more_than_standard_training() -> None:
    x, y = blobs(1)
    modules = trained(cross_entropy), trained(IbpObjective(0.12), epochs=60)
    rates = [float((worst_logits(m, x, y, 0.1, (0.0, 1.0)).argmax(1) == y).double().mean()) for m in modules]
    assert rates[1] > max(0.8, rates[0])


def test_worst_logits_enclose_every_sample_of_the_ball() -> None:
    torch.manual_seed(0)
    module = cnn((1, 4, 4), 3, (2, 3), 5).eval()
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        worst = worst_logits(module, x, y, 0.1, (0.0, 1.0))
        for _ in range(200):
            moved = (x + 0.2 * torch.rand_like(x) - 0.1).clamp(0, 1)
            logits = module(moved)
            label = nn.functional.one_hot(y, 3).bool()
            assert bool((logits[label] >= worst[label]).all())
            assert bool((logits[~label] <= worst[~label]).all())


def test_at_radius_zero_the_worst_logits_are_the_logits() -> None:
    torch.manual_seed(0)
    module = mlp((2,), 3, (8,)).double()
    x, y = torch.rand(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    torch.testing.assert_close(worst_logits(module, x, y, 0.0, (0.0, 1.0)), module(x), rtol=1e-9, atol=1e-9)


def test_the_objective_ramps_from_clean_to_half_worst() -> None:
    torch.manual_seed(0)
    module = mlp((2,), 3, (8,))
    x, y = blobs()
    objective = IbpObjective(0.1, ramp=(0.2, 0.6))
    clean = cross_entropy(module, x, y, 0.0)
    assert torch.equal(objective(module, x, y, 0.1), clean)
    worst = nn.functional.cross_entropy(worst_logits(module, x, y, 0.1, (0.0, 1.0)), y)
    torch.testing.assert_close(objective(module, x, y, 0.9), 0.5 * clean + 0.5 * worst)
    assert bool(objective(module, x, y, 0.4) < objective(module, x, y, 0.9))


def test_a_diverging_training_says_so() -> None:
    module = mlp((2,), 3, (8,))
    x, y = blobs()
    with pytest.raises(UsageError, match="diverged"):
        train(module, x * float("nan"), y, cross_entropy, Schedule(1), seed=0)


def test_the_learning_rate_falls_by_ten_at_each_point() -> None:
    schedule = Schedule(10, learning_rate=1.0, decay_at=(0.5, 0.75))
    assert [schedule.rate(p) for p in (0.0, 0.49, 0.5, 0.8)] == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_architectures_have_the_shapes_they_promise() -> None:
    assert cnn((3, 9, 7), 4, (2, 3, 5), 6)(torch.zeros(2, 3, 9, 7)).shape == (2, 4)
    assert mlp((3, 2, 2), 4, ())(torch.zeros(2, 3, 2, 2)).shape == (2, 4)
