"""Certified training by interval bounds (Gowal et al. 2018, "On the effectiveness of interval bound propagation")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.bounding.interval import ibp
from certify.frontends.torch_import import graph_from_torch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class IbpObjective:
    """kappa CE(logits) + (1 - kappa) CE(worst logits over the eps ball), an Objective.

    epsilon: final Linf radius in raw input units. low, high: the input range that cuts the ball. ramp: the fractions
    of the training between which eps grows from 0 to epsilon and kappa falls from 1 to final_kappa, both linearly
    (section 3 of the paper). The bounds are those of evaluation mode, so the module should not hold BatchNorm.
    """

    epsilon: float
    low: float = 0.0
    high: float = 1.0
    ramp: tuple[float, float] = (0.1, 0.6)
    final_kappa: float = 0.5

    def __call__(self, module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, progress: float) -> torch.Tensor:
        import torch

        cross_entropy = torch.nn.functional.cross_entropy
        begin, end = self.ramp
        grown = min(max((progress - begin) / (end - begin), 0.0), 1.0)
        kappa = 1 - (1 - self.final_kappa) * grown
        clean = cross_entropy(module(x), y)
        if grown == 0:
            return clean
        worst = worst_logits(module, x, y, self.epsilon * grown, (self.low, self.high))
        return kappa * clean + (1 - kappa) * cross_entropy(worst, y)


def worst_logits(
    module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, epsilon: float, limits: tuple[float, float]
) -> torch.Tensor:
    """The label's lower and every rival's upper interval bound over |x' - x|_inf <= epsilon within `limits`: (B, C).

    If the label's entry is the largest, no input of the ball is classified otherwise. For training: x - epsilon and
    x + epsilon are rounded to nearest, so the ball is right to one ulp of x.
    """
    import torch

    graph = graph_from_torch(module, x)
    boxes = ibp(graph, (x - epsilon).clamp(*limits), (x + epsilon).clamp(*limits))
    lower, upper = boxes[-1]
    label = torch.nn.functional.one_hot(y, lower.shape[1]).bool()
    return torch.where(label, lower, upper)
