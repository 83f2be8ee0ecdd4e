"""A user's own files: .npz, .csv and image folders, well-formed and malformed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from certify.errors import DataError
from certify.frontends.data import load_data


def saved(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


# --- npz ---------------------------------------------------------------------------------------------------------


def test_npz(tmp_path: Path) -> None:
    x, y = np.random.default_rng(1).random((4, 1, 2, 2), dtype=np.float32), np.array([0, 1, 2, 1])
    path = tmp_path / "set.npz"
    path.write_bytes(saved(x=x, y=y, extra=y))
    data = load_data(str(path))
    assert np.array_equal(data.x, x)
    assert np.array_equal(data.y, y)
    assert data.ids.tolist() == [0, 1, 2, 3]
    assert data.sha256 == load_data((x, y)).sha256


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as .npz"),
        (b"PK\x03\x04 damaged", "cannot be read as .npz"),
        (b"text", "cannot be read as .npz"),
        (npy(), "not a .npz archive"),
        (saved(x=np.zeros((2, 2))), "no array y; it holds x"),
        (saved(images=np.zeros((2, 2)), labels=np.zeros(2)), "no array x and y; it holds images, labels"),
        (saved(x=np.array([{}, {}], dtype=object), y=np.zeros(2)), "allow_pickle"),
        (saved(x=np.zeros((2, 2)), y=np.zeros(3)), "2 samples but y has 3"),
        (saved(x=np.zeros((20, 20)), y=np.zeros(20))[:-100], "cannot be read as .npz"),
    ],
)
def test_malformed_npz(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(path)


# --- csv ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "x", "y", "note"),
    [
        ("a,label,b\n0.5,1,0\n1,0,0.25\n", [[0.5, 0], [1, 0.25]], [1, 0], "column 'label'$"),
        ("Y,a\n2,0.5\n", [[0.5]], [2], "column 'Y'$"),
        ("a,b,class\n0,1,2\n", [[0, 1]], [2], "column 'class' .the last one"),
        ("0.5,1e-1,3\n\n0,1,0\n", [[0.5, 0.1], [0, 1]], [3, 0], "no header: the last column"),
        ('"a, b",label\r\n"0.5","1"\r\n', [[0.5]], [1], "column 'label'$"),
        ("0,1,2,label\n1,0,1,7\n", [[1, 0, 1]], [7], "column 'label'$"),
    ],
)
def test_csv(tmp_path: Path, text: str, x: list[list[float]], y: list[int], note: str) -> None:
    path = tmp_path / "set.csv"
    path.write_text(text, newline="")
    data = load_data(path)
    assert np.array_equal(data.x, np.array(x, dtype=np.float32))
    assert data.y.tolist() == y
    import re

    assert re.search(note, data.notes[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("a,label\n", "no sample below the header"),
        ("label\n1\n", "one column"),
        ("a,label\n0.5,1\n0.5\n", "line 3: 1 columns, 2 before"),
        ("a,b,label\n0.5,1\n", "the header has 3 columns, the data 2"),
        ("a,label\n0.5,1\n\nx,1\n", "line 4: 'x' is not a number"),
        ("a,label\n0.5,\n", "line 2: '' is not a number"),
        ("a,label\n0.5,1.5\n", "label 1.5 of sample 0"),
        ("a,label\nnan,1\n", "holds NaN"),
        ("a,label,y\n0,1,1\n", "2 columns are named"),
        (",a,label\n0,0.5,1\n", "column 1 has no name"),
        ("0,1,2\n0.1,0.2,1\n", "a header or a sample"),
        ("0.1,oops,2\n0.1,0.2,1\n", "mixes names and values"),
        ("a,label\n7,1\n", "--input-range"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_data(path)


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_bytes(b"a,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="not a text file"):
        load_data(path)


# --- image folders -----------------------------------------------------------------------------------------------


def put(path: Path, pixels: np.ndarray[Any, Any], mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


RNG = np.random.default_rng(2)
GREY = RNG.integers(0, 256, (2, 3), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8)


def test_grey_folder(tmp_path: Path) -> None:
    put(tmp_path / "dog" / "b.png", GREY)
    put(tmp_path / "dog" / "a.png", 255 - GREY)
    put(tmp_path / "cat" / "deep" / "c.PNG", GREY // 2)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = load_data(tmp_path)
    assert data.x.shape == (3, 1, 2, 3)
    assert data.y.tolist() == [0, 1, 1]
    assert data.notes[0] == "classes: 0 = cat, 1 = dog"
    expected = np.stack([GREY // 2, 255 - GREY, GREY]).astype(np.float32) / np.float32(255)
    assert np.array_equal(data.x[:, 0], expected)


def test_colour_folder_mixes_modes(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", COLOUR)
    put(tmp_path / "b" / "2.png", GREY)
    put(tmp_path / "b" / "3.png", COLOUR, "RGBA")
    data = load_data(tmp_path)
    assert data.x.shape == (3, 3, 2, 3)
    assert np.array_equal(data.x[0], np.moveaxis(COLOUR, -1, 0).astype(np.float32) / np.float32(255))
    assert np.array_equal(data.x[0], data.x[2])
    assert np.array_equal(data.x[1, 0], data.x[1, 2])
    assert any("transparency" in note for note in data.notes)


def test_folders_named_by_numbers_that_are_not_their_classes(tmp_path: Path) -> None:
    put(tmp_path / "0" / "a.png", GREY)
    put(tmp_path / "1" / "b.png", GREY)
    assert len(load_data(tmp_path).notes) == 1
    put(tmp_path / "10" / "c.png", GREY)
    put(tmp_path / "2" / "d.png", GREY)
    data = load_data(tmp_path)
    assert data.y.tolist() == [0, 1, 2, 3]
    assert "numbers, but not the classes'" in data.notes[1]


def test_malformed_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folder inside"):
        load_data(tmp_path)
    put(tmp_path / "a" / "1.png", GREY)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no image in class folder 'b'"):
        load_data(tmp_path)
    put(tmp_path / "b" / "2.png", GREY.T)
    with pytest.raises(DataError, match=r"2.png: size \(3, 2\) differs from \(2, 3\)"):
        load_data(tmp_path)
    whole = (tmp_path / "a" / "1.png").read_bytes()
    for broken in (b"", b"not an image", whole[:40]):
        (tmp_path / "b" / "2.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"2\.png: cannot be read as an image"):
            load_data(tmp_path)
    put(tmp_path / "b" / "2.png", GREY.astype(np.uint16) * 200)
    with pytest.raises(DataError, match="colour mode I;16 is not supported"):
        load_data(tmp_path)
