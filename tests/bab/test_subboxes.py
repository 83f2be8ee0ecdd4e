"""Parts of a search over boxes: what goes on elsewhere, in any order, or never comes back, changes no answer."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import random_nets
import torch
from bab_cases import case_of, judge, margins
from exact import exact, run
from minimum import minima, tiny_case
from random_nets import relu_mlp, samples
from small_models import halves, network

from certify.bab.input_split import InputSearch
from certify.bab.result import no_replay
from certify.bab.subboxes import Grown, adopt, donate, ground
from certify.certificate.content import NOT_SPLIT
from certify.judge import Asked
from certify.judge import judge as judge_proofs
from certify.property import Box, Property

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ticks(monkeypatch):
    """A clock that moves on by one whenever it is asked, so that searches are cut short anywhere."""
    now = count()
    monkeypatch.setattr("certify.bab.input_split.time.monotonic", lambda: float(next(now)))
    return now


def sent(value):
    """The value as another process gets it."""
    return pickle.loads(pickle.dumps(value))


def planted(graph, case, most=4, replay=None, sample=None):
    cast = graph.cast(np.zeros(1) if sample is None else sample)
    return InputSearch.begin(cast, case, replay or judge(graph, case), most)


def scattered(search, replay, rng, ticks, seen=lambda lower: None):
    """Go on by random steps here and there; a fifth of the loans is lost, some come back very late."""
    away = []

    def soon():
        return next(ticks) + float(rng.choice([3, 30, 300]))

    for _ in range(5000):
        seen(search.result().lower)
        if search.witness is not None or not (search.waiting or away):
            return
        if search.waiting and rng.random() < 0.4:
            search.advance(soon())
        elif search.waiting and rng.random() < 0.6:
            base = sent(ground(search))
            away += [(base, sent(part)) for part in donate(search, int(rng.integers(1, 4)), int(rng.integers(1, 4)))]
        elif away:
            base, part = away.pop(int(rng.integers(len(away))))
            if rng.random() < 0.2:
                search.restore(part.loan)
            if rng.random() < 0.5:
                own = base.part(part.boxes, replay)
                for _ in range(int(rng.integers(1, 4))):
                    for branch in donate(own, 1, 2) if own.witness is None else ():
                        assert adopt(own, sent(branch.grow(sent(ground(own)), replay, soon())))
                    if own.waiting and own.witness is None:
                        own.advance(soon())
                donate(own, 1, 1)  # lent, and never heard of again
                grown = Grown.of(own, part.loan)
            else:
                grown = part.grow(base, replay, soon())
            known = part.loan in search.lent
            assert adopt(search, sent(grown)) is known
            assert not adopt(search, grown)
    raise AssertionError("the search does not end")


@pytest.mark.parametrize(("seed", "library"), [*((seed, "numpy") for seed in range(6)), (1, "torch"), (5, "torch")])
def test_the_verdict_is_the_sign_of_the_exact_minimum_and_bounds_never_pass_it(ticks, seed, library):
    sample = np.zeros(1) if library == "numpy" else torch.zeros(1, dtype=torch.float64)
    graph, lower, upper = tiny_case(seed)
    least = run(graph, minima(graph, lower, upper)[0])[0]
    rng = np.random.default_rng([81, seed])
    for side in (-0.01, 0.01):
        offset = float(least) + side
        case = case_of(Box.exact(lower, upper), (np.eye(int(np.prod(graph.output_shape)))[[0]], [offset]))
        search, truth, bounds = planted(graph, case, sample=sample), least - exact([offset])[0], []
        scattered(search, judge(graph, case), rng, ticks, bounds.append)
        found = search.result()
        assert all(not bound > truth for bound in bounds)
        assert bounds == sorted(bounds)
        assert (found.lower > 0) is (truth > 0)
        assert (found.witness is not None) is (truth <= 0)


def holds(model, case, search):
    """Does the checker accept what the closed search says, at once or after it went on where the checker finds it open?

    A pass that the deadline cuts short has other slopes than the checker's, and may by chance show more.
    """
    for _ in range(4):
        (answer,) = judge_proofs(model, [Asked(Property((case,)), [search.result().proof])])
        if answer.open is None:
            return answer.accepted
        search.reopen(answer.open[2])
        search.go(np.inf)
    return False


@pytest.mark.parametrize("seed", [0, 1])
def test_the_checker_accepts_the_tree_of_a_scattered_search_again_after_parts_are_reopened(ticks, seed):
    """Nodes that came from elsewhere are places of the whole tree: the reopened boxes are those of their paths, and of
    all closed nodes together they fill the whole box.
    """
    model = network(seed, (3, 10, 10, 2))
    case = halves(model, -0.15).cases[0]
    search = planted(model.graph, case, most=2)
    scattered(search, judge(model.graph, case), np.random.default_rng([82, seed]), ticks)
    found = search.result()
    assert found.left == 0
    assert 0 < found.lower <= margins(case, model.graph(samples(case.inputs.lower, case.inputs.upper, 1, 2000))).min()
    assert search.loans > 4
    assert holds(model, case, search)
    (tree,) = search.result().proof.trees
    leaves = np.unique(tree.entry_node[tree.unit[tree.entry_node] == NOT_SPLIT])
    before = search.log.count
    search.reopen(leaves)
    assert search.waiting == search.log.count - before == 2 * len(leaves) > 10
    assert search.result().lower == -np.inf
    parts = search.frontier.pop(search.waiting)
    search.frontier.push(parts)
    volume = np.prod(parts.upper - parts.lower, axis=1)
    assert volume.min() > 0
    assert volume.sum() == pytest.approx(np.prod(case.inputs.upper - case.inputs.lower), rel=1e-12)
    scattered(search, judge(model.graph, case), np.random.default_rng([83, seed]), ticks)
    assert search.result().lower > 0
    assert holds(model, case, search)


def hard():
    """A search with some open boxes."""
    graph = relu_mlp(6, 2, 14, 12, 2)
    box = Box.exact(-np.ones(2), np.ones(2))
    y = graph(samples(box.lower, box.upper, 6, 4000))
    case = case_of(box, (np.eye(2)[:1], [float(y[:, 0].min()) - 0.05]))
    search = planted(graph, case, replay=no_replay)
    while search.waiting < 6:
        search.advance(np.inf)
    return search


def test_a_donation_is_dealt_and_counted():
    """Hand and search get every other bound; open parts and bounds are the same wherever they are."""
    search = hard()
    before = search.result()
    (part,) = donate(search, 1, 1000)
    assert (search.result().lower, search.result().left) == (before.lower, before.left)
    assert abs(len(part.boxes) - search.waiting) <= 1
    assert search.frontier.lower == before.lower
    assert len(pickle.dumps(part)) < 2000 + 80 * len(part.boxes)
    search.restore(part.loan)
    assert search.waiting == before.left
    assert not adopt(search, part.grow(ground(search), no_replay, np.inf))


def test_a_donation_or_a_step_that_fails_loses_nothing(monkeypatch):
    search = hard()
    before = search.result()

    def fails(*args, **kwargs):
        raise MemoryError

    for name, act in (
        ("numpy.argsort", lambda: donate(search, 1, 4)),
        ("certify.bab.input_split.propagate", lambda: search.advance(np.inf)),
        ("certify.bab.input_split._attack", lambda: search.advance(np.inf)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(name, fails)
            with pytest.raises(MemoryError):
                act()
        assert (search.result().lower, search.result().left) == (before.lower, before.left)
    assert search.go(np.inf).lower > 0


def test_what_is_lent_counts_for_whether_a_search_comes_to_its_end():
    search = hard()
    assert search.promising(np.inf)
    assert not search.promising(-np.inf)
    (part,) = donate(search, 1, 1000)
    assert not search.promising(-np.inf), "what is lent is as open as before"
    grown = part.grow(ground(search), no_replay, np.inf)
    assert adopt(search, grown)
    assert search.promising(-np.inf), "half is closed"


SCRIPT = """
import os, signal, sys, time

