"""`certify smooth`: certificates about the smoothed classifier, each with a stated failure probability."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certify.cli.codes import INTERRUPTED, UNDECIDED
from certify.cli.console import open_console, samples_bar
from certify.errors import UnsupportedOps, UsageError
from certify.options import LAYOUTS, NORMS, Radius, parse_eps, parse_floats, parse_ids, parse_range

if TYPE_CHECKING:
    from certify.api import Preprocessing
    from certify.model import Model
    from certify.report.smoothing import Smoothed
    from certify.smoothing.run import Run

EPILOG = """
\b
Examples:
  certify smooth models/digits_cnn.onnx --sigma 0.25 --samples 50
  certify smooth net.onnx --sigma 0.25 --data cifar10 --eps 2/255 --norm linf --sequential
  certify smooth net.onnx --sigma 0.25 --data cifar10 --noise splitting
  certify smooth net.onnx --sigma 0.25 --limit --eps 8/255

\b
The smoothed classifier answers the class that the network answers most often under noise. What is said is about it,
not about the network, and each sample's certificate fails with probability alpha at most (splitting noise: never).

\b
What is written (to --out): smoothing.sqlite while running; at the end results.csv, curve.csv (certified accuracy over
the radius), curve.svg, manifest.json.

\b
Exit codes: 0 the run ended; 2 usage; 4 every sample abstained; 5 no samples; 130 interrupted, --resume goes on.
"""


@click.command(epilog=EPILOG, short_help="Certify the smoothed classifier, with a stated failure probability.")
@click.argument("model")
@click.option(
    "--sigma", type=float, required=True, metavar="S", help="Standard deviation of the noise, in input units."
)
@click.option("--noise", type=click.Choice(["gaussian", "uniform", "splitting"]), default="gaussian", show_default=True)
@click.option("--eps", help="Also answer: certified at this radius? 2/255, 0.03 or a list.")
@click.option(
    "--norm", type=click.Choice(NORMS), help="Of eps and radii.  [default: the noise's own: l2, else l1; --limit: linf]"
)
@click.option("--n0", type=int, default=100, show_default=True, help="Draws that choose the class.")
@click.option(
    "--n", type=int, default=100_000, show_default=True, help="Draws that estimate it; a limit if sequential."
)
@click.option("--alpha", type=float, default=0.001, show_default=True, help="Failure probability of a certificate.")
@click.option("--sequential/--fixed", default=False, help="Stop drawing as soon as the question is answered.")
@click.option("--limit", is_flag=True, help="Only tell what radii can be reached in so many dimensions.")
@click.option("--no-attack", is_flag=True, help="No attack on what is not certified at eps.")
@click.option(
    "--data", help="digits, mnist, cifar10, a .npz (x, y) or .csv file, an image folder.  [default: as the model says]"
)
@click.option("--data-dir", help="Folder where mnist and cifar10 lie; also CERTIFY_DATA.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--samples", type=click.IntRange(min=0), metavar="N", help="Only the first N of the samples.")
@click.option("--start", type=click.IntRange(min=0), metavar="I", help="From row I on, counted from 0.")
@click.option("--ids", help="These samples: 3,17,20-25.")
@click.option("--mean", help="Per channel: prepends (x - mean) / std. Noise and radii stay in raw units.")
@click.option("--std", help="Per channel; goes with --mean.")
@click.option("--layout", type=click.Choice(LAYOUTS), help="Axis order that the network expects of images.")
@click.option(
    "--input-range", metavar="LOW,HIGH", help="Range of raw inputs.  [default: as model or data say, else 0,1]"
)
@click.option("--seed", type=click.IntRange(0, 2**63), default=0, show_default=True, help="Of the noise.")
@click.option("--device", default="cpu", show_default=True, help="cpu (onnxruntime), cuda, cuda:1 (torch), or auto.")
@click.option("--out", metavar="DIR", help="New folder for results.  [default: runs/<model>-smooth-<sigma>-<time>]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@click.option("--quiet", is_flag=True, help="Print one line per eps, no progress.")
def smooth(model: str, **options: Any) -> None:
    """Certify the smoothed version of MODEL, an ONNX classifier: how far does its class stay the same?

    CERTIFY of Cohen et al. 2019: n0 draws choose the class, n others bound its probability from below.
    """
    from certify.smoothing.certify import Budget

    if not options["sigma"] > 0 or options["sigma"] == float("inf"):
        raise UsageError(f"--sigma {options['sigma']}: give a standard deviation above 0, such as 0.25")
    radii = () if options["eps"] is None else parse_eps(options["eps"])
    norm = options["norm"] or ("linf" if options["limit"] else "l2" if options["noise"] == "gaussian" else "l1")
    if options["limit"] and norm != "linf":
        raise UsageError(f"--limit is about linf balls, not {norm}")
    budget = Budget(options["n0"], options["n"], options["alpha"])
    if options["resume"] and options["out"] is None:
        raise UsageError("--resume needs --out, the folder of the run to go on with")
    given, network = _network(model, options)
    if options["limit"]:
        _tell_limit(network, options["sigma"], budget.best, radii)
        return
    from certify.smoothing.run import Question

    question = Question(radii, norm, budget, options["sequential"], not options["no_attack"], options["seed"])
    run = _run(network, given, question, options)
    out = _folder(model, options)
    report = _execute(run, out, options)
    _show(report, out, options)
    if report.rows and all(row.predicted < 0 for row in report.rows):
        raise click.exceptions.Exit(UNDECIDED)


def _network(model: str, options: dict[str, Any]) -> tuple[Preprocessing, Model]:
    from certify.api import Preprocessing, load_model
    from certify.frontends.opaque import load_opaque
    from certify.model import Before

    mean, std, input_range = options["mean"], options["std"], options["input_range"]
    given = Preprocessing(
        None if mean is None else parse_floats(mean, option="--mean"),
        None if std is None else parse_floats(std, option="--std"),
        options["layout"],
        None if input_range is None else parse_range(input_range),
    )
    try:
        return given, load_model(model, given)
    except UnsupportedOps:
        return given, load_opaque(model, Before(given.mean, given.std, given.layout))


def _run(network: Model, given: Preprocessing, question: Any, options: dict[str, Any]) -> Run:
    """Data and noise that fit the network; nothing is written here."""
    import math

    from certify.api import Selection, load_data, make_job
    from certify.machine import pick_device
    from certify.settings import Settings
    from certify.smoothing.grid import Grid
    from certify.smoothing.radii import Smoothing
    from certify.smoothing.run import Run
    from certify.smoothing.splitting import Splitting

    o = options
    selection = Selection(o["data"], o["data_dir"], o["split"], samples=o["samples"], start=o["start"])
    selection = replace(selection, ids=None if o["ids"] is None else parse_ids(o["ids"]))
    data = load_data(selection, network, given)
    # make_job checks that network, data and labels fit together.
    job = make_job(network, data, question.radii or parse_eps("0"), question.norm, given, Settings())
    device = o["device"] if o["device"] == "cpu" else str(pick_device(o["device"]))
    size = math.prod(network.graph.input_shape)
    noise: Smoothing | Splitting
    if o["noise"] == "splitting":
        noise = Splitting.of(job.data.x, o["sigma"], question.seed, job.input_range)
    else:
        noise = Smoothing(o["noise"], o["sigma"], Grid.of(job.data.x, job.input_range, o["sigma"]), size)
    run = Run(network, job.data, noise, question, job.input_range, device)
    _ = run.network  # a network that takes one input at a time is refused
    return run


def _folder(model: str, options: dict[str, Any]) -> Path:
    from certify.api import default_out

    if options["out"] is not None:
        return Path(options["out"])
    return default_out(model, [Radius(parse_eps("0")[0].value, f"smooth-{options['sigma']:g}")])


def _execute(run: Run, out: Path, options: dict[str, Any]) -> Smoothed:
    from certify.report.smoothing import Smoothed, fingerprint, write_files
    from certify.smoothing.store import Ledger

    begin = time.monotonic()
    with Ledger(out, fingerprint(run), resume=options["resume"]) as ledger:
        try:
            with samples_bar(len(run.data.y), hidden=options["as_json"] or options["quiet"]) as tell:
                for row in run.go(ledger):
                    tell(row.position + 1, f"radius {row.radius:.4g}, {row.n} draws")
        except KeyboardInterrupt:
            click.echo(f"Interrupted. The same command with --resume --out {out} goes on.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        report = Smoothed(run, tuple(ledger.rows()), time.monotonic() - begin)
    write_files(report, out)
    return report


def _show(report: Smoothed, out: Path, options: dict[str, Any]) -> None:
    from certify.report.smoothing import document, sentences, show

    if options["as_json"]:
        click.echo(json.dumps(document(report), indent=2, allow_nan=False))
    elif options["quiet"]:
        for sentence in sentences(report):
            click.echo(sentence)
    else:
        console = open_console()
        show(report, console)
        console.print(f"  results: {out}", style="dim", markup=False, soft_wrap=True)


def _tell_limit(network: Model, sigma: float, best: float, radii: tuple[Radius, ...]) -> None:
    """Probability -> the largest Linf radius of any noise, and of the Gaussian."""
    import math

    from certify.smoothing.limit import linf_limit
    from certify.smoothing.radii import convert, gaussian_radius

    size = math.prod(network.graph.input_shape)
    click.echo(f"{network.source}: {size} inputs, noise of standard deviation {sigma:g}; largest linf radius")
    click.echo(f"{'probability':>12} {'any noise':>12} {'gaussian':>12}")
    for p in (0.9, 0.99, 0.999, best):
        gaussian = convert(gaussian_radius(p, sigma), "l2", "linf", size)
        click.echo(f"{p:>12.6g} {linf_limit(p, sigma, size):>12.6g} {gaussian:>12.6g}")
    click.echo(f"{best:.6g} is what all of n draws for one class can show.")
    ours, any_noise = convert(gaussian_radius(best, sigma), "l2", "linf", size), linf_limit(best, sigma, size)
    for radius in radii:
        if float(radius) > any_noise:
            click.echo(f"WARNING: eps {radius} is out of reach of any noise; at most {any_noise:.6g} is in reach.")
        elif float(radius) > ours:
            click.echo(f"WARNING: eps {radius} is out of reach of Gaussian noise; at most {ours:.6g} is in reach.")
