"""What a certificate says, as read from its file: frozen values in the terms of docs/certificate.md, and nothing else.

Everything here has been validated by certify.check.file as far as that can be done without the network; a Rule says
what an array must be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Index = NDArray[np.int64]
Bools = NDArray[np.bool_]
Mode = Literal["interval", "adaptive", "parallel"]
NOT_SPLIT, INPUT = -2, -1  # of Tree.unit


@dataclass(frozen=True)
class Rule:
    """What an array must be. kind: i(ntegers), f(loats), b(ooleans), u(int8), s(lopes: floats, or uint8 k for k / 255).

    shape: a letter for the length of each axis; None: any shape. low, high: of its numbers; a name: less than its size.
    """

    kind: Literal["i", "f", "b", "u", "s"]
    shape: str | None = None
    low: float = -math.inf
    high: float | str = math.inf


def rules(of: type, prefix: str = "") -> dict[str, Rule]:
    """What the arrays of a class must be whose names begin so, by the rest of their names."""
    hints = get_type_hints(of, include_extras=True)
    ruled = {name: hint for name, hint in hints.items() if get_origin(hint) is Annotated}
    return {n.removeprefix(prefix): hint.__metadata__[0] for n, hint in ruled.items() if n.startswith(prefix)}


@dataclass(frozen=True, eq=False)
class UnitSlopes:
    """at: (U,) distinct places; lower: (S, U) in [0, 1]; upper: (S, U) in [0, 1/4] or None (only sigmoids have it)."""

    at: Annotated[Index, Rule("i", "U", 0, "unit")]
    lower: Annotated[Float64, Rule("s", "SU", 0, 1)]
    upper: Annotated[Float64 | None, Rule("f", "SU", 0, 0.25)]


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
    unit: Annotated[Index, Rule("i", "N", NOT_SPLIT, "units")]
    place: Annotated[Index, Rule("i", "N")]
    cut: Annotated[Float64, Rule("f", "N")]
    child: Annotated[Index, Rule("i", "N")]
    renew: Annotated[Bools, Rule("b", "N")]
    entry_node: Annotated[Index, Rule("i", "E", 0, "N")]
    entry_polytope: Annotated[Index, Rule("i", "E", 0, "polytopes")]
    entry_mix: Annotated[Float64, Rule("f", "ER", 0)]
    entry_slopes: Slopes | None
    multiplier_entry: Annotated[Index, Rule("i", "M", 0, "E")]
    multiplier_unit: Annotated[Index, Rule("i", "M", 0, "units")]
    multiplier_place: Annotated[Index, Rule("i", "M")]
    multiplier: Annotated[Float64, Rule("f", "M")]
    plane_unit: Annotated[Index, Rule("i", "P", 0, "units")]
    plane_place: Annotated[Index, Rule("i", "P")]
    plane_sign: Annotated[Index, Rule("i", "P", -1, 1)]
    sharpen_entry: Annotated[Index, Rule("i", "Q", 0, "E")]
    sharpen_plane: Annotated[Index, Rule("i", "Q", 0, "P")]
    sharpen_beta: Annotated[Float64, Rule("f", "Q", 0)]
    cap_entry: Annotated[Index, Rule("i", "K", 0, "E")]
    cap_unit: Annotated[Index, Rule("i", "K", 0, "units")]
    cap_place: Annotated[Index, Rule("i", "K")]
    cap_multiplier: Annotated[Float64, Rule("f", "K", 0)]
    cap_share: Annotated[NDArray[np.uint8], Rule("u", "Kn")]


@dataclass(frozen=True, eq=False)
class Proof:
    """Why one case is safe."""

    steps: tuple[Step, ...]
    trees: tuple[Tree, ...]

    @property
    def is_plain(self) -> bool:
        """No slopes were optimised and nothing split: its margins are seldom narrow."""
        return not self.trees and not any(isinstance(step, Refine) for step in self.steps)


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

    coeff: Annotated[Float64, Rule("f", "Rm")]
    offset: Annotated[Float64, Rule("f", "R")]


@dataclass(frozen=True, eq=False)
class Case:
    """No x with lower <= x <= upper, (n,), is mapped into any of the polytopes."""

    lower: Annotated[Float64, Rule("f", "n")]
    upper: Annotated[Float64, Rule("f", "n")]
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
