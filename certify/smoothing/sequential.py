"""Bounds of a probability that hold after every draw at once, so that drawing may stop as soon as they decide.

M_n(p) = integral of Beta(1/2, 1/2)(q) q^s (1-q)^(n-s) dq / (p^s (1-p)^(n-s)), s successes of n, is the wealth of who
bets against p with a mixture of strategies: a martingale that begins at 1 if p is true, so it ever reaches 1/alpha
with probability alpha at most (Ville). What it has not reached yet is the confidence sequence. M_n(p) falls in p up to
s / n and rises from there, so that is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from certify.smoothing.certify import Budget, Estimate, Votes, choose
from certify.smoothing.noise import ESTIMATION

# Draws before the first look; looks then come after a quarter more each time.
FIRST, GROWTH = 64, 1.25
# Of the logarithms: sums of log-gammas of n, which are n log n, are off by less than 1e-7 for n = 1e7.
SLACK, SLACK_A_DRAW = 1e-6, 1e-13
HALVINGS = 60


def log_wealth(p: float, successes: int, n: int) -> float:
    """log M_n(p) for 0 < p < 1."""
    failures = n - successes
    mixture = math.lgamma(successes + 0.5) + math.lgamma(failures + 0.5) - math.lgamma(n + 1.0) - math.log(math.pi)
    return mixture - successes * math.log(p) - failures * math.log1p(-p)


def interval(successes: int, n: int, alpha: float) -> tuple[float, float]:
    """The bounds after n draws; with probability 1 - alpha those of all n hold together."""
    limit = SLACK + SLACK_A_DRAW * n - math.log(alpha)
    middle = successes / n

    def bound(excluded: float) -> float:
        """The end of what is excluded, between `excluded` and the share of successes."""
        kept = middle
        for _ in range(HALVINGS):
            p = 0.5 * (excluded + kept)
            if log_wealth(p, successes, n) < limit:
                kept = p
            else:
                excluded = p
        return excluded

    return 0.0 if successes == 0 else bound(0.0), 1.0 if successes == n else bound(1.0)


def certify_sequentially(votes: Votes, budget: Budget, decided: Callable[[float, float], bool]) -> Estimate:
    """CERTIFY with as many draws as `decided(lower, most)` asks for, budget.n at most, at the same alpha.

    most: what the lower bound can still become, by the upper bound of the probability, and if no more draw fails.
    """
    chosen = choose(votes, budget)
    successes, drawn, lower = 0, 0, 0.0
    while drawn < budget.n:
        stop = min(budget.n, max(drawn + FIRST, math.ceil(drawn * GROWTH)))
        successes += int(votes(ESTIMATION, drawn, stop)[chosen])
        drawn = stop
        now, upper = interval(successes, drawn, budget.alpha)
        lower = max(lower, now)
        best = interval(successes + budget.n - drawn, budget.n, budget.alpha)[0]
        if decided(lower, max(lower, min(upper, best))):
            break
    return Estimate(chosen, successes, drawn, lower)
