"""Open subproblems, the one with the lowest bound first; the deepest first once memory is short."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import torch

from certify.bab.subproblem import Subproblems, join


class Pool:
    """Subproblems kept as they came, in chunks, with a heap of (bound, chunk, row, depth) over them.

    A call that fails, for want of memory say, loses none of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most  # subproblems above which the search goes depth-first
        self._heap: list[tuple[float, int, int, int]] = []
        self._chunks: dict[int, Subproblems] = {}
        self._next = 0
        self._held = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def lower(self) -> float:
        """The lowest bound of what is open; inf if nothing is."""
        return self._heap[0][0] if self._heap else math.inf

    def push(self, subs: Subproblems) -> None:
        """Add subproblems; NaN bounds count as -inf."""
        if not len(subs):
            return
        bounds = torch.nan_to_num(subs.lower, nan=-math.inf, posinf=math.inf, neginf=-math.inf).tolist()
        self._chunks[self._next] = subs
        for row, (lower, depth) in enumerate(zip(bounds, subs.depth.tolist(), strict=True)):
            heapq.heappush(self._heap, (lower, self._next, row, depth))
        self._next += 1
        self._held += len(subs)

    def pop(self, count: int) -> Subproblems:
        """Up to `count` subproblems, taken out."""
        if self._held > 2 * len(self._heap) + 256:
            self._compact()
        count = min(count, len(self._heap))
        if len(self._heap) > self.most:
            first = heapq.nlargest(count, self._heap, key=lambda entry: (entry[3], entry[0]))
            taken = set(first)
            rest = [entry for entry in self._heap if entry not in taken]
            heapq.heapify(rest)
        else:
            rest = self._heap.copy()
            first = [heapq.heappop(rest) for _ in range(count)]
        found = self._rows(first)
        self._heap = rest
        return found

    def _rows(self, entries: Sequence[tuple[float, int, int, int]]) -> Subproblems:
        rows: dict[int, list[int]] = {}
        for _, chunk, row, _ in entries:
            rows.setdefault(chunk, []).append(row)
        return join([self._chunks[c].take(torch.as_tensor(r)) for c, r in rows.items()])

    def _compact(self) -> None:
        """Let go of what has been taken out."""
        kept = [self._rows(self._heap)] if self._heap else []
        self._heap, self._chunks, self._held = [], {}, 0
        for subs in kept:
            self.push(subs)
