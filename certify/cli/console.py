"""The terminal as rich sees it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def open_console(*, stderr: bool = False) -> Console:
    """A console that raises BrokenPipeError when its reader has left, as every other write does.

    Rich by itself ends the process with exit code 1, which here means that a gate was not met.
    """
    from rich.console import Console

    class Raising(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return Raising(stderr=stderr)


@contextmanager
def samples_bar(total: int, *, hidden: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr, where somebody can see it; it is told how many samples are done, and what came of the last."""
    console = open_console(stderr=True)
    if hidden or not console.is_terminal:
        yield lambda done, last: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("samples"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[last]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("samples", total=total, last="")
        yield lambda done, last: bar.update(task, completed=done, last=f"last: {last}")
