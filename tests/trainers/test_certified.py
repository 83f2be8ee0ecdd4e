"""Bounds to train with are the verifier's, their gradients are right, and losses lie where they must."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from certify.bounding.api import bounds
from certify.bounding.crown import affine_tail, row_form
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.errors import UsageError
from certify.frontends.torch_import import graph_from_torch
from certify.models.architectures import mlp
from certify.models.registry import build
from certify.trainers.bounds import (
    crown_margins,
    fused_loss,
    interval_margins,
    intervals,
    live,
    rows_of,
    statistics,
    steadiness,
    worst_loss,
)
from certify.trainers.certified import Certified, CrownIbp, Ibp
from certify.trainers.expressive import CcIbp, ExpIbp, MtlIbp
from certify.trainers.objective import Ball, Batch
from certify.trainers.sabr import Sabr


def network(name: str = "cnn3") -> nn.Module:
    torch.manual_seed(0)
    return build(name, (1, 6, 6), 3, width=1 / 16).double()


def batch(progress: float = 1.0, count: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 6, 6, generator=generator, dtype=torch.float64)
    return Batch(x, torch.arange(count) % 3, progress, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["cnn3", "cnn-small", "resnet18", "wrn28-10"])
def test_in_evaluation_mode_the_bounds_are_the_verifiers(name: str) -> None:
    module, given = network(name).eval(), batch()
    lower, upper = (given.x - 0.02).clamp(0, 1), (given.x + 0.02).clamp(0, 1)
    known = intervals(live(module, given.x).graph, lower, upper)
    theirs = bounds(module, lower, upper, method="ibp")
    for mine, other in zip(known.boxes[-1], theirs, strict=True):  # type: ignore[arg-type]
        assert torch.equal(mine, other)
    proved = propagate(known.graph, Region(lower.flatten(1), upper.flatten(1)), crown=False)
    rigorous = affine_tail(proved, row_form(known.graph.output, rows_of(given.y, known)))
    torch.testing.assert_close(interval_margins(known, given.y), rigorous, rtol=1e-9, atol=1e-9)
    assert bool((rigorous <= interval_margins(known, given.y)).all())


def test_crown_margins_are_bounds_and_tighter_in_the_mean() -> None:
    module, given = network().eval(), batch()
    lower, upper = given.x - 0.02, given.x + 0.02
    known = intervals(live(module, given.x).graph, lower, upper)
    both = interval_margins(known, given.y), crown_margins(known, given.y)
    assert both[1].mean() > both[0].mean()
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        moved = lower + (upper - lower) * torch.rand(lower.shape, generator=generator, dtype=torch.float64)
        logits = module(moved)
        margins = logits.gather(1, given.y[:, None]) - logits
        assert all(bool((margins >= found - 1e-9).all()) for found in both)


@pytest.mark.parametrize("radius", [0.0, 1e-6, 0.02, 0.1])
def test_the_fused_loss_is_above_every_loss_of_the_ball(radius: float) -> None:
    module, given = network().eval(), batch()
    lower, upper = given.x - radius, given.x + radius
    known = intervals(live(module, given.x).graph, lower, upper)
    fused = fused_loss(known, given.y)
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        corner = lower + (upper - lower) * torch.rand(lower.shape, generator=generator, dtype=torch.float64).round()
        assert nn.functional.cross_entropy(module(corner), given.y) <= fused + 1e-9
    assert fused <= worst_loss(interval_margins(known, given.y), given.y) + 1e-3, "intervals are much looser"
    if radius < 1e-3:
        torch.testing.assert_close(fused, nn.functional.cross_entropy(module(given.x), given.y), rtol=1e-3, atol=1e-4)


def test_the_fused_loss_by_hand() -> None:
    """d = z_0 - z_1 = -2x over x = 0.5 +- 0.25, label 1: affine, so its chord ends at the worst point, d = -0.5."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    x, y = torch.tensor([[0.5]]), torch.tensor([1])
    known = intervals(live(nn.Sequential(layer), x).graph, x - 0.25, x + 0.25)
    assert fused_loss(known, y).item() == pytest.approx(math.log1p(math.exp(-0.5)), rel=1e-5)


@pytest.mark.parametrize("name", ["cnn3", "cnn5", "resnet18", "wrn28-10"])
def test_in_training_mode_the_graph_is_the_module_with_the_batchs_statistics(name: str) -> None:
    module, given = network(name).train(), batch()
    now = live(module, given.x)
    torch.testing.assert_close(now.at(given.x), now.logits, rtol=1e-8, atol=1e-8)
    known = intervals(now.graph, given.x, given.x)
    assert bool((known.boxes[-1][0] <= now.logits + 1e-9).all())  # type: ignore[index]
    (mine,) = torch.autograd.grad(now.at(given.x).square().sum(), next(module.parameters()), retain_graph=True)
    (theirs,) = torch.autograd.grad(now.logits.square().sum(), next(module.parameters()))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_statistics_are_those_that_batch_norm_uses() -> None:
    layer = nn.BatchNorm2d(3).double().train()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    with statistics(layer) as seen:
        layer(x)
    torch.testing.assert_close(layer.running_mean, 0.1 * seen["running_mean"])
    assert not layer._forward_pre_hooks


