"""Losses equal numbers worked by hand, attacks stay in their balls, modes are those of the papers' code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from certify.errors import UsageError
from certify.trainers.adversarial import FastTraining, FreeTraining, PgdTraining, other_classes
from certify.trainers.ascent import ascend, attacked, wrongness
from certify.trainers.ensemble import Adp, ensemble
from certify.trainers.mart import Mart
from certify.trainers.noise import GaussianNoise, Macer, NoiseTrades, SmoothAdv, quantile
from certify.trainers.objective import Ball, Batch, ramped
from certify.trainers.reverse import ReverseCrossEntropy
from certify.trainers.standard import Standard
from certify.trainers.trades import Trades, divergence


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Module:
    """x -> W x + b."""
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.tensor(bias))
    return nn.Sequential(layer)


def batch(x: list[list[float]], y: list[int], progress: float = 1.0, seed: int = 0) -> Batch:
    return Batch(torch.tensor(x), torch.tensor(y), progress, torch.Generator().manual_seed(seed))


def softplus(z: float) -> float:
    """-log softmax of a class that lies z behind: log(1 + e^z)."""
    return math.log1p(math.exp(z))


# z_1 - z_0 = 2 x: at x = 0.5 the margin of class 1 is 1, and within 0.25 at least 0.5.
TWO = [[-1.0], [1.0]]


def test_cross_entropy_by_hand() -> None:
    assert Standard()(linear(TWO), batch([[0.5]], [1])).item() == pytest.approx(softplus(-1.0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_reaches_the_worst_end_of_the_ball(norm: str) -> None:
    objective = PgdTraining(0.25, norm, steps=20, step=0.1)
    assert objective(linear(TWO), batch([[0.5]], [1])).item() == pytest.approx(softplus(-0.5))


def test_the_radius_of_pgd_grows_along_its_ramp() -> None:
    objective = PgdTraining(0.25, steps=20, step=0.1, ramp=(0.2, 0.6))
    for progress, radius in ((0.1, 0.0), (0.4, 0.125), (0.6, 0.25), (1.0, 0.25)):
        found = objective(linear(TWO), batch([[0.5]], [1], progress))
        assert found.item() == pytest.approx(softplus(-1.0 + 2 * radius))


def test_targeted_pgd_on_two_classes_is_untargeted() -> None:
    objective = PgdTraining(0.25, steps=20, step=0.1, targeted=True)
    assert objective(linear(TWO), batch([[0.5]], [1])).item() == pytest.approx(softplus(-0.5))


def test_a_target_is_never_the_label_and_every_other_class() -> None:
    y = torch.arange(300) % 3
    target = other_classes(y, 3, torch.Generator().manual_seed(0))
    assert bool((target != y).all())
    assert {(int(a), int(b)) for a, b in zip(y, target, strict=True)} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }


def test_fast_training_steps_1_25_epsilon_from_a_random_start() -> None:
    given = batch([[0.5]], [1], seed=3)
    ball = Ball(0.25)
    start = ball.draw(given.x, torch.Generator().manual_seed(3)).item()
    end = max(start - 1.25 * 0.25, 0.25)
    assert FastTraining(0.25)(linear(TWO), given).item() == pytest.approx(softplus(-2 * end), rel=1e-5)


def test_free_training_moves_delta_by_the_gradient_of_the_same_pass() -> None:
    given = batch([[0.5]], [1])
    module, objective = linear(TWO), FreeTraining(0.25)
    first = objective(module, given)
    assert first.item() == pytest.approx(softplus(-1.0))
    assert "delta" not in given.memory
    first.backward()
    assert given.memory["delta"].item() == pytest.approx(-0.25)
    assert objective(module, given).item() == pytest.approx(softplus(-0.5))


def test_free_training_moves_a_pixel_at_the_edge_of_the_range() -> None:
    """Downhill of label 0 is up: from x = 0 a first step down is cut to 0, and the next one must still move."""
    given = batch([[0.0]], [1])
    module, objective = linear(TWO), FreeTraining(0.25)
    objective(module, given).backward()
    assert given.memory["delta"].item() == pytest.approx(-0.25)
    other = Batch(given.x, torch.tensor([0]), 1.0, given.generator, given.memory)
    objective(module, other).backward()
    assert given.memory["delta"].item() == pytest.approx(0.25), "0 is the cut start, from which it steps up"


def test_free_training_takes_a_smaller_last_batch() -> None:
    given = batch([[0.5], [0.4]], [1, 1])
    module, objective = linear(TWO), FreeTraining(0.25)
    objective(module, given).backward()
    last = Batch(given.x[:1], given.y[:1], 1.0, given.generator, given.memory)
    objective(module, last).backward()
    assert given.memory["delta"].shape == (2, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_stay_in_ball_and_input_range(norm: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.rand(50, 3, 2, 2), torch.arange(50) % 3
    ball = Ball(0.3, norm)
    start = ball.draw(x, torch.Generator().manual_seed(0))
    points = ascend(lambda p: wrongness(module(p), y), x, start, ball, 5, 0.2)
    for found in (start, points):
        moved = (found - x).flatten(1)
        size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
        assert float(size.max()) <= 0.3 + 1e-6
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
    assert bool((wrongness(module(points), y) >= wrongness(module(x), y)).all())


def test_an_attack_leaves_mode_and_gradients_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).train()
    before = module[1].running_mean.clone()
    safe = attacked(module, torch.rand(8, 2), torch.arange(8) % 2, Ball(0.1), torch.Generator(), steps=3)
    assert safe.shape == (8,)
    assert module.training
    assert torch.equal(module[1].running_mean, before)
    assert all(p.grad is None for p in module.parameters())


def test_trades_by_hand() -> None:
    """p = p(x) fixed at x = 0; x' is an end of the ball; KL(p || p') = sum p log(p / p')."""
    objective = Trades(0.25, low=-1.0, steps=20, step=0.1, beta=6.0)
    p = 0.5
    q = 1 / (1 + math.exp(-0.5))  # at x' = +-0.25
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert objective(linear(TWO), batch([[0.0]], [1])).item() == pytest.approx(math.log(2) + 6 * kl, rel=1e-5)


def test_the_divergence_of_trades_starts_from_the_clean_side() -> None:
    clean, moved = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(clean, moved).item() == pytest.approx(expected)
    assert divergence(moved, clean).item() != pytest.approx(expected, rel=1e-3)


def test_trades_attacks_in_evaluation_mode_and_learns_from_both_sides() -> None:
    modes = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(x)

    module = nn.Sequential(Watched(1, 2)).train()
    Trades(0.25, steps=4)(module, batch([[0.5]], [1])).backward()
    assert modes == [False] * 5 + [True] * 2, "p(x) and four steps, then f(x) and f(x')"
    clean = torch.tensor([[0.3, -0.2]], requires_grad=True)
    divergence(clean, torch.tensor([[0.0, 0.5]])).backward()
    assert clean.grad is not None
    assert float(clean.grad.abs().max()) > 0.01


def test_mart_by_hand() -> None:
    """x' = 0.25, the near end: q_y = sigmoid(0.5), the rival 1 - q_y; p_y = sigmoid(1)."""
    p, q = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-0.5))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    expected = -math.log(q) - math.log(1.0001 - (1 - q)) + 6 * kl * (1 - p)
    objective = Mart(0.25, steps=20, step=0.1)
    assert objective(linear(TWO), batch([[0.5]], [1])).item() == pytest.approx(expected, rel=1e-5)


