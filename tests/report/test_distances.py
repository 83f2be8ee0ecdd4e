"""Quantiles and shares hold wherever in its bracket each distance lies."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from certify.picture import Line
from certify.report.distances import QUANTILES, Distances

BRACKETS = st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.booleans()), min_size=1, max_size=12)


def at(line: Line, radius: float) -> float:
    """The line's height at a radius that is no corner."""
    return [share for r, share in line.corners if r < radius][-1]


def test_by_hand() -> None:
    found = Distances((0.0, 1.0, 2.0, 3.0), (0.0, 1.5, math.inf, 3.5))
    assert found.quantile(0.25) == (0.0, 0.0)
    assert found.quantile(0.5) == (1.0, 1.5)
    assert found.quantile(0.75) == (2.0, 3.5)
    assert found.quantile(1.0) == (3.0, math.inf)
    certified, attacked = found.picture("t", "linf").lines
    assert [at(certified, e) for e in (0.5, 1.2, 2.5, 3.2)] == [0.75, 0.5, 0.25, 0.0]
    assert [at(attacked, e) for e in (0.5, 1.2, 2.5, 3.2)] == [0.75, 0.75, 0.5, 0.5]
    assert found.table().splitlines()[4] == "0.5,1.0,1.5"


@given(BRACKETS, st.integers(0, 2**32 - 1))
def test_the_bracket_of_a_quantile_holds_it(ends: list[tuple[float, float, bool]], seed: int) -> None:
    lower = [min(a, b) for a, b, _ in ends]
    upper = [math.inf if open_ else max(a, b) for a, b, open_ in ends]
    rng = np.random.default_rng(seed)
    true = [rng.uniform(low, min(high, 20)) for low, high in zip(lower, upper, strict=True)]
    found = Distances(tuple(lower), tuple(upper))
    for q in QUANTILES:
        low, high = found.quantile(q)
        value = float(np.quantile(true, q, method="inverted_cdf"))
        assert low <= value <= high
    certified, attacked = found.picture("t", "linf").lines
    for radius in rng.uniform(0, 9, size=8):
        share = float(np.mean(np.array(true) > radius))
        most = found.picture("t", "linf").most
        if radius < most:
            assert at(certified, radius) - 1e-12 <= share <= at(attacked, radius) + 1e-12


def test_no_samples() -> None:
    assert Distances((), ()).quantiles == {}
    assert Distances((), ()).table() == "quantile,lower,upper\n"
    assert "nan" not in Distances((), ()).picture("t", "linf").svg()
