"""The terminal as rich sees it."""

from __future__ import annotations

import errno
import os
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
