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
from certify.trainers.objective import Ball, Batch, Objective, ramped
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


@pytest.mark.parametrize(("progress", "grown"), [(1.0, 1.0), (0.4, 0.5)])
def test_pgd_starts_at_random_and_its_steps_grow_along_its_ramp(progress: float, grown: float) -> None:
    objective, moves = PgdTraining(0.25, steps=2, step=0.01, ramp=(0.2, 0.6)), []
    for seed in range(5):
        given = batch([[0.5]], [1], progress, seed)
        start = Ball(0.25 * grown).draw(given.x, torch.Generator().manual_seed(seed)).item()
        end = max(start - 0.02 * grown, 0.5 - 0.25 * grown)
        moves.append(start - end)
        assert objective(linear(TWO), given).item() == pytest.approx(softplus(-2 * end), rel=1e-5)
    assert max(moves) == pytest.approx(0.02 * grown), "some end within the ball"


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
    ends = []
    for seed in range(20):
        given = batch([[0.5]], [1], seed=seed)
        start = Ball(0.25).draw(given.x, torch.Generator().manual_seed(seed)).item()
        ends.append(max(start - 1.25 * 0.25, 0.25))
        assert FastTraining(0.25)(linear(TWO), given).item() == pytest.approx(softplus(-2 * ends[-1]), rel=1e-5)
    assert max(ends) > 0.3, "some end within the ball"


def test_free_training_moves_delta_by_the_gradient_of_the_same_pass() -> None:
    given = batch([[0.5]], [1])
    module, objective = linear(TWO), FreeTraining(0.25)
    first = objective(module, given)
    assert first.item() == pytest.approx(softplus(-1.0))
    assert "delta" not in given.memory
    first.backward()
    assert given.memory["delta"].item() == pytest.approx(-0.25)
    second = objective(module, given)
    assert second.item() == pytest.approx(softplus(-0.5))
    second.backward()
    assert given.memory["delta"].item() == pytest.approx(-0.25), "cut to the ball"


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


def test_random_points_fill_their_ball() -> None:
    x = torch.full((20000, 3), 0.5, dtype=torch.float64)
    moved = (Ball(0.25).draw(x, torch.Generator().manual_seed(0)) - x) / 0.25
    assert moved.abs().mean().item() == pytest.approx(0.5, abs=0.01)
    assert moved.mean(0).tolist() == pytest.approx([0.0] * 3, abs=0.02)
    moved = (Ball(0.25, "l2").draw(x, torch.Generator().manual_seed(0)) - x) / 0.25
    lengths = moved.norm(dim=1)
    assert lengths.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lengths.max().item() <= 1
    assert (moved / lengths[:, None]).mean(0).tolist() == pytest.approx([0.0] * 3, abs=0.02)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_step_has_its_length_whatever_the_slope(scale: float) -> None:
    x = torch.full((1, 2), 0.5)
    slope = scale * torch.tensor([3.0, -4.0])
    for norm, expected in (("linf", [0.6, 0.4]), ("l2", [0.56, 0.42])):
        points = ascend(lambda p: (p * slope).sum(1), x, x, Ball(0.4, norm), 1, 0.1)
        assert points[0].tolist() == pytest.approx(expected)


def test_wrongness_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    assert wrongness(logits, torch.tensor([0, 1, 0])).tolist() == [-1.0, 2.0, 0.0]


