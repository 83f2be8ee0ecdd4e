"""A certificate's file: what is sound is read as it stands, and whatever is damaged or out of range is rejected."""

from __future__ import annotations

import copy
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

from certify.check.content import Ball, Cases, Close, Crown, Refine
from certify.check.errors import Rejected, Unreadable
from certify.check.file import read_certificate

Change = Callable[[dict[str, Any]], Any]


def tree() -> dict[str, Any]:
    """Three nodes: neuron (1, 2) is split at 0; an entry a leaf, slopes for unit 0, one plane that sharpens."""
    return {
        "polytopes": [1],
        "unit": np.array([1, -2, -2], np.int32),
        "place": np.array([2, 0, 0], np.int32),
        "cut": np.array([0.0, 0.0, 0.0]),
        "child": np.array([1, 0, 0], np.int32),
        "renew": np.array([True, False, False]),
        "entry_node": np.array([0, 1, 2], np.int32),
        "entry_polytope": np.array([1, 1, 1], np.int32),
        "entry_mix": np.ones((3, 1), np.float32),
        "slots": {"at": {"0": np.array([3, 0], np.int32)}},
        "entry_slopes": {"0": {"lower": np.array([[0, 255]] * 3, np.uint8), "upper": None}},
        "multiplier_entry": np.array([1, 2], np.int32),
        "multiplier_unit": np.array([1, 1], np.int32),
        "multiplier_place": np.array([2, 2], np.int32),
        "multiplier": np.array([0.5, -0.5], np.float32),
        "planes": {k: np.array([v], np.int32) for k, v in {"unit": 0, "place": 3, "sign": -1}.items()},
        "sharpen_entry": np.array([0], np.int32),
        "sharpen_plane": np.array([0], np.int32),
        "sharpen_beta": np.array([2.0], np.float32),
    }


def header() -> dict[str, Any]:
    """A ball of 5 inputs and 3 classes, two units of 4 and 3 neurons, every kind of step."""
    slopes = {"0": {"at": np.array([1, 2], np.int32), "lower": np.array([[51, 255]], np.uint8)}}
    smooth = {"1": {"at": np.array([0], np.int32), "lower": np.array([[0.1]]), "upper": np.array([[0.25]])}}
    lent = {"0": {"at": np.array([3, 1], np.int32), "value": np.array([[1.0, 2], [3, -4]], np.float32)}}
    steps = [
        {"do": "crown", "units": None, "places": None, "adaptive": True},
        {"do": "crown", "units": [0, 1], "places": {"1": np.array([0, 2], np.int32)}, "adaptive": False},
        {"do": "slopes", "unit": 1, "places": np.array([2, 0], np.int32), "below": slopes, "above": smooth},
        {
            "do": "slopes",
            "unit": 1,
            "places": np.array([1, 2], np.int32),
            "below": {},
            "above": {},
            "below_multipliers": lent,
        },
        {"do": "close", "polytopes": [0], "rows": [0], "slopes": "parallel"},
        {"do": "close", "polytopes": [0, 1], "rows": [0, 0], "slopes": slopes},
    ]
    return {
        "format": "certify.certificate",
        "version": 2,
        "model": {"sha256": "ab" * 32, "mean": 0.5, "std": [0.25, 0.5], "layout": None, "softmax": "dropped"},
        "property": {
            "kind": "ball",
            "center": np.linspace(0, 1, 5),
            "norm": "linf",
            "eps": "2/255",
            "low": 0,
            "high": 1.0,
            "label": 1,
            "classes": 3,
        },
        "units": [4, 3],
        "cases": [{"steps": steps, "trees": [tree()]}],
    }


def boxes() -> dict[str, Any]:
    """The same, stated as one case of two polytopes, the second with two rows."""
    made = header()
    made["model"]["softmax"] = "kept"
    polytopes = [{"coeff": np.eye(3)[:r], "offset": np.zeros(r)} for r in (1, 2)]
    made["property"] = {
        "kind": "cases",
        "sha256": None,
        "cases": [{"lower": np.zeros(5), "upper": np.ones(5), "polytopes": polytopes}],
    }
    made["cases"][0]["trees"][0]["entry_mix"] = np.ones((3, 2), np.float32)
    return made


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


def put(*path: Any) -> Change:
    """path: keys down to a place, then the value to put there; ... deletes."""

    def change(made: dict[str, Any]) -> None:
        *keys, last, value = path
        for key in keys:
            made = made[key]
        if value is ...:
            del made[last]
        else:
            made[last] = value

    return change


