"""A run's folder: made whole or not at all, held by one process at a time; and the files in it beside its database."""

from __future__ import annotations

import io
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certify.disk import copy_atomically, disk, write_atomically
from certify.errors import DiskError, UsageError
from certify.options import Radius
from certify.verdict import Outcome, Witness

DATABASE = "results.sqlite"
WITNESSES = "witnesses"
CERTIFICATES = "certificates"
MODEL = "model.onnx"
LOCK = ".lock"  # only on disks where a folder cannot be locked


def witness_path(sample: int, key: str) -> str:
    """Where the witness of a sample (its id) at an eps lies, relative to the run's folder."""
    return f"{WITNESSES}/{_file_name(sample, key)}"


def certificate_path(sample: int, eps: Radius) -> str:
    """Where the certificate of a sample (its id) at an eps lies, relative to the run's folder."""
    return f"{CERTIFICATES}/{_file_name(sample, eps.key)}"


def _file_name(sample: int, key: str) -> str:
    return f"{sample}-{key.replace('/', '_')}.npz"


def need_free_names(outside: Sequence[str]) -> None:
    """Raises UsageError where a file of the model's external data is called as one of the run's own."""
    own = (DATABASE, WITNESSES, CERTIFICATES, MODEL, LOCK, "manifest.json", "results.csv", "results.parquet")
    for name in outside:
        if Path(name).parts[0] in own:
            raise UsageError(f"the model's weights lie in {name!r}, a name that a run needs; call that file otherwise")


class Files:
    """Witnesses, certificates and the model; without a folder only witnesses are kept, in memory."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._memory: dict[str, bytes] = {}

    def write_witness(
        self, witness: Witness, clean: NDArray[np.generic] | None, about: Mapping[str, int | str]
    ) -> None:
        """about: id, eps (its key), label. clean: the input that it lies near, kept where it is another one."""
        buffer = io.BytesIO()
        origin = {} if clean is None or np.array_equal(clean, witness.x) else {"clean": clean}
        np.savez_compressed(buffer, x=witness.x, y=witness.y, **dict(about), **origin)  # type: ignore[arg-type]
        name = witness_path(int(about["id"]), str(about["eps"]))
        if self._root is None:
            self._memory[name] = buffer.getvalue()
        else:
            write_atomically(self._root / name, buffer.getvalue())

    def read_witness(self, sample: int, key: str, snapped: int) -> Witness:
        """As it was written; DiskError where it is not."""
        name = witness_path(sample, key)
        source = io.BytesIO(self._memory[name]) if self._root is None else self._root / name
        try:
            with np.load(source, allow_pickle=False) as arrays:
                return Witness(arrays["x"], arrays["y"], snapped)
        except (OSError, ValueError, KeyError) as error:
            raise DiskError(
                f"{source}: the witness cannot be read back ({error}); it was removed or damaged"
            ) from error

    def write_certificate(self, sample: int, eps: Radius, content: bytes) -> str:
        """The file's name, relative to the folder."""
        assert self._root is not None
        with disk(self._root):
            (self._root / CERTIFICATES).mkdir(exist_ok=True)
        name = certificate_path(sample, eps)
        write_atomically(self._root / name, content)
        return name

    def write_model(self, content: bytes, folder: Path, outside: Sequence[str]) -> None:
        """For whoever checks the certificates. outside: the files of its external data, relative to `folder`."""
        if self._root is None:
            return
        for name in outside:
            with disk(self._root):
                (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            copy_atomically(folder / name, self._root / name)
        write_atomically(self._root / MODEL, content)

    def copy(self, origin: Path, sample: int, key: str, outcome: Outcome) -> None:
        """The files of an outcome from another run's folder."""
        assert self._root is not None
        names = [outcome.certificate_file] if outcome.certificate_file else []
        if outcome.witness is not None:
            names.append(witness_path(sample, key))
        for name in names:
            with disk(self._root):
                (self._root / name).parent.mkdir(exist_ok=True)
            copy_atomically(origin / name, self._root / name)


def connect(root: Path) -> sqlite3.Connection:
    """The folder's database, new or as it is."""
    connection = sqlite3.connect(root / DATABASE, isolation_level=None)
    # The rollback journal (not WAL) keeps a run in one file that can be copied, and works on network disks.
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def lock(root: Path) -> int | None:
    """Hold the folder until close or death; None where the system cannot (the primary keys still protect)."""
    try:
        import fcntl
    except ImportError:
        return None
    # NFS locks no folder but a file that can be written; other network disks lock nothing at all.
    for path, flags in ((root, os.O_RDONLY), (root / LOCK, os.O_RDWR | os.O_CREAT)):
        handle = os.open(path, flags)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UsageError(
                f"{root}: another certify process is writing there; wait for it or give another folder"
            ) from None
        except OSError:
            os.close(handle)
            continue
        return handle
    return None


def make_folder(root: Path) -> list[Path]:
    """Create `root`; the folders that are new, outermost first."""
    new = [p for p in [*reversed(root.parents), root] if not p.exists()]
    with disk(root):
        root.mkdir(parents=True, exist_ok=True)
    return new


def remove_new(root: Path, created: Sequence[Path]) -> None:
    """Take back a folder whose setup failed; only what the setup made."""
    for path in (root / DATABASE, root / f"{DATABASE}-journal", root / LOCK):
        path.unlink(missing_ok=True)
    for folder in (root / WITNESSES, *reversed(created)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
