"""One search over several processes: this one searches, and lends parts of what is open to others.

Others are started only for a search that has taken a while and has work for them, and load while it goes on. Whatever
becomes of them, the search ends as it would alone, only later: a loan that does not come back is open as before.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from certify.bab.result import Replay, SearchResult
from certify.errors import UsageError
from certify.executors.base import Death, Executor
from certify.executors.threads import one_thread
from certify.verdict import Witness

AFTER_SECONDS = 2.0  # of search; most end sooner
# What is open shall keep this process busy so long at least before others start, whose start takes some two seconds.
START_SECONDS = 1.0
LOAN_SECONDS = 3.0  # a loan is for; long enough to be worth its way, short enough that nobody waits long at the end
LEAST_SECONDS = 0.2  # parts that may take less are not lent
GRACE_SECONDS = 0.5  # past the deadline, for loans that end with it

# A loan's number, and the pickled part with the seconds that it has; no bytes: only say that you are ready.
Errand = tuple[int, bytes]
Crew = Executor[Errand, bytes]

_log = logging.getLogger(__name__)


class Search(Protocol):
    """What a team needs of a search that can go on. waiting: subproblems that are open here; lent: those that go on
    elsewhere, by the loans' numbers; subproblems: how many were bounded.
    """

    witness: Witness | None
    subproblems: int

    @property
    def waiting(self) -> int: ...

    @property
    def lent(self) -> Mapping[int, object]: ...

    def advance(self, deadline: float) -> None:
        """One step, where something is open."""

    def restore(self, loan: int) -> None:
        """What was lent is open here again; whatever comes of the loan is not taken any more."""

    def result(self) -> SearchResult:
        """What is known so far; what is lent counts as open."""


class Part(Protocol):
    """What is lent, as a value. grow: what it comes to on its ground until the deadline, a value that `adopt` takes."""

    @property
    def loan(self) -> int: ...

    def grow(self, ground: Any, replay: Replay, deadline: float) -> object: ...


S = TypeVar("S", bound=Search)
S_contra = TypeVar("S_contra", bound=Search, contravariant=True)


class Lending(Protocol[S_contra]):
    """How searches of a kind are shared out: a module, certify.bab.subtree or certify.bab.subboxes.

    ground: what all parts need, sent once; None while it may change. donate: up to `count` open subproblems for each
    of some hands. adopt: join what came of a loan; False where it was given up meanwhile.
    """

    def ground(self, search: S_contra, /) -> object: ...

    def donate(self, search: S_contra, hands: int, count: int, /) -> Sequence[Part]: ...

    def adopt(self, search: S_contra, grown: Any, /) -> bool: ...


@dataclass
class Helper:
    """The work of another process: what parts come to, as bytes; none where it failed. It never raises."""

    ground: object
    judge: Callable[[], Replay]
    replay: Replay | None = None

    def __call__(self, errand: Errand) -> bytes:
        if not errand[1]:
            return b""
        try:
            part, seconds = pickle.loads(errand[1])  # from our parent, over a private pipe
            deadline = time.monotonic() + seconds
            self.replay = self.replay or self.judge()
            return pickle.dumps(part.grow(self.ground, self.replay, deadline))
        except Exception:
            _log.debug("a part failed", exc_info=True)
            return b""


@dataclass
class Team(Generic[S]):
    """A search, and who may help with it. start: an executor of a helper's work, entered, of at most so many workers,
    or None where nobody is free now. judge: as `Helper`'s. idle: workers that wait for a loan. spent, made: seconds of
    this process in the search, and the subproblems that they bounded. alone: keeps this process to one core.
    """

    search: S
    lending: Lending[S]
    judge: Callable[[], Replay]
    start: Callable[[Helper, int], Crew | None]
    most: int
    crew: Crew | None = None
    idle: int = 0
    spent: float = 0.0
    made: int = 0
    alone: ExitStack = field(default_factory=ExitStack)

    def grow(self, deadline: float, worth: Callable[[], bool] = lambda: True) -> SearchResult:
        """Go on until nothing is open, a witness is found, it is not worth it any more, or the deadline has come."""
        search = self.search
        try:
            if self.crew is not None:
                self.alone.enter_context(one_thread())
            while search.witness is None and (search.waiting or search.lent) and worth():
                if (now := time.monotonic()) >= deadline:
                    break
                self._hire()
                self._adopt(0.0 if search.waiting else deadline - now)
                if search.witness is None and search.waiting:
                    self._lend(deadline)
                    self._advance(deadline)
            end = min(deadline, time.monotonic()) + GRACE_SECONDS
            while search.witness is None and search.lent and (now := time.monotonic()) < end:
                self._adopt(end - now)
        finally:
            self._recall()
            self.alone.close()
        return search.result()

    def close(self) -> None:
        """End the others, whatever they are doing."""
        self._recall()
        if self.crew is not None:
            self.crew.__exit__(None, None, None)
            self.crew, self.most = None, 0
            self.alone.close()

    def _recall(self) -> None:
        for loan in tuple(self.search.lent):
            self.search.restore(loan)

    def _advance(self, deadline: float) -> None:
        begin, before = time.monotonic(), self.search.subproblems
        self.search.advance(deadline)
        self.spent += time.monotonic() - begin
        self.made += self.search.subproblems - before

    def _busy(self, count: int) -> float:
        """Seconds that splitting so many subproblems once takes this process."""
        return 2 * count * self.spent / max(1, self.made)

    def _hire(self) -> None:
        if self.crew is not None or self.most < 1 or self.spent < AFTER_SECONDS:
            return
        if self._busy(self.search.waiting) < START_SECONDS or (ground := self.lending.ground(self.search)) is None:
            return
        try:
            self.crew = self.start(Helper(ground, self.judge), self.most)
            if self.crew is None:
                return  # nobody is free now
            self.alone.enter_context(one_thread())
            self.most = self.crew.count
            self.crew.hire(self.most)
            for _ in range(self.most):
                self.crew.give((-1, b""))
        except Exception:  # a network that cannot be pickled, no memory, no more processes
            _log.debug("no help", exc_info=True)
            self.close()
            self.most = 0

    def _adopt(self, seconds: float) -> None:
        """Take what has come back, after so many seconds at most where nothing has."""
        try:
            while self.crew is not None and (ended := self.crew.take(seconds)) is not None:
                (loan, _), answer = ended
                seconds = 0.0
                if self._joined(loan, answer):
                    self.idle += 1
                else:
                    self.search.restore(loan)
                    self.most -= 1
        except UsageError:  # no process can be started here
            _log.debug("no help", exc_info=True)
            self.close()
        if self.crew is not None and self.most < 1:
            self.close()

    def _joined(self, loan: int, answer: bytes | Death) -> bool:
        """Take an answer in; False where whoever had the loan is of no more use."""
        if isinstance(answer, Death) or (not answer and loan >= 0):
            _log.debug("a loan is lost: %s", answer)
            return False
        try:
            if answer:
                self.lending.adopt(self.search, pickle.loads(answer))
        except Exception:  # no answer to what was asked, or no room for it here
            _log.debug("a loan is lost", exc_info=True)
            return False
        return True

    def _lend(self, deadline: float) -> None:
        search, each = self.search, self.search.waiting // (self.idle + 1)
        seconds = min(LOAN_SECONDS, deadline - time.monotonic())
        if self.crew is None or not self.idle or not each or min(self._busy(each), seconds) < LEAST_SECONDS:
            return
        count = min(each, max(1, int(seconds / max(self._busy(1), 1e-6))))
        try:
            for part in self.lending.donate(search, self.idle, count):
                self.crew.give((part.loan, pickle.dumps((part, seconds))))
                self.idle -= 1
        except UsageError:
            self.close()
