"""MIPs over the rivals that are left: one for a counterexample, one for the least margin, one for the least distance.

What a MIP solver answers is a proposal: its points are candidates for replay, and its "infeasible" and its dual bounds
have no certificate that could be checked (`rests_on_solver`). certify.mip.branch, or another search of ours, closes
what can be closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from certify.bounding.crown import Knowledge
from certify.mip.encode import Encoding, encode
from certify.mip.sparse import Matrices, Sparse
from certify.ops.relu import Relu
from certify.property import Float64, Polytope
from certify.rules import is_affine
from certify.solvers.highs import Highs
from certify.solvers.program import Budget, LinearProgram, Solution, Solver, Status


@dataclass(frozen=True, eq=False)
class MipAnswer:
    """What a MIP solver says; nothing of it is proved.

    candidate: an input, flat, that it takes for a counterexample, or the nearest or worst one. value: margin or
    distance there. bound: below which it finds none, -inf if it does not say. rests_on_solver: it calls the polytopes
    unreachable (feasibility), or its bound closed (least margin, least distance).
    """

    candidate: Float64 | None
    value: float = math.inf
    bound: float = -math.inf
    rests_on_solver: bool = False


def is_piecewise_linear(matrices: Matrices) -> bool:
    """Is the network's MIP exact (no smooth op)?"""
    return all(is_affine(n.op) or isinstance(n.op, Relu) for n in matrices.graph.nodes[1:])


def reachable(
    matrices: Matrices,
    known: Knowledge,
    polytopes: tuple[Polytope, ...],
    budget: Budget,
    solver: Solver | None = None,
) -> MipAnswer:
    """Is some polytope reached? One MIP with a binary per polytope, left at its first point.

    Feasibility alone is found faster than the worst or the nearest point (MIPVerify on HiGHS: 1297 s against 2140 s).
    """
    program, encoding = disjunction(matrices, known, polytopes)
    found = (solver or Highs()).solve(program, replace(budget, first=True))
    if found.status is Status.INFEASIBLE:
        return MipAnswer(None, bound=0.0, rests_on_solver=is_piecewise_linear(matrices))
    return MipAnswer(None if found.x is None else _inputs(encoding, found))


def least_margin(
    matrices: Matrices, known: Knowledge, polytopes: tuple[Polytope, ...], budget: Budget, solver: Solver | None = None
) -> MipAnswer:
    """min over inputs and polytopes of max over rows of (C y - d)."""
    program, encoding = disjunction(matrices, known, polytopes, slack=True)
    return _minimum(matrices, encoding, (solver or Highs()).solve(program, budget))


def least_distance(
    matrices: Matrices,
    known: Knowledge,
    polytopes: tuple[Polytope, ...],
    center: Float64,
    norm: str,
    budget: Budget,
    solver: Solver | None = None,
) -> MipAnswer:
    """The smallest |x - center| ("linf" or "l1") at which some polytope is reached, within the known region."""
    program, encoding = disjunction(matrices, known, polytopes)
    program = _with_distance(program, encoding, center, norm)
    return _minimum(matrices, encoding, (solver or Highs()).solve(program, budget))


