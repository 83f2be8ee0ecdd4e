"""`certify curve`: robust accuracy against eps, from far fewer decisions than one run per eps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from certify.cli.codes import ALARM, INTERRUPTED, UNDECIDED
from certify.cli.console import open_console
from certify.cli.run import interrupted, prepare
from certify.cli.run import run as run_command

if TYPE_CHECKING:
    from certify.report.result import Report
    from certify.runner import Progress, Watch

EPILOG = """
\b
Examples:
  certify curve models/digits_mlp.onnx --eps 0:0.3:0.02
  certify curve net.onnx --data mnist --eps 0:8/255:1/255 --samples 1000 --out runs/curve
  certify curve net.onnx --data mnist --eps 0:8/255:1/255 --samples 1000 --out runs/curve --resume

\b
Each sample is decided at the eps in the middle of what is open for it, then in the half that is left: a proof holds
at every smaller eps, a witness at every larger one. So between two eps of the list the curve is known, too: certified
accuracy is at least that of the next eps, accuracy under attack at most that of the last one. --timeout is of each
decision, of which a sample has about log2 of the number of eps.

\b
What is written (to --out): what certify run writes, and curve.csv, curve.svg.

\b
Exit codes: as certify run.
"""
# The options of `certify run` that make sense here.
_SHARED = (
    "model", "norm", "data", "data_dir", "download", "split", "samples", "start", "end", "ids", "mean", "std", "layout",
    "input_range", "method", "timeout", "budget", "seed", "device", "workers", "executor", "shard",
    "check", "arithmetic", "trust_solver", "certificates", "out", "resume", "as_json",
)  # fmt: skip


@click.command(
    epilog=EPILOG,
    short_help="Robust accuracy against eps, as a curve.",
    params=[parameter for parameter in run_command.params if parameter.name in _SHARED],
)
@click.option("--eps", default="0:0.3:0.02", show_default=True, help="FIRST:LAST:STEP, or a list 1/255,2/255.")
@click.option("--quiet", is_flag=True, help="Print eps, clean, attacked and certified share a line, no progress.")
def curve(model: str, **options: Any) -> None:
    """How does the robust accuracy of MODEL, an ONNX classifier, fall with eps?

    Clean, attacked and certified accuracy at each eps (robustness curves, Goepfert et al. 2019).
    """
    from certify.api import execute
    from certify.curve import bisect
    from certify.report.curve import write_curve

    job, given, output = prepare(model, options)
    assert output.out is not None
    try:
        with _progress(hidden=options["as_json"] or options["quiet"], radii=len(job.radii)) as watch:
            report = execute(job, given, replace(output, order=bisect), watch)
    except KeyboardInterrupt:
        click.echo(interrupted(output.out), err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    write_curve(report)
    for alarm in report.alarms:  # first: the reader of the rest may leave before its end
        click.echo(f"SOUNDNESS ALARM: {alarm}", err=True)
    _show(report, options)
    if report.alarms:
        raise click.exceptions.Exit(ALARM)
    if not any(bracket.decided for bracket in report.brackets.values()):
        raise click.exceptions.Exit(UNDECIDED)


def _show(report: Report, options: dict[str, Any]) -> None:
    from certify.report.curve import sentences, show
    from certify.report.terminal import doubts, errors

    if options["as_json"]:
        from certify.report.files import document

        click.echo(json.dumps(document(report), indent=2, allow_nan=False))
    elif options["quiet"]:
        for sentence in sentences(report):
            click.echo(sentence)
        for problem in (*errors(report), *doubts(report)):
            click.echo(problem, err=True)
    else:
        show(report, open_console())
    if not report.complete:
        click.echo(f"The budget ended first; the same command with --resume --out {report.out} goes on.", err=True)


@contextmanager
def _progress(*, hidden: bool, radii: int) -> Iterator[Watch | None]:
    """A bar on stderr over all (sample, eps) pairs, where somebody can see it."""
    console = open_console(stderr=True)
    if hidden or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("results"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield _watch(bar, radii)


def _watch(bar: Any, radii: int) -> Callable[[Progress], None]:
    done: dict[Any, int] = {}
    task = bar.add_task("results", total=None)

    def watch(progress: Progress) -> None:
        if progress.radius is not None:
            done[progress.radius] = progress.done
            bar.update(task, total=progress.total * radii, completed=sum(done.values()))

    return watch
