"""Shards put together again: what comes of it is the folder that one run of all samples would have written.

Two shards may hold the same sample. Where both decided it, they must agree: a proof in one and a witness in the other,
at the same eps or so that one contradicts the other at another eps, is a soundness alarm. Where one was left undecided
(a time limit, a crash), the other's result counts; an `error` with an alarm stays one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from certify.disk import disk
from certify.errors import UsageError
from certify.frontends.onnx_file import read_source
from certify.options import Radius, format_ids, parse_eps
from certify.report.files import about, write_files
from certify.report.result import Report
from certify.run_folder import MODEL, lock
from certify.runner import against_smaller, proved_with
from certify.shards import NAME
from certify.store import Row, SampleResult, Store, differences
from certify.verdict import Outcome, Verdict, as_error, examine

COMMIT_EVERY = 256
# How much a verdict says; of two results the one that says more counts.
SAYS = (Verdict.ERROR, Verdict.UNKNOWN, Verdict.FALSIFIED, Verdict.VERIFIED)


@dataclass(frozen=True, eq=False)
class Merged:
    """The run as a whole. missing: of each eps, the ids of samples without a result, where there are any."""

    report: Report
    missing: Mapping[Radius, tuple[int, ...]]


@dataclass(frozen=True)
class Found:
    """A result, and the folder of the shard that it is from."""

    outcome: Outcome
    root: Path


def merge(out: Path, roots: Sequence[Path]) -> Merged:
    """A new run in `out` of what the shards' folders hold; raises UsageError unless they are shards of one run."""
    start = time.monotonic()
    different = {root.resolve(): root for root in roots}
    if out.resolve() in different:
        raise UsageError(f"{out} is to be written and cannot be one of the shards")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already; give a new folder first, then the folders of the shards")
    with ExitStack() as stack:
        shards = {root: stack.enter_context(Store.open(root)) for root in different.values()}
        whole = _check(shards)
        first = next(iter(shards.values()))
        told = _told(shards)
        radii = parse_eps([str(eps) for eps in told["eps"]])
        asked = {**first.fingerprint(), NAME: None}
        spare = stack.enter_context(_spare(out))
        with Store.create(spare, asked, whole) as store:
            _fill(store, shards, radii, whole)
            report = replace(
                _report(told, radii, whole, out),
                results=tuple(store.results(radii, witnesses=False)),
                alarms=tuple(store.alarms()),
            )
            missing = _missing(report, whole)
            report = replace(report, complete=not missing, seconds=time.monotonic() - start)
            tell = about(report, {"started": datetime.now(UTC).isoformat(timespec="seconds")})
            store.describe(tell)
            for root in shards:
                if (root / MODEL).is_file():
                    found = read_source(root / MODEL)
                    store.keep_model(found.data, root, found.outside)
                    break
        with disk(out):
            spare.rename(out)
    write_files(report, tell)
    return Merged(report, missing)


@contextmanager
def _spare(out: Path) -> Iterator[Path]:
    """A place beside `out` for what is not whole yet; nothing is left of it, of one that was killed before neither."""
    spare = out.parent / f".{out.name}.merging"
    if spare.exists():
        handle = lock(spare)
        shutil.rmtree(spare)
        if handle is not None:
            os.close(handle)
    try:
        yield spare
    finally:
        shutil.rmtree(spare, ignore_errors=True)


def _check(shards: Mapping[Path, Store]) -> list[tuple[int, int]]:
    """(id, label) of all samples, in the run's order. Raises UsageError where the shards are not of one run."""
    (first, store), *others = shards.items()
    expected = {**store.fingerprint(), NAME: None}
    for root, other in others:
        changed = differences(expected, {**other.fingerprint(), NAME: None})
        if changed:
            raise UsageError(f"{root} is of another run than {first}: {'; '.join(changed)}")
    wholes = {root: shard.whole() or shard.samples() for root, shard in shards.items()}
    whole = wholes[first]
    for root, its in wholes.items():
        if its != whole:
            raise UsageError(f"{root} is of other samples than {first}")
    return whole


def _told(shards: Mapping[Path, Store]) -> dict[str, Any]:
    """What a shard says about itself; one that was killed at its very beginning does not."""
    for store in shards.values():
        if told := store.about():
            return told
    raise UsageError("the shards hold nothing yet; certify run --resume goes on with them")


def _fill(
    store: Store, shards: Mapping[Path, Store], radii: Sequence[Radius], whole: Sequence[tuple[int, int]]
) -> None:
    """Everything that the shards hold, put together sample by sample."""
    place = {sample: position for position, (sample, _) in enumerate(whole)}
    clean: dict[int, int] = {}
    alarms: set[tuple[int, str, str]] = set()
    for shard in shards.values():
        ids = [sample for sample, _ in shard.samples()]
        clean |= {place[ids[position]]: answer for position, answer in shard.predictions().items()}
        alarms |= {(place[ids[position]], eps, text) for position, eps, text in shard.alarm_rows()}
    store.record_clean(clean, [])
    store.record([], alarms)
    alarmed = {(position, eps) for position, eps, _ in alarms}
    rows: list[Row] = []
    found: list[tuple[int, str, str]] = []
    for position, results in _by_sample(shards, radii, place):
        mine, texts = _one(position, results, {r for r in radii if (position, r.key) in alarmed})
        rows += mine
        found += [(position, r.key, f"sample {whole[position][0]}, eps {r}: {text}") for r, text in texts]
        if len(rows) >= COMMIT_EVERY:
            store.record(rows, found)
            rows, found = [], []
    store.record(rows, found)


