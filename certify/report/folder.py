"""A run's folder read back, without writing to it: finished, in the middle of its run, or killed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.disk import disk
from certify.errors import DiskError, UsageError
from certify.options import Radius, parse_eps
from certify.report.accounting import Bracket, bracket
from certify.report.result import Report
from certify.run_folder import DATABASE, LOCK
from certify.store import SCHEMA_VERSION, SampleResult, Store

WAIT = 10.0  # seconds that a reader waits for a writer's commit, which takes milliseconds
RECENT = 60.0  # a run that committed so few seconds ago is taken as running where the system tells no locks
LOCKS = Path("/proc/locks")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One sample of the run, with or without a result; predicted: the class of the clean input, if it is known."""

    id: int
    label: int
    predicted: int | None


@dataclass(frozen=True, eq=False)
class Folder:
    """A run as its folder holds it. told: what the run says about itself, with {} in place of what it does not say."""

    root: Path
    report: Report
    samples: tuple[Sample, ...]
    told: Mapping[str, Any] = field(repr=False)
    running: bool


@dataclass(frozen=True, eq=False)
class Outline:
    """How a run stands, without its samples: what `certify serve` asks again and again."""

    report: Report
    brackets: tuple[Bracket, ...]
    alarms: bool
    running: bool

    @property
    def done(self) -> int:
        """(sample, eps) pairs that have a result."""
        return self.total - sum(b.pending for b in self.brackets)

    @property
    def total(self) -> int:
        """All of its (sample, eps) pairs."""
        return sum(b.n for b in self.brackets)


@dataclass(frozen=True, eq=False)
class Shown:
    """A witness as it is stored: x, the network's outputs y, and the clean input that it lies near, if that is kept."""

    x: Floats
    y: Floats
    clean: Floats | None

    def distance(self, norm: str) -> float | None:
        """||x - clean|| in a norm, float64; None where the clean input is not kept."""
        if self.clean is None:
            return None
        difference = np.abs(self.x - self.clean).ravel()
        if norm == "linf":
            return float(difference.max(initial=0.0))
        return float(difference.sum()) if norm == "l1" else float(np.sqrt(np.square(difference).sum()))


def read_folder(root: Path) -> Folder:
    """The run in a folder; UsageError where there is none that this version reads, DiskError where it is damaged."""
    with _reading(root) as (store, database, told):
        stored = database.execute("SELECT id, label, predicted FROM samples ORDER BY position")
        samples = tuple(Sample(int(i), int(y), None if p is None else int(p)) for i, y, p in stored)
        report = _report(root, told, len(samples))
        results = tuple(store.results(report.radii, witnesses=False))
        complete = len(results) == len(samples) * len(report.radii)
        report = replace(report, results=results, alarms=tuple(store.alarms()), complete=complete)
        return Folder(root, report, samples, told, not complete and is_running(root))


def read_outline(root: Path) -> Outline:
    """How the run in a folder stands; errors as of `read_folder`."""
    with _reading(root) as (store, database, told):
        ((n,),) = database.execute("SELECT COUNT(*) FROM samples")
        report = _report(root, told, n)
        brackets = tuple(bracket(radius, n, store.counts(radius)) for radius in report.radii)
        complete = not any(b.pending for b in brackets)
        return Outline(report, brackets, bool(store.alarms()), not complete and is_running(root))


def read_witness(root: Path, result: SampleResult) -> Shown:
    """The witness of a result; DiskError where its file is missing, damaged, or not inside the folder."""
    assert result.witness_file is not None, "only a falsified sample has a witness"
    path = root / result.witness_file
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError("it lies outside the run's folder")
        with np.load(path, allow_pickle=False) as arrays:
            x, y = (np.asarray(arrays[name], dtype=np.float64) for name in ("x", "y"))
            clean = np.asarray(arrays["clean"], dtype=np.float64) if "clean" in arrays else None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DiskError(f"{path}: the witness cannot be read ({error}); it was removed or damaged") from error
    if result.outcome.stage == "clean":
        clean = x  # misclassified: a witness at distance 0
    return Shown(x, y.ravel(), clean if clean is None or clean.shape == x.shape else None)


