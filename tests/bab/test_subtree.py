"""Subtrees: a search of which parts go on elsewhere, in any order, or never come back, is a search like any other."""

from __future__ import annotations

import pickle
from itertools import count

import numpy as np
import pytest
from bab_cases import accepted, case_of, judge, margins, start_of
from exact import exact, run
from minimum import minima, tiny_case
from random_nets import relu_mlp, samples
from small_models import halves, network

from certify.bab.ascend import AscentOptions
from certify.bab.root import begin
from certify.bab.search import SearchOptions, Tree
from certify.bab.subtree import Ground, Grown, adopt, donate
from certify.certificate.content import NOT_SPLIT
from certify.property import Box

SMALL = SearchOptions(leaf=AscentOptions(iterations=10), smallest=4, largest=4)


@pytest.fixture
def ticks(monkeypatch):
    """A clock that moves on by one whenever it is asked, so that searches are cut short anywhere."""
    now = count()
    monkeypatch.setattr("certify.bab.search.time.monotonic", lambda: float(next(now)))
    return now


def sent(value):
    """The value as another process gets it: without torch's shared memory."""
    return pickle.loads(pickle.dumps(value))


def planted(graph, case, options=SMALL):
    start = start_of(graph, case, iterations=1)
    return None if start is None else Tree.plant(begin(start), judge(graph, case), options)


def scattered(tree, replay, rng, ticks, seen=lambda lower: None, *, levels=2):
    """Grow a tree by random steps here and there; a fifth of the loans is lost, some come back very late."""
    away = []

    def soon():
        return next(ticks) + float(rng.choice([3, 30, 300, 3000, 3000]))

    for _ in range(2000):
        seen(tree.result().lower)
        if tree.witness is not None or not (tree.open or away):
            return
        if tree.open and rng.random() < 0.4:
            tree.advance(soon())
        elif tree.open and rng.random() < 0.6:
            ground = sent(Ground.of(tree))
            for subtree in donate(tree, int(rng.integers(1, 4)), int(rng.integers(1, 4))):
                away.append((ground, sent(subtree)))
        elif away:
            ground, subtree = away.pop(int(rng.integers(len(away))))
            if rng.random() < 0.2:
                tree.restore(subtree.loan)
            if levels and rng.random() < 0.5:
                own = subtree.plant(ground, replay)
                for _ in range(int(rng.integers(1, 4))):
                    branches = donate(own, 1, 2) if own.open else []
                    for part in branches:
                        assert adopt(own, sent(part.grow(sent(Ground.of(own)), replay, soon())))
                    if own.open:
                        own.advance(soon())
                grown = Grown.of(own, subtree.loan)
            else:
                grown = subtree.grow(ground, replay, soon())
            known = subtree.loan in tree.lent
            assert adopt(tree, sent(grown)) is known
            assert not adopt(tree, grown)
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("lift", [0, 20, 512])
@pytest.mark.parametrize("seed", [2, 5, 8])
def test_the_verdict_is_the_sign_of_the_exact_minimum_and_bounds_never_pass_it(ticks, monkeypatch, seed, lift):
    """With planes above neurons, too, which begin while parts of the tree are away: these are given up."""
    monkeypatch.setattr("certify.bab.search.LIFT_AFTER", lift)
    graph, lower, upper = tiny_case(seed)
    least = run(graph, minima(graph, lower, upper)[0])[0]
    rng = np.random.default_rng([71, seed])
    for side in (-0.01, 0.01):
        offset = float(least) + side
        case = case_of(Box.exact(lower, upper), (np.eye(int(np.prod(graph.output_shape)))[[0]], [offset]))
        tree, truth, bounds = planted(graph, case), least - exact([offset])[0], []
        if tree is None:
            continue
        scattered(tree, judge(graph, case), rng, ticks, bounds.append)
        found = tree.result()
        assert all(not bound > truth for bound in bounds)
        assert bounds == sorted(bounds)
        assert (found.lower > 0) is (truth > 0)
        assert (found.witness is not None) is (truth <= 0)


