"""Bounds to train with: the verifier's own rules on a module's live parameters, differentiable, also with BatchNorm.

In training mode BatchNorm normalises by the statistics of the clean batch, and the bounds use the same statistics, with
their gradients (Shi et al. 2021). In evaluation mode they use the running ones: then bounds are the verifier's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certify.bounding.crown import Knowledge, affine_tail, backward, row_form
from certify.bounding.interval import ibp
from certify.bounding.region import Region
from certify.frontends.torch_import import graph_from_torch
from certify.graph import Graph
from certify.ops.affine import Linear
from certify.ops.conv import Conv
from certify.ops.relu import Relu

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Live:
    """A module as it is now: the logits (B, C) of a batch, and the graph that gave them."""

    logits: torch.Tensor
    graph: Graph

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of other inputs under the same BatchNorm statistics."""
        logits: torch.Tensor = self.graph(x)
        return logits


def live(module: torch.nn.Module, x: torch.Tensor) -> Live:
    """One forward pass, which moves BatchNorm's running statistics in training mode, and its graph."""
    with statistics(module) as seen:
        logits = module(x)
    return Live(logits, graph_from_torch(module, x, seen))


@contextmanager
def statistics(module: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collects mean and variance of what each BatchNorm in training mode reads, under its buffers' names."""
    from torch.nn.modules.batchnorm import _BatchNorm

    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.training:

            def look(_: Any, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
                prefix = f"{name}." if name else ""
                seen[f"{prefix}running_mean"] = inputs[0].mean(axes)
                seen[f"{prefix}running_var"] = inputs[0].var(axes, correction=0)

            hooks.append(part.register_forward_pre_hook(look))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def intervals(graph: Graph, lower: torch.Tensor, upper: torch.Tensor) -> Knowledge:
    """Interval bounds (Gowal et al. 2018) of every node over the boxes [lower, upper], each (B, *input_shape).

    Without the error terms of backward passes: what follows from it is to train with, not to prove with.
    """
    count = len(lower)
    region = Region(lower.reshape(count, -1), upper.reshape(count, -1))
    nothing: list[Any] = [None] * len(graph.nodes)
    return Knowledge(graph, region, ibp(graph, lower, upper), nothing, lower.new_zeros(count))


def rows_of(y: torch.Tensor, known: Knowledge) -> torch.Tensor:
    """(B, C, C) whose product with the logits is z_y - z_j for every class j; the label's own row is 0."""
    import torch

    (classes,) = known.graph.output_shape
    unit = torch.eye(classes, dtype=known.region.lower.dtype, device=y.device)
    rows: torch.Tensor = unit[y][:, None, :] - unit[None]
    return rows


def interval_margins(known: Knowledge, y: torch.Tensor) -> torch.Tensor:
    """Lower bounds (B, C) of z_y - z_j by intervals, the last affine layers merged into the rows ("elision")."""
    margins: torch.Tensor = affine_tail(known, row_form(known.graph.output, rows_of(y, known)))
    return margins


def crown_margins(known: Knowledge, y: torch.Tensor) -> torch.Tensor:
    """Lower bounds (B, C) of z_y - z_j by one CROWN pass over interval bounds (CROWN-IBP, Zhang et al. 2020)."""
    form = row_form(known.graph.output, rows_of(y, known))
    margins: torch.Tensor = backward(known, form, rounding=False)
    return margins


def worst_loss(margins: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """mean CE(-margins, y), (B, C): an upper bound of the worst cross-entropy where margins are lower bounds."""
    import torch

    return torch.nn.functional.cross_entropy(-margins, y)


def fused_loss(known: Knowledge, y: torch.Tensor) -> torch.Tensor:
    """mean log sum_j exp(d_j), d_j = z_j - z_y, bounded from above by one CROWN pass of one row (Xu et al. 2020).

    exp lies below its chord over the interval of d_j, so the sum lies below one linear function of the logits, whose
    greatest value over the ball CROWN bounds: a row for each sample instead of one for each class.
    """
    import torch

    rows = rows_of(y, known)
    at = known.graph.output
    above = -affine_tail(known, row_form(at, rows))
    below = torch.minimum(affine_tail(known, row_form(at, -rows)), above)
    shift = above.amax(1, keepdim=True)  # the label's own is 0
    high, low = (above - shift).exp(), (below - shift).exp()
    width = above - below
    wide = width > 1e-4  # narrower, the quotient is lost to rounding: the tangent's slope at the end, above the chord's
    chord = torch.where(wide, (high - low) / torch.where(wide, width, 1.0), high)
    row = (chord[:, :, None] * rows).sum(1, keepdim=True)
    least = backward(known, row_form(at, row), rounding=False)[:, 0]
    total = (high - chord * above).sum(1) - least
    # In exact arithmetic total >= exp(-shift), the label's own term.
    loss: torch.Tensor = (shift[:, 0] + torch.maximum(total, (-shift[:, 0]).exp()).log()).mean()
    return loss


def steadiness(known: Knowledge, tolerance: float = 0.5) -> torch.Tensor:
    """The regularisers of Shi et al. 2021 (section 3.3), averaged over the ReLUs: tight intervals, balanced ReLUs.

    Tightness: relu(t - w_0 / w_i) / t, w the mean width of the first affine layer's and of ReLU i's input. Balance:
    relu(t - r) / t for the ratios r <= 1 of the active to the inactive neurons' mean and variance; as in their code,
    left out where either set is empty.
    """
    import torch

    nodes = known.graph.nodes
    relus = [node.inputs[0] for node in nodes if isinstance(node.op, Relu)]
    first = next(node.inputs[0] for node in nodes if isinstance(node.op, Conv | Linear))
    width = _width(known, first)
    total: torch.Tensor = known.region.lower.new_zeros(())
    for index in relus:
        lower, upper = known.flat(index)
        total = total + torch.relu(tolerance - width / _width(known, index).clamp(min=1e-12)) / tolerance
        active, inactive = lower > 0, upper < 0
        if not bool(active.any() & inactive.any()):
            continue
        center = (lower + upper) / 2
        apart = (center - center.mean()) ** 2
        ratios = (
            (center * active).sum() / -(center * inactive).sum(),
            (apart * active).sum() / (apart * inactive).sum().clamp(min=1e-12),
        )
        for ratio in ratios:
            total = total + torch.relu(tolerance - torch.minimum(ratio, 1 / ratio.clamp(min=1e-12))) / tolerance
    return total / max(len(relus), 1)


def _width(known: Knowledge, index: int) -> torch.Tensor:
    lower, upper = known.flat(index)
    mean: torch.Tensor = ((upper - lower) / 2).mean()
    return mean
