"""Accuracy under attack as a function of eps (Goepfert et al. 2019): each sample is decided at O(log n) of n radii.

Verdicts are monotone in eps. So a sample has a highest radius up to which it is proved safe and a lowest one from
which on it falls, and between the two bisection decides what is left, the samples that wait at one radius together:

    a proof at one eps is a proof at every smaller one, and its certificate is theirs
    a witness at one eps is one at every larger eps; it is also moved into the smaller balls, smallest last, and
    replayed there, which costs a run of the network and often saves a decision
    unknown at one eps: both sides are searched, for the highest proof and for the lowest witness. An attack that found
    nothing in a ball is not repeated in smaller ones, nor bounds that did not suffice for it in larger ones. What lies
    between two undecided radii is not tried and stays unknown

What comes of it is what a run over all the radii comes to, up to time limits and an attack's luck: one result per
(sample, eps).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from certify.options import BOUND_METHODS
from certify.property import Case, Polytope
from certify.runner import Job, Means, Progress, against_smaller, decide_at, property_of
from certify.settings import Settings
from certify.store import Row, Store, certificate_path
from certify.verdict import Outcome, Verdict, as_error, examine


@dataclass
class Bisection:
    """One sample over the radii 0 .. count - 1: proved up to `low`, fallen from `high` on; `tried`: left undecided."""

    count: int
    low: int = -1
    high: int = -1
    tried: dict[int, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.high = self.count

    def next(self) -> tuple[int, int] | None:
        """The radius to decide next, and its side of those that stayed undecided: -1 below, 1 above, 0 for none.

        Where a sample could not run nothing was tried, so an error is on no side.
        """
        inner = [k for k in self.tried if self.low < k < self.high]
        if not inner:
            return ((self.low + self.high) // 2, 0) if self.high - self.low > 1 else None
        for a, b, end, side in ((self.low, min(inner), min(inner), -1), (max(inner), self.high, max(inner), 1)):
            if b - a > 1:
                return (a + b) // 2, side if self.tried[end].verdict is Verdict.UNKNOWN else 0
        return None

    def between(self) -> list[tuple[int, int, int]]:
        """(radius, next undecided one below, above), for the radii that are never tried; after the last `next`."""
        inner = sorted(k for k in self.tried if self.low < k < self.high)
        return [(k, a, b) for a, b in pairwise(inner) for k in range(a + 1, b)]


@dataclass(frozen=True)
class Entry:
    """What one decision comes to: results that are new, those that replace an `unknown`, and an alarm's text."""

    rows: dict[int, Outcome]
    alarm: str = ""


def bisect(job: Job, store: Store, means: Means) -> bool:
    """An `Order` of certify.runner: fills the store as `ascending` does, with fewer decisions."""
    return _Curve(job, store, means).go()


def one_sided(settings: Settings, side: int) -> Settings:
    """What is left to try below (-1) or above (1) a radius where neither attack nor proof succeeded.

    Complete search also finds witnesses, so above it is tried again.
    """
    if side < 0 and settings.method != "attack":
        return replace(settings, attack=False)
    if side > 0 and settings.method in BOUND_METHODS:
        return replace(settings, method="attack")
    return settings


