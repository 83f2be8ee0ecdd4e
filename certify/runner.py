"""Many samples: clean predictions first, then one sound decision per (sample, eps), each committed as it ends.

    clean      onnxruntime's class of every input; a misclassified sample is falsified at distance 0
    decide     the rest, in batches through certify.pieces; radii ascending
    with workers, processes or machines decide the batches, and this process alone writes
    a proof and a witness that contradict each other: `error` for the sample, and an alarm for the run

Verdicts are monotone in eps: a witness at one eps is a witness at every larger one, a proof at one eps a proof at
every smaller one (the float64 sets of `input_ball` are nested). The runner stores outcomes and judges nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from certify.executors.choose import Hands, executor
from certify.machine import LIGHT_CASES
from certify.model import Model
from certify.options import Radius
from certify.pieces import COMMIT_EVERY, Answers, Decider, Piece, Workers, as_they_end, failed, side_by_side
from certify.property import Ball, Polytope, Property, misclassification
from certify.store import Row, Store
from certify.verdict import Outcome, Verdict, as_error, examine

if TYPE_CHECKING:
    from certify.attacks.replay import Replayer
    from certify.frontends.data import Dataset
    from certify.settings import Settings

CLEAN_STAGE = "clean"
NOBODY_ELSE = Hands()
CLEAN_CHUNK = 256  # inputs per commit of the clean stage


@dataclass(frozen=True, eq=False)
class Job:
    """What to run. data: the selected samples, of the network's input shape, inside input_range; radii ascending."""

    model: Model
    data: Dataset
    radii: tuple[Radius, ...]
    norm: str
    input_range: tuple[float, float]
    settings: Settings


@dataclass(frozen=True)
class Progress:
    """Where a run stands at one eps; radius None: in the clean stage. counts: (verdict, clean stage?) -> samples."""

    radius: Radius | None
    done: int
    total: int
    counts: dict[tuple[Verdict, bool], int]


Watch = Callable[[Progress], None]
Enough = Callable[[Store], bool]  # asked after every commit: is what the store holds all that anybody wants to know?


@dataclass(frozen=True)
class Means:
    """What a run has: time until `deadline`, somebody to tell, somebody to ask, workers (None: this process)."""

    deadline: float | None
    tell: Watch
    enough: Enough
    crew: Workers | None

    @property
    def late(self) -> bool:
        """Is the deadline over?"""
        return _passed(self.deadline)


# What is left to decide after the clean stage, decided; False if the run shall end before all is.
Order = Callable[[Job, Store, Means], bool]


def run(
    job: Job,
    store: Store,
    *,
    budget: float | None = None,
    watch: Watch | None = None,
    hands: Hands = NOBODY_ELSE,
    enough: Enough | None = None,
    order: Order | None = None,
) -> bool:
    """Fill `store` with one result per sample and radius; True unless the budget or `enough` ended the run first.

    What the store holds already is not run again. Samples that were left undecided get no result, so that a
    resumed run takes them up. budget: seconds. order: which sample is decided at which radius, and when; None:
    `ascending`.
    """
    deadline = None if budget is None else time.monotonic() + budget
    tell = watch or (lambda progress: None)
    enough = enough or (lambda store: False)
    from certify.attacks.replay import Replayer

    replayer = Replayer(job.model)
    left = len(job.data.y) - len(_ended(job, store))
    decider = Decider(job.model, job.settings, left > LIGHT_CASES)
    with executor(hands if left else NOBODY_ELSE, decider, job.settings.device) as crew:
        if crew is not None:
            crew.hire(left)  # they load what they need while this process has the clean stage
        if not _clean(job, store, replayer, deadline, tell):
            return False
        if enough(store):
            return _finished(job, store)
        return (order or ascending)(job, store, Means(deadline, tell, enough, crew))


def ascending(job: Job, store: Store, means: Means) -> bool:
    """Every sample at every radius, the smallest radius first."""
    return all(_radius(job, store, radius, means) for radius in job.radii)


def _ended(job: Job, store: Store) -> set[int]:
    """Positions of the samples with a result at every radius."""
    return set.intersection(*(store.finished(radius) for radius in job.radii))


