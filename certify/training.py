"""From a recipe to a network on disk: data, epochs with checkpoints and a log, export to ONNX, and what it is worth.

`out` holds checkpoint.pt and log.csv after every epoch, and where asked for TensorBoard's events; at the end model.onnx
and training.json.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.disk import disk, write_atomically
from certify.errors import DataError, UsageError
from certify.events import check_installed, event_log
from certify.models.architectures import normalised
from certify.models.registry import build
from certify.trainers.ascent import attacked
from certify.trainers.bounds import interval_margins, intervals, live
from certify.trainers.export import export_onnx
from certify.trainers.loop import Samples, Trainer, accuracy
from certify.trainers.methods import find_method
from certify.trainers.objective import Ball
from certify.trainers.recipe import Recipe
from certify.trainers.schedule import Schedule
from certify.trainers.team import Team, joined

if TYPE_CHECKING:
    import torch

    from certify.frontends.dataset import Dataset

CHECKPOINT, LOG, MODEL, SUMMARY = "checkpoint.pt", "log.csv", "model.onnx", "training.json"
FORMAT = 1
WATCHED = 512  # samples that every epoch is measured on
PIECE = 128  # of them at once: intervals keep every layer's
HELD = 0.1  # share of a data file, which has no test split, that is held out


@dataclass(frozen=True, eq=False)
class Material:
    """Raw samples to train on and to measure on, never the same; `spec` as the user named them."""

    spec: str
    train: Dataset
    test: Dataset


@dataclass(frozen=True)
class Epoch:
    """One line of the log. Accuracies are on the last samples of the test set, which nothing is chosen by.

    adversarial: an upper bound, by PGD at the recipe's radius; certified: a lower bound, by intervals in float32. None
    where the recipe has no radius.
    """

    epoch: int
    loss: float
    clean: float
    adversarial: float | None
    certified: float | None
    seconds: float
    images_per_second: float

    @property
    def scalars(self) -> dict[str, float | None]:
        """The columns by the names that TensorBoard groups by."""
        shares = {f"accuracy/{name}": getattr(self, name) for name in ("clean", "adversarial", "certified")}
        return {"loss": self.loss, **shares, "images_per_second": self.images_per_second}


@dataclass(frozen=True)
class Outcome:
    """What came of a training. stopped: why it ended before its last epoch, if it did."""

    model: Path
    log: tuple[Epoch, ...]
    clean: float
    stopped: str


@dataclass(frozen=True)
class Place:
    """Where a training writes, whether it goes on with what is there, and whether TensorBoard's events are written."""

    out: Path
    resume: bool = False
    tensorboard: bool = False


Watch = Callable[[Epoch], None]
Pulse = Callable[[int, int], None]  # batches done, batches of this epoch


@dataclass(frozen=True, eq=False)
class World:
    """What a training runs in: its seed, its processes, this one's device, and who is told of it."""

    seed: int
    team: Team
    device: torch.device
    watch: tuple[Watch, Pulse] | None


def load_material(spec: str, data_dir: str | None, download: bool, samples: int | None) -> Material:
    """The train and test split of a named set; of a file the first nine tenths and the rest. Raises DataError.

    samples: only the first so many of the training samples.
    """
    from certify.frontends.data import KNOWN_SETS, load_data, select

    if spec in KNOWN_SETS:
        parts = [load_data(spec, data_dir=data_dir, split=s, download=download) for s in ("train", "test")]
    else:
        whole = load_data(spec)
        mixed = np.random.default_rng(0).permutation(len(whole))  # files are often sorted by class
        cut = len(whole) - max(1, round(HELD * len(whole)))
        if cut < 1:
            raise DataError(f"{spec}: {len(whole)} samples are too few to train on and to measure on")
        parts = [select(whole, ids=[int(whole.ids[i]) for i in rows]) for rows in (mixed[:cut], mixed[cut:])]
    train = parts[0] if samples is None else select(parts[0], samples=samples)
    if len(train) < 2:
        raise DataError(f"{spec}: one sample is too few to train on")
    if len(np.unique(train.y)) < 2:
        raise DataError(
            f"{spec}: all {len(train)} samples to train on are of class {train.y[0]}; a classifier needs two"
        )
    return Material(spec, train, parts[1])


