"""What samples come to, by batches: in this process, or as pieces over an executor.

a failing batch is retried sample by sample; a failing sample becomes `error` and the rest goes on
a batch whose process dies is a failing one; a sample whose process dies again when it is alone is an error
what goes with its machine is tried again as it is
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from certify.errors import SoundnessError
from certify.executors.base import Death, Executor
from certify.property import Property
from certify.verdict import Outcome, Verdict, examine

if TYPE_CHECKING:
    from certify.model import Model
    from certify.settings import Settings

DECIDE_STAGE = "decide"
# Samples per commit at most: a kill loses no more. Not fitted to the time they take, or results would depend on it.
COMMIT_EVERY = 64
# Of the samples that are left, a worker takes at most its part divided by this: large batches first, for their bounds;
# single samples at the end, so that hard ones do not pile up in one process while others have none.
PARTS = 4
# Times that a sample alone is tried whose process dies: once may be chance, or somebody's kill. Or whose machine goes.
TRIES = 2
LOST_TRIES = 5

# What every decision of many samples needs, and takes seconds to load.
LOADED = ("torch", "onnxruntime", "certify.pipeline")

_log = logging.getLogger(__name__)

Judged = tuple[Outcome, str]  # with the alarm's text or ""


@dataclass(frozen=True)
class Piece:
    """Samples for one worker. seconds: until the run's deadline, from when it was given (clocks of machines differ).

    many: are they some of many? What decides few samples quickest is slow for many. cores: that a search which takes
    long may use in all, if others have nothing to do.
    settings: how, None: as the worker was told when it began.
    """

    positions: tuple[int, ...]
    properties: tuple[Property, ...]
    seconds: float | None
    many: bool
    cores: int = 1
    settings: Settings | None = None

    @property
    def deadline(self) -> float | None:
        """On the clock of whoever asks, now."""
        return None if self.seconds is None else time.monotonic() + self.seconds


Workers = Executor[Piece, list[Judged]]
Make = Callable[[Sequence[int]], Piece]
Answers = Iterator[tuple[Sequence[int], list[Judged]]]


def as_they_end(model: Model, settings: Settings, piece: Piece) -> Answers:
    """A batch's samples in groups, as they end; after a failure those that are left, one by one."""
    from certify.pipeline import decide_each

    left, deadline = dict(zip(piece.positions, piece.properties, strict=True)), piece.deadline
    try:
        for outcomes in decide_each(model, piece.properties, settings, deadline=deadline, many=piece.many):
            group = [piece.positions[owner] for owner in outcomes]
            judged = [examine(outcome) for outcome in outcomes.values()]
            for position in group:
                del left[position]
            yield group, judged
    except Exception:
        _log.debug("a batch of %d failed, %d left", len(piece.positions), len(left), exc_info=True)
    for position, prop in left.items():
        yield [position], work(model, settings, _one(piece, position, prop, deadline))


def side_by_side(workers: Workers, todo: Sequence[int], size: int, make: Make, deadline: float | None) -> Answers:
    """The pieces that `make` makes, over workers; those of one machine share the memory of a batch of `size`."""
    waiting, alone = deque(todo), deque[int]()  # alone: samples of batches whose process died
    deaths = Counter[int]()

    def late() -> bool:
        return deadline is not None and time.monotonic() >= deadline

    while workers.working or (not late() and (alone or waiting)):
        if not late():
            workers.hire(workers.working + len(alone) + len(waiting))
        while (alone or waiting) and not late() and workers.idle:
            most = min(COMMIT_EVERY, size // workers.together, len(waiting) // (PARTS * workers.count))
            source = alone or waiting
            taken = [source.popleft() for _ in range(1 if alone else max(1, most))]
            workers.give(replace(make(taken), cores=workers.count))
        if not (alone or waiting):
            workers.rest()
        patience = None if deadline is None or late() else deadline - time.monotonic()
        if (ended := workers.take(patience)) is None:
            continue
        piece, answer = ended
        if not isinstance(answer, Death):
            yield piece.positions, answer
        elif not answer.lost and len(piece.positions) > 1:
            alone.extend(piece.positions)
        else:
            deaths.update(piece.positions)
            most = LOST_TRIES if answer.lost else TRIES
            again = [p for p in piece.positions if deaths[p] < most]
            (alone if len(piece.positions) == 1 else waiting).extend(again)
            if given_up := [p for p in piece.positions if deaths[p] >= most]:
                yield given_up, [(Outcome(Verdict.ERROR, DECIDE_STAGE, answer.reason), "")] * len(given_up)


@dataclass(frozen=True)
class Decider:
    """What a worker does. many: are there many samples? Then it begins with loading what it will need."""

    model: Model
    settings: Settings
    many: bool

    def __call__(self, piece: Piece) -> list[Judged]:
        return work(self.model, self.settings, piece)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.many:
            for name in LOADED:
                import_module(name)


def work(model: Model, settings: Settings, piece: Piece) -> list[Judged]:
    """One answer per property; a failing batch is retried one by one, a failing one is an error. Never raises."""
    from certify.pipeline import decide

    properties, deadline, settings = piece.properties, piece.deadline, piece.settings or settings
    try:
        outcomes = decide(model, properties, settings, deadline=deadline, many=piece.many, cores=piece.cores)
        if len(outcomes) != len(properties):
            raise RuntimeError(f"{len(outcomes)} outcomes for {len(properties)} properties")
    except Exception as error:
        _log.debug("a batch of %d failed", len(properties), exc_info=True)
        if len(properties) > 1:
            pairs = zip(piece.positions, properties, strict=True)
            return [a for pair in pairs for a in work(model, settings, _one(piece, *pair, deadline))]
        alarm = first_line(error) if isinstance(error, SoundnessError) else ""
        return [(failed(DECIDE_STAGE, error), alarm)]
    return [examine(outcome) for outcome in outcomes]


def _one(piece: Piece, position: int, prop: Property, deadline: float | None) -> Piece:
    """A sample of the piece alone, with the time that is left."""
    left = None if deadline is None else deadline - time.monotonic()
    return Piece((position,), (prop,), left, piece.many, settings=piece.settings)


def failed(stage: str, error: Exception) -> Outcome:
    """The outcome of a sample that could not run."""
    _log.debug("a sample failed", exc_info=error)
    return Outcome(Verdict.ERROR, stage, first_line(error))


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    text = str(error).strip().split("\n")[0][:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
