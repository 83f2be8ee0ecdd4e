"""`certify merge`: shards of one run, put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from certify.cli.codes import ALARM, UNDECIDED
from certify.cli.console import open_console
from certify.options import format_ids

if TYPE_CHECKING:
    from certify.report.result import Report

MOST_SHOWN = 200  # characters of ids

EPILOG = """
\b
Examples:
  certify run net.onnx --data mnist --eps 0.1 --shard 1/2 --out runs/mnist
  certify run net.onnx --data mnist --eps 0.1 --shard 2/2 --out runs/mnist      at the same time, on another machine
  certify merge runs/whole runs/mnist/*

\b
OUT becomes what certify run without --shard would have written: the same results, files and witnesses. Shards may
overlap: where one left a sample undecided, the other's result counts, and a proof in one beside a witness in the
other is a soundness alarm. Samples without a result are named; certify run --resume --out OUT decides them.

\b
Exit codes:
    0  the shards hold a result for every sample
    2  usage: the folders are not of one run (it is said what differs), or OUT cannot be written
    3  soundness alarm
    4  some samples have no result
"""


@click.command(epilog=EPILOG, short_help="Put the shards of a run together.")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@click.option("--quiet", is_flag=True, help="Print one line per eps.")
def merge(out: Path, runs: tuple[Path, ...], as_json: bool, quiet: bool) -> None:
    """Put the folders RUN... that certify run --shard wrote together in the new folder OUT."""
    from certify.merge import merge as put_together

    merged = put_together(out, runs)
    for alarm in merged.report.alarms:
        click.echo(f"SOUNDNESS ALARM: {alarm}", err=True)
    _show(merged.report, as_json=as_json, quiet=quiet)
    for radius, ids in merged.missing.items():
        text = format_ids(ids)
        shown = text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN].rsplit(",", 1)[0] + ",..."
        click.echo(f"eps {radius}: {len(ids)} samples have no result in any shard: {shown}", err=True)
    if merged.report.alarms:
        raise click.exceptions.Exit(ALARM)
    if merged.missing:
        raise click.exceptions.Exit(UNDECIDED)


def _show(report: Report, *, as_json: bool, quiet: bool) -> None:
    from certify.report.terminal import sentence, show

    if as_json:
        from certify.report.files import document

        click.echo(json.dumps(document(report), indent=2, allow_nan=False))
    elif quiet:
        for bracket in report.brackets.values():
            click.echo(sentence(bracket, several=len(report.radii) > 1))
    else:
        show(report, open_console())
