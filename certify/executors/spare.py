"""Cores with nothing to do, for searches that take long: offered by whoever gives out pieces, taken by who has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

PATIENCE = 1.0  # seconds for the lock, which a killed process may have kept: then there is nothing to be had


class Spare:
    """Two numbers that processes share: how many cores are offered, and how many of them are taken."""

    def __init__(self) -> None:
        self._shared: Any = get_context("spawn").Array("i", 2)

    def offer(self, count: int) -> None:
        """There are so many, of which some may be taken already."""
        with self._numbers() as numbers:
            numbers[0] = count

    def take(self, most: int) -> int:
        """So many of them, at most `most`, are the caller's until it gives them back."""
        with self._numbers() as numbers:
            taken: int = max(0, min(most, numbers[0] - numbers[1]))
            numbers[1] += taken
            return taken

    def give_back(self, count: int) -> None:
        """They are free for others."""
        with self._numbers() as numbers:
            numbers[1] -= count

    @contextmanager
    def _numbers(self) -> Iterator[Any]:
        lock = self._shared.get_lock()
        if not lock.acquire(timeout=PATIENCE):
            yield [0, 0]
            return
        try:
            yield self._shared.get_obj()
        finally:
            lock.release()
