"""The shipped networks: trained on scikit-learn's digits, exported to ONNX, listed in the manifest.

    python -m certify.models.make_digits [--out DIR]

Everything is seeded; the same versions on the same machine write the same files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from certify.errors import CertifyError
from certify.frontends.data import load_data
from certify.models.architectures import cnn, mlp
from certify.models.manifest import FOLDER, Row, digest, write_rows
from certify.trainers.certified import Ibp
from certify.trainers.export import export_onnx
from certify.trainers.loop import Samples, accuracy, train
from certify.trainers.noise import GaussianNoise
from certify.trainers.objective import Objective
from certify.trainers.schedule import Schedule
from certify.trainers.standard import Standard

if TYPE_CHECKING:
    import torch

INPUT_SHAPE = (1, 8, 8)
CLASSES = 10
SEED = 0


@dataclass(frozen=True)
class Entry:
    """One shipped network. eps: the radius it was trained for, "" for standard training."""

    file: str
    architecture: str
    recipe: str
    build: Callable[[], torch.nn.Module]
    objective: Objective
    schedule: Schedule
    eps: str = ""


ENTRIES = (
    Entry(
        "digits_mlp.onnx",
        "mlp 64-64",
        "standard training, 60 epochs",
        lambda: mlp(INPUT_SHAPE, CLASSES, (64, 64)),
        Standard(),
        Schedule(epochs=60),
    ),
    Entry(
        "digits_cnn.onnx",
        "cnn 8-16, hidden 64",
        "standard training, 60 epochs",
        lambda: cnn(INPUT_SHAPE, CLASSES, (8, 16), 64),
        Standard(),
        Schedule(epochs=60),
    ),
    Entry(
        "digits_cnn_robust.onnx",
        "cnn 8-16, hidden 64",
        "IBP training (Gowal et al. 2018), 60 epochs",
        lambda: cnn(INPUT_SHAPE, CLASSES, (8, 16), 64),
        Ibp(0.08),
        Schedule(epochs=60, batch_size=32),
        "0.08",
    ),
    Entry(
        "digits_cnn_noise.onnx",
        "cnn 8-16, hidden 64",
        "Gaussian noise of sigma 0.25 (Cohen et al. 2019), 120 epochs",
        lambda: cnn(INPUT_SHAPE, CLASSES, (8, 16), 64),
        GaussianNoise(0.25),
        Schedule(epochs=120),
    ),
)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeded torch on one thread, both restored afterwards: sums then have one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def make(entry: Entry, folder: Path) -> Row:
    """Train and export one network; its row of the manifest."""
    samples = _samples("train")
    with reproducible(SEED):
        module = entry.build()
        train(module, samples, entry.objective, entry.schedule, seed=SEED)
        clean = accuracy(module, _samples("test"))
    metadata = {
        "data": "digits",
        "input_range": "0,1",
        "recipe": entry.recipe,
        "seed": str(SEED),
        "epsilon": entry.eps or "0",
        "accuracy": f"{clean:.4f}",
    }
    path = export_onnx(module, samples.x[:1], folder / entry.file, metadata=metadata)
    return Row(entry.file, digest(path), "digits", entry.architecture, entry.recipe, entry.eps, SEED, round(clean, 4))


def _samples(split: str) -> Samples:
    """(x (N, 1, 8, 8) in [0, 1], y (N,)) of a split of the digits."""
    import torch

    data = load_data("digits", split=split)
    x = torch.from_numpy(np.asarray(data.x, dtype=np.float32)).reshape(-1, *INPUT_SHAPE)
    return Samples(x, torch.from_numpy(np.asarray(data.y, dtype=np.int64)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m certify.models.make_digits", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the files")
    folder: Path = parser.parse_args(arguments).out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in ENTRIES:
            start = time.perf_counter()
            row = make(entry, folder)
            write_rows([row], folder)
            seconds = time.perf_counter() - start
            print(f"{entry.file}: clean accuracy {row.clean:.2%}, {seconds:.0f} s", flush=True)
    except (CertifyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, CertifyError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
