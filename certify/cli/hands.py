"""Options about who decides samples, and which part of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from certify.executors.choose import EXECUTORS, Hands, parse_hands

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--workers",
        metavar="N",
        help="So many decide samples side by side, one thread each; auto: one per core or GPU.  [1; with ray auto]",
    ),
    click.option(
        "--executor",
        type=click.Choice(EXECUTORS),
        default="processes",
        show_default=True,
        help="Workers are processes here, or actors of a Ray cluster: that of RAY_ADDRESS, or one started here.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Part I of N of the samples alone, in a folder of its own in --out; certify merge joins them.",
    ),
)


def hands_options(command: Command) -> Command:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def hands(options: Mapping[str, Any]) -> Hands:
    """Who decides samples. Raises UsageError."""
    return parse_hands(options["workers"], options["executor"], option="--workers")
