"""A search over several processes: its verdict and its tree's certificate are as one process's, whoever dies."""

from __future__ import annotations

import math
import os
import pickle
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from bab_cases import accepted, judge, margins, start_of
from random_nets import samples
from small_models import halves, network

from certify.bab import share, subboxes, subtree
from certify.bab.ascend import AscentOptions
from certify.bab.input_split import InputSearch
from certify.bab.result import no_replay
from certify.bab.root import begin
from certify.bab.search import SearchOptions, Tree
from certify.bab.share import Helper, Team
from certify.certificate.content import NOT_SPLIT
from certify.errors import UsageError
from certify.executors.base import Death
from certify.executors.processes import Crew
from certify.judge import Asked, Judgement
from certify.judge import judge as judge_proofs
from certify.machine import Machine
from certify.pipeline import decide
from certify.property import Property
from certify.settings import Settings
from certify.verdict import Verdict

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


def neurons(gap=-0.15):
    """A search over neurons that takes some steps, and how it is shared out."""
    model = network(4, (2, 8, 8, 2))
    case = halves(model, gap).cases[0]
    tree = Tree.plant(begin(start_of(model.graph, case, iterations=1)), judge(model.graph, case), SMALL)
    return model, case, tree, subtree


def boxes(gap=-0.15):
    """A search over boxes."""
    model = network(0, (3, 10, 10, 2))
    case = halves(model, gap).cases[0]
    return model, case, InputSearch.begin(model.graph.cast(np.zeros(1)), case, judge(model.graph, case), 4), subboxes


every_kind = pytest.mark.parametrize("kind", [neurons, boxes])


def team_of(kind, start, most, gap=-0.15):
    """(model, case, team)."""
    model, case, search, lending = kind(gap)
    return model, case, Team(search, lending, partial(judge, model.graph, case), start, most)


def holds(model, case, search):
    """Does the checker accept the certificate of a closed search?"""
    if isinstance(search, Tree):
        return accepted(model, case, search)
    (answer,) = judge_proofs(model, [Asked(Property((case,)), [search.result().proof])])  # no pass was cut short
    return answer.accepted


@pytest.mark.parametrize("deadly", [(), (4,), (3, 5), (1, 2)])
@every_kind
def test_whoever_dies_the_search_closes_and_the_checker_accepts_its_tree(kind, deadly):
    model, case, team = team_of(kind, partial(InTurn, deadly), 2)
    found = team.grow(time.monotonic() + 60.0)
    team.close()
    assert team.search.loans > 0 or deadly == (1, 2)
    least = margins(case, model.graph(samples(case.inputs.lower, case.inputs.upper, 1, 2000))).min()
    assert 0 < found.lower <= least
    assert found.left == 0
    assert holds(model, case, team.search)


@every_kind
def test_what_falls_alone_falls_with_help(kind):
    """The witness may come from elsewhere, where it ends the search."""
    for found_here in (True, False):
        model, case, team = team_of(kind, partial(InTurn, ()), 2, gap=0.3)
        if not found_here:
            search = team.search
            search.replay = no_replay
            if kind is boxes:
                search.attack.replay = no_replay
        found = team.grow(time.monotonic() + 60.0)
        team.close()
        assert found.lower <= 0
        assert found.witness is not None
        assert margins(case, model.graph(np.asarray(found.witness.x)[None])).max() <= 1e-6


class Never(InTurn):
    """Says that it is ready, and no more."""

    def take(self, seconds=None):
        return super().take() if self.errands and not self.errands[0][1] else None


class Babbles(InTurn):
    """Answers that nobody asked for."""

    def take(self, seconds=None):
        ended = super().take(seconds)
        answers = [b"no pickle", pickle.dumps("no part"), pickle.dumps(None)]
        return ended and (ended[0], answers[self.turn % 3] if ended[0][1] else ended[1])


@every_kind
def test_answers_that_make_no_sense_lose_nothing(kind):
    model, case, team = team_of(kind, partial(Babbles, ()), 3)
    found = team.grow(time.monotonic() + 60.0)
    assert team.crew is None, "who answers so is asked no more"
    assert team.search.loans > 3
    assert found.lower > 0
    assert holds(model, case, team.search)


