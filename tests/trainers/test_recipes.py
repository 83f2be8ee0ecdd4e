"""Recipes hold what they say; what cannot be is refused with what can."""

from __future__ import annotations

import pytest
import torch

from certify.errors import UsageError
from certify.models.architectures import mlp
from certify.models.registry import ARCHITECTURES, INITIALISATIONS
from certify.trainers.certified import Ibp
from certify.trainers.loop import Samples, accuracy, train
from certify.trainers.methods import METHODS, make_objective, takes
from certify.trainers.recipe import pick_recipe, read_recipe, shipped


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_makes_its_objective(name: str) -> None:
    recipe = read_recipe(shipped()[name], name)
    recipe.make((0.0, 1.0))
    assert recipe.source
    assert recipe.arch in ARCHITECTURES
    assert recipe.init in INITIALISATIONS
    assert recipe.words()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_a_plain_recipe(method: str) -> None:
    name, text = pick_recipe("digits", method, "0.1")
    read_recipe(text, name, [("eps", "0.1")]).make((0.0, 1.0))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_learns_two_clouds(method: str) -> None:
    name, text = pick_recipe("", method, "")
    changes = [("eps", "0.02"), ("schedule.epochs", 8), ("schedule.batch_size", 20), ("schedule.learning_rate", 0.02)]
    small = {"steps": 2, "samples": 2, "features": 4}
    changes += [(f"objective.{key}", value) for key, value in small.items() if takes(method, key)]
    if takes(method, "ramp"):
        changes.append(("objective.ramp", [2, 6]))
    recipe = read_recipe(text, name, changes)
    objective = recipe.make((0.0, 1.0))
    torch.manual_seed(0)
    module = METHODS[method].wrap(objective, lambda outputs: mlp((2,), outputs, (16,)), 2)
    y = torch.arange(100) % 2
    x = torch.tensor([[0.2, 0.2], [0.8, 0.8]])[y] + 0.05 * torch.randn(100, 2)
    train(module, Samples(x, y), objective, recipe.schedule, seed=0)
    assert accuracy(module, Samples(x, y)) > 0.95


def test_epochs_become_fractions_and_the_radius_of_training_follows_the_ratio() -> None:
    recipe = read_recipe(shipped()["mnist-ibp-0.1"], "x", [("schedule.epochs", 140)])
    objective = recipe.make((0.0, 1.0))
    assert isinstance(objective, Ibp)
    assert objective.epsilon == 0.2
    assert objective.ramp == (0.0, pytest.approx(20 / 70)), "twice the epochs stretch the recipe"
    assert recipe.schedule.decay_at == pytest.approx((50 / 70, 60 / 70))
    set_too = read_recipe(shipped()["mnist-ibp-0.1"], "x", [("schedule.epochs", 140), ("objective.ramp", [0, 70])])
    assert set_too.objective["ramp"] == [0.0, 0.5]


def test_the_nearest_radius_is_picked() -> None:
    assert pick_recipe("mnist", "sabr", "0.25")[0] == "mnist-sabr-0.3"
    assert pick_recipe("mnist", "sabr", "0.05")[0] == "mnist-sabr-0.1"
    assert "defaults" in pick_recipe("cifar10", "crown-ibp", "2/255")[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method = ", "Invalid value"),
        ("", "method is missing"),
        ('method = "ibp2"', "ibp, crown-ibp"),
        ('method = "ibp"', "epsilon must be given"),
        ('method = "ibp"\neps = "0.1"\nepochs = 3', "unknown option epochs"),
        ('method = "ibp"\neps = "0.1,0.2"', "one radius"),
        ('method = "ibp"\neps = "0.1"\n[objective]\nsmall = 0.1', "unknown option small"),
        ('method = "sabr"\neps = "0.1"\n[objective]\nsmall = "a"', "of type float"),
        ('method = "pgd"\neps = "0.1"\n[objective]\nsteps = 2.5', "of type int"),
        ('method = "ibp"\neps = "0.1"\n[objective]\nramp = [1, 2, 3]', "ramp"),
        ('method = "ibp"\neps = "0.1"\n[schedule]\nepochs = 0', "epochs is 0"),
        ('method = "ibp"\neps = "0.1"\n[schedule]\nrate = "warm"', "cosine"),
        ('method = "ibp"\neps = "0.1"\nmean = [0.5]', "belong together"),
        ('method = "ibp"\neps = "0.1"\n[schedule]\namp = true', "method ibp has none"),
    ],
)
def test_a_recipe_that_cannot_be_says_why(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_recipe(text, "mine").make((0.0, 1.0))


def test_numbers_stand_for_each_other_only_where_nothing_is_lost() -> None:
    assert make_objective("sabr", {"epsilon": 1, "ramp": [0, 1]}).ramp == (0.0, 1.0)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="type float"):
        make_objective("sabr", {"epsilon": True})
