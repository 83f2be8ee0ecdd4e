"""An executor is given pieces of work, and says of each once what it came to, or how whoever had it died."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Read when numpy or torch are loaded, so they must stand before a process starts.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Death:
    """Whoever had a piece ended before it answered; `reason` says how. lost: with its machine, so that the piece is
    hardly to blame.
    """

    reason: str
    lost: bool = False


class Executor(Protocol[T, R]):
    """Workers for pieces; leaving the context ends them, whatever they are doing. Nothing that was given is lost:
    `take` has an answer or a death for it.
    """

    @property
    def count(self) -> int:
        """Pieces at once, at most; it may change with the machines that there are."""

    @property
    def together(self) -> int:
        """So many of them, at most, share the cores and the memory of one machine."""

    @property
    def idle(self) -> bool:
        """Can `give` take a piece?"""

    @property
    def working(self) -> int:
        """Pieces that were given and not taken back yet."""

    def hire(self, pieces: int) -> None:
        """Have workers ready for so many pieces, those that were given among them; they load while others work."""

    def give(self, piece: T) -> None:
        """Have an idle worker begin with a piece."""

    def take(self, seconds: float | None = None) -> tuple[T, R | Death] | None:
        """The next piece that ends and what it came to; None if none ends in time, or a worker is idle now.

        Raises UsageError where no worker can be started at all.
        """

    def rest(self) -> None:
        """Nothing waits to be given: whoever is idle may help with the pieces of others, until it is given one."""

    def __enter__(self) -> Executor[T, R]: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
