"""Open boxes of a search, as arrays: which are taken next, and what the lowest bound is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.property import Float64


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes. lower, upper: (N, n). margins: (N, P), certified lower bounds of each polytope's margin so far; > 0:
    excluded. node: (N,), their numbers in the search's log.
    """

    lower: Float64
    upper: Float64
    margins: Float64
    node: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Boxes:
        return Boxes(self.lower[rows], self.upper[rows], self.margins[rows], self.node[rows])

    @property
    def bound(self) -> Float64:
        """(N,): the lowest of each box's margins."""
        lowest: Float64 = self.margins.min(axis=1)
        return lowest

    @staticmethod
    def join(*parts: Boxes) -> Boxes:
        return Boxes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Boxes)))


class Frontier:
    """Open boxes; the ones with the lowest bounds come first, or, above `most` boxes, those nearest to closing."""

    def __init__(self, boxes: Boxes, most: int) -> None:
        self._boxes, self.most = boxes, most

    def __len__(self) -> int:
        return len(self._boxes)

    @property
    def lower(self) -> float:
        """The lowest bound of an open box; inf if there is none."""
        return float(self._boxes.bound.min()) if len(self._boxes) else np.inf

    def push(self, boxes: Boxes) -> None:
        """Add boxes."""
        if len(boxes):
            self._boxes = Boxes.join(self._boxes, boxes) if len(self._boxes) else boxes

    def pop(self, count: int) -> Boxes:
        """Up to `count` boxes, taken out."""
        if count >= len(self._boxes):
            taken, self._boxes = self._boxes, self._boxes[:0]
            return taken
        order = self._boxes.bound if len(self._boxes) <= self.most else -self._boxes.bound
        place = np.argpartition(order, count)
        # In the order of their pushing, so that a batch does not depend on how the partition works.
        taken = self._boxes[np.sort(place[:count])]
        self._boxes = self._boxes[np.sort(place[count:])]
        return taken
