"""Data sets by name, file or arrays -> Dataset, the raw samples that epsilon is measured in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import DataError
from certify.frontends.data_files import load_csv, load_image_folder, load_npz
from certify.frontends.data_known import TEST, load_cifar10, load_digits, load_mnist
from certify.frontends.dataset import Dataset, fit_to_model, make_dataset, select

__all__ = ["KNOWN_SETS", "Dataset", "fit_to_model", "load_data", "select"]

KNOWN_SETS = ("digits", "mnist", "cifar10")


def load_data(
    spec: str | os.PathLike[str] | tuple[NDArray[Any], NDArray[Any]],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = TEST,
    download: bool = False,
    input_range: tuple[float, float] | None = None,
) -> Dataset:
    """The samples that `spec` names: digits, mnist, cifar10, a .npz or .csv file, an image folder, or arrays (x, y).

    data_dir: folder of mnist and cifar10 in torchvision's layout, else the environment variable CERTIFY_DATA.
    split: "test" or "train" of a named set; files and arrays have none. download: fetch a named set where missing.
    input_range: (low, high) of valid inputs, default (0, 1); never guessed from the data.
    Raises DataError for anything missing, damaged or out of range.
    """
    if isinstance(spec, tuple):
        if len(spec) != 2:
            raise DataError(f"data: a tuple of {len(spec)} entries, expected (x, y)")
        _no_split("arrays", split)
        return make_dataset("arrays", np.asarray(spec[0]), np.asarray(spec[1]), input_range=input_range)
    name = os.fspath(spec)
    if name == "digits":
        return load_digits(split, input_range)
    if name == "mnist":
        return load_mnist(data_dir, split, download, input_range)
    if name == "cifar10":
        return load_cifar10(data_dir, split, download, input_range)
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"data {name!r}: neither a known set ({', '.join(KNOWN_SETS)}) nor an existing .npz file, .csv file or "
            "image folder"
        )
    _no_split(name, split)
    if path.is_dir():
        return load_image_folder(path, input_range)
    if path.suffix.lower() == ".npz":
        return load_npz(path, input_range)
    if path.suffix.lower() == ".csv":
        return load_csv(path, input_range)
    raise DataError(f"{name}: unknown kind of data file; .npz (arrays x and y), .csv or an image folder is expected")


def _no_split(name: str, split: str) -> None:
    if split != TEST:
        raise DataError(f"{name}: has no split {split!r}; only {', '.join(KNOWN_SETS)} have splits")
