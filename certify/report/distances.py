"""The distribution of n distances of which only brackets are known: what holds wherever in its bracket each one lies.

The k-th smallest distance lies between the k-th smallest lower and the k-th smallest upper end, and the share of
samples farther than eps between the shares of lower and of upper ends that are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from certify.picture import Line, Picture, falling

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class Distances:
    """lower[i] <= distance of sample i <= upper[i]; inf where no witness is known."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def quantile(self, q: float) -> tuple[float, float]:
        """Bracket of the smallest distance that at least the share q of the samples does not exceed."""
        rank = max(1, math.ceil(q * len(self.lower))) - 1
        return sorted(self.lower)[rank], sorted(self.upper)[rank]

    @property
    def quantiles(self) -> dict[float, tuple[float, float]]:
        """The brackets of QUANTILES; {} for no samples."""
        return {q: self.quantile(q) for q in QUANTILES} if self.lower else {}

    def table(self) -> str:
        """quantiles.csv."""
        lines = (f"{q!r},{low!r},{high!r}\n" for q, (low, high) in self.quantiles.items())
        return "quantile,lower,upper\n" + "".join(lines)

    def picture(self, title: str, norm: str) -> Picture:
        """Share of the samples that are still classified as their label on all of the ball, over its radius."""
        most = max((d for d in (*self.lower, *self.upper) if math.isfinite(d)), default=0.0)
        lines = (
            Line("certified, at least", _survival(self.lower, most)),
            Line("under attack, at most", _survival(self.upper, most)),
        )
        return Picture(title, f"eps ({norm})", most, lines, "not known")


def _survival(ends: Sequence[float], most: float) -> tuple[tuple[float, float], ...]:
    """The share of the ends that lie beyond each radius, as steps up to `most`."""
    count = len(ends)
    steps = [(end, (count - 1 - place) / count) for place, end in enumerate(sorted(ends)) if end <= most]
    return falling(steps, 1.0, most)