def test_what_survives_is_right_at_the_sample_and_at_the_end_of_the_attack() -> None:
    module = linear(TWO)  # right for label 1 where x > 0
    x, y = torch.tensor([[0.5], [0.5], [0.1]]), torch.tensor([1, 0, 1])
    safe = attacked(module, x, y, Ball(0.25, low=-1.0), torch.Generator().manual_seed(0))
    assert safe.tolist() == [True, False, False]

    class Notch(nn.Module):
        """Wrong for label 1 only within 0.05 of 0.5: one long step from outside goes over it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(x), (x - 0.5).abs() - 0.05], 1)

    x = torch.full((20, 1), 0.5)
    safe = attacked(Notch(), x, torch.ones(20, dtype=torch.int64), Ball(0.25), torch.Generator().manual_seed(0), 1)
    assert not bool(safe.any())


def modes_of(objective: Objective) -> list[bool]:
    """The mode of each forward pass of one loss."""
    modes = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append(self.training)
            return super().forward(x)

    module = nn.Sequential(Watched(1, 2)).train()
    objective(module, batch([[0.5]], [1])).backward()
    assert module.training
    return modes


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (PgdTraining(0.25, steps=3), [False] * 3 + [True]),
        (PgdTraining(0.25, steps=3, targeted=True), [False] * 4 + [True]),
        (FastTraining(0.25), [True] * 2),
        (FreeTraining(0.25), [True]),
        (SmoothAdv(0.1, 0.25, steps=3), [False] * 3 + [True]),
        (Macer(0.1), [True]),
        (NoiseTrades(0.1), [True] * 2),
    ],
)
def test_attacks_run_in_evaluation_mode_but_those_of_fast_and_free(objective: Objective, expected: list[bool]) -> None:
    assert modes_of(objective) == expected


@pytest.mark.parametrize(
    "objective",
    [
        PgdTraining(0.25, steps=20, step=0.1),
        FastTraining(0.25),
        Trades(0.25, steps=20, step=0.1, beta=6.0),
        Mart(0.25, steps=20, step=0.1),
        ReverseCrossEntropy(),
        SmoothAdv(0.1, 0.25),
        Macer(0.5, samples=4),
        NoiseTrades(0.5),
    ],
)
def test_gradients_flow_through_every_term(objective: Objective) -> None:
    """Against finite differences; on a linear network the attacks end where they end, whatever the weights do."""
    module = linear(TWO, [0.1, -0.2]).double()

    def value() -> torch.Tensor:
        x = torch.tensor([[0.5], [0.7]], dtype=torch.float64)
        return objective(module, Batch(x, torch.tensor([1, 1]), 1.0, torch.Generator().manual_seed(0)))

    value().backward()
    step = 1e-6
    for parameter in module.parameters():
        assert parameter.grad is not None
        flat = parameter.data.view(-1)
        for i, slope in enumerate(parameter.grad.flatten().tolist()):
            flat[i] += step
            above = value().item()
            flat[i] -= 2 * step
            below = value().item()
            flat[i] += step
            assert slope == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-7)


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


def test_trades_starts_a_thousandth_from_the_sample() -> None:
    given = batch([[0.5]] * 2000, [1] * 2000)
    start = Trades(0.25, steps=1, step=0.0).worst(linear(TWO), given)
    assert (start - given.x).std().item() == pytest.approx(0.001, rel=0.05)


def test_trades_attacks_in_evaluation_mode_and_learns_from_both_sides() -> None:
    modes = modes_of(Trades(0.25, steps=4))
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
    assert modes_of(Mart(0.25, steps=4)) == [False] * 4 + [True] * 2, "four steps, then f(x) and f(x')"


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


def noise_of(count: int, sigma: float, width: int = 1) -> torch.Tensor:
    """The noise that an objective draws from seed 0, (count, width)."""
    return sigma * torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def test_noisy_trades_by_hand() -> None:
    x, noise = torch.tensor([[0.5]]), noise_of(1, 0.3)
    clean, moved = ((2 * p).sigmoid() for p in (x, x + noise))
    kl = clean * (clean / moved).log() + (1 - clean) * ((1 - clean) / (1 - moved)).log()
    found = NoiseTrades(0.3, beta=5.0)(linear(TWO), batch([[0.5]], [1]))
    assert found.item() == pytest.approx(softplus(-1.0) + 5 * kl.item(), rel=1e-5)


def test_smoothadv_by_hand() -> None:
    """One step of length 2 epsilon, cut to epsilon, along the slope of -log of the mean chance; then the same noise."""
    weight = [[1.0, 0.0], [0.0, 3.0], [-2.0, 1.0]]
    x, y, noise = torch.tensor([[0.5, 0.4], [0.3, 0.9]]), [0, 1], noise_of(6, 1.0, 2)
    points = x.clone().requires_grad_()
    chances = ((points.repeat_interleave(3, 0) + noise) @ torch.tensor(weight).T).softmax(1).reshape(2, 3, 3).mean(1)
    (slope,) = torch.autograd.grad(-chances[torch.arange(2), y].log().sum(), points)
    ends = (x + 0.1 * slope / slope.norm(dim=1, keepdim=True)).repeat_interleave(3, 0) + noise
    expected = nn.functional.cross_entropy(ends @ torch.tensor(weight).T, torch.tensor([0, 0, 0, 1, 1, 1]))
    found = SmoothAdv(1.0, 0.1, samples=3, steps=1)(linear(weight), batch(x.tolist(), y))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_quantile_by_a_table() -> None:
    assert quantile(torch.tensor([0.5, 0.975], dtype=torch.float64)).tolist() == pytest.approx([0.0, 1.959964])


def test_macer_by_hand() -> None:
    """Without noise p_y = sigmoid(1), q_y = sigmoid(beta); the hinge counts only where classified right."""
    objective = Macer(1e-9, samples=2, weight=3e9, gamma=8.0, beta=2.0)
    q = 1 / (1 + math.exp(-2.0))
    gap = 2 * quantile(torch.tensor(q)).item()
    right = objective(linear(TWO), batch([[0.5]], [1])).item()
    assert right == pytest.approx(softplus(-1.0) + 1.5 * (8.0 - gap), rel=1e-4)
    far = Macer(1e-9, samples=2, weight=3e9, gamma=0.9 * gap, beta=2.0)
    assert far(linear(TWO), batch([[0.5]], [1])).item() == pytest.approx(softplus(-1.0), rel=1e-4)
    assert objective(linear(TWO), batch([[0.5]], [0])).item() == pytest.approx(softplus(1.0), rel=1e-4)


def test_ramps() -> None:
    assert [ramped(p, (0.2, 0.6)) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert ramped(0.0, (0.0, 0.0)) == 1.0


def test_a_ball_that_cannot_be_says_what_can() -> None:
    with pytest.raises(UsageError, match="linf, l2"):
        Ball(0.1, "l0")
    with pytest.raises(UsageError, match="radius"):
        Ball(float("nan"))