def test_mart_takes_the_strongest_rival_and_learns_from_both_sides() -> None:
    module = linear([[0.0], [0.0], [0.0]], [0.0, 1.0, 2.0])
    loss = Mart(0.0)(module, batch([[0.5]], [0]))
    chances = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert loss.item() == pytest.approx(-math.log(chances[0]) - math.log(1.0001 - chances[2].item()), rel=1e-4)
    modes = []
    watched = linear(TWO).train()
    watched[0].register_forward_hook(lambda layer, *_: modes.append(layer.training))  # type: ignore[index]
    Mart(0.25, steps=4)(watched, batch([[0.5]], [1])).backward()
    assert modes == [False] * 4 + [True] * 2, "four steps, then f(x) and f(x')"


def test_reverse_cross_entropy_by_hand() -> None:
    """z = -f = (1, -1), true class 1: the loss is -log softmax(z)_0 = softplus(-2)."""
    assert ReverseCrossEntropy()(linear(TWO), batch([[1.0]], [1])).item() == pytest.approx(softplus(-2.0))
    three = ReverseCrossEntropy()(linear([[0.0], [0.0], [0.0]]), batch([[1.0]], [2]))
    assert three.item() == pytest.approx(math.log(3))


def test_adp_by_hand() -> None:
    """Two members with one-hot wrong directions: G^T G is 1 off the diagonal only by their cosine."""
    first = linear([[0.0], [0.0], [-50.0]])  # p = (1/2, 1/2, 0) at x = 1
    second = linear([[0.0], [-50.0], [0.0]])  # p = (1/2, 0, 1/2)
    given = batch([[1.0]], [0])
    mean = [0.5, 0.25, 0.25]
    entropy = -sum(p * math.log(p) for p in mean)
    volume = math.log((1 + 1e-6) ** 2)  # the rests are (1, 0) and (0, 1)
    expected = 2 * math.log(2) - 2.0 * entropy - 0.5 * volume
    assert Adp()(ensemble([first, second]), given).item() == pytest.approx(expected, rel=1e-4)
    same = Adp(alpha=0.0)(ensemble([first, first]), given)
    assert same.item() == pytest.approx(2 * math.log(2) - 0.5 * math.log((1 + 1e-6) ** 2 - 1), rel=0.05)
    with pytest.raises(UsageError, match="ensemble"):
        Adp()(first, given)


