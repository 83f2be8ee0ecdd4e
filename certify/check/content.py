"""What a certificate says, as read from its file: frozen values in the terms of docs/certificate.md, and nothing else.

Everything here has been validated by certify.check.file as far as that can be done without the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Index = NDArray[np.int64]
Bools = NDArray[np.bool_]
Mode = Literal["interval", "adaptive", "parallel"]
NOT_SPLIT, INPUT = -2, -1  # of Tree.unit


@dataclass(frozen=True, eq=False)
class UnitSlopes:
    """at: (U,) distinct places; lower: (S, U) in [0, 1]; upper: (S, U) in [0, 1/4] or None (only sigmoids have it)."""

    at: Index
    lower: Float64
    upper: Float64 | None


Slopes = dict[int, UnitSlopes]


@dataclass(frozen=True, eq=False)
class Crown:
    """Unsettled neurons of the units (None: all) bounded by CROWN; of the places only, where given.

    adaptive: those that one parallel pass leaves unsettled by one adaptive pass a side, too.
    """

    units: tuple[int, ...] | None = None
    places: dict[int, Index] | None = None
    adaptive: bool = True


@dataclass(frozen=True, eq=False)
class Refine:
    """The neurons `places` (K,) of a unit bounded with slopes for K forms, or one for all.

    Multipliers, for the passes below and above: unit -> places (U,), values (K, U).
    """

    unit: int
    places: Index
    below: Slopes
    above: Slopes
    below_multipliers: dict[int, tuple[Index, Float64]]
    above_multipliers: dict[int, tuple[Index, Float64]]


@dataclass(frozen=True, eq=False)
class Close:
    """Row rows[k] of polytope polytopes[k] bounded from below: positive excludes it."""

    polytopes: tuple[int, ...]
    rows: tuple[int, ...]
    slopes: Mode | Slopes


Step = Crown | Refine | Close


@dataclass(frozen=True, eq=False)
class Tree:
    """Splits that exclude `polytopes`: N nodes, E entries, M multipliers, P planes, Q sharpenings; empty where
    there are none. Parents come before their children, entry_node ascends; entry_slopes has a row for each entry.
    cap_share: (K, n) uint8, k meaning k / 255; a tree with caps renews nothing.
    """

    polytopes: tuple[int, ...]
    unit: Index
    place: Index
    cut: Float64
    child: Index
    renew: Bools
    entry_node: Index
    entry_polytope: Index
    entry_mix: Float64
    entry_slopes: Slopes | None
    multiplier_entry: Index
    multiplier_unit: Index
    multiplier_place: Index
    multiplier: Float64
    plane_unit: Index
    plane_place: Index
    plane_sign: Index
    sharpen_entry: Index
    sharpen_plane: Index
    sharpen_beta: Float64
    cap_entry: Index
    cap_unit: Index
    cap_place: Index
    cap_multiplier: Float64
    cap_share: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Proof:
    """Why one case is safe."""

    steps: tuple[Step, ...]
    trees: tuple[Tree, ...]


@dataclass(frozen=True, eq=False)
class Ball:
    """No x with |x - center|_norm <= eps and low <= x <= high (or infinite) gets another class than `label`."""

    center: Float64
    norm: Literal["linf", "l2", "l1"]
    eps: Fraction
    low: float
    high: float
    label: int
    classes: int


@dataclass(frozen=True, eq=False)
class Polytope:
    """{y : coeff y <= offset}: (R, m), (R,), R >= 1."""

    coeff: Float64
    offset: Float64


@dataclass(frozen=True, eq=False)
class Case:
    """No x with lower <= x <= upper, (n,), is mapped into any of the polytopes."""

    lower: Float64
    upper: Float64
    polytopes: tuple[Polytope, ...]


@dataclass(frozen=True, eq=False)
class Cases:
    """All cases hold; sha256 of the VNN-LIB file that says so, if there is one."""

    sha256: str | None
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Before:
    """What goes before the network: (x - mean) / std, one number or one per channel, and (C, H, W) to (H, W, C)."""

    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    layout: Literal["nhwc"] | None = None


@dataclass(frozen=True, eq=False)
class Certificate:
    """The whole file."""

    model_sha256: str
    before: Before
    softmax: Literal["dropped", "kept"]
    property: Ball | Cases
    units: tuple[int, ...]
    cases: tuple[Proof, ...]
