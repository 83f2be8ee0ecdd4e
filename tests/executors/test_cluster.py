"""A real Ray cluster of two nodes on this machine: every piece is answered once, whatever dies under way."""

from __future__ import annotations

import math
import operator
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from ray_nodes import ray_nodes

from certify.errors import UsageError
from certify.executors.base import Death
from certify.executors.cluster import Fleet

# Pieces are calls of the standard library, which every process can import.
WORK = operator.call


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_nodes(2) as made:
        yield made


def answers(fleet: Fleet[Any, Any], pieces: list[Any]) -> list[Any]:
    """What the pieces come to, in their order."""
    waiting, found = list(enumerate(pieces)), {}
    held: dict[int, int] = {}
    while waiting or fleet.working:
        fleet.hire(fleet.working + len(waiting))
        while waiting and fleet.idle:
            number, piece = waiting.pop(0)
            held[id(piece)] = number
            fleet.give(piece)
        if (ended := fleet.take()) is not None:
            piece, answer = ended
            number = held.pop(id(piece))
            assert number not in found
            found[number] = answer
    return [found[n] for n in range(len(pieces))]


def test_every_piece_is_answered_and_every_death_told(cluster: Any) -> None:
    with Fleet(WORK, None, gpus=True) as fleet:
        assert fleet.count == 2
        assert fleet.together == 1
        roots = [partial(math.sqrt, n) for n in range(6)]
        killed, raises = partial(signal.raise_signal, signal.SIGKILL), partial(math.sqrt, -1.0)
        found = answers(
            fleet, [*roots, killed, raises, partial(bytes, 3_000_000), partial(os.getenv, "OMP_NUM_THREADS")]
        )
    assert found[:6] == [math.sqrt(n) for n in range(6)]
    assert isinstance(found[6], Death)
    assert not found[6].lost
    assert "\n" not in found[6].reason
    assert isinstance(found[7], Death), "an answer that cannot be had"
    assert found[8] == bytes(3_000_000)
    assert found[9] == "1"


def test_leaving_ends_what_is_under_way(cluster: Any) -> None:
    begin = time.monotonic()
    with Fleet(WORK, 1, gpus=False) as fleet:
        fleet.hire(1)
        while not fleet.idle:
            assert fleet.take() is None
        (pid,) = answers(fleet, [partial(os.getpid)])
        fleet.give(partial(time.sleep, 3600))
        assert not fleet.idle
        assert fleet.take(0.1) is None
    assert time.monotonic() - begin < 600
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the actor's process outlives the fleet")


class Stillborn:
    """Cannot be read by whoever gets it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return operator.call, (partial(__import__, "no_such_module"),)  # type: ignore[return-value]


def test_workers_that_cannot_begin_are_a_usage_error(cluster: Any) -> None:
    with Fleet(Stillborn(), 2, gpus=False) as fleet:  # type: ignore[arg-type]
        message = r"no worker of the Ray cluster begins .*no_such_module.*same certify"
        with pytest.raises(UsageError, match=message):
            answers(fleet, [1])


@pytest.mark.long
def test_a_lost_node_costs_its_running_pieces_alone(cluster: Any) -> None:
    """The last test: a node is removed while it works."""
    with Fleet(WORK, None, gpus=False) as fleet:
        fleet.hire(2)
        found: list[Any] = []
        # One sleeps on the node that goes, as both nodes have one core; the other one's piece ends.
        pieces = [partial(time.sleep, 15), partial(time.sleep, 15)]
        while fleet.working < 2:
            fleet.take(1.0)
            while pieces and fleet.idle:
                fleet.give(pieces.pop())
        cluster.remove_node(cluster.workers[1], allow_graceful=False)
        while fleet.working:
            if (ended := fleet.take()) is not None:
                found.append(ended[1])
        lost = [f for f in found if isinstance(f, Death)]
        assert len(found) == 2
        assert len(lost) == 1
        assert lost[0].lost
        assert answers(fleet, [partial(math.sqrt, 4)] * 1) == [2]


def test_an_address_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'certify[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert not ray.is_initialized()
    with pytest.raises(UsageError, match=r"127.0.0.1:1 cannot be reached"), Fleet(WORK, 1, gpus=False):
        pass
