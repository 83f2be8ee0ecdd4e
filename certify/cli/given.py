"""What the user gave on the command line, in one spelling: kept with the results, and written out again."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource


def given_options(context: click.Context) -> dict[str, Any]:
    """Long option name -> value, True for a flag, of what was not left at its default; arguments by their metavar,
    the command's name as COMMAND.
    """
    found: dict[str, Any] = {"COMMAND": context.command.name}
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        if value is None or context.get_parameter_source(name) in (None, ParameterSource.DEFAULT):
            continue
        if isinstance(parameter, click.Option) and parameter.is_flag:
            names = parameter.opts if value else parameter.secondary_opts
            found |= {max(names, key=len): True} if names else {}
        elif isinstance(parameter, click.Option):
            found[max(parameter.opts, key=len)] = value
        else:
            found[parameter.human_readable_name] = value
    return found
