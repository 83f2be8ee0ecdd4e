"""Pieces of work over a Ray cluster: an actor for each core or GPU, which has the work from the object store once.

The cluster is RAY_ADDRESS's, or the one of this machine, or one that is started here and ends with us. Whoever dies is
replaced while the cluster has room; machines that come later are used as well. Every machine needs the same certify.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

from certify.errors import UsageError
from certify.executors.base import Death

T = TypeVar("T")
R = TypeVar("R")

SURVEY_SECONDS = 5.0  # how often to see which machines there are
WAITING_SECONDS = 30.0  # without any worker, before we say what we wait for
REST_SECONDS = 5.0  # without a piece to give, until idle actors go: to begin anew takes as long
KNOCK_SECONDS = 20.0  # for the cluster's address to answer
STARTS = 3  # workers that end before they begin, one after the other, until we give up
# Ray's own words for an actor that went with its machine; of a process that died by itself it says otherwise.
LOST = "its node has died"
MISSING = "--executor ray needs Ray: pip install 'certify[ray]' (here and on every machine of the cluster)"

_log = logging.getLogger(__name__)


class Hand(Generic[T, R]):
    """The actor: it keeps the work and applies it, one piece after the other."""

    def __init__(self, work: Callable[[T], R]) -> None:
        self._work = work
        _WORKER.append(True)

    def begin(self) -> None:
        """Answers once the work has come over and could be read."""

    def apply(self, piece: T) -> R:
        return self._work(piece)


@dataclass(eq=False)
class _Post:
    """An actor, what we wait for from it (None: idle), and the piece that it has, in a list."""

    actor: Any
    answer: Any
    pieces: list[Any] = field(default_factory=list)
    began: bool = False


class Fleet(Generic[T, R]):
    """At most `most` actors that apply `work`; None: one per core of the cluster, or per GPU where `gpus` and it has
    some. An Executor. `work` shall not raise.
    """

    def __init__(self, work: Callable[[T], R], most: int | None, *, gpus: bool) -> None:
        self._given, self._most, self._gpus = work, most, gpus
        self._posts: list[_Post] = []
        self.count = self.together = 1
        self._looked = self._waiting = time.monotonic()
        self._resting = float("inf")
        self._stillborn, self._why = 0, ""
        self._began = self._ours = False

    def __enter__(self) -> Fleet[T, R]:
        self._ray: Any = knock()
        ray = self._ray
        if not ray.is_initialized():
            _connect(ray)
            self._ours = True
        try:
            self._work = ray.put(self._given)
            self._looked = time.monotonic() - SURVEY_SECONDS
            self._survey()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for post in self._posts:
            self._ray.kill(post.actor)
        self._posts.clear()
        if self._ours:
            self._ray.shutdown()

    @property
    def idle(self) -> bool:
        """Is there an actor that has begun and has no piece? Those that wait for room in the cluster get none."""
        return any(post.answer is None for post in self._posts)

    @property
    def working(self) -> int:
        return sum(bool(post.pieces) for post in self._posts)

    def hire(self, pieces: int) -> None:
        if self._stillborn >= STARTS:
            return
        # Ray itself gives OMP_NUM_THREADS=1 to what needs one core.
        actor = self._ray.remote(Hand).options(num_cpus=1, num_gpus=int(self._per_gpu), max_restarts=0)
        for _ in range(min(pieces, self.count) - len(self._posts)):
            hand = actor.remote(self._work)
            self._posts.append(_Post(hand, hand.begin.remote()))

    def rest(self) -> None:
        self._resting = min(self._resting, time.monotonic())

    def _dismiss(self) -> None:
        """Who has nothing to do goes, and leaves its core to the helpers of others."""
        for post in [post for post in self._posts if not post.pieces]:
            self._ray.kill(post.actor)
            self._posts.remove(post)

    def give(self, piece: T) -> None:
        self._resting = float("inf")
        post = min((p for p in self._posts if not p.pieces), key=lambda p: p.answer is not None)
        post.pieces.append(piece)
        post.answer = post.actor.apply.remote(piece)

    def take(self, seconds: float | None = None) -> tuple[T, R | Death] | None:
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            self._give_up_where_nobody_begins()
            if self._survey():
                return None
            if time.monotonic() - self._resting > REST_SECONDS:
                self._dismiss()
            left = SURVEY_SECONDS if until is None else max(0.0, min(SURVEY_SECONDS, until - time.monotonic()))
            awaited = {post.answer: post for post in self._posts if post.answer is not None}
            done = self._ray.wait(list(awaited), timeout=left)[0] if awaited else []
            if done:
                return self._ended(awaited[done[0]])
            if not awaited or (until is not None and time.monotonic() >= until):
                return None
            self._say_what_we_wait_for()

    def _ended(self, post: _Post) -> tuple[T, R | Death] | None:
        """What an actor says: that it has begun, what its piece came to, or nothing any more."""
        from ray.exceptions import ActorUnavailableError, ObjectLostError, RayError

        try:
            answer = self._ray.get(post.answer)
        except RayError as error:
            self._posts.remove(post)
            self._ray.kill(post.actor)
            if not post.pieces:
                self._failed_to_begin(error)
                return None
            lost = isinstance(error, ActorUnavailableError | ObjectLostError) or LOST in str(error)
            return post.pieces[0], Death(f"the worker on the cluster died ({_reason(error)})", lost)
        post.answer, post.began, self._began, self._stillborn = None, True, True, 0
        return (post.pieces.pop(), answer) if post.pieces else None

    def _failed_to_begin(self, error: Exception) -> None:
        if LOST not in str(error):
            self._stillborn, self._why = self._stillborn + 1, _reason(error)

    def _give_up_where_nobody_begins(self) -> None:
        if self._stillborn >= STARTS and not any(post.began for post in self._posts):
            raise UsageError(
                f"no worker of the Ray cluster begins ({self._why}); does every machine have the same certify and "
                "Python? What was decided is kept, --resume goes on"
            )

    def _survey(self) -> bool:
        """See, from time to time, how many actors the cluster has room for; True where there is more than before."""
        if time.monotonic() - self._looked < SURVEY_SECONDS:
            return False
        before = self.count
        self._looked = time.monotonic()
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores, cards = ([int(r.get(name, 0)) for r in alive] for name in ("CPU", "GPU"))
        self._per_gpu = self._gpus and sum(cards) > 0
        room = cards if self._per_gpu else cores
        self.count = max(1, sum(room)) if self._most is None else self._most
        self.together = max(1, min(self.count, 1 if self._per_gpu else max(cores, default=1)))
        return self.count > before

    def _say_what_we_wait_for(self) -> None:
        """Once: a run that stands still for want of room shall not look like one that computes."""
        if self._began or time.monotonic() - self._waiting < WAITING_SECONDS:
            return
        self._waiting = float("inf")
        free = self._ray.available_resources()
        kind = "GPU" if self._per_gpu else "CPU"
        _log.warning("waiting for the Ray cluster: no worker has begun; free %ss: %g", kind, free.get(kind, 0))


_WORKER: list[bool] = []  # is this process an actor's?
_ASKED = [float("-inf")]


def is_worker() -> bool:
    """Is this process an actor of a fleet?"""
    return bool(_WORKER)


def helpers(work: Callable[[T], R], most: int) -> Fleet[T, R] | None:
    """A fleet for one search of an actor, entered, on as many cores as the cluster has free now; None: on none."""
    if time.monotonic() - _ASKED[0] < SURVEY_SECONDS:
        return None
    _ASKED[0] = time.monotonic()
    import ray

    free = int(ray.available_resources().get("CPU", 0))
    return Fleet(work, min(most, free), gpus=False).__enter__() if min(most, free) > 0 else None


def _connect(ray: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"configure_logging": False, "log_to_driver": False, "include_dashboard": False}
    try:
        ray.init(**quiet)
    except Exception as error:
        raise _unreached(error) from error


def knock() -> Any:
    """Ray, where it is installed and somebody answers at RAY_ADDRESS. Raises UsageError."""
    try:
        import ray
    except ImportError:
        raise UsageError(MISSING) from None
    # Ray itself asks for many minutes where nobody answers.
    place = re.fullmatch(r"([^/]+):(\d+)", os.environ.get("RAY_ADDRESS", ""))
    if place and not ray.is_initialized():
        try:
            socket.create_connection((place[1], int(place[2])), KNOCK_SECONDS).close()
        except OSError as error:
            raise _unreached(error) from error
    return ray


def _unreached(error: Exception) -> UsageError:
    address = os.environ.get("RAY_ADDRESS", "of this machine")
    return UsageError(f"--executor ray: the cluster {address} cannot be reached: {_reason(error)}")


def _reason(error: Exception) -> str:
    """One line of what Ray says, without its colours: the last of a traceback, else the first that is a sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    told = [line for line in lines if line.startswith("The actor ") and line is not lines[0]]
    return (lines[-1] if "Traceback" in text or 'File "' in text else (told or lines)[0])[:300]