@every_kind
def test_a_failing_helper_is_asked_no_more_and_an_interrupt_loses_nothing(kind, monkeypatch):
    def fails():
        raise MemoryError

    team = team_of(kind, partial(InTurn, ()), 1)[-1]
    team.judge = fails
    assert team.grow(time.monotonic() + 60.0).lower > 0
    assert team.search.loans == 2, "the search's own share and one loan"
    assert team.crew is None
    team.close()

    team = team_of(kind, partial(InTurn, ()), 1)[-1]
    give = InTurn.give

    def interrupted(self, errand):
        if errand[1]:
            raise KeyboardInterrupt
        give(self, errand)

    monkeypatch.setattr(InTurn, "give", interrupted)
    with pytest.raises(KeyboardInterrupt):
        team.grow(time.monotonic() + 60.0)
    assert not team.search.lent
    assert team.search.result().lower <= 0
    monkeypatch.setattr(InTurn, "give", give)
    assert team.grow(time.monotonic() + 60.0).lower > 0
    team.close()


def test_where_no_process_can_start_the_search_goes_on_alone():
    class Nobody(InTurn):
        def take(self, seconds=None):
            raise UsageError("no process")

    team = team_of(neurons, partial(Nobody, ()), 3)[-1]
    assert team.grow(time.monotonic() + 60.0).lower > 0
    assert team.crew is None


def test_a_search_that_cannot_be_sent_goes_on_alone():
    model, case, team = team_of(neurons, Crew, 1)
    team.judge = lambda: judge(model.graph, case)  # no process can be told of a lambda
    assert team.grow(time.monotonic() + 60.0).lower > 0
    assert team.crew is None


@every_kind
def test_what_is_still_away_at_the_deadline_is_open(kind):
    model, case, team = team_of(kind, partial(Never, ()), 1)
    search = team.search
    found = team.grow(time.monotonic() + 1.0)
    assert found.lower <= 0
    assert found.left == search.waiting > 0
    assert team.grow(time.monotonic() - 1.0).left == found.left
    team.close()
    assert Team(search, team.lending, team.judge, team.start, 0).grow(time.monotonic() + 60.0).lower > 0
    assert holds(model, case, search)


def test_a_search_that_is_not_worth_it_ends_with_what_is_away_open():
    """Past its patience a search goes on only where it comes to its end, wherever its boxes are."""
    _, _, team = team_of(boxes, partial(Never, ()), 1)
    lent = []

    def worth():
        lent.append(sum(map(len, team.search.lent.values())))
        return len(lent) <= 12

    found = team.grow(time.monotonic() + 60.0, worth)
    assert lent[-1] > 0
    assert found.lower <= 0
    assert found.left == team.search.waiting >= lent[-1]
    team.close()
    assert team.grow(time.monotonic() + 60.0, partial(team.search.promising, math.inf)).lower > 0


@pytest.mark.parametrize(("gap", "verdict"), [(-0.15, Verdict.VERIFIED), (0.05, Verdict.FALSIFIED)])
def test_a_property_s_verdict_is_the_same_with_others_and_what_the_checker_finds_open_is_mended(
    monkeypatch, gap, verdict
):
    """Of the tree that was put together the checker is made to call the first leaves open, once."""
    model, teams, told = network(0, (3, 10, 10, 2)), [], []
    make, begin_boxes = Machine._team, InputSearch.begin

    def seen(machine, *given):
        teams.append(make(machine, *given))
        return teams[-1]

    def once(model, asked, **given):
        if told:
            return judge_proofs(model, asked, **given)
        (tree,) = asked[0].proofs[0].trees
        told.append(teams[0].search.log.count)
        leaves = np.unique(tree.entry_node[tree.unit[tree.entry_node] == NOT_SPLIT])[:5]
        return [Judgement(False, "open", open=(0, 0, tuple(leaves.tolist())))]

    monkeypatch.setattr(Machine, "_team", seen)
    monkeypatch.setattr("certify.executors.choose.helpers", partial(InTurn, ()))
    monkeypatch.setattr("certify.judge.judge", once)
    monkeypatch.setattr(InputSearch, "begin", lambda *given: begin_boxes(*given, 4))
    prop = Property(halves(model, gap).cases[:1])
    (outcome,) = decide(model, [prop], Settings(timeout=60, device="cpu", attack=False), cores=3)
    assert outcome.verdict is verdict
    assert outcome.stage == "input splits"
    assert teams[0].search.loans > 0
    assert bool(told) is (verdict is Verdict.VERIFIED)
    assert not told or teams[0].search.log.count > told[0]


def test_real_processes_help_and_one_that_is_killed_costs_nothing(monkeypatch):
    """The search waits until others have come; the first loan's process is killed."""
    model, case, team = team_of(neurons, Crew, 2)
    tree = team.search
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
