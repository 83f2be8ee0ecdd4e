"""Open subproblems, the one with the lowest bound first; the deepest first once memory is short."""

from __future__ import annotations

import heapq
import math

import torch

from certify.bab.subproblem import Subproblems, join


class Pool:
    """Subproblems kept as they came, in chunks, with a heap of (bound, chunk, row) over them."""

    def __init__(self, most: int) -> None:
        self.most = most  # subproblems above which the search goes depth-first
        self._heap: list[tuple[float, int, int]] = []
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
        for row, lower in enumerate(torch.nan_to_num(subs.lower, nan=-math.inf, neginf=-math.inf).tolist()):
            heapq.heappush(self._heap, (lower, self._next, row))
        self._chunks[self._next] = subs
        self._next += 1
        self._held += len(subs)

    def pop(self, count: int) -> Subproblems:
        """Up to `count` subproblems, taken out."""
        count = min(count, len(self._heap))
        if len(self._heap) > self.most:
            deepest = heapq.nlargest(count, self._heap, key=lambda entry: (entry[1], entry[0]))
            taken = set(deepest)
            self._heap = [entry for entry in self._heap if entry not in taken]
            heapq.heapify(self._heap)
        else:
            deepest = [heapq.heappop(self._heap) for _ in range(count)]
        rows: dict[int, list[int]] = {}
        for _, chunk, row in deepest:
            rows.setdefault(chunk, []).append(row)
        found = join([self._chunks[c].take(torch.as_tensor(r)) for c, r in rows.items()])
        if self._held > 2 * len(self._heap) + 256:
            self._compact()
        return found

    def _compact(self) -> None:
        """Let go of what has been taken out."""
        rows: dict[int, list[int]] = {}
        for _, chunk, row in self._heap:
            rows.setdefault(chunk, []).append(row)
        parts = [self._chunks[c].take(torch.as_tensor(r)) for c, r in rows.items()]
        self._heap, self._chunks, self._held = [], {}, 0
        if parts:
            self.push(join(parts))
