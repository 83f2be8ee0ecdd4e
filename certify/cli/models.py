"""`certify models`: the networks that come along, and what was measured of them."""

from __future__ import annotations

import dataclasses
import json

import click

from certify.cli.console import open_console
from certify.errors import ModelError

EPILOG = """
\b
Examples:
  certify models
  certify run models/digits_cnn_robust.onnx --eps 4/255

\b
Exit codes:
    0  every file is the one of the manifest
    2  a file is missing or has changed, or the manifest cannot be read
"""


@click.command(epilog=EPILOG, short_help="List the shipped networks.")
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON document.")
@click.option("--markdown", "as_markdown", is_flag=True, help="The table of docs/models.md.")
def models(as_json: bool, as_markdown: bool) -> None:
    """List the shipped networks: how they were trained, and what certify run said of them.

    Attacked is an upper bound of the robust accuracy of the first N test samples at eps, certified a lower bound.
    """
    from certify.models.manifest import FOLDER, read_manifest
    from certify.zoo import markdown

    rows = read_manifest()
    broken = [row.file for row in rows if not row.intact(FOLDER)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif as_markdown:
        click.echo(markdown(rows))
    else:
        _table()
    if broken:
        raise ModelError(f"{', '.join(broken)} in {FOLDER}: missing, or not the file of the manifest; install anew")


def _table() -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from certify.models.manifest import FOLDER, read_manifest

    table = Table(box=SIMPLE_HEAD, leading=1)
    for title in ("network, trained by", "clean", "attacked ≤", "certified ≥", "at eps", "N"):
        table.add_column(title, overflow="fold")
    for row in read_manifest():
        shares = ("" if share is None else f"{share:.2%}" for share in (row.clean, row.attacked, row.certified))
        name = f"{row.file}\n[dim]{escape(row.recipe)}[/dim]"
        table.add_row(name, *shares, row.measured_eps, str(row.samples or ""))
    console = open_console()
    console.print(f"in {FOLDER}", soft_wrap=True)
    console.print(table)
