"""The steps of a proof: what they make of the bounds of a case, and which polytopes they exclude."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from certify.check.backward import ADAPTIVE, CHUNK, Choice, Form, Multiplier, between, beyond, lowest, neurons
from certify.check.content import Close, Crown, Index, Mode, Polytope, Refine, Slopes, Step, UnitSlopes
from certify.check.errors import Rejected
from certify.check.interval import Bounds, forward, sharpened
from certify.check.network import Conv, Float64
from certify.check.region import Norm
from certify.check.relax import unsettled
from certify.check.single import needs, short


@dataclass(frozen=True, eq=False)
class Claim:
    """What is to be excluded: the unsafe polytopes, over an input set that `norm` cuts from its box."""

    polytopes: Sequence[Polytope]
    norm: Norm | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """A margin of a polytope is `bound` at least, and for float32 at most `lost` less."""

    polytope: int
    bound: float
    lost: float


def moves(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that change bounds."""
    return tuple(step for step in steps if not isinstance(step, Close))


def alike(step: Step) -> Hashable | None:
    """Steps of several certificates with the same answer can be taken together; None: it must be taken alone."""
    return (step.units, step.adaptive) if isinstance(step, Crown) else None


def execute(
    bounds: Bounds, programs: Sequence[Sequence[Step]], claims: Sequence[Claim], place: str
) -> tuple[Bounds, list[list[Shown]]]:
    """The bounds after the steps, and what these show: a program and a claim for each of the B boxes.

    With more than one box all moves must be alike, and the claims' norms None.
    """
    shown: list[list[Shown]] = [[] for _ in programs]
    turns = [moves(steps) for steps in programs]
    for turn in range(len(turns[0]) + 1):
        closes = [(box, step) for box, steps in enumerate(programs) for step in _closes(steps, turn)]
        if closes:
            bounds = forward(bounds)
            _close(bounds, closes, _Told(claims, needs(bounds), shown), place)
        if turn < len(turns[0]):
            step, norm = turns[0][turn], claims[0].norm
            if isinstance(step, Refine):
                bounds = _refine(bounds, step, norm, place)
            else:
                bounds = crown(bounds, [cast(Crown, steps[turn]) for steps in turns], norm)
    return forward(bounds), shown


def _closes(steps: Sequence[Step], turn: int) -> Iterator[Close]:
    """The steps that exclude something after `turn` moves."""
    done = 0
    for step in steps:
        if not isinstance(step, Close):
            done += 1
        elif done == turn:
            yield step


def crown(bounds: Bounds, steps: Sequence[Crown], norm: Norm | None) -> Bounds:
    """Unsettled neurons bounded unit by unit: one parallel pass, then one adaptive pass a side.

    steps: one for each box, all alike, or one for all.
    """
    model, step = bounds.model, steps[0]
    for unit in range(len(model.units)) if step.units is None else step.units:
        source, kind = model.source(unit), model.kind(unit)
        bounds = forward(bounds, source)
        ends = bounds.interval(source)
        open_ = unsettled(kind, *ends)
        allowed = np.zeros((len(steps), open_.shape[1]), dtype=np.bool_)
        for mine, one in zip(allowed, steps, strict=True):
            mine[slice(None) if one.places is None else one.places.get(unit, np.zeros(0, dtype=np.int64))] = True
        open_ = open_ & allowed
        rows = np.nonzero(open_)
        if not len(rows[0]) or (norm is None and model.network.nodes[source].inputs == (0,)):
            continue  # one affine map of a box: its interval is the best there is
        lower, upper = (side.copy() for side in ends)
        for box, where in _chunks(bounds, source, *rows):
            _meet(lower, upper, box, where, *between(bounds, neurons(bounds, source, where, 1, box), box, norm))
        if step.adaptive and source > model.first:  # else the first pass met no unit, and was the best there is
            rows = np.nonzero(open_ & unsettled(kind, lower, upper))
            for box, where in _chunks(bounds, source, *rows):
                twice, signs = None if box is None else np.repeat(box, 2), np.tile([1.0, -1.0], len(where))
                form = neurons(bounds, source, np.repeat(where, 2), signs, twice)
                both = lowest(bounds, form, twice, ADAPTIVE, norm)
                _meet(lower, upper, box, where, both[::2], -both[1::2])
        bounds = sharpened(bounds, source, lower, upper)
    return forward(bounds)


def _refine(bounds: Bounds, step: Refine, norm: Norm | None, place: str) -> Bounds:
    source = bounds.model.source(step.unit)
    bounds = forward(bounds, source)
    lower, upper = (side.copy() for side in bounds.interval(source))
    zero = np.zeros(len(step.places), dtype=np.int64)
    numbers = np.arange(len(step.places))
    for box, number in _chunks(bounds, source, zero, numbers):
        where = step.places[number]
        sides = []
        for sign, slopes, lent in (
            (1, step.below, step.below_multipliers),
            (-1, step.above, step.above_multipliers),
        ):
            how = replace(
                choice(bounds, slopes, number, place), multipliers=_multipliers(bounds, step, lent, number, place)
            )
            sides.append(lowest(bounds, neurons(bounds, source, where, sign, box), box, how, norm))
        _meet(lower, upper, box, where, sides[0], -sides[1])
    return forward(sharpened(bounds, source, lower, upper))


