"""Results of a run: what is committed survives a kill, and (sample, eps) has at most one result.

A store on disk is a folder: `results.sqlite`, `witnesses/<id>-<eps>.npz` (x, y, label, id, eps; `clean`, the input
that x lies near, where it is another one) and, where they are kept,
`certificates/<id>-<eps>.npz`. Such a file is complete before the row that needs it is committed. Without a folder
everything stays in memory.

    meta      key, value           schema version, fingerprint, what the run says about itself, a shard's whole
    samples   position, id, label, predicted
    results   position, eps -> verdict, stage, reason, lower, upper, checked, seconds, certificate
    alarms    position, eps, text  contradictions between proofs and witnesses
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.disk import disk
from certify.errors import DiskError, UsageError
from certify.options import Radius
from certify.run_folder import DATABASE as DATABASE
from certify.run_folder import WITNESSES, Files, connect, lock, make_folder, remove_new, witness_path
from certify.run_folder import certificate_path as certificate_path
from certify.verdict import Outcome, Verdict

SCHEMA_VERSION = 2

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
    """One result to record; `position` is the sample's place in the run. origin: a run's folder that holds its files
    already, to be copied.
    """

    position: int
    eps: Radius
    outcome: Outcome
    origin: Path | None = None


class Store:
    """An open store; use as a context manager. One process writes to a folder at a time."""

    def __init__(self, root: Path | None, connection: sqlite3.Connection, lock: int | None) -> None:
        self.root = root
        self._db = connection
        self._lock = lock
        self._files = Files(root)
        self._inputs: NDArray[np.generic] | None = None

    @staticmethod
    def in_memory(fingerprint: dict[str, Any], samples: Sequence[tuple[int, int]]) -> Store:
        """A store that leaves nothing on disk."""
        store = Store(None, sqlite3.connect(":memory:", isolation_level=None), None)
        store._initialise(fingerprint, samples)
        return store

    @staticmethod
    def create(
        root: Path,
        fingerprint: dict[str, Any],
        samples: Sequence[tuple[int, int]],
        whole: Sequence[tuple[int, int]] | None = None,
    ) -> Store:
        """A new folder `root` (its parents too); raises UsageError if it holds a run or anything else already.

        whole: the samples of all shards together, in order, where this is one of them.
        """
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            hint = "add --resume to go on with that run, or give" if (root / DATABASE).exists() else "give"
            raise UsageError(f"--out {root}: exists already; {hint} another folder")
        created = make_folder(root)
        try:
            with disk(root):
                (root / WITNESSES).mkdir()
                store = Store(root, connect(root), lock(root))
            try:
                store._initialise(fingerprint, samples, whole)
            except BaseException:
                store.close()
                raise
        except BaseException:
            remove_new(root, created)
            raise
        return store

    @staticmethod
    def resume(root: Path, fingerprint: dict[str, Any], samples: Sequence[tuple[int, int]]) -> Store:
        """The run in `root` again; raises UsageError unless it was begun with the same fingerprint and samples."""
        if not (root / DATABASE).is_file():
            raise UsageError(f"--resume: {root} holds no run ({DATABASE} is missing); leave --resume out to begin one")
        store = Store.open(root)
        try:
            changed = differences(store.fingerprint(), json.loads(json.dumps(fingerprint)))
            if not changed and store.samples() != list(samples):
                changed = ["the samples differ"]
            if changed:
                raise UsageError(
                    f"--resume: {root} was begun with something else: {'; '.join(changed)}; "
                    "give the same model, data and options, or another --out"
                )
        except BaseException:
            store.close()
            raise
        return store

    @staticmethod
    def open(root: Path) -> Store:
        """The run in `root`, whatever it is of; raises UsageError where there is none that this version reads."""
        if not (root / DATABASE).is_file():
            raise UsageError(f"{root}: holds no run ({DATABASE} is missing); give the --out folder of certify run")
        with disk(root):
            store = Store(root, connect(root), lock(root))
            try:
                schema = dict(store._query("SELECT key, value FROM meta")).get("schema", "none")
                if schema != str(SCHEMA_VERSION):
                    raise UsageError(
                        f"{root} was written with result format {schema}, this version of certify reads "
                        f"{SCHEMA_VERSION}; begin a new run with another --out"
                    )
            except BaseException:
                store.close()
                raise
        return store

    def fingerprint(self) -> dict[str, Any]:
        """What the run depends on, as it was begun."""
        return dict(json.loads(self._meta("fingerprint") or "{}"))

    def samples(self) -> list[tuple[int, int]]:
        """(id, label), in the run's order."""
        return [(int(i), int(y)) for i, y in self._query("SELECT id, label FROM samples ORDER BY position")]

    def whole(self) -> list[tuple[int, int]] | None:
        """(id, label) of the samples that this run is a shard of; None if it is none."""
        text = self._meta("whole")
        return None if text is None else [(int(i), int(y)) for i, y in json.loads(text)]

    def _meta(self, key: str) -> str | None:
        rows = self._query("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

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
        return {radius: result.outcome for radius, result in self.sample(position, radii).items()}

    def sample(self, position: int, radii: Sequence[Radius]) -> dict[Radius, SampleResult]:
        """As `outcomes`, with the files."""
        rows = {row[4]: row for row in self._query(f"{_SELECT} WHERE r.position = ?", (position,))}
        return {r: self._result(rows[r.key], r, True) for r in radii if r.key in rows}

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
        return [text for _, _, text in self.alarm_rows()]

    def alarm_rows(self) -> list[tuple[int, str, str]]:
        """(position, eps key, text) of all soundness alarms."""
        return [(int(p), str(e), str(t)) for p, e, t in self._query("SELECT * FROM alarms ORDER BY position, eps")]

    def results(self, radii: Sequence[Radius], *, witnesses: bool = True) -> Iterator[SampleResult]:
        """All results, sample by sample, each sample's in the order of `radii`; `witnesses`: read them back."""
        order = {radius.key: (rank, radius) for rank, radius in enumerate(radii)}
        rows = self._query(_SELECT)
        for row in sorted(rows, key=lambda row: (row[0], order[row[4]][0])):
            yield self._result(row, order[row[4]][1], witnesses)

    def _result(self, row: tuple[Any, ...], eps: Radius, witnesses: bool) -> SampleResult:
        _, sample, label, predicted, key, verdict, stage, reason, lower, upper, checked, seconds = row[:12]
        snapped, size, certificate = row[12:]
        shown = snapped is not None
        witness = self._files.read_witness(sample, key, snapped) if shown and witnesses else None
        file = witness_path(sample, key) if shown and self.root is not None else None
        spent = json.loads(seconds)
        outcome = Outcome(
            Verdict(verdict), stage, reason, lower, upper, witness, checked, spent, certificate_bytes=size
        )
        return SampleResult(sample, label, predicted, eps, outcome, file, certificate or None)

    def _initialise(
        self,
        fingerprint: dict[str, Any],
        samples: Sequence[tuple[int, int]],
        whole: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("schema", str(SCHEMA_VERSION)), ("fingerprint", json.dumps(fingerprint, sort_keys=True))],
            )
            if whole is not None:
                self._db.execute("INSERT INTO meta VALUES ('whole', ?)", (json.dumps(whole),))
            self._db.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, NULL)", [(i, s, y) for i, (s, y) in enumerate(samples)]
            )

    def _insert(self, rows: Iterable[Row]) -> None:
        for row in rows:
            outcome = row.outcome
            certificate = self._write_files(row)
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

    def _write_files(self, row: Row) -> str:
        """What the row needs is on the disk before it; the certificate's file, or ""."""
        outcome, key = row.outcome, row.eps.key
        ((sample, label),) = self._query("SELECT id, label FROM samples WHERE position = ?", (row.position,))
        if row.origin is not None:
            self._files.copy(row.origin, sample, key, outcome)
        elif outcome.witness is not None:
            clean = None if self._inputs is None else self._inputs[row.position]
            self._files.write_witness(outcome.witness, clean, {"label": label, "id": sample, "eps": key})
        if outcome.certificate is not None and self.root is not None:
            return self._files.write_certificate(sample, row.eps, outcome.certificate)
        return outcome.certificate_file

    def keep_model(self, content: bytes, folder: Path, outside: Sequence[str] = ()) -> None:
        """The model's file beside the certificates, for whoever checks them, and those of its external data, named
        relative to `folder`.
        """
        if content:
            self._files.write_model(content, folder, outside)

    def keep_inputs(self, x: NDArray[np.generic]) -> None:
        """The clean inputs by position, each of which is written beside a witness that differs from it."""
        self._inputs = x

    def describe(self, about: dict[str, Any]) -> None:
        """What the run says about itself, in place of what it said before; read while it is running, too."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('about', ?)", (json.dumps(about),))

    def about(self) -> dict[str, Any]:
        """What `describe` was given last; {} for a store of an earlier version."""
        return dict(json.loads(self._meta("about") or "{}"))

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


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In words, what differs between two fingerprints."""
    return [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
