"""alpha-CROWN (Xu et al. 2021): lower-line slopes as free parameters, optimised for the rows and for the layers before.

Every alpha in range gives a valid bound, so the loop may run in float32 without error terms: it proposes slopes.
What counts is the pass that `certify.bounding.margins` makes afterwards with these slopes, with rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from certify.arrays import Array, put_along, take_along
from certify.bounding.crown import Choice, Knowledge, backward, row_form
from certify.bounding.propagate import Sides, exact_starts, one_side, pick, starts, unsettled
from certify.graph import Graph
from certify.ops.base import Slopes
from certify.ops.relu import Relu
from certify.rules import Interval, is_affine, relax


@dataclass(frozen=True)
class AlphaOptions:
    """iterations: joint steps. step: initial step of Adam, decayed by `decay` each iteration.

    layers: also optimise the slopes inside the bounds of intermediate layers.
    """

    iterations: int = 20
    step: float = 0.25
    decay: float = 0.98
    layers: bool = True


@dataclass(frozen=True, eq=False)
class Proposal:
    """Slopes that an optimisation found: for the rows, and for the neurons of every start node.

    rows: nonlinear node -> Slopes (B, S, n). sides: start node -> Sides. value: (B, S), the best bounds seen,
    without rounding.
    """

    rows: Choice
    sides: dict[int, Sides]
    value: Array


# Coefficients that the passes of one iteration may hold for their gradients: 1.6 GB in float32.
TAPE = 400_000_000
# Slope variables per sample and start node up to which every neuron has its own; beyond, a layer's neurons share
# one set.
OWN_SLOPES = 2_000_000

Variables = dict[int, list[torch.Tensor]]  # nonlinear node -> [lower slopes] or [lower slopes, upper slopes]
Places = dict[int, Array]  # ReLU node -> neurons (B, U)
Inner = dict[int, tuple[Variables, Variables]]  # start node -> slopes of its lower and of its upper bounds


def optimise(
    known: Knowledge,
    rows: torch.Tensor,
    options: AlphaOptions,
    *,
    stop: Callable[[torch.Tensor], bool] = lambda value: False,
) -> Proposal:
    """Slopes that raise the lower bounds of rows . output: rows (B, S, n_out); `known` in the dtype to search in.

    stop(value (B, S)) is asked after each iteration and may end the search early (all rows positive, out of time).
    """
    graph = known.graph
    targets = _targets(known) if options.layers else {}
    specs = {s: n.shape[1] if _own(known, s, n.shape[1]) else 1 for s, n in targets.items()}
    unstable = _places(known)
    places = {s: unstable if n > 1 else {} for s, n in specs.items()}
    inner = {s: _pair(known, s, n, places[s]) for s, n in specs.items()}
    outer = _variables(known, graph.output, rows.shape[1], {})
    sets = [group for pair in inner.values() for group in pair] + [outer]
    leaves = [slope for group in sets for slopes in group.values() for slope in slopes]
    if not leaves:
        value = backward(known, row_form(graph.output, rows), rounding=False)
        return Proposal({}, {}, value)
    relative = [not isinstance(graph.nodes[n].op, Relu) for group in sets for n, vs in group.items() for _ in vs]
    adam = _Adam(leaves, relative)
    best = _Best(outer, inner)
    for iteration in range(options.iterations + 1):
        now, layers = _forward(known, targets, inner, places)
        value = backward(now, row_form(graph.output, rows), slopes=_choice(outer, {}), rounding=False)
        best.update(value.detach(), layers)
        if iteration == options.iterations or stop(best.value):
            break
        # Only the slopes' gradients: the network's parameters may be live and keep their own.
        gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        with torch.no_grad():
            adam.ascend(gradients, options.step * options.decay**iteration)
            _project(known.graph, sets)
    sides = {s: Sides(targets[s], *(_for_all(known, _choice(g, places[s])) for g in best.inner[s])) for s in targets}
    return Proposal(_choice(best.outer, {}), sides, best.value)


def _targets(known: Knowledge) -> dict[int, Array]:
    """Start nodes whose bounds are optimised too, and their unsettled neurons (B, K): the cheapest ones that fit
    into memory.
    """
    graph = known.graph
    settled = exact_starts(graph) if known.region.p == 0 else {0}
    found: dict[int, tuple[int, Array]] = {}
    for start in starts(graph):
        mask = unsettled(known, start)
        count = int(mask.sum(dim=1).max())
        if start not in settled and count:
            widths = sum(math.prod(graph.nodes[i].shape) for i in graph.ancestors(start))
            found[start] = 2 * count * widths * mask.shape[0], pick(mask, count)
    targets, total = {}, 0
    for start, (cost, neurons) in sorted(found.items(), key=lambda item: item[1][0]):
        total += cost
        if total <= TAPE:
            targets[start] = neurons
    return dict(sorted(targets.items()))


def _places(known: Knowledge) -> Places:
    """Per ReLU node the neurons (B, U) whose slopes matter: its samples' unstable ones."""
    found: Places = {}
    for index, node in enumerate(known.graph.nodes):
        if isinstance(node.op, Relu):
            lower, upper = known.flat(node.inputs[0])
            mask = (lower < 0) & (upper > 0)
            found[index] = pick(mask, max(1, int(mask.sum(dim=1).max())))
    return found


