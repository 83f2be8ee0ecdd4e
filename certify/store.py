"""Results of a run: what is committed survives a kill, and (sample, eps) has at most one result.

A store on disk is a folder: `results.sqlite`, `witnesses/<id>-<eps>.npz` (x, y, label, id, eps; `clean`, the input
that x lies near, where it is another one) and, where they are kept,
`certificates/<id>-<eps>.npz`. Such a file is complete before the row that needs it is committed. Without a folder
everything stays in memory.

    meta      key, value           schema version, fingerprint of the run, what the run says about itself
    samples   position, id, label, predicted
    results   position, eps -> verdict, stage, reason, lower, upper, checked, seconds, certificate
    alarms    position, eps, text  contradictions between proofs and witnesses
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.disk import disk, write_atomically
from certify.errors import DiskError, UsageError
from certify.options import Radius
from certify.verdict import Outcome, Verdict, Witness

SCHEMA_VERSION = 2
DATABASE = "results.sqlite"
WITNESSES = "witnesses"
CERTIFICATES = "certificates"
MODEL = "model.onnx"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE samples (
    position INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, label INTEGER NOT NULL, predicted INTEGER);
CREATE TABLE results (
    position INTEGER NOT NULL REFERENCES samples, eps TEXT NOT NULL, verdict TEXT NOT NULL, stage TEXT NOT NULL,
    reason TEXT NOT NULL, lower REAL NOT NULL, upper REAL NOT NULL, checked TEXT NOT NULL, seconds TEXT NOT NULL,
    snapped INTEGER, certificate_bytes INTEGER NOT NULL, certificate TEXT NOT NULL, PRIMARY KEY (position, eps));
CREATE TABLE alarms (
    position INTEGER NOT NULL, eps TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (position, eps, text));
"""

_SELECT = (
    "SELECT s.position, s.id, s.label, s.predicted, r.eps, r.verdict, r.stage, r.reason, r.lower, r.upper, "
    "r.checked, r.seconds, r.snapped, r.certificate_bytes, r.certificate "
    "FROM results r JOIN samples s ON s.position = r.position"
)


@dataclass(frozen=True, eq=False)
class SampleResult:
    """What is known about one sample at one eps.

    predicted: the class that onnxruntime gives the clean input; None if it could not run.
    witness_file, certificate_file: where they lie, relative to the run's folder; None without one, or without a folder.
    """

    id: int
    label: int
    predicted: int | None
    eps: Radius
    outcome: Outcome
    witness_file: str | None = None
    certificate_file: str | None = None


@dataclass(frozen=True)
class Row:
    """One result to record; `position` is the sample's place in the run."""

    position: int
    eps: Radius
    outcome: Outcome


