"""Options about who decides samples, and which part of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from certify.executors.choose import EXECUTORS, Hands, free_cores, may_have_gpus, parse_hands

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--workers",
        metavar="N",
        help="So many decide samples side by side, one thread each; auto: one per core or GPU.  [default: auto, "
        "but not more than OMP_NUM_THREADS]",
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
    workers = options["workers"]
    if workers is None and options["executor"] == "processes":
        free = free_cores()
        workers = "auto" if free > 1 and may_have_gpus() else free
    return parse_hands(workers, options["executor"], option="--workers")
