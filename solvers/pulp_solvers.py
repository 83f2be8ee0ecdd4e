"""CBC, Gurobi, SCIP and CPLEX through PuLP, where a user has them.

PuLP calls a time limit with an incumbent "optimal": what it found is read from `sol_status` instead. The dual bound
of a MIP is not passed on by PuLP, so it is None, and never a proof.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from certify.errors import UsageError
from certify.solvers.program import Budget, LinearProgram, Solution, Status, missing

# PuLP's names for each; the first that it finds is used.
COMMANDS = {
    "cbc": ("COIN_CMD", "PULP_CBC_CMD"),
    "gurobi": ("GUROBI", "GUROBI_CMD"),
    "scip": ("SCIP_PY", "SCIP_CMD"),
    "cplex": ("CPLEX_PY", "CPLEX_CMD"),
}
# Only these report duals through PuLP.
WITH_DUALS = ("cbc", "gurobi")


@dataclass(frozen=True)
class PulpSolver:
    """One of COMMANDS as a Solver."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in COMMANDS:
            raise UsageError(f"solver {self.name!r} is not known; choose one of {', '.join(COMMANDS)}")

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"lp", "mip", *(("duals",) if self.name in WITH_DUALS else ())})

    def available(self) -> bool:
        """Are PuLP and the solver's own program or package there?"""
        return find_spec("pulp") is not None and self._found() is not None

    def _found(self) -> str | None:
        import pulp

        there = pulp.listSolvers(onlyAvailable=True)
        return next((name for name in COMMANDS[self.name] if name in there), None)

    def solve(self, program: LinearProgram, budget: Budget) -> Solution:
        if find_spec("pulp") is None:
            raise missing("PuLP", "pulp")
        command = self._found()
        if command is None:
            raise UsageError(f"PuLP finds no {self.name}: install it and put it on the PATH, or use another solver")
        begin = time.perf_counter()
        if budget.seconds <= 0:
            return Solution(Status.UNKNOWN)
        problem, columns, rows = _problem(program)
        problem.solve(self._command(command, budget, program.is_mip))
        return _answer(program, problem, columns, rows, time.perf_counter() - begin)

    def _command(self, command: str, budget: Budget, mip: bool) -> Any:
        import pulp

        options: dict[str, Any] = {"msg": False}
        if math.isfinite(budget.seconds):
            options["timeLimit"] = budget.seconds
        if self.name == "cbc":
            options["threads"] = 1
            if mip and budget.first:
                options["options"] = ["maxSolutions 1"]
        return pulp.getSolver(command, **options)


def _problem(program: LinearProgram) -> tuple[Any, list[Any], list[tuple[int, Any]]]:
    """(problem, its variables, (row, constraint) pairs); PuLP has one side per constraint, so ranges become two."""
    import pulp

    problem = pulp.LpProblem("certify", pulp.LpMinimize)
    whole = np.zeros(len(program.lower), dtype=bool) if program.integral is None else program.integral
    columns = [
        pulp.LpVariable(f"x{j}", _side(low), _side(high), pulp.LpInteger if w else pulp.LpContinuous)
        for j, (low, high, w) in enumerate(zip(program.lower, program.upper, whole, strict=True))
    ]
    problem += pulp.LpAffineExpression(list(zip(columns, map(float, program.objective), strict=True)))
    matrix = program.matrix.tocsr()
    rows: list[tuple[int, Any]] = []
    for i in range(matrix.shape[0]):
        part = slice(matrix.indptr[i], matrix.indptr[i + 1])
        terms = [(columns[j], float(v)) for j, v in zip(matrix.indices[part], matrix.data[part], strict=True)]
        for sense, side in _sides(float(program.row_lower[i]), float(program.row_upper[i])):
            constraint = pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, f"r{len(rows)}", side)
            problem += constraint
            rows.append((i, constraint))
    # A variable that no row and no cost names would be left out of the file, and come back without a value.
    return problem, columns, rows


def _sides(lower: float, upper: float) -> list[tuple[int, float]]:
    import pulp

    if lower == upper:
        return [(pulp.LpConstraintEQ, lower)]
    found = []
    if math.isfinite(lower):
        found.append((pulp.LpConstraintGE, lower))
    if math.isfinite(upper):
        found.append((pulp.LpConstraintLE, upper))
    return found


def _side(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _answer(
    program: LinearProgram, problem: Any, columns: list[Any], rows: list[tuple[int, Any]], seconds: float
) -> Solution:
    import pulp

    status = {
        pulp.LpSolutionOptimal: Status.OPTIMAL,
        pulp.LpSolutionIntegerFeasible: Status.FEASIBLE,
        pulp.LpSolutionInfeasible: Status.INFEASIBLE,
        pulp.LpSolutionUnbounded: Status.UNBOUNDED,
    }.get(problem.sol_status, Status.UNKNOWN)
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        return Solution(status, seconds=seconds)
    x = np.array([program.lower[j] if c.varValue is None else c.varValue for j, c in enumerate(columns)])
    x = np.where(np.isfinite(x), x, 0.0)
    objective = float(program.objective @ x + program.constant)
    duals = None
    if not program.is_mip and all(c.pi is not None for _, c in rows):
        duals = np.zeros(program.matrix.shape[0])
        for row, constraint in rows:
            duals[row] += constraint.pi
    return Solution(status, x, objective, None, duals, seconds=seconds)
