"""`certify serve`: the runs of a folder in a browser, while they are running, too."""

from __future__ import annotations

from pathlib import Path

import click

from certify.errors import UsageError

EPILOG = """
\b
Examples:
  certify serve runs
  certify serve runs --port 0                      any free port
  certify serve runs --host 0.0.0.0                for everybody who can reach this machine

\b
Nothing is written, nothing is loaded from elsewhere. By default only this machine is answered;
from a server: ssh -L 8000:127.0.0.1:8000 server, then http://127.0.0.1:8000/ here.
Ctrl-C ends it.

\b
Exit codes:
    0  ended by Ctrl-C
    2  usage: no such folder, or the address cannot be listened on
"""


@click.command(epilog=EPILOG, short_help="Show the runs of a folder in a browser, live.")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def serve(folder: Path, host: str, port: int) -> None:
    """Show the runs below FOLDER at http://127.0.0.1:8000/, and follow those that are running."""
    from certify.serve import Server, Site, is_loopback

    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; give one that holds runs, such as runs/")
    with Server(Site(folder), host, port) as server:
        click.echo(f"{folder}: {server.address}  (Ctrl-C ends)")
        if not is_loopback(host):
            click.echo(f"Everybody who can reach {host} can read these runs: there is no password.", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo()
