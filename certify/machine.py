"""What the stages of the pipeline work with: one case on its way, and the network prepared for each stage.

Everything is made when a stage needs it: torch is imported by the first one that does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from certify.arrays import to_numpy
from certify.errors import UsageError
from certify.ops.relu import Relu
from certify.property import Case, Float64, LpBall
from certify.rules import is_affine
from certify.verdict import Witness

if TYPE_CHECKING:
    import torch

    from certify.attacks.pgd import AttackOptions, AttackResult
    from certify.attacks.replay import Replayer
    from certify.bab.input_split import InputSearch
    from certify.bab.search import Tree
    from certify.bab.share import Lending, Search, Team
    from certify.bounding.crown import Knowledge
    from certify.bounding.margins import Networks, Proof, Start
    from certify.certificate.content import CaseProof
    from certify.graph import Graph
    from certify.mip.sparse import Matrices
    from certify.model import Model

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S", bound="Search")

# The light way: so many cases, a network of so few multiply-adds (some 10 ms a pass); CROWN where the passes of its
# neurons together take so few (0.2 s for each 1e9).
LIGHT_CASES = 16
LIGHT_PRODUCTS = 5e7
LIGHT_CROWN_PRODUCTS = 3e9
# Coordinates that vary, for input splits to be tried, and their share of the time that is left.
SPLIT_COORDINATES = 16
SPLIT_SHARE = 0.7
SPLIT_STAGE = "input splits"
SEARCH_STAGE = "branch and bound"
# Open neurons up to which a search by linear programs has its share of the time that is left then: WK17a's last four of
# 10,000 images took it 1 to 4 s each, where branch and bound with ascents was open after 60.
PROGRAM_NEURONS = 400
PROGRAM_SHARE = 0.15
PROGRAM_STAGES = {"lp": "LP", "mip": "MIP"}
UNPROVED = "the MIP solver finds no counterexample, but nothing proves that there is none"


@dataclass
class Task:
    """One case of one property on its way; outcome parts are filled in as stages answer. proof: what a certificate says
    once a bound shows it safe. done: no more is tried.
    """

    owner: int
    case: Case
    witness: Witness | None = None
    upper: float = math.inf
    lower: float = -math.inf
    stage: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    start: Start | None = None
    tree: Tree | None = None
    boxes: InputSearch | None = None
    proof: CaseProof | None = None
    rests_on_solver: bool = False
    done: bool = False

    @property
    def open(self) -> bool:
        return self.witness is None and not self.lower > 0

    def take(self, result: AttackResult, stage: str) -> None:
        """What an attack came to."""
        self.upper, self.stage = min(self.upper, result.best_margin), stage
        self.witness = self.witness or result.witness

    def raise_to(self, lower: float, stage: str) -> None:
        """A certified bound; the stage of the best one counts."""
        if lower > self.lower or self.lower == -math.inf:
            self.lower, self.stage = max(self.lower, lower), stage

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass
class Machine:
    """The network prepared for the stages: replay in onnxruntime, a numpy graph, torch graphs. cores: processes, this
    one among them, that may work on one search. team: those that do.
    """

    model: Model
    device: str
    seed: int
    cores: int = 1
    team: Team[Any] | None = None

    def close(self) -> None:
        """End the processes that help."""
        if self.team is not None:
            self.team.close()
            self.team = None

    @cached_property
    def replayer(self) -> Replayer:
        from certify.attacks.replay import Replayer

        return Replayer(self.model)

    @cached_property
    def light(self) -> Networks:
        from certify.bounding.margins import Networks

        return Networks.light(self.model.graph)

    @cached_property
    def heavy(self) -> Networks:
        from certify.bounding.margins import Networks

        return Networks.of(self.model.graph, pick_device(self.device))

    @cached_property
    def light_methods(self) -> tuple[str, ...]:
        """The bounds that the light way gives; none where even one pass in numpy would take long."""
        from certify.attacks.probe import products
        from certify.bounding.propagate import starts

        graph = self.model.graph
        cost = products(graph)
        neurons = sum(math.prod(graph.nodes[i].shape) for i in starts(graph))
        if cost > LIGHT_PRODUCTS or self.device not in ("auto", "cpu"):
            return ()
        return ("ibp", "crown") if neurons * cost <= LIGHT_CROWN_PRODUCTS else ("ibp",)

    def light_crown(self, tasks: Sequence[Task], deadline: float) -> None:
        """CROWN in numpy for the cases where intervals leave few enough neurons unsettled."""
        from certify.attacks.probe import products
        from certify.bounding.propagate import propagate, starts, unsettled
        from certify.bounding.region import region_of

        graph, few = self.light.exact, []
        for task in tasks:
            known = propagate(graph, region_of([task.case.inputs]), crown=False)
            neurons = sum(int(to_numpy(unsettled(known, i)).sum()) for i in starts(graph))
            if neurons * products(graph) <= LIGHT_CROWN_PRODUCTS:
                few.append(task)
        self.prove(self.light, few, "crown", deadline)

    def probe(self, tasks: Sequence[Task], deadline: float) -> None:
        """A short attack in numpy, case by case; a property falls with its first one."""
        from certify.attacks.probe import probe

        fallen: set[int] = set()
        for task in tasks:
            if task.owner in fallen or time.monotonic() >= deadline:
                continue
            begin = time.perf_counter()
            result = probe(self.light.exact, self.replayer, task.case, seed=self.seed, deadline=deadline)
            task.spend("attack", time.perf_counter() - begin)
            task.take(result, "attack")
            if task.witness is not None:
                fallen.add(task.owner)

    def attack(self, tasks: Sequence[Task], stage: str, options: AttackOptions, deadline: float) -> None:
        """PGD on all cases at once."""
        from certify.attacks.pgd import attack

        if not tasks:
            return
        begin = time.perf_counter()
        fast, replayer = self.heavy.fast, self.replayer
        results = halving(
            [t.case for t in tasks], lambda part: attack(fast, replayer, part, options, deadline=deadline)
        )
        share = (time.perf_counter() - begin) / len(tasks)
        for task, result in zip(tasks, results, strict=True):
            task.spend(stage, share)
            task.take(result, stage)

    def prove(self, nets: Networks, tasks: Sequence[Task], method: str, deadline: float) -> None:
        """Bounds of all cases, from cheap to dear, up to `method`."""
        from certify.bounding.margins import prove

        for kind in sorted({_kind(t.case) for t in tasks}):
            mine = [t for t in tasks if _kind(t.case) == kind]
            notes: list[str] = []
            proofs: list[Proof] = halving(
                [t.case for t in mine], lambda part: prove(nets, part, method, deadline=deadline), notes.append
            )
            for task, proof in zip(mine, proofs, strict=True):
                task.raise_to(proof.lower, proof.stage)
                task.start = proof.start
                if proof.lower > 0:
                    task.proof = proof.grounds
                task.notes += notes
                for stage, seconds in proof.seconds.items():
                    task.spend(stage, seconds)

    def split(self, task: Task, patience: float, deadline: float) -> None:
        """Complete search by input splits; past `patience` it goes on only if it seems to come to an end."""
        from certify.bab import subboxes
        from certify.bab.input_split import InputSearch

        if not task.case.unsafe or any(len(p.offset) == 0 for p in task.case.unsafe):
            return
        begin = time.perf_counter()
        nets = self.light if self.light_methods else self.heavy
        with nets.without_gradients():
            task.boxes = task.boxes or InputSearch.begin(nets.exact, task.case, self.judge(task.case))
            team = self._team(task.boxes, subboxes, task.case, nets)
            found = team.grow(deadline, partial(task.boxes.promising, patience))
        self.close()  # what comes next seldom goes on here, and others may want the cores
        task.spend(SPLIT_STAGE, time.perf_counter() - begin)
        task.raise_to(found.lower, SPLIT_STAGE)
        task.proof = task.proof or found.proof
        if found.witness is not None:
            task.witness, task.stage = found.witness, SPLIT_STAGE

    def search(self, task: Task, deadline: float) -> None:
        """Complete search by splits of neurons, from where alpha-CROWN or an earlier call left it."""
        from certify.bab.envelope import planes_pay
        from certify.bab.root import begin
        from certify.bab.search import Tree

        if task.start is None:
            return
        if task.tree is None:
            task.tree = Tree.plant(begin(task.start), self.judge(task.case))
        elif programs_pay(task.tree.root.problem.free, self.model.graph) and not planes_pay(task.tree.root):
            now = time.monotonic()
            self.programs(task, "mip", now + PROGRAM_SHARE * max(0.0, deadline - now))
            if not task.open:
                return
        self._grow(task, task.tree, deadline)

    def _grow(self, task: Task, tree: Tree, deadline: float) -> None:
        from certify.bab import subtree

        started = time.perf_counter()
        found = self._team(tree, subtree, task.case, tree.root.nets).grow(deadline)
        task.spend(SEARCH_STAGE, time.perf_counter() - started)
        task.raise_to(found.lower, SEARCH_STAGE)
        if found.witness is not None:
            task.witness, task.stage = found.witness, SEARCH_STAGE
        if found.lower > 0 and task.proof is None:
            task.proof = tree.proof()

    def _team(self, search: S, lending: Lending[S], case: Case, nets: Networks) -> Team[S]:
        """Who works on a search: this process, and others where it takes long; one search at a time has them."""
        from certify.bab.share import Team
        from certify.executors.choose import helpers

        if self.team is None or self.team.search is not search:
            self.close()
            others = self.cores - 1 if str(nets.device) == "cpu" else 0
            self.team = Team(search, lending, partial(_judge_of, self.model, case), helpers, others)
        return self.team

    def mend(self, task: Task, tree: int, nodes: Sequence[int], deadline: float) -> None:
        """Go on with the search whose tree the checker did not accept, where it did not; deadline as ever.

        The nodes of a tree of linear programs are no other's: splits of neurons go on where they were.
        """
        stage, task.lower, task.proof = task.stage, -math.inf, None
        if stage == SPLIT_STAGE and task.boxes is not None:
            task.boxes.reopen(nodes)
            self.split(task, deadline, deadline)
        elif task.tree is not None:
            if stage == SEARCH_STAGE:
                task.tree.reopen(tree, nodes)
            self._grow(task, task.tree, deadline)

    @cached_property
    def matrices(self) -> Matrices:
        """The network for linear programs."""
        from certify.mip.sparse import Matrices

        return Matrices(self.light.exact)

    def programs(self, task: Task, method: str, deadline: float) -> None:
        """Linear programs after CROWN: the relaxation ("lp"), or a complete search ("mip")."""
        from certify.mip.decide import prove_by_lp, prove_by_mip

        begin, stage = time.perf_counter(), PROGRAM_STAGES[method]
        prove = {"lp": prove_by_lp, "mip": prove_by_mip}[method]
        known = self.knowledge(task.case, deadline)
        found = prove(self.matrices, known, task.case, self.judge(task.case), deadline)
        task.spend(stage, time.perf_counter() - begin)
        task.raise_to(found.lower, stage)
        task.proof = task.proof or found.proof
        task.rests_on_solver |= found.rests_on_solver
        if found.witness is not None:
            task.witness, task.stage = found.witness, stage

    def knowledge(self, case: Case, deadline: float) -> Knowledge:
        """CROWN's bounds of every node as float64 numpy arrays, by torch where numpy would take long."""
        from certify.bounding.crown import Knowledge
        from certify.bounding.propagate import propagate
        from certify.bounding.region import region_of

        region = region_of([case.inputs])
        if "crown" in self.light_methods:
            return propagate(self.light.exact, region, deadline=deadline)
        nets = self.heavy
        with nets.without_gradients():
            known = propagate(nets.exact, region.cast(nets.sample), draft=nets.draft, deadline=deadline)
        boxes = [None if b is None else (to_numpy(b[0]), to_numpy(b[1])) for b in known.boxes]
        weights = [None if w is None else to_numpy(w) for w in known.weights]
        return Knowledge(self.light.exact, region, boxes, weights, to_numpy(known.floor))

    def judge(self, case: Case) -> Callable[[Float64], Witness | None]:
        """The first witness among candidates of a case."""

        def replay(points: Float64) -> Witness | None:
            judged = self.replayer.judge_batch(list(points), [case] * len(points))
            return next((w for w in judged if w is not None), None)

        return replay


def _judge_of(model: Model, case: Case) -> Callable[[Float64], Witness | None]:
    """A machine's judge of a case, for another process."""
    return Machine(model, "cpu", 0).judge(case)


def may_split(case: Case) -> bool:
    """Is the set a box of which few coordinates vary?"""
    inputs = case.inputs
    return not isinstance(inputs, LpBall) and int((inputs.upper > inputs.lower).sum()) <= SPLIT_COORDINATES


def programs_pay(free: Mapping[int, Sized], graph: Graph) -> bool:
    """Are linear programs cheap enough to go on with where branch and bound over neurons did not close at once?"""
    smooth = any(not is_affine(node.op) and not isinstance(node.op, Relu) for node in graph.nodes[1:])
    return not smooth and sum(len(neurons) for neurons in free.values()) <= PROGRAM_NEURONS


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
