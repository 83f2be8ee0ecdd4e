"""The search of one attack: tracks that descend in parallel, and the best point so far of each case.

A *track* is one descent: its case (`owner`), its polytope (`target`, or UNTARGETED) and its point. All tracks of a
round run as one batch, cut into chunks that fit into memory; decided cases leave it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from certify.arrays import is_torch
from certify.attacks.objective import PAD, UNTARGETED, Objective
from certify.attacks.replay import Replay, Replayer
from certify.attacks.sets import TorchSets
from certify.attacks.surrogate import leaky
from certify.graph import Graph
from certify.ops import Weighted
from certify.property import Case
from certify.verdict import Witness

if TYPE_CHECKING:
    from certify.attacks.pgd import AttackOptions

CHUNK_NUMBERS = 2**25  # activations of one chunk: 128 MB in float32, twice that with gradients
ROUND_TRACKS = 96  # tracks a round is filled up to by more restarts at once: below it, one core is not busy
CHECK_STEPS = 5  # steps between looks at the candidates: a look costs as much as a step where it replays
FEW_COORDINATES = 20  # so many that vary, and random points and corners find much
NEAR = 1e-4  # relative to the outputs: candidates this close to unsafe are replayed, float32 may be wrong about them


@dataclass(frozen=True, eq=False)
class Tracks:
    """K descents. owner, target: (K,). x: (K, n)."""

    owner: Tensor
    target: Tensor
    x: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Tracks:
        return Tracks(self.owner[rows], self.target[rows], self.x[rows])


@dataclass(frozen=True, eq=False)
class Guide:
    """How a round descends: the network, perhaps with leaking gradients, the kind of loss, the first step's size."""

    graph: Graph
    loss: str
    step_size: float


