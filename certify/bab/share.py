"""One search over several processes: this one grows the tree, and lends parts of it to others that grow them.

Others are started only for a search that has taken a while and has work for them, and load while it goes on. Whatever
becomes of them, the search ends as it would alone, only later: a loan that does not come back is open as before.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from certify.bab.envelope import planes_pay
from certify.bab.result import Replay, SearchResult
from certify.bab.search import Tree, advance
from certify.bab.subtree import Ground, adopt, donate
from certify.errors import UsageError
from certify.executors.base import Death, Executor

AFTER_SECONDS = 2.0  # of search; most end sooner
# What is open shall keep this process busy so long at least before others start, whose start takes some two seconds.
START_SECONDS = 1.0
LOAN_SECONDS = 3.0  # a loan is for; long enough to be worth its way, short enough that nobody waits long at the end
LEAST_SECONDS = 0.2  # parts that may take less are not lent
GRACE_SECONDS = 0.5  # past the deadline, for loans that end with it

# A loan's number, and the pickled subtree with the seconds that it has; no bytes: only say that you are ready.
Errand = tuple[int, bytes]
Crew = Executor[Errand, bytes]

_log = logging.getLogger(__name__)


@dataclass
class Helper:
    """The work of another process: what subtrees come to, as bytes; none where it failed. It never raises."""

    ground: Ground
    judge: Callable[[], Replay]
    replay: Replay | None = None

    def __call__(self, errand: Errand) -> bytes:
        if not errand[1]:
            return b""
        try:
            subtree, seconds = pickle.loads(errand[1])  # from our parent, over a private pipe
            deadline = time.monotonic() + seconds
            self.replay = self.replay or self.judge()
            return pickle.dumps(subtree.grow(self.ground, self.replay, deadline))
        except Exception:
            _log.debug("a subtree failed", exc_info=True)
            return b""


@dataclass
class Team:
    """A tree, and who may help with it. start: an executor of a helper's work, entered, of at most so many workers, or
    None where nobody is free now. judge: as `Helper`'s. idle: workers that wait for a loan. spent, made: seconds of
    this process in the tree, and the subproblems that they made. threads: torch's, before others had the cores. lifts:
    will the tree begin anew, with planes above ReLUs?
    """

    tree: Tree
    judge: Callable[[], Replay]
    start: Callable[[Helper, int], Crew | None]
    most: int
    crew: Crew | None = None
    idle: int = 0
    spent: float = 0.0
    made: int = 0
    threads: int = 1
    lifts: bool | None = None

    def grow(self, deadline: float) -> SearchResult:
        """As certify.bab.search.grow."""
        tree = self.tree
        try:
            while tree.witness is None and (tree.open or tree.lent) and (now := time.monotonic()) < deadline:
                self._hire()
                self._adopt(0.0 if tree.open else deadline - now)
                if tree.open:
                    self._lend(deadline)
                    self._advance(deadline)
            end = time.monotonic() + GRACE_SECONDS
            while tree.witness is None and tree.lent and (now := time.monotonic()) < end:
                self._adopt(end - now)
        finally:
            self._recall()
        return tree.result()

    def close(self) -> None:
        """End the others, whatever they are doing."""
        self._recall()
        if self.crew is not None:
            self.crew.__exit__(None, None, None)
            self.crew, self.most = None, 0
            torch.set_num_threads(self.threads)

    def _recall(self) -> None:
        for loan in tuple(self.tree.lent):
            self.tree.restore(loan)

    def _advance(self, deadline: float) -> None:
        begin, before = time.monotonic(), self.tree.subproblems
        advance(self.tree, deadline)
        self.spent += time.monotonic() - begin
        self.made += self.tree.subproblems - before

    def _busy(self, count: int) -> float:
        """Seconds that splitting so many subproblems once takes this process."""
        return 2 * count * self.spent / max(1, self.made)

    def _hire(self) -> None:
        tree = self.tree
        if self.crew is not None or self.most < 1 or self.spent < AFTER_SECONDS or not tree.asked:
            return
        if self._busy(len(tree.pool)) < START_SECONDS:
            return
        if not tree.lifted:  # planes above ReLUs begin the tree anew, on another ground
            self.lifts = planes_pay(tree.root) if self.lifts is None else self.lifts
            if self.lifts:
                return
        try:
            self.crew = self.start(Helper(Ground.of(tree), self.judge), self.most)
            if self.crew is None:
                return  # nobody is free now
            self.threads, self.most = torch.get_num_threads(), self.crew.count
            torch.set_num_threads(1)
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
                if isinstance(answer, Death) or (not answer and loan >= 0):
                    _log.debug("a loan is lost: %s", answer)
                    self.tree.restore(loan)
                    self.most -= 1
                    continue
                self.idle += 1
                if answer:
                    adopt(self.tree, pickle.loads(answer))
        except UsageError:  # no process can be started here
            _log.debug("no help", exc_info=True)
            self.close()
        if self.crew is not None and self.most < 1:
            self.close()

    def _lend(self, deadline: float) -> None:
        tree, each = self.tree, len(self.tree.pool) // (self.idle + 1)
        seconds = min(LOAN_SECONDS, deadline - time.monotonic())
        if self.crew is None or not self.idle or not each or min(self._busy(each), seconds) < LEAST_SECONDS:
            return
        count = min(each, max(1, int(seconds / max(self._busy(1), 1e-6))))
        try:
            for subtree in donate(tree, self.idle, count):
                self.crew.give((subtree.loan, pickle.dumps((subtree, seconds))))
                self.idle -= 1
        except UsageError:
            self.close()
