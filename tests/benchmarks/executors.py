"""What it costs to have others decide: overhead a sample, and how much faster two workers are than one.

python tests/benchmarks/executors.py overhead [--executor ray] [--workers 2] [--samples 2000]
python tests/benchmarks/executors.py speed MODEL [--samples 1500] [--timeout 20]       (needs a quiet machine)
"""

from __future__ import annotations

import argparse
import operator
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from certify.executors.choose import Hands, executor
from certify.pieces import Piece, side_by_side
from certify.property import Ball, Property, misclassification


def overhead(hands: Hands, samples: int) -> tuple[float, float]:
    """Seconds a sample, of wall and of this process, to have MNIST-sized samples answered by idle workers."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    rivals = misclassification(3, 10)

    def make(chunk: Sequence[int]) -> Piece:
        balls = [Ball(rng.uniform(size=(1, 28, 28)), Fraction(1, 10), "linf", 0.0, 1.0, 3, 10) for _ in chunk]
        return Piece(tuple(chunk), tuple(Property.around(ball, rivals) for ball in balls), None, True)

    batches = samples // 64
    begin = time.perf_counter(), time.process_time()
    for _ in range(batches):
        make(range(64))
    making = [
        (now - then) / batches / 64 for now, then in zip((time.perf_counter(), time.process_time()), begin, strict=True)
    ]
    with executor(hands, operator.attrgetter("positions"), "cpu") as workers:
        assert workers is not None, "one worker is this process"
        list(side_by_side(workers, range(4 * workers.count), 256, make, None))  # everybody has begun
        begin = time.perf_counter(), time.process_time()
        answered = sum(len(positions) for positions, _ in side_by_side(workers, range(samples), 256, make, None))
        ended = time.perf_counter(), time.process_time()
    assert answered == samples
    wall, cpu = ((b - a) / samples - m for a, b, m in zip(begin, ended, making, strict=True))
    return wall, cpu


def speed(model: str, samples: int, timeout: float) -> None:
    """Wall and processor time of the command with one worker and with two."""
    walls = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            options = f"--data mnist --eps 0.1 --samples {samples} --timeout {timeout} --workers {workers} --quiet"
            command = [sys.executable, "-m", "certify", "run", model, *options.split(), "--out", f"{folder}/out"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begin = time.perf_counter()
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            walls[workers] = time.perf_counter() - begin
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        print(f"{workers} workers: {walls[workers]:.1f} s, processor time {cpu:.1f} s")
    print(f"two are {walls[1] / walls[2]:.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["overhead", "speed"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--executor", default="processes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--timeout", type=float, default=20.0)
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.model, given.samples, given.timeout)
    else:
        wall, cpu = overhead(Hands(given.workers, given.executor), given.samples)
        print(f"{given.executor}, {given.workers}: {1000 * wall:.2f} ms a sample, this process {1000 * cpu:.2f} ms")


if __name__ == "__main__":
    main()
