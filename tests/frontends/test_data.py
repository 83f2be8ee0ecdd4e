"""Laws of the data front end: what is loaded is what the source holds, in raw space, or a DataError that helps."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certify.errors import DataError, NoSamples
from certify.frontends.data import Dataset, fit_to_model, load_data, select


def ramp(n: int = 5, shape: tuple[int, ...] = (1, 2, 3)) -> Dataset:
    x = np.linspace(0, 1, n * int(np.prod(shape)), dtype=np.float32).reshape(n, *shape)
    return load_data((x, np.arange(n) % 3))


def test_digits_split_is_the_last_360() -> None:
    test, train = load_data("digits"), load_data("digits", split="train")
    assert test.x.shape == (360, 1, 8, 8)
    assert train.x.shape == (1437, 1, 8, 8)
    assert test.ids.tolist() == list(range(1437, 1797))
    assert not set(test.ids) & set(train.ids)
    assert np.array_equal(test.x * 16, np.round(test.x * 16))
    assert (test.x.dtype, test.y.dtype, test.input_range) == (np.float32, np.int64, (0.0, 1.0))
    assert set(test.y) == set(range(10))
    assert test.sha256 != train.sha256
    assert test.sha256 == load_data("digits").sha256


def test_mnist(shared: Path) -> None:
    data = load_data("mnist", data_dir=shared / "data")
    assert data.x.shape == (10000, 1, 28, 28)
    assert data.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.array_equal(data.x, np.float32(np.round(data.x * 255)) / np.float32(255))
    assert (data.x.min(), data.x.max(), data.notes) == (0, 1, ())


def test_partial_cifar10_says_so(shared: Path) -> None:
    data = load_data("cifar10", data_dir=shared / "data", split="train")
    assert data.x.shape == (20000, 3, 32, 32)
    assert "2 of 5 training batches present" in data.notes[0]
    assert data.ids[[0, -1]].tolist() == [0, 19999]
    test = load_data("cifar10", data_dir=shared / "data")
    assert test.x.shape == (10000, 3, 32, 32)
    assert test.y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert test.notes == ()


def test_data_folder_comes_from_argument_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CERTIFY_DATA", raising=False)
    for name, host in (("mnist", "download t10k-images.* from https://"), ("cifar10", "download https://")):
        with pytest.raises(DataError, match=f"--data-dir DIR or set CERTIFY_DATA.*{host}"):
            load_data(name)
    monkeypatch.setenv("CERTIFY_DATA", str(tmp_path / "there"))
    with pytest.raises(DataError, match=r"there/MNIST/raw/t10k-images-idx3-ubyte.gz is missing; download https://"):
        load_data("mnist")
    with pytest.raises(DataError, match="other/cifar-10-batches-py/test_batch is missing; download https://"):
        load_data("cifar10", data_dir=tmp_path / "other")


@pytest.mark.parametrize("packed", [False, True])
def test_wrong_content_fails_its_checksum(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    content = bytes(100)
    name = "t10k-images-idx3-ubyte" + (".gz" if packed else "")
    (folder / name).write_bytes(gzip.compress(content) if packed else content)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match=f"MD5 {hashlib.md5(content).hexdigest()}, expected 2646ac647"):
        load_data("mnist", data_dir=tmp_path)


def test_damaged_gzip(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(1000))[:-6])
    with pytest.raises(DataError, match="damaged gzip"):
        load_data("mnist", data_dir=tmp_path)


def test_unknown_names_and_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a known set"):
        load_data("imagenet")
    with pytest.raises(DataError, match="split 'validation' is unknown"):
        load_data("digits", split="validation")
    with pytest.raises(DataError, match="has no split 'train'"):
        load_data((np.zeros((1, 1)), np.zeros(1)), split="train")
    odd = tmp_path / "data.txt"
    odd.write_text("1,2")
    with pytest.raises(DataError, match="unknown kind of data file"):
        load_data(odd)


# --- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0), "empty"),
        (np.zeros((2, 0)), np.zeros(2), "empty"),
        (np.zeros((2, 3)), np.zeros(3), "2 samples but y has 3"),
        (np.zeros(3), np.zeros(3), r"shape \(3,\)"),
        (np.zeros((2, 3)), np.zeros((2, 10)), r"y has shape \(2, 10\)"),
        (np.zeros((2, 3)), [0, -1], "label -1 of sample 1 is out of range"),
        (np.zeros((2, 3)), [0, 2**40], "out of range"),
        (np.zeros((2, 3)), [0, 0.5], "label 0.5 of sample 1 is not a whole number"),
        (np.zeros((2, 3)), [0, np.nan], "not a whole number"),
        (np.zeros((2, 3)), ["a", "b"], "expected class numbers"),
        (np.zeros((2, 3), dtype=complex), [0, 1], "expected numbers"),
        (np.array([[0, 1], [np.nan, 0]]), [0, 1], "sample 1 holds NaN"),
        (np.array([[0, 1], [np.inf, 0]]), [0, 1], "sample 1 holds NaN or infinite"),
        (np.array([[0, 255]], dtype=np.uint8), [0], r"\[0, 255\], outside .* --input-range"),
        (np.array([[-1e-6, 0.5]]), [0], "--input-range"),
    ],
)
def test_bad_arrays(x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data((x, np.asarray(y)))


def test_input_range_is_stated_never_guessed() -> None:
    x = np.array([[0, 255]], dtype=np.uint8)
    data = load_data((x, np.array([1])), input_range=(0, 255))
    assert (data.input_range, data.x.tolist(), data.notes) == ((0, 255), [[0, 255]], ())
    for bad in ((1, 0), (0, np.nan), (0, np.inf), (1, 1), (0, 1e300), (1, 1 + 1e-12)):
        with pytest.raises(DataError, match="input range"):
            load_data((x, np.array([1])), input_range=bad)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0.05, 1))
def test_samples_stay_inside_the_range_after_rounding(values: list[float], high: float) -> None:
    x = np.array([values]) * high
    data = load_data((np.minimum(x, high), np.zeros(1)), input_range=(0, high))
    assert data.x.dtype == np.float32
    assert (data.x.astype(np.float64) <= high).all()
    assert np.abs(data.x - x).max() <= 2**-23
    exact = np.array_equal(data.x.astype(np.float64), np.minimum(x, high))
    assert bool(data.notes) == (not exact)


def test_content_hash_sees_every_change() -> None:
    data = ramp()
    x, y = data.x.copy(), data.y.copy()
    hashes = {data.sha256, load_data((x.reshape(5, 6), y)).sha256}
    x[0, 0, 0, 0] += 1e-6
    hashes.add(load_data((x, y)).sha256)
    y[0] += 1
    hashes.add(load_data((x, y)).sha256)
    assert len(hashes) == 4


# --- selection ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), *[st.one_of(st.none(), st.integers(0, 14))] * 3)
def test_selection_is_a_slice(n: int, samples: int | None, start: int | None, end: int | None) -> None:
    data = load_data((np.linspace(0, 1, n)[:, None], np.zeros(n)))
    expected = list(range(n))[start:end][:samples]
    if not expected:
        with pytest.raises(NoSamples):
            select(data, samples, start, end)
        return
    chosen = select(data, samples, start, end)
    assert chosen.ids.tolist() == expected
    assert np.array_equal(chosen.x, data.x[expected])
    assert chosen.sha256 == data.sha256


def test_selection_by_id_keeps_order_and_original_numbers() -> None:
    digits = load_data("digits")
    chosen = select(digits, ids=[1500, 1437])
    assert chosen.ids.tolist() == [1500, 1437]
    assert np.array_equal(chosen.x[1], digits.x[0])
    with pytest.raises(DataError, match=r"no sample with id 3 .*1437 to 1796"):
        select(digits, ids=[1500, 3])
    with pytest.raises(DataError, match="twice"):
        select(digits, ids=[1500, 1500])
    with pytest.raises(DataError, match="either ids or start/end"):
        select(digits, ids=[1500], start=1)
    with pytest.raises(NoSamples):
        select(digits, ids=[])
    with pytest.raises(DataError, match="start is -1"):
        select(digits, start=-1)
    assert "400 samples asked for, 360 available" in select(digits, samples=400).notes


# --- fitting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 1), (2, 3), (1, 2, 3), (2, 3, 1)])
def test_fit_keeps_row_major_order(shape: tuple[int, ...]) -> None:
    data = ramp()
    fitted = fit_to_model(data, shape)
    assert fitted.x.shape == (5, *shape)
    assert np.array_equal(fitted.x.ravel(), data.x.ravel())


def test_fit_refuses_other_sizes_and_mixed_axes() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 2, 3\) \(6 numbers\), the network's input \(7,\)"):
        fit_to_model(ramp(), (7,))
    with pytest.raises(DataError, match=r"\(1, 2, 3\), the network's input \(3, 2\).*mix up"):
        fit_to_model(ramp(), (3, 2))


def test_fit_says_which_side_has_its_channels_last() -> None:
    with pytest.raises(DataError, match="--layout nhwc"):
        fit_to_model(ramp(shape=(2, 3, 4)), (3, 4, 2))
    with pytest.raises(DataError, match="transpose the data"):
        fit_to_model(ramp(shape=(3, 4, 2)), (2, 3, 4))


def test_import_is_light() -> None:
    heavy = "{'sklearn', 'torch', 'pandas', 'scipy', 'PIL', 'vnnlib', 'onnxruntime'}"
    code = f"import sys, certify.frontends.data, certify.frontends.vnn_spec; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
