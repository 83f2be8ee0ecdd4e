"""An earlier run to compare with: what it held of each sample, and what has changed since.

    was \\ is      certified           falsified           unknown
    certified     -                   regressed           newly unknown
    falsified     fixed               -                   newly unknown
    unknown       newly certified     newly falsified     -

A misclassified sample is falsified, an error is unknown. A run that was cut short serves with what it committed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from certify.disk import disk
from certify.errors import UsageError
from certify.options import Radius
from certify.runner import Job
from certify.store import DATABASE, SCHEMA_VERSION
from certify.verdict import Verdict


class Change(StrEnum):
    """What became of a sample since the baseline."""

    REGRESSED = "regressed"
    NEWLY_UNKNOWN = "newly unknown"
    NEWLY_FALSIFIED = "newly falsified"
    FIXED = "fixed"
    NEWLY_CERTIFIED = "newly certified"


_CHANGES = {
    (Verdict.VERIFIED, Verdict.FALSIFIED): Change.REGRESSED,
    (Verdict.VERIFIED, Verdict.UNKNOWN): Change.NEWLY_UNKNOWN,
    (Verdict.FALSIFIED, Verdict.UNKNOWN): Change.NEWLY_UNKNOWN,
    (Verdict.FALSIFIED, Verdict.VERIFIED): Change.FIXED,
    (Verdict.UNKNOWN, Verdict.VERIFIED): Change.NEWLY_CERTIFIED,
    (Verdict.UNKNOWN, Verdict.FALSIFIED): Change.NEWLY_FALSIFIED,
}


@dataclass(frozen=True, eq=False)
class Baseline:
    """An earlier run. verdicts: eps key -> sample id -> verdict; labels: of all its samples, by id.

    data_sha256: of the source of its data; "" where it does not say.
    """

    root: Path
    norm: str
    input_range: tuple[float, float]
    data_sha256: str
    labels: Mapping[int, int]
    verdicts: Mapping[str, Mapping[int, Verdict]]

    def certified(self, eps: Radius) -> frozenset[int]:
        """The samples that it verified at `eps`."""
        return frozenset(i for i, v in self.verdicts[eps.key].items() if v is Verdict.VERIFIED)


@dataclass(frozen=True)
class Comparison:
    """At one eps: sample ids by what became of them, ascending; how many samples have a verdict in both runs."""

    changes: Mapping[Change, tuple[int, ...]]
    common: int

    def ids(self, change: Change) -> tuple[int, ...]:
        """The samples that changed like this."""
        return self.changes.get(change, ())


def compare(before: Mapping[int, Verdict], now: Mapping[int, Verdict]) -> Comparison:
    """What became of the samples that have a verdict in both."""
    common = sorted(before.keys() & now.keys())
    changes: dict[Change, list[int]] = {}
    for sample in common:
        change = _CHANGES.get((_settled(before[sample]), _settled(now[sample])))
        if change is not None:
            changes.setdefault(change, []).append(sample)
    return Comparison({change: tuple(ids) for change, ids in changes.items()}, len(common))


def read_baseline(root: Path) -> Baseline:
    """The run in a folder, finished or not. Raises UsageError or DiskError where there is none that can be read."""
    if not (root / DATABASE).is_file():
        raise UsageError(f"--baseline {root}: holds no run ({DATABASE} is missing); give the --out of an earlier run")
    # Not read-only: what a killed run left half-written must be rolled back.
    address = f"{(root / DATABASE).resolve().as_uri()}?mode=rw"
    with (
        disk(root / DATABASE, "give the --out of an earlier run as --baseline"),
        closing(sqlite3.connect(address, uri=True)) as db,
    ):
        meta = dict(db.execute("SELECT key, value FROM meta"))
        if meta.get("schema") != str(SCHEMA_VERSION):
            raise UsageError(
                f"--baseline {root}: result format {meta.get('schema', 'none')}, this version of certify reads "
                f"{SCHEMA_VERSION}; run the baseline's model again"
            )
        labels = db.execute("SELECT id, label FROM samples").fetchall()
        rows = db.execute("SELECT r.eps, s.id, r.verdict FROM results r JOIN samples s USING (position)").fetchall()
        alarms = db.execute("SELECT text FROM alarms LIMIT 1").fetchall()
    if alarms:
        raise UsageError(f"--baseline {root}: has a soundness alarm and is not to be trusted: {alarms[0][0]}")
    try:
        fingerprint = json.loads(meta["fingerprint"])
        low, high = fingerprint["input_range"]
        verdicts: dict[str, dict[int, Verdict]] = {key: {} for key in fingerprint["eps"]}
        for key, sample, verdict in rows:
            verdicts[key][sample] = Verdict(verdict)
        return Baseline(root, fingerprint["norm"], (float(low), float(high)), _source(meta), dict(labels), verdicts)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"--baseline {root}: {DATABASE} is damaged ({type(error).__name__}: {error})") from error


def require_same(baseline: Baseline, job: Job) -> None:
    """Raises UsageError unless the job asks of the same data what the baseline answers."""
    here = f"--baseline {baseline.root}"
    missing = [str(r) for r in job.radii if r.key not in baseline.verdicts]
    if missing:
        raise UsageError(f"{here}: has eps {', '.join(baseline.verdicts)}, not {', '.join(missing)}")
    for name, before, now in (
        ("norm", baseline.norm, job.norm),
        ("input range", baseline.input_range, job.input_range),
        ("data's sha256", baseline.data_sha256 or job.data.sha256, job.data.sha256),
    ):
        if before != now:
            raise UsageError(f"{here}: cannot be compared, its {name} is {before}, this run's is {now}")
    labels = {int(i): int(y) for i, y in zip(job.data.ids, job.data.y, strict=True)}
    common = labels.keys() & baseline.labels.keys()
    if not common:
        raise UsageError(f"{here}: has none of the samples of this run")
    for sample in sorted(common):
        if labels[sample] != baseline.labels[sample]:
            raise UsageError(
                f"{here}: other data, sample {sample} has label {baseline.labels[sample]} there and "
                f"{labels[sample]} here"
            )


def _source(meta: Mapping[str, str]) -> str:
    """The hash of the data set, which a run says from its beginning; "" of one that an older version wrote."""
    return str(json.loads(meta["about"])["data"]["sha256"]) if "about" in meta else ""


def _settled(verdict: Verdict) -> Verdict:
    return Verdict.UNKNOWN if verdict is Verdict.ERROR else verdict
