"""PREDICT and CERTIFY of Cohen et al. 2019: draws choose a class, fresh draws bound its probability from below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from certify.errors import UsageError
from certify.smoothing.noise import ESTIMATION, REPLAY, SELECTION
from certify.smoothing.radii import ABSTAIN, lower_confidence

Counts = NDArray[np.int64]


class Votes(Protocol):
    """How often each class was answered in the draws `start` to `stop` of a purpose; answers that are not finite count
    for none."""

    def __call__(self, purpose: int, start: int, stop: int) -> Counts: ...


@dataclass(frozen=True)
class Budget:
    """n0 draws choose, n (at most, if sequential) estimate; each certificate fails with probability alpha at most."""

    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        for name in ("n0", "n"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give at least 1")
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha {self.alpha}: give a probability between 0 and 1, such as 0.001")

    @property
    def best(self) -> float:
        """The bound of n draws that all answer the same class (no sequential bound passes it)."""
        return float(self.alpha ** (1 / self.n))


@dataclass(frozen=True)
class Estimate:
    """`lower` bounds the probability of the class `chosen`, which `successes` of n draws answered, from below.

    Where lower leaves a radius above 0 (Smoothing.radius), `chosen` is the smoothed class; else CERTIFY abstains.
    """

    chosen: int
    successes: int
    n: int
    lower: float


def choose(votes: Votes, budget: Budget) -> int:
    """The class that n0 draws answer most often, the first of equals."""
    return int(np.argmax(votes(SELECTION, 0, budget.n0)))


def certify(votes: Votes, budget: Budget) -> Estimate:
    """CERTIFY: the estimate of n draws; its radius is Smoothing.radius(estimate.lower)."""
    chosen = choose(votes, budget)
    successes = int(votes(ESTIMATION, 0, budget.n)[chosen])
    return Estimate(chosen, successes, budget.n, lower_confidence(successes, budget.n, budget.alpha))


def predict(votes: Votes, n: int, alpha: float, purpose: int = REPLAY) -> int:
    """PREDICT: the smoothed class, wrong with probability alpha at most, or ABSTAIN (two-sided binomial test)."""
    from scipy.stats import binomtest

    counts = votes(purpose, 0, n)
    second, first = np.argsort(counts, kind="stable")[-2:]
    most, next_most = int(counts[first]), int(counts[second])
    if most == 0 or binomtest(most, most + next_most, 0.5).pvalue > alpha:
        return ABSTAIN
    return int(first)
