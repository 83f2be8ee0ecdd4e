"""Files that hold all of their content or what they held before, and what the disk refuses as an error with advice."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from certify.errors import DiskError


def write_atomically(path: Path, content: bytes) -> None:
    """`path` holds all of `content` or what it held before, also after a crash. Raises DiskError."""
    write_atomically_with(path, lambda temporary: temporary.write_bytes(content))


def write_atomically_with(path: Path, write: Callable[[Path], object]) -> None:
    """As `write_atomically`, where `write` fills a temporary path."""
    with disk(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def copy_atomically(source: Path, path: Path) -> None:
    """As `write_atomically`, with the content of a file."""
    write_atomically_with(path, lambda temporary: shutil.copyfile(source, temporary))


@contextmanager
def disk(place: Path | str, advice: str = "free some space, or give a place that can be written") -> Iterator[None]:
    """Turn what the system or SQLite says about `place` into a DiskError with advice."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DiskError(f"{place} cannot be written or read: {detail}; {advice}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
