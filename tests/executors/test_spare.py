"""Cores are taken by one search at a time, and what a killed process leaves behind stops nobody."""

from __future__ import annotations

import operator
from functools import partial

import pytest

from certify.executors import spare as module
from certify.executors.choose import helpers
from certify.executors.processes import Crew
from certify.executors.spare import Spare


def test_no_more_is_taken_than_is_offered() -> None:
    spare = Spare()
    assert spare.take(3) == 0
    spare.offer(4)
    assert [spare.take(3), spare.take(3), spare.take(3)] == [3, 1, 0]
    spare.offer(0)
    spare.give_back(3)
    assert spare.take(1) == 0, "what was offered before is wanted elsewhere now"
    spare.offer(2)
    assert spare.take(5) == 1, "one is still taken"


def test_a_lock_that_is_never_given_back_means_that_nothing_is_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    spare = Spare()
    spare.offer(4)
    monkeypatch.setattr(spare._shared.get_lock(), "acquire", lambda timeout: False)
    assert spare.take(3) == 0
    spare.offer(5)
    spare.give_back(1)


# What a worker does with its piece: asks for helpers, asks again, lets them go, and asks again.
ASKS = """(lambda helpers, call: (
    lambda first: (
        first.count,
        helpers(call, 5),
        first.__exit__(None, None, None),
        (lambda again: (again.count, again.__exit__(None, None, None)))(helpers(call, 5))[0],
    )
)(helpers(call, 5)))(
    __import__("certify.executors.choose", fromlist=["helpers"]).helpers, __import__("operator").call
)"""


def test_who_has_a_piece_is_helped_by_those_without() -> None:
    """Of three workers two are idle: one search may have both, whoever asks next none."""
    with Crew(operator.call, 3) as crew:
        crew.give(partial(eval, ASKS))
        crew.rest()
        ended = crew.take()
    assert ended is not None
    assert ended[1] == (2, None, None, 2)


def test_outside_of_a_worker_there_are_as_many_as_were_asked_for() -> None:
    alone = helpers(operator.call, 2)
    assert isinstance(alone, Crew)
    assert alone.count == 2
