"""A network over one region as a linear or mixed-integer program (Tjeng et al. 2018), every variable within [0, 1].

Only neurons whose phase is open have variables of their own; what lies between is substituted, sparse matrix by sparse
matrix. A ReLU z -> y with l < 0 < u is written in y = relu(z) and s = relu(-z):

    z = y - s,   y = u y',   s = -l s',   and   y' + s' <= 1   (the triangle: relaxation)
                                          or   y' <= a, s' <= 1 - a, a in {0, 1}   (exact)

which is the asymmetric big-M formulation with all its constants scaled to 1, and says z once instead of twice. Stable
neurons are linear. A sigmoid has lines below and above, rounded outward, and no exact form.

Nothing here is rigorous, nor needs to be: the program proposes, certify.mip.safe decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from certify.bounding.crown import Knowledge
from certify.mip.sparse import Matrices, Sparse
from certify.ops.base import Slopes
from certify.ops.relu import Relu
from certify.ops.sigmoid import Sigmoid
from certify.property import Float64
from certify.rules import Op, bias, evaluate, is_affine, relax
from certify.solvers.program import LinearProgram

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Columns = dict[int, tuple[Sparse, Float64, Mask]]

# Lines on each side of a sigmoid: at the ends, and where the slope lies evenly between.
SIGMOID_LINES = 4
# Coefficients this small against the neuron's values are not scaled up: their rounding would exceed the solver's
# tolerance, and the program be infeasible.
NOISE = 1e-4
# Lines of a smooth function over a narrow interval leave less room than solvers' tolerances: they get this much more.
SLACK = 1e-9
# Neurons whose values vary by less count as constant; relative to their size, where that exceeds 1.
NARROW = 1e-9


@dataclass(frozen=True, eq=False)
class Cut:
    """Where a nonlinear node reads neurons that have variables: row k of the program says z - expression = 0.

    node: the nonlinear one. source: the node it reads. neurons, rows, scales: (K,); a row's dual times its scale is the
    dual of the unscaled equation. defines: do these rows define z for all other readers too?
    """

    node: int
    source: int
    neurons: Indices
    rows: Indices
    scales: Float64
    defines: bool


@dataclass(frozen=True, eq=False)
class Phase:
    """The ReLUs whose phase is open in the program: columns of y', s' and, in a MIP, of a; each (K,)."""

    node: int
    neurons: Indices
    active: Indices
    inactive: Indices
    binary: Indices | None


@dataclass(frozen=True, eq=False)
class Piece:
    """A term of a node's values: x[neurons] += factor * column + offset, all (K,)."""

    neurons: Indices
    columns: Indices
    factor: Float64
    offset: Float64


@dataclass(frozen=True, eq=False)
class Encoding:
    """A program whose points cover the values of the network's nodes before `node`, which objectives may speak of.

    program has objective 0. columns: node -> (matrix, offset, free): x_node = matrix x + offset for neurons that have
    variables; `free` marks those that have none.
    """

    matrices: Matrices
    known: Knowledge
    node: int
    program: LinearProgram
    cuts: tuple[Cut, ...]
    phases: tuple[Phase, ...]
    columns: Columns

    def express(self, rows: Float64 | Sparse) -> tuple[Sparse, Float64]:
        """rows . x_node as (matrix (S, columns), offset (S,)): rows (S, n)."""
        return express(self.matrices, self.known, self.columns, self.node, sp.csr_matrix(rows))

    def inputs(self, x: Float64) -> Float64:
        """The network's input, flat, at a point of the program, clipped into the box."""
        lower, upper = (side[0] for side in self.known.flat(0))
        matrix, offset, _ = self.columns[0]
        return np.asarray(np.clip(matrix @ x + offset, lower, upper))


