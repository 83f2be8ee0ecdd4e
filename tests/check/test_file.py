"""A certificate's file: what is sound is read as it stands, and a damaged archive is rejected."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from check_cases import packed
from hypothesis import given, settings
from hypothesis import strategies as st
from stated_headers import boxes, capped, header

from certify.check.content import Ball, Cases, Close, Crown, Refine
from certify.check.errors import Rejected, Unreadable
from certify.check.file import read_certificate


def test_everything_is_read_as_it_stands() -> None:
    found = read_certificate(packed(header()))
    assert (found.model_sha256, found.softmax, found.units) == ("ab" * 32, "dropped", (4, 3))
    assert (found.before.mean, found.before.std, found.before.layout) == (0.5, (0.25, 0.5), None)
    stated = found.property
    assert isinstance(stated, Ball)
    assert (stated.norm, stated.eps, stated.low, stated.high, stated.label) == ("linf", Fraction(2, 255), 0, 1, 1)
    assert stated.center.tolist() == [0, 0.25, 0.5, 0.75, 1]
    (proof,) = found.cases
    all_units, some, refine, lent, close, sloped = proof.steps
    assert isinstance(all_units, Crown)
    assert (all_units.units, all_units.places) == (None, None)
    assert isinstance(some, Crown)
    assert some.units == (0, 1)
    assert some.places is not None
    assert some.places[1].tolist() == [0, 2]
    assert (all_units.adaptive, some.adaptive) == (True, False)
    assert isinstance(refine, Refine)
    assert refine.places.tolist() == [2, 0]
    assert refine.below[0].lower.tolist() == [[0.2, 1.0]]
    assert refine.below_multipliers == refine.above_multipliers == {}
    assert isinstance(lent, Refine)
    assert lent.above_multipliers == {}
    assert [v.tolist() for v in lent.below_multipliers[0]] == [[3, 1], [[1, 2], [3, -4]]]
    assert refine.above[1].upper is not None
    assert refine.above[1].upper.tolist() == [[0.25]]
    assert isinstance(close, Close)
    assert close.slopes == "parallel"
    assert isinstance(sloped, Close)
    assert isinstance(sloped.slopes, dict)
    (grown,) = proof.trees
    assert grown.entry_slopes is not None
    assert grown.entry_slopes[0].lower.tolist() == [[0, 1]] * 3
    assert grown.renew.tolist() == [True, False, False]
    assert (grown.plane_unit.tolist(), grown.plane_sign.tolist(), grown.sharpen_beta.tolist()) == ([0], [-1], [2.0])
    types = (np.int64, np.float64, np.bool_, np.uint8)
    assert all(v.dtype in types for v in vars(grown).values() if isinstance(v, np.ndarray))
    cases = read_certificate(packed(boxes())).property
    assert isinstance(cases, Cases)
    assert [p.coeff.shape for p in cases.cases[0].polytopes] == [(1, 3), (2, 3)]


def test_caps_are_read_as_they_stand() -> None:
    made = header()
    capped()(made)
    (grown,) = read_certificate(packed(made)).cases[0].trees
    assert (grown.cap_entry.tolist(), grown.cap_unit.tolist(), grown.cap_place.tolist()) == ([0, 2], [0, 0], [1, 3])
    assert grown.cap_multiplier.tolist() == [0.5, 0]
    assert grown.cap_share.dtype == np.uint8
    assert grown.cap_share.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_what_may_be_left_out_is_empty() -> None:
    made = header()
    grown = made["cases"][0]["trees"][0]
    for name in ("renew", "slots", "entry_slopes", "planes"):
        grown[name] = None
    for name in ("sharpen_entry", "sharpen_plane", "sharpen_beta"):
        grown[name] = grown[name][:0]
    del made["property"]["low"]
    (found,) = read_certificate(packed(made)).cases[0].trees
    assert found.entry_slopes is None
    assert not found.renew.any()
    assert found.plane_unit.size == found.cap_entry.size == 0
    stated = read_certificate(packed(made)).property
    assert isinstance(stated, Ball)
    assert stated.low == -np.inf


def rewritten(change: Callable[[dict[str, bytes]], Any]) -> bytes:
    """The archive with its entries changed as bytes."""
    with zipfile.ZipFile(io.BytesIO(packed(header()))) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    change(entries)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)
    return file.getvalue()


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def text(replaced: str, by: str) -> Callable[[dict[str, bytes]], Any]:
    def change(entries: dict[str, bytes]) -> None:
        header = np.load(io.BytesIO(entries["header.npy"])).tobytes().decode()
        assert replaced in header
        entries["header.npy"] = npy(np.frombuffer(header.replace(replaced, by, 1).encode(), np.uint8))

    return change


ARCHIVES: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "an unread entry": (lambda e: e.update({"more.npy": npy(np.zeros(3))}), "nothing refers to"),
    "another file inside": (lambda e: e.update({"note.txt": b"x"}), r"other than \.npy"),
    "no header": (lambda e: e.pop("header.npy"), "no entry 'header'"),
    "a missing entry": (lambda e: e.pop("a0.npy"), "no entry 'a0'"),
    "a pickle": (lambda e: e.update({"a0.npy": npy(np.array([{}]), allow_pickle=True)}), "damaged"),
    "a short entry": (lambda e: e.update({"a0.npy": e["a0.npy"][:-8]}), "bytes for shape"),
    "a long entry": (lambda e: e.update({"a0.npy": e["a0.npy"] + b"12345678"}), "bytes for shape"),
    "no array": (lambda e: e.update({"a0.npy": b"abc"}), "damaged"),
    "a huge shape": (lambda e: e.update({"a0.npy": e["a0.npy"].replace(b"(5,), ", b"(5000000000000,), ")}), "damaged"),
    "keys in double quotes": (lambda e: e.update({"a0.npy": e["a0.npy"].replace(b"'descr'", b'"descr"')}), "as NumPy"),
    "a header of another length": (lambda e: e.update({"a0.npy": e["a0.npy"].replace(b" \n", b"\n ")}), "as NumPy"),
    "half floats": (lambda e: e.update({"a0.npy": npy(np.zeros(5, np.float16))}), "type float16"),
    "a header of floats": (lambda e: e.update({"header.npy": npy(np.zeros(5))}), "header"),
    "no JSON": (lambda e: e.update({"header.npy": npy(np.frombuffer(b"{", np.uint8))}), "not JSON"),
    "a list": (lambda e: e.update({"header.npy": npy(np.frombuffer(b"[]", np.uint8))}), "not an object"),
    "deep JSON": (lambda e: e.update({"header.npy": npy(np.frombuffer(b"[" * 10**5, np.uint8))}), "not JSON"),
    "a key twice": (text('"version": 2', '"version": 2, "version": 2'), "twice"),
    "NaN": (text('"high": 1.0', '"high": NaN'), "NaN"),
    "Infinity": (text('"high": 1.0', '"high": Infinity'), "Infinity"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_rejected(name: str) -> None:
    change, words = ARCHIVES[name]
    with pytest.raises(Rejected, match=words):
        read_certificate(rewritten(change))


def test_big_endian_numbers_are_read() -> None:
    def change(entries: dict[str, bytes]) -> None:
        entries["a0.npy"] = npy(np.load(io.BytesIO(entries["a0.npy"])).astype(">f8"))

    stated = read_certificate(rewritten(change)).property
    assert isinstance(stated, Ball)
    assert stated.center.tolist() == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"text", b"\x93NUMPY", json.dumps({}).encode()])
def test_what_is_no_archive_is_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable, match="not a certificate"):
        read_certificate(data)


def test_entries_of_one_name_are_unreadable() -> None:
    file = io.BytesIO(packed(header()))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("header.npy", b"")
    with pytest.raises(Unreadable, match="one name"):
        read_certificate(file.getvalue())


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.check.archive.LARGEST", 1000)
    with pytest.raises(Unreadable, match="unpacked"):
        read_certificate(packed(header()))


def test_every_truncation_is_rejected() -> None:
    data = packed(header())
    for length in range(0, len(data), 97):
        with pytest.raises(Rejected):
            read_certificate(data[:length])


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_raise_nothing_but_rejected(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(packed(header()))
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    with suppress(Rejected):
        read_certificate(bytes(data))


def patched(at: int, new: bytes, *, local: bool = False) -> bytes:
    """The archive with bytes of the last entry's record changed: of its own header, or of the directory's."""
    data = bytearray(packed(header()))
    start = data.rindex(b"PK\x03\x04" if local else b"PK\x01\x02") + at
    assert data[start : start + len(new)] != new
    data[start : start + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(patched(30, b"Z", local=True), id="another name than the directory's"),
        pytest.param(patched(0, b"PK\x03\x05", local=True), id="no header where it should be"),
        pytest.param(patched(8, b"\x01"), id="encrypted"),
        pytest.param(patched(8, b"\x20"), id="patched data"),
        pytest.param(patched(8, b"\x40"), id="strongly encrypted"),
        pytest.param(patched(10, b"\x0c"), id="another method"),
        pytest.param(patched(16, b"\x00\x01\x02\x03"), id="another check sum"),
        pytest.param(patched(20, b"\x01\x00"), id="fewer packed bytes"),
        pytest.param(patched(20, b"\xff\xff\xff\x7f"), id="more packed bytes than there are"),
        pytest.param(patched(24, b"\x01\x00"), id="fewer bytes"),
        pytest.param(patched(24, b"\xff\xff\x00\x00"), id="more bytes"),
    ],
)
def test_an_entry_that_is_not_as_it_states_is_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        read_certificate(data)


def test_an_archive_that_begins_before_the_file_is_unreadable() -> None:
    data = bytearray(packed(header()))
    end = data.rindex(b"PK\x05\x06")
    offset = int.from_bytes(data[end + 16 : end + 20], "little")
    data[end + 16 : end + 20] = (offset + 400).to_bytes(4, "little")
    with pytest.raises(Unreadable):
        read_certificate(bytes(data))
