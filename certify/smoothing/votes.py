"""Draws answered by the network."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import ModelError
from certify.frontends.opaque import is_opaque
from certify.smoothing.certify import Counts
from certify.smoothing.grid import Float32
from certify.smoothing.noise import Blocks, Noise
from certify.smoothing.radii import Smoothing
from certify.smoothing.splitting import Splitting

if TYPE_CHECKING:
    from certify.model import Model

# (B, size) inputs, one a row -> B classes, -1 where an output is not finite.
Classify = Callable[[Float32], NDArray[np.int64]]
# The inputs of the draws begin to end, (end - begin, size), in the given array or another.
Make = Callable[[int, int, Float32], Float32]

# Draws of a call. onnxruntime's throughput is flat from some 256 on; a GPU wants as many as it holds.
CPU_BATCH, GPU_BATCH = 1024, 16384
# Share of the free memory that a batch may take, all values of the network counted twice.
MEMORY_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Network:
    """The classifier that is smoothed, as it is computed: by onnxruntime on the CPU, by torch in float32 on a GPU.

    A row's last bits may depend on its batch; where that could change a class, the class is a matter of rounding.
    ahead: batches are made in a second thread while a GPU is busy with the ones before. On the CPU the two threads take
    0.3 ms a batch to wait for each other, more than the noise of small networks takes.
    """

    classify: Classify
    classes: int
    batch: int
    ahead: bool = False

    @staticmethod
    def of(model: Model, device: str) -> Network:
        """On the device "cpu" or a CUDA one. Raises ModelError for a network that takes one input at a time."""
        from certify.attacks.replay import Replayer

        shape, classes = model.graph.input_shape, math.prod(model.graph.output_shape)
        replayer = Replayer(model, threads())
        single = f"{model.source}: the network takes one input at a time, and smoothing needs thousands for a sample; "
        if not model.onnx_shape or model.onnx_shape[0] >= 0:
            raise ModelError(f"{single}export it with a dynamic batch axis (its input has shape {model.onnx_shape})")
        pair = np.random.default_rng(0).random((2, *shape)).astype(replayer.dtype)
        if not replayer.can_batch(pair):
            raise ModelError(
                f"{single}its answers change with what else is in the batch (a constant Reshape does that)"
            )
        if device != "cpu":
            if is_opaque(model):
                raise ModelError(f"{model.source}: only onnxruntime knows its ops; give --device cpu")
            return Network(_on_torch(model, device), classes, _rows(model, _free_on(device), GPU_BATCH), ahead=True)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Network(
            lambda x: replayer.clean_predictions(x.reshape(-1, *shape)), classes, _rows(model, free, CPU_BATCH)
        )

    def count(self, make: Make, size: int, start: int, stop: int) -> Counts:
        """Answers of each class over the inputs of the draws `start` to `stop`, which have `size` coordinates."""
        counts = np.zeros(self.classes, dtype=np.int64)
        for inputs in (self._ahead if self.ahead else self._batches)(make, size, start, stop):
            answers = self.classify(inputs)
            counts += np.bincount(answers[answers >= 0], minlength=self.classes)
        return counts

    def _batches(self, make: Make, size: int, start: int, stop: int) -> Iterator[Float32]:
        """Batches, all in one array: fresh ones cost 1 ns a number."""
        array = np.empty((min(self.batch, stop - start), size), dtype=np.float32)
        for first in range(start, stop, self.batch):
            last = min(first + self.batch, stop)
            yield make(first, last, array[: last - first])

    def _ahead(self, make: Make, size: int, start: int, stop: int) -> Iterator[Float32]:
        """The same, each made while the last is answered, in two arrays that take turns."""
        arrays = [np.empty((min(self.batch, stop - start), size), dtype=np.float32) for _ in range(2)]

        def begin(first: int) -> Future[Float32]:
            last = min(first + self.batch, stop)
            arrays.reverse()
            return pool.submit(make, first, last, arrays[0][: last - first])

        with ThreadPoolExecutor(1) as pool:
            following = begin(start)
            for first in range(start, stop, self.batch):
                inputs = following.result()
                if first + self.batch < stop:
                    following = begin(first + self.batch)
                yield inputs


@dataclass(frozen=True, eq=False)
class DrawnVotes:
    """Votes for the grid point `places` (flat) of one sample; see certify.smoothing.certify.Votes."""

    network: Network
    smoothing: Smoothing
    blocks: Blocks
    places: Float32
    sample: int

    def __call__(self, purpose: int, start: int, stop: int) -> Counts:
        noise = Noise(self.blocks, self.sample, purpose)

        def make(begin: int, end: int, out: Float32) -> Float32:
            for part in noise.between(begin, end, out):
                part += self.places
                self.smoothing.grid.inputs(part)
            return out

        return self.network.count(make, self.smoothing.size, start, stop)


def split_votes(network: Network, splitting: Splitting, places: NDArray[np.int64]) -> Counts:
    """Answers of each class over all splits."""
    return network.count(
        lambda begin, end, out: splitting.inputs(places, begin, end), splitting.size, 0, splitting.period
    )


def threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rows(model: Model, free: float, most: int) -> int:
    values = sum(math.prod(node.shape) for node in model.graph.nodes)
    return 1 << (max(1, min(most, int(MEMORY_SHARE * free / (8 * values)))).bit_length() - 1)


def _free_on(device: str) -> float:
    import torch

    return float(torch.cuda.mem_get_info(torch.device(device))[0])


def _on_torch(model: Model, device: str) -> Classify:
    import torch

    graph = model.graph.cast(torch.zeros(1, dtype=torch.float32, device=device))

    def classify(x: Float32) -> NDArray[np.int64]:
        # cuDNN computes convolutions in TF32, ten bits of float32's, unless it is told not to.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            inputs = torch.from_numpy(x).to(device).reshape(-1, *model.graph.input_shape)
            outputs: Any = graph(inputs).reshape(len(x), -1)
            best = torch.where(outputs.isfinite().all(dim=1), outputs.argmax(dim=1), -1)
        found: NDArray[np.int64] = best.cpu().numpy()
        return found

    return classify