class _Curve:
    """The bisections of all samples, and the store that they fill."""

    def __init__(self, job: Job, store: Store, means: Means) -> None:
        from certify.attacks.replay import Replayer

        self.job, self.store, self.means = job, store, means
        self.replayer = Replayer(job.model)
        self.rivals: dict[int, tuple[Polytope, ...]] = {}
        self.open: dict[int, Bisection] = {p: Bisection(len(job.radii)) for p in store.predictions()}
        self.counts: list[Counter[tuple[Verdict, bool]]] = [Counter() for _ in job.radii]
        self._take_up()

    def go(self) -> bool:
        """Rounds of decisions until no sample asks for another; False if the deadline came first."""
        while waiting := self._waiting():
            for (index, side), positions in sorted(waiting.items()):
                if not self._decide(index, side, positions):
                    return False
        self._fill()
        return True

    def _waiting(self) -> dict[tuple[int, int], list[int]]:
        """(rank of a radius, side) -> the samples that ask for it."""
        waiting: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, state in self.open.items():
            if (asked := state.next()) is not None:
                waiting[asked].append(position)
        return waiting

    def _decide(self, index: int, side: int, positions: list[int]) -> bool:
        """These samples at one radius; False if the run shall end with some left."""
        radius, ended = self.job.radii[index], 0
        job = replace(self.job, settings=one_sided(self.job.settings, side))
        for chunk, pairs in decide_at(job, radius, positions, self.means):
            late = self.means.late
            entries: dict[int, Entry] = {}
            for position, (outcome, alarm) in zip(chunk, pairs, strict=True):
                if late and outcome.verdict is Verdict.UNKNOWN:
                    continue
                entries[position] = self._entry(position, index, outcome, alarm)
            self._record(index, entries)
            ended += len(entries)
            if self.means.enough(self.store):
                return not self._waiting()
        return ended == len(positions)

    def _entry(self, position: int, index: int, outcome: Outcome, alarm: str) -> Entry:
        """What the outcome at one radius says about the others; the bisection moves."""
        state, radii = self.open[position], self.job.radii
        smaller = {radii[k]: before for k, before in sorted(state.tried.items()) if k < index}
        outcome, contradiction = against_smaller(radii[index], outcome, smaller)
        alarm = alarm or contradiction
        if outcome.verdict is Verdict.VERIFIED:
            entry = self._proved(position, index, outcome, alarm)
            state.low = index
            return entry
        if outcome.verdict is Verdict.FALSIFIED:
            return self._fallen(position, index, outcome, alarm)
        state.tried[index] = outcome
        return Entry({index: outcome}, alarm)

    def _proved(self, position: int, index: int, outcome: Outcome, alarm: str) -> Entry:
        """A proof at smaller radii: its bound holds in every part of its ball, and its certificate proves them."""
        radius, state = self.job.radii[index], self.open[position]
        kept = outcome.certificate is not None and self.store.root is not None
        told = Outcome(
            Verdict.VERIFIED,
            outcome.stage,
            f"the proof of eps {radius}",
            outcome.lower,
            checked=outcome.checked,
            certificate_bytes=outcome.certificate_bytes,
            certificate_file=certificate_path(int(self.job.data.ids[position]), radius) if kept else "",
        )
        rows = {index: outcome}
        for k in range(state.low + 1, index):
            before = state.tried.get(k)
            if before is None:
                rows[k] = told
            elif before.verdict is Verdict.UNKNOWN:
                rows[k], text = examine(replace(told, upper=before.upper, seconds=before.seconds))
                alarm = alarm or text
        return Entry(rows, alarm)

    def _fallen(self, position: int, index: int, outcome: Outcome, alarm: str) -> Entry:
        """A witness at larger radii, and moved into smaller balls as far as it stays one."""
        state, radius, witness = self.open[position], self.job.radii[index], outcome.witness
        assert witness is not None
        x = witness.x.astype(self.replayer.dtype)
        told = Outcome(
            Verdict.FALSIFIED, outcome.stage, f"the witness of eps {radius}", upper=outcome.upper, witness=witness
        )
        found = dict.fromkeys(range(index + 1, state.high), told)
        lowest = index
        for k in range(index - 1, -1, -1):
            replay = self.replayer.replay(x, self._case(position, k))
            if replay.witness is None:
                break
            if k <= state.low:
                text = f"the witness of eps {radius} lies in the ball of {self.job.radii[k]}, which was proved safe"
                state.tried[index] = as_error(outcome, f"soundness alarm: {text}")
                return Entry({index: state.tried[index]}, text)
            lowest = k
            found[k] = replace(told, upper=replay.margin, witness=replay.witness)
        rows = {index: outcome}
        for k, one in found.items():
            before = state.tried.get(k)
            if before is None:
                rows[k] = one
            elif before.verdict is Verdict.UNKNOWN:  # an error stays one
                rows[k] = replace(one, lower=before.lower, seconds=before.seconds)
        state.high = lowest
        return Entry(rows, alarm)

    def _record(self, index: int, entries: Mapping[int, Entry]) -> None:
        """Everything that a batch came to, in one commit."""
        radii = self.job.radii
        rows: list[Row] = []
        revised: list[Row] = []
        alarms: list[tuple[int, str, str]] = []
        changed: set[int] = set()
        for position, entry in entries.items():
            tried = self.open[position].tried
            for k, outcome in entry.rows.items():
                again = k in tried and k != index
                (revised if again else rows).append(Row(position, radii[k], outcome))
                if again:
                    self.counts[k][Verdict.UNKNOWN, False] -= 1
                    tried[k] = outcome
                self.counts[k][outcome.verdict, False] += 1
                changed.add(k)
            if entry.alarm:
                text = f"sample {self.job.data.ids[position]}, eps {radii[index]}: {entry.alarm}"
                alarms.append((position, radii[index].key, text))
        self.store.record(rows, alarms, revised)
        self._tell(changed)

    def _fill(self) -> None:
        """Results for the radii between two undecided ones."""
        radii = self.job.radii
        rows: list[Row] = []
        for position, state in self.open.items():
            for k, below, above in state.between():
                reason = f"not tried: undecided at eps {radii[below]} and at eps {radii[above]}"
                first, last = state.tried[below], state.tried[above]
                outcome = Outcome(Verdict.UNKNOWN, last.stage, reason, last.lower, first.upper)
                rows.append(Row(position, radii[k], outcome))
                state.tried[k] = outcome
                self.counts[k][Verdict.UNKNOWN, False] += 1
        if rows:
            self.store.record(rows)
            self._tell(set(range(len(radii))))

    def _tell(self, changed: set[int]) -> None:
        for k in sorted(changed):
            counts = dict(+self.counts[k])
            self.means.tell(Progress(self.job.radii[k], sum(counts.values()), len(self.job.data.y), counts))

    def _case(self, position: int, index: int) -> Case:
        (case,) = property_of(self.job, position, self.job.radii[index], self.rivals).cases
        return case

    def _take_up(self) -> None:
        """Where each sample stands by what the store holds."""
        places = {int(i): position for position, i in enumerate(self.job.data.ids)}
        ranks = {radius: rank for rank, radius in enumerate(self.job.radii)}
        for result in self.store.results(self.job.radii, witnesses=False):
            outcome, rank, state = result.outcome, ranks[result.eps], self.open.get(places[result.id])
            self.counts[rank][outcome.verdict, outcome.stage == "clean"] += 1
            if state is None:  # its clean input could not run
                continue
            if outcome.verdict is Verdict.VERIFIED:
                state.low = max(state.low, rank)
            elif outcome.verdict is Verdict.FALSIFIED:
                state.high = min(state.high, rank)
            else:
                state.tried[rank] = outcome
