"""Draws a second of a smoothing certificate against plain forward passes of the same network and batch, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/smoothing.py [--device cpu] [--draws 20000] NET.onnx ...

The first call makes the draws, as the first sample of a run does (its time is told), later ones find them made. The
two alternate; medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np

from certify.api import Preprocessing, load_model
from certify.smoothing.grid import Grid
from certify.smoothing.noise import ESTIMATION, Blocks
from certify.smoothing.radii import Smoothing
from certify.smoothing.votes import DrawnVotes, Network


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) time of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    for path in args.nets:
        model = load_model(path, Preprocessing())
        network = Network.of(model, args.device)
        size = math.prod(model.graph.input_shape)
        smoothing = Smoothing("gaussian", 0.25, Grid(0.0, 1 / 255), size)
        places = np.full(size, 100, dtype=np.float32)
        votes = DrawnVotes(network, smoothing, Blocks(smoothing.law, size, 0), places, 0)
        inputs = smoothing.grid.inputs(np.tile(places, (network.batch, 1)))
        batches = math.ceil(args.draws / network.batch)
        draws = batches * network.batch

        def forward(network: Network = network, inputs: object = inputs, batches: int = batches) -> None:
            for _ in range(batches):
                network.classify(inputs)  # type: ignore[arg-type]

        def smooth(votes: DrawnVotes = votes, draws: int = draws) -> None:
            votes(ESTIMATION, 0, draws)

        forward()
        first = seconds(smooth)[1] / draws * 1e6
        times = [(seconds(forward), seconds(smooth)) for _ in range(args.repeat)]
        plain, noisy = (
            [statistics.median(t[which][kind] for t in times) / draws * 1e6 for kind in range(2)] for which in range(2)
        )
        print(
            f"{path}: {size} inputs, batch {network.batch}; plain {plain[0]:.2f} us wall, {plain[1]:.2f} us processor; "
            f"smoothed {noisy[0]:.2f}, {noisy[1]:.2f} (first sample {first:.2f} processor); "
            f"draws a second {plain[0] / noisy[0]:.1%} of plain by wall time, "
            f"{plain[1] / noisy[1]:.1%} by processor time"
        )


if __name__ == "__main__":
    main()
