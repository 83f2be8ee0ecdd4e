"""A deadline makes bounds looser, never wrong and never late."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from certify.bounding.margins import Networks, prove
from certify.bounding.propagate import bound_neurons, propagate
from certify.bounding.region import Region
from certify.frontends.torch_import import graph_from_torch
from certify.property import Box, Case, misclassification


@pytest.fixture
def nets() -> Networks:
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.ReLU(),
    ]
    module = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * 64, 3)).double()
    return Networks.of(graph_from_torch(module, torch.zeros(1, 1, 8, 8, dtype=torch.float64)), torch.device("cpu"))


def region_of(x: torch.Tensor) -> Region:
    flat = x.reshape(len(x), -1).detach()
    return Region(flat - 0.05, flat + 0.05)


def test_after_the_deadline_propagation_is_by_intervals_alone(nets: Networks) -> None:
    region = region_of(torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        late = propagate(nets.exact, region, draft=nets.draft, deadline=time.monotonic() - 1)
        plain = propagate(nets.exact, region, crown=False)
        full = propagate(nets.exact, region, draft=nets.draft)
    for index in range(len(nets.exact.nodes)):
        assert all(torch.equal(a, b) for a, b in zip(late.flat(index), plain.flat(index), strict=True))
    assert (full.flat(3)[1] - full.flat(3)[0]).sum() < (plain.flat(3)[1] - plain.flat(3)[0]).sum()


def test_a_late_pass_brings_no_news(nets: Networks) -> None:
    region = region_of(torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        known = propagate(nets.exact, region, crown=False)
        lower, upper = bound_neurons(known, 3, torch.arange(4).expand(2, 4), deadline=-math.inf)
    assert torch.isneginf(lower).all()
    assert torch.isposinf(upper).all()


def test_margins_after_the_deadline_are_those_of_ibp(nets: Networks) -> None:
    box = Box.exact(np.zeros((1, 8, 8)), np.full((1, 8, 8), 0.1))
    cases = [Case(box, misclassification(label, 3)) for label in range(3)]
    late = prove(nets, cases, "alpha-crown", deadline=time.monotonic() - 1)
    ibp = prove(nets, cases, "ibp")
    assert [p.lower for p in late] == [p.lower for p in ibp]
