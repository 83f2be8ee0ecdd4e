"""Certificates fail in at most alpha of the runs: classifiers whose smoothed probabilities have a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import ncx2, norm

from certify.smoothing.certify import Budget, certify
from certify.smoothing.grid import Grid
from certify.smoothing.noise import Blocks, Law, Noise
from certify.smoothing.radii import Smoothing
from certify.smoothing.sequential import certify_sequentially, interval, log_wealth

SIGMA, SIZE = 0.25, 4
GRID = Grid(0.0, 1 / 255)
SMOOTHING = Smoothing("gaussian", SIGMA, GRID, SIZE)


class Ball:
    """Class 0 inside the ball of a radius about 0 in SIZE dimensions, at distance `at` from its centre."""

    def __init__(self, radius, at):
        self.border, self.at = radius, at

    def probability(self, at):
        return float(ncx2.cdf((self.border / SIGMA) ** 2, SIZE, (at / SIGMA) ** 2))

    @property
    def radius(self):
        """How far outward class 0 keeps the majority; inward it only gains."""
        return brentq(lambda at: self.probability(at) - 0.5, 0, 10 * self.border) - self.at

    def answers(self, noise):
        moved = noise.copy()
        moved[:, 0] += self.at / GRID.step
        return (np.sum((moved.astype(np.float64) * GRID.step) ** 2, axis=1) > self.border**2).astype(int)


class Half:
    """Class 0 where the coordinates add up to `steps` or less: a half-space, for which the certificate is tight."""

    def __init__(self, steps):
        self.steps, self.radius = steps, (steps + 0.5) * GRID.step / np.sqrt(SIZE)

    def probability(self, at=0.0):
        return float(norm.cdf((self.radius - at) / SIGMA))

    def answers(self, noise):
        return (noise.sum(axis=1) > self.steps).astype(int)


class Sampled:
    """Votes by our noise, through the classifier."""

    def __init__(self, classifier, seed):
        self.classifier, self.seed = classifier, seed

    def __call__(self, purpose, start, stop):
        noise = Noise(Blocks(SMOOTHING.law, SIZE, self.seed), 0, purpose)
        return np.bincount(self.classifier.answers(noise.draws(start, stop)), minlength=2)


CLASSIFIERS = [Half(25), Half(153), Half(306), Ball(1.0, 0.0), Ball(0.7, 0.2)]


def undercuts(classifier, seeds, budget):
    """The share of runs whose radius passes the true one, and the mean radius."""
    radii = []
    for seed in range(seeds):
        found = certify(Sampled(classifier, seed), budget)
        radii.append(SMOOTHING.radius(found.lower, "l2") if found.chosen == 0 else 0.0)
        assert found.chosen != 1 or found.lower <= 0.5 or classifier.probability(getattr(classifier, "at", 0.0)) < 0.5
    return float(np.mean(np.array(radii) > classifier.radius)), float(np.mean(radii))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_few_runs_pass_the_true_radius_and_all_come_near(classifier):
    """alpha 0.05 and 60 runs: more than 11 failures have a probability of 4e-5 even if the bound is tight."""
    failed, mean = undercuts(classifier, 60, Budget(100, 2000, 0.05))
    assert failed <= 11 / 60
    if isinstance(classifier, Half):
        assert mean == pytest.approx(classifier.radius, abs=0.05)
    else:
        assert mean <= classifier.radius


@pytest.mark.long
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_of_a_thousand_runs_at_most_alpha_pass_the_true_radius(classifier):
    """Three standard deviations of a binomial above alpha."""
    alpha, seeds = 0.05, 1000
    failed, mean = undercuts(classifier, seeds, Budget(100, 10_000, alpha))
    print(f"{type(classifier).__name__} {classifier.radius:.4f}: {failed:.4f} of the runs, mean radius {mean:.4f}")
    assert failed <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / seeds)


class Drawn:
    """Votes of a coin with probability p for class 0."""

    def __init__(self, p, seed):
        self.stream = np.random.default_rng([seed, 1]).random(200_000) < p
        self.p = p

    def __call__(self, purpose, start, stop):
        if purpose == 0:
            return np.array([stop - start, 0])
        hits = int(self.stream[start:stop].sum())
        return np.array([hits, stop - start - hits])


def test_the_wealth_is_a_mixture_of_likelihood_ratios():
    """Against quadrature, and its mean over all outcomes is 1 at the true p: nobody gains by betting."""
    q = (np.arange(200_000) + 0.5) / 200_000
    prior = 1 / (np.pi * np.sqrt(q * (1 - q)))
    ratio = (q / 0.3) ** 7 * ((1 - q) / 0.7) ** 3
    assert log_wealth(0.3, 7, 10) == pytest.approx(np.log(np.mean(prior * ratio)), abs=1e-4)
    from scipy.stats import binom

    outcomes = np.arange(41)
    mean = sum(binom.pmf(s, 40, 0.8) * np.exp(log_wealth(0.8, int(s), 40)) for s in outcomes)
    assert mean == pytest.approx(1)


def test_the_bounds_are_where_the_wealth_reaches_its_limit():
    lower, upper = interval(90, 100, 0.01)
    assert lower < 0.9 < upper
    for end in (lower, upper):
        assert log_wealth(end, 90, 100) == pytest.approx(np.log(100), abs=1e-4)
        assert log_wealth(end, 90, 100) >= np.log(100)
    assert interval(50, 50, 0.01)[1] == 1
    assert interval(0, 50, 0.01)[0] == 0


def leaves(p, seeds, alpha, n):
    """The share of runs in which the truth is below the lower bound at any look."""
    failed = 0
    for seed in range(seeds):
        found = certify_sequentially(Drawn(p, seed), Budget(1, n, alpha), lambda lower, upper: lower > p)
        failed += found.lower > p
    return failed / seeds


@pytest.mark.parametrize("p", [0.55, 0.9, 0.999])
def test_looking_after_every_draw_does_not_raise_the_failure_rate(p):
    """Who stops as soon as the bound is wrong gets it wrong in alpha of the runs at most (0.1, 100 runs: 4e-4)."""
    assert leaves(p, 100, 0.1, 3000) <= 0.21


@pytest.mark.long
@pytest.mark.parametrize("p", [0.55, 0.9, 0.999])
def test_of_a_thousand_runs_at_most_alpha_are_ever_wrong(p):
    failed = leaves(p, 1000, 0.05, 20_000)
    print(f"p = {p}: {failed:.4f} of the runs")
    assert failed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize(("p", "certified", "most"), [(0.999, True, 300), (0.97, True, 400), (0.6, False, 400)])
def test_the_question_at_an_eps_takes_few_draws(p, certified, most):
    """Is p above 0.841 (eps = sigma)? The same answers as n = 100,000 draws give, with a fraction of them."""

    def decided(lower, upper):
        return SMOOTHING.certified(lower, SIGMA, "l2") or not SMOOTHING.certified(upper, SIGMA, "l2")

    drawn = []
    for seed in range(20):
        found = certify_sequentially(Drawn(p, seed), Budget(), decided)
        fixed = certify(Drawn(p, seed), Budget())
        assert (
            SMOOTHING.certified(found.lower, SIGMA, "l2") == certified == SMOOTHING.certified(fixed.lower, SIGMA, "l2")
        )
        drawn.append(found.n)
    assert np.median(drawn) <= most


def test_a_question_on_the_edge_ends_at_n():
    found = certify_sequentially(Drawn(0.8413, 0), Budget(1, 1000, 1e-9), lambda lower, upper: lower > 0.8413)
    assert found.n == 1000
    assert found.lower < 0.8413


def test_what_no_draw_can_reach_any_more_is_decided():
    """All draws succeed, and the bound that 1,000 of them could give is told from the first look on."""
    told = []

    def decided(lower, most):
        told.append(most)
        return most < 0.999

    found = certify_sequentially(Drawn(1.0, 0), Budget(1, 1000, 0.001), decided)
    assert found.n == 64
    assert told == [interval(1000, 1000, 0.001)[0]]


def test_the_law_of_the_noise_is_that_of_the_certificate():
    """The probability of a half-space under rounded noise is within its rounding of the Gaussian's."""
    law = Law.gaussian(SIGMA / GRID.step)
    ends = [0, *(int(e) for e in law.ends), 2**64]
    below = ends[-law.first + 20] / 2**64
    assert below == pytest.approx(norm.cdf(19.5 * GRID.step / SIGMA), abs=1e-12)
