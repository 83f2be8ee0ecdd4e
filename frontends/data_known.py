"""Public data sets by name: scikit-learn's digits, MNIST and CIFAR-10, pixels scaled to [0, 1]."""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from certify.errors import DataError
from certify.frontends.data_fetch import data_root, fetch_archive, fetch_file, is_present, read_verified
from certify.frontends.dataset import Dataset, make_dataset

TEST, TRAIN = "test", "train"

# The split of digits: the last 360 of its 1797 samples (one fifth) are the test set.
DIGITS_TOTAL = 1797
DIGITS_TEST = 360

# MD5 of the uncompressed content.
MNIST_FILES: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    TEST: (
        ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
        ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
    ),
    TRAIN: (
        ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
        ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
    ),
}
MNIST_HOSTS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

CIFAR_URLS = ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",)
CIFAR_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR_TEST = {"test_batch": "40351d587109b95175f43aff81a1287e"}
CIFAR_TRAIN = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
CIFAR_BATCH = 10_000
CIFAR_SHAPE = (3, 32, 32)

Range = tuple[float, float] | None


def check_split(name: str, split: str) -> None:
    """DataError unless split is "test" or "train"."""
    if split not in (TEST, TRAIN):
        raise DataError(f"{name}: split {split!r} is unknown; it is {TEST} or {TRAIN}")


def load_digits(split: str, input_range: Range) -> Dataset:
    """scikit-learn's 8x8 digits, 0..16 scaled by 1/16 (exact in float32), shape (1, 8, 8).

    The test split is the last 360 samples, train the first 1437; ids count over the whole set.
    """
    check_split("digits", split)
    from sklearn.datasets import load_digits as bundled

    data = bundled()
    if data.images.shape != (DIGITS_TOTAL, 8, 8):
        raise DataError(f"digits: scikit-learn's set has shape {data.images.shape}, expected ({DIGITS_TOTAL}, 8, 8)")
    cut = DIGITS_TOTAL - DIGITS_TEST
    part = slice(cut, None) if split == TEST else slice(None, cut)
    x = (data.images[part, None] / 16).astype(np.float32)
    ids = np.arange(DIGITS_TOTAL, dtype=np.int64)[part]
    return make_dataset("digits", x, data.target[part], ids=ids, input_range=input_range)


def load_mnist(data_dir: str | os.PathLike[str] | None, split: str, download: bool, input_range: Range) -> Dataset:
    """MNIST from DIR/MNIST/raw/*-ubyte[.gz], pixels / 255 in float32, shape (1, 28, 28)."""
    check_split("mnist", split)
    names = " and ".join(f"{file}.gz" for file, _ in MNIST_FILES[split])
    how = f"download {names} from {MNIST_HOSTS[0]} into DIR/MNIST/raw"
    folder = data_root("mnist", data_dir, how) / "MNIST" / "raw"
    contents = []
    for file, md5 in MNIST_FILES[split]:
        path = folder / file
        if not is_present(path):
            if not download:
                raise DataError(
                    f"mnist: {path}.gz is missing; download {MNIST_HOSTS[0]}{file}.gz into {folder}, or let --download "
                    "do it"
                )
            fetch_file([f"{host}{file}.gz" for host in MNIST_HOSTS], path.with_name(file + ".gz"), md5)
        contents.append(read_verified(path, md5))
    images = read_idx(contents[0], 3, f"mnist {split} images")
    labels = read_idx(contents[1], 1, f"mnist {split} labels")
    return make_dataset("mnist", _scaled(images[:, None]), labels, input_range=input_range)


