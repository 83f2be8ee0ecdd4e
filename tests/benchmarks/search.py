"""Branch and bound over neurons with and without each ingredient: subproblems to close, seconds, subproblems a second.

    OMP_NUM_THREADS=1 python tests/benchmarks/search.py [--seconds 30] NET.onnx SPEC.vnnlib [NET.onnx SPEC.vnnlib ...]
    OMP_NUM_THREADS=1 python tests/benchmarks/search.py --processes 2 [--boxes] [--seconds 30] NET.onnx SPEC.vnnlib ...

Each pair is one instance; its first case is searched from alpha-CROWN's root, or with --boxes by input splits in numpy.
Processor time of the search alone; with --processes, all ingredients alone and shared out, in turn, twice: wall-clock
time, which means something on a machine with nothing else, and processor time of all processes.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from certify.bab import search, subboxes, subtree
from certify.bab.input_split import InputSearch
from certify.bab.result import Replay, SearchResult
from certify.bab.root import Root, begin
from certify.bab.search import SearchOptions, Tree, grow
from certify.bab.share import Lending, Search, Team
from certify.bounding.margins import Networks, prove
from certify.cli.vnnlib_command import hull
from certify.executors.choose import helpers
from certify.frontends.onnx_import import load_model
from certify.frontends.vnn_spec import load_property
from certify.model import Model
from certify.property import Case, Float64, Property

S = TypeVar("S", bound=Search)
BASE = SearchOptions()
VARIANTS = {
    "all": BASE,
    "without multipliers (beta)": replace(BASE, ascent=replace(BASE.ascent, multiplier_step=0.0)),
    "without half-spaces (clipping)": BASE,
    "without filtering (one candidate a score)": replace(BASE, tries=1),
    "without ascent": replace(BASE, ascent=replace(BASE.ascent, iterations=0)),
    "twice the ascent": replace(BASE, ascent=replace(BASE.ascent, iterations=20, decay=0.95)),
}


def instance(onnx: str, spec: str) -> tuple[Model, Case]:
    """The network, and the first case."""
    found: list[Property] = []

    def where(graph):
        found.append(load_property(spec, graph.input_shape, math.prod(graph.output_shape)))
        return hull(found[0])

    model = load_model(onnx, drop_softmax=False, input_range=where)
    return model, found[0].cases[0]


def root_of(model: Model, case: Case) -> Root:
    """Alpha-CROWN's root of a case."""
    nets = Networks.of(model.graph, torch.device("cpu"))
    (proof,) = prove(nets, [case], "alpha-crown")
    if proof.start is None:
        raise SystemExit(f"{model.source}: {proof.stage} decides it; there is nothing to search")
    return begin(proof.start)


@contextmanager
def half_spaces(used: bool) -> Iterator[None]:
    """The search with or without certify.bab.halfspace."""
    before = search.PLANES_AFTER
    search.PLANES_AFTER = before if used else math.inf
    try:
        yield
    finally:
        search.PLANES_AFTER = before


def no_witness(points: Float64) -> None:
    """Replays nothing: the search is judged alone."""


def no_judge() -> Replay:
    """As certify.bab.share.Helper asks for."""
    return no_witness


def shared(search: S, lending: Lending[S], processes: int, seconds: float) -> tuple[SearchResult, float, float]:
    """A search with others' help, how long it took, and the processor time of all."""
    team = Team(search, lending, no_judge, helpers, processes - 1)
    begun, before = time.monotonic(), os.times()
    found = team.grow(begun + seconds)
    spent = time.monotonic() - begun
    team.close()
    return found, spent, sum(os.times()[:4]) - sum(before[:4])


def show(name: str, variant: str, found: SearchResult, spent: float, cost: float) -> None:
    """One row of the table."""
    lower = "closed" if found.lower > 0 else f"{found.lower:.4f}"
    rate = found.subproblems / max(cost, 1e-9)
    print(f"{name:40} {variant:42} {found.subproblems:11d} {spent:8.2f} {cost:8.2f} {rate:9.0f}  {lower}", flush=True)


def compare(name: str, model: Model, case: Case, given: argparse.Namespace) -> None:
    """One process, and several."""
    root = None if given.boxes else root_of(model, case)
    for count in (1, given.processes) * 2:
        if root is None:
            boxes = InputSearch.begin(Networks.light(model.graph).exact, case, no_witness)
            result = shared(boxes, subboxes, count, given.seconds)
        else:
            result = shared(Tree.plant(root, no_witness, BASE), subtree, count, given.seconds)
        show(name, f"all, {count} processes", *result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="limit per search")
    parser.add_argument("--processes", type=int, help="the gain of so many processes, instead of the ingredients'")
    parser.add_argument("--boxes", action="store_true", help="splits of the input; with --processes")
    parser.add_argument("pairs", nargs="+", help="networks and specs in turn")
    given = parser.parse_args()
    if len(given.pairs) % 2:
        parser.error("give pairs: a network and a spec each")
    if given.boxes and not given.processes:
        parser.error("--boxes goes with --processes")
    columns = f"{'subproblems':>11} {'wall':>8} {'cpu':>8} {'a cpu s':>9}"
    print(f"{'instance':40} {'variant':42} {columns}  lower")
    for onnx, spec in zip(given.pairs[::2], given.pairs[1::2], strict=True):
        model, case = instance(onnx, spec)
        name = f"{Path(onnx).stem} {Path(spec).name.split('.vnnlib')[0][-18:]}"
        if given.processes:
            compare(name, model, case, given)
            continue
        root = root_of(model, case)
        for variant, options in VARIANTS.items():
            wall, begun = time.monotonic(), time.process_time()
            with half_spaces("half-spaces" not in variant):
                found = grow(Tree.plant(root, lambda points: None, options), wall + given.seconds)
            show(name, variant, found, time.monotonic() - wall, time.process_time() - begun)


if __name__ == "__main__":
    main()
