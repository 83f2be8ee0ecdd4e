"""Projected gradient descent with restarts on the margin of a property: proposes inputs that replay judges.

PGD (Madry et al. 2018), FGSM (Goodfellow et al. 2015) and MIM (Dong et al. 2018) are settings of it. torch is imported
only when an attack starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from certify.attacks.replay import Replayer
from certify.errors import UsageError
from certify.graph import Graph
from certify.property import Case, InputSet, LpBall
from certify.verdict import Witness


@dataclass(frozen=True)
class AttackOptions:
    """How long and in which way to attack.

    steps: gradient steps of a restart. restarts: starts per sample (per target when targeted is "multi").
    step_sizes: first step as a share of the set's width (2 eps of a ball); the next one after each turn of `leaks`.
    decay: last step over first, geometric between.
    loss: "margin" (of any property) or "cross_entropy" (classification; other cases use the margin).
    targeted: "untargeted" descends the nearest polytope at each step, "multi" each of the `targets` polytopes that are
    nearest at the centre on its own (Gowal et al. 2019).
    momentum: decay factor of summed gradients (MIM). random_start: else all restarts begin at the centre.
    leaks: gradient slopes of inactive ReLUs, one per round of restarts in turn (certify.attacks.surrogate); 0 is the
    true gradient.
    odi_steps: steps along a random direction of the outputs before a restart (Tashiro et al. 2020).
    probe: first try the centre, the corners that its gradients point to, and, where few coordinates vary,
    `samples` random points and corners, the best of which become starts.
    seed: of all random choices.
    """

    steps: int = 20
    restarts: int = 2
    step_sizes: tuple[float, ...] = (0.25,)
    decay: float = 0.02
    loss: Literal["margin", "cross_entropy"] = "margin"
    targeted: Literal["untargeted", "multi"] = "untargeted"
    targets: int = 9
    momentum: float = 0.0
    leaks: tuple[float, ...] = (0.0, 0.003)
    random_start: bool = True
    odi_steps: int = 0
    probe: bool = True
    samples: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets"):
            if getattr(self, name) < 1:
                raise UsageError(f"attack: {name} is {getattr(self, name)}; give at least 1")
        for name in ("odi_steps", "samples", "momentum"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UsageError(f"attack: {name} is {getattr(self, name)}; give at least 0")
        if not self.step_sizes or not all(0 < size <= 1 for size in (*self.step_sizes, self.decay)):
            raise UsageError(f"attack: step_sizes {self.step_sizes} and decay {self.decay} must lie in (0, 1]")
        if not self.leaks or not all(0 <= leak <= 1 for leak in self.leaks):
            raise UsageError(f"attack: leaks {self.leaks} must be at least one number in [0, 1]")
        if self.loss not in ("margin", "cross_entropy"):
            raise UsageError(f"attack: loss {self.loss!r} is not known; use 'margin' or 'cross_entropy'")
        if self.targeted not in ("untargeted", "multi"):
            raise UsageError(f"attack: targeted {self.targeted!r} is not known; use 'untargeted' or 'multi'")

    @staticmethod
    def fgsm() -> AttackOptions:
        """One signed step of half the width from the centre, on the cross-entropy (Goodfellow et al. 2015)."""
        return AttackOptions(
            steps=1,
            restarts=1,
            step_sizes=(0.5,),
            decay=1.0,
            loss="cross_entropy",
            leaks=(0.0,),
            random_start=False,
            probe=False,
        )

    @staticmethod
    def mim(steps: int = 10) -> AttackOptions:
        """`steps` equal steps that add up to eps, gradients summed with factor 1 (Dong et al. 2018, algorithm 1)."""
        return AttackOptions(
            steps=steps,
            restarts=1,
            step_sizes=(0.5 / max(steps, 1),),
            decay=1.0,
            loss="cross_entropy",
            momentum=1.0,
            leaks=(0.0,),
            random_start=False,
            probe=False,
        )

    @staticmethod
    def strong(seed: int = 0) -> AttackOptions:
        """Every nearest target on its own, from diversified starts, by short and long steps: needs a deadline to end.

        With it 32 of the 36 falsifiable VNN-COMP instances of the project's list fall on one core, all but one of them
        in under 1 s each; the other four (mnist-net_256x4, 256x6) end at the same margins whatever the variant.
        """
        return AttackOptions(
            steps=50,
            restarts=1_000_000,
            step_sizes=(0.25, 0.05),
            decay=0.02,
            targeted="multi",
            leaks=(0.003, 0.0, 0.0003, 0.03),
            odi_steps=2,
            samples=8192,
            seed=seed,
        )


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack on one case came to.

    witness: as replay confirmed it, or None. best_margin: smallest margin that onnxruntime showed inside the set, in
    units of the rows (inf if none was replayed). steps: gradient steps spent on this case, over all restarts.
    """

    witness: Witness | None
    best_margin: float
    steps: int


def attack(
    graph: Graph, replayer: Replayer, cases: Sequence[Case], options: AttackOptions, *, deadline: float | None = None
) -> list[AttackResult]:
    """Search each case's input set for an unsafe input, all cases at once; onnxruntime decides through `replayer`.

    graph: the network with torch constants (Graph.cast); their dtype and device are those of the search.
    deadline: a time of time.monotonic() at which the search stops; what was found until then is judged and returned.
    The same cases, options and machine give the same result unless the deadline cuts in.
    """
    from certify.attacks.search import Search

    results: list[AttackResult] = [AttackResult(None, float(np.inf), 0)] * len(cases)
    groups: dict[int, list[int]] = {}
    for index, case in enumerate(cases):
        if case.unsafe:
            groups.setdefault(_kind(case.inputs), []).append(index)
    for indices in groups.values():
        search = Search(graph, replayer, [cases[i] for i in indices], options, deadline)
        search.run()
        for index, (witness, margin, steps) in zip(indices, search.outcomes(), strict=True):
            results[index] = AttackResult(witness, margin, steps)
    return results


def _kind(input_set: InputSet) -> int:
    return input_set.p if isinstance(input_set, LpBall) else 0