def encode(
    matrices: Matrices,
    known: Knowledge,
    node: int,
    rows: Float64 | Sparse,
    *,
    root: Knowledge | None = None,
    exact: bool = False,
) -> Encoding:
    """The program of what rows (S, n) . x_node depends on, over one region (batch 1).

    root: knowledge of which `known` is a subproblem; its open neurons keep their equations, or splits of the search
    would be lost. exact: open ReLUs get a binary; else the triangle relaxation.
    """
    assert known.region.lower.shape[0] == 1, "a program is of one region"
    builder = _Builder(matrices, known, exact)
    builder.plan(node, root or known)
    builder.build(node, sp.csr_matrix(rows))
    blocks = builder.blocks or [(sp.csr_matrix((0, builder.width)), np.zeros(0), np.zeros(0))]
    integral = np.zeros(builder.width, dtype=bool)
    for phase in builder.phases:
        integral[[] if phase.binary is None else phase.binary] = True
    program = LinearProgram(
        np.zeros(builder.width),
        sp.vstack([block[0] for block in blocks], format="csr"),
        np.concatenate([block[1] for block in blocks]),
        np.concatenate([block[2] for block in blocks]),
        np.concatenate(builder.lower),
        np.concatenate(builder.upper),
        integral if exact else None,
    )
    return Encoding(matrices, known, node, program, tuple(builder.cuts), tuple(builder.phases), builder.columns)


def express(
    matrices: Matrices, known: Knowledge, columns: Columns, node: int, rows: Sparse, *, define: bool = False
) -> tuple[Sparse, Float64]:
    """rows . x_node pulled back to the columns: (matrix (S, columns), offset (S,)).

    define: by what the node computes, not by its own columns.
    """
    graph = matrices.graph
    pending = {node: rows}
    total, constant = sp.csr_matrix((rows.shape[0], columns[0][0].shape[1])), np.zeros(rows.shape[0])
    for index in range(node, -1, -1):
        a = pending.pop(index, None)
        if a is None or not a.nnz:
            continue
        if index in columns and not (define and index == node):
            matrix, offset, free = columns[index]
            total, constant = total + a @ matrix, constant + a @ offset
            a = a.multiply(free[None, :]).tocsr()
            a.eliminate_zeros()
            if not a.nnz:
                continue
        for source, part in _parts(matrices, known, index, a):
            pending[source] = pending[source] + part if source in pending else part
        if is_affine(graph.nodes[index].op) and (shift := bias(graph.nodes[index].op)) is not None:
            constant = constant + a @ np.broadcast_to(shift, graph.nodes[index].shape).ravel()
    return total.tocsr(), constant


def _parts(matrices: Matrices, known: Knowledge, index: int, a: Sparse) -> list[tuple[int, Sparse]]:
    """Coefficients at the node's inputs: through its matrices, or through a stable ReLU."""
    node = matrices.graph.nodes[index]
    if is_affine(node.op):
        return [(i, a @ matrix) for i, matrix in zip(node.inputs, matrices[index], strict=True)]
    lower = known.flat(node.inputs[0])[0][0]
    return [(node.inputs[0], a.multiply((lower >= 0)[None, :]).tocsr())]


