"""What a report shows of runs, as values: per eps the samples, who decided them, classes, times, and what has changed.

The document that the page embeds holds all of it for programs, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from certify.errors import DiskError
from certify.gate_baseline import Change, compare
from certify.options import Radius
from certify.report.accounting import Bracket
from certify.report.again import again
from certify.report.assurance import Assurance
from certify.report.files import bracket_document
from certify.report.folder import Folder, read_witness
from certify.store import SampleResult
from certify.verdict import CHECK_STAGE, Verdict

FORMAT, VERSION = "certify-report", 1
KINDS = ("certified", "falsified", "misclassified", "unknown", "error", "pending")
# In the order in which the pipeline tries them; what is not among them comes last.
STAGES: tuple[str, ...] = ("clean", "attack", "IBP", "CROWN", "alpha-CROWN", "input splits", "LP", "branch and bound")
STAGES += ("long attack", "MIP", CHECK_STAGE)
ANY = 987654321987654321  # an id that stands for any
PATIENCE = 10  # an unresolved sample is tried again with so many times the seconds
POINTS = 240  # of a curve of sorted times: more than its pixels


@dataclass(frozen=True)
class Evidence:
    """What a witness shows. target: its class in onnxruntime; distance: in the run's norm, None if that is not kept."""

    target: int
    distance: float | None


@dataclass(frozen=True, eq=False)
class View:
    """A run at one eps. damaged: how many of its witnesses cannot be read."""

    folder: Folder
    name: str
    radius: Radius
    results: tuple[SampleResult, ...]
    shown: dict[int, Evidence]
    damaged: int

    @cached_property
    def bracket(self) -> Bracket:
        return self.folder.report.brackets[self.radius]

    @cached_property
    def pending(self) -> tuple[int, ...]:
        """Positions without a result."""
        have = {result.id for result in self.results}
        return tuple(p for p, sample in enumerate(self.folder.samples) if sample.id not in have)

    @cached_property
    def unresolved(self) -> tuple[SampleResult, ...]:
        """Neither certified nor falsified, the best lower bound first: what lacks least to a proof."""
        open_ = [r for r in self.results if r.outcome.verdict is Verdict.UNKNOWN]
        return tuple(sorted(open_, key=lambda r: (-r.outcome.lower, r.id)))

    def retry(self, ids: Sequence[int]) -> str:
        """The command that tries some samples again, with every method and more time."""
        report = self.folder.report
        options = {name: value for name, value in report.options.items() if name != "method"}
        command = {name: value for name, value in report.command.items() if name != "--method"}
        if isinstance(seconds := options.get("timeout"), int | float):
            options["timeout"] = PATIENCE * seconds
            command |= {"--timeout": f"{PATIENCE * seconds:g}"} if command else {}
        return again(replace(report, options=options, command=command), self.radius, ids)

    def retry_one(self) -> tuple[str, str]:
        """What stands before and behind a sample's id in the command that tries it again."""
        before, _, behind = self.retry([ANY]).rpartition(str(ANY))
        return before, behind


def views(folder: Folder, name: str) -> list[View]:
    """One for each eps, ascending."""
    found: dict[Radius, list[SampleResult]] = {radius: [] for radius in folder.report.radii}
    for result in folder.report.results:
        found[result.eps].append(result)
    return [View(folder, name, radius, tuple(rs), *_evidence(folder, rs)) for radius, rs in found.items()]


def kind(result: SampleResult) -> str:
    """One of KINDS: a misclassified sample is falsified at distance 0, and counted apart."""
    verdict = result.outcome.verdict
    if verdict is Verdict.FALSIFIED:
        return "misclassified" if result.outcome.stage == "clean" else "falsified"
    return {Verdict.VERIFIED: "certified", Verdict.UNKNOWN: "unknown"}.get(verdict, "error")


def stage_rank(stage: str) -> tuple[int, str]:
    """Sorts stages as the pipeline tries them."""
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def by_stage(view: View) -> list[tuple[str, dict[str, int]]]:
    """Stage -> kind -> how many samples it decided, or was the last to try, in the pipeline's order."""
    counts: dict[str, Counter[str]] = {}
    for result in view.results:
        counts.setdefault(result.outcome.stage, Counter())[kind(result)] += 1
    return [(stage, dict(counts[stage])) for stage in sorted(counts, key=stage_rank)]


def by_class(view: View) -> list[tuple[int, dict[str, int]]]:
    """Label -> kind -> how many samples, ascending."""
    counts: dict[int, Counter[str]] = {sample.label: Counter() for sample in view.folder.samples}
    for result in view.results:
        counts[result.label][kind(result)] += 1
    for position in view.pending:
        counts[view.folder.samples[position].label]["pending"] += 1
    return [(label, dict(counts[label])) for label in sorted(counts)]


def confusion(view: View, of: str) -> dict[tuple[int, int], int]:
    """(label, the class that the witness gets) -> how many of the samples of one kind."""
    pairs = ((r.label, view.shown[r.id].target) for r in view.results if kind(r) == of and r.id in view.shown)
    return dict(Counter(pairs))


def spent(view: View) -> list[tuple[str, float, int]]:
    """(stage, its wall seconds, samples that it worked on), in the pipeline's order."""
    seconds: dict[str, float] = {}
    count: Counter[str] = Counter()
    for result in view.results:
        for stage, used in result.outcome.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + used
            count[stage] += 1
    return [(stage, seconds[stage], count[stage]) for stage in sorted(seconds, key=stage_rank)]