def capped(**changed: Any) -> Change:
    """A tree with two caps that renews nothing, but for what is changed."""

    def change(made: dict[str, Any]) -> None:
        grown = made["cases"][0]["trees"][0]
        grown["renew"] = changed.pop("renew", None)
        grown["caps"] = {
            "entry": np.array([0, 2], np.int32),
            "unit": np.array([0, 0], np.int32),
            "place": np.array([1, 3], np.int32),
            "multiplier": np.array([0.5, 0], np.float32),
            "share": np.arange(10, dtype=np.uint8).reshape(2, 5),
        } | changed

    return change


TREE = ("cases", 0, "trees", 0)
STEPS = ("cases", 0, "steps")
PROPERTY = ("property",)
i32, f32 = np.int32, np.float32
CHANGES: dict[str, Change] = {
    "another format": put("format", "npz"),
    "another version": put("version", 1),
    "a boolean version": put("version", True),
    "an unknown key": put("note", "x"),
    "a missing key": put("units", ...),
    "a hash too short": put("model", "sha256", "ab"),
    "a hash in capitals": put("model", "sha256", "AB" * 32),
    "a mean that is text": put("model", "mean", "0.5"),
    "a list of nothing numeric": put("model", "std", [None]),
    "another layout": put("model", "layout", "nchw"),
    "another softmax": put("model", "softmax", "perhaps"),
    "no softmax": put("model", "softmax", ...),
    "a negative unit": put("units", [4, -3]),
    "units one less": put("units", [4, 2]),
    "a unit less": put("units", [4]),
    "no proof": put("cases", []),
    "two proofs": lambda made: made["cases"].append(made["cases"][0]),
    "another kind": put(*PROPERTY, "kind", "balls"),
    "a negative radius": put(*PROPERTY, "eps", "-1/255"),
    "a radius by zero": put(*PROPERTY, "eps", "1/0"),
    "a radius of two kinds": put(*PROPERTY, "eps", "0.5/255"),
    "a huge radius": put(*PROPERTY, "eps", "1e999999999"),
    "a float radius": put(*PROPERTY, "eps", 0.1),
    "a radius of spaces": put(*PROPERTY, "eps", " 1"),
    "another norm": put(*PROPERTY, "norm", "linf "),
    "a label out of range": put(*PROPERTY, "label", 3),
    "a float label": put(*PROPERTY, "label", 1.0),
    "a true label": put(*PROPERTY, "label", True),
    "one class": put(*PROPERTY, "classes", 1),
    "a class less": put(*PROPERTY, "classes", 2),
    "a NaN center": put(*PROPERTY, "center", np.array([0, 0, 0, 0, np.nan])),
    "an infinite center": put(*PROPERTY, "center", np.array([0, 0, 0, 0, np.inf])),
    "an integer center": put(*PROPERTY, "center", np.zeros(5, np.int64)),
    "an infinite bound": put(*PROPERTY, "high", 1e999),
    "a bound beyond float64": put(*PROPERTY, "high", 2**63 + 1),
    "an unknown step": put(*STEPS, 0, "do", "believe"),
    "a step of another kind": put(*STEPS, 0, "rows", [0]),
    "a crown that says not how": put(*STEPS, 0, "adaptive", ...),
    "a crown that is perhaps adaptive": put(*STEPS, 0, "adaptive", 1),
    "a unit out of range": put(*STEPS, 1, "units", [2]),
    "a negative unit in a step": put(*STEPS, 1, "units", [-1]),
    "a place out of range": put(*STEPS, 1, "places", {"1": np.array([3], i32)}),
    "a negative place": put(*STEPS, 1, "places", {"1": np.array([-1], i32)}),
    "a place twice": put(*STEPS, 2, "places", np.array([2, 2], i32)),
    "float places": put(*STEPS, 2, "places", np.array([2.0, 0.0])),
    "a unit's other name": put(*STEPS, 1, "places", {"01": np.array([0], i32)}),
    "slopes of a missing unit": put(*STEPS, 2, "below", {"2": {"at": np.array([0], i32), "lower": np.zeros((1, 1))}}),
    "slopes over 1": put(*STEPS, 2, "above", "1", "lower", np.array([[1.5]])),
    "negative slopes": put(*STEPS, 2, "above", "1", "lower", np.array([[-0.1]])),
    "NaN slopes": put(*STEPS, 2, "above", "1", "lower", np.array([[np.nan]])),
    "upper slopes over a quarter": put(*STEPS, 2, "above", "1", "upper", np.array([[0.3]])),
    "slopes for too many": put(*STEPS, 2, "below", "0", "lower", np.zeros((3, 2), np.uint8)),
    "slopes for other places": put(*STEPS, 2, "below", "0", "lower", np.zeros((1, 3), np.uint8)),
    "slopes of 16 bits": put(*STEPS, 2, "below", "0", "lower", np.zeros((1, 2), np.uint16)),
    "an unknown key in slopes": put(*STEPS, 2, "below", "0", "beta", np.zeros((1, 2))),
    "multipliers of no unit": put(*STEPS, 3, "below_multipliers", {"2": {}}),
    "multipliers of the input": put(*STEPS, 3, "below_multipliers", {"-1": {}}),
    "multipliers in a list": put(*STEPS, 3, "above_multipliers", []),
    "multipliers of no neuron": put(*STEPS, 3, "below_multipliers", "0", "at", np.array([3, 4], i32)),
    "multipliers of a neuron twice": put(*STEPS, 3, "below_multipliers", "0", "at", np.array([3, 3], i32)),
    "multipliers of too few forms": put(*STEPS, 3, "below_multipliers", "0", "value", np.zeros((1, 2), f32)),
    "NaN multipliers": put(*STEPS, 3, "below_multipliers", "0", "value", np.full((2, 2), np.nan, f32)),
    "an unknown mode": put(*STEPS, 4, "slopes", "exact"),
    "a polytope out of range": put(*STEPS, 4, "polytopes", [2]),
    "a polytope twice": put(*STEPS, 5, "polytopes", [0, 0]),
    "a row out of range": put(*STEPS, 4, "rows", [1]),
    "a row too many": put(*STEPS, 4, "rows", [0, 0]),
    "a tree of a missing polytope": put(*TREE, "polytopes", [2]),
    "a tree of no polytope": put(*TREE, "polytopes", []),
    "a tree of two polytopes that sharpens": put(*TREE, "polytopes", [0, 1]),
    "an unknown key in a tree": put(*TREE, "trust", True),
    "a unit out of range in a tree": put(*TREE, "unit", np.array([2, -2, -2], i32)),
    "a unit below all": put(*TREE, "unit", np.array([-3, -2, -2], i32)),
    "a place outside of its unit": put(*TREE, "place", np.array([3, 0, 0], i32)),
    "a coordinate outside of the input": lambda made: (
        put(*TREE, "unit", np.array([-1, -2, -2], i32))(made),
        put(*TREE, "place", np.array([5, 0, 0], i32))(made),
    ),
    "a NaN cut": put(*TREE, "cut", np.array([np.nan, 0, 0])),
    "a leaf dropped": put(*TREE, "unit", np.array([1, -2], i32)),
    "a child before its parent": put(*TREE, "child", np.array([0, 0, 0], i32)),
    "a child outside": put(*TREE, "child", np.array([2, 0, 0], i32)),
    "a child of a leaf": put(*TREE, "child", np.array([1, 1, 0], i32)),
    "an orphan": put(*TREE, "unit", np.array([-2, -2, -2], i32)),
    "no nodes": put(*TREE, "unit", np.zeros(0, i32)),
    "renew in numbers": put(*TREE, "renew", np.array([1, 0, 0], np.uint8)),
    "a node that does not exist": put(*TREE, "entry_node", np.array([0, 1, 3], i32)),
    "entries not ascending": put(*TREE, "entry_node", np.array([0, 2, 1], i32)),
    "an entry of another polytope": put(*TREE, "entry_polytope", np.array([1, 0, 1], i32)),
    "a negative weight": put(*TREE, "entry_mix", np.array([[1], [-1], [1]], f32)),
    "an infinite weight": put(*TREE, "entry_mix", np.array([[1], [np.inf], [1]], f32)),
    "weights of a row too many": put(*TREE, "entry_mix", np.ones((3, 2), f32)),
    "weights too few": put(*TREE, "entry_mix", np.ones((2, 1), f32)),
    "slots without slopes": put(*TREE, "entry_slopes", None),
    "slopes without slots": put(*TREE, "slots", None),
    "slopes of other units": put(*TREE, "slots", {"at": {"1": np.array([0, 1], i32)}}),
    "slopes of too few entries": put(*TREE, "entry_slopes", "0", "lower", np.zeros((2, 2), np.uint8)),
    "one row of slopes for all entries": put(*TREE, "entry_slopes", "0", "lower", np.zeros((1, 2), np.uint8)),
    "a multiplier of no entry": put(*TREE, "multiplier_entry", np.array([1, 3], i32)),
    "a multiplier of the input": put(*TREE, "multiplier_unit", np.array([1, -1], i32)),
    "a multiplier of no neuron": put(*TREE, "multiplier_place", np.array([2, 3], i32)),
    "a NaN multiplier": put(*TREE, "multiplier", np.array([0.5, np.nan], f32)),
    "a multiplier less": put(*TREE, "multiplier", np.array([0.5], f32)),
    "an integer multiplier": put(*TREE, "multiplier", np.array([1, 2], i32)),
    "a plane's sign 2": put(*TREE, "planes", "sign", np.array([2], i32)),
    "a plane of no neuron": put(*TREE, "planes", "place", np.array([4], i32)),
    "a cap of no entry": capped(entry=np.array([0, 3], i32)),
    "a cap of the input": capped(unit=np.array([-1, 0], i32)),
    "a cap of no neuron": capped(place=np.array([0, 4], i32)),
    "a cap's negative multiplier": capped(multiplier=np.array([-1, 1], f32)),
    "a cap's NaN multiplier": capped(multiplier=np.array([np.nan, 1], f32)),
    "a cap's shares of other numbers": capped(share=np.zeros((2, 5), f32)),
    "a cap's shares of 16 bits": capped(share=np.zeros((2, 5), np.uint16)),
    "a cap's shares of too few inputs": capped(share=np.zeros((2, 4), np.uint8)),
    "a cap too few": capped(share=np.zeros((1, 5), np.uint8)),
    "an unknown key in caps": capped(c=np.zeros(2)),
    "caps where nodes are renewed": capped(renew=np.array([False, True, False])),
    "sharpening by no entry": put(*TREE, "sharpen_entry", np.array([3], i32)),
    "sharpening by no plane": put(*TREE, "sharpen_plane", np.array([1], i32)),
    "a negative beta": put(*TREE, "sharpen_beta", np.array([-1], f32)),
    "a beta too many": put(*TREE, "sharpen_beta", np.array([1, 1], f32)),
    "complex numbers": put(*TREE, "cut", np.zeros(3, np.complex128)),
    "text for numbers": put(*TREE, "cut", np.array(["0", "0", "0"])),
    "a name that is no entry": put(*TREE, "cut", "a999"),
    "a number for a name": put(*TREE, "cut", 0),
}


