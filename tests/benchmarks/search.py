"""Branch and bound over neurons with and without each ingredient: subproblems to close, seconds, subproblems a second.

    OMP_NUM_THREADS=1 python tests/benchmarks/search.py [--seconds 30] NET.onnx SPEC.vnnlib [NET.onnx SPEC.vnnlib ...]
    OMP_NUM_THREADS=1 python tests/benchmarks/search.py --processes 2 [--seconds 30] NET.onnx SPEC.vnnlib ...

Each pair is one instance; its first case is searched from alpha-CROWN's root. Processor time of the search alone; with
--processes, wall-clock time of all ingredients alone and shared out, in turn, twice (on a machine with nothing else).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from certify.bab import search, subtree
from certify.bab.result import Replay, SearchResult
from certify.bab.root import Root, begin
from certify.bab.search import SearchOptions, Tree, grow
from certify.bab.share import Team
from certify.bounding.margins import Networks, prove
from certify.cli.vnnlib_command import hull
from certify.executors.choose import helpers
from certify.frontends.onnx_import import load_model
from certify.frontends.vnn_spec import load_property
from certify.property import Float64, Property

BASE = SearchOptions()
VARIANTS = {
    "all": BASE,
    "without multipliers (beta)": replace(BASE, ascent=replace(BASE.ascent, multiplier_step=0.0)),
    "without half-spaces (clipping)": BASE,
    "without filtering (one candidate a score)": replace(BASE, tries=1),
    "without ascent": replace(BASE, ascent=replace(BASE.ascent, iterations=0)),
    "twice the ascent": replace(BASE, ascent=replace(BASE.ascent, iterations=20, decay=0.95)),
}


def root_of(onnx: str, spec: str) -> Root:
    """Alpha-CROWN's root of an instance's first case."""
    found: list[Property] = []

    def where(graph):
        found.append(load_property(spec, graph.input_shape, math.prod(graph.output_shape)))
        return hull(found[0])

    model = load_model(onnx, drop_softmax=False, input_range=where)
    nets = Networks.of(model.graph, torch.device("cpu"))
    (proof,) = prove(nets, [found[0].cases[0]], "alpha-crown")
    if proof.start is None:
        raise SystemExit(f"{onnx} {spec}: {proof.stage} decides it; there is nothing to search")
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


def shared(root: Root, processes: int, seconds: float) -> tuple[SearchResult, float]:
    """The search with others' help, and how long it took."""
    team = Team(Tree.plant(root, no_witness, BASE), subtree, no_judge, helpers, processes - 1)
    begun = time.monotonic()
    found = team.grow(begun + seconds)
    spent = time.monotonic() - begun
    team.close()
    return found, spent


def show(name: str, variant: str, found: SearchResult, spent: float) -> None:
    """One row of the table."""
    lower = "closed" if found.lower > 0 else f"{found.lower:.4f}"
    rate = found.subproblems / max(spent, 1e-9)
    print(f"{name:40} {variant:42} {found.subproblems:11d} {spent:8.2f} {rate:9.0f}  {lower}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="limit per search")
    parser.add_argument("--processes", type=int, help="the gain of so many processes, instead of the ingredients'")
    parser.add_argument("pairs", nargs="+", help="networks and specs in turn")
    given = parser.parse_args()
    if len(given.pairs) % 2:
        parser.error("give pairs: a network and a spec each")
    print(f"{'instance':40} {'variant':42} {'subproblems':>11} {'seconds':>8} {'a second':>9}  lower")
    for onnx, spec in zip(given.pairs[::2], given.pairs[1::2], strict=True):
        root = root_of(onnx, spec)
        name = f"{Path(onnx).stem} {Path(spec).name.split('.vnnlib')[0][-18:]}"
        for count in (1, given.processes) * 2 if given.processes else ():
            show(name, f"all, {count} processes", *shared(root, count, given.seconds))
        for variant, options in VARIANTS.items() if not given.processes else ():
            begun = time.process_time()
            with half_spaces("half-spaces" not in variant):
                found = grow(Tree.plant(root, lambda points: None, options), time.monotonic() + given.seconds)
            show(name, variant, found, time.process_time() - begun)


if __name__ == "__main__":
    main()
