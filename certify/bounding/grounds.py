"""Why the rows of a batch of cases have the bounds they have: kept on the way, written as steps of a certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from certify.arrays import Array, to_numpy
from certify.bounding.crown import Choice, Knowledge
from certify.bounding.propagate import Sides, unsettled
from certify.certificate.content import (
    STEPS_OF_SLOPES,
    CaseProof,
    Close,
    Crown,
    Mode,
    Refine,
    SlopeSet,
    Step,
    UnitSlopes,
    quantised,
)
from certify.certificate.write import sources, units
from certify.graph import Graph
from certify.ops.base import Slopes
from certify.ops.relu import Relu
from certify.property import Float64

if TYPE_CHECKING:
    from certify.bounding.alpha import Proposal

Index = NDArray[np.int64]


class Way(IntEnum):
    """How a row was bounded; EARLY: by CROWN over the intervals alone."""

    NONE = 0
    INTERVAL = 1
    EARLY = 2
    ADAPTIVE = 3
    PARALLEL = 4
    SLOPES = 5


MODES: dict[Way, Mode] = {
    Way.INTERVAL: "interval",
    Way.EARLY: "adaptive",
    Way.ADAPTIVE: "adaptive",
    Way.PARALLEL: "parallel",
}


@dataclass(frozen=True, eq=False)
class Chosen:
    """What alpha-CROWN chose for one case: the steps that sharpened neurons, and slopes (K, U) for some rows (K,)."""

    refined: tuple[Refine, ...]
    columns: Index
    rows: SlopeSet


@dataclass
class Grounds:
    """Of B cases with S rows each: way (B, S), of the best bound so far. chosen: case -> what alpha-CROWN did for it.

    crowned: the cases whose neurons CROWN has bounded; fewest: case -> unit -> those that seem to be enough.
    """

    way: NDArray[np.int8]
    crowned: NDArray[np.bool_]
    chosen: dict[int, Chosen] = field(default_factory=dict)
    fewest: dict[int, dict[int, Index]] = field(default_factory=dict)

    @staticmethod
    def over(shape: tuple[int, ...]) -> Grounds:
        return Grounds(np.zeros(shape, dtype=np.int8), np.zeros(shape[0], dtype=bool))

    def proof(self, case: int, polytope: Index, lower: Float64) -> CaseProof:
        """The steps that exclude one case's polytopes, as far as their best rows (S,) are positive; and that bound its
        neurons.
        """
        closed: dict[Way, list[tuple[int, int, int]]] = {way: [] for way in Way}
        for number in range(int(polytope.max(initial=-1)) + 1):
            columns = np.flatnonzero(polytope == number)
            if len(columns) and (best := columns[np.argmax(lower[columns])], lower[columns].max())[1] > 0:
                column = int(best)
                closed[Way(self.way[case, column])].append((number, column - int(columns[0]), column))
        steps: list[Step] = [*_close(closed, Way.INTERVAL), *_close(closed, Way.EARLY)]
        if self.crowned[case]:
            steps += [Crown(), *_close(closed, Way.ADAPTIVE), *_close(closed, Way.PARALLEL)]
        lean: tuple[Step, ...] = ()
        if case in self.fewest:
            rest = [one for way in (Way.EARLY, Way.ADAPTIVE, Way.PARALLEL) for one in closed[way]]
            crown = Crown(self.fewest[case], adaptive=False)
            lean = (*_close(closed, Way.INTERVAL), crown, *_close({Way.ADAPTIVE: rest}, Way.ADAPTIVE))
        chosen = self.chosen.get(case)
        if chosen is not None:
            steps += chosen.refined
            mine = closed[Way.SLOPES]
            if mine:
                place = [int(np.flatnonzero(chosen.columns == column)[0]) for *_, column in mine]
                slopes = {u: _rows(s, place) for u, s in chosen.rows.items()}
                steps.append(Close(tuple(p for p, *_ in mine), tuple(r for _, r, _ in mine), slopes))
        return CaseProof(tuple(steps), lean=lean)


def _close(closed: Mapping[Way, Sequence[tuple[int, int, int]]], way: Way) -> list[Step]:
    mine = closed[way]
    return [Close(tuple(p for p, *_ in mine), tuple(r for _, r, _ in mine), MODES[way])] if mine else []


def _rows(slopes: UnitSlopes, rows: Sequence[int]) -> UnitSlopes:
    upper = None if slopes.upper is None else slopes.upper[list(rows)]
    return UnitSlopes(slopes.at, slopes.lower[list(rows)], upper)


def chosen(known: Knowledge, before: Knowledge, sides: Mapping[int, Sides], rows: Choice, columns: Index) -> Chosen:
    """One case's part of an optimisation: knowledge of one set after and before, sides and rows of that set alone."""
    first, refined = sources(known.graph), []
    for start, side in sorted(sides.items()):
        neurons = to_numpy(side.neurons)[0]
        real = to_numpy(unsettled(before, start))[0, neurons]
        if real.any():
            below, above = (slope_set(known, choice, real) for choice in (side.below, side.above))
            refined.append(Refine(first[start], neurons[real], below, above))
    return Chosen(tuple(refined), columns, slope_set(known, rows, None))


