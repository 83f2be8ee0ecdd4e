"""The neurons that a lean proof bounds: by hand; and what is proved with few of them, or else with all."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from random_nets import relu_mlp
from small_models import network

from certify.bounding.crown import plane, row_form
from certify.bounding.lean import SPENT, fewest
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.certificate.content import CaseProof, Close, Crown
from certify.check.checker import check_many
from certify.check.content import Crown as Step
from certify.check.file import read_certificate
from certify.judge import Asked, judge
from certify.pipeline import decide
from certify.property import Ball, Property
from certify.settings import Settings
from certify.verdict import Verdict


def proved(seed: int, eps: str) -> tuple[object, Property]:
    model = network(seed)
    center = np.full(model.graph.input_shape, 0.4)
    label = int(np.argmax(model.graph(center[None])))
    return model, Property.around(Ball(center, Fraction(eps), "linf", 0.0, 1.0, label, 2))


def test_the_least_costly_are_left_out_until_the_margin_is_spent():
    """Losses |A| (-l u / (u - l) + l' u' / (u' - l')), added up from the least: the first go."""
    graph = relu_mlp(3, 2, 6, 6, 3)
    region = Region(np.full((1, 2), -0.5), np.full((1, 2), 0.5))
    rough, known = (propagate(graph, region, crown=crown) for crown in (False, True))
    found = plane(known, row_form(graph.output, np.eye(3)[None, :2]))
    margin = 0.1
    margins = np.array([[margin, np.inf]])
    (places,) = fewest(rough, known, found.reached, margins)
    losses = []
    for unit, node in enumerate(n for n, a in sorted(found.reached.items())):
        before, after = (k.flat(graph.nodes[node].inputs[0]) for k in (rough, known))
        for j in range(6):
            if before[0][0, j] < 0 < before[1][0, j]:
                ends = [(lower[0, j], upper[0, j]) for lower, upper in (before, after)]
                area = [-a * b / (b - a) if a < 0 < b else 0.0 for a, b in ends]
                losses.append((abs(found.reached[node][0, 0, j]) * (area[0] - area[1]) / margin, unit, j))
    total, kept = 0.0, set()
    for loss, unit, j in sorted(losses):
        total += loss
        if not total < SPENT:
            kept.add((unit, j))
    assert {(u, int(j)) for u, at in places.items() for j in at} == kept
    assert 0 < len(kept) < len(losses)


def test_no_estimate_where_it_means_little():
    """More than three layers of units."""
    graph = relu_mlp(3, 2, 4, 4, 4, 4, 3)
    region = Region(np.full((1, 2), -0.5), np.full((1, 2), 0.5))
    known = propagate(graph, region)
    assert fewest(known, known, {}, np.ones((1, 1))) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_lean_certificate_says_less_and_is_accepted(seed):
    model, prop = proved(seed, "1/20")
    settings = Settings(method="crown", attack=False, device="cpu", timeout=600.0, certificates=True)
    (outcome,) = decide(model, [prop], settings, many=True)
    assert outcome.verdict is Verdict.VERIFIED
    steps = read_certificate(outcome.certificate).cases[0].steps
    crowns = [step for step in steps if isinstance(step, Step)]
    assert all(not step.adaptive and step.places is not None for step in crowns)


def test_a_lean_proof_that_does_not_hold_gives_way_to_the_whole_one(monkeypatch):
    calls = []

    def counted(datas, *arguments, **named):
        calls.append(len(datas))
        return check_many(datas, *arguments, **named)

    monkeypatch.setattr("certify.judge.check_many", counted)
    model, prop = proved(0, "1/20")
    whole = CaseProof((Crown(), Close((0,), (0,), "adaptive")))
    empty = replace(whole, lean=(Close((0,), (0,), "interval"), Crown({}, adaptive=False)))
    nothing = CaseProof((Crown(),), lean=(Crown(),))
    for proof, accepted, times in ((whole, True, [1]), (empty, None, [1]), (nothing, False, [1, 1])):
        calls.clear()
        (found,) = judge(model, [Asked(prop, [proof])])
        assert calls[: len(times)] == times
        assert accepted is None or found.accepted is accepted
