"""Margins of a batch of cases as padded tensors, and the losses that attacks descend.

margin(y) = min over polytopes of max over rows (C y - d): at most 0 means unsafe (Case, in certify.property).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certify.property import Case

PAD = 1e30  # the slack of a row or polytope that is only padding
UNTARGETED = -1


@dataclass(frozen=True, eq=False)
class Objective:
    """B cases with up to P polytopes of up to R rows over m outputs.

    coeff: (B, P, R, m). offset: (B, P, R); padding rows have offset PAD, padding polytopes -PAD. label: (B,), the class
    whose misclassification the case states, -1 where it states something else. several: any polytope with two rows?
    """

    coeff: Tensor
    offset: Tensor
    label: Tensor
    several: bool

    @staticmethod
    def of(cases: Sequence[Case], sample: Tensor) -> Objective:
        """The cases in the dtype and on the device of `sample`; each needs at least one polytope."""
        polytopes = max(len(c.unsafe) for c in cases)
        rows = max((len(p.inner_offset) for c in cases for p in c.unsafe), default=1)
        outputs = cases[0].unsafe[0].coeff.shape[1]
        coeff = np.zeros((len(cases), polytopes, max(rows, 1), outputs))
        offset = np.full(coeff.shape[:3], PAD)
        for i, case in enumerate(cases):
            offset[i, len(case.unsafe) :] = -PAD
            for j, polytope in enumerate(case.unsafe):
                coeff[i, j, : len(polytope.inner_offset)] = polytope.coeff
                offset[i, j, : len(polytope.inner_offset)] = polytope.inner_offset
        labels = torch.as_tensor([_label_of(c) for c in cases], device=sample.device)
        return Objective(torch.as_tensor(coeff).to(sample), torch.as_tensor(offset).to(sample), labels, rows > 1)

    @property
    def cost(self) -> int:
        """Numbers that one track's margins take."""
        return int(np.prod(self.coeff.shape[1:]))

    def margins(self, y: Tensor, owner: Tensor) -> Tensor:
        """(K, P): max over rows of C y - d for outputs y (K, m) of the cases owner (K,); PAD where not finite."""
        margins = self._slack(y, owner).amax(dim=2)
        return torch.where(margins.isfinite(), margins, torch.full_like(margins, PAD))

    def loss(self, y: Tensor, owner: Tensor, target: Tensor, kind: str) -> Tensor:
        """(K,) values to be made small. target: a polytope, or UNTARGETED for the nearest. kind:

        "margin": max over rows of C y - d (difference of logits; Carlini & Wagner 2017).
        "hinge": sum over rows of max(C y - d, 0), the margin where all rows hold: pulls at every broken row.
        "cross_entropy": log-probability of the label, against the target's where there is one; margin for other cases.
        """
        slack = self._slack(y, owner)
        per_polytope = slack.amax(dim=2)
        if kind == "hinge":
            broken = slack.clamp_min(0).sum(dim=2)
            per_polytope = torch.where(per_polytope > 0, broken, per_polytope)
        chosen = torch.where(target >= 0, target, per_polytope.detach().argmin(dim=1))[:, None]
        value = per_polytope.gather(1, chosen)[:, 0]
        if kind != "cross_entropy":
            return value
        label = self.label[owner]
        logs = torch.log_softmax(y, dim=1)
        rival = self.coeff[owner, chosen[:, 0], 0].argmin(dim=1)
        of_label = logs.gather(1, label.clamp_min(0)[:, None])[:, 0]
        toward = torch.where(target >= 0, logs.gather(1, rival[:, None])[:, 0], torch.zeros_like(value))
        entropy = torch.where(target >= 0, -toward, of_label)
        return torch.where(label >= 0, entropy, value)

    def _slack(self, y: Tensor, owner: Tensor) -> Tensor:
        """(K, P, R): C y - d."""
        if len(self.coeff) == 1:
            coeff = self.coeff[0]
            return (y @ coeff.reshape(-1, coeff.shape[-1]).T).reshape(len(y), *coeff.shape[:2]) - self.offset
        return torch.einsum("kprm,km->kpr", self.coeff[owner], y) - self.offset[owner]


def _label_of(case: Case) -> int:
    """The class y_label - y_j <= 0 of every polytope is about, -1 if the case is not of that form."""
    labels = set()
    for polytope in case.unsafe:
        row = polytope.coeff[0] if len(polytope.coeff) == 1 else np.zeros(1)
        if sorted(row[row != 0]) != [-1.0, 1.0] or polytope.inner_offset[0] != 0:
            return -1
        labels.add(int(np.argmax(row)))
    return labels.pop() if len(labels) == 1 else -1