def disjunction(
    matrices: Matrices, known: Knowledge, polytopes: tuple[Polytope, ...], *, slack: bool = False
) -> tuple[LinearProgram, Encoding]:
    """C_p y - d_p <= M_p (1 - b_p) with binaries b_p of sum at least 1, and the encoding that its first columns are of.

    M_p: what the known box of the outputs allows. slack: the right side gets t more, which the objective minimises.
    """
    node = matrices.graph.output
    rows = np.concatenate([p.coeff for p in polytopes])
    offset = np.concatenate([p.offset for p in polytopes])
    owner = np.repeat(np.arange(len(polytopes)), [len(p.offset) for p in polytopes])
    encoding = encode(matrices, known, node, rows, exact=True)
    base = encoding.program
    matrix, constant = encoding.express(rows)
    high = _most(known, node, rows) - offset
    low = -_most(known, node, -rows) - offset
    # With t at its least, min over p of what a row can have at least, no other row needs more room than this.
    room = np.maximum(high - (low.min() if slack else 0.0), 0.0)
    columns, count = matrix.shape[1], len(polytopes)
    pick = sp.csr_matrix((room, (np.arange(len(rows)), owner)), shape=(len(rows), count))
    extra = [matrix, pick]
    widths = [base.matrix, sp.csr_matrix((base.matrix.shape[0], count))]
    one = [sp.csr_matrix((1, columns)), sp.csr_matrix(np.ones((1, count)))]
    if slack:
        extra.append(sp.csr_matrix(-np.ones((len(rows), 1))))
        widths.append(sp.csr_matrix((base.matrix.shape[0], 1)))
        one.append(sp.csr_matrix((1, 1)))
    free = 1 if slack else 0
    assert base.integral is not None
    program = LinearProgram(
        np.concatenate([np.zeros(columns + count), np.ones(free)]),
        sp.vstack([sp.hstack(part) for part in (widths, extra, one)], format="csr"),
        np.concatenate([base.row_lower, np.full(len(rows), -np.inf), [1.0]]),
        np.concatenate([base.row_upper, room + offset - constant, [np.inf]]),
        np.concatenate([base.lower, np.zeros(count), np.full(free, low.min())]),
        np.concatenate([base.upper, np.ones(count), np.full(free, max(high.max(), low.min()))]),
        np.concatenate([base.integral, np.ones(count, dtype=bool), np.zeros(free, dtype=bool)]),
    )
    return program, encoding


def _with_distance(program: LinearProgram, encoding: Encoding, center: Float64, norm: str) -> LinearProgram:
    """The program with the objective |x - center|: one column for the largest part, or one per coordinate."""
    inputs, offset, _ = encoding.columns[0]
    inputs = sp.csr_matrix((inputs.data, inputs.indices, inputs.indptr), shape=(inputs.shape[0], len(program.lower)))
    away = offset - center.ravel()
    size = len(away)
    part: Sparse = sp.csr_matrix(np.ones((size, 1))) if norm == "linf" else sp.identity(size, format="csr")
    count = part.shape[1]
    matrix = sp.bmat([[program.matrix, None], [inputs, -part], [-inputs, -part]], format="csr")
    assert program.integral is not None
    return LinearProgram(
        np.concatenate([np.zeros(len(program.lower)), np.ones(count)]),
        matrix,
        np.concatenate([program.row_lower, np.full(2 * size, -np.inf)]),
        np.concatenate([program.row_upper, -away, away]),
        np.concatenate([program.lower, np.zeros(count)]),
        np.concatenate([program.upper, np.full(count, np.inf)]),
        np.concatenate([program.integral, np.zeros(count, dtype=bool)]),
    )


def _most(known: Knowledge, node: int, rows: Float64) -> Float64:
    """The most that each row can be over the node's box."""
    low, high = (side[0] for side in known.flat(node))
    return np.asarray(np.clip(rows, 0, None) @ high + np.clip(rows, None, 0) @ low)


def _minimum(matrices: Matrices, encoding: Encoding, found: Solution) -> MipAnswer:
    exact = is_piecewise_linear(matrices)
    if found.status is Status.INFEASIBLE:
        return MipAnswer(None, bound=math.inf, rests_on_solver=exact)
    if found.x is None:
        return MipAnswer(None)
    bound = -math.inf if found.dual_bound is None else found.dual_bound
    closed = exact and found.status is Status.OPTIMAL
    return MipAnswer(_inputs(encoding, found), found.objective, bound, closed)


def _inputs(encoding: Encoding, found: Solution) -> Float64:
    assert found.x is not None
    return encoding.inputs(found.x[: len(encoding.program.lower)])
