"""A search over several processes: its verdict and its tree's certificate are as one process's, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest
import torch
from bab_cases import accepted, judge, margins, start_of
from random_nets import samples
from small_models import halves, network

from certify.bab import share, subtree
from certify.bab.ascend import AscentOptions
from certify.bab.root import begin
from certify.bab.search import SearchOptions, Tree, grow
from certify.bab.share import Helper, Team
from certify.errors import UsageError
from certify.executors.base import Death
from certify.executors.processes import Crew

SMALL = SearchOptions(leaf=AscentOptions(iterations=10), smallest=4, largest=4)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Others are started, and parts lent, without waiting for a search to prove hard."""
    for name in ("AFTER_SECONDS", "START_SECONDS", "LEAST_SECONDS"):
        monkeypatch.setattr(share, name, 0.0)
    monkeypatch.setattr(subtree, "planes_pay", lambda root: False)
    monkeypatch.setattr("certify.bab.search.PLANES_AFTER", 4)
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


class InTurn:
    """Stands for Crew within this process; errands whose turn is in `deadly` kill whoever has them."""

    def __init__(self, deadly, work, count):
        self.deadly, self.work, self.count, self.errands, self.turn = deadly, work, count, [], 0

    def __exit__(self, *error):
        self.errands.clear()

    def hire(self, pieces):
        assert pieces <= self.count

    def give(self, errand):
        assert len(self.errands) < self.count
        self.errands.append(errand)

    def take(self, seconds=None):
        if not self.errands:
            return None
        self.turn += 1
        errand = self.errands.pop(0)
        return errand, Death("it died") if self.turn in self.deadly else self.work(errand)


def instance(seed, gap=-0.15):
    model = network(seed, {4: (2, 8, 8, 2), 5: (2, 6, 6, 2)}[seed])
    case = halves(model, gap).cases[0]
    tree = Tree.plant(begin(start_of(model.graph, case, iterations=1)), judge(model.graph, case), SMALL)
    return model, case, tree


@pytest.mark.parametrize("deadly", [(), (4,), (3, 5), (1, 2)])
@pytest.mark.parametrize("seed", [4, 5])
def test_whoever_dies_the_search_closes_and_the_checker_accepts_its_tree(seed, deadly):
    model, case, tree = instance(seed)
    team = Team(tree, subtree, partial(judge, model.graph, case), partial(InTurn, deadly), 2)
    found = team.grow(time.monotonic() + 60.0)
    team.close()
    assert tree.loans > 0 or deadly == (1, 2)
    least = margins(case, model.graph(samples(case.inputs.lower, case.inputs.upper, 1, 2000))).min()
    assert 0 < found.lower <= least
    assert found.left == 0
    assert accepted(model, case, tree)


def test_a_failing_helper_is_asked_no_more_and_an_interrupt_loses_nothing(monkeypatch):
    model, case, tree = instance(4)

    def fails():
        raise MemoryError

    team = Team(tree, subtree, fails, partial(InTurn, ()), 1)
    assert team.grow(time.monotonic() + 60.0).lower > 0
    assert tree.loans == 2, "the tree's own share and one loan"
    assert team.crew is None
    team.close()

    model, case, tree = instance(4)
    team = Team(tree, subtree, partial(judge, model.graph, case), partial(InTurn, ()), 1)
    give = InTurn.give

    def interrupted(self, errand):
        if errand[1]:
            raise KeyboardInterrupt
        give(self, errand)

    monkeypatch.setattr(InTurn, "give", interrupted)
    with pytest.raises(KeyboardInterrupt):
        team.grow(time.monotonic() + 60.0)
    assert not tree.lent
    assert tree.result().lower <= 0
    monkeypatch.setattr(InTurn, "give", give)
    assert team.grow(time.monotonic() + 60.0).lower > 0
    team.close()


def test_where_no_process_can_start_the_search_goes_on_alone():
    class Nobody(InTurn):
        def take(self, seconds=None):
            raise UsageError("no process")

    model, case, tree = instance(4)
    team = Team(tree, subtree, partial(judge, model.graph, case), partial(Nobody, ()), 3)
    assert team.grow(time.monotonic() + 60.0).lower > 0
    assert team.crew is None


def test_a_search_that_cannot_be_sent_goes_on_alone():
    model, case, tree = instance(4)
    team = Team(tree, subtree, lambda: judge(model.graph, case), Crew, 1)  # no process can be told of a lambda
    assert team.grow(time.monotonic() + 60.0).lower > 0
    assert team.crew is None


def test_what_is_still_away_at_the_deadline_is_open():
    class Never(InTurn):
        def take(self, seconds=None):
            return super().take() if self.errands and not self.errands[0][1] else None

    model, case, tree = instance(4)
    team = Team(tree, subtree, partial(judge, model.graph, case), partial(Never, ()), 1)
    found = team.grow(time.monotonic() + 1.0)
    assert found.lower <= 0
    assert found.left == len(tree.pool) > 0
    team.close()
    assert grow(tree, time.monotonic() + 60.0).lower > 0
    assert accepted(model, case, tree)


def test_real_processes_help_and_one_that_is_killed_costs_nothing(monkeypatch):
    """The search waits until others have come; the first loan's process is killed."""
    model, case, tree = instance(4)
    team = Team(tree, subtree, partial(judge, model.graph, case), Crew, 2)
    advance = Tree.advance

    def patient(*given):
        if team.crew is None or team.idle or tree.loans or team.most < 1:
            advance(*given)
        else:
            time.sleep(0.1)

    monkeypatch.setattr(Tree, "advance", patient)
    killed, give = [], Crew.give

    def then_killed(self, errand):
        give(self, errand)
        if errand[1] and not killed:
            killed.append(next(w.process.pid for w in self._workers if w.pieces and w.pieces[0][1]))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Crew, "give", then_killed)
    found = team.grow(time.monotonic() + 120.0)
    processes = [w.process for w in team.crew._workers] if team.crew else []
    team.close()
    assert all(not process.is_alive() for process in processes)
    assert found.lower > 0
    assert killed
    assert accepted(model, case, tree)


def test_a_helper_answers_in_bytes_and_never_raises():
    helper = Helper(None, lambda: None)
    assert helper((-1, b"")) == b""
    assert helper((0, b"no pickle")) == b""
