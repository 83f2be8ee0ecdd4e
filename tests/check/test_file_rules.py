"""What a certificate's arrays and values must be: whatever is out of range or does not fit is rejected."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from check_cases import packed
from stated_headers import Change, boxes, capped, header, put

from certify.check.errors import Rejected
from certify.check.file import read_certificate

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
    "a ball beside its limits": put(*PROPERTY, "low", 8.0),
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
    "negative upper slopes": put(*STEPS, 2, "above", "1", "upper", np.array([[-0.1]])),
    "a unit beyond all in a tree": put(*TREE, "unit", np.array([3, -2, -2], i32)),
    "a node before the root": put(*TREE, "entry_node", np.array([-1, 1, 2], i32)),
    "a multiplier of entry -1": put(*TREE, "multiplier_entry", np.array([-1, 2], i32)),
    "a multiplier beyond all units": put(*TREE, "multiplier_unit", np.array([1, 3], i32)),
    "sharpening by entry -1": put(*TREE, "sharpen_entry", np.array([-1], i32)),
    "sharpening by plane -1": put(*TREE, "sharpen_plane", np.array([-1], i32)),
    "a plane of the input": put(*TREE, "planes", "unit", np.array([-1], i32)),
    "a plane beyond all units": put(*TREE, "planes", "unit", np.array([3], i32)),
    "a plane's sign -2": put(*TREE, "planes", "sign", np.array([-2], i32)),
    "a cap of entry -1": capped(entry=np.array([-1, 2], i32)),
    "a cap beyond all units": capped(unit=np.array([0, 3], i32)),
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


@pytest.mark.parametrize(
    ("norm", "low", "fits"),
    [("linf", 0.625, True), ("linf", 0.6251, False), ("l2", 0.5625, True), ("l2", 0.563, False), ("l1", 0.55, False)],
)
def test_a_ball_that_its_limits_leave_empty_is_rejected(norm: str, low: float, fits: bool) -> None:
    """Four coordinates at 1/2, radius 1/8: where they are `low` it is 2 (low - 1/2) away, 4 (low - 1/2) in L1."""
    made = header()
    made["property"] |= {
        "center": np.array([0.5, 0.5, 0.5, 0.5, 1.0]),
        "norm": norm,
        "eps": "1/8",
        "low": low,
        "high": 1.0,
    }
    if fits:
        read_certificate(packed(made))
        return
    with pytest.raises(Rejected, match="no point of the ball"):
        read_certificate(packed(made))