def _finished(job: Job, store: Store) -> bool:
    return all(len(store.finished(radius)) == len(job.data.y) for radius in job.radii)


def _clean(job: Job, store: Store, replayer: Replayer, deadline: float | None, tell: Watch) -> bool:
    ended = set(store.predictions()) | _ended(job, store)
    todo = [p for p in range(len(job.data.y)) if p not in ended]
    for chunk in _chunks(todo, CLEAN_CHUNK):
        if _passed(deadline):
            return False
        start = time.monotonic()
        predicted, outcomes = _predict(job, replayer, chunk)
        share = {CLEAN_STAGE: (time.monotonic() - start) / len(chunk)}
        rows = [
            Row(position, radius, replace(outcome, seconds=share))
            for position, outcome in outcomes.items()
            for radius in job.radii
        ]
        store.record_clean(predicted, rows)
        tell(Progress(None, len(job.data.y) - len(todo) + todo.index(chunk[-1]) + 1, len(job.data.y), {}))
    return True


def _predict(job: Job, replayer: Replayer, chunk: Sequence[int]) -> tuple[dict[int, int], dict[int, Outcome]]:
    """Clean classes, and the outcomes of the samples that need no more work: misclassified or not able to run."""
    try:
        classes = [int(c) for c in replayer.clean_predictions(job.data.x[list(chunk)])]
    except Exception as error:
        if len(chunk) > 1:
            parts = [_predict(job, replayer, [position]) for position in chunk]
            return {k: v for p, _ in parts for k, v in p.items()}, {k: v for _, o in parts for k, v in o.items()}
        return {}, {chunk[0]: failed(CLEAN_STAGE, error)}
    predicted: dict[int, int] = {}
    outcomes: dict[int, Outcome] = {}
    for position, batched in zip(chunk, classes, strict=True):
        if batched == job.data.y[position]:
            predicted[position] = batched
            continue
        # The judge runs an input alone, and its answer counts: rows of a batch may differ in the last bits.
        try:
            answer, outcome = _judge_clean(job, replayer, position)
        except Exception as error:
            answer, outcome = -1, failed(CLEAN_STAGE, error)
        if answer >= 0:
            predicted[position] = answer
        if outcome is not None:
            outcomes[position] = outcome
    return predicted, outcomes


def _judge_clean(job: Job, replayer: Replayer, position: int) -> tuple[int, Outcome | None]:
    """(class, None) if classified correctly; (class, falsified) if not; (-1, error) if there is no finite answer."""
    x = job.data.x[position]
    answer = int(replayer.clean_predictions(x[None])[0])
    if answer < 0:
        return -1, Outcome(Verdict.ERROR, CLEAN_STAGE, "the network's output on the clean input is not finite")
    if answer == job.data.y[position]:
        return answer, None
    (case,) = property_of(job, position, Radius(Fraction(0), "0"), {}).cases
    replay = replayer.replay(x, case)
    if replay.witness is None:
        return -1, Outcome(
            Verdict.ERROR, CLEAN_STAGE, "misclassified, but the replay of the clean input shows no violation"
        )
    return answer, Outcome(Verdict.FALSIFIED, CLEAN_STAGE, "", upper=replay.margin, witness=replay.witness)


def _radius(job: Job, store: Store, radius: Radius, means: Means) -> bool:
    """All samples at one radius; False if the run shall end: the deadline came first, or it is enough."""
    finished = store.finished(radius)
    todo = [p for p in sorted(store.predictions()) if p not in finished]
    total = len(job.data.y)
    below = [r for r in job.radii if r < radius]
    means.tell(Progress(radius, total - len(todo), total, store.counts(radius)))
    decided = 0
    for chunk, pairs in decide_at(job, radius, todo, means):
        rows, alarms, revised = [], [], []
        late = _passed(means.deadline)
        for position, (outcome, alarm) in zip(chunk, pairs, strict=True):
            smaller = store.outcomes(position, below)
            outcome, contradiction = against_smaller(radius, outcome, smaller)
            if late and outcome.verdict is Verdict.UNKNOWN:
                continue
            rows.append(Row(position, radius, outcome))
            revised += [Row(position, r, o) for r, o in proved_with(radius, outcome, smaller).items()]
            for text in filter(None, (alarm, contradiction)):
                alarms.append((position, radius.key, f"sample {job.data.ids[position]}, eps {radius}: {text}"))
        store.record(rows, alarms, revised)
        decided += len(rows)
        for r in (*sorted({row.eps for row in revised}), radius):
            counts = store.counts(r)
            means.tell(Progress(r, sum(counts.values()), total, counts))
        if means.enough(store):
            return _finished(job, store)
    return decided == len(todo)


