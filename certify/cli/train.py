"""`certify train`: a data set and a method in, a network worth certifying out."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certify.cli.codes import INTERRUPTED
from certify.cli.console import open_console
from certify.errors import UsageError

if TYPE_CHECKING:
    from certify.trainers.recipe import Recipe
    from certify.training import Epoch, Material, Outcome, Place, Pulse, Watch

EPILOG = """
\b
Examples:
  certify train --list
  certify train --data digits --method ibp --eps 4/255 --arch cnn3 --out runs/mine
  certify train --data mnist --method sabr --eps 0.1 --arch cnn5 --out runs/sabr
  certify train --data mnist --config recipe.toml --out runs/mine --resume
  certify train --data mnist --method trades --eps 0.1 --out runs/t --set schedule.epochs=5 --set objective.beta=6
  torchrun --nproc-per-node 4 -m certify train --data cifar10 --method mtl-ibp --eps 2/255 --out runs/mtl

\b
What is written (to --out): checkpoint.pt and log.csv after every epoch; at the end model.onnx, which certify run reads
without a further option, and training.json. With --tensorboard: tensorboard/, for tensorboard --logdir.

\b
Exit codes:
    0  the network is trained and exported
    2  usage: an option, the recipe or the data cannot be used, the loss is not finite, or --out cannot be written
  130  interrupted; the same command with --resume goes on
"""


@click.command(epilog=EPILOG, short_help="Train a network: standard, adversarial, certified, or for smoothing.")
@click.option("--list", "listing", is_flag=True, help="List methods, architectures and recipes, and end.")
@click.option("--data", help="digits, mnist, cifar10, a .npz (x, y) or .csv file.")
@click.option("--data-dir", help="Folder where mnist and cifar10 lie; also CERTIFY_DATA.")
@click.option("--download", is_flag=True, help="Fetch the data set into --data-dir if it is missing.")
@click.option("--method", help="See --list.")
@click.option("--eps", help="Linf radius in raw input units that the network is for: 2/255, 0.1.")
@click.option("--arch", help="See --list.  [default: the recipe's]")
@click.option("--config", metavar="RECIPE", help="A recipe's name or file.  [default: the one for data, method, eps]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value over the recipe's.")
@click.option("--out", metavar="DIR", help="New folder for the network.")
@click.option("--resume", is_flag=True, help="Go on with the training in --out, as if it had never stopped.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, batches and attacks.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Train on the first N samples only.")
@click.option("--verify", type=click.IntRange(min=0), default=20, show_default=True, help="Certify so many at the end.")
@click.option("--amp", is_flag=True, help="Attacks in bfloat16: twice as fast where the processor has it.")
@click.option("--tensorboard", is_flag=True, help="Write the log as TensorBoard's events, too, to --out/tensorboard.")
@click.option("--quiet", is_flag=True, help="No progress and no certification at the end.")
def train(**options: Any) -> None:
    """Train a network on --data by --method, export it to ONNX and certify a slice of the test set.

    A recipe is a TOML file with the values of a paper; options and --set go over it.
    """
    if options["listing"]:
        _list()
        return
    from certify.training import Place, load_material, run_training

    recipe, name = _recipe(options)
    if not options["data"] or not options["out"]:
        raise UsageError("--data and --out are needed: what to train on, and the folder for the network")
    material = load_material(options["data"], options["data_dir"], options["download"], options["samples"])
    place = Place(Path(options["out"]), options["resume"], options["tensorboard"])
    quiet = options["quiet"] or os.environ.get("RANK", "0") != "0"
    if not quiet:
        click.echo(f"{recipe.words()}\n  recipe {name}, {len(material.train)} samples, seed {options['seed']}")
    try:
        with _progress(recipe, quiet=quiet) as watch:
            outcome = run_training(recipe, material, place, seed=options["seed"], device=options["device"], watch=watch)
    except KeyboardInterrupt:
        click.echo(_advice(place), err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    if outcome is None:  # another process of torchrun's says it
        return
    _show(outcome, recipe)
    if not quiet and options["verify"] and recipe.radius is not None:
        _certify(outcome, material, recipe, options["verify"])


def _advice(place: Place) -> str:
    """How to go on after an interruption."""
    from certify.training import CHECKPOINT

    if (place.out / CHECKPOINT).exists():
        return f"Interrupted; the same command with --resume goes on with {place.out} after its last whole epoch."
    return "Interrupted before the first epoch was whole: nothing is kept, the same command starts anew."


def _recipe(options: dict[str, Any]) -> tuple[Recipe, str]:
    """The recipe with the user's options over it, and its name."""
    from certify.options import parse_eps
    from certify.trainers.methods import find_method
    from certify.trainers.recipe import pick_recipe, read_recipe, shipped

    config = options["config"]
    if options["method"]:
        find_method(options["method"])
    if options["eps"]:
        parse_eps(options["eps"])
    if config is None:
        if not options["method"]:
            raise UsageError("give --method (certify train --list shows them) or --config")
        name, text = pick_recipe(options["data"] or "", options["method"], options["eps"] or "")
    elif config in shipped():
        name, text = config, shipped()[config]
    elif Path(config).is_file():
        name, text = config, Path(config).read_text(encoding="utf-8")
    else:
        raise UsageError(f"recipe {config!r} is neither a file nor one of {', '.join(shipped())}")
    changes: list[tuple[str, Any]] = [(key, options[key]) for key in ("method", "eps", "arch") if options[key]]
    if options["amp"]:
        changes.append(("schedule.amp", True))
    return read_recipe(text, name, [*changes, *map(_setting, options["settings"])]), name


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as TOML has it, or else the text itself."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"--set {text}: KEY=VALUE is expected, such as schedule.epochs=5")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _list() -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from certify.models.registry import ARCHITECTURES
    from certify.trainers.methods import METHODS
    from certify.trainers.recipe import read_recipe, shipped

    console = open_console()
    recipes = {name: read_recipe(text, name).words() for name, text in shipped().items()}
    for title, rows in (
        ("method", {name: method.summary for name, method in METHODS.items()}),
        ("architecture", {name: words for name, (words, _) in ARCHITECTURES.items()}),
        ("recipe", recipes),
    ):
        table = Table(box=SIMPLE_HEAD)
        table.add_column(title, no_wrap=True)
        table.add_column("")
        for name, words in rows.items():
            table.add_row(name, words)
        console.print(table)