def cactus(view: View, *kinds: str) -> list[tuple[int, float]]:
    """(k, seconds): k samples of these kinds took at most so long, each by itself. At most POINTS points."""
    times = sorted(sum(r.outcome.seconds.values()) for r in view.results if kind(r) in kinds)
    picked = np.unique(np.linspace(0, len(times) - 1, min(POINTS, len(times))).astype(int))
    return [(int(i) + 1, times[i]) for i in picked]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two views at one eps. table: (kind before, kind now) -> ids; changes: what the change is called -> ids."""

    before: View
    now: View
    table: dict[tuple[str, str], tuple[int, ...]]
    changes: dict[Change, tuple[int, ...]]
    common: int
    warnings: tuple[str, ...]


def comparison(before: View, now: View) -> Comparison:
    """What became of the samples that have a result in both."""
    old, new = ({r.id: r for r in view.results} for view in (before, now))
    table: dict[tuple[str, str], list[int]] = {}
    for sample in sorted(old.keys() & new.keys()):
        table.setdefault((kind(old[sample]), kind(new[sample])), []).append(sample)
    verdicts = ({i: r.outcome.verdict for i, r in results.items()} for results in (old, new))
    found = compare(*verdicts)
    return Comparison(
        before,
        now,
        {pair: tuple(ids) for pair, ids in table.items()},
        {change: found.ids(change) for change in Change if found.ids(change)},
        found.common,
        _differences(before.folder, now.folder),
    )


def document(all_views: Iterable[Sequence[View]]) -> dict[str, Any]:
    """The runs as JSON values. Every list of a view's `columns` is by position in the run's `samples`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "kinds": list(KINDS),
        "note": "numbers of columns are rounded to 5 significant digits; null: none, or not finite",
        "runs": [_run(views) for views in all_views],
    }


def _run(views: Sequence[View]) -> dict[str, Any]:
    folder = views[0].folder
    report = folder.report
    return {
        "name": views[0].name,
        "about": {name: value for name, value in folder.told.items() if name not in ("brackets", "assurance", "out")},
        "alarms": list(report.alarms),
        "complete": report.complete,
        "running": folder.running,
        "assurance": asdict(Assurance.of(report.results)),
        "samples": {
            "id": [s.id for s in folder.samples],
            "label": [s.label for s in folder.samples],
            "predicted": [s.predicted for s in folder.samples],
        },
        "views": [_view(view) for view in views],
    }


def _view(view: View) -> dict[str, Any]:
    by_id = {result.id: result for result in view.results}
    rows = [by_id.get(sample.id) for sample in view.folder.samples]
    stages, stage = _coded([None if r is None else r.outcome.stage for r in rows])
    reasons, reason = _coded([None if r is None else r.outcome.reason or None for r in rows])
    levels, level = _coded([None if r is None else r.outcome.checked or None for r in rows])
    seen = [None if r is None else view.shown.get(r.id) for r in rows]
    return {
        "eps": view.radius.text,
        "bracket": bracket_document(view.bracket),
        "stages": stages,
        "reasons": reasons,
        "levels": levels,
        "columns": {
            "kind": [KINDS.index("pending" if r is None else kind(r)) for r in rows],
            "stage": stage,
            "reason": reason,
            "level": level,
            "lower": [None if r is None else _short(r.outcome.lower) for r in rows],
            "upper": [None if r is None else _short(r.outcome.upper) for r in rows],
            "seconds": [None if r is None else _short(sum(r.outcome.seconds.values())) for r in rows],
            "bytes": [None if r is None else r.outcome.certificate_bytes or None for r in rows],
            "target": [None if e is None else e.target for e in seen],
            "distance": [None if e is None or e.distance is None else _short(e.distance) for e in seen],
        },
        "seconds": {stage: total for stage, total, _ in spent(view)},
        "retry": {
            "one": view.retry_one(),
            "all": view.retry([r.id for r in view.unresolved]) if view.unresolved else None,
        },
    }


def _coded(values: Sequence[str | None]) -> tuple[list[str], list[int | None]]:
    """(the different values, for each its number): a stage's name stands in the file once."""
    numbers = {value: k for k, value in enumerate(dict.fromkeys(v for v in values if v is not None))}
    return list(numbers), [None if v is None else numbers[v] for v in values]


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _evidence(folder: Folder, results: Iterable[SampleResult]) -> tuple[dict[int, Evidence], int]:
    shown, damaged = {}, 0
    for result in results:
        if result.witness_file is None or result.outcome.verdict is not Verdict.FALSIFIED:
            continue
        try:
            witness = read_witness(folder.root, result)
        except DiskError:
            damaged += 1
            continue
        others = np.where(np.arange(witness.y.size) == result.label, -np.inf, witness.y)  # a tie is a violation, too
        shown[result.id] = Evidence(int(np.argmax(others)), witness.distance(folder.report.norm))
    return shown, damaged


def _differences(before: Folder, now: Folder) -> tuple[str, ...]:
    """Why the two may not be compared sample by sample."""
    found = []
    old, new = before.report, now.report
    if old.data_sha256 != new.data_sha256:
        found.append(f"other data: {old.data} ({old.data_sha256[:12]}) and {new.data} ({new.data_sha256[:12]})")
    for name, a, b in (("norm", old.norm, new.norm), ("input range", old.input_range, new.input_range)):
        if a != b:
            found.append(f"another {name}: {a} and {b}")
    labels = {s.id: s.label for s in before.samples}
    other = sum(labels.get(s.id, s.label) != s.label for s in now.samples)
    return (*found, f"{other} samples have another label") if other else tuple(found)