class Store:
    """An open store; use as a context manager. One process writes to a folder at a time."""

    def __init__(self, root: Path | None, connection: sqlite3.Connection, lock: int | None) -> None:
        self.root = root
        self._db = connection
        self._lock = lock
        self._memory: dict[tuple[int, str], bytes] = {}
        self._inputs: NDArray[np.generic] | None = None

    @staticmethod
    def in_memory(fingerprint: dict[str, Any], samples: Sequence[tuple[int, int]]) -> Store:
        """A store that leaves nothing on disk."""
        store = Store(None, sqlite3.connect(":memory:", isolation_level=None), None)
        store._initialise(fingerprint, samples)
        return store

    @staticmethod
    def create(root: Path, fingerprint: dict[str, Any], samples: Sequence[tuple[int, int]]) -> Store:
        """A new folder `root` (its parents too); raises UsageError if it holds a run or anything else already."""
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            hint = "add --resume to go on with that run, or give" if (root / DATABASE).exists() else "give"
            raise UsageError(f"--out {root}: exists already; {hint} another folder")
        created = _make_folder(root)
        try:
            with disk(root):
                (root / WITNESSES).mkdir()
                store = Store(root, _connect(root), _lock_folder(root))
            try:
                store._initialise(fingerprint, samples)
            except BaseException:
                store.close()
                raise
        except BaseException:
            _remove_new(root, created)
            raise
        return store

    @staticmethod
    def resume(root: Path, fingerprint: dict[str, Any], samples: Sequence[tuple[int, int]]) -> Store:
        """The run in `root` again; raises UsageError unless it was begun with the same fingerprint and samples."""
        if not (root / DATABASE).is_file():
            raise UsageError(f"--resume: {root} holds no run ({DATABASE} is missing); leave --resume out to begin one")
        with disk(root):
            store = Store(root, _connect(root), _lock_folder(root))
            try:
                store._check_same(fingerprint, samples)
            except BaseException:
                store.close()
                raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back; committed results stay."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def record_clean(self, predicted: dict[int, int], rows: Iterable[Row]) -> None:
        """Commit clean predictions (position -> class) together with the results they decide."""
        with self._transaction():
            self._db.executemany(
                "UPDATE samples SET predicted = ? WHERE position = ?", [(c, p) for p, c in predicted.items()]
            )
            self._insert(rows)

    def record(
        self, rows: Iterable[Row], alarms: Iterable[tuple[int, str, str]] = (), revised: Iterable[Row] = ()
    ) -> None:
        """Commit results and alarms (position, eps key, text) together; a second result for one pair raises.

        revised: results that take the place of those recorded before, in the same commit.
        """
        revised = list(revised)
        with self._transaction():
            self._db.executemany(
                "DELETE FROM results WHERE position = ? AND eps = ?", [(r.position, r.eps.key) for r in revised]
            )
            self._insert([*rows, *revised])
            self._db.executemany("INSERT OR IGNORE INTO alarms VALUES (?, ?, ?)", list(alarms))

    def predictions(self) -> dict[int, int]:
        """position -> clean class, for the samples whose clean prediction is recorded."""
        rows = self._query("SELECT position, predicted FROM samples WHERE predicted IS NOT NULL")
        return {int(p): int(c) for p, c in rows}

    def finished(self, eps: Radius) -> set[int]:
        """Positions of the samples with a result at `eps`."""
        return {int(p) for (p,) in self._query("SELECT position FROM results WHERE eps = ?", (eps.key,))}

    def outcomes(self, position: int, radii: Sequence[Radius]) -> dict[Radius, Outcome]:
        """The recorded outcomes of one sample at these radii, witnesses read back; in the order of `radii`."""
        rows = {row[4]: row for row in self._query(f"{_SELECT} WHERE r.position = ?", (position,))}
        return {r: self._result(rows[r.key], r, True).outcome for r in radii if r.key in rows}

    def counts(self, eps: Radius) -> dict[tuple[Verdict, bool], int]:
        """(verdict, stage is "clean") -> number of samples at `eps`."""
        rows = self._query(
            "SELECT verdict, stage = 'clean', COUNT(*) FROM results WHERE eps = ? GROUP BY 1, 2", (eps.key,)
        )
        return {(Verdict(v), bool(clean)): int(n) for v, clean, n in rows}

    def verdicts(self, eps: Radius) -> dict[int, Verdict]:
        """Sample id -> verdict at `eps`, of the samples that have one."""
        rows = self._query(
            "SELECT s.id, r.verdict FROM results r JOIN samples s ON s.position = r.position WHERE r.eps = ?",
            (eps.key,),
        )
        return {int(i): Verdict(v) for i, v in rows}

    def alarms(self) -> list[str]:
        """Texts of all soundness alarms of the run."""
        return [str(t) for (t,) in self._query("SELECT text FROM alarms ORDER BY position, eps")]

    def results(self, radii: Sequence[Radius], *, witnesses: bool = True) -> Iterator[SampleResult]:
        """All results, sample by sample, each sample's in the order of `radii`; `witnesses`: read them back."""
        order = {radius.key: (rank, radius) for rank, radius in enumerate(radii)}
        rows = self._query(_SELECT)
        for row in sorted(rows, key=lambda row: (row[0], order[row[4]][0])):
            yield self._result(row, order[row[4]][1], witnesses)

    def _result(self, row: tuple[Any, ...], eps: Radius, witnesses: bool) -> SampleResult:
        position, sample, label, predicted, key, verdict, stage, reason, lower, upper, checked, seconds = row[:12]
        snapped, size, certificate = row[12:]
        shown = snapped is not None
        witness = self._read_witness(position, sample, key, snapped) if shown and witnesses else None
        file = f"{WITNESSES}/{_file_name(sample, key)}" if shown and self.root is not None else None
        spent = json.loads(seconds)
        outcome = Outcome(
            Verdict(verdict), stage, reason, lower, upper, witness, checked, spent, certificate_bytes=size
        )
        return SampleResult(sample, label, predicted, eps, outcome, file, certificate or None)

    def _initialise(self, fingerprint: dict[str, Any], samples: Sequence[tuple[int, int]]) -> None:
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("schema", str(SCHEMA_VERSION)), ("fingerprint", json.dumps(fingerprint, sort_keys=True))],
            )
            self._db.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, NULL)", [(i, s, y) for i, (s, y) in enumerate(samples)]
            )

    def _check_same(self, fingerprint: dict[str, Any], samples: Sequence[tuple[int, int]]) -> None:
        meta = dict(self._query("SELECT key, value FROM meta"))
        if meta.get("schema") != str(SCHEMA_VERSION):
            raise UsageError(
                f"--resume: {self.root} was written with result format {meta.get('schema', 'none')}, "
                f"this version of certify reads {SCHEMA_VERSION}; begin a new run with another --out"
            )
        before = json.loads(meta["fingerprint"])
        after = json.loads(json.dumps(fingerprint))
        changed = [
            f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
        stored = self._query("SELECT id, label FROM samples ORDER BY position")
        if not changed and stored != [(s, y) for s, y in samples]:
            changed = ["the samples differ"]
        if changed:
            raise UsageError(
                f"--resume: {self.root} was begun with something else: {'; '.join(changed)}; "
                "give the same model, data and options, or another --out"
            )

    def _insert(self, rows: Iterable[Row]) -> None:
        for row in rows:
            outcome = row.outcome
            if outcome.witness is not None:
                self._write_witness(row.position, row.eps, outcome.witness)
            certificate = outcome.certificate_file
            if outcome.certificate is not None and self.root is not None:
                certificate = self._write_certificate(row.position, row.eps, outcome.certificate)
            self._db.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    row.position,
                    row.eps.key,
                    outcome.verdict.value,
                    outcome.stage,
                    outcome.reason,
                    float(outcome.lower),
                    float(outcome.upper),
                    outcome.checked,
                    json.dumps(outcome.seconds),
                    None if outcome.witness is None else outcome.witness.snapped,
                    outcome.certificate_bytes,
                    certificate,
                ),
            )

    def _write_witness(self, position: int, eps: Radius, witness: Witness) -> None:
        sample, label = self._query("SELECT id, label FROM samples WHERE position = ?", (position,))[0]
        buffer = io.BytesIO()
        clean = None if self._inputs is None else self._inputs[position]
        origin = {} if clean is None or np.array_equal(clean, witness.x) else {"clean": clean}
        np.savez_compressed(buffer, x=witness.x, y=witness.y, label=label, id=sample, eps=eps.key, **origin)
        if self.root is None:
            self._memory[position, eps.key] = buffer.getvalue()
        else:
            write_atomically(self.root / WITNESSES / _file_name(sample, eps.key), buffer.getvalue())

    def keep_model(self, content: bytes) -> None:
        """The model's file beside the certificates, for whoever checks them."""
        if self.root is not None and content:
            write_atomically(self.root / MODEL, content)

    def keep_inputs(self, x: NDArray[np.generic]) -> None:
        """The clean inputs by position, each of which is written beside a witness that differs from it."""
        self._inputs = x

    def describe(self, about: dict[str, Any]) -> None:
        """What the run says about itself, in place of what it said before; read while it is running, too."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('about', ?)", (json.dumps(about),))

    def about(self) -> dict[str, Any]:
        """What `describe` was given last; {} for a store of an earlier version."""
        rows = self._query("SELECT value FROM meta WHERE key = 'about'")
        return dict(json.loads(rows[0][0])) if rows else {}

    def _write_certificate(self, position: int, eps: Radius, content: bytes) -> str:
        """The file's name, relative to the folder."""
        assert self.root is not None
        ((sample,),) = self._query("SELECT id FROM samples WHERE position = ?", (position,))
        with disk(self.root):
            (self.root / CERTIFICATES).mkdir(exist_ok=True)
        name = certificate_path(sample, eps)
        write_atomically(self.root / name, content)
        return name

    def _read_witness(self, position: int, sample: int, key: str, snapped: int) -> Witness:
        if self.root is None:
            source: io.BytesIO | Path = io.BytesIO(self._memory[position, key])
        else:
            source = self.root / WITNESSES / _file_name(sample, key)
        try:
            with np.load(source, allow_pickle=False) as arrays:
                return Witness(arrays["x"], arrays["y"], snapped)
        except (OSError, ValueError, KeyError) as error:
            raise DiskError(
                f"{source}: the witness cannot be read back ({error}); it was removed or damaged"
            ) from error

    def _query(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._kept():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._kept():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite has rolled back by itself, and a second time would hide its reason.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Errors of the disk with the advice that what was committed before is not lost."""
        with disk(
            self.root or "the results in memory", "what was committed before is kept; free some space and resume"
        ):
            try:
                yield
            except sqlite3.IntegrityError as error:
                raise DiskError(f"a second result for one sample and eps was refused ({error})") from error


def certificate_path(sample: int, eps: Radius) -> str:
    """Where the certificate of a sample (its id) at an eps lies, relative to the run's folder."""
    return f"{CERTIFICATES}/{_file_name(sample, eps.key)}"


def _file_name(sample: int, key: str) -> str:
    return f"{sample}-{key.replace('/', '_')}.npz"


def _connect(root: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(root / DATABASE, isolation_level=None)
    # The rollback journal (not WAL) keeps a run in one file that can be copied, and works on network disks.
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _lock_folder(root: Path) -> int | None:
    """Hold the folder until close or death; None where the system has no flock (the primary keys still protect)."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(
            f"--out {root}: another certify process is writing there; wait for it or give another folder"
        ) from None
    return handle


def _make_folder(root: Path) -> list[Path]:
    """Create `root`; the folders that are new, outermost first."""
    new = [p for p in [*reversed(root.parents), root] if not p.exists()]
    with disk(root):
        root.mkdir(parents=True, exist_ok=True)
    return new


def _remove_new(root: Path, created: Sequence[Path]) -> None:
    """Take back a folder whose setup failed; only what the setup made."""
    for path in (root / DATABASE, root / f"{DATABASE}-journal"):
        path.unlink(missing_ok=True)
    for folder in (root / WITNESSES, *reversed(created)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
