"""`certify run`: a network and data in, the bracket of its robust accuracy out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certify.cli.codes import ALARM, GATES, INTERRUPTED, UNDECIDED
from certify.cli.console import open_console
from certify.cli.gating import CONDITIONS, check_gate, gate_options, open_gate, show_gate, write_gate
from certify.cli.given import given_options
from certify.cli.hands import hands, hands_options
from certify.cli.proofs import proof_options, proof_settings
from certify.errors import UsageError
from certify.options import (
    LAYOUTS,
    METHODS,
    NORMS,
    parse_eps,
    parse_floats,
    parse_ids,
    parse_range,
    parse_seconds,
)

if TYPE_CHECKING:
    from certify.api import Output, Preprocessing, Selection
    from certify.gate_decision import Decision
    from certify.report.result import Report
    from certify.runner import Job, Progress, Watch

EPILOG = """
\b
Examples:
  certify run models/digits_cnn.onnx --eps 2/255
  certify run net.onnx --data mnist --data-dir ~/data --eps 0.1 --samples 1000
  certify run net.onnx --data my.npz --eps 1/255,2/255,4/255 --out runs/mine
  certify run net.onnx --data cifar10 --eps 2/255 --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26
  certify run net.onnx --data my.npz --eps 1/255,2/255,4/255 --out runs/mine --resume
  certify run net.onnx --data mnist --eps 0.1 --workers auto
  certify run net.onnx --data mnist --eps 0.1 --shard 2/8 --out runs/mnist; certify merge runs/whole runs/mnist/*

\b
What is written (to --out): results.sqlite while running; at the end manifest.json, results.csv, results.parquet;
witnesses/<id>-<eps>.npz with x (the input), y (onnxruntime's outputs), label; with --certificates also
certificates/<id>-<eps>.npz and model.onnx, which certify check reads.

\b
Exit codes:
    0  the run ended (also when samples stay unknown); with a gate: it is met
    1  a gate is not met
    2  usage: an option, the model or the data cannot be used, or --out cannot be written
    3  soundness alarm (a proof and a witness contradict each other) or internal error
    4  no sample at all was decided; with a gate: it is undecided
    5  no samples selected
  130  interrupted; the same command with --resume --out goes on
"""


@dataclass(frozen=True)
class Display:
    """How the result is shown: a JSON document, one line per eps, or tables with a progress bar."""

    as_json: bool
    quiet: bool


@click.command(epilog=EPILOG, short_help="Bracket the robust accuracy of an ONNX classifier.")
@click.argument("model")
@click.option("--eps", required=True, help="Radius in raw input units: 2/255, 0.03, 1e-3 or a list 1/255,2/255.")
@click.option("--norm", type=click.Choice(NORMS), default="linf", show_default=True, help="Shape of the ball.")
@click.option(
    "--data", help="digits, mnist, cifar10, a .npz (x, y) or .csv file, an image folder.  [default: as the model says]"
)
@click.option("--data-dir", help="Folder where mnist and cifar10 lie; also CERTIFY_DATA.")
@click.option("--download", is_flag=True, help="Fetch the data set into --data-dir if it is missing.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--samples", type=click.IntRange(min=0), metavar="N", help="Only the first N of the samples.")
@click.option("--start", type=click.IntRange(min=0), metavar="I", help="From row I on, counted from 0.")
@click.option("--end", type=click.IntRange(min=0), metavar="I", help="Up to row I, exclusive.")
@click.option("--ids", help="These samples: 3,17,20-25.")
@click.option("--mean", help="Per channel, such as 0.49,0.48,0.45: prepends (x - mean) / std. eps stays in raw units.")
@click.option("--std", help="Per channel; goes with --mean.")
@click.option("--layout", type=click.Choice(LAYOUTS), help="Axis order that the network expects of images.")
@click.option(
    "--input-range", metavar="LOW,HIGH", help="Range of raw inputs.  [default: as model or data say, else 0,1]"
)
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True, help="Strongest stage to use.")
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="S", help="Seconds per sample.")
@click.option(
    "--budget", type=float, metavar="S", help="Seconds in total; --resume goes on later.  [default: no limit]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1; auto takes CUDA if there."
)
@hands_options
@proof_options
@click.option(
    "--certificates",
    is_flag=True,
    help="Keep the certificates in --out, with the model, for certify check.",
)
@click.option("--out", metavar="DIR", help="New folder for results.  [default: runs/<model>-<eps>-<time>]")
@gate_options
@click.option("--resume", is_flag=True, help="Go on with the run in --out: nothing is lost, nothing is done twice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@click.option("--quiet", is_flag=True, help="Print one line per eps, no progress.")
def run(model: str, **options: Any) -> None:
    """Certify MODEL, an ONNX classifier, on data: how many samples keep their class in the whole ball?

    Of N samples, clean accuracy >= attacked upper bound >= true robust accuracy >= certified lower bound. A sample
    counts as falsified only with a witness that onnxruntime confirms, as certified only with a proof that the
    independent checker accepts.
    """
    from certify.api import execute

    check_gate(options)
    if options["shard"] is not None and any(options[name] is not None for name in (*CONDITIONS, "baseline")):
        raise UsageError("a gate is about all samples: certify merge the shards, then certify gate --resume --out DIR")
    job, given, output = prepare(model, options)
    display = Display(options["as_json"], options["quiet"])
    out = output.out
    assert out is not None
    gate = open_gate(options, job, out)
    if gate is not None:
        from certify.gate_decision import decide, enough

        output = replace(output, enough=enough(gate, job.radii))
    try:
        with _progress(display) as watch:
            report = execute(job, given, output, watch)
    except KeyboardInterrupt:
        click.echo(interrupted(out), err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    for alarm in report.alarms:  # first: the reader of the rest may leave before its end
        click.echo(f"SOUNDNESS ALARM: {alarm}", err=True)
    decision = None if gate is None else decide(gate, report)
    _show(report, decision, display)
    if decision is not None:
        write_gate(report, decision, options)
    if report.alarms:
        raise click.exceptions.Exit(ALARM)
    if decision is not None:
        raise click.exceptions.Exit(GATES[decision.ruling.value])
    if not any(bracket.decided for bracket in report.brackets.values()):
        raise click.exceptions.Exit(UNDECIDED)


def prepare(model: str, options: dict[str, Any]) -> tuple[Job, Preprocessing, Output]:
    """Cheap checks first, then the model, then the data; nothing is written here."""
    from certify.api import Output, Preprocessing, default_out, load_data, load_model, make_job
    from certify.shards import Shard

    radii = parse_eps(options["eps"])
    parse_seconds(options["timeout"], option="--timeout")
    parse_seconds(options["budget"], option="--budget")
    who = hands(options)
    shard = None if options["shard"] is None else Shard.parse(options["shard"])
    if options["resume"] and options["out"] is None:
        raise UsageError("--resume needs --out, the folder of the run to go on with")
    mean, std, input_range = options["mean"], options["std"], options["input_range"]
    given = Preprocessing(
        None if mean is None else parse_floats(mean, option="--mean"),
        None if std is None else parse_floats(std, option="--std"),
        options["layout"],
        None if input_range is None else parse_range(input_range),
    )
    selection = _selection(options)
    network = load_model(model, given)
    from certify.settings import Settings

    settings = Settings(
        method=options["method"],
        timeout=options["timeout"],
        seed=options["seed"],
        device=options["device"],
        certificates=options["certificates"],
        **proof_settings(options),
    )
    job = make_job(network, load_data(selection, network, given), radii, options["norm"], given, settings)
    out = default_out(model, radii, shard) if options["out"] is None else Path(options["out"])
    output = Output(
        out if shard is None else shard.folder(out),
        options["resume"],
        options["budget"],
        witnesses=False,
        workers=who.workers,
        executor=who.executor,
        command=given_options(click.get_current_context()),
        shard=shard,
    )
    return job, given, output


def _selection(options: dict[str, Any]) -> Selection:
    from certify.api import Selection

    ids = options["ids"]
    return Selection(
        options["data"],
        options["data_dir"],
        options["split"],
        options["download"],
        options["samples"],
        options["start"],
        options["end"],
        None if ids is None else parse_ids(ids),
    )


def _show(report: Report, decision: Decision | None, display: Display) -> None:
    from certify.report.terminal import doubts, errors, sentence, show

    if display.as_json:
        from certify.report.files import document

        gate = {}
        if decision is not None:
            from certify.gate_decision import document as gate_document

            gate = {"gate": gate_document(decision)}
        click.echo(json.dumps(document(report) | gate, indent=2, allow_nan=False))
    elif display.quiet:
        for bracket in report.brackets.values():
            click.echo(sentence(bracket, several=len(report.radii) > 1))
        for problem in (*errors(report), *doubts(report)):
            click.echo(problem, err=True)
    else:
        show(report, open_console())
    if decision is not None and not display.as_json:
        show_gate(report, decision, quiet=display.quiet)
    if not report.complete and not (decision is not None and decision.settled):
        click.echo(f"The budget ended first; the same command with --resume --out {report.out} goes on.", err=True)


def interrupted(out: Path) -> str:
    from certify.store import DATABASE

    if not (out / DATABASE).exists():
        return "Interrupted before the first result; nothing was written."
    return f"Interrupted. What was done is kept in {out}; the same command with --resume --out {out} goes on."


@contextmanager
def _progress(display: Display) -> Iterator[Watch | None]:
    """A bar on stderr with the running bracket, where somebody can see it."""
    console = open_console(stderr=True)
    if display.as_json or display.quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[bracket]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield _watch(bar)


def _watch(bar: Any) -> Callable[[Progress], None]:
    from certify.report.accounting import bracket
    from certify.report.terminal import running

    tasks: dict[str, Any] = {}

    def watch(progress: Progress) -> None:
        name = "clean" if progress.radius is None else f"eps {progress.radius}"
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=progress.total, bracket="")
        text = "" if progress.radius is None else running(bracket(progress.radius, progress.total, progress.counts))
        bar.update(tasks[name], completed=progress.done, bracket=text)

    return watch