def test_one_clean_pass_moves_the_running_statistics_once() -> None:
    module, given = network().train(), batch(progress=0.5)
    before = [m.num_batches_tracked.item() for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for objective in (Ibp(0.02, regularise=0.5), Sabr(0.02), MtlIbp(0.02)):
        objective(module, given)
    after = [m.num_batches_tracked.item() for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert after == [n + 3 for n in before]


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_gradients_of_bounds_agree_with_finite_differences(method: str) -> None:
    torch.manual_seed(1)
    module = mlp((3,), 2, (5, 4)).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    radius = torch.full((2, 3), 0.1, dtype=torch.float64)

    def value() -> torch.Tensor:
        lower, upper = bounds(module, x - radius, x + radius, method=method)
        total: torch.Tensor = (lower * torch.tensor([1.0, 2.0]) - 0.3 * upper).sum()
        return total

    parameters = list(module.parameters())
    slopes = torch.autograd.grad(value(), parameters)
    step = 1e-6
    for parameter, slope in zip(parameters, slopes, strict=True):
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), 3):
            kept = flat[i].item()
            flat[i] = kept + step
            above = value().item()
            flat[i] = kept - step
            below = value().item()
            flat[i] = kept
            assert slope.flatten()[i].item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("name", ["cnn3", "resnet18"])
def test_slopes_along_any_direction_of_weights_and_boxes_agree_too(method: str, name: str) -> None:
    """Convolutions, BatchNorm, branches and rows; a directional derivative sees every parameter at once."""
    module, given = network(name).eval(), batch(count=2)
    lower, upper = (given.x - 0.02).requires_grad_(), (given.x + 0.02).requires_grad_()
    rows = torch.tensor([[1.0, -1.0, 0.0], [0.3, 0.3, -0.6]], dtype=torch.float64)
    learned = [*module.parameters(), lower, upper]

    def value() -> torch.Tensor:
        low, high = bounds(module, lower, upper, method=method, rows=rows)
        total: torch.Tensor = (low * torch.tensor([1.0, 2.0]) - 0.3 * high).sum()
        return total

    slopes = torch.autograd.grad(value(), learned)
    generator, step = torch.Generator().manual_seed(3), 1e-7
    for parts in (slice(0, -2), slice(-2, None)):
        ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in learned[parts]]
        ends = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for tensor, way in zip(learned[parts], ways, strict=True):
                    tensor += sign * step * way
            ends.append(value().item())
        expected = sum(float((slope * way).sum()) for slope, way in zip(slopes[parts], ways, strict=True))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_ibp_by_hand() -> None:
    """f = (-x, x) of x = 0.5 +- 0.25, label 1: the worst margin, the rows merged into the layer, is 0.5."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    module = nn.Sequential(layer)
    given = Batch(torch.tensor([[0.5]]), torch.tensor([1]), 1.0, torch.Generator())
    clean, worst = math.log1p(math.exp(-1.0)), math.log1p(math.exp(-0.5))
    for objective in (Ibp(0.25), CrownIbp(0.25), CrownIbp(0.25, crown=(1.0, 0.5), fusion=True)):
        assert objective(module, given).item() == pytest.approx(0.5 * clean + 0.5 * worst, rel=1e-5)
    # At the end of PGD, x' = 0.25, too, all of them agree.
    for objective in (Sabr(0.25), MtlIbp(0.25), CcIbp(0.25), ExpIbp(0.25)):
        assert objective(module, given).item() == pytest.approx(worst, rel=1e-5)


def test_the_expressive_losses_go_from_the_attack_to_ibp_and_keep_their_order() -> None:
    module, given = network().eval(), batch()

    def loss(kind: type[MtlIbp] | type[CcIbp] | type[ExpIbp], mix: float) -> float:
        fresh = Batch(given.x, given.y, 1.0, torch.Generator().manual_seed(1))
        return kind(0.02, mix=mix)(module, fresh).item()

    ibp = Ibp(0.02, kappa=(0.0, 0.0))(module, given).item()
    for kind in (MtlIbp, CcIbp, ExpIbp):
        assert loss(kind, 1.0) == pytest.approx(ibp)
        assert loss(kind, 0.0) == pytest.approx(loss(MtlIbp, 0.0))
    # Jensen: cross-entropy is convex in the margins, and a geometric mean is below the arithmetic one.
    assert loss(CcIbp, 0.3) <= loss(MtlIbp, 0.3)
    assert loss(ExpIbp, 0.3) <= loss(MtlIbp, 0.3)


def test_the_attack_reaches_beyond_the_ball_by_steps_of_the_reach() -> None:
    """f = (-x, x), label 1: the attack goes down from its random start, by `step` times `reach` times epsilon."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    module, x = nn.Sequential(layer), torch.tensor([[0.5]])
    for seed in range(5):
        given = Batch(x, torch.tensor([1]), 1.0, torch.Generator().manual_seed(seed))
        start = Ball(0.4).draw(x, torch.Generator().manual_seed(seed)).item()
        objective = MtlIbp(0.2, reach=2.0, steps=2, step=0.1, mix=0.0)
        end = max(start - 2 * 0.1 * 0.4, 0.1)
        assert objective(module, given).item() == pytest.approx(math.log1p(math.exp(-2 * end)), rel=1e-5)


