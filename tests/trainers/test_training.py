"""Training lowers its loss, is repeatable from its seed, goes on bit for bit, and stops where it diverges."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from certify.errors import UsageError
from certify.models.architectures import cnn, mlp
from certify.models.registry import build
from certify.trainers.adversarial import FreeTraining, PgdTraining
from certify.trainers.bounds import interval_margins, intervals, live
from certify.trainers.certified import Ibp
from certify.trainers.loop import Samples, Trainer, accuracy, train
from certify.trainers.mahalanobis import CenterLoss, Mmc, centres, with_centres
from certify.trainers.objective import Batch, Objective
from certify.trainers.sabr import Sabr
from certify.trainers.schedule import Schedule, augmented
from certify.trainers.standard import Standard
from certify.trainers.taps import Taps
from certify.trainers.trades import Trades


def blobs(seed: int = 0) -> Samples:
    """Three clouds in the unit square, well apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(120) % 3
    centers = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
    return Samples(centers[y] + 0.05 * torch.randn(120, 2, generator=generator), y)


def trained(objective: Objective, epochs: int = 30) -> nn.Module:
    torch.manual_seed(0)
    module = mlp((2,), 3, (16,))
    train(module, blobs(), objective, Schedule(epochs, batch_size=40, learning_rate=2e-2), seed=0)
    return module


def test_standard_training_learns_and_repeats() -> None:
    first, second = trained(Standard()), trained(Standard())
    assert accuracy(first, blobs(1)) > 0.95
    assert not first.training
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ibp_training_certifies_more_than_standard_training() -> None:
    rates = []
    for module in (trained(Standard()), trained(Ibp(0.12), epochs=60)):
        samples = blobs(1)
        graph = live(module, samples.x).graph
        margins = interval_margins(intervals(graph, samples.x - 0.1, samples.x + 0.1), samples.y)
        rivals = ~nn.functional.one_hot(samples.y, 3).bool()
        rates.append(float((margins[rivals].reshape(-1, 2) > 0).all(1).double().mean()))
    assert rates[1] > max(0.8, rates[0])


def images() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.rand(41, 1, 6, 6, generator=generator), torch.arange(41) % 3)


MODES: dict[str, tuple[Any, dict[str, Any]]] = {
    "standard, ema": (Standard(), {"average": "ema"}),
    "pgd, sgd, swa, augmented": (
        PgdTraining(0.1, steps=2),
        {"optimizer": "sgd", "average": "swa", "average_from": 0.2, "augment": "zeros4"},
    ),
    "ibp with BatchNorm": (Ibp(0.05, regularise=0.5), {"l1": 1e-4}),
    "sabr, attacks in bfloat16": (Sabr(0.05, steps=2), {"amp": True}),
    "free": (FreeTraining(0.1), {"replays": 3, "rate": "cyclic"}),
}


@pytest.mark.parametrize("name", sorted(MODES))
def test_going_on_from_a_state_equals_never_having_stopped(name: str) -> None:
    objective, options = MODES[name]
    schedule = Schedule(4, batch_size=20, **options)
    torch.manual_seed(0)
    module = build("cnn3", (1, 6, 6), 3, width=1 / 32)
    whole = Trainer(copy.deepcopy(module), images(), objective, schedule, 3)
    for _ in range(4):
        whole.epoch()
    first = Trainer(copy.deepcopy(module), images(), objective, schedule, 3)
    first.epoch()
    first.epoch()
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second = Trainer(build("cnn3", (1, 6, 6), 3, width=1 / 32), images(), objective, schedule, 3)
    second.load(torch.load(file, weights_only=True))
    while not second.finished:
        second.epoch()
    for part in ("module", "answer"):
        a, b = getattr(whole, part).state_dict(), getattr(second, part).state_dict()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert whole.memory.keys() == second.memory.keys()
    assert all(torch.equal(whole.memory[key], second.memory[key]) for key in whole.memory)


@pytest.mark.parametrize(
    "objective",
    [
        PgdTraining(0.1, steps=2),
        Trades(0.1, steps=2),
        Mmc(0.1, steps=2, features=4),
        Sabr(0.1, steps=2),
        Taps(0.1, steps=2),
    ],
)
def test_with_amp_attacks_alone_are_in_bfloat16(objective: Objective) -> None:
    """What a layer gives in evaluation mode, in attacks, is bfloat16; losses, bounds and slopes stay as they are."""
    torch.manual_seed(0)
    body = mlp((2,), 4, (8, 8))
    module = with_centres(body, centres(3, 4)) if isinstance(objective, Mmc) else body
    samples, seen = blobs(), set()

    def look(part: nn.Module, _: Any, output: torch.Tensor) -> None:
        seen.add((part.training, output.dtype))

    layer = body[1]
    layer.register_forward_hook(look)
    losses = []
    for amp in (False, True):
        batch = Batch(samples.x, samples.y, 1.0, torch.Generator().manual_seed(0), amp=amp)
        module.train()
        loss = objective(module, batch)
        losses.append(loss.item())
        assert loss.dtype == torch.float32
        assert {kind for mode, kind in seen if mode} == {torch.float32}
        if not isinstance(objective, Taps):  # whose attack is on the bounds' graph
            assert {kind for mode, kind in seen if not mode} == {torch.bfloat16 if amp else torch.float32}
        seen.clear()
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    state = Trainer(mlp((2,), 3, (8,)), blobs(), Standard(), Schedule(1), 0).state()
    for other in (mlp((2,), 3, (9,)), mlp((2,), 3, (8, 8))):
        with pytest.raises(UsageError, match="another architecture"):
            Trainer(other, blobs(), Standard(), Schedule(1), 0).load(state)


