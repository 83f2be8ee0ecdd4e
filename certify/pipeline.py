"""From properties to outcomes: a short attack, bounds from cheap to dear, a longer attack on what is left.

The order pays (ALGORITHMS: most unsafe samples fall at once, most safe ones need no more than CROWN); nothing here
decides. `falsified` comes only from onnxruntime's replay, `verified` only from a float64 bound with outward
rounding; whether the two contradict each other the caller examines (certify.verdict). Complete search goes on for
a while before the longer attack, and to the end after it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from certify.machine import (
    LIGHT_CASES,
    PROGRAM_STAGES,
    SPLIT_COORDINATES,
    SPLIT_SHARE,
    UNPROVED,
    Machine,
    Task,
    may_split,
)
from certify.options import PROGRAM_METHODS
from certify.property import Property
from certify.rules import is_affine
from certify.settings import Settings
from certify.verdict import CHECK_STAGE, Outcome, Verdict

if TYPE_CHECKING:
    from certify.attacks.pgd import AttackOptions
    from certify.judge import Judgement
    from certify.model import Model

# Floats per sample and node that a batch holds at once: boxes, weights and copies in two dtypes, the rows'
# coefficients.
COPIES = 200
BATCH_BYTES = 2 << 30
MENDS = 4  # times that a search goes on where the checker found its certificate open
# Of the time, kept for checking what the last moments of a search may find.
CHECK_SHARE, CHECK_SECONDS = 0.05, 2.0
Given = tuple[Settings, float]  # and the deadline


def decide(
    model: Model,
    properties: Sequence[Property],
    settings: Settings,
    *,
    deadline: float | None = None,
    many: bool = False,
    cores: int = 1,
) -> list[Outcome]:
    """One outcome per property, in order, the whole batch at once.

    deadline: on time.monotonic()'s clock, for all together; without one, settings.timeout per property.
    many: these are some of many, so that importing torch pays however few they are. cores: processes that may work on
    one hard search; more than 1 only under `if __name__ == "__main__":`, for others are started.
    """
    found: dict[int, Outcome] = {}
    for outcomes in decide_each(model, properties, settings, deadline=deadline, many=many, cores=cores):
        found.update(outcomes)
    return [found[owner] for owner in range(len(properties))]


def decide_each(
    model: Model,
    properties: Sequence[Property],
    settings: Settings,
    *,
    deadline: float | None = None,
    many: bool = False,
    cores: int = 1,
) -> Iterator[dict[int, Outcome]]:
    """As `decide`: index of a property -> its outcome, in groups, as soon as these are known."""
    end = time.monotonic() + settings.timeout * len(properties)
    end = end if deadline is None else min(end, deadline)
    stop = end - (min(CHECK_SECONDS, CHECK_SHARE * max(0.0, end - time.monotonic())) if settings.check else 0.0)
    tasks = [Task(owner, case) for owner, prop in enumerate(properties) for case in prop.cases]
    machine = Machine(model, settings.device, settings.seed, cores)
    light = not many and len(tasks) <= LIGHT_CASES and bool(machine.light_methods)
    waiting = dict(enumerate(properties))

    def ended() -> dict[int, Outcome]:
        mine: dict[int, list[Task]] = {owner: [] for owner in waiting}
        for task in tasks:
            if task.owner in mine:
                mine[task.owner].append(task)
        over = [o for o, ts in mine.items() if any(t.witness for t in ts) or all(t.done or not t.open for t in ts)]
        found = {o: _outcome(mine[o], waiting[o], time.monotonic() >= stop, settings.trust_solver) for o in over}
        by_case = {o: {id(t.case): t for t in mine[o]} for o in found}
        cases = {o: [by_case[o][id(c)] for c in waiting[o].cases if id(c) in by_case[o]] for o in found}
        found = _judged(machine, found, cases, waiting, (settings, end))
        if found:
            machine.close()
        for owner in found:
            del waiting[owner]
            for task in mine[owner]:
                task.start = task.tree = task.boxes = task.proof = None
        return found

    try:
        for stage in _stages(machine, light, settings):
            still = [t for t in tasks if t.open]
            if not still or time.monotonic() >= stop:
                break
            for _ in stage(still, stop) or ():
                if outcomes := ended():
                    yield outcomes
            _refute_no_further(tasks)
            if outcomes := ended():
                yield outcomes
        for task in tasks:
            task.done = True
        if outcomes := ended():
            yield outcomes
    finally:
        machine.close()


# What a stage yields, if anything, only says that a case has come to its end.
Stage = Callable[[list[Task], float], Iterable[None] | None]


def _stages(machine: Machine, light: bool, settings: Settings) -> Iterator[Stage]:
    """What is tried, in order, on the cases that are open then; what a stage needs is loaded when it comes.

    light: few cases of a cheap network first go the light way, in numpy: probe, IBP, CROWN, input splits. Importing
    torch takes longer than all of that.
    """
    proves, complete = settings.method != "attack", settings.method == "auto"
    methods = machine.light_methods if light else ()
    method = settings.method if settings.method in methods else "".join(methods[-1:])
    if light and settings.attack:
        yield machine.probe
    if light and proves:
        yield lambda tasks, end: machine.prove(machine.light, tasks, method, end)
    programs = light and method == "crown" and settings.method in PROGRAM_METHODS
    if programs:
        yield lambda tasks, end: _programs(machine, tasks, settings, end)
    last_bound = programs or (light and method == settings.method)
    if light and proves and method == "ibp" and not last_bound:
        yield machine.light_crown
    if light and complete:
        yield lambda tasks, end: _split(machine, tasks, end)
    if settings.attack:
        yield lambda tasks, end: machine.attack(tasks, "attack", _quick(settings), end)
    if last_bound:
        return
    if proves:
        last = "alpha-crown" if complete else "crown" if settings.method in PROGRAM_METHODS else settings.method
        yield lambda tasks, end: machine.prove(machine.heavy, tasks, last, end)
    if settings.method in PROGRAM_METHODS:
        yield lambda tasks, end: _programs(machine, tasks, settings, end)
    if complete and not light:
        yield lambda tasks, end: _split(machine, tasks, end)
    if complete:
        yield lambda tasks, end: _search(machine, tasks, settings, end)


def _split(machine: Machine, tasks: Sequence[Task], end: float) -> None:
    """Input splits, case by case, each with its part of their share of the time."""
    todo = [t for t in tasks if may_split(t.case)]
    fallen: set[int] = set()
    for number, task in enumerate(todo):
        now = time.monotonic()
        if task.owner not in fallen and now < end:
            mine = (end - now) / (len(todo) - number)
            machine.split(task, now + SPLIT_SHARE * mine, now + mine)
        if task.witness is not None:
            fallen.add(task.owner)


def _programs(machine: Machine, tasks: Sequence[Task], settings: Settings, end: float) -> None:
    """Linear programs, case by case."""
    fallen: set[int] = set()
    for task in tasks:
        now = time.monotonic()
        if task.owner not in fallen and now < end:
            machine.programs(task, settings.method, min(end, now + settings.timeout))
        if task.witness is not None:
            fallen.add(task.owner)


def _search(machine: Machine, tasks: Sequence[Task], settings: Settings, end: float) -> Iterator[None]:
    """Branch and bound over neurons, case by case: first for a short while, then a thorough attack, then to the end."""
    fallen: set[int] = set()
    for task in tasks:
        limit = min(end, time.monotonic() + settings.timeout)
        if task.open and task.owner not in fallen and time.monotonic() < limit:
            soon = min(limit, time.monotonic() + settings.long_attack)
            machine.search(task, soon)
            if task.open and settings.attack:
                soon = min(limit, time.monotonic() + settings.long_attack)
                machine.attack([task], "long attack", _thorough(settings), soon)
            if task.open:
                machine.search(task, limit)
        if task.witness is not None:
            fallen.add(task.owner)
        task.done = True
        yield


def _quick(settings: Settings) -> AttackOptions:
    from certify.attacks.pgd import AttackOptions

    return AttackOptions(seed=settings.seed)


def _thorough(settings: Settings) -> AttackOptions:
    from certify.attacks.pgd import AttackOptions

    return AttackOptions.strong(settings.seed)


def _refute_no_further(tasks: list[Task]) -> None:
    """A property with a witness needs no more work on its other cases."""
    fallen = {t.owner for t in tasks if t.witness is not None}
    tasks[:] = [t for t in tasks if t.witness is not None or t.owner not in fallen]


def _outcome(tasks: list[Task], prop: Property, timed_out: bool, trust_solver: bool) -> Outcome:
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
    if all(t.lower > 0 or t.rests_on_solver for t in tasks) and len({id(t.case) for t in tasks}) == len(prop.cases):
        base = replace(base, stage=last.stage, reason=f"solver only: {UNPROVED}")
        return replace(base, verdict=Verdict.VERIFIED, checked="solver") if trust_solver else base
    why = "timeout" if timed_out else f"open after {last.stage}: margin at least {lower:.4g}, at most {upper:.4g}"
    return replace(base, stage=last.stage, reason="; ".join(filter(None, [why, notes])))


def _judged(
    machine: Machine, found: dict[int, Outcome], cases: dict[int, list[Task]], props: dict[int, Property], given: Given
) -> dict[int, Outcome]:
    """`verified` only where the checker says so; what it does not accept goes back to the search."""
    settings, end = given
    owners = [o for o, outcome in found.items() if outcome.verdict is Verdict.VERIFIED and not outcome.checked]
    if not owners or not settings.check:
        return found
    from certify.judge import Asked, judge

    def ask(some: Sequence[int]) -> list[Judgement]:
        asked = [Asked(props[o], [t.proof for t in cases[o]]) for o in some]
        return judge(machine.model, asked, arithmetic=settings.arithmetic, deadline=end)

    judged = dict(found)
    for owner, first in zip(owners, ask(owners), strict=True):
        answer, spent = first, first.seconds
        for _ in range(MENDS):
            if answer.open is None or time.monotonic() >= end:
                break
            case, tree, nodes = answer.open
            machine.mend(cases[owner][case], tree, nodes, min(end, time.monotonic() + settings.timeout))
            if cases[owner][case].open:
                break
            (answer,) = ask([owner])
            spent += answer.seconds
        judged[owner] = _with(found[owner], answer, spent, keep=settings.certificates)
    return judged


def _with(outcome: Outcome, answer: Judgement, spent: float, *, keep: bool) -> Outcome:
    """The outcome as the checker leaves it."""
    outcome = replace(
        outcome,
        seconds={**outcome.seconds, CHECK_STAGE: spent},
        certificate=answer.certificate if keep else None,
        certificate_bytes=len(answer.certificate),
        checked=answer.level,
    )
    if answer.accepted:
        return outcome
    reason = "; ".join(filter(None, [answer.reason, outcome.reason]))
    return replace(outcome, verdict=Verdict.UNKNOWN, reason=reason, lower=-math.inf)


def batch_size(model: Model, settings: Settings) -> int:
    """How many samples to give `decide` at once, so that their boxes and rows stay within about 2 GB."""
    size = sum(math.prod(node.shape) for node in model.graph.nodes)
    return int(np.clip(BATCH_BYTES // (8 * COPIES * max(size, 1)), 1, 256))


def plan(model: Model, settings: Settings) -> str:
    """One line: which method will be used on this network."""
    if settings.method == "attack":
        return "attack only: nothing will be certified"
    programs = PROGRAM_STAGES.get(settings.method)
    last = "alpha-CROWN" if settings.method in ("auto", "alpha-crown") else settings.method.upper()
    nonlinear = sum(math.prod(n.shape) for n in model.graph.nodes[1:] if not is_affine(n.op))
    stages = ["IBP"] + ["CROWN"] * (last != "IBP") + ["alpha-CROWN"] * (last == "alpha-CROWN")
    before = "attack -> " if settings.attack else ""
    few = math.prod(model.graph.input_shape) <= SPLIT_COORDINATES
    search = " -> input splits" * few + " -> branch and bound over neurons"
    after = search if settings.method == "auto" else f" -> {programs}" if programs else ""
    size = f"{nonlinear} nonlinear neurons, {batch_size(model, settings)} samples at once"
    return f"{before}{' -> '.join(stages)}{after} ({size})"
