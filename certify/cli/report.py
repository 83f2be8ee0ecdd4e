"""`certify report`: runs in, one HTML file out that needs no network and no server."""

from __future__ import annotations

from pathlib import Path

import click

from certify.errors import UsageError

NAME = "report.html"
EPILOG = """
\b
Examples:
  certify report runs/mine
  certify report runs/old runs/new --out compared.html

\b
One file holds everything: bracket and counts, the stages that decided, classes, witnesses with
pictures, unresolved samples with the command to try them again, times, provenance. Its data
are inside as JSON. A run that is going on, or was killed, is shown as far as it came.

\b
Exit codes:
    0  written
    2  usage: a folder holds no run, or --out cannot be written
"""


@click.command(epilog=EPILOG, short_help="Write one HTML file about runs.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help=f"[default: {NAME} in the last RUN]")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML report about RUN, the --out folder of certify run; of several, all are compared with the first."""
    from certify.disk import write_atomically
    from certify.report.folder import read_folder
    from certify.report.html import render

    target = runs[-1] / NAME if out is None else out
    folders = [read_folder(run) for run in runs]
    if target.is_dir():
        raise UsageError(f"--out {target}: is a folder; give the name of a file")
    page = render(folders).encode()
    write_atomically(target, page)
    click.echo(f"report: {target} ({len(page) / 1e6:.1f} MB)")
