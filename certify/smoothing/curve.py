"""Certified accuracy over the radius, and the average certified radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from certify.picture import Line, Picture, falling


@dataclass(frozen=True)
class Curve:
    """(radius, share of the samples certified at that radius or more), a step at each radius; n samples.

    average: the average certified radius (Zhai et al. 2020, ACR), 0 for samples that are wrong or not certified.
    """

    steps: tuple[tuple[float, float], ...]
    average: float
    n: int

    @staticmethod
    def of(radii: Sequence[float]) -> Curve:
        """From one number per sample: its certified radius, or 0 where the class is wrong or nothing is certified."""
        ordered = sorted(r for r in radii if r > 0)
        n = len(radii)
        steps: dict[float, float] = {}
        for position, radius in enumerate(ordered):
            steps.setdefault(radius, (len(ordered) - position) / n)
        first = {0.0: len(ordered) / n} if n else {}
        return Curve(tuple((first | steps).items()), sum(ordered) / n if n else 0.0, n)

    def at(self, radius: float) -> float:
        """The share certified at `radius`."""
        return next((share for r, share in self.steps if r >= radius), 0.0)

    def csv(self) -> str:
        """radius,certified_accuracy."""
        return "".join(["radius,certified_accuracy\n", *(f"{r!r},{share!r}\n" for r, share in self.steps)])

    def svg(self, title: str, norm: str) -> str:
        """The curve as a picture."""
        most = max((r for r, _ in self.steps), default=0.0)
        radii, shares = [r for r, _ in self.steps], [share for _, share in self.steps]
        steps = list(zip(radii, [*shares[1:], 0.0], strict=False))
        line = Line("certified, at least", falling(steps, shares[0] if shares else 0.0, most))
        return Picture(title, f"{norm} radius", most, (line,)).svg()
