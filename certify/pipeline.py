"""From properties to outcomes: a short attack, bounds from cheap to dear, a longer attack on what is left.

The order pays (ALGORITHMS: most unsafe samples fall at once, most safe ones need no more than CROWN); nothing here
decides. `falsified` comes only from onnxruntime's replay, `verified` only from a float64 bound with outward
rounding; whether the two contradict each other the caller examines (certify.runner). Complete search takes its
place between the bounds and the long attack.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from certify.errors import UsageError
from certify.options import METHODS
from certify.property import Case, LpBall, Property
from certify.rules import is_affine
from certify.verdict import Outcome, Verdict, Witness

if TYPE_CHECKING:
    import torch

    from certify.attacks.pgd import AttackOptions
    from certify.attacks.replay import Replayer
    from certify.bounding.margins import Networks, Proof
    from certify.model import Model

T = TypeVar("T")
R = TypeVar("R")

# Floats per sample and node that a batch holds at once: boxes, weights and copies in two dtypes, the rows'
# coefficients.
COPIES = 200
BATCH_BYTES = 2 << 30


@dataclass(frozen=True)
class Settings:
    """How to decide a sample.

    method: "auto" (everything), "attack" (no bounds), or attack and bounds up to the one named. timeout: seconds
    per sample.
    long_attack: seconds per sample, at most, for the attack on what bounds leave open. attack=False switches
    attacks off.
    device: "auto" (CUDA when there), "cpu", "cuda", "cuda:1", ...
    """

    method: str = "auto"
    timeout: float = 60.0
    seed: int = 0
    device: str = "auto"
    long_attack: float = 2.0
    attack: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is not known; choose one of {', '.join(METHODS)}")
        if not self.timeout > 0:
            raise UsageError(f"timeout is {self.timeout}; give a positive number of seconds")


@dataclass
class _Task:
    """One case of one property on its way; outcome parts are filled in as stages answer."""

    owner: int
    case: Case
    witness: Witness | None = None
    upper: float = math.inf
    lower: float = -math.inf
    stage: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return self.witness is None and not self.lower > 0

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def decide(
    model: Model, properties: Sequence[Property], settings: Settings, *, deadline: float | None = None
) -> list[Outcome]:
    """One outcome per property, in order, the whole batch at once.

    deadline: on time.monotonic()'s clock, for all together; without one, settings.timeout per property.
    """
    end = time.monotonic() + settings.timeout * len(properties)
    end = end if deadline is None else min(end, deadline)
    tasks = [_Task(owner, case) for owner, prop in enumerate(properties) for case in prop.cases]
    machine = _Machine.of(model, settings)
    attacks = settings.attack
    if attacks:
        machine.attack(tasks, "attack", _quick(settings), end)
    if settings.method != "attack":
        _refute_no_further(tasks)
        machine.prove(
            [t for t in tasks if t.open], "alpha-crown" if settings.method == "auto" else settings.method, end
        )
    if attacks and settings.method == "auto":
        for task in [t for t in tasks if t.open]:
            limit = min(end, time.monotonic() + settings.long_attack)
            machine.attack([task], "long attack", _thorough(settings), limit)
    outcomes = []
    for owner, prop in enumerate(properties):
        mine = [t for t in tasks if t.owner == owner]
        outcomes.append(_outcome(mine, prop, time.monotonic() >= end))
    return outcomes


def _quick(settings: Settings) -> AttackOptions:
    from certify.attacks.pgd import AttackOptions

    return AttackOptions(seed=settings.seed)


def _thorough(settings: Settings) -> AttackOptions:
    from certify.attacks.pgd import AttackOptions

    return AttackOptions.strong(settings.seed)


def _refute_no_further(tasks: list[_Task]) -> None:
    """A property with a witness needs no proof of its other cases."""
    fallen = {t.owner for t in tasks if t.witness is not None}
    tasks[:] = [t for t in tasks if t.witness is not None or t.owner not in fallen]


@dataclass
class _Machine:
    """The network prepared for the stages: replay, attack graph, bound graphs, device."""

    replayer: Replayer
    nets: Networks

    @staticmethod
    def of(model: Model, settings: Settings) -> _Machine:
        from certify.attacks.replay import Replayer
        from certify.bounding.margins import Networks

        return _Machine(Replayer(model), Networks.of(model.graph, pick_device(settings.device)))

    def attack(self, tasks: list[_Task], stage: str, options: AttackOptions, deadline: float) -> None:
        from certify.attacks.pgd import attack

        if not tasks or time.monotonic() >= deadline:
            return
        begin = time.perf_counter()
        cases = [t.case for t in tasks]
        results = halving(cases, lambda part: attack(self.nets.fast, self.replayer, part, options, deadline=deadline))
        share = (time.perf_counter() - begin) / len(tasks)
        for task, result in zip(tasks, results, strict=True):
            task.spend(stage, share)
            task.upper = min(task.upper, result.best_margin)
            task.stage = stage
            if result.witness is not None:
                task.witness = result.witness

    def prove(self, tasks: list[_Task], method: str, deadline: float) -> None:
        from certify.bounding.margins import prove

        for kind in sorted({_kind(t.case) for t in tasks}):
            mine = [t for t in tasks if _kind(t.case) == kind]
            notes: list[str] = []
            proofs: list[Proof] = halving(
                [t.case for t in mine], lambda part: prove(self.nets, part, method, deadline=deadline), notes.append
            )
            for task, proof in zip(mine, proofs, strict=True):
                task.lower, task.stage = proof.lower, proof.stage
                task.notes += notes
                for stage, seconds in proof.seconds.items():
                    task.spend(stage, seconds)


def _kind(case: Case) -> int:
    return case.inputs.p if isinstance(case.inputs, LpBall) else 0


def halving(
    items: Sequence[T], work: Callable[[Sequence[T]], list[R]], say: Callable[[str], None] = lambda text: None
) -> list[R]:
    """work(items), by halves where memory does not suffice; a single item that does not fit raises."""
    try:
        return work(items)
    except (MemoryError, RuntimeError) as error:
        if len(items) < 2 or not out_of_memory(error):
            raise
    say(f"out of memory with {len(items)} samples at once; halved")
    middle = len(items) // 2
    return halving(items[:middle], work, say) + halving(items[middle:], work, say)


def out_of_memory(error: BaseException) -> bool:
    """Is it numpy's, torch's CPU allocator's or CUDA's way to say that memory is used up?"""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def pick_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is CUDA where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: torch sees no CUDA device here; use --device cpu")
    return device


def _outcome(tasks: list[_Task], prop: Property, timed_out: bool) -> Outcome:
    """A property falls with one case and stands when all its cases stand."""
    seconds: dict[str, float] = {}
    for task in tasks:
        for stage, spent in task.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    lower = min((t.lower for t in tasks), default=math.inf)
    upper = min((t.upper for t in tasks), default=math.inf)
    notes = "; ".join(dict.fromkeys(n for t in tasks for n in t.notes))
    base = Outcome(Verdict.UNKNOWN, "", reason=notes, lower=lower, upper=upper, seconds=seconds)
    fallen = next((t for t in tasks if t.witness is not None), None)
    if fallen is not None:
        return replace(base, verdict=Verdict.FALSIFIED, stage=fallen.stage, witness=fallen.witness)
    if all(t.lower > 0 for t in tasks) and len({id(t.case) for t in tasks}) == len(prop.cases):
        hardest = min(tasks, key=lambda t: t.lower, default=None)
        return replace(base, verdict=Verdict.VERIFIED, stage=hardest.stage if hardest else "empty property")
    last = next(t for t in tasks if t.open)
    why = "timeout" if timed_out else f"open after {last.stage}: margin at least {lower:.4g}, at most {upper:.4g}"
    return replace(base, stage=last.stage, reason="; ".join(filter(None, [why, notes])))


def batch_size(model: Model, settings: Settings) -> int:
    """How many samples to give `decide` at once, so that their boxes and rows stay within about 2 GB."""
    size = sum(math.prod(node.shape) for node in model.graph.nodes)
    return int(np.clip(BATCH_BYTES // (8 * COPIES * max(size, 1)), 1, 256))


def plan(model: Model, settings: Settings) -> str:
    """One line: which method will be used on this network."""
    if settings.method == "attack":
        return "attack only: nothing will be certified"
    last = "alpha-CROWN" if settings.method in ("auto", "alpha-crown") else settings.method.upper()
    nonlinear = sum(math.prod(n.shape) for n in model.graph.nodes[1:] if not is_affine(n.op))
    stages = ["IBP"] + ["CROWN"] * (last != "IBP") + ["alpha-CROWN"] * (last == "alpha-CROWN")
    before = "attack -> " if settings.attack else ""
    after = " -> long attack" if settings.method == "auto" and settings.attack else ""
    size = f"{nonlinear} nonlinear neurons, {batch_size(model, settings)} samples at once"
    return f"{before}{' -> '.join(stages)}{after} ({size})"
