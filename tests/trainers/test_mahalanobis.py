"""Max-Mahalanobis centres have the Gram matrix of the paper, and the exported head decides by distance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from certify.errors import UsageError
from certify.trainers.adversarial import PgdTraining
from certify.trainers.mahalanobis import Mmc, MmLda, best_robustness, centres, expected_distance, with_centres
from certify.trainers.objective import Batch


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("more", [0, 1, 7])
def test_centres_have_the_gram_matrix_of_the_paper(classes: int, more: int) -> None:
    mu = centres(classes, classes - 1 + more, 10.0)
    expected = torch.full((classes, classes), -100.0 / (classes - 1), dtype=torch.float64)
    expected.fill_diagonal_(100.0)
    torch.testing.assert_close(mu @ mu.T, expected, rtol=1e-9, atol=1e-8)


def test_too_few_features_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 9 features"):
        centres(10, 8)


def test_the_head_decides_by_distance_and_its_margins_are_differences_of_squared_distances() -> None:
    torch.manual_seed(0)
    mu = centres(5, 6).float()
    module = with_centres(nn.Identity(), mu)
    z = 5 * torch.randn(40, 6)
    logits = module(z)
    distances = torch.cdist(z, mu) ** 2
    assert torch.equal(logits.argmax(1), distances.argmin(1))
    torch.testing.assert_close(logits[:, :1] - logits, distances - distances[:, :1], rtol=1e-4, atol=1e-2)


def test_losses_by_hand() -> None:
    mu = centres(2, 1)  # +10 and -10
    module = with_centres(nn.Identity(), mu)
    batch = Batch(torch.tensor([[7.0]]), torch.tensor([0]), 1.0, torch.Generator())
    assert Mmc()(module, batch).item() == pytest.approx(4.5)
    near = Batch(torch.tensor([[0.1]]), torch.tensor([0]), 1.0, torch.Generator())
    # -(|0.1 - 10|^2 - |0.1 + 10|^2) / 2 = 2 ahead
    assert MmLda()(module, near).item() == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)
    attacked = Mmc(epsilon=2.0, low=-20.0, high=20.0)(module, batch)
    assert attacked.item() == pytest.approx((10 - 5) ** 2 / 2)


def test_the_radius_grows_along_the_ramp() -> None:
    module, objective = with_centres(nn.Identity(), centres(2, 1)), Mmc(2.0, -20.0, 20.0, ramp=(0.2, 0.6))
    losses = [
        objective(module, Batch(torch.tensor([[7.0]]), torch.tensor([0]), at, torch.Generator())).item()
        for at in (0.2, 0.4, 0.6, 1.0)
    ]
    assert losses == pytest.approx([(10 - x) ** 2 / 2 for x in (7, 6, 5, 5)])


@pytest.mark.parametrize("objective", [Mmc, PgdTraining])
def test_a_ramp_that_does_not_rise_is_refused(objective: type[Mmc | PgdTraining]) -> None:
    for ramp in ((0.5, 0.2), (0.3, 0.3), (-0.1, 0.2), (0.2, 1.5)):
        with pytest.raises(UsageError, match="rising"):
            objective(0.1, ramp=ramp)


def test_the_attack_runs_in_evaluation_mode() -> None:
    modes = []
    module = with_centres(nn.Identity(), centres(2, 1)).train()
    module.register_forward_hook(lambda part, *_: modes.append(part.training))
    body = module[0]  # type: ignore[index]
    body.register_forward_hook(lambda part, *_: modes.append(part.training))
    Mmc(epsilon=0.1, steps=2)(module, Batch(torch.tensor([[0.5]]), torch.tensor([0]), 1.0, torch.Generator()))
    assert modes == [False] * 4 + [True], "body and whole in both steps, then the body alone"


def test_only_the_body_learns() -> None:
    module = with_centres(nn.Linear(3, 4), centres(3, 4))
    Mmc()(module, Batch(torch.rand(5, 3), torch.arange(5) % 3, 1.0, torch.Generator())).backward()
    assert module[1].weight.grad is None
    assert module[0].weight.grad is not None
    with pytest.raises(UsageError, match="Sequential"):
        Mmc()(nn.Linear(3, 4), Batch(torch.rand(5, 3), torch.arange(5) % 3, 1.0, torch.Generator()))


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0, 20.0])
def test_theorem_1_against_sampling(apart: float) -> None:
    """The distance of a sample of N(mu_i, I) to the plane halfway to mu_j, along their line."""
    generator = torch.Generator().manual_seed(0)
    sampled = (apart / 2 + torch.randn(400_000, generator=generator, dtype=torch.float64)).abs().mean()
    assert expected_distance(apart) == pytest.approx(sampled.item(), rel=5e-3)


def test_the_centres_attain_theorem_2() -> None:
    mu = centres(10, 9, 10.0)
    nearest = torch.pdist(mu).min().item() / 2
    assert nearest == pytest.approx(best_robustness(10, 10.0))
    torch.manual_seed(0)
    for _ in range(50):
        other = 10 * nn.functional.normalize(torch.randn(10, 9, dtype=torch.float64), dim=1)
        assert torch.pdist(other).min().item() / 2 <= nearest
