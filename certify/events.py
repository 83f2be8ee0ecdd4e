"""A training's log as TensorBoard reads it: one scalar for each column, its step the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from certify.disk import disk
from certify.errors import UsageError

FOLDER = "tensorboard"
MISSING = "--tensorboard needs TensorBoard: pip install 'certify[tensorboard]'"

Scalars = Mapping[str, float | None]


def check_installed() -> None:
    """Raises UsageError where TensorBoard is missing, before anything is trained."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(MISSING) from error


@contextmanager
def event_log(out: Path, earlier: Iterable[tuple[int, Scalars]]) -> Iterator[Callable[[int, Scalars], None]]:
    """Takes (epoch, scalars) into `out/tensorboard`, which first gets the earlier ones anew. Raises DiskError.

    So a training that goes on has each epoch once, also one that a crash cut off between checkpoint and events.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = out / FOLDER
    with disk(folder):
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        writer = SummaryWriter(str(folder))

    def write(epoch: int, scalars: Scalars) -> None:
        with disk(folder):
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(name, value, epoch)
            writer.flush()

    try:
        for row in earlier:
            write(*row)
        yield write
    finally:
        with disk(folder):
            writer.close()
