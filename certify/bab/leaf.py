"""What splits cannot narrow any more: one linear program a subproblem, with every row's best weights at once.

Where all neurons are settled the program is the network, so its optimum is either positive or a counterexample but for
rounding. Its duals are certified by our own float64 pass; its point is replayed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from certify.arrays import to_numpy
from certify.bab.root import Root, narrowed
from certify.bab.subproblem import Subproblems
from certify.bounding.crown import Knowledge
from certify.bounding.region import Region
from certify.mip.margin import LeafAnswer, leaf
from certify.mip.sparse import Matrices
from certify.property import Polytope
from certify.solvers.program import Budget


class Leaves:
    """The linear programs of one case's leaves; the network's matrices are made once."""

    def __init__(self, root: Root) -> None:
        graph = root.nets.exact.cast(np.zeros(1))
        self._root = root
        self._known = replace(to_arrays(root.known), graph=graph)
        self._matrices = Matrices(graph)

    def solve(self, subs: Subproblems, seconds: float) -> LeafAnswer:
        """One subproblem's program."""
        assert len(subs) == 1
        known = replace(to_arrays(narrowed(self._root, subs)), graph=self._known.graph)
        number = int(subs.polytope[0])
        real = to_numpy(self._root.problem.rows[number])
        coeff, offset = (to_numpy(part[number])[real] for part in (self._root.coeff, self._root.offset))
        polytope = Polytope(coeff, offset, offset, np.zeros(len(offset), dtype=bool))
        return leaf(self._matrices, known, polytope, root=self._known, budget=Budget(seconds))


def to_arrays(known: Knowledge) -> Knowledge:
    """The knowledge with numpy arrays; its graph stays."""

    def part(x: Any) -> Any:
        return None if x is None else np.ascontiguousarray(to_numpy(x))

    region = known.region
    return Knowledge(
        known.graph,
        Region(part(region.lower), part(region.upper), part(region.center), part(region.radius), region.p),
        [None if box is None else (part(box[0]), part(box[1])) for box in known.boxes],
        [part(weight) for weight in known.weights],
        part(known.floor),
    )