def is_running(root: Path) -> bool:
    """Does a process hold the folder? Where this machine cannot know: has anything been committed just now?"""
    try:
        held = {line.split()[5].rsplit(":", 1)[-1] for line in LOCKS.read_text().splitlines() if " FLOCK " in line}
        if str(root.stat().st_ino) in held:
            return True
        # On a network disk it is a file that is held, maybe by another machine (certify.run_folder.lock).
        if not (root / LOCK).exists():
            return False
    except (OSError, IndexError):
        pass
    return time.time() - (root / DATABASE).stat().st_mtime < RECENT


@contextmanager
def _reading(root: Path) -> Iterator[tuple[Store, sqlite3.Connection, dict[str, Any]]]:
    """The store and what the run says of itself. What a kill left half-written is undone in a copy, never in place."""
    if not (root / DATABASE).is_file():
        raise UsageError(f"{root}: holds no run ({DATABASE} is missing); give the --out folder of certify run")
    with ExitStack() as stack:
        stack.enter_context(disk(root / DATABASE, "is it the folder of a run?"))
        database = stack.enter_context(closing(_connect(root / DATABASE, "ro")))
        try:
            database.execute("SELECT 1 FROM meta LIMIT 1")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            spare = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="certify-")))
            for name in (DATABASE, f"{DATABASE}-journal"):
                shutil.copyfile(root / name, spare / name)
            database = stack.enter_context(closing(_connect(spare / DATABASE, "rw")))
        database.execute("BEGIN")  # one moment of the run, however many questions
        meta = dict(database.execute("SELECT key, value FROM meta"))
        if meta.get("schema") != str(SCHEMA_VERSION):
            raise UsageError(
                f"{root}: result format {meta.get('schema', 'none')}, this version of certify reads {SCHEMA_VERSION}"
            )
        try:
            yield Store(root, database, None), database, _told(root, meta)
        except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise DiskError(f"{root}: the run is damaged ({type(error).__name__}: {error})") from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=WAIT, isolation_level=None)


def _told(root: Path, meta: Mapping[str, str]) -> dict[str, Any]:
    """What is kept in the database from the run's beginning, or else in the manifest of its end, or else little."""
    asked = json.loads(meta["fingerprint"])
    told = {
        "model": {"source": "unknown model", "sha256": asked["model"]},
        "data": {"source": "unknown data", "sha256": ""},
        "norm": asked["norm"],
        "eps": asked["eps"],
        "input_range": asked["input_range"],
        "notes": [],
        "options": {k: asked[k] for k in ("method", "timeout", "seed", "check", "arithmetic") if k in asked},
        "command": {},
    }
    manifest = root / "manifest.json"
    later = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    seconds = later.pop("seconds", {}).get("wall")
    about: dict[str, Any] = json.loads(meta.get("about", "{}"))
    return told | later | ({} if seconds is None else {"seconds": seconds}) | about


def _report(root: Path, told: Mapping[str, Any], n: int) -> Report:
    """Without its results."""
    radii: tuple[Radius, ...] = parse_eps([str(eps) for eps in told["eps"]])
    low, high = told["input_range"]
    return Report(
        model=str(told["model"]["source"]),
        model_sha256=str(told["model"]["sha256"]),
        data=str(told["data"]["source"]),
        data_sha256=str(told["data"]["sha256"]),
        norm=str(told["norm"]),
        radii=radii,
        input_range=(float(low), float(high)),
        n=n,
        results=(),
        notes=tuple(map(str, told["notes"])),
        seconds=float(told.get("seconds", 0.0)),
        complete=False,
        out=root,
        options=dict(told["options"]),
        command=dict(told["command"]),
    )
