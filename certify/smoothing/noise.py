"""Noise in whole steps of a grid: exact up to a stated error, a function of (seed, sample, purpose, draw) alone.

A draw takes 16 random bits a coordinate and looks them up in a table in which each value stands as often as 2^16 of
its probability holds whole. The few words that are left, 0.4 % for a Gaussian of 64 steps, take 48 bits more and share
out what is missing. So the law is one of multiples of 2^-64, and its total variation distance to the rounded Gaussian
(or uniform) is `Law.error` for each coordinate, which radii deduct. The random bits are SFC64's, taken for fair coins.

All samples share the blocks of draws, each with signs of its own for the coordinates. The laws are symmetric, so every
sample has its law and its certificate fails with probability alpha at most, and any of N with N alpha; the signs leave
different samples' failures little to do with each other, though not independent. A draw costs 0.5 ns a coordinate once
its block is there, and 2 to 3 ns when it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.smoothing.grid import Float32

Words = NDArray[np.uint64]

# Beyond so many standard deviations (less a step) nothing is drawn: of the Gaussian, whatever the step, at most this.
REACH = 8.5
OUTSIDE = 1e-14
# scipy's ndtr is Cephes', whose documentation states a relative error of 3.4e-14 at most below 0.
NDTR_ERROR = 1e-13
# Rows of a block of draws, a part of what the noise is a function of: numbers that stay in a core's cache.
BLOCK_ROWS, BLOCK_NUMBERS = 1024, 2**17

# Bytes of blocks that are kept: 100,000 draws of 784 coordinates take 157 MB.
KEPT = 2**28

SELECTION, ESTIMATION, REPLAY, ATTACK, SIGNS = range(5)


@dataclass(frozen=True, eq=False)
class Law:
    """P(noise <= first + i) = ends[i] / 2^64, and 1 for the last i, which `ends` leaves out.

    error: total variation distance to the law that it stands for, per coordinate.
    """

    first: int
    ends: Words
    error: float

    @staticmethod
    def gaussian(deviation: float) -> Law:
        """N(0, deviation^2), in steps, rounded to whole steps."""
        from scipy.special import ndtr

        most = int(REACH * deviation)
        below = ndtr((np.arange(-most, 0) + 0.5) / deviation)
        lower = (below * 2.0**64).astype(np.uint64)
        ends = np.concatenate([lower, np.uint64(0) - lower[::-1]])
        return Law(-most, ends, float(2 * NDTR_ERROR * below.sum()) + len(ends) * 2.0**-64 + OUTSIDE)

    @staticmethod
    def uniform(most: int) -> Law:
        """The uniform law on [-most - 1/2, most + 1/2], in steps, rounded: every whole number up to `most` alike."""
        size = 2 * most + 1
        ends = np.array([(i << 64) // size for i in range(1, size)], dtype=np.uint64)
        return Law(-most, ends, size * 2.0**-64)

    @cached_property
    def bits(self) -> int:
        """Bits of a table's index: so many that few words are left over."""
        return 16 if len(self.ends) <= 2**13 else 20

    @cached_property
    def _parts(self) -> tuple[Float32, Words]:
        """The table for words of `bits` bits that are not left over, and the ends of the shares in those that are."""
        rest = np.uint64(64 - self.bits)
        # The last part ends at 2^64, which is 0: differences of 64-bit words wrap around.
        masses = np.diff(self.ends, prepend=np.uint64(0), append=np.uint64(0))
        values = np.arange(self.first, self.first + len(masses), dtype=np.float32)
        table: Float32 = np.repeat(values, (masses >> rest).astype(np.int64))
        return table, np.cumsum(masses & ((np.uint64(1) << rest) - np.uint64(1)))[:-1]

    @cached_property
    def left(self) -> int:
        """Words from this on are left over."""
        return len(self._parts[0])

    @cached_property
    def table(self) -> Float32:
        """The noise for the first `bits` of the 64 bits; 0 where the others decide."""
        return np.concatenate([self._parts[0], np.zeros(2**self.bits - self.left, dtype=np.float32)])

    def draw(self, source: np.random.BitGenerator, noise: Float32) -> None:
        """Fills `noise`, which is flat and contiguous."""
        count = len(noise)
        if self.bits == 16:
            words: NDArray[np.unsignedinteger] = source.random_raw(-(-count // 4)).view(np.uint16)[:count]
        else:
            words = source.random_raw(-(-count // 2)).view(np.uint32)[:count] >> np.uint32(32 - self.bits)
        np.take(self.table, words, out=noise, mode="clip")  # clips nothing; the default mode copies once more
        if self.left == 2**self.bits:
            return
        over = np.flatnonzero(words >= words.dtype.type(self.left))
        rest = source.random_raw(len(over)) >> np.uint64(self.bits)
        whole = ((words[over].astype(np.uint64) - np.uint64(self.left)) << np.uint64(64 - self.bits)) | rest
        noise[over] = np.searchsorted(self._parts[1], whole, side="right") + self.first


@dataclass(frozen=True, eq=False)
class Blocks:
    """Draws of `size` coordinates that all samples share, a block at a time; what fits into KEPT bytes is made once."""

    law: Law
    size: int
    seed: int
    kept: dict[tuple[int, int], NDArray[Any]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Draws in a block: a power of 2, so that batches of one divide into blocks."""
        return 1 << (max(1, min(BLOCK_ROWS, BLOCK_NUMBERS // self.size)).bit_length() - 1)

    def block(self, purpose: int, index: int) -> NDArray[Any]:
        """Draws index * rows to (index + 1) * rows, (rows, size), as int16 where that holds them."""
        if (purpose, index) in self.kept:
            return self.kept[purpose, index]
        noise = np.empty((self.rows, self.size), dtype=np.float32)
        self.law.draw(np.random.SFC64(np.random.SeedSequence([self.seed, purpose, index])), noise.reshape(-1))
        made: NDArray[Any] = noise.astype(np.int16) if -self.law.first < 2**15 else noise
        if (len(self.kept) + 1) * made.nbytes <= KEPT:
            self.kept[purpose, index] = made
        return made


@dataclass(frozen=True, eq=False)
class Noise:
    """The draws for one sample and purpose: row i is the same whoever asks, and with whatever other rows."""

    blocks: Blocks
    sample: int
    purpose: int

    @cached_property
    def signs(self) -> Float32:
        """1 or -1 for each coordinate."""
        source = np.random.SFC64(np.random.SeedSequence([self.blocks.seed, SIGNS, self.sample]))
        bits = np.unpackbits(source.random_raw(-(-self.blocks.size // 64)).view(np.uint8))[: self.blocks.size]
        return 2 * bits.astype(np.float32) - 1

    def between(self, start: int, stop: int, out: Float32) -> Iterator[Float32]:
        """Draws start to stop into `out` (stop - start, size); its parts, as soon as they are filled."""
        row, rows = 0, self.blocks.rows
        while row < stop - start:
            index, skipped = divmod(start + row, rows)
            part = out[row : row + rows - skipped]
            part[:] = self.blocks.block(self.purpose, index)[skipped : skipped + len(part)]
            part *= self.signs
            yield part
            row += len(part)

    def draws(self, start: int, stop: int) -> Float32:
        """Draws start to stop, (stop - start, size), in steps of the grid."""
        out = np.empty((stop - start, self.blocks.size), dtype=np.float32)
        for _ in self.between(start, stop, out):
            pass
        return out
