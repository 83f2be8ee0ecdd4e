"""`certify`: the group of commands, and how every error becomes one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import Any

import click

from certify.cli.check import check
from certify.cli.codes import ALARM, INTERRUPTED, READER_LEFT
from certify.cli.curve import curve
from certify.cli.distance import distance
from certify.cli.doctor import doctor
from certify.cli.gate import gate
from certify.cli.merge import merge
from certify.cli.models import models
from certify.cli.report import report
from certify.cli.run import run
from certify.cli.serve import serve
from certify.cli.smooth import smooth
from certify.cli.train import train
from certify.cli.vnnlib_command import vnnlib
from certify.errors import CertifyError, DiskError
from certify.version import __version__

EPILOG = """
\b
Examples:
  certify run models/digits_cnn.onnx --eps 2/255
  certify run net.onnx --data mnist --data-dir ~/data --eps 0.1 --samples 100
  certify curve net.onnx --data mnist --data-dir ~/data --eps 0:0.3:0.02 --samples 100
  certify gate net.onnx --data my.npz --eps 2/255 --min-certified 0.60
  certify distance net.onnx --data mnist --data-dir ~/data --samples 10
  certify smooth net.onnx --sigma 0.25 --data mnist --data-dir ~/data --samples 100
  certify doctor net.onnx
  certify vnnlib net.onnx prop.vnnlib --timeout 60 --result-file out.txt
  certify check results
  certify report runs/mine
  certify train --data mnist --method sabr --eps 0.1 --arch cnn5 --out runs/sabr

\b
Exit codes:
    0  fine                      4  undecided
    1  gate not met              5  no samples
    2  usage: what you gave      130  interrupted, resumable
    3  soundness alarm or internal error
"""


class Commands(click.Group):
    """Turns our errors, crashes and Ctrl-C into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CertifyError as error:
            _log_trace()
            raise _refuse(str(error), error.exit_code) from error
        except KeyboardInterrupt:
            click.echo("Interrupted; nothing was begun that could be resumed.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            _log_trace()
            raise click.exceptions.Exit(READER_LEFT) from None
        except OSError as error:
            # What is ours raises DiskError; this is the terminal or pipe that the output goes to.
            _log_trace()
            raise _refuse(f"the system refused: {error}", DiskError.exit_code) from error
        except Exception as error:
            _log_trace()
            raise _refuse(_crash(error), ALARM) from error


def _refuse(message: str, exit_code: int) -> click.exceptions.Exit:
    """The message on stderr, as click shows its own, and the exit to raise."""
    click.echo(f"Error: {message}", err=True)
    return click.exceptions.Exit(exit_code)


def _log_trace() -> None:
    logging.getLogger("certify").debug("traceback", exc_info=True)


def _crash(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="certify-", suffix=".traceback", delete=False) as file:
        traceback.print_exc(file=file)
    summary = str(error).strip().split("\n")[0]
    return (
        f"internal error: {type(error).__name__}: {summary}\n"
        f"This is a bug in certify; its traceback is in {file.name} (certify --debug ... shows it)."
    )


@click.group(
    cls=Commands,
    name="certify",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="certify %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and what goes on inside, on stderr.")
def cli(debug: bool) -> None:
    """How robust is a neural network really?

    An ONNX classifier and data in; out comes the bracket around its true robust accuracy: attacks show where it
    fails, proofs show where it cannot, and what is left between the two is said.
    """
    if debug:
        logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
        logging.getLogger("certify").setLevel(logging.DEBUG)


cli.add_command(run)
cli.add_command(gate)
cli.add_command(report)
cli.add_command(serve)
cli.add_command(merge)
cli.add_command(vnnlib)
cli.add_command(check)
cli.add_command(doctor)
cli.add_command(distance)
cli.add_command(curve)
cli.add_command(train)
cli.add_command(models)
cli.add_command(smooth)


def main() -> None:
    """The console script. It ends without unloading what is loaded: torch and onnxruntime take up to a second."""
    try:
        cli(prog_name="certify")
    except SystemExit as end:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else ALARM)
