"""Certified margins of many samples at once: how far the reachable outputs stay from the unsafe set.

The unsafe set of a case is a union of polytopes {y : C y <= d}. A row's margin is min (C y - d) over the input set;
a polytope is excluded when one of its rows has a positive margin; a case is safe when all its polytopes are
excluded. Methods go from cheap to dear; decided polytopes and samples drop out on the way. Slopes may come from
float32; what decides runs in float64, with rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from certify.arrays import (
    Array,
    computes_float32,
    is_torch,
    keep_buffers,
    like,
    like_index,
    narrow_interval,
    to_numpy,
)
from certify.bounding.crown import Choice, Form, Knowledge, affine_tail, backward, both, plane, row_form
from certify.bounding.deviation import Draft
from certify.bounding.grounds import Grounds, Way, chosen, for_all_rows, only, widened
from certify.bounding.lean import fewest
from certify.bounding.propagate import groups, propagate, starts, unsettled
from certify.bounding.region import Region, region_of
from certify.certificate.content import CaseProof
from certify.errors import ModelError
from certify.graph import Graph
from certify.options import BOUND_METHODS
from certify.property import Case, Float64

if TYPE_CHECKING:
    import torch

    from certify.bounding.alpha import AlphaOptions

STAGE_NAMES = {"ibp": "IBP", "crown": "CROWN", "alpha-crown": "alpha-CROWN"}
# Nodes of more numbers make sums whose float32 error terms exceed certify.ops.base.MAX_GAMMA.
LONGEST_DRAFT = 100_000
# Slope variables of one alpha batch: with Adam's two moments, gradient and best copy about 1 GB in float32.
MAX_SLOPES = 40_000_000


@dataclass(frozen=True, eq=False)
class Networks:
    """One network in the dtypes that the stages use, on one device.

    exact: float64, what decides. fast: float32, for proposals. draft: for the sieve that needs sound float32, or None
    where its products may be computed in less than float32 accuracy (TF32, Winograd on GPUs). sample: a number in
    `exact`'s library and device.
    """

    exact: Graph
    fast: Graph
    draft: Draft | None
    sample: Array

    @staticmethod
    def light(graph: Graph) -> Networks:
        """In numpy, all float64: IBP and CROWN without torch, whose import takes longer than a small property."""
        sample = np.zeros(1)
        exact = graph.cast(sample)
        return Networks(exact, exact, None, sample)

    @staticmethod
    def of(graph: Graph, device: torch.device) -> Networks:
        """In torch."""
        import torch

        keep_buffers()
        wide = torch.zeros(1, dtype=torch.float64, device=device)
        narrow = torch.zeros(1, dtype=torch.float32, device=device)
        exact = graph.cast(wide)
        try:
            fast = graph.cast(narrow)
        except ModelError:  # weights that float32 cannot hold: everything in float64
            return Networks(exact, exact, None, wide)
        sound = computes_float32(device)
        short = max(math.prod(node.shape) for node in graph.nodes) < LONGEST_DRAFT
        return Networks(exact, fast, Draft(fast, narrow) if sound and short else None, wide)

    @property
    def device(self) -> torch.device:
        """Where torch's networks lie."""
        device: torch.device = self.sample.device
        return device

    def without_gradients(self, *, kept: bool = True) -> AbstractContextManager[object]:
        """What bounding of many samples runs in: no history of gradients is kept.

        kept: gradients may be taken later of what is computed; if not, torch's small calls cost 7 % less.
        """
        if not is_torch(self.sample):
            return nullcontext()
        import torch

        return torch.no_grad() if kept else torch.inference_mode()


@dataclass(frozen=True, eq=False)
class Proof:
    """What is certified about one case.

    lower: lower bound of its margin (> 0: safe). stage: which method gave it. rows: (S,), the lower bound of each
    row C y - d, in the order of the case's polytopes. seconds: per stage. start: where complete search may go on, if
    alpha-CROWN left the case open.
    """

    lower: float
    stage: str
    rows: Float64
    seconds: dict[str, float] = field(default_factory=dict)
    start: Start | None = None
    grounds: CaseProof = field(default_factory=CaseProof)