def test_an_ensemble_is_the_mean_of_the_logits() -> None:
    module = ensemble([linear([[1.0], [3.0]]), linear([[5.0], [-1.0]])])
    assert module(torch.tensor([[2.0]])).tolist() == [[6.0, 2.0]]


def test_without_noise_the_losses_of_smoothing_are_plain_ones() -> None:
    module, given = linear(TWO), batch([[0.5]], [1])
    assert GaussianNoise(0.0)(module, given).item() == pytest.approx(softplus(-1.0))
    assert NoiseTrades(0.0)(module, given).item() == pytest.approx(softplus(-1.0))
    assert SmoothAdv(0.0, 0.25, steps=4)(module, given).item() == pytest.approx(softplus(-0.5), rel=1e-5)


def test_noise_has_the_stated_deviation() -> None:
    """E softplus of a linear margin under noise, against the mean over a large batch."""
    many = Batch(
        torch.full((20000, 1), 0.5), torch.ones(20000, dtype=torch.int64), 1.0, torch.Generator().manual_seed(0)
    )
    noise = torch.randn(200000, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.softplus(-(1 + 2 * 0.3 * noise)).mean().item()
    assert GaussianNoise(0.3)(linear(TWO), many).item() == pytest.approx(expected, rel=0.02)


def test_macer_by_hand() -> None:
    """Without noise p_y = sigmoid(1), q_y = sigmoid(beta); the hinge counts only where classified right."""
    objective = Macer(1e-9, samples=2, weight=3e9, gamma=8.0, beta=2.0)
    q = 1 / (1 + math.exp(-2.0))
    gap = 2 * quantile(torch.tensor(q)).item()
    right = objective(linear(TWO), batch([[0.5]], [1])).item()
    assert right == pytest.approx(softplus(-1.0) + 1.5 * (8.0 - gap), rel=1e-4)
    assert objective(linear(TWO), batch([[0.5]], [0])).item() == pytest.approx(softplus(1.0), rel=1e-4)


def test_ramps() -> None:
    assert [ramped(p, (0.2, 0.6)) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert ramped(0.0, (0.0, 0.0)) == 1.0


def test_a_ball_that_cannot_be_says_what_can() -> None:
    with pytest.raises(UsageError, match="linf, l2"):
        Ball(0.1, "l0")
    with pytest.raises(UsageError, match="radius"):
        Ball(float("nan"))