@pytest.mark.parametrize(("lift", "seed"), [(10, 4), (512, 4), (512, 5)])
def test_the_checker_accepts_the_tree_of_a_scattered_search(ticks, monkeypatch, lift, seed):
    monkeypatch.setattr("certify.bab.search.LIFT_AFTER", lift)
    model = network(seed, {4: (2, 8, 8, 2), 5: (2, 6, 6, 2)}[seed])
    case, bounds = halves(model, -0.15).cases[0], []
    tree = planted(model.graph, case)
    scattered(tree, judge(model.graph, case), np.random.default_rng([72, seed]), ticks, bounds.append)
    found = tree.result()
    assert found.lower > 0
    assert found.left == 0
    least = margins(case, model.graph(samples(case.inputs.lower, case.inputs.upper, 1, 2000))).min()
    assert max(found.lower, *bounds) <= least
    assert tree.loans > 0
    (whole,) = tree.proof().trees
    assert len(whole.unit) > 10
    assert accepted(model, case, tree)


def test_what_the_checker_finds_open_is_reopened_below_a_loan(ticks):
    """The nodes that came from elsewhere are places of the whole tree: their boxes are those of their paths."""
    model = network(5, (2, 6, 6, 2))
    case = halves(model, -0.15).cases[0]
    tree = planted(model.graph, case)
    scattered(tree, judge(model.graph, case), np.random.default_rng(5), ticks)
    (whole,) = tree.proof().trees
    leaves = [node for node in np.unique(whole.entry_node) if whole.unit[node] == NOT_SPLIT]
    tree.reopen(0, leaves)
    assert len(tree.pool) == len(leaves) > 4
    assert tree.result().lower == -np.inf
    scattered(tree, judge(model.graph, case), np.random.default_rng(6), ticks)
    assert tree.result().lower > 0
    assert accepted(model, case, tree)


def test_a_donation_is_dealt_and_counted():
    """Hand and tree get every other bound; open parts and bounds are the same wherever they are."""
    graph = relu_mlp(6, 2, 14, 12, 2)
    box = Box.exact(-np.ones(2), np.ones(2))
    y = graph(samples(box.lower, box.upper, 6, 4000))
    case = case_of(box, (np.eye(2)[:1], [float(y[:, 0].min()) - 0.05]))
    tree = planted(graph, case, SearchOptions(smallest=4, largest=4))
    for _ in range(4):
        tree.advance(np.inf)
    before = tree.result()
    assert before.left >= 4
    (part,) = donate(tree, 1, 1000)
    assert tree.result() == before or (tree.result().lower, tree.result().left) == (before.lower, before.left)
    assert abs(len(part.subs) - len(tree.pool)) <= 1
    assert tree.pool.lower == before.lower
    assert before.lower <= margins(case, y).min()
    tree.lent[part.loan].lower[0] = np.nan
    assert tree.result().lower == -np.inf, "no bound is no bound, wherever it is"
    tree.restore(part.loan)
    assert len(tree.pool) == before.left
    assert not adopt(tree, part.grow(Ground.of(tree), lambda points: None, np.inf))


@pytest.mark.parametrize("name", ["torch.argsort", "certify.bab.subproblem.Subproblems.take"])
def test_a_donation_that_fails_lends_nothing(monkeypatch, name):
    model = network(5, (2, 6, 6, 2))
    tree = planted(model.graph, halves(model, -0.15).cases[0])
    before = tree.result()

    def fails(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(name, fails)
        with pytest.raises(MemoryError):
            donate(tree, 1, 4)
    assert (tree.result().lower, tree.result().left) == (before.lower, before.left)


def test_what_is_sent_is_small(monkeypatch):
    """No views of larger arrays go along; the planes are made where they are used."""
    model = network(4, (2, 40, 40, 2))
    tree = planted(model.graph, halves(model, -0.15).cases[0], SearchOptions())
    monkeypatch.setattr("certify.bab.search.PLANES_AFTER", 0)
    for _ in range(3):
        tree.advance(np.inf)
    assert tree.planes is not None
    (part,) = donate(tree, 1, 1)
    each = sum(
        t.numel() * 4 for kind in (part.subs.boxes, part.subs.slopes, part.subs.multipliers) for t in kind.values()
    )
    assert len(pickle.dumps(part)) < 2 * each + 10_000
    assert Ground.of(tree).planes is None
    assert len(pickle.dumps(Ground.of(tree))) < 200_000