def test_a_diverging_training_names_epoch_and_batch() -> None:
    samples = blobs()
    samples.x[7] = float("nan")
    with pytest.raises(UsageError, match=r"epoch 1, batch \d"):
        train(mlp((2,), 3, (8,)), samples, Standard(), Schedule(1, batch_size=40), seed=0)


def test_the_rates_of_all_schedules() -> None:
    step = Schedule(10, learning_rate=1.0, decay_at=(0.5, 0.75))
    assert [step.rate_at(p) for p in (0.0, 0.49, 0.5, 0.8)] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    fifths = Schedule(10, learning_rate=1.0, decay_at=(0.5, 0.75), decay=0.2)
    assert [fifths.rate_at(p) for p in (0.49, 0.5, 0.8)] == pytest.approx([1.0, 0.2, 0.04])
    cyclic = Schedule(10, learning_rate=1.0, rate="cyclic", peak_at=0.5)
    assert [cyclic.rate_at(p) for p in (0.0, 0.25, 0.5, 0.75)] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    cosine = Schedule(10, learning_rate=1.0, rate="cosine")
    assert [cosine.rate_at(p) for p in (0.0, 0.5)] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lion"}, "adam, sgd"),
        ({"rate": "warm"}, "step, cyclic, cosine"),
        ({"average": "mean"}, "ema, swa"),
        ({"augment": "flip"}, "zeros4, edge2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": float("nan")}, "positive"),
    ],
)
def test_a_schedule_that_cannot_be_says_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Schedule(1, **options)


def test_weights_of_swa_are_the_mean_over_the_epochs() -> None:
    torch.manual_seed(0)
    module = mlp((2,), 3, (4,))
    trainer = Trainer(module, blobs(), Standard(), Schedule(4, average="swa", average_from=0.5), 0)
    kept = []
    for _ in range(4):
        trainer.epoch()
        kept.append([p.detach().clone() for p in module.parameters()])
    for third, fourth, mean in zip(kept[2], kept[3], trainer.answer.parameters(), strict=True):
        torch.testing.assert_close((third + fourth) / 2, mean)