import numpy as np

from random_nets import relu_mlp, samples

from certify.bab import input_split, share, subboxes
from certify.bab.result import no_replay
from certify.bab.share import Team
from certify.executors.processes import Crew
from certify.property import Box, Case, Polytope

for name in ("AFTER_SECONDS", "START_SECONDS", "LEAST_SECONDS"):
    setattr(share, name, 0.0)


def judge():
    assert "torch" not in sys.modules
    return no_replay


def main():
    graph, lower, upper = relu_mlp(7, 3, 12, 12, 2), -np.ones(3), np.ones(3)
    offset = graph(samples(lower, upper, 0, 4000))[:, :1].min(axis=0) - 0.1
    case = Case(Box.exact(lower, upper), (Polytope(np.eye(2)[:1], offset, offset, np.zeros(1, dtype=bool)),))
    search = input_split.InputSearch.begin(graph.cast(np.zeros(1)), case, no_replay, 2)
    team = Team(search, subboxes, judge, Crew, 2)
    step = search.advance
    killed, give, adopted = [], Crew.give, []

    def patient(deadline):  # until others have come, and again until they are done with what they have
        time.sleep(0.05 if team.crew is not None and not adopted else 0.0)
        if team.crew is None or search.waiting < 8 or adopted:
            step(deadline)

    def then_killed(self, errand):
        give(self, errand)
        if errand[1] and not killed:
            killed.append(next(w.process.pid for w in self._workers if w.pieces and w.pieces[0][1]))
            os.kill(killed[0], signal.SIGKILL)

    class Lending:
        ground, donate = staticmethod(subboxes.ground), staticmethod(subboxes.donate)

        @staticmethod
        def adopt(search, grown):
            adopted.append(grown.subproblems)
            return subboxes.adopt(search, grown)

    search.advance, Crew.give, team.lending = patient, then_killed, Lending
    found = team.grow(time.monotonic() + 120.0)
    team.close()
    assert "torch" not in sys.modules
    print(found.lower > 0, found.left, len(killed), sum(adopted) > 0)


if __name__ == "__main__":
    main()
"""


def test_real_processes_help_without_torch_and_one_that_is_killed_costs_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    known = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(random_nets.__file__).parent), str(ROOT)])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=200, env=known)
    assert done.stdout.split() == ["True", "0", "1", "True"], done.stderr