@dataclass(frozen=True, eq=False)
class Start:
    """What alpha-CROWN leaves of one open case: bounds of every node (float64), certified lower bounds of its rows (1,
    S), and the slopes (1, S, n) that gave them. grounds: the steps that gave the bounds.
    """

    nets: Networks
    known: Knowledge
    rows: Rows
    lower: Float64
    slopes: Choice
    grounds: CaseProof = field(default_factory=CaseProof)


@dataclass(frozen=True, eq=False)
class Rows:
    """The unsafe polytopes of B cases, padded: coeff (B, S, n), offset (B, S), polytope (B, S) integers, -1 for
    padding.
    """

    coeff: Float64
    offset: Float64
    polytope: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    hopeless: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    @staticmethod
    def of(cases: Sequence[Case], outputs: int) -> Rows:
        width = max([1, *(sum(len(p.offset) for p in case.unsafe) for case in cases)])
        coeff = np.zeros((len(cases), width, outputs))
        offset = np.zeros((len(cases), width))
        polytope = np.full((len(cases), width), -1, dtype=np.int64)
        for b, case in enumerate(cases):
            at = 0
            for number, unsafe in enumerate(case.unsafe):
                end = at + len(unsafe.offset)
                coeff[b, at:end], offset[b, at:end], polytope[b, at:end] = unsafe.coeff, unsafe.offset, number
                at = end
        # A polytope without rows is the whole output space: nothing can exclude it.
        hopeless = np.array([any(len(p.offset) == 0 for p in case.unsafe) for case in cases])
        return Rows(coeff, offset, polytope, hopeless)

    def one(self, case: int) -> Rows:
        """The rows of one case."""
        mine = slice(case, case + 1)
        return Rows(self.coeff[mine], self.offset[mine], self.polytope[mine], self.hopeless[mine])

    def best(self, lower: Float64) -> Float64:
        """(B, S): each row's polytope margin, the largest of its rows' lower bounds; +inf for padding."""
        sample = np.arange(len(lower))[:, None]
        # The last column takes the padding, number -1.
        table = np.full((len(lower), self.polytope.max() + 2), -np.inf)
        np.maximum.at(table, (sample, self.polytope), lower)
        return np.where(self.polytope >= 0, table[sample, self.polytope], np.inf)

    def margins(self, lower: Float64) -> Float64:
        """(B,): each case's margin, the smallest of its polytopes'."""
        return np.where(self.hopeless, -np.inf, self.best(lower).min(axis=1))


