"""TAPS (Mao et al. 2023): intervals through a network's first part, attacks within their box through its second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.errors import UsageError
from certify.graph import Graph
from certify.ops.relu import Relu
from certify.rules import evaluate
from certify.trainers.ascent import gradient
from certify.trainers.bounds import Live, interval_margins, intervals, rows_of, worst_loss
from certify.trainers.certified import Certified
from certify.trainers.objective import Ball, Batch, ramped

if TYPE_CHECKING:
    import torch

# Steps as fractions of the box's width, the second from 0.7 of them on, as in the authors' code with 20 steps.
LONG, SHORT, LATE = 0.2, 0.02, 0.7


def split_at(graph: Graph, relus: int) -> int:
    """The ReLU that so many follow, the input where there are no more; what is behind it must be a chain of layers."""
    found = [index for index, node in enumerate(graph.nodes) if isinstance(node.op, Relu)]
    split = found[-relus - 1] if len(found) > relus else 0
    for index in range(split + 1, len(graph.nodes)):
        if graph.nodes[index].inputs != (index - 1,):
            raise UsageError(f"TAPS takes networks that end in a chain of layers; {graph.nodes[index].name} does not")
    return split


def tail(graph: Graph, split: int, values: torch.Tensor) -> torch.Tensor:
    """The logits of values (B, ...) of the node `split`."""
    for node in graph.nodes[split + 1 :]:
        values = evaluate(node.op, values)
    return values


def linked(points: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, link: float) -> torch.Tensor:
    """The points (B, K, ...), with slopes to the bounds (B, 1, ...) that they lie near ("gradient connector").

    A point's slope to the upper bound is 1 at it and falls linearly to 0 at `link` of the width below it; to the lower
    bound alike. Gradients flow nowhere else.
    """
    slack = (link * (upper - lower)).detach().clamp(min=1e-5)
    to_upper = ((points - upper) / slack + 1).detach().clamp(0, 1)
    to_lower = ((lower - points) / slack + 1).detach().clamp(0, 1)
    moved: torch.Tensor = points.detach() + to_upper * (upper - upper.detach()) + to_lower * (lower - lower.detach())
    return moved


@dataclass(frozen=True)
class Taps(Certified):
    """L_IBP on the ramp, then L_TAPS L_IBP, gradients of the first times `boost`.

    L_TAPS is the cross-entropy of the margins at points that PGD finds within the box.

    relus: how many ReLUs the attacked part has. steps: of PGD, for each class against the label. link: of the gradient
    connector. The defaults are the authors', for whom the attacked part is the last hidden layer and the logits.
    """

    kappa: tuple[float, float] = (0.0, 0.0)
    relus: int = 1
    steps: int = 20
    link: float = 0.5
    boost: float = 5.0

    def robust(self, now: Live, batch: Batch, ball: Ball, points: torch.Tensor) -> torch.Tensor:
        """IBP's loss on the ramp, then the product of the losses."""
        known = intervals(now.graph, *ball.box(batch.x))
        bounded = worst_loss(interval_margins(known, batch.y), batch.y)
        if ramped(batch.progress, self.ramp) < 1:
            return bounded
        split = split_at(now.graph, self.relus)
        box = known.boxes[split]
        assert box is not None, "intervals knows every node"
        rows = rows_of(batch.y, known)
        reached = self.attacked(now.graph, split, (box[0][:, None], box[1][:, None]), rows, batch)
        estimate = worst_loss(reached, batch.y)
        boosted = self.boost * estimate - (self.boost - 1) * estimate.detach()
        return boosted * bounded

    def attacked(
        self, graph: Graph, split: int, box: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """Margins (B, C) at the points of the box (B, 1, ...) where PGD for each class has ended; rows (B, C, C)."""
        import torch

        def margins(points: torch.Tensor) -> torch.Tensor:
            logits = tail(graph, split, points.flatten(0, 1)).reshape(rows.shape)
            found: torch.Tensor = (rows * logits).sum(2)
            return found

        lower, upper = (bound.detach() for bound in box)
        shape = (*rows.shape[:2], *lower.shape[2:])
        chance = torch.rand(shape, generator=batch.generator, device=lower.device, dtype=lower.dtype)
        points = lower + chance * (upper - lower)
        for number in range(self.steps):
            length = LONG if number < LATE * self.steps else SHORT
            with batch.proposing():
                slope = gradient(lambda p: -margins(p), points)
            points = (points + length * (upper - lower) * slope.sign()).clamp(lower, upper)
        return margins(linked(points, *box, self.link))
