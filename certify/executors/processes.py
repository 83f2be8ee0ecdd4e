"""Pieces of work over processes of this machine, one per core or GPU.

Processes are spawned, not forked (torch's and onnxruntime's threads do not survive a fork), and compute on one thread
each. They end with their parent, whatever ends it.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from certify.errors import UsageError
from certify.executors.base import THREADS, Death
from certify.executors.spare import Spare

T = TypeVar("T")
R = TypeVar("R")

CARDS = "CUDA_VISIBLE_DEVICES"
STARTS = 3  # processes that die before they begin, one after the other, until we give up
NOT_STARTED = (
    "a worker process did not start ({reason}); a script that uses workers must call certify under "
    'if __name__ == "__main__":, or leave workers at 1'
)


@dataclass(eq=False)
class _Worker:
    """A process, our end of its pipe, its GPU, whether it has reported for work, and the piece it has, in a list."""

    process: SpawnProcess
    pipe: Connection
    card: str
    ready: bool
    pieces: list[Any]

    def end(self) -> str:
        """Let it be no more; how it ended."""
        self.pipe.close()
        self.process.join(timeout=1.0)  # its pipe is closed before it is gone
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}; did the memory run out?" if name == "SIGKILL" else name


class Crew(Generic[T, R]):
    """At most `count` processes that apply `work`, which is pickled once for each; a dead one is replaced.

    An Executor. `work` shall not raise: that ends its process. cards: GPUs, as CUDA_VISIBLE_DEVICES names them, over
    which the processes are spread; each sees its own alone.
    """

    def __init__(self, work: Callable[[T], R], count: int, cards: tuple[str, ...] = ()) -> None:
        self.count = count
        self.together = count if not cards else -(-count // len(cards))
        self._cards = cards
        self._spare = Spare()
        self._work = pickle.dumps(work)
        self._workers: list[_Worker] = []
        self._seen_ready = False
        self._stillborn = 0  # processes that died before they began, one after the other

    def __enter__(self) -> Crew[T, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    @property
    def idle(self) -> bool:
        return len(self._workers) < self.count or any(not w.pieces for w in self._workers)

    @property
    def working(self) -> int:
        return sum(bool(w.pieces) for w in self._workers)

    def hire(self, pieces: int) -> None:
        started = []
        for _ in range(min(pieces, self.count) - len(self._workers)):
            used = Counter(w.card for w in self._workers)
            card = min(self._cards, key=lambda c: used[c], default="")
            environment = dict.fromkeys(THREADS, "1") | ({CARDS: card} if card else {})
            with _environment(environment), _no_interrupts():
                started.append(_spawn(card, self._spare))
            self._workers.append(started[-1])
        for worker in started:
            with suppress(OSError):  # it died; `take` finds out
                worker.pipe.send_bytes(self._work)

    def rest(self) -> None:
        self._spare.offer(0 if self._cards else self.count - self.working)

    def give(self, piece: T) -> None:
        self._spare.offer(0)
        for worker in [w for w in self._workers if not w.pieces and not w.process.is_alive()]:
            self._bury(worker)  # it died on no piece's account
        if all(w.pieces for w in self._workers):
            self.hire(len(self._workers) + 1)
        worker = next(w for w in self._workers if not w.pieces)
        worker.pieces.append(piece)
        with suppress(OSError):  # it died; `take` finds out
            worker.pipe.send(piece)

    def take(self, seconds: float | None = None) -> tuple[T, R | Death] | None:
        until = None if seconds is None else time.monotonic() + seconds
        while working := {w.pipe: w for w in self._workers if w.pieces}:
            ended = wait(list(working), None if until is None else max(0.0, until - time.monotonic()))
            if not ended:
                return None
            for pipe in ended:
                worker = working[pipe]  # type: ignore[index]
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):
                    return worker.pieces[0], self._bury(worker)
                if worker.ready:
                    return worker.pieces.pop(), answer
                worker.ready = self._seen_ready = True
                self._stillborn = 0
        return None

    def _bury(self, worker: _Worker) -> Death:
        self._workers.remove(worker)
        reason = worker.end()
        if worker.ready:
            return Death(f"the worker process died ({reason})")
        self._stillborn += 1
        ended_itself = reason.startswith("exit code")
        if self._stillborn >= STARTS or (ended_itself and not self._seen_ready):
            raise UsageError(NOT_STARTED.format(reason=reason))
        return Death(f"the worker process died before it began ({reason})", lost=True)


def _spawn(card: str, spare: Spare) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, spare)
    )  # not a daemon, which could have no workers of its own
    process.start()
    theirs.close()  # or its death would not end the pipe
    return _Worker(process, ours, card, False, [])


class Helpers(Crew[T, R]):
    """A crew for one search in a worker, on cores that its own crew has to spare; leaving gives them back."""

    def __init__(self, work: Callable[[T], R], count: int, spare: Spare) -> None:
        super().__init__(work, count)
        self._lender, self._borrowed = spare, count

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        self._lender.give_back(self._borrowed)
        self._borrowed = 0


def helpers(work: Callable[[T], R], most: int) -> Crew[T, R] | None:
    """A crew for one search: of `most` processes, or in a worker of so many as there are cores to spare now, if any."""
    if not _SPARE:
        return Crew(work, most)
    (spare,) = _SPARE
    if not (count := spare.take(most)):
        return None
    try:
        return Helpers(work, count, spare)
    except BaseException:
        spare.give_back(count)
        raise


_SPARE: list[Spare] = []  # of the crew that this process is a worker of


def _serve(pipe: Connection, spare: Spare) -> None:
    """The life of a process: the work, then pieces until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends its workers
    _SPARE.append(spare)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        work = pickle.loads(pipe.recv_bytes())  # from our parent, over a private pipe
        pipe.send(None)
        while True:
            pipe.send(work(pipe.recv()))


def _follow_parent() -> None:
    """End with the parent even in the middle of a piece, which may take an hour."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What a process that starts here finds in its environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """SIGINT waits here, and what starts meanwhile never sees one: it would print a traceback while it loads."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would let signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
