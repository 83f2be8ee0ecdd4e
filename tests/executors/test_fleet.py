"""A fleet over a stand-in for Ray: what is given comes back once, idle actors make room, and nobody waits for ever.

The laws of real clusters are in test_cluster.py and test_killed.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from certify.errors import UsageError
from certify.executors import cluster
from certify.executors.base import Death
from certify.executors.cluster import STARTS, Fleet


class Thing:
    """Somebody's attributes, and an identity."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


class ActorUnavailableError(RayError):
    pass


class ObjectLostError(RayError):
    pass


class Ray(ModuleType):
    """Actors answer when they are waited for, in order; `free`: how many may begin."""

    def __init__(self, cpus: list[int], free: int = 99) -> None:
        super().__init__("ray")
        self.cpus, self.free, self.killed, self.made = cpus, free, 0, 0
        self.actors: list[Thing] = []

    def is_initialized(self) -> bool:
        return True

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(n)}} for n in self.cpus]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": float(sum(self.cpus) - len(self.actors))}

    def remote(self, hand: type) -> Any:
        def options(**needs: Any) -> Any:
            return Thing(remote=partial(self._make, hand))

        return Thing(options=options)

    def _make(self, hand: type, work: Any) -> Any:
        self.made += 1
        actor = Thing(alive=True)
        actor.apply = Thing(remote=lambda piece: self._later(actor, partial(work, piece)))
        actor.begin = Thing(remote=lambda: self._later(actor, lambda: None))
        self.actors.append(actor)
        return actor

    def _later(self, actor: Any, call: Callable[[], Any]) -> Any:
        return Thing(actor=actor, call=call)

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        ready = [ref for ref in refs if ref.actor in self.actors[: self.free]]
        return ready[:1], ready[1:]

    def get(self, ref: Any) -> Any:
        return ref.call()

    def kill(self, actor: Any) -> None:
        if actor in self.actors:
            self.actors.remove(actor)
            self.killed += 1


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Ray], Ray]:
    def put(ray: Ray) -> Ray:
        exceptions = ModuleType("ray.exceptions")
        for kind in (RayError, ActorDiedError, ActorUnavailableError, ObjectLostError):
            setattr(exceptions, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
        return ray

    return put


def die(message: str) -> None:
    raise ActorDiedError(message)


def work(piece: Any) -> Any:
    return piece()


def answers(fleet: Fleet[Any, Any], pieces: list[Any]) -> list[Any]:
    waiting, found = list(pieces), []
    while waiting or fleet.working:
        fleet.hire(fleet.working + len(waiting))
        while waiting and fleet.idle:
            fleet.give(waiting.pop(0))
        if (ended := fleet.take(1.0)) is not None:
            found.append(ended[1])
    return found


def test_all_cores_of_all_nodes_answer_and_deaths_are_told(install: Callable[[Ray], Ray]) -> None:
    ray = install(Ray([2, 3]))
    pieces = [partial(math.sqrt, n) for n in range(20)]
    crash, lost = partial(die, "its worker process has died"), partial(die, "its node has died")
    with Fleet(work, None, gpus=True) as fleet:
        assert (fleet.count, fleet.together) == (5, 3)
        found = answers(fleet, [*pieces, crash, lost])
        assert len(ray.actors) <= 5
    assert sorted(f for f in found if isinstance(f, float)) == sorted(math.sqrt(n) for n in range(20))
    assert sorted(f.lost for f in found if isinstance(f, Death)) == [False, True]
    assert not ray.actors, "all are gone with the fleet"
    assert ray.made <= 7, "five, and one for each that died"


def test_who_waits_for_room_gets_nothing_to_do(install: Callable[[Ray], Ray]) -> None:
    ray = install(Ray([4], free=1))
    with Fleet(work, None, gpus=False) as fleet:
        fleet.hire(4)
        assert not fleet.idle
        assert fleet.take(0.0) is None
        fleet.give(partial(math.sqrt, 4.0))
        assert not fleet.idle
        ended = fleet.take(1.0)
        assert ended is not None
        assert ended[1] == 2.0
        assert len(ray.actors) == 4


def test_idle_actors_make_room_after_a_while(install: Callable[[Ray], Ray], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = install(Ray([3]))
    monkeypatch.setattr(cluster, "REST_SECONDS", -1.0)
    with Fleet(work, None, gpus=False) as fleet:
        assert answers(fleet, [partial(math.sqrt, 1.0)] * 9) == [1.0] * 9
        fleet.give(partial(math.sqrt, 9.0))
        fleet.rest()
        assert ray.killed == 0
        ended = fleet.take(1.0)
        assert ended is not None
        assert ended[1] == 3.0
        assert ray.killed == 2, "all but the one that works"
        monkeypatch.setattr(cluster, "_ASKED", [float("-inf")])
        with_help = cluster.helpers(work, 5)
        assert with_help is not None
        assert with_help.count == 2, "as many as are free now"
        assert cluster.helpers(work, 5) is None, "not asked twice in a row"
        with_help.hire(2)
        with_help.give(partial(math.sqrt, 16.0))  # at once: it waits there until the actor has begun
        ended = with_help.take(1.0)
        assert ended is not None
        assert ended[1] == 4.0
        with_help.__exit__(None, None, None)
        assert answers(fleet, [partial(math.sqrt, 1.0)] * 5) == [1.0] * 5


def test_where_nobody_begins_it_is_said_once_and_no_actors_are_made_for_ever(install: Callable[[Ray], Ray]) -> None:
    ray = install(Ray([2]))

    def make(hand: type, work: Any) -> Any:
        actor = Ray._make(ray, hand, work)
        actor.begin = Thing(remote=lambda: ray._later(actor, partial(die, "No module named certify")))
        return actor

    ray._make = make  # type: ignore[method-assign]
    with (
        Fleet(work, None, gpus=False) as fleet,
        pytest.raises(UsageError, match=r"No module named certify.*same certify"),
    ):
        answers(fleet, [1])
    assert ray.made <= STARTS + 1
