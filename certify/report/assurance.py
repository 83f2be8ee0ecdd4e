"""What the certified samples of a run rest on: the checker's word, at which level, at what cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from certify.options import ARITHMETICS
from certify.store import SampleResult
from certify.verdict import CHECK_STAGE, Verdict


@dataclass(frozen=True)
class Assurance:
    """Counts of verified (sample, eps) pairs, by what vouches for them.

    checked: certificates that the independent checker accepted; float32: those of them that hold for every float32
    execution, too. unchecked: the search alone. solver: a MIP solver alone. check_seconds, solve_seconds: of all
    results. median_bytes, largest_bytes: of the certificates.
    """

    checked: int = 0
    float32: int = 0
    unchecked: int = 0
    solver: int = 0
    check_seconds: float = 0.0
    solve_seconds: float = 0.0
    median_bytes: int = 0
    largest_bytes: int = 0

    @staticmethod
    def of(results: Iterable[SampleResult]) -> Assurance:
        """Of a run's results."""
        outcomes = [result.outcome for result in results]
        levels = [o.checked for o in outcomes if o.verdict is Verdict.VERIFIED]
        sizes = [o.certificate_bytes for o in outcomes if o.certificate_bytes]
        spent = [(stage, s) for o in outcomes for stage, s in o.seconds.items()]
        return Assurance(
            checked=sum(level in ARITHMETICS for level in levels),
            float32=levels.count("float32"),
            unchecked=levels.count(""),
            solver=levels.count("solver"),
            check_seconds=sum(s for stage, s in spent if stage == CHECK_STAGE),
            solve_seconds=sum(s for stage, s in spent if stage != CHECK_STAGE),
            median_bytes=int(median(sizes)) if sizes else 0,
            largest_bytes=max(sizes, default=0),
        )

    def sentence(self) -> str:
        """One line for people; "" where nothing is verified."""
        parts = []
        if self.checked:
            parts.append(
                f"{self.checked} checked by the independent checker in real arithmetic "
                f"({self.float32} of them hold in float32 too)"
            )
        parts += self.doubts()
        if not parts:
            return ""
        text = f"certified: {', '.join(parts)}"
        if self.checked:
            text += (
                f"; checking {self.check_seconds:.1f} s beside {self.solve_seconds:.1f} s of solving, "
                f"certificates {_size(self.median_bytes)} in the median, {_size(self.largest_bytes)} at most"
            )
        return text

    def doubts(self) -> list[str]:
        """How many of them rest on something else than the checker's word, and on what."""
        parts = [(self.unchecked, "unchecked"), (self.solver, "on a MIP solver's word only")]
        return [f"{count} {what}" for count, what in parts if count]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