def build_network(recipe: Recipe, material: Material, seed: int) -> torch.nn.Module:
    """The recipe's network on raw inputs of the data, initialised from the seed."""
    import torch

    shape = tuple(int(n) for n in material.train.x.shape[1:])
    classes = int(max(material.train.y.max(), material.test.y.max())) + 1
    method, objective = find_method(recipe.method), recipe.make(material.train.input_range)

    def make(outputs: int) -> torch.nn.Module:
        module = build(recipe.arch, shape, outputs, width=recipe.width, init=recipe.init)
        return normalised(module, recipe.mean, recipe.std) if recipe.mean else module

    if recipe.mean and len(recipe.mean) not in (1, shape[0]):
        raise UsageError(f"the recipe normalises {len(recipe.mean)} channels, samples have shape {shape}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.wrap(objective, make, classes)


def laid_out(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module, its weights channels-last where that was measured to pay: BatchNorm over images, on a CPU.

    In turn with the default layout, one core: a step takes 15 to 25 % less on cnn5 and a ResNet-18 a quarter as wide,
    nothing less on cnn-small. Not measured on a GPU.
    """
    import torch

    pays = device.type == "cpu" and any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
    if pays:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def run_training(
    recipe: Recipe,
    material: Material,
    place: Place,
    *,
    seed: int,
    device: str,
    watch: tuple[Watch, Pulse] | None = None,
) -> Outcome | None:
    """Train as the recipe says, from the start or from the checkpoint; export. Raises UsageError, DiskError.

    Under torchrun every process calls this; the first one measures and writes, the others return None.
    """
    from certify.machine import pick_device

    if place.tensorboard:
        check_installed()
    with joined(pick_device(device)) as (team, on):
        return _run(recipe, material, place, World(seed, team, on, watch if team.rank == 0 else None))


def _run(recipe: Recipe, material: Material, place: Place, world: World) -> Outcome | None:
    train, test = _samples(material.train, world.device), _samples(material.test, world.device)
    module = laid_out(build_network(recipe, material, world.seed).to(world.device), world.device)
    objective = recipe.make(material.train.input_range)
    trainer = Trainer(module, train, objective, recipe.schedule, world.seed, world.team)
    mark = recipe.plain() | {"seed": world.seed, "data_sha256": material.train.sha256, "samples": len(material.train)}
    log = _open(place, trainer, mark, world.device)
    watched = Samples(test.x[-WATCHED:], test.y[-WATCHED:])
    stopped = ""
    with _events(place, world.team, log) as events:
        while not trainer.finished:
            begin = time.perf_counter()
            loss = trainer.epoch(None if world.watch is None else world.watch[1])
            seconds = time.perf_counter() - begin
            if world.team.rank == 0:
                shares = measure(trainer.answer, watched, recipe, material.train.input_range)
                speed = len(train.y) * recipe.schedule.replays / seconds
                row = Epoch(trainer.done, loss, *shares, round(seconds, 2), round(speed, 1))
                stopped = _collapse(log, row, recipe)
                log.append(row)
                if not stopped:
                    _save(place.out, trainer, mark, log)
                events(row)
                if world.watch is not None:
                    world.watch[0](row)
            if world.team.any(bool(stopped), world.device):
                break
    if world.team.rank:
        return None
    if stopped:
        trainer.load(_read(place.out / CHECKPOINT, world.device)["trainer"])
    return _finish(recipe, material, place.out, trainer, (world.seed, log, stopped))


@contextmanager
def _events(place: Place, team: Team, log: Sequence[Epoch]) -> Iterator[Watch]:
    """What takes every epoch to TensorBoard, the log so far given already; does nothing where nobody asked."""
    if not place.tensorboard or team.rank:
        yield lambda row: None
        return
    with event_log(place.out, [(row.epoch, row.scalars) for row in log]) as write:
        yield lambda row: write(row.epoch, row.scalars)


def _samples(data: Dataset, device: torch.device) -> Samples:
    import torch

    return Samples(torch.from_numpy(data.x).to(device), torch.from_numpy(data.y).to(device))


def _open(place: Place, trainer: Trainer, mark: dict[str, Any], device: torch.device) -> list[Epoch]:
    """The log so far; the folder made, or the checkpoint in it loaded."""
    out = place.out
    if not place.resume:
        if (out / CHECKPOINT).exists():
            raise UsageError(f"{out} holds a training already; go on with --resume, or give another folder")
        with disk(out):
            out.mkdir(parents=True, exist_ok=True)
        return []
    kept = _read(out / CHECKPOINT, device)
    theirs, ours = json.loads(kept["mark"]), json.loads(json.dumps(mark))
    # An option that is younger than the checkpoint had its default.
    theirs["schedule"] = json.loads(json.dumps(asdict(Schedule(1)))) | theirs["schedule"]
    wrong = [key for key in ours if theirs.get(key) != ours[key]]
    if wrong:
        differences = "; ".join(f"{key} {theirs.get(key)!r}, asked for {ours[key]!r}" for key in wrong)
        raise UsageError(f"{out / CHECKPOINT} is of another training: {differences}")
    trainer.load(kept["trainer"])
    return [Epoch(**row) for row in kept["log"]]


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    import pickle

    import torch

    if not path.exists():
        raise UsageError(f"{path} does not exist: there is nothing to go on with; leave out --resume")
    try:
        with disk(path):
            kept: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if kept["format"] != FORMAT:
            raise UsageError(f"{path}: format {kept['format']} is not known to this version")
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read back: {str(error).splitlines()[0]}; train anew") from error
    return kept


def _save(out: Path, trainer: Trainer, mark: dict[str, Any], log: Sequence[Epoch]) -> None:
    """Checkpoint and log; each file is whole or what it was, also on a full disk."""
    import torch

    buffer = io.BytesIO()
    rows = [asdict(row) for row in log]
    torch.save({"format": FORMAT, "mark": json.dumps(mark), "trainer": trainer.state(), "log": rows}, buffer)
    write_atomically(out / CHECKPOINT, buffer.getvalue())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / LOG, text.getvalue().encode())


def measure(
    module: torch.nn.Module, samples: Samples, recipe: Recipe, input_range: tuple[float, float]
) -> tuple[float, float | None, float | None]:
    """(clean, adversarial, certified by intervals) accuracy at the recipe's radius, in evaluation mode."""
    import torch

    from certify.frontends.torch_export import evaluation

    clean = accuracy(module, samples)
    if recipe.radius is None:
        return clean, None, None
    ball = Ball(float(recipe.radius), "linf", *input_range)
    survived = proved = 0
    generator = torch.Generator(samples.x.device).manual_seed(0)
    for x, y in zip(torch.split(samples.x, PIECE), torch.split(samples.y, PIECE), strict=True):
        survived += int(attacked(module, x, y, ball, generator).sum())
        with torch.no_grad(), evaluation(module):
            margins = interval_margins(intervals(live(module, x).graph, *ball.box(x)), y)
            rivals = margins.scatter(1, y[:, None], torch.inf)
            proved += int((rivals > 0).all(1).sum())
    return clean, survived / len(samples.y), proved / len(samples.y)


def _collapse(log: Sequence[Epoch], now: Epoch, recipe: Recipe) -> str:
    """Why to stop: catastrophic overfitting, the adversarial accuracy falling at once (Wong et al. 2020)."""
    drop = recipe.schedule.drop
    if drop is None or not log or now.adversarial is None or log[-1].adversarial is None:
        return ""
    if log[-1].adversarial - now.adversarial <= drop:
        return ""
    return (
        f"catastrophic overfitting in epoch {now.epoch}: the adversarial accuracy fell from {log[-1].adversarial:.1%} "
        f"to {now.adversarial:.1%}; the network of epoch {log[-1].epoch} is kept"
    )


def _finish(
    recipe: Recipe, material: Material, out: Path, trainer: Trainer, end: tuple[int, list[Epoch], str]
) -> Outcome:
    """Export the averaged or last weights, with what they are worth on the whole test set."""
    import torch

    seed, log, stopped = end
    module = trainer.answer.cpu().eval()
    test = _samples(material.test, torch.device("cpu"))
    clean = accuracy(module, test)
    low, high = material.train.input_range
    metadata = {
        "data": material.spec,
        "input_range": f"{low:g},{high:g}",
        "recipe": recipe.words(),
        "seed": str(seed),
        "epsilon": recipe.eps or "0",
        "accuracy": f"{clean:.4f}",
    }
    path = export_onnx(module, test.x[:1], out / MODEL, metadata=metadata)
    summary = {"recipe": recipe.plain(), "seed": seed, "clean_accuracy": clean, "stopped": stopped}
    write_atomically(out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    return Outcome(path, tuple(log), clean, stopped)