def test_weights_of_ema_are_the_plain_mean_at_first_and_decay_then() -> None:
    torch.manual_seed(0)
    module = mlp((2,), 3, (4,))
    trainer = Trainer(module, blobs(), Standard(), Schedule(6, batch_size=120, average="ema", ema_decay=0.75), 0)
    mean: list[torch.Tensor] = []
    for step in range(1, 7):
        trainer.epoch()
        share = max(0.25, 1 / step)
        now = [p.detach().clone() for p in module.parameters()]
        mean = [a + share * (b - a) for a, b in zip(mean or now, now, strict=True)]
    for expected, found in zip(mean, trainer.answer.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def nothing(module: nn.Module, batch: Batch) -> torch.Tensor:
    """An objective whose gradient is 0 everywhere."""
    zero: torch.Tensor = 0 * module(batch.x).sum()
    return zero


def test_l1_pulls_weights_but_no_biases_to_zero() -> None:
    torch.manual_seed(0)
    module = mlp((2,), 3, (4,))
    before = [p.detach().clone() for p in module.parameters()]
    schedule = Schedule(1, batch_size=120, optimizer="sgd", learning_rate=0.1, l1=0.01)
    train(module, blobs(), nothing, schedule, seed=0)
    for old, new in zip(before, module.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 0.001 * old.sign() if old.ndim > 1 else old)


def steep(module: nn.Module, batch: Batch) -> torch.Tensor:
    """An objective whose gradient in the last layer's biases is 1,000 each."""
    total: torch.Tensor = 1000 * module(batch.x).mean(0).sum()
    return total


def test_a_step_is_no_longer_than_the_clip() -> None:
    torch.manual_seed(0)
    module = mlp((2,), 3, (4,))
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    train(module, blobs(), steep, Schedule(1, batch_size=120, optimizer="sgd", learning_rate=0.1, clip=2.0), seed=0)
    moved = torch.cat([p.detach().flatten() for p in module.parameters()]) - before
    assert moved.norm().item() == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_pulls_every_weight_to_zero(optimizer: str) -> None:
    torch.manual_seed(0)
    module = mlp((2,), 3, (4,))
    before = sum(p.detach().abs().sum() for p in module.parameters())
    schedule = Schedule(3, batch_size=120, optimizer=optimizer, learning_rate=0.01, weight_decay=0.1)
    train(module, blobs(), nothing, schedule, seed=0)
    assert sum(p.detach().abs().sum() for p in module.parameters()) < before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"momentum": 0.9, "decay_at": ()}, -0.1 - 0.19),
        ({"momentum": 0.0, "decay_at": (0.5,), "decay": 0.2}, -0.1 - 0.02),
        ({"momentum": 0.0, "decay_at": (), "replays": 2}, -0.4),
    ],
)
def test_steps_by_hand(options: dict[str, Any], expected: float) -> None:
    """Slope 1 in both of two epochs of one batch, at rate 0.1."""
    layer = nn.Linear(1, 1)
    nn.init.zeros_(layer.bias)

    def slope(module: nn.Module, batch: Batch) -> torch.Tensor:
        return layer.bias.sum() + 0 * layer.weight.sum()

    samples = Samples(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    schedule = Schedule(2, batch_size=4, optimizer="sgd", learning_rate=0.1, **options)
    train(nn.Sequential(layer), samples, slope, schedule, seed=0)
    assert layer.bias.item() == pytest.approx(expected)


def test_every_batch_and_replay_and_epoch_draws_anew_and_progress_rises() -> None:
    draws, progress = [], []

    def note(module: nn.Module, batch: Batch) -> torch.Tensor:
        draws.append(torch.rand(1, generator=batch.generator).item())
        progress.append(batch.progress)
        return nothing(module, batch)

    train(mlp((2,), 3, (4,)), blobs(), note, Schedule(2, batch_size=40, replays=2), seed=0)
    assert len(set(draws)) == len(draws) == 12
    assert progress == pytest.approx([n / 6 for n in range(6) for _ in range(2)])


def test_samples_come_once_an_epoch_in_another_order() -> None:
    seen: list[list[float]] = [[]]

    def note(module: nn.Module, batch: Batch) -> torch.Tensor:
        seen[-1] += batch.x[:, 0].tolist()
        return nothing(module, batch)

    samples = blobs()
    trainer = Trainer(mlp((2,), 3, (4,)), samples, note, Schedule(2, batch_size=50), 0)
    trainer.epoch()
    seen.append([])
    trainer.epoch()
    everything = sorted(samples.x[:, 0].tolist())
    assert sorted(seen[0]) == sorted(seen[1]) == everything
    assert seen[0] != seen[1] != samples.x[:, 0].tolist()


def test_a_last_batch_of_one_is_no_batch() -> None:
    torch.manual_seed(0)
    samples = images()
    module = build("cnn3", (1, 6, 6), 3, width=1 / 32)
    train(module, samples, Standard(), Schedule(1, batch_size=20), seed=0)  # 41 = 20 + 21


@pytest.mark.parametrize(
    ("how", "padding", "kind", "least"), [("zeros4", 4, "constant", 80), ("edge2", 2, "replicate", 40)]
)
def test_augmented_images_are_crops_and_flips_of_themselves(how: str, padding: int, kind: str, least: int) -> None:
    x = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    moved = augmented(x, how, torch.Generator().manual_seed(0))
    wide = nn.functional.pad(x[:1], (padding,) * 4, kind)[0, 0]
    windows = {
        tuple(view[i : i + 8, j : j + 8].flatten().tolist())
        for view in (wide, wide.flip(1))
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    }
    found = {tuple(image.flatten().tolist()) for image in moved}
    assert found <= windows
    assert len(found) > least
    assert augmented(x, "none", torch.Generator()) is x


def test_centres_of_the_center_loss_move_as_the_paper_says() -> None:
    body, head = nn.Linear(1, 1, bias=False), nn.Linear(1, 2)
    nn.init.ones_(body.weight)
    module = nn.Sequential(body, head).train()
    batch = Batch(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), 0.0, torch.Generator())
    first = CenterLoss(weight=0.3)(module, batch) - nn.functional.cross_entropy(head(batch.x), batch.y)
    assert first.item() == pytest.approx(0.3 * (1 + 9) / 2 / 2)
    # c_0 = 0 - 0.5 (0 - 1 + 0 - 3) / (1 + 2)
    assert batch.memory["centres"].flatten().tolist() == pytest.approx([2 / 3, 0.0])


def test_architectures_have_the_shapes_they_promise() -> None:
    assert cnn((3, 9, 7), 4, (2, 3, 5), 6)(torch.zeros(2, 3, 9, 7)).shape == (2, 4)
    assert mlp((3, 2, 2), 4, ())(torch.zeros(2, 3, 2, 2)).shape == (2, 4)
