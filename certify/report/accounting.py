"""Counts of a run: clean accuracy >= attacked upper bound >= true robust accuracy >= certified lower bound.

Two numbers stay apart. The *verification gap* is what attack and proof leave open about these n samples: it is
exact and says nothing about others. The *Clopper-Pearson interval* says what n random samples tell about the
population: it would stay if the gap were zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from certify.options import Radius
from certify.store import SampleResult
from certify.verdict import Verdict

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Bracket:
    """Every one of the n samples is in exactly one of the six counts.

    misclassified: falsified at distance 0. falsified: correctly classified, with a witness. certified: verified.
    unknown: neither. errors: could not run; not certified and not falsified. pending: not run yet.
    """

    eps: Radius
    n: int
    misclassified: int = 0
    falsified: int = 0
    certified: int = 0
    unknown: int = 0
    errors: int = 0
    pending: int = 0

    def __post_init__(self) -> None:
        counts = (self.misclassified, self.falsified, self.certified, self.unknown, self.errors, self.pending)
        assert min(counts) >= 0, f"a count is negative: {counts}"
        assert sum(counts) == self.n, f"{counts} do not add up to {self.n} samples"

    @property
    def clean(self) -> int:
        """Samples not known to be misclassified."""
        return self.n - self.misclassified

    @property
    def attacked(self) -> int:
        """Samples without a witness: no fewer than the truly robust ones."""
        return self.clean - self.falsified

    @property
    def gap(self) -> int:
        """The verification gap: samples neither certified nor falsified."""
        return self.attacked - self.certified

    @property
    def decided(self) -> int:
        """Samples with a verdict."""
        return self.misclassified + self.falsified + self.certified

    def rate(self, count: int) -> float:
        """count / n; 0 for no samples."""
        return count / self.n if self.n else 0.0

    def population(self, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Clopper-Pearson interval for the population's rate, the n samples being a random draw; (0, 1) for n = 0."""
        from statsmodels.stats.proportion import proportion_confint

        if not self.n:
            return 0.0, 1.0
        low, high = proportion_confint(count, self.n, alpha=1 - confidence, method="beta")
        return float(low), float(high)


def bracket(eps: Radius, n: int, counts: Mapping[tuple[Verdict, bool], int]) -> Bracket:
    """The bracket of n samples from (verdict, decided in the clean stage?) -> number; what is missing is pending."""

    def total(verdict: Verdict) -> int:
        return counts.get((verdict, False), 0) + counts.get((verdict, True), 0)

    return Bracket(
        eps,
        n,
        misclassified=counts.get((Verdict.FALSIFIED, True), 0),
        falsified=counts.get((Verdict.FALSIFIED, False), 0),
        certified=total(Verdict.VERIFIED),
        unknown=total(Verdict.UNKNOWN),
        errors=total(Verdict.ERROR),
        pending=n - sum(counts.values()),
    )


def stage_seconds(results: Iterable[SampleResult]) -> dict[str, float]:
    """Stage -> wall seconds over all results; the clean stage, shared by all radii, counts once per sample."""
    seconds: dict[str, float] = {}
    clean: dict[int, float] = {}
    for result in results:
        for stage, spent in result.outcome.seconds.items():
            if stage == "clean":
                clean[result.id] = spent
            else:
                seconds[stage] = seconds.get(stage, 0.0) + spent
    return ({"clean": sum(clean.values())} if clean else {}) | seconds
