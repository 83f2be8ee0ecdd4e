"""What a proof says, in the terms of docs/certificate.md: steps over a case's whole input set, and trees of splits.

Neurons are named (unit, place), units being the network's nonlinear nodes in order. Arrays are numpy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mode = Literal["interval", "adaptive", "parallel"]
STEPS_OF_SLOPES = 255  # slopes of ReLUs are multiples of 1 / 255
NOT_SPLIT, INPUT = -2, -1


@dataclass(frozen=True, eq=False)
class UnitSlopes:
    """at: (U,) places; lower: (S, U), uint8 k meaning k / 255, or floats; upper: (S, U) floats, for sigmoids only."""

    at: Array
    lower: Array
    upper: Array | None = None


SlopeSet = Mapping[int, UnitSlopes]
MultiplierSet = Mapping[int, tuple[Array, Array]]  # unit -> places (U,) and the multipliers (K, U) of K passes


@dataclass(frozen=True, eq=False)
class Crown:
    """Unsettled neurons bounded by CROWN, unit by unit: all, or of each unit the places, where given.

    adaptive: by adaptive passes, too, where a parallel one leaves them unsettled.
    """

    places: Mapping[int, Array] | None = None
    adaptive: bool = True


@dataclass(frozen=True, eq=False)
class Refine:
    """Some neurons (K,) of a unit bounded with chosen slopes, (K, U) or shared (1, U), and multipliers."""

    unit: int
    places: Array
    below: SlopeSet
    above: SlopeSet
    below_multipliers: MultiplierSet = field(default_factory=dict)
    above_multipliers: MultiplierSet = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Close:
    """Polytopes excluded, each by one of its rows, with one way to choose slopes; a SlopeSet has a row for each."""

    polytopes: tuple[int, ...]
    rows: tuple[int, ...]
    slopes: Mode | SlopeSet


Step = Crown | Refine | Close


@dataclass(frozen=True, eq=False)
class SplitTree:
    """A tree of N nodes and E entries, field by field as docs/certificate.md has it.

    entry_slopes: one row an entry; None: adaptive. multipliers: entry, unit, place, value. planes: unit, place, sign.
    sharpenings: entry, plane, beta. caps: entry, unit, place, multiplier, shares.
    """

    polytopes: tuple[int, ...]
    unit: Array
    place: Array
    cut: Array
    child: Array
    renew: Array | None
    entry_node: Array
    entry_polytope: Array
    entry_mix: Array
    entry_slopes: SlopeSet | None = None
    multipliers: tuple[Array, Array, Array, Array] | None = None
    planes: tuple[Array, Array, Array] | None = None
    sharpenings: tuple[Array, Array, Array] | None = None
    caps: tuple[Array, Array, Array, Array, Array] | None = None


@dataclass(frozen=True, eq=False)
class CaseProof:
    """Why one case is safe: every polytope of it is excluded by a step or a tree.

    lean: steps that cost less to check and seem to show the same.
    """

    steps: tuple[Step, ...] = ()
    trees: tuple[SplitTree, ...] = field(default=())
    lean: tuple[Step, ...] = field(default=())

    def then(self, *steps: Step) -> CaseProof:
        """The same with more steps."""
        return CaseProof((*self.steps, *steps), self.trees)


def quantised(slopes: Array) -> Array:
    """ReLU slopes in [0, 1] as the certificate stores them."""
    stored: Array = np.rint(np.clip(slopes, 0, 1) * STEPS_OF_SLOPES).astype(np.uint8)
    return stored