def decide_at(job: Job, radius: Radius, todo: Sequence[int], means: Means) -> Answers:
    """What the samples come to, by batches, as these end; none begins after the deadline."""
    from certify.pipeline import batch_size

    rivals: dict[int, tuple[Polytope, ...]] = {}

    def piece(chunk: Sequence[int]) -> Piece:
        properties = tuple(property_of(job, p, radius, rivals) for p in chunk)
        left = None if means.deadline is None else means.deadline - time.monotonic()
        return Piece(tuple(chunk), properties, left, len(todo) > LIGHT_CASES, settings=job.settings)

    size = batch_size(job.model, job.settings)
    if means.crew is not None:
        yield from side_by_side(means.crew, todo, size, piece, means.deadline)
        return
    for chunk in _chunks(todo, min(COMMIT_EVERY, max(1, size))):
        if _passed(means.deadline):
            return
        yield from as_they_end(job.model, job.settings, piece(chunk))


def against_smaller(radius: Radius, outcome: Outcome, smaller: Mapping[Radius, Outcome]) -> tuple[Outcome, str]:
    """What was shown in the balls of smaller radii, ascending, was shown in this one; with the alarm's text or ""."""
    if outcome.verdict is Verdict.ERROR or not smaller:
        return outcome, ""
    shown = [(r, earlier) for r, earlier in smaller.items() if earlier.witness is not None]
    if shown and outcome.verdict is Verdict.VERIFIED:
        text = f"proved safe at {radius} (stage {outcome.stage}), yet falsified at the smaller eps {shown[0][0]}"
        return as_error(outcome, f"soundness alarm: {text}"), text
    if shown and outcome.verdict is Verdict.UNKNOWN:
        eps, earlier = shown[0]
        reason = f"the witness of eps {eps}"
        outcome = replace(
            outcome, verdict=Verdict.FALSIFIED, stage=earlier.stage, reason=reason, witness=earlier.witness
        )
    upper = min(outcome.upper, *(earlier.upper for earlier in smaller.values()))
    return examine(replace(outcome, upper=upper))


def proved_with(radius: Radius, outcome: Outcome, smaller: Mapping[Radius, Outcome]) -> dict[Radius, Outcome]:
    """The outcomes at smaller radii that a proof at this one decides: those that are unknown so far.

    The ball of a smaller radius is a part of this one, so the lower bound holds there. An error stays one.
    """
    if outcome.verdict is not Verdict.VERIFIED:
        return {}
    return {
        eps: replace(
            earlier,
            verdict=Verdict.VERIFIED,
            stage=outcome.stage,
            reason=f"the proof of eps {radius}",
            lower=max(earlier.lower, outcome.lower),
            checked=outcome.checked,
            certificate=outcome.certificate,
            certificate_bytes=outcome.certificate_bytes,
            certificate_file=outcome.certificate_file,
        )
        for eps, earlier in smaller.items()
        if earlier.verdict is Verdict.UNKNOWN
    }


def property_of(job: Job, position: int, radius: Radius, rivals: dict[int, tuple[Polytope, ...]]) -> Property:
    """No point of the ball gets another class than the label; `rivals` keeps the unsafe sets per label."""
    label = int(job.data.y[position])
    if label not in rivals:
        rivals[label] = misclassification(label, int(np.prod(job.model.graph.output_shape)))
    center = job.data.x[position].astype(np.float64)
    classes = len(rivals[label]) + 1
    return Property.around(Ball(center, radius.value, job.norm, *job.input_range, label, classes), rivals[label])


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