def _pair(known: Knowledge, start: int, specs: int, places: Places) -> tuple[Variables, Variables]:
    """Slopes for the lower and for the upper bounds of a start node."""
    return _variables(known, start, specs, places), _variables(known, start, specs, places)


def _own(known: Knowledge, start: int, count: int) -> bool:
    """Has each of `count` neurons slopes of its own? One set serves all where that would be large."""
    widths = sum(math.prod(known.graph.nodes[i].shape) for i in _nonlinear_before(known.graph, start))
    return count * widths <= OWN_SLOPES


def _nonlinear_before(graph: Graph, last: int) -> list[int]:
    return [i for i in graph.ancestors(last) if i and not is_affine(graph.nodes[i].op)]


def _variables(known: Knowledge, last: int, specs: int, places: Places) -> Variables:
    """Free slopes of the nonlinear nodes before `last`, at their defaults: (B, specs, n) each, (B, specs, U) with a
    place.
    """
    found: Variables = {}
    for index in _nonlinear_before(known.graph, last):
        node = known.graph.nodes[index]
        lower, upper = known.flat(node.inputs[0])
        lines = relax(node.op, lower, upper, Slopes())
        slopes = [lines.lower_slope] if isinstance(node.op, Relu) else [lines.lower_slope, lines.upper_slope]
        if index in places:
            slopes = [take_along(s, places[index]) for s in slopes]
        found[index] = [s[:, None, :].repeat(1, specs, 1).requires_grad_() for s in slopes]
    return found


def _choice(variables: Variables, places: Places) -> Choice:
    """The slopes as passes take them."""
    return {
        node: Slopes(pair[0], pair[1] if len(pair) > 1 else None, places.get(node)) for node, pair in variables.items()
    }


def _for_all(known: Knowledge, choice: Choice) -> Choice:
    """The same slopes for all neurons, stable ones at their defaults."""
    found = dict(choice)
    for node, slopes in choice.items():
        if slopes.at is None:
            continue
        lower, upper = known.flat(known.graph.nodes[node].inputs[0])
        default = relax(known.graph.nodes[node].op, lower, upper, Slopes()).lower_slope[:, None, :]
        place = slopes.at[:, None, :].expand(slopes.lower.shape)  # type: ignore[union-attr]
        found[node] = Slopes(default.repeat(1, place.shape[1], 1).scatter_(2, place, slopes.lower))
    return found