def _by_sample(
    shards: Mapping[Path, Store], radii: Sequence[Radius], place: Mapping[int, int]
) -> Iterator[tuple[int, dict[Radius, list[Found]]]]:
    """Position -> what the shards say of the sample at each eps, those eps ascending; witnesses read when they come."""
    holders: dict[int, list[tuple[Path, Store, int]]] = defaultdict(list)
    for root, shard in shards.items():
        for own, (sample, _) in enumerate(shard.samples()):
            holders[place[sample]].append((root, shard, own))
    for position in sorted(holders):
        results: dict[Radius, list[Found]] = defaultdict(list)
        for root, shard, own in holders[position]:
            for radius, result in shard.sample(own, radii).items():
                results[radius].append(Found(_kept(result), root))
        yield position, {r: results[r] for r in sorted(results)}


def _kept(result: SampleResult) -> Outcome:
    return replace(result.outcome, certificate_file=result.certificate_file or "")


def _one(
    position: int, results: Mapping[Radius, list[Found]], alarmed: set[Radius]
) -> tuple[list[Row], list[tuple[Radius, str]]]:
    """One sample's results, as a run would hold them, and what contradicts itself."""
    rows: dict[Radius, Row] = {}
    alarms: list[tuple[Radius, str]] = []
    for radius, found in results.items():
        best, text = _alarming(found) if radius in alarmed else _joined(found)
        smaller = {r: row.outcome for r, row in rows.items()}
        outcome, contradiction = against_smaller(radius, best.outcome, smaller)
        rows[radius] = Row(position, radius, outcome, _origin(outcome, best))
        for r, proved in proved_with(radius, outcome, smaller).items():
            rows[r] = Row(position, r, proved, best.root)
        alarms += [(radius, t) for t in (text, contradiction) if t]
    return list(rows.values()), alarms


def _origin(outcome: Outcome, best: Found) -> Path | None:
    """The folder that has the outcome's files; None where its witness is one of a smaller eps, to be written anew."""
    return best.root if outcome.witness is best.outcome.witness else None


def _alarming(found: Sequence[Found]) -> tuple[Found, str]:
    """What a shard raised an alarm about stays an error, whatever others say."""
    errors = [f for f in found if f.outcome.verdict is Verdict.ERROR]
    best = errors[0] if errors else found[0]
    return replace(best, outcome=as_error(best.outcome, best.outcome.reason or "soundness alarm")), ""


def _joined(found: Sequence[Found]) -> tuple[Found, str]:
    """The result that says most, with the bounds of all; and the alarm's text or ""."""
    best = max(found, key=lambda f: SAYS.index(f.outcome.verdict))
    if len(found) == 1:
        return best, ""
    lower = max(f.outcome.lower for f in found)
    upper = min(f.outcome.upper for f in found)
    shown = next((f for f in found if f.outcome.witness is not None), None)
    if shown is not None and best.outcome.verdict is Verdict.VERIFIED:
        text = f"proved safe in {best.root} (stage {best.outcome.stage}), yet falsified in {shown.root}"
        return Found(as_error(shown.outcome, f"soundness alarm: {text}"), shown.root), text
    outcome, text = examine(replace(best.outcome, lower=lower, upper=upper))
    return Found(outcome, best.root), text


def _report(told: Mapping[str, Any], radii: tuple[Radius, ...], whole: Sequence[tuple[int, int]], out: Path) -> Report:
    low, high = told["input_range"]
    ids = {"ids": format_ids([sample for sample, _ in whole]), NAME: None, "budget": None}
    return Report(
        model=told["model"]["source"],
        model_sha256=told["model"]["sha256"],
        data=told["data"]["source"],
        data_sha256=told["data"]["sha256"],
        norm=told["norm"],
        radii=radii,
        input_range=(low, high),
        n=len(whole),
        results=(),
        notes=tuple(told["notes"]),
        out=out,
        options=dict(told["options"]) | ids,
        command={k: v for k, v in told["command"].items() if k not in ("--shard", "--out", "--resume", "--budget")},
    )


def _missing(report: Report, whole: Sequence[tuple[int, int]]) -> dict[Radius, tuple[int, ...]]:
    held: dict[Radius, set[int]] = {radius: set() for radius in report.radii}
    for result in report.results:
        held[result.eps].add(result.id)
    missing = {r: tuple(sample for sample, _ in whole if sample not in ids) for r, ids in held.items()}
    return {radius: ids for radius, ids in missing.items() if ids}
