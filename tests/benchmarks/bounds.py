"""Ratios for PERFORMANCE.md: bounds against the least work they need, and against published figures of a peer.

    OMP_NUM_THREADS=1 python tests/benchmarks/bounds.py [--boxes DIR] [--repeat 7]

Without --boxes: random networks of the usual shapes, each ratio taken in one run.
    IBP            against two plain forward passes of the same batch, dtype and network
    CROWN backward against the matrix products of the same shapes alone
    alpha-CROWN    per iteration against one CROWN pass of all layers
With --boxes DIR, a folder of NAME.npz files (lower, upper, label, peer_crown, peer_alpha_crown_20it) beside a folder
tree that holds NAME.onnx: tightness and seconds of CROWN and alpha-CROWN for the batch sizes 1, 16 and 64.
Seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from certify.bounding.alpha import AlphaOptions, optimise
from certify.bounding.crown import Knowledge, backward, row_form
from certify.bounding.interval import ibp
from certify.bounding.margins import Networks, prove
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.frontends.onnx_import import load_model
from certify.frontends.torch_import import graph_from_torch
from certify.graph import Graph
from certify.property import Box, Case, Polytope, misclassification
from certify.rules import is_affine, transpose

NEVER = 1000.0  # offset of the unsafe set: far above every margin of these networks


def seconds(call: Callable[[], object], repeat: int) -> float:
    """Median processor time of one call, after a warm-up."""
    call()
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def networks() -> dict[str, tuple[torch.nn.Module, tuple[int, ...], int]]:
    """name -> (module, input shape, batch)."""
    nn = torch.nn
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    cnn = [nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1)]
    return {
        "mlp 784-256x6-10": (nn.Sequential(*layers, nn.Linear(256, 10)), (784,), 512),
        "cnn 8-16-32-fc100": (
            nn.Sequential(*cnn, nn.ReLU(), nn.Flatten(), nn.Linear(512, 100), nn.ReLU(), nn.Linear(100, 10)),
            (3, 32, 32),
            64,
        ),
    }


def products(graph: Graph, rows: torch.Tensor) -> Callable[[], None]:
    """The transposed products that a backward pass of these rows cannot avoid, on data of the right shapes."""
    count = rows.shape[0] * rows.shape[1]
    sizes = [(n, torch.rand(count, *n.shape, dtype=rows.dtype)) for n in graph.nodes[1:] if is_affine(n.op)]

    def run() -> None:
        for node, a in sizes:
            transpose(node.op, a, tuple(graph.nodes[i].shape for i in node.inputs))

    return run


def ratios(repeat: int) -> None:
    for name, (module, shape, batch) in networks().items():
        for dtype in (torch.float32, torch.float64):
            x = torch.rand(batch, *shape, dtype=dtype)
            graph = graph_from_torch(module.to(dtype), x[:1])
            with torch.no_grad():
                report(f"{name}, batch {batch}, {dtype}", graph, x, repeat)


def report(title: str, graph: Graph, x: torch.Tensor, repeat: int) -> None:
    eps = 0.002
    plain = seconds(lambda: graph(x), repeat)
    interval = seconds(lambda: ibp(graph, x - eps, x + eps), repeat)
    flat = x[:16].reshape(16, -1)
    known = propagate(graph, Region(flat - eps, flat + eps))
    rows = torch.eye(10, dtype=x.dtype).expand(16, 10, 10).contiguous()
    back = seconds(lambda: backward(known, row_form(graph.output, rows)), repeat)
    least = seconds(products(graph, rows), repeat)
    crown = seconds(lambda: propagate(graph, Region(flat - eps, flat + eps)), repeat)
    print(f"{title}")
    print(f"  IBP / two plain passes            {interval / (2 * plain):5.2f}   ({interval * 1e3:.1f} ms)")
    print(f"  CROWN backward / its products     {back / least:5.2f}   ({back * 1e3:.1f} ms, 16 x 10 rows)")
    if x.dtype is torch.float32:
        step = _alpha_step(known, rows)
        print(f"  alpha-CROWN iteration / CROWN     {step / crown:5.2f}   ({step * 1e3:.1f} ms)")


def _alpha_step(known: Knowledge, rows: torch.Tensor) -> float:
    times = {}
    with torch.enable_grad():
        for n in (2, 6):
            begin = time.process_time()
            optimise(known, rows, AlphaOptions(iterations=n))
            times[n] = time.process_time() - begin
    return (times[6] - times[2]) / 4


def peer(folder: Path) -> None:
    for path in sorted(folder.glob("*.npz")):
        model = next(folder.parent.rglob(f"{path.stem}.onnx"))
        boxes = dict(np.load(path))
        nets = Networks.of(load_model(str(model)).graph, torch.device("cpu"))
        for batch in (1, 16, 64):
            compare(path.stem, nets, {k: v[:batch] for k, v in boxes.items()}, batch)


def compare(name: str, nets: Networks, boxes: dict[str, np.ndarray], batch: int) -> None:
    cases = [case(*one, nets.exact) for one in zip(boxes["lower"], boxes["upper"], boxes["label"], strict=True)]
    for method, key in (("crown", "peer_crown"), ("alpha-crown", "peer_alpha_crown_20it")):
        begin = time.process_time()
        proofs = prove(nets, cases, method)
        spent = time.process_time() - begin
        theirs = boxes[key]
        ours = np.stack([p.rows for p in proofs])[: len(theirs)] + NEVER
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{name} batch {batch:2} {method:11} {spent:7.2f} s   mean {ours.mean():9.4f} (peer {theirs.mean():9.4f})"
            f"   median {np.median(ours):8.5f} (peer {np.median(theirs):8.5f})   peak {memory:.1f} GB",
            flush=True,
        )


def case(lower: np.ndarray, upper: np.ndarray, label: int, graph: Graph) -> Case:
    """All rivals of a label, as polytopes too large to be excluded: no row drops out, every method does all its
    work.
    """
    box = Box.exact(lower.reshape(graph.input_shape), upper.reshape(graph.input_shape))
    far = np.array([NEVER])
    rivals = misclassification(int(label), int(np.prod(graph.output_shape)))
    return Case(box, tuple(Polytope(p.coeff, far, far, p.strict) for p in rivals))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.boxes:
        peer(given.boxes)
    else:
        ratios(given.repeat)