def read_idx(content: bytes, rank: int, name: str) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes (magic number, big-endian sizes, row-major data)."""
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(f"{name}: truncated IDX file of {len(content)} bytes")
    magic, *shape = struct.unpack(f">{rank + 1}I", content[:start])
    if magic != 0x0800 + rank:
        raise DataError(f"{name}: not an IDX file of unsigned bytes with {rank} axes (magic number {magic:#010x})")
    if len(content) - start != math.prod(shape):
        raise DataError(f"{name}: {len(content) - start} bytes of data where shape {shape} needs {math.prod(shape)}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def load_cifar10(data_dir: str | os.PathLike[str] | None, split: str, download: bool, input_range: Range) -> Dataset:
    """CIFAR-10 from DIR/cifar-10-batches-py, pixels / 255 in float32, shape (3, 32, 32).

    Training batches that are missing are left out, and a note says how many there are.
    """
    check_split("cifar10", split)
    folder = data_root("cifar10", data_dir, f"download {CIFAR_URLS[0]} and unpack it in DIR") / "cifar-10-batches-py"
    files = CIFAR_TEST if split == TEST else CIFAR_TRAIN
    if download and not all((folder / file).exists() for file in files):
        fetch_archive(CIFAR_URLS, CIFAR_ARCHIVE_MD5, folder, CIFAR_TEST | CIFAR_TRAIN)
    present = [file for file in files if (folder / file).exists()]
    if not present:
        raise DataError(
            f"cifar10: {folder / next(iter(files))} is missing; download {CIFAR_URLS[0]} and unpack it in "
            f"{folder.parent}, or let --download do it"
        )
    images, labels, ids = [], [], []
    for position, (file, md5) in enumerate(files.items()):
        if file in present:
            x, y = read_cifar_batch(read_verified(folder / file, md5), str(folder / file))
            images.append(x)
            labels.append(y)
            ids.append(np.arange(len(y), dtype=np.int64) + position * CIFAR_BATCH)
    notes = []
    if len(present) < len(files):
        missing = ", ".join(file for file in files if file not in present)
        notes.append(f"partial CIFAR-10: {len(present)} of {len(files)} training batches present (missing: {missing})")
    pixels = _scaled(np.concatenate(images))
    number = np.concatenate(ids)
    return make_dataset("cifar10", pixels, np.concatenate(labels), ids=number, notes=notes, input_range=input_range)


def _scaled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """pixels / 255, rounded once to float32 (as torchvision's ToTensor does)."""
    return pixels.astype(np.float32) / np.float32(255)


class _Inert:
    """Stands for a class or value that a CIFAR pickle names; records its arguments and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, tuple) else ()


class _InertUnpickler(pickle.Unpickler):
    """Reads plain containers and the three names by which Python 2 stored numpy arrays, all made inert."""

    ALLOWED: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"names {module}.{name}, which such a file has no use for")
        return _Inert


def read_cifar_batch(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 32, 32) and labels (N,) of one CIFAR-10 batch, a pickle of Python 2.

    Nothing that the pickle names is imported or called. Raises DataError for anything but such a batch.
    """
    try:
        batch = _InertUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a hostile or damaged pickle fails in many ways, all of them mean: not such a file
        raise DataError(f"{name}: not a CIFAR-10 batch ({error})") from error
    if not isinstance(batch, dict):
        raise DataError(f"{name}: not a CIFAR-10 batch (it holds no dictionary)")
    images = _array_of(batch.get(b"data"), name)
    labels = batch.get(b"labels")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise DataError(f"{name}: not a CIFAR-10 batch (labels do not fit {len(images)} images)")
    if not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise DataError(f"{name}: labels must be whole numbers 0 to 9")
    return images, np.array(labels, dtype=np.int64)


def _array_of(value: object, name: str) -> NDArray[np.uint8]:
    """The uint8 array (N, 3, 32, 32) that an inert ndarray stands for: state (version, shape, dtype, order, bytes)."""
    features = math.prod(CIFAR_SHAPE)
    match value.state if isinstance(value, _Inert) else ():
        case (1, (int() as count, int() as width), _Inert(arguments=(b"u1", *_)), False, bytes() as data):
            if count > 0 and width == features and len(data) == count * features:
                return np.frombuffer(data, dtype=np.uint8).reshape(count, *CIFAR_SHAPE)
    raise DataError(f"{name}: not a CIFAR-10 batch (data is not an array of bytes of shape (N, {features}))")
