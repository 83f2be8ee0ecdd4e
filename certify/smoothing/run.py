"""Many samples: votes, certificate, verdict at each eps, and an attack on what is left open."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from certify.frontends.opaque import is_opaque
from certify.options import Radius
from certify.smoothing.attack import Attack
from certify.smoothing.certify import Budget, Estimate, certify
from certify.smoothing.noise import Blocks
from certify.smoothing.radii import ABSTAIN, Smoothing, convert
from certify.smoothing.sequential import certify_sequentially
from certify.smoothing.splitting import Splitting
from certify.smoothing.store import Ledger, Row
from certify.smoothing.votes import DrawnVotes, Network, split_votes

if TYPE_CHECKING:
    from certify.frontends.data import Dataset
    from certify.model import Model

# The radius is known well enough when no more draws could raise it by more than this part.
PRECISION = 0.1
CERTIFIED, MISCLASSIFIED, FALSIFIED, UNKNOWN = "certified", "misclassified", "falsified", "unknown"


@dataclass(frozen=True)
class Question:
    """What is asked of each sample. radii: empty for the radius alone. sequential: stop as soon as it is answered."""

    radii: tuple[Radius, ...]
    norm: str
    budget: Budget
    sequential: bool
    attack: bool
    seed: int


@dataclass(frozen=True, eq=False)
class Run:
    """A network and its data under one kind of noise. device: where the network runs, as torch names it."""

    model: Model
    data: Dataset
    noise: Smoothing | Splitting
    question: Question
    input_range: tuple[float, float]
    device: str

    @cached_property
    def network(self) -> Network:
        return Network.of(self.model, self.device)

    @cached_property
    def blocks(self) -> Blocks:
        """The draws of all samples."""
        assert isinstance(self.noise, Smoothing)
        return Blocks(self.noise.law, self.noise.size, self.question.seed)

    @cached_property
    def attack(self) -> Attack | None:
        """None where there is nothing to attack, or splits or an opaque network, which have no gradient."""
        q = self.question
        attempts = sum(r.value > 0 for r in q.radii)
        if not q.attack or isinstance(self.noise, Splitting) or not attempts or is_opaque(self.model):
            return None
        import torch

        graph = self.model.graph.cast(torch.zeros(1, dtype=torch.float32, device=self.device))
        alpha = q.budget.alpha / attempts  # a sample is wrongly falsified with probability alpha at most
        return Attack(graph, self.network, self.noise, self.blocks, q.budget.n, alpha, self.input_range, self.device)

    def go(self, ledger: Ledger) -> Iterator[Row]:
        """The rows that the ledger does not hold yet, each recorded before it is told."""
        done = {row.position for row in ledger.rows()}
        for position in range(len(self.data.y)):
            if position not in done:
                row = self.decide(position)
                ledger.record(row)
                yield row

    def decide(self, position: int) -> Row:
        """One sample."""
        begin = time.perf_counter()
        label, sample = int(self.data.y[position]), int(self.data.ids[position])
        decided = self._split(position) if isinstance(self.noise, Splitting) else self._drawn(self.noise, position)
        estimate, predicted, radius, verdicts = decided
        return Row(
            position,
            sample,
            label,
            estimate.chosen,
            predicted,
            estimate.successes,
            estimate.n,
            estimate.lower,
            radius,
            verdicts,
            time.perf_counter() - begin,
        )

    def _drawn(self, noise: Smoothing, position: int) -> tuple[Estimate, int, float, dict[str, str]]:
        q, x = self.question, self.data.x[position]
        places, away = noise.grid.places(x, noise.order)
        sample, label = int(self.data.ids[position]), int(self.data.y[position])
        flat = places.astype(np.float32).ravel()
        votes = DrawnVotes(self.network, noise, self.blocks, flat, sample)

        def answered(lower: float, most: float) -> bool:
            if lower <= 0.5:
                return most <= 0.5  # whether there is a majority at all is asked first
            if not q.radii:
                return noise.radius(lower, q.norm, away) >= (1 - PRECISION) * noise.radius(most, q.norm, away)
            ends = (
                (noise.certified(lower, float(r), q.norm, away), noise.certified(most, float(r), q.norm, away))
                for r in q.radii
            )
            return all(sure or not possible for sure, possible in ends)

        found = certify_sequentially(votes, q.budget, answered) if q.sequential else certify(votes, q.budget)
        radius = noise.radius(found.lower, q.norm, away)
        predicted = found.chosen if radius > 0 else ABSTAIN
        verdicts, fallen = {}, False
        near = noise.grid.places(x, {"l1": 1, "l2": 2, "linf": math.inf}[q.norm])[1]
        for eps in q.radii:  # ascending: what falls in a ball falls in those around it
            held = noise.certified(found.lower, float(eps), q.norm, away)
            verdicts[eps.key] = self._verdict(predicted, label, held)
            if verdicts[eps.key] == UNKNOWN and self.attack is not None:
                fallen = fallen or self.attack.falsifies(places, near, sample, label, (eps.value, q.norm))
                verdicts[eps.key] = FALSIFIED if fallen else UNKNOWN
        return found, predicted, radius, verdicts

    def _split(self, position: int) -> tuple[Estimate, int, float, dict[str, str]]:
        """The same for splits, where nothing is estimated."""
        assert isinstance(self.noise, Splitting)
        q, label = self.question, int(self.data.y[position])
        counts = split_votes(self.network, self.noise, self.noise.places(self.data.x[position]))
        chosen = int(np.argmax(counts))
        radius = convert(self.noise.radius(counts), "l1", q.norm, self.noise.size)
        found = Estimate(chosen, int(counts[chosen]), self.noise.period, float(counts[chosen]) / self.noise.period)
        predicted = chosen if counts[chosen] else ABSTAIN  # no answer was finite
        verdicts = {r.key: self._verdict(predicted, label, radius >= float(r)) for r in q.radii}
        return found, predicted, radius, verdicts

    def _verdict(self, predicted: int, label: int, held: bool) -> str:
        """A certified wrong class is wrong at every eps; an abstention is open."""
        if predicted >= 0 and predicted != label:
            return MISCLASSIFIED
        return CERTIFIED if predicted == label and held else UNKNOWN
