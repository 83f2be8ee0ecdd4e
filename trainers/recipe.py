"""Recipes: what to train, on what, how, in a TOML file; those of papers come along."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from certify.errors import UsageError
from certify.options import Radius, parse_eps
from certify.trainers.methods import filled, make_objective, takes
from certify.trainers.objective import Objective
from certify.trainers.schedule import Schedule

FOLDER = Path(__file__).resolve().parent / "recipes"
# What a file gives in epochs and we keep as fractions of the training.
POINTS = ("decay_at", "peak_at", "average_from")
RAMP = "ramp"
EPSILON = "epsilon"


@dataclass(frozen=True)
class Recipe:
    """What a training depends on, but for data and seed.

    eps: the radius that the network is for, "" for none. eps_ratio: the radius of training over it. objective: options
    of the method. mean, std: of the normalisation inside the network. source: where the values are from.
    """

    method: str
    eps: str = ""
    eps_ratio: float = 1.0
    data: str = ""
    arch: str = "cnn-small"
    width: float = 1.0
    init: str = "default"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    source: str = ""
    objective: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=lambda: Schedule(20, batch_size=128, learning_rate=1e-3))

    @property
    def radius(self) -> Radius | None:
        """The radius that the network is for."""
        if not self.eps:
            return None
        radii = parse_eps(self.eps)
        if len(radii) > 1:
            raise UsageError(f"eps {self.eps!r}: a network is trained for one radius")
        return radii[0]

    def make(self, input_range: tuple[float, float]) -> Objective:
        """The objective, its radius and input range filled in."""
        if self.schedule.amp and not takes(self.method, "steps"):
            raise UsageError(f"amp is for methods whose attacks take steps: method {self.method} has none")
        options = dict(self.objective)
        if takes(self.method, EPSILON) and EPSILON not in options and self.radius is not None:
            options[EPSILON] = float(self.radius) * self.eps_ratio
        if takes(self.method, "low"):
            options["low"], options["high"] = input_range
        return make_objective(self.method, options)

    def words(self) -> str:
        """One line for the model's metadata."""
        radius = f", eps {self.eps}" if self.eps else ""
        ratio = f" (trained at {self.eps_ratio:g} times it)" if self.eps and self.eps_ratio != 1 else ""
        half = ", attacks in bfloat16" if self.schedule.amp else ""
        source = f"; {self.source}" if self.source else ""
        return f"{self.method} on {self.arch}{radius}{ratio}, {self.schedule.epochs} epochs{half}{source}"

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values, for checkpoints and results."""
        return asdict(self) | {"objective": dict(self.objective)}


def read_recipe(text: str, name: str, changes: Sequence[tuple[str, Any]] = ()) -> Recipe:
    """The recipe of a TOML text; changes: (key or table.key, value), put over it first. Raises UsageError.

    Points in time (decay_at, peak_at, average_from, ramp) are given in epochs; another number of epochs among the
    changes stretches those of the text.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {name}: {error}") from error
    table = _timed(table, name)
    epochs = dict(changes).get("schedule.epochs", table["schedule"]["epochs"])
    _check_epochs(epochs, name)
    for key, value in changes:
        place, names = table, key.split(".")
        for part in names[:-1]:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"recipe {name}: {key} cannot be set, {part} is a value")
            place = inner
        in_time = names[-1] in (*POINTS, RAMP)
        place[names[-1]] = _fractions(value, epochs, f"recipe {name}: {key}") if in_time else value
    return _recipe(table, name)


def recipe_of(table: Mapping[str, Any], name: str) -> Recipe:
    """The recipe of a TOML table, as `read_recipe` reads it."""
    return _recipe(_timed(table, name), name)


def _timed(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The table with its points in time as fractions of the training."""
    plan, objective = dict(table.get("schedule", {})), dict(table.get("objective", {}))
    epochs = plan.setdefault("epochs", 20)
    _check_epochs(epochs, name)
    for place, keys in ((plan, POINTS), (objective, (RAMP,))):
        for key in keys:
            if key in place:
                place[key] = _fractions(place[key], epochs, f"recipe {name}: {key}")
    return {**table, "schedule": plan, "objective": objective}


def _check_epochs(epochs: Any, name: str) -> None:
    if not isinstance(epochs, int) or epochs < 1:
        raise UsageError(f"recipe {name}: schedule.epochs is {epochs!r}; give a whole number of 1 or more")


def _recipe(table: dict[str, Any], name: str) -> Recipe:
    plan, objective = table.pop("schedule"), table.pop("objective")
    if not isinstance(table.get("method"), str):
        raise UsageError(f"recipe {name}: method is missing")
    if "eps" in table:
        table["eps"] = str(table["eps"])
    recipe: Recipe = filled(Recipe, table, f"recipe {name}")
    schedule: Schedule = filled(Schedule, plan, f"recipe {name}: schedule")
    recipe = replace(recipe, schedule=schedule, objective=objective)
    if bool(recipe.mean) != bool(recipe.std):
        raise UsageError(f"recipe {name}: mean and std belong together")
    return recipe


def _fractions(value: Any, epochs: int, what: str) -> Any:
    if isinstance(value, list):
        return [_fractions(v, epochs, what) for v in value]
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"{what} is {value!r}; give epochs")
    return min(value / epochs, 1.0)


def shipped() -> dict[str, str]:
    """The recipes that come along: name -> TOML text."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.toml"))}


def pick_recipe(data: str, method: str, eps: str) -> tuple[str, str]:
    """(name, text) of the shipped recipe for a data set and method at the nearest radius; the method's plain one else.

    The plain one has the defaults of the objective and 20 epochs, for any architecture: so without the initialisation
    and the regularisers of Shi et al., which are for networks with BatchNorm.
    """
    best = ("", "", math.inf)
    for name, text in shipped().items():
        recipe = read_recipe(text, name)
        if (recipe.data, recipe.method) == (data, method):
            mine, wanted = recipe.radius, parse_eps(eps)[0] if eps else None
            apart = abs(float(mine) - float(wanted)) if mine and wanted else 0.0
            if apart < best[2]:
                best = (name, text, apart)
    if best[0]:
        return best[:2]
    lines = [f'method = "{method}"']
    if takes(method, "kappa"):
        lines += ["[objective]", "ramp = [2, 12]"]
    if method == "free":
        lines += ["[schedule]", "replays = 8"]
    if takes(method, "sigma"):
        lines += ["[objective]", "sigma = 0.25"]
    return f"{method} (defaults)", "\n".join(lines)
