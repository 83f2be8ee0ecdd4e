"""Radii: Cohen's rule to the printed digit, closed forms, conversions, and what no noise can do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from certify.errors import UsageError
from certify.smoothing.certify import Budget, certify, predict
from certify.smoothing.grid import Grid
from certify.smoothing.limit import linf_limit
from certify.smoothing.radii import (
    ABSTAIN,
    ROUNDING,
    Smoothing,
    convert,
    gaussian_radius,
    lower_confidence,
    uniform_radius,
)

# locuslab/smoothing, CIFAR-10, ResNet-110, n = 100,000, as printed (three significant digits): the largest radii of
# the log are those of 0, 1, 2, ... draws that answer another class. sigma 0.12 at alpha 0.001; the log at 0.25 has the
# radii of alpha 0.01.
LOG_012 = "0.457 0.449 0.443 0.438 0.434 0.431 0.428 0.425 0.423 0.421 0.419 0.417 0.415"
LOG_025 = "0.978 0.955 0.941 0.929 0.92"


# Further radii that these logs print, and the smallest, next to their abstentions.
MORE_012 = (
    "0.412 0.41 0.405 0.399 0.398 0.397 0.392 0.391 0.389 0.387 0.381 0.379 0.377 0.375 0.371 0.369 0.368 0.359 0.357"
)
MORE_025 = "0.906 0.894 0.889 0.88 0.873 0.866 0.863 0.859 0.849 0.844 0.831 0.824 0.821 0.817 0.811 0.806 0.802 0.793"
SMALL_012 = "0.000998 0.00218 0.0034 0.00422 0.00457"
SMALL_025 = "0.00256 0.00299 0.00316 0.00494 0.01"


class Fixed:
    """Votes with given counts for each purpose."""

    def __init__(self, *counts):
        self.counts = counts

    def __call__(self, purpose, start, stop):
        return np.array(self.counts[min(purpose, len(self.counts) - 1)])


@pytest.mark.parametrize(("sigma", "alpha", "printed"), [(0.12, 0.001, LOG_012), (0.25, 0.01, LOG_025)])
def test_counts_give_the_radii_of_the_published_logs(sigma, alpha, printed):
    n = 100_000
    found = [gaussian_radius(lower_confidence(n - k, n, alpha), sigma) for k in range(len(printed.split()))]
    assert [f"{r:.3g}" for r in found] == printed.split()


@pytest.mark.parametrize(
    ("sigma", "alpha", "printed"), [(0.12, 0.001, MORE_012 + " " + SMALL_012), (0.25, 0.01, MORE_025 + " " + SMALL_025)]
)
def test_every_radius_of_the_published_logs_is_some_count_s(sigma, alpha, printed):
    """Counts from all down to the first abstention; ours is never above theirs."""
    n = 100_000
    smoothing = Smoothing("gaussian", sigma, Grid(0.0, 1 / 255), 3072)
    found = {}
    for k in [*range(300), *range(47_900, 49_700)]:
        p = lower_confidence(n - k, n, alpha)
        theirs = gaussian_radius(p, sigma)
        ours = smoothing.radius(p, "l2")
        assert theirs - 5e-5 < ours <= theirs
        found.setdefault(f"{theirs:.3g}", f"{ours:.3g}")
    assert found["0"] == "0"
    for radius in printed.split():
        assert found[radius] in (radius, f"{float(radius) - 10.0 ** (np.floor(np.log10(float(radius))) - 2):.3g}")


def test_clopper_pearson_is_the_probability_at_which_so_many_successes_are_rare():
    p = lower_confidence(990, 1000, 0.001)
    assert binom.sf(989, 1000, p) == pytest.approx(0.001)
    assert lower_confidence(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000))
    assert lower_confidence(0, 1000, 0.001) == 0


@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.5, 0.95])
@pytest.mark.parametrize("n", [1, 7, 1000, 100_000])
def test_the_bound_is_never_above_the_probability_that_it_stands_for(n, alpha):
    """P(at least s successes) at the bound less its rounding is at most alpha."""
    for s in {1, n // 2 + 1, n - 1, n} - {0}:
        p = lower_confidence(s, n, alpha) - ROUNDING
        assert p <= 0 or binom.sf(s - 1, n, p) <= alpha * (1 + 1e-12)


def test_certify_chooses_with_some_draws_and_estimates_with_others():
    found = certify(Fixed([60, 40], [700, 300]), Budget(100, 1000, 0.001))
    assert (found.chosen, found.successes) == (0, 700)
    assert found.lower == lower_confidence(700, 1000, 0.001)
    # The class that wins the estimation is not the chosen one: abstain, as Cohen et al. do.
    lost = certify(Fixed([60, 40], [300, 700]), Budget(100, 1000, 0.001))
    assert lost.chosen == 0
    assert lost.lower < 0.5
    near = certify(Fixed([60, 40], [540, 460]), Budget(100, 1000, 0.001))
    assert near.lower < 0.5


def test_predict_is_the_two_sided_binomial_test_of_the_first_two():
    assert predict(Fixed([20, 80, 0]), 100, 0.001) == 1
    assert predict(Fixed([45, 55, 0]), 100, 0.001) == ABSTAIN
    assert predict(Fixed([0, 0, 0]), 100, 0.001) == ABSTAIN
    # 10 to 0: p = 2^-9; with 11, 2^-10 < 0.001.
    assert predict(Fixed([10, 0, 0]), 10, 0.001) == ABSTAIN
    assert predict(Fixed([11, 0, 0]), 11, 0.001) == 0


@pytest.mark.parametrize("values", [{"n0": 0}, {"n": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"alpha": float("nan")}])
def test_a_budget_that_cannot_be_is_refused(values):
    with pytest.raises(UsageError, match="--"):
        Budget(**values)


def test_conversions_are_of_the_largest_ball_inside():
    """A corner of the Linf ball, an axis and a diagonal of the others lie on the native ball's border."""
    d = 9
    assert convert(1.0, "l2", "linf", d) * np.sqrt(d) == pytest.approx(1)
    assert convert(1.0, "l2", "l1", d) == 1
    assert convert(1.0, "l1", "linf", d) * d == pytest.approx(1)
    assert convert(1.0, "l1", "l2", d) * np.sqrt(d) == pytest.approx(1)


