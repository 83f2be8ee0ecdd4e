"""The zoo: networks of models/zoo.toml trained, measured by `certify run` and written down in the manifest.

    python -m certify.zoo [NAME ...] [--data-dir DIR] [--samples 1000]

A network whose file and hash the manifest has is only measured, and that only where it was not measured so before.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from certify.disk import disk, write_atomically
from certify.errors import CertifyError, UsageError
from certify.models.manifest import FOLDER, Row, digest, read_manifest, write_rows
from certify.trainers.recipe import Recipe, recipe_of

ZOO = FOLDER / "zoo.toml"
SEED = 0
# Networks that were trained for no radius are measured at this one.
PLAIN_EPS = "0.1"


@dataclass(frozen=True)
class Making:
    """folder: of the networks and their manifest. work: of checkpoints and results, where a broken-off run goes on.

    samples, timeout: how many test samples `certify run` judges, and the seconds for each; workers: its processes.
    """

    folder: Path
    work: Path
    data_dir: str | None = None
    samples: int = 1000
    timeout: float = 60.0
    workers: int = 1


def recipes(path: Path = ZOO) -> dict[str, Recipe]:
    """The zoo's recipes by name. Raises UsageError, DiskError."""
    with disk(path):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    common, found = table["common"], {}
    for entry in table["network"]:
        own = dict(entry)
        name = own.pop("name")
        plan = {**common.get("schedule", {}), **own.pop("schedule", {})}
        found[name] = recipe_of({**common, **own, "schedule": plan}, name)
    return found


def make(name: str, recipe: Recipe, making: Making) -> Row:
    """Train one network where it is missing or changed; its row of the manifest, without measurements."""
    from certify.training import CHECKPOINT, Place, load_material, run_training

    file = f"{name}.onnx"
    for row in read_manifest(making.folder):
        if row.file == file and row.recipe == recipe.words() and row.intact(making.folder):
            return row
    out = making.work / name
    material = load_material(recipe.data, making.data_dir, False, None)
    place = Place(out, resume=(out / CHECKPOINT).exists())
    outcome = run_training(
        recipe,
        material,
        place,
        seed=SEED,
        device="auto",
        watch=(lambda e: print(f"{name}: epoch {e.epoch}, clean {e.clean:.2%}", flush=True), lambda done, of: None),
    )
    assert outcome is not None, "the zoo is made in one process"
    with disk(making.folder):
        write_atomically(making.folder / file, outcome.model.read_bytes())
    clean = round(outcome.clean, 4)
    return Row(file, digest(making.folder / file), recipe.data, recipe.arch, recipe.words(), recipe.eps, SEED, clean)


def measured(row: Row, making: Making, eps: str = "") -> Row:
    """The row with what `certify run` says of the first test samples at the network's radius, or at `eps`."""
    from certify.api import Output, Preprocessing, Selection, execute, load_data, load_model, make_job
    from certify.options import parse_eps
    from certify.settings import Settings
    from certify.store import DATABASE

    eps = eps or row.eps or PLAIN_EPS
    if (row.measured_eps, row.samples, row.timeout) == (eps, making.samples, making.timeout):
        return row
    given = Preprocessing()
    model = load_model(making.folder / row.file, given)
    data = load_data(Selection(row.data, making.data_dir, samples=making.samples), model, given)
    job = make_job(model, data, parse_eps(eps), "linf", given, Settings(timeout=making.timeout))
    out = making.work / f"{row.file}-{row.sha256[:8]}-{eps.replace('/', 'of')}-{making.samples}"
    report = execute(job, given, Output(out, resume=(out / DATABASE).exists(), workers=making.workers))
    (bracket,) = report.brackets.values()
    safe = bracket.n - bracket.misclassified - bracket.falsified
    return replace(
        row,
        measured_eps=eps,
        samples=bracket.n,
        timeout=making.timeout,
        attacked=round(safe / bracket.n, 4),
        certified=round(bracket.certified / bracket.n, 4),
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| network | data | trained by | eps | clean | attacked ≤ | certified ≥ | at eps | samples | s each |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = ("" if share is None else f"{share:.2%}" for share in (row.clean, row.attacked, row.certified))
        measured = (row.measured_eps, str(row.samples), f"{row.timeout:g}") if row.samples else ("", "", "")
        cells = (row.file, row.data, row.recipe, row.eps, *shares, *measured)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m certify.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="of models/zoo.toml; all where none is given")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for networks and manifest")
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="folder for checkpoints and results")
    parser.add_argument("--data-dir", help="folder of mnist and cifar10; also CERTIFY_DATA")
    parser.add_argument("--samples", type=int, default=1000, help="test samples to judge; 0: train only")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args(arguments)
    making = Making(given.out, given.work, given.data_dir, given.samples, given.timeout, given.workers)
    try:
        known = recipes()
        unknown = [name for name in given.names if name not in known]
        if unknown:
            raise UsageError(f"{', '.join(unknown)}: not in the zoo; there are {', '.join(known)}")
        with disk(making.folder):
            making.folder.mkdir(parents=True, exist_ok=True)
        for name in given.names or known:
            row = make(name, known[name], making)
            write_rows([row], making.folder)
            if making.samples:
                row = measured(row, making)
                write_rows([row], making.folder)
            print(markdown([row]).splitlines()[-1], flush=True)
    except CertifyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