class Search:
    """One attack on cases whose input sets are of one kind."""

    def __init__(
        self,
        graph: Graph,
        replayer: Replayer,
        cases: Sequence[Case],
        options: AttackOptions,
        deadline: float | None,
    ) -> None:
        self.graph, self.replayer, self.cases, self.options = graph, replayer, cases, options
        self.deadline = math.inf if deadline is None else deadline
        sample = _sample_of(graph)
        self.sets = TorchSets.of([c.inputs for c in cases], sample)
        self.objective = Objective.of(cases, sample)
        self.generator = torch.Generator(device=sample.device).manual_seed(options.seed)
        count, device = len(cases), sample.device
        self.best_x = self.sets.center.clone()
        self.best_margin = torch.full((count,), math.inf, dtype=sample.dtype, device=device)
        self.scale = torch.ones((count,), dtype=sample.dtype, device=device)
        self.replayed = torch.full((count,), math.inf, dtype=sample.dtype, device=device)
        self.steps = torch.zeros(count, dtype=torch.long, device=device)
        self.decided = torch.zeros(count, dtype=torch.bool, device=device)
        self.witnesses: list[Witness | None] = [None] * count
        self.margins = [math.inf] * count
        self.starts: Tensor | None = None
        numbers = sum(math.prod(node.shape) for node in graph.nodes)
        self.chunk = max(1, CHUNK_NUMBERS // (numbers + self.objective.cost))

    def run(self) -> None:
        """Probe, then round after round until all is decided, the restarts are used up or time is over."""
        targets = self._targets()
        if self.options.probe:
            self._probe(targets)
        done, number = 0, 0
        while done < self.options.restarts and not self._over():
            active = torch.nonzero(~self.decided)[:, 0]
            per_case = active.numel() * targets.shape[1]
            # The first round is small: most cases that fall at all fall at once.
            together = 1 if number == 0 else max(1, min(self.options.restarts - done, ROUND_TRACKS // per_case))
            guide = self._guide(number)
            self._round(active, targets, range(done, done + together), guide)
            done, number = done + together, number + 1

    def outcomes(self) -> Iterator[tuple[Witness | None, float, int]]:
        """(witness, smallest margin replayed, steps) of each case; the best candidate of every case is replayed."""
        self._confirm(torch.full_like(self.best_margin, math.inf))
        yield from zip(self.witnesses, self.margins, self.steps.tolist(), strict=True)

    def _over(self) -> bool:
        return time.monotonic() >= self.deadline or bool(self.decided.all())

    def _guide(self, number: int) -> Guide:
        """What gives the gradients of a round: conjunctions take turns between margin and hinge at every leak."""
        leaks, sizes = self.options.leaks, self.options.step_sizes
        turn, place = divmod(number, len(leaks))
        hinge = self.objective.several and (number + turn) % 2 == 1
        loss = "hinge" if hinge else self.options.loss
        return Guide(leaky(self.graph, leaks[place]), loss, sizes[turn % len(sizes)])

    def _targets(self) -> Tensor:
        """(B, T): the polytopes that each case's tracks aim at; the centre is the first candidate."""
        count = len(self.cases)
        owner = torch.arange(count, device=self.best_x.device)
        parts = [self._look(owner[rows], self.sets[rows].center) for rows in _pieces(owner, self.chunk)]
        if self.options.targeted == "untargeted":
            return torch.full((count, 1), UNTARGETED, device=owner.device)
        margins = torch.cat(parts)
        return margins.topk(min(self.options.targets, margins.shape[1]), dim=1, largest=False).indices

    def _probe(self, targets: Tensor) -> None:
        """Candidates without a descent: gradient corners of every target; many points where few coordinates vary."""
        owner = torch.arange(len(self.cases), device=self.best_x.device)
        guide = self._guide(0)
        self._confirm(self._near())
        for target in targets.T:
            for rows in _pieces(owner[~self.decided], self.chunk):
                tracks = Tracks(rows, target[rows], self.sets[rows].center)
                gradient = self._gradient(tracks, guide)
                self._look(rows, self.sets[rows].extreme(gradient, self.generator))
        self._confirm(self._near())
        self._sample()

    def _sample(self) -> None:
        """Random points and corners of the sets where few coordinates vary; the best become starts."""
        varying = (self.sets.upper > self.sets.lower).sum(dim=1)
        few = torch.nonzero((varying <= FEW_COORDINATES) & ~self.decided)[:, 0]
        keep = min(self.options.restarts, 32, self.options.samples)
        if not few.numel() or not keep:
            return
        self.starts = self.sets.center[:, None, :].repeat(1, keep, 1)
        for case in few.tolist():
            if self._over():
                break
            owner = torch.full((self.options.samples,), case, device=few.device)
            sets = self.sets[owner]
            inner, outer = sets.random(self.generator), sets.corner(self.generator)
            even = (torch.arange(len(owner), device=few.device) % 2 == 0)[:, None]
            x = torch.where(even, inner, outer)
            margins = torch.cat([self._look(owner[: len(part)], part) for part in _pieces(x, self.chunk)])
            self.starts[case] = x[margins.amin(dim=1).topk(keep, largest=False).indices]
        self._confirm(self._near())

    def _round(self, active: Tensor, targets: Tensor, restarts: range, guide: Guide) -> None:
        """One descent for every active case, target and restart."""
        owner = active.repeat_interleave(targets.shape[1]).repeat(len(restarts))
        target = targets[active].flatten().repeat(len(restarts))
        which = torch.arange(restarts.start, restarts.stop, device=active.device)
        which = which.repeat_interleave(active.numel() * targets.shape[1])
        real = (target == UNTARGETED) | (self.objective.offset[owner, target.clamp_min(0), 0] > -PAD / 2)
        owner, target, which = owner[real], target[real], which[real]
        for rows in _pieces(torch.arange(len(owner), device=owner.device), self.chunk):
            if self._over():
                return
            fresh = ~self.decided[owner[rows]]
            rows = rows[fresh]
            if rows.numel():
                self._descend(Tracks(owner[rows], target[rows], self._start(owner[rows], which[rows])), guide)

    def _start(self, owner: Tensor, restart: Tensor) -> Tensor:
        """Restart 0 begins at the centre, the next at the best samples where there are some, others at random."""
        sets = self.sets[owner]
        if not self.options.random_start:
            return sets.center
        x = sets.random(self.generator)
        if self.starts is not None:
            pooled = ((restart <= self.starts.shape[1]) & (restart > 0))[:, None]
            varying = (sets.upper > sets.lower).sum(dim=1, keepdim=True) <= FEW_COORDINATES
            best = self.starts[owner, (restart - 1).clamp(0, self.starts.shape[1] - 1)]
            x = torch.where(pooled & varying, best, x)
        first = (restart == 0)[:, None]
        return torch.where(first, sets.center, x)

    def _descend(self, tracks: Tracks, guide: Guide) -> None:
        """`steps` projected steps with shrinking size; every point on the way is a candidate."""
        options = self.options
        sets = self.sets[tracks.owner]
        tracks = self._diversify(tracks, sets, guide)
        speed = torch.zeros_like(tracks.x)
        ratio = options.decay ** (1 / max(options.steps - 1, 1))
        for step in range(options.steps):
            if step % CHECK_STEPS == CHECK_STEPS - 1:
                self._confirm(torch.zeros_like(self.best_margin))
                fresh = ~self.decided[tracks.owner]
                if not bool(fresh.all()):
                    tracks, speed, sets = tracks[fresh], speed[fresh], sets[fresh]
            if not len(tracks.owner) or time.monotonic() >= self.deadline:
                break
            gradient = self._gradient(tracks, guide)
            if options.momentum:
                mean = gradient.abs().mean(dim=1, keepdim=True)
                speed = options.momentum * speed + gradient / mean.clamp_min(1e-30)
                gradient = speed
            size = guide.step_size * ratio**step
            x = sets.advance(tracks.x, gradient, size, self.generator)
            tracks = Tracks(tracks.owner, tracks.target, x)
        if len(tracks.owner):
            self._look(tracks.owner, tracks.x)
        self._confirm(self._near())

    def _diversify(self, tracks: Tracks, sets: TorchSets, guide: Guide) -> Tracks:
        """Output-diversified starts (Tashiro et al. 2020): ascend w . f(x) for one random w in [-1, 1]^m per track."""
        if not self.options.odi_steps:
            return tracks
        outputs = self.objective.coeff.shape[-1]
        shape = (len(tracks.owner), outputs)
        weight = 2 * torch.rand(shape, generator=self.generator, dtype=tracks.x.dtype, device=tracks.x.device) - 1
        x = tracks.x
        for _ in range(self.options.odi_steps):
            x = x.detach().requires_grad_(True)
            y = self._outputs(x, guide.graph)
            (gradient,) = torch.autograd.grad(-(weight * y).sum(), x)
            self._count(tracks.owner)
            x = sets.advance(x.detach(), torch.nan_to_num(gradient), 0.5, self.generator)
        return Tracks(tracks.owner, tracks.target, x.detach())

    def _gradient(self, tracks: Tracks, guide: Guide) -> Tensor:
        """(K, n) gradients of the loss; the points are taken down as candidates on the way. NaN gives no direction."""
        x = tracks.x.detach().requires_grad_(True)
        y = self._outputs(x, guide.graph)
        loss = self.objective.loss(y, tracks.owner, tracks.target, guide.loss)
        self._offer(tracks.owner, tracks.x, y.detach())
        self._count(tracks.owner)
        if not loss.requires_grad:  # a network that does not depend on its input
            return torch.zeros_like(tracks.x)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    def _outputs(self, x: Tensor, graph: Graph) -> Tensor:
        y = graph(x.reshape(len(x), *self.graph.input_shape))
        return y.reshape(len(x), -1)  # type: ignore[no-any-return]

    def _count(self, owner: Tensor) -> None:
        self.steps.index_add_(0, owner, torch.ones_like(owner))

    def _look(self, owner: Tensor, x: Tensor) -> Tensor:
        """Take down x as candidates; their margins per polytope (K, P)."""
        with torch.no_grad():
            return self._offer(owner, x, self._outputs(x, self.graph))

    def _offer(self, owner: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Keep the best candidate of each case."""
        margins = self.objective.margins(y, owner)
        margin = margins.amin(dim=1)
        least = torch.full_like(self.best_margin, math.inf).scatter_reduce(0, owner, margin, "amin")
        won = torch.nonzero((margin == least[owner]) & (margin < self.best_margin[owner]))[:, 0]
        self.best_x[owner[won]] = x[won].detach()
        self.best_margin[owner[won]] = margin[won]
        self.scale[owner[won]] = 1 + torch.nan_to_num(y[won].abs().amax(dim=1))
        return margins

    def _near(self) -> Tensor:
        return NEAR * self.scale

    def _confirm(self, threshold: Tensor) -> None:
        """Replay the best candidates at most `threshold` (B,) that are undecided and new since their last replay."""
        new = (self.best_margin <= threshold) & (self.best_margin < self.replayed) & ~self.decided
        indices = torch.nonzero(new)[:, 0].tolist()
        if not indices:
            return
        xs = self.best_x[new].double().cpu().numpy()
        replays: list[Replay] = self.replayer.replay_batch(list(xs), [self.cases[i] for i in indices])
        self.replayed[new] = self.best_margin[new]
        for index, replay in zip(indices, replays, strict=True):
            self.margins[index] = min(self.margins[index], replay.margin)
            self.witnesses[index] = replay.witness
            if replay.witness is not None:
                self.decided[index] = True


def _pieces(x: Tensor, size: int) -> list[Tensor]:
    return [x[i : i + size] for i in range(0, len(x), size)]


def _sample_of(graph: Graph) -> Tensor:
    """A tensor of the dtype and device that the graph was cast to."""
    for node in graph.nodes:
        if isinstance(node.op, Weighted) and is_torch(node.op.weight):
            return node.op.weight.detach()  # type: ignore[no-any-return]
    return torch.zeros(1)