@dataclass
class _Batch:
    """Cases on their way through the methods; `lower` (B, S) are the best certified row margins so far."""

    nets: Networks
    region: Region
    rows: Rows
    lower: Float64
    grounds: Grounds
    known: Knowledge | None = None
    members: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = field(
        default_factory=lambda: np.zeros(0, dtype=np.int64)
    )
    starts: dict[int, Start] = field(default_factory=dict)

    def open(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Indices of the cases that are not yet safe (and not hopeless)."""
        margins = self.rows.margins(self.lower)
        return np.flatnonzero(~(margins > 0) & ~self.rows.hopeless)


def prove(
    nets: Networks,
    cases: Sequence[Case],
    method: str,
    *,
    options: AlphaOptions | None = None,
    deadline: float = math.inf,
) -> list[Proof]:
    """Certified margins of cases whose input sets are of one kind, by all methods up to `method`.

    deadline: on time.monotonic()'s clock; methods that have not begun by then are left out, CROWN falls
    back to intervals for what is left, alpha-CROWN stops.
    Raises torch.OutOfMemoryError or MemoryError where the batch is too large: halve it.
    """
    assert method != "alpha-crown" or is_torch(nets.sample), "alpha-CROWN needs torch"
    region = region_of([case.inputs for case in cases]).cast(nets.sample)
    rows = Rows.of(cases, math.prod(nets.exact.output_shape))
    lower, grounds = np.full(rows.offset.shape, -np.inf), Grounds.over(rows.offset.shape)
    batch = _Batch(nets, region, rows, lower, grounds, members=np.arange(len(cases)))
    stage = np.full(len(cases), STAGE_NAMES["ibp"], dtype=object)
    seconds: list[dict[str, float]] = [{} for _ in cases]
    steps: dict[str, Callable[[_Batch, AlphaOptions | None, float], None]] = {
        "ibp": _ibp,
        "crown": _crown,
        "alpha-crown": _alpha,
    }
    for name in BOUND_METHODS[: BOUND_METHODS.index(method) + 1]:
        todo = batch.open()
        if not len(todo) or (name != "ibp" and time.monotonic() >= deadline):
            break
        begin = time.perf_counter()
        before = rows.margins(batch.lower)
        with nets.without_gradients(kept=method == "alpha-crown"):
            steps[name](batch, options, deadline)
        after = rows.margins(batch.lower)
        stage[after > before] = STAGE_NAMES[name]
        for i in todo:
            seconds[i][STAGE_NAMES[name]] = (time.perf_counter() - begin) / len(todo)
    margins = rows.margins(batch.lower)
    found = []
    for b in range(len(cases)):
        each, why = batch.lower[b, rows.polytope[b] >= 0], grounds.proof(b, rows.polytope[b], lower[b])
        start = None if margins[b] > 0 or b not in batch.starts else replace(batch.starts[b], grounds=why)
        found.append(Proof(float(margins[b]), str(stage[b]), each, seconds[b], start, why))
    return found


def _ibp(batch: _Batch, options: AlphaOptions | None, deadline: float) -> None:
    known = propagate(batch.nets.exact, batch.region, crown=False)
    batch.known = known
    _evaluate(batch, known, np.arange(len(batch.lower)), lambda form: affine_tail(known, form), Way.INTERVAL)


def _crown(batch: _Batch, options: AlphaOptions | None, deadline: float) -> None:
    # First from the intervals (CROWN-IBP, Zhang et al. 2020): one pass, where all neurons' bounds need thousands.
    assert batch.known is not None, "CROWN comes after IBP"
    first = batch.open()
    rough = batch.known.narrow(like_index(first, batch.region.lower))
    _evaluate(batch, rough, first, lambda form: backward(rough, form, sharp=True), Way.EARLY)
    todo = batch.open()
    if not len(todo):
        return
    region = batch.region[like_index(todo, batch.region.lower)]
    known = propagate(batch.nets.exact, region, draft=batch.nets.draft, deadline=deadline)
    batch.known, batch.members = known, todo
    batch.grounds.crowned[todo] = True
    # Parallel lines win on some rows; both passes are over few rows, and small beside the layers'.
    reached: dict[int, Array] = {}

    def adaptive(form: Form) -> Array:
        found = plane(known, form, sharp=True)
        reached.update(found.reached)
        return found.value

    _evaluate(batch, known, todo, adaptive, Way.ADAPTIVE)
    _evaluate(batch, known, todo, lambda form: both(known, form)[0], Way.PARALLEL)
    margins = batch.rows.best(batch.lower)[todo]
    safe = np.flatnonzero((margins > 0).all(axis=1))
    if not len(safe):
        return
    margins = np.where(batch.lower[todo] == margins, margins, np.inf)  # of the rows that show it
    some = like_index(safe, batch.region.lower)
    rough = rough.narrow(like_index(np.flatnonzero(np.isin(first, todo))[safe], batch.region.lower))
    light = fewest(rough, known.narrow(some), {n: a[some] for n, a in reached.items()}, margins[safe])
    batch.grounds.fewest.update(zip(todo[safe].tolist(), light, strict=False))


def _evaluate(batch: _Batch, known: Knowledge, members: np.ndarray, bound: Callable[..., Array], way: Way) -> None:
    """Bound all rows of some cases and keep what is better."""
    coeff = like(batch.rows.coeff[members], batch.nets.sample)
    value = bound(row_form(batch.nets.exact.output, coeff))
    _keep(batch, members, np.arange(coeff.shape[1])[None].repeat(len(members), 0), to_numpy(value), way)


def _keep(batch: _Batch, members: np.ndarray, columns: np.ndarray, value: Float64, way: Way) -> None:
    """lower[members, columns] = max(itself, value - offset), rounded down; NaN is dropped."""
    offset = batch.rows.offset[members[:, None], columns]
    margin = np.nextafter(value - offset, -np.inf)
    old = batch.lower[members[:, None], columns]
    batch.lower[members[:, None], columns] = np.fmax(old, margin)
    ways = batch.grounds.way[members[:, None], columns]
    batch.grounds.way[members[:, None], columns] = np.where(margin > old, way, ways)


def _alpha(batch: _Batch, options: AlphaOptions | None, deadline: float) -> None:
    known, members = batch.known, batch.members
    assert known is not None, "alpha-CROWN starts from CROWN's bounds"
    still = np.isin(members, batch.open())
    for part in _portions(batch, known, np.flatnonzero(still)):
        if time.monotonic() >= deadline:
            return
        rows = like_index(part, known.region.lower)
        _optimise_part(batch, known.narrow(rows), members[part], options, deadline)


def _optimise_part(
    batch: _Batch, known: Knowledge, members: np.ndarray, options: AlphaOptions | None, deadline: float
) -> None:
    """Search slopes in float32 for the open rows of some cases, then bound them in float64 with rounding."""
    import torch

    from certify.bounding.alpha import AlphaOptions, optimise

    wanted = ~(batch.rows.best(batch.lower)[members] > 0) & (batch.rows.polytope[members] >= 0)
    columns = np.argsort(~wanted, axis=1, kind="stable")[:, : int(wanted.sum(axis=1).max())]
    coeff = torch.as_tensor(
        np.take_along_axis(batch.rows.coeff[members], columns[..., None], axis=1), device=batch.nets.device
    )
    offset = torch.as_tensor(np.take_along_axis(batch.rows.offset[members], columns, axis=1), device=batch.nets.device)
    padding = torch.as_tensor(~np.take_along_axis(wanted, columns, axis=1), device=batch.nets.device)
    fast = fast_knowledge(batch.nets, known)

    def stop(value: torch.Tensor) -> bool:
        # A margin of 1e-4 of the row's scale is left for the difference between float32 and float64.
        enough = value > offset + 1e-4 * (1 + offset.abs())
        return bool((enough | padding).all()) or time.monotonic() >= deadline

    with torch.enable_grad():
        found = optimise(fast, coeff.to(fast.region.lower.dtype), options or AlphaOptions(), stop=stop)
    sides, rows = widened(known.graph, found)
    sharper = propagate(batch.nets.exact, known.region, slopes=sides, previous=known)
    value = backward(sharper, row_form(batch.nets.exact.output, coeff), slopes=rows, sharp=True)
    _keep(batch, members, columns, to_numpy(value), Way.SLOPES)
    for b, member in enumerate(members):
        one = slice(b, b + 1)
        mine = {start: side.one(b) for start, side in sides.items()}
        batch.grounds.chosen[int(member)] = chosen(
            sharper.narrow(one), known.narrow(one), mine, only(rows, one), columns[b]
        )
        lower = batch.lower[member : member + 1]
        slopes = for_all_rows(rows, one, columns[b], lower.shape[1])
        batch.starts[int(member)] = Start(batch.nets, sharper.narrow(one), batch.rows.one(member), lower, slopes)


def fast_knowledge(nets: Networks, known: Knowledge) -> Knowledge:
    """The same knowledge in float32, for proposals: no rounding weights."""
    if nets.fast is nets.exact:
        return replace(known, weights=[None] * len(known.boxes))
    import torch

    narrow = torch.zeros(1, dtype=torch.float32, device=nets.device)
    boxes = [None if box is None else narrow_interval(box, narrow) for box in known.boxes]
    return Knowledge(nets.fast, known.region.cast(narrow), boxes, [None] * len(boxes), known.floor)


def _portions(batch: _Batch, known: Knowledge, todo: np.ndarray) -> Iterator[np.ndarray]:
    """Cases of similar numbers of open neurons together, each portion within MAX_SLOPES variables."""
    graph = known.graph
    if not len(todo):
        return
    counts = np.zeros(known.region.lower.shape[0], dtype=np.int64)
    for start in starts(graph):
        counts += to_numpy(unsettled(known, start).sum(dim=1))
    widths = {s: math.prod(graph.nodes[s].shape) for s in starts(graph)}
    per_neuron = max(1, 2 * sum(widths.values()))
    for group in groups(counts[todo] + 1):
        chosen = todo[group]
        size = max(1, int(MAX_SLOPES // (per_neuron * (counts[chosen].max() + 1))))
        for first in range(0, len(chosen), size):
            yield chosen[first : first + size]