def _forward(
    known: Knowledge, targets: dict[int, Array], inner: Inner, places: Mapping[int, Places]
) -> tuple[Knowledge, dict[int, Interval]]:
    """Knowledge with the start nodes' boxes tightened under the current slopes, and each start's raw bounds, 2 x
    (B, K).
    """
    boxes = list(known.boxes)
    now = replace(known, boxes=boxes)
    found: dict[int, Interval] = {}
    for start, neurons in targets.items():
        below, above = (
            one_side(now, start, neurons, sign, _choice(group, places[start]), rounding=False)
            for sign, group in zip((1, -1), inner[start], strict=True)
        )
        found[start] = below.detach(), above.detach()
        lower, upper = known.flat(start)
        shape = (lower.shape[0], *known.graph.nodes[start].shape)
        low = put_along(lower, neurons, _straight(below, take_along(lower, neurons)))
        high = put_along(upper, neurons, -_straight(above, -take_along(upper, neurons)))
        boxes[start] = (low.reshape(shape), high.reshape(shape))
    return now, found


def _straight(value: Array, floor: Array) -> Array:
    """max(value, floor), with the gradient always to `value`: slopes that fall below what is known must be able to
    return.
    """
    return value + (torch.maximum(value, floor) - value).detach()


def _project(graph: Graph, groups: list[Variables]) -> None:
    for variables in groups:
        for node, pair in variables.items():
            ceiling = 1.0 if isinstance(graph.nodes[node].op, Relu) else 0.25
            for slope in pair:
                slope.clamp_(0.0, ceiling)


class _Adam:
    """Adam (Kingma & Ba 2015), ascending. torch.optim's costs 2 s of imports on first use, more than most
    properties take.
    """

    def __init__(self, leaves: Sequence[torch.Tensor], relative: Sequence[bool]) -> None:
        self.leaves = leaves
        self.relative = relative  # leaves that are optimised by their logarithm: smooth ops' slopes, 0.25 to 1e-10
        self.first = [torch.zeros_like(leaf) for leaf in leaves]
        self.second = [torch.zeros_like(leaf) for leaf in leaves]
        self.steps = 0

    def ascend(
        self, gradients: Sequence[torch.Tensor | None], step: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.steps += 1
        scale = math.sqrt(1 - betas[1] ** self.steps) / (1 - betas[0] ** self.steps)
        states = zip(self.leaves, self.relative, gradients, self.first, self.second, strict=True)
        for leaf, relative, gradient, first, second in states:
            if gradient is None:
                continue
            if relative:
                gradient = gradient * leaf
            first.lerp_(gradient, 1 - betas[0])
            second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
            if relative:
                leaf.mul_(torch.exp(first / second.sqrt().add_(1e-8) * (step * scale)))
            else:
                leaf.addcdiv_(first, second.sqrt().add_(1e-8), value=step * scale)


class _Best:
    """The best value per row seen so far, and the slopes that gave it."""

    def __init__(self, outer: Variables, inner: Inner) -> None:
        self.live_outer, self.live_inner = outer, inner
        self.outer = _copy(outer)
        self.inner = {s: (_copy(below), _copy(above)) for s, (below, above) in inner.items()}
        self.value: torch.Tensor = torch.empty(0)
        self.layers: dict[int, Interval] = {}

    def update(self, value: torch.Tensor, layers: dict[int, Interval]) -> None:
        if not self.value.numel():
            self.value, self.layers = value, dict(layers)
            return
        self.value = _keep(value, self.value, self.live_outer, self.outer)
        for start, found in layers.items():
            both = zip(found, self.layers[start], self.live_inner[start], self.inner[start], strict=True)
            below, above = (_keep(*parts) for parts in both)
            self.layers[start] = below, above


def _copy(variables: Variables) -> Variables:
    return {n: [v.detach().clone() for v in vs] for n, vs in variables.items()}


def _keep(value: torch.Tensor, best: torch.Tensor, live: Variables, kept: Variables) -> torch.Tensor:
    """Copy the slopes of the rows (B, S) that improved; returns the better values. Shared slopes follow the mean
    row.
    """
    for node, vs in live.items():
        for new, old in zip(vs, kept[node], strict=True):
            better = value > best if new.shape[1] == value.shape[1] else (value - best).mean(dim=1, keepdim=True) > 0
            old[better] = new.detach()[better]
    return torch.maximum(value, best)