def test_sabr_lies_between_the_attack_and_ibp() -> None:
    module, given = network().eval(), batch()
    losses = []
    for small in (0.0, 0.3, 1.0):
        fresh = Batch(given.x, given.y, 1.0, torch.Generator().manual_seed(1))
        losses.append(Sabr(0.02, small=small)(module, fresh).item())
    assert losses == sorted(losses)
    assert losses[2] == pytest.approx(Ibp(0.02, kappa=(0.0, 0.0))(module, given).item())


def test_the_ramp_goes_from_clean_to_worst() -> None:
    module, given = network().eval(), batch()
    objective = Ibp(0.02, ramp=(0.2, 0.6))

    def at(progress: float) -> float:
        return objective(module, Batch(given.x, given.y, progress, torch.Generator())).item()

    clean = nn.functional.cross_entropy(module(given.x), given.y).item()
    assert at(0.1) == clean
    known = intervals(live(module, given.x).graph, (given.x - 0.02).clamp(0, 1), (given.x + 0.02).clamp(0, 1))
    worst = worst_loss(interval_margins(known, given.y), given.y).item()
    assert at(0.9) == pytest.approx(0.5 * clean + 0.5 * worst)
    assert clean < at(0.4) < at(0.9)
    with pytest.raises(UsageError, match="ramp"):
        Ibp(0.02, ramp=(0.6, 0.2))


@pytest.mark.parametrize("fusion", [False, True])
def test_crown_ibp_goes_from_crown_to_intervals_along_the_ramp(fusion: bool) -> None:
    module, given = network().eval(), batch(count=4)
    for progress, grown in ((0.3, 0.25), (0.5, 0.75), (0.7, 1.0)):
        radius = 0.02 * grown
        known = intervals(live(module, given.x).graph, (given.x - radius).clamp(0, 1), (given.x + radius).clamp(0, 1))
        ibp, crown = interval_margins(known, given.y), crown_margins(known, given.y)
        expected = worst_loss(grown * ibp + (1 - grown) * crown, given.y)
        if fusion:
            expected = grown * worst_loss(ibp, given.y) + (1 - grown) * fused_loss(known, given.y)
        objective = CrownIbp(0.02, ramp=(0.2, 0.6), kappa=(0.0, 0.0), fusion=fusion)
        found = objective(module, Batch(given.x, given.y, progress, torch.Generator()))
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([3.0, -3.0], (0.5 - 1 / 3) / 0.5),  # tightness 0.1 / 0.3; both ratios are 1
        ([6.0, -1.0], (0.5 - 0.1 / 0.35) / 0.5 + (0.5 - 1 / 6) / 0.5),  # the means are 6 and 1, the variances alike
        ([4.0, -1.0, -1.0, -1.0, -1.0], (0.5 - 4 / 16) / 0.5),  # tightness 0.1 / 0.16; means alike, variances 16 and 4
    ],
)
def test_the_regularisers_by_hand(weights: list[float], expected: float) -> None:
    """One layer z = w x at x = 1 +- 0.1: widths 0.1 and 0.1 |w|; neurons active and inactive by the sign of w."""
    first, last = nn.Linear(1, len(weights), bias=False), nn.Linear(len(weights), 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor(weights)[:, None])
    module = nn.Sequential(first, nn.ReLU(), last)
    x = torch.tensor([[1.0]])
    known = intervals(live(module, x).graph, x - 0.1, x + 0.1)
    assert steadiness(known).item() == pytest.approx(expected, rel=1e-4)


def test_the_regularisers_fade_with_the_ramp() -> None:
    module, given = network().eval(), batch()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 4  # intervals then grow from layer to layer

    def penalty(progress: float) -> float:
        fresh = Batch(given.x, given.y, progress, torch.Generator())
        return Ibp(0.02, regularise=0.5)(module, fresh).item() - Ibp(0.02)(module, fresh).item()

    assert penalty(0.0) > penalty(0.5) > 0
    assert penalty(0.7) == 0


def test_the_base_is_no_objective() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Certified(0.1)  # type: ignore[abstract]


def test_a_cached_graph_takes_other_statistics_each_time() -> None:
    module, given = network().train(), batch()
    first = live(module, given.x)
    second = live(module, given.x * 0.5)
    assert not torch.allclose(first.at(given.x), second.at(given.x))
    evaluated = graph_from_torch(module, given.x)(given.x)
    torch.testing.assert_close(evaluated, module.eval()(given.x), rtol=1e-8, atol=1e-8)
