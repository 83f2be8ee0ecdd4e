"""Each piece of work is answered once, by a process of one thread; a process that dies is a Death, and never a hang."""

from __future__ import annotations

import math
import operator
import os
import signal
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from certify.errors import UsageError
from certify.executors.base import THREADS, Death
from certify.executors.processes import Crew

# Pieces are calls of the standard library, which every process can import.
WORK = operator.call


def answers(crew: Crew[Any, Any], pieces: list[Any]) -> list[Any]:
    """What the pieces come to, in their order."""
    waiting, found = list(enumerate(pieces)), {}
    held: dict[int, int] = {}
    while waiting or crew.working:
        while waiting and crew.idle:
            number, piece = waiting.pop(0)
            held[id(piece)] = number
            crew.give(piece)
        ended = crew.take()
        assert ended is not None
        piece, answer = ended
        number = held.pop(id(piece))
        assert number not in found
        found[number] = answer
    return [found[n] for n in range(len(pieces))]


def test_every_piece_is_answered_and_every_death_told() -> None:
    roots, more = ([partial(math.sqrt, n) for n in range(6)] for _ in range(2))
    exits, killed = partial(os._exit, 7), partial(signal.raise_signal, signal.SIGKILL)
    large = partial(bytes, 3_000_000)  # more than a pipe holds
    with Crew(WORK, 2) as crew:
        crew.hire(2)
        pids = {w.process.pid for w in crew._workers}
        assert len(pids) == 2
        found = answers(crew, [*roots, exits, killed, large, *more])
        assert len(crew._workers) <= 2
        assert not pids <= {w.process.pid for w in crew._workers}
    expected: list[Any] = [math.sqrt(n) for n in range(6)]
    assert found[:6] == found[9:] == expected
    assert found[6] == Death("the worker process died (exit code 7)")
    assert found[7] == Death("the worker process died (SIGKILL; did the memory run out?)")
    assert found[8] == bytes(3_000_000)
    assert not active_children()


def test_a_process_has_one_thread_and_leaves_interrupts_to_its_parent() -> None:
    before = {name: os.environ.get(name) for name in THREADS}
    with Crew(WORK, 1) as crew:
        environment = [partial(os.getenv, name) for name in THREADS]
        interrupts = [partial(signal.raise_signal, signal.SIGINT), partial(os.getpid)]
        found = answers(crew, [*environment, *interrupts])
    assert found[:3] == ["1", "1", "1"]
    assert found[3] is None
    assert found[4] != os.getpid()
    assert {name: os.environ.get(name) for name in THREADS} == before


def test_every_process_sees_its_own_gpu() -> None:
    with Crew(WORK, 3, ("4", "7")) as crew:
        crew.hire(3)
        seen = answers(crew, [partial(os.getenv, "CUDA_VISIBLE_DEVICES") for _ in range(3)])
    assert sorted(w for w in seen) == ["4", "4", "7"]


def test_a_process_that_dies_without_a_piece_costs_none() -> None:
    with Crew(WORK, 1) as crew:
        (first,) = answers(crew, [partial(os.getpid)])
        os.kill(first, signal.SIGKILL)
        crew._workers[0].process.join()
        (second,) = answers(crew, [partial(os.getpid)])
    assert isinstance(second, int)
    assert first != second


def test_leaving_ends_what_is_under_way() -> None:
    with Crew(WORK, 1) as crew:
        assert crew.idle
        assert not crew.working
        crew.give(partial(time.sleep, 3600))
        assert crew.working
        assert not crew.idle
    assert not active_children()


class Stillborn:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


class Killed:
    """The work; the first so many processes that unpickle it end as by somebody's kill -9. folder: counts them."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times = folder, times

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        folder = repr(f"{self.folder}/")
        count = f"len(__import__('os').listdir({folder}))"
        made = f"__import__('os').mkdir({folder} + str({count}))"
        end = f"{count} <= {self.times} and __import__('signal').raise_signal(9)"
        return eval, (f"({made}, {end}, __import__('operator').call)[-1]",)


def test_a_kill_before_the_first_has_begun_is_no_reason_to_give_up(tmp_path: Path) -> None:
    with Crew(Killed(tmp_path, 2), 1) as crew:  # type: ignore[arg-type]
        found = answers(crew, [partial(math.sqrt, 4.0)] * 1)
    assert found == [Death("the worker process died before it began (SIGKILL; did the memory run out?)", lost=True)]


def test_processes_that_cannot_start_are_a_usage_error() -> None:
    with Crew(Stillborn(), 2) as crew:  # type: ignore[arg-type]
        crew.give(1)
        with pytest.raises(UsageError, match=r"did not start \(exit code 3\).*__main__"):
            crew.take()