def mutated(change: Change, made: dict[str, Any] | None = None) -> bytes:
    found = copy.deepcopy(header() if made is None else made)
    change(found)
    return packed(found)


@pytest.mark.parametrize("name", CHANGES)
def test_what_breaks_the_format_is_rejected_with_a_reason(name: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_certificate(mutated(CHANGES[name]))
    assert caught.value.reason
    assert "\n" not in caught.value.reason


CASE = (*PROPERTY, "cases", 0)
OF_BOXES: dict[str, Change] = {
    "softmax dropped": put("model", "softmax", "dropped"),
    "lower above upper": put(*CASE, "lower", np.full(5, 2.0)),
    "sides of two sizes": put(*CASE, "lower", np.zeros(4)),
    "an infinite side": put(*CASE, "upper", np.full(5, np.inf)),
    "a NaN coefficient": put(*CASE, "polytopes", 0, "coeff", np.full((1, 3), np.nan)),
    "coefficients of another shape": put(*CASE, "polytopes", 0, "coeff", np.eye(3)[:2]),
    "no rows": put(*CASE, "polytopes", 0, {"coeff": np.zeros((0, 3)), "offset": np.zeros(0)}),
    "no polytopes": put(*CASE, "polytopes", []),
    "outputs of two sizes": put(*CASE, "polytopes", 0, "coeff", np.eye(4)[:1]),
    "no cases": put(*PROPERTY, "cases", []),
    "a damaged hash": put(*PROPERTY, "sha256", "x"),
    "a weight of a row that the polytope does not have": put(*TREE, "polytopes", [0]),
}


@pytest.mark.parametrize("name", OF_BOXES)
def test_what_breaks_stated_cases_is_rejected(name: str) -> None:
    read_certificate(packed(boxes()))
    with pytest.raises(Rejected):
        read_certificate(mutated(OF_BOXES[name], boxes()))


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
