"""`certify gate`: `certify run` with a question that ends in yes or no, its options from a file where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from certify.cli.gating import CONDITIONS, OUTPUTS
from certify.cli.run import run
from certify.config import Key, find_config, read_config
from certify.errors import UsageError

EPILOG = """
\b
Examples:
  certify gate net.onnx --data my.npz --eps 2/255 --min-certified 0.60
  certify gate net.onnx --data my.npz --eps 2/255 --min-certified 0.60 --max-falsified 0.2 --max-unknown 0.1
  certify gate net.onnx --data my.npz --eps 2/255 --baseline runs/old --junit gate.xml --summary gate.md
  certify gate                                 what certify.toml or pyproject.toml says

\b
The outcome. min-certified is about the true robust accuracy: met once so many samples are proved, not met once so
many have a witness that it is out of reach, undecided where what is unknown could go either way. The other limits
count samples. A baseline asks that no sample it certified is falsified now (--max-regressed allows for some).
The run stops as soon as no verdict to come can change the outcome; --all-samples goes on.

\b
Defaults of all options: [tool.certify] in pyproject.toml, or certify.toml, in this folder or the nearest above:
  [tool.certify]
  model = "net.onnx"
  data = "tests/data.npz"
  eps = "2/255"
  min-certified = 0.6

\b
Exit codes:
    0  met                       4  undecided
    1  not met                   5  no samples
    2  usage: what you gave      130  interrupted, resumable
    3  soundness alarm or internal error
"""

# What belongs to one call and not into a file.
_NOT_IN_FILES = ("resume", "json", "ids", "start", "end", "shard")
_FILE = "certify.config"  # in click's context: where the defaults come from
_PATHS = ("model", "data", "data-dir", "out", "baseline", *OUTPUTS)


def _load(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """The file's values become defaults: what the command line gives goes before them."""
    file = find_config(Path.cwd()) if value is None else Path(value)
    if file is None:
        return
    names = _names(context.command.params)
    config = read_config(file, {name: _key(p, name) for name, p in names.items()}, here=Path.cwd())
    context.default_map = {str(names[name].name): value for name, value in config.values.items()}
    context.meta[_FILE] = file


def _names(parameters: list[click.Parameter]) -> dict[str, click.Parameter]:
    """The keys of a file: the long names of options without dashes, and those of arguments."""
    longest = {max(p.opts, key=len).removeprefix("--"): p for p in parameters}
    return {name: p for name, p in longest.items() if name not in (*_NOT_IN_FILES, "config")}


def _key(parameter: click.Parameter, name: str) -> Key:
    from certify.frontends.data import KNOWN_SETS

    def read(value: Any) -> Any:
        try:
            return parameter.type.convert(value, parameter, None)
        except click.BadParameter as error:
            raise UsageError(error.message) from error

    if isinstance(parameter, click.Option) and parameter.is_flag:
        kind = "flag"
    elif isinstance(parameter.type, click.types.IntParamType):
        kind = "whole number"
    elif isinstance(parameter.type, click.types.FloatParamType):
        kind = "number"
    else:
        kind = "text"
    return Key(kind, read, name in _PATHS, KNOWN_SETS if name == "data" else ())


_CONFIG = click.Option(
    ["--config"],
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_load,
    help="Where options have defaults.  [certify.toml or pyproject.toml, here or above]",
)


def _gate(**options: Any) -> None:
    """Is MODEL robust enough? Exit code 0 if so, 1 if not, 4 if that stays open.

    All options of certify run, and a certify.toml or [tool.certify] in pyproject.toml for their defaults. At least one
    of --min-certified, --max-falsified, --max-unknown and --baseline says what is enough.
    """
    if all(options[name] is None for name in (*CONDITIONS, "baseline")):
        raise UsageError(
            "a gate needs a condition: --min-certified, --max-falsified, --max-unknown or --baseline, here or in "
            "certify.toml or [tool.certify] of pyproject.toml"
        )
    file = click.get_current_context().meta.get(_FILE)
    if file is not None and not options["quiet"] and not options["as_json"]:
        click.echo(f"Defaults of options: {file}", err=True)
    assert run.callback is not None
    run.callback(**options)


gate = click.Command(
    "gate",
    params=[*run.params, _CONFIG],
    callback=_gate,
    help=_gate.__doc__,
    short_help="Is an ONNX classifier robust enough? Yes or no, for CI.",
    epilog=EPILOG,
)