def test_a_radius_deducts_the_way_to_the_grid_and_the_noise_s_error():
    smoothing = Smoothing("gaussian", 0.25, Grid(0.0, 1 / 255), 784)
    ideal = 0.25 * norm.ppf(0.9)
    assert ideal - 1e-6 < smoothing.radius(0.9, "l2") < ideal
    assert smoothing.radius(0.9, "l2", away=0.1) == pytest.approx(ideal - 0.1, abs=1e-6)
    assert smoothing.radius(0.9, "linf") == pytest.approx(ideal / 28, abs=1e-6)
    assert smoothing.radius(0.5, "l2") == 0
    assert not smoothing.certified(0.5, 0.0, "l2")
    assert smoothing.certified(0.5001, 0.0, "l2")
    assert smoothing.certified(0.9, 0.32, "l2")
    assert not smoothing.certified(0.9, 0.33, "l2")
    with pytest.raises(UsageError, match="above 0"):
        Smoothing("gaussian", 0.0, Grid(0.0, 1.0), 1)


def test_the_uniform_radius_is_that_of_a_half_space():
    """In one coordinate, 1 for x + U[-lambda, lambda] > 0: p(x) = 1/2 + x / 2 lambda, so x itself is the radius."""
    smoothing = Smoothing("uniform", 0.25, Grid(0.0, 1 / 255), 1)
    half = smoothing.half_width
    assert half == pytest.approx(np.sqrt(3) * 0.25, abs=0.5 / 255)
    assert uniform_radius(0.5 + 0.1 / (2 * half), half) == pytest.approx(0.1)
    assert smoothing.radius(0.5 + 0.1 / (2 * half), "l1") == pytest.approx(0.1)
    assert smoothing.law.ends.shape == (2 * round(half * 255 - 0.5),)
    assert smoothing.deviation == pytest.approx(half / np.sqrt(3))
    assert Smoothing("gaussian", 0.25, Grid(0.0, 1 / 255), 1).deviation == 0.25


@pytest.mark.parametrize("size", [1, 100, 3072])
def test_no_noise_of_ours_passes_the_limit(size):
    for p in (0.51, 0.6, 0.75, 0.9, 0.99, 0.9999):
        limit = linf_limit(p, 0.25, size)
        assert convert(gaussian_radius(p, 0.25), "l2", "linf", size) <= limit
        assert convert(uniform_radius(p, 0.25 * np.sqrt(3)), "l1", "linf", size) <= limit


def test_the_limit_is_reached_by_three_points():
    """Noise -a, 0, a with 1 - p at both ends, p = 3/4: a half-space that has p here has the majority up to a."""
    p, sigma = 0.75, 1.0
    a = sigma / np.sqrt(2 * (1 - p))
    noise = np.array([-a, 0, a]), np.array([1 - p, 2 * p - 1, 1 - p])
    assert noise[1] @ noise[0] ** 2 == pytest.approx(sigma**2)
    assert linf_limit(p, sigma, 1) == pytest.approx(a)
    assert linf_limit(0.9, 0.25, 3072) == pytest.approx(0.25 / np.sqrt(614.4))