def _multipliers(
    bounds: Bounds, step: Refine, lent: dict[int, tuple[Index, Float64]], rows: Index, place: str
) -> dict[int, Multiplier]:
    """The multipliers of some of a step's passes, by the node whose coefficients they are taken off."""
    found: dict[int, Multiplier] = {}
    for unit, (at, value) in lent.items():
        node, number = bounds.model.source(unit), np.repeat(np.arange(len(rows)), len(at))
        if node > bounds.model.source(step.unit):
            raise Rejected(f"{place}: multipliers of unit {unit}, which comes after unit {step.unit}")
        one = Multiplier(number, np.tile(at, len(rows)), value[rows].ravel())
        found[node] = found[node].and_also(one) if node in found else one
    return found


@dataclass(frozen=True, eq=False)
class _Told:
    """Of every box: its claim, by how much float32 may be off there, and what has been shown."""

    claims: Sequence[Claim]
    needs: Sequence[Float64 | None]
    shown: Sequence[list[Shown]]


def _close(bounds: Bounds, closes: Sequence[tuple[int, Close]], told: _Told, place: str) -> None:
    """Margins bounded by steps (box, step), those with one mode in one pass."""
    modes: dict[str, list[tuple[int, int, int]]] = {}
    for box, step in closes:
        forms = [(box, p, row) for p, row in zip(step.polytopes, step.rows, strict=True)]
        if isinstance(step.slopes, str):
            modes.setdefault(step.slopes, []).extend(forms)
        else:
            _bound(bounds, forms, step.slopes, told, place)
    for mode, forms in modes.items():
        _bound(bounds, forms, cast(Mode, mode), told, place)


def _bound(
    bounds: Bounds,
    forms: Sequence[tuple[int, int, int]],
    slopes: Mode | Slopes,
    told: _Told,
    place: str,
) -> None:
    """Row of polytope of box, (box, polytope, row), bounded from below."""
    owner, numbers = np.array([box for box, _, _ in forms], dtype=np.int64), np.arange(len(forms))
    for box, number in _chunks(bounds, len(bounds.model.network.nodes) - 1, owner, numbers):
        parts, lost = [], []
        for k in number:
            b, p, row = forms[k]
            polytope = told.claims[b].polytopes[p]
            mix = np.zeros(len(polytope.offset))
            mix[row] = 1.0
            parts.append((polytope, mix))
            lost.append(short(polytope, mix, told.needs[b]))
        form, norm = margin(bounds, parts), told.claims[0].norm
        if isinstance(slopes, str):
            enough = np.where(np.isinf(lost), 0.0, lost)
            value = beyond(bounds, form, box, slopes, norm, enough)
        else:
            value = lowest(bounds, form, box, choice(bounds, slopes, number, place), norm)
        for k, bound, less in zip(number, value, lost, strict=True):
            told.shown[forms[k][0]].append(Shown(forms[k][1], float(bound), less))


def margin(bounds: Bounds, parts: Sequence[tuple[Polytope, Float64]]) -> Form:
    """sum_r mix_r (C_r y - d_r), one form for each polytope and its mix (R,).

    The mixed coefficients are off by gamma_R mix |C| (times |y|), the mixed offsets by gamma_R mix |d|.
    """
    arithmetic = bounds.model.arithmetic
    last = len(bounds.model.network.nodes) - 1
    size = bounds.size[last]
    assert size is not None
    top = size.max(axis=0)
    counts = [len(polytope.offset) for polytope, _ in parts]
    starts = np.cumsum([0, *counts[:-1]])
    mix = arithmetic.array(np.concatenate([weights[:n] for (_, weights), n in zip(parts, counts, strict=True)]))
    coeff = arithmetic.array(np.concatenate([polytope.coeff for polytope, _ in parts]))
    offset = arithmetic.array(np.concatenate([polytope.offset for polytope, _ in parts]))
    rows = np.add.reduceat(mix[:, None] * coeff, starts, axis=0)
    lost = np.add.reduceat(mix * (np.abs(coeff) @ top + np.abs(offset)), starts)
    underflow = arithmetic.tiny * (8 * max(counts) * (coeff.shape[1] + 1)) * (1 + top.sum())
    error = arithmetic.gamma(max(counts)) * lost + underflow
    return Form(last, rows, -np.add.reduceat(mix * offset, starts), error)


def choice(bounds: Bounds, slopes: Slopes, rows: Index, place: str) -> Choice:
    """The slopes of some forms; adaptive where none are named."""
    picked = {}
    for unit, given in slopes.items():
        smooth = type(bounds.model.kind(unit)).__name__ == "Sigmoid"
        if (given.upper is not None and not smooth) or (smooth and (given.lower > 0.25).any()):
            raise Rejected(f"{place}: slopes of unit {unit} that its kind does not have")
        one = len(given.lower) == 1
        upper = given.upper if given.upper is None or one else given.upper[rows]
        picked[unit] = UnitSlopes(given.at, given.lower if one else given.lower[rows], upper)
    return Choice(slopes=picked)


def _chunks(bounds: Bounds, node: int, box: Index, rows: Index) -> Iterator[tuple[Index | None, Index]]:
    """Rows and the boxes that they belong to, as many at once as memory allows."""
    nodes = bounds.model.network.nodes
    widest = max(n.size for n in nodes[: node + 1])
    if isinstance(nodes[node].op, Conv):  # rows live on windows first
        widest = max(widest // 4, 1)
    count = max(1, CHUNK // widest)
    one = all(lower is None or len(lower) == 1 for lower in bounds.lower)
    for start in range(0, len(rows), count):
        part = slice(start, start + count)
        yield None if one else box[part], rows[part]


def _meet(lower: Float64, upper: Float64, box: Index | None, where: Index, low: Float64, high: Float64) -> None:
    """Puts better bounds of neurons `where` of boxes `box` in their places."""
    at = (0 if box is None else box, where)
    lower[at], upper[at] = np.maximum(lower[at], low), np.minimum(upper[at], high)
