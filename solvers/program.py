"""Linear and mixed-integer programs as plain arrays, and what a solver answers.

min objective . x + constant  subject to  row_lower <= matrix x <= row_upper,  lower <= x <= upper,  x_j whole where
`integral`. Duals have one sign for all solvers: row_dual_i is d(minimum) / d(side of row i that binds), so it is >= 0
where the lower side binds and <= 0 where the upper one does; objective - matrix^T row_dual are the reduced costs.

Solvers propose: their tolerances hide narrow violations and small coefficients. What is certified from an answer is
certified elsewhere, from the duals, in arithmetic of our own (Neumaier & Shcherbina 2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from certify.errors import UsageError

Float64 = NDArray[np.float64]
Sparse = Any  # a scipy.sparse CSR matrix


class Status(StrEnum):
    """How a solve ended; what is not one of these is `unknown`."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    FEASIBLE = "feasible"  # stopped with a point that is not known to be optimal
    UNKNOWN = "unknown"  # stopped without one


@dataclass(frozen=True, eq=False)
class LinearProgram:
    """A program of n columns and m rows; infinite sides are +-inf. integral: (n,) booleans, or None for an LP."""

    objective: Float64
    matrix: Sparse
    row_lower: Float64
    row_upper: Float64
    lower: Float64
    upper: Float64
    integral: NDArray[np.bool_] | None = None
    constant: float = 0.0

    def __post_init__(self) -> None:
        rows, columns = self.matrix.shape
        assert self.objective.shape == self.lower.shape == self.upper.shape == (columns,)
        assert self.row_lower.shape == self.row_upper.shape == (rows,)
        assert self.integral is None or self.integral.shape == (columns,)

    @property
    def is_mip(self) -> bool:
        """Is any column integral?"""
        return self.integral is not None and bool(self.integral.any())


@dataclass(frozen=True)
class Budget:
    """When to stop: after `seconds`; at the first feasible point if `first`."""

    seconds: float = math.inf
    first: bool = False


@dataclass(frozen=True, eq=False)
class Solution:
    """A solver's answer. objective, dual_bound: with the program's constant; dual_bound None is never a proof.

    row_dual: (m,) of an LP at its optimum. ray: (m,), of an infeasible LP a combination of rows that shows it, where
    the solver gives one.
    """

    status: Status
    x: Float64 | None = None
    objective: float = math.inf
    dual_bound: float | None = None
    row_dual: Float64 | None = None
    ray: Float64 | None = None
    seconds: float = 0.0


class Solver(Protocol):
    """One back end. capabilities: of "lp", "mip", "duals" (of LPs), "rays" (of infeasible LPs)."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[str]: ...

    def available(self) -> bool: ...

    def solve(self, program: LinearProgram, budget: Budget) -> Solution: ...


def missing(solver: str, extra: str) -> UsageError:
    """The error for a solver whose package is not installed."""
    return UsageError(f"{solver} is not installed; install it with: pip install 'certify[{extra}]'")


def dual_value(program: LinearProgram, row_dual: Float64) -> float:
    """The Lagrangian bound of any row duals, in plain floating point: what an LP's minimum cannot be below but for
    rounding.

    Signs are projected: a dual on a side that does not exist counts as 0. min over the box of the reduced costs.
    """
    y = np.where((row_dual > 0) & ~np.isfinite(program.row_lower), 0.0, row_dual)
    y = np.where((y < 0) & ~np.isfinite(program.row_upper), 0.0, y)
    sides = np.where(y > 0, program.row_lower, np.where(y < 0, program.row_upper, 0.0))
    reduced = program.objective - program.matrix.T @ y
    ends = np.where(reduced > 0, program.lower, np.where(reduced < 0, program.upper, 0.0))
    with np.errstate(invalid="ignore"):
        return float(y @ sides + reduced @ ends + program.constant)
