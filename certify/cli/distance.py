"""`certify distance`: how far is the nearest input that the network gets wrong, for each sample?"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certify.cli.codes import INTERRUPTED, UNDECIDED
from certify.cli.console import open_console, samples_bar
from certify.errors import DiskError, UsageError
from certify.options import LAYOUTS, METHODS, NORMS, parse_eps, parse_floats, parse_ids, parse_range, parse_seconds

if TYPE_CHECKING:
    from certify.distance import Distance, Search
    from certify.report.distances import Distances
    from certify.runner import Job

EPILOG = """
\b
Examples:
  certify distance models/digits_mlp.onnx --samples 5
  certify distance net.onnx --data mnist --data-dir ~/data --ids 3,17 --norm l1 --out runs/distances

\b
Each sample gets a bracket: no input nearer than `lower` is classified otherwise (certified); at `upper` lies one
that is (a witness that onnxruntime confirms). 0 for a sample that is misclassified as it is; inf: none was found.

\b
What is written with --out: distances.csv, distances.json, distances.svg (the share of the samples farther than eps,
from both ends of the brackets), quantiles.csv (brackets of the distribution's quantiles), witnesses/<id>.npz with x
(the input), y (onnxruntime's outputs), label.
"""
COLUMNS = ("id", "label", "norm", "lower", "upper", "gap", "decisions", "seconds", "reason")
Rows = list[dict[str, Any]]


@click.command(epilog=EPILOG, short_help="Bracket the distance to the nearest misclassified input.")
@click.argument("model")
@click.option("--norm", type=click.Choice(NORMS), default="linf", show_default=True, help="How distance is measured.")
@click.option(
    "--max-eps",
    metavar="E",
    help="Look no further: 0.3, 8/255.  [default: half the input range; for l2 and l1 that of all coordinates]",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.01,
    show_default=True,
    help="Stop at a bracket this narrow, relative to its top.",
)
@click.option(
    "--data", help="digits, mnist, cifar10, a .npz (x, y) or .csv file, an image folder.  [default: as the model says]"
)
@click.option("--data-dir", help="Folder where mnist and cifar10 lie; also CERTIFY_DATA.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--samples", type=click.IntRange(min=0), metavar="N", default=10, show_default=True, help="The first N.")
@click.option("--start", type=click.IntRange(min=0), metavar="I", help="From row I on, counted from 0.")
@click.option("--ids", help="These samples: 3,17,20-25.")
@click.option("--mean", help="Per channel: prepends (x - mean) / std. Distances stay in raw units.")
@click.option("--std", help="Per channel; goes with --mean.")
@click.option("--layout", type=click.Choice(LAYOUTS), help="Axis order that the network expects of images.")
@click.option(
    "--input-range", metavar="LOW,HIGH", help="Range of raw inputs.  [default: as model or data say, else 0,1]"
)
@click.option(
    "--method",
    type=click.Choice([m for m in METHODS if m != "attack"]),
    default="auto",
    show_default=True,
    help="Strongest stage to use.",
)
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="S", help="Seconds per sample.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--out", metavar="DIR", help="New folder for results.  [default: none are written]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@click.option("--quiet", is_flag=True, help="Print one line per sample, no progress.")
def distance(model: str, **options: Any) -> None:
    """How far from each sample does MODEL, an ONNX classifier, first answer another class?"""
    job, search = _prepare(model, options)
    out = _new_folder(options["out"])
    found: list[tuple[int, Distance]] = []
    interrupted = False
    try:
        with samples_bar(len(job.data.y), hidden=options["as_json"] or options["quiet"]) as tell:
            for position in range(len(job.data.y)):
                one = _measure(job, search, position)
                found.append((position, one))
                tell(len(found), f"{one.lower:.4g} … {one.upper:.4g}")
    except KeyboardInterrupt:
        interrupted = True
    rows = [_row(job, search, *one) for one in found]
    document = _document(job, search, rows)
    if out is not None:
        _write(out, document, rows, job, found)
    _show(document, rows, as_json=options["as_json"], quiet=options["quiet"])
    if interrupted:
        click.echo(f"Interrupted after {len(found)} of {len(job.data.y)} samples.", err=True)
        raise click.exceptions.Exit(INTERRUPTED)
    if not any(one.lower > 0 or one.witness is not None for _, one in found):
        raise click.exceptions.Exit(UNDECIDED)


def _prepare(model: str, options: dict[str, Any]) -> tuple[Job, Search]:
    """Cheap checks first, then the model, then the data; nothing is written here."""
    from certify.api import Preprocessing, Selection, load_data, load_model, make_job

    parse_seconds(options["timeout"], option="--timeout")
    given = Preprocessing(
        None if options["mean"] is None else parse_floats(options["mean"], option="--mean"),
        None if options["std"] is None else parse_floats(options["std"], option="--std"),
        options["layout"],
        None if options["input_range"] is None else parse_range(options["input_range"]),
    )
    ids = None if options["ids"] is None else parse_ids(options["ids"])
    samples = None if ids is not None else options["samples"]
    largest = None if options["max_eps"] is None else parse_eps(options["max_eps"])
    if largest is not None and len(largest) > 1:
        raise UsageError(f"--max-eps {options['max_eps']}: give one number")
    network = load_model(model, given)
    from certify.distance import Search
    from certify.settings import Settings

    settings = Settings(options["method"], options["timeout"], options["seed"], options["device"])
    selection = Selection(
        options["data"], options["data_dir"], options["split"], samples=samples, start=options["start"], ids=ids
    )
    data = load_data(selection, network, given)
    # make_job checks that network, data and labels fit together; a distance has no radius of its own.
    job = make_job(network, data, largest or parse_eps("0"), options["norm"], given, settings)
    low, high = job.input_range
    size = math.prod(network.graph.input_shape)
    stretch = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[options["norm"]]
    most = Fraction((high - low) / 2 * stretch) if largest is None else largest[0].value
    return job, Search(options["norm"], job.input_range, most, options["tolerance"], settings)


def _measure(job: Job, search: Search, position: int) -> Distance:
    import numpy as np

    from certify.distance import minimal_distance

    x = job.data.x[position].astype(np.float64)
    return minimal_distance(job.model, x, int(job.data.y[position]), search)


def _row(job: Job, search: Search, position: int, found: Distance) -> dict[str, Any]:
    values = (
        int(job.data.ids[position]),
        int(job.data.y[position]),
        search.norm,
        found.lower,
        found.upper,
        found.gap,
        found.decisions,
        round(found.seconds, 3),
        found.reason,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _document(job: Job, search: Search, rows: Rows) -> dict[str, Any]:
    """What --json prints; JSON knows no infinity, so an open upper end is null."""
    finite = [{k: None if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()} for row in rows]
    return {
        "model": {"source": job.model.source, "sha256": job.model.sha256},
        "data": {"source": job.data.name, "sha256": job.data.sha256},
        "norm": search.norm,
        "max_eps": float(search.largest),
        "tolerance": search.tolerance,
        "method": search.settings.method,
        "timeout": search.settings.timeout,
        "seed": search.settings.seed,
        "checking": "checked" if search.settings.check else "unchecked",
        "arithmetic": search.settings.arithmetic,
        "quantiles": [
            {"quantile": q, "lower": low, "upper": high if math.isfinite(high) else None}
            for q, (low, high) in _distances(rows).quantiles.items()
        ],
        "results": finite,
    }


def _distances(rows: Rows) -> Distances:
    from certify.report.distances import Distances

    return Distances(tuple(row["lower"] for row in rows), tuple(row["upper"] for row in rows))


def _show(document: dict[str, Any], rows: Rows, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    if quiet:
        for row in rows:
            click.echo(f"{row['id']} {row['lower']:.6g} {row['upper']:.6g}")
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"Distance to the nearest misclassified input, {document['norm']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in ("id", "label", "certified ≥", "witness ≤", "gap", "seconds", "note"):
        table.add_column(name, justify="left" if name == "note" else "right", no_wrap=name != "note")
    for row in rows:
        numbers = (f"{row[name]:.5g}" for name in ("lower", "upper", "gap"))
        table.add_row(str(row["id"]), str(row["label"]), *numbers, f"{row['seconds']:.1f}", row["reason"])
    console = open_console()
    console.print(table)
    if len(rows) > 1:
        quantiles = Table(title=f"Quantiles of these {len(rows)} distances", title_justify="left", box=SIMPLE_HEAD)
        for name in ("quantile", "at least", "at most"):
            quantiles.add_column(name, justify="right")
        for q, ends in _distances(rows).quantiles.items():
            quantiles.add_row(f"{q:.0%}", *(f"{end:.5g}" for end in ends))
        console.print(quantiles)


def _new_folder(out: str | None) -> Path | None:
    if out is None:
        return None
    path = Path(out)
    if path.exists():
        raise DiskError(f"--out {out} exists already; give a new folder")
    return path


def _write(out: Path, document: dict[str, Any], rows: Rows, job: Job, found: Sequence[tuple[int, Distance]]) -> None:
    import numpy as np
    import pandas

    from certify.disk import disk, write_atomically

    with disk(out):
        (out / "witnesses").mkdir(parents=True)
    csv = pandas.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n")
    write_atomically(out / "distances.csv", csv.encode())
    distances = _distances(rows)
    title = f"{Path(job.model.source).name}: {len(rows)} samples of {Path(job.data.name).name}"
    write_atomically(out / "quantiles.csv", distances.table().encode())
    write_atomically(out / "distances.svg", distances.picture(title, document["norm"]).svg().encode())
    for position, one in found:
        if one.witness is not None:
            buffer = io.BytesIO()
            np.savez(buffer, x=one.witness.x, y=one.witness.y, label=job.data.y[position])
            write_atomically(out / "witnesses" / f"{job.data.ids[position]}.npz", buffer.getvalue())
    write_atomically(out / "distances.json", (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