def _words(row: Epoch) -> str:
    shares = (("clean", row.clean), ("adversarial", row.adversarial), ("IBP", row.certified))
    return "  ".join(f"{name} {share:.1%}" for name, share in shares if share is not None)


@contextmanager
def _progress(recipe: Recipe, *, quiet: bool) -> Iterator[tuple[Watch, Pulse] | None]:
    """A bar on stderr where somebody can see it, else one line an epoch."""
    if quiet:
        yield None
        return
    total = recipe.schedule.epochs

    def say(row: Epoch) -> None:
        click.echo(f"epoch {row.epoch}/{total}  loss {row.loss:.4f}  {_words(row)}  {row.seconds:.0f} s", err=True)

    console = open_console(stderr=True)
    if not console.is_terminal:
        yield say, lambda done, batches: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[words]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("epoch", total=total, words="")
        before = 0

        def watch(row: Epoch) -> None:
            nonlocal before
            before = row.epoch
            bar.update(task, completed=before, description=f"epoch {before}/{total}", words=_words(row))

        yield watch, lambda done, batches: bar.update(task, completed=before + done / batches)


def _show(outcome: Outcome, recipe: Recipe) -> None:
    if outcome.stopped:
        click.echo(f"stopped: {outcome.stopped}")
    click.echo(f"{outcome.model}: clean accuracy {outcome.clean:.2%} on the test set")
    last = outcome.log[-1] if outcome.log else None
    if last is not None and last.adversarial is not None and not outcome.stopped:
        click.echo(f"  last epoch, on a slice of it, at eps {recipe.eps}: {_words(last)}")


def _certify(outcome: Outcome, material: Material, recipe: Recipe, count: int) -> None:
    """What `certify run` says of the first test samples."""
    from certify.api import run
    from certify.report.terminal import sentence

    report = run(outcome.model, material.test, recipe.eps, samples=count, timeout=10.0)
    click.echo(f"certify run, first {report.n} test samples, 10 s each:")
    for bracket in report.brackets.values():
        click.echo("  " + sentence(bracket, several=False))