@dataclass
class _Builder:
    """The program while it grows. open: nonlinear node -> the neurons that have variables; first: source -> the reader
    that defines it.
    """

    matrices: Matrices
    known: Knowledge
    exact: bool
    width: int = 0
    height: int = 0
    lower: list[Float64] = field(default_factory=list)
    upper: list[Float64] = field(default_factory=list)
    open: dict[int, Indices] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    placed: dict[int, list[Piece]] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    columns: Columns = field(default_factory=dict)
    blocks: list[tuple[Sparse, Float64, Float64]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def plan(self, node: int, root: Knowledge) -> None:
        """Variables for the input and for every open neuron before the node."""
        graph = self.matrices.graph
        low, high = (side[0] for side in self.known.flat(0))
        self.place(0, Piece(np.arange(low.size), self.new(low.size), high - low, low))
        for index in graph.ancestors(node):
            op = graph.nodes[index].op
            if index == 0 or is_affine(op):
                continue
            source = graph.nodes[index].inputs[0]
            defines = is_affine(graph.nodes[source].op) and source not in self.first
            if isinstance(op, Relu):
                self.open[index] = _unstable(root, source)
                own = self._plan_relu(index, source)
            else:
                self.open[index] = np.arange(math.prod(graph.nodes[index].shape))
                own = self._plan_smooth(index, source, defines)
            if defines and len(self.open[index]):
                self.first[source] = index
                for piece in own:
                    self.place(source, piece)
        for index, pieces in self.placed.items():
            self.columns[index] = _columns(pieces, math.prod(graph.nodes[index].shape), self.width)

    def _plan_relu(self, index: int, source: int) -> list[Piece]:
        """Columns y', s' (and a); returns z = y - s."""
        neurons = self.open[index]
        low, high = (side[0][neurons] for side in self.known.flat(source))
        up, down = np.maximum(high, 0), np.maximum(-low, 0)
        some_up, some_down = np.where(up > 0, up, 1), np.where(down > 0, down, 1)
        active = self.new(neurons.size, np.maximum(low, 0) / some_up, (up > 0) * 1.0)
        inactive = self.new(neurons.size, np.maximum(-high, 0) / some_down, (down > 0) * 1.0)
        binary = self.new(neurons.size, (low >= 0) * 1.0, (high > 0) * 1.0) if self.exact else None
        self.phases.append(Phase(index, neurons, active, inactive, binary))
        self.place(index, Piece(neurons, active, up, np.zeros(neurons.size)))
        zero = np.zeros(neurons.size)
        return [Piece(neurons, active, up, zero), Piece(neurons, inactive, -down, zero)]

    def _plan_smooth(self, index: int, source: int, defines: bool) -> list[Piece]:
        """A column for y and, unless it has one, for z."""
        neurons = self.open[index]
        low, high = (side[0] for side in self.known.flat(source))
        below, above = (evaluate(self.matrices.graph.nodes[index].op, side) for side in (low, high))
        self.place(index, Piece(neurons, self.new(neurons.size), above - below, below))
        return [Piece(neurons, self.new(neurons.size), high - low, low)] if defines else []

    def new(self, count: int, lower: Float64 | None = None, upper: Float64 | None = None) -> Indices:
        """New columns, within [0, 1] unless said otherwise."""
        self.lower.append(np.zeros(count) if lower is None else lower)
        self.upper.append(np.ones(count) if upper is None else upper)
        self.width += count
        return np.arange(self.width - count, self.width)

    def place(self, node: int, piece: Piece) -> None:
        """The node's neurons get one more term."""
        if len(piece.neurons):
            self.placed.setdefault(node, []).append(piece)

    def build(self, node: int, rows: Sparse) -> None:
        """Rows for the open neurons that the target rows depend on, from the last layer to the first."""
        graph = self.matrices.graph
        used = np.zeros(self.width)
        used[express(self.matrices, self.known, self.columns, node, rows)[0].indices] = 1
        readers: dict[int, list[int]] = {}
        for index in self.open:
            if len(self.open[index]):
                readers.setdefault(graph.nodes[index].inputs[0], []).append(index)
        for source in sorted(readers, reverse=True):
            # The reader that defines the source comes last: the others' rows speak of it.
            for index in sorted(readers[source], key=lambda i: i == self.first.get(source)):
                defines = self.first.get(source) == index
                needed = (self.columns[index][0] @ used != 0) & self._wide(source)
                if defines:
                    needed |= (abs(self.columns[source][0]) @ used != 0) & self._wide(source)
                needed |= self._settled(index, source)
                neurons = self.open[index][needed[self.open[index]]]
                if len(neurons):
                    before = len(self.blocks)
                    self._rows(index, source, neurons, defines)
                    for block in self.blocks[before:]:
                        used[block[0].indices] = 1

    def _wide(self, source: int) -> Mask:
        """Neurons that vary: an equation of rounding errors makes HiGHS's presolve answer "infeasible"."""
        low, high = (side[0] for side in self.known.flat(source))
        return np.asarray(high - low > NARROW * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high))))

    def _settled(self, index: int, source: int) -> Mask:
        """ReLUs that are open at the root and not here: a split says so, and their equation says what it means."""
        low, high = (side[0] for side in self.known.flat(source))
        mask = np.zeros(low.size, dtype=bool)
        mask[self.open[index]] = True
        relu = isinstance(self.matrices.graph.nodes[index].op, Relu)
        return np.asarray(mask & ((low >= 0) | (high <= 0)) & relu)

    def _rows(self, index: int, source: int, neurons: Indices, defines: bool) -> None:
        """The equation z = expression, and what ties y to z."""
        relu = isinstance(self.matrices.graph.nodes[index].op, Relu)
        if relu or defines:
            self._equations(index, source, neurons, defines)
        if not relu:
            self._lines(index, source, neurons)
            return
        phase = next(p for p in self.phases if p.node == index)
        at = np.searchsorted(phase.neurons, neurons)
        one, zero = np.ones(len(at)), np.zeros(len(at))
        y, s = self._pick(phase.active[at]), self._pick(phase.inactive[at])
        if phase.binary is None:
            self._add(y + s, one * -np.inf, one)
            return
        a = self._pick(phase.binary[at])
        self._add(y - a, one * -np.inf, zero)
        self._add(s + a, one * -np.inf, one)

    def _equations(self, index: int, source: int, neurons: Indices, defines: bool) -> None:
        """z - expression = 0, each row scaled by a power of two to a largest coefficient in [1/2, 1)."""
        matrix, offset = self._value(source, neurons, define=defines)
        low, high = (side[0][neurons] for side in self.known.flat(source))
        if defines:
            own, shift = self._value(source, neurons)
        else:
            phase = next(p for p in self.phases if p.node == index)
            at = np.searchsorted(phase.neurons, neurons)
            own = sp.diags(np.maximum(high, 0)) @ self._pick(phase.active[at])
            own = own - sp.diags(np.maximum(-low, 0)) @ self._pick(phase.inactive[at])
            shift = np.zeros(len(at))
        row = (own - matrix).tocsr()
        largest = np.maximum(abs(row).max(axis=1).toarray().ravel(), NOISE * np.maximum(np.abs(low), np.abs(high)))
        scales = np.exp2(-np.frexp(np.where(largest > 0, largest, 1.0))[1].astype(np.float64))
        side = (offset - shift) * scales
        self.cuts.append(Cut(index, source, neurons, self.height + np.arange(len(neurons)), scales, defines))
        self._add(sp.diags(scales) @ row, side, side)

    def _lines(self, index: int, source: int, neurons: Indices) -> None:
        """Lines under and over a smooth function, with intercepts that its `relax` rounds outward."""
        op = self.matrices.graph.nodes[index].op
        low, high = (side[0][neurons] for side in self.known.flat(source))
        z, y = (self._value(i, neurons) for i in (source, index))
        tight = relax(op, low, high, Slopes())
        pairs = [(tight.lower_slope, tight.upper_slope)]
        for part in np.linspace(0.0, 1.0, SIGMOID_LINES - 1):
            middle = _derivative(op, low + part * (high - low))
            pairs.append((middle, middle))
        for below, above in pairs:
            lines = relax(op, low, high, Slopes(below, above))
            under = y[0] - sp.diags(lines.lower_slope) @ z[0]
            over = y[0] - sp.diags(lines.upper_slope) @ z[0]
            none = np.full(len(neurons), np.inf)
            self._add(under, lines.lower_intercept + lines.lower_slope * z[1] - y[1] - SLACK, none)
            self._add(over, -none, lines.upper_intercept + lines.upper_slope * z[1] - y[1] + SLACK)

    def _value(self, node: int, neurons: Indices, *, define: bool = False) -> tuple[Sparse, Float64]:
        """x_node[neurons] in the columns."""
        units = _units(neurons, math.prod(self.matrices.graph.nodes[node].shape))
        return express(self.matrices, self.known, self.columns, node, units, define=define)

    def _pick(self, columns: Indices) -> Sparse:
        return _units(columns, self.width)

    def _add(self, matrix: Sparse, lower: Float64, upper: Float64) -> None:
        matrix = matrix.tocsr()
        matrix.eliminate_zeros()
        self.blocks.append((matrix, lower, upper))
        self.height += matrix.shape[0]


def _unstable(known: Knowledge, source: int) -> Indices:
    low, high = (side[0] for side in known.flat(source))
    return np.flatnonzero((low < 0) & (high > 0))


def _units(columns: Indices, width: int) -> Sparse:
    return sp.csr_matrix((np.ones(len(columns)), (np.arange(len(columns)), columns)), shape=(len(columns), width))


def _columns(pieces: list[Piece], size: int, width: int) -> tuple[Sparse, Float64, Mask]:
    offset, free = np.zeros(size), np.ones(size, dtype=bool)
    for piece in pieces:
        offset[piece.neurons] = piece.offset
        free[piece.neurons] = False
    row, column, value = (
        np.concatenate(part) for part in zip(*((p.neurons, p.columns, p.factor) for p in pieces), strict=True)
    )
    return sp.csr_matrix((value, (row, column)), shape=(size, width)), offset, free


def _derivative(op: Op, z: Float64) -> Float64:
    """Of the sigmoid, the one smooth op."""
    assert isinstance(op, Sigmoid), f"{type(op).__name__} has no linear program"
    value = evaluate(op, z)
    return np.asarray(value * (1 - value))