def slope_set(known: Knowledge, choice: Choice, real: NDArray[np.bool_] | None) -> SlopeSet:
    """Slopes of one set, (1, S, n) or (1, 1, n) each, of its unstable neurons; real: which of the S forms count."""
    found: dict[int, UnitSlopes] = {}
    for node, unit in units(known.graph).items():
        slopes = choice.get(node)
        if slopes is None or slopes.lower is None:
            continue
        lower, upper = (to_numpy(side)[0] for side in known.flat(known.graph.nodes[node].inputs[0]))
        relu = isinstance(known.graph.nodes[node].op, Relu)
        at = np.flatnonzero((lower < 0) & (upper > 0) if relu else lower < upper)

        def part(slope: Array, at: Index = at) -> NDArray[Any]:
            values: NDArray[Any] = to_numpy(slope)[0]
            mine: NDArray[Any] = values[:, at] if real is None or len(values) == 1 else values[real][:, at]
            return mine

        if relu:
            found[unit] = UnitSlopes(at, quantised(part(slopes.lower)))
        else:
            assert slopes.upper is not None, "smooth ops have slopes on both sides"
            found[unit] = UnitSlopes(at, part(slopes.lower), part(slopes.upper))
    return found


def stored(graph: Graph, node: int, slopes: Array) -> Array:
    """Float64 slopes as a certificate will give them back."""
    if not isinstance(graph.nodes[node].op, Relu):
        return slopes
    near: Array = (slopes.clamp(0, 1) * STEPS_OF_SLOPES).round() / STEPS_OF_SLOPES
    return near


def widened(graph: Graph, found: Proposal) -> tuple[dict[int, Sides], Choice]:
    """The proposal's slopes in float64, as a certificate holds them."""

    def widen(choice: Choice) -> Choice:
        return {
            node: Slopes(
                *(None if s is None else stored(graph, node, s.double()) for s in (slopes.lower, slopes.upper))
            )
            for node, slopes in choice.items()
        }

    return {k: Sides(s.neurons, widen(s.below), widen(s.above)) for k, s in found.sides.items()}, widen(found.rows)


def only(choice: Choice, one: slice) -> Choice:
    """The slopes of some cases."""
    return {n: Slopes(*(None if p is None else p[one] for p in (s.lower, s.upper))) for n, s in choice.items()}


def for_all_rows(slopes: Choice, one: slice, columns: Index, count: int) -> Choice:
    """One case's slopes, found for the rows `columns`; the first of them stand for the rest."""
    place = np.zeros(count, dtype=np.int64)
    place[columns] = np.arange(len(columns))

    def pick(slope: Array | None) -> Array | None:
        return None if slope is None else slope[one][:, place]

    return {node: Slopes(pick(s.lower), pick(s.upper)) for node, s in slopes.items()}
