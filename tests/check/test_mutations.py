"""Certificates of real searches, damaged: each damage is rejected, with the place and the reason named.

What is damaged is taut (tests/support/taut.py): a choice that is changed for the worse is seen.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from taut import (
    BASES,
    EXCLUDED,
    OPEN,
    Change,
    Header,
    entries_of,
    keep_entries,
    parent,
    swap_children,
    tree_of,
    verdict,
)


@pytest.mark.parametrize("base", BASES)
def test_undamaged_it_is_accepted(base: str) -> None:
    header, file, _ = BASES[base]()
    assert verdict(header, file) is None


MUTATIONS: dict[str, tuple[str, Change, str]] = {}


def mutation(base: str, reason: str, name: str = "") -> Callable[[Change], Change]:
    def keep(change: Change) -> Change:
        MUTATIONS[f"{base}-{name or change.__name__.replace('_', ' ')}"] = (base, change, reason)
        return change

    return keep


def put(base: str, reason: str, name: str, *path: Any) -> None:
    """A mutation: keys down to a place, then the value, or a function of what stands there."""

    def change(header: Header) -> None:
        *keys, last, value = path
        place: Any = header
        for key in keys:
            place = place[key]
        place[last] = value(place[last]) if callable(value) else value

    mutation(base, reason, name)(change)


TREE = ("cases", 0, "trees", 0)
STEPS = ("cases", 0, "steps")


def at(index: int, value: Any) -> Callable[[Any], Any]:
    """The array with another value at a place."""

    def change(array: Any) -> Any:
        made = array.copy()
        made[index] = value
        return made

    return change


# Choices for the worse.


@mutation("bab", OPEN)
def multipliers_negated_where_it_is_taut(header: Header) -> None:
    grown, mine = tree_of(header), entries_of(header, "bab")
    hit = np.isin(grown["multiplier_entry"], mine)
    assert hit.any()
    grown["multiplier"] = np.where(hit, -grown["multiplier"], grown["multiplier"])


@mutation("mip", OPEN)
def the_largest_dual_negated(header: Header) -> None:
    grown = tree_of(header)
    largest = int(np.argmax(np.abs(grown["multiplier"])))
    grown["multiplier"] = at(largest, -grown["multiplier"][largest])(grown["multiplier"])


put("mip", OPEN, "all duals dropped", *TREE, "multiplier", lambda v: 0 * v)
put("mip", OPEN, "duals doubled", *TREE, "multiplier", lambda v: 2 * v)
put("mip", OPEN, "duals of the other unit", *TREE, "multiplier_unit", lambda v: 1 - v)
put("mip", OPEN, "duals in another order", *TREE, "multiplier", lambda v: v[::-1].copy())


for _base in ("bab", "mip", "split"):

    @mutation(_base, OPEN)
    def an_entry_dropped(header: Header, base: str = _base) -> None:
        grown, mine = tree_of(header), entries_of(header, base)
        keep_entries(grown, np.setdiff1d(np.arange(len(grown["entry_node"])), mine))

    @mutation(_base, OPEN)
    def the_roots_children_swapped(header: Header) -> None:
        swap_children(tree_of(header), 0)


for _base in ("bab", "mip"):

    @mutation(_base, OPEN)
    def children_swapped(header: Header, base: str = _base) -> None:
        grown = tree_of(header)
        swap_children(grown, parent(grown, BASES[base]()[2]))


@mutation("bab", OPEN)
def all_entries_rows_reversed(header: Header) -> None:
    for slopes in tree_of(header)["entry_slopes"].values():
        slopes["lower"] = slopes["lower"][::-1].copy()


@mutation("bab", OPEN)
def slopes_of_two_units_exchanged(header: Header) -> None:
    grown = tree_of(header)
    at_, slopes = grown["slots"]["at"], grown["entry_slopes"]
    count = min(len(at_["0"]), len(at_["1"]))
    for a, b in (("0", "1"),):
        first, second = slopes[a]["lower"][:, :count].copy(), slopes[b]["lower"][:, :count].copy()
        slopes[a]["lower"][:, :count], slopes[b]["lower"][:, :count] = second, first


@mutation("bab", OPEN)
def slopes_complemented(header: Header) -> None:
    for slopes in tree_of(header)["entry_slopes"].values():
        slopes["lower"] = 255 - slopes["lower"]


@mutation("bab", OPEN)
def the_cut_moved(header: Header) -> None:
    grown = tree_of(header)
    node = parent(grown, BASES["bab"]()[2])
    grown["cut"] = at(node, 0.5)(grown["cut"])


@mutation("bab", OPEN)
def another_neuron_split(header: Header) -> None:
    grown = tree_of(header)
    node = parent(grown, BASES["bab"]()[2])
    grown["place"] = at(node, (grown["place"][node] + 1) % 30)(grown["place"])


@mutation("bab", OPEN)
def sharpening_dropped(header: Header) -> None:
    for name in ("sharpen_entry", "sharpen_plane", "sharpen_beta"):
        tree_of(header)[name] = tree_of(header)[name][:0]


@mutation("split", OPEN)
def rows_of_a_polytope_exchanged(header: Header) -> None:
    grown = tree_of(header)
    two = grown["entry_polytope"] == 0
    grown["entry_mix"] = np.where(two[:, None], grown["entry_mix"][:, ::-1], grown["entry_mix"])


put("bab", OPEN, "beta of sharpening raised", *TREE, "sharpen_beta", lambda v: 1e6 * (1 + v))
put("bab", OPEN, "beta of sharpening zero", *TREE, "sharpen_beta", lambda v: 0 * v)
put("bab", OPEN, "signs of planes flipped", *TREE, "planes", "sign", lambda v: -v)
put("bab", OPEN, "planes of other neurons", *TREE, "planes", "place", lambda v: v[::-1].copy())
put("bab", OPEN, "all weights zero", *TREE, "entry_mix", lambda v: 0 * v)
put("split", OPEN, "nothing renewed", *TREE, "renew", lambda v: np.zeros_like(v))
put("split", OPEN, "renew left out", *TREE, "renew", None)
put("split", OPEN, "another coordinate split", *TREE, "place", lambda v: (v + 1) % 3)
put("split", OPEN, "cuts moved", *TREE, "cut", lambda v: v + 0.1)
put(
    "split",
    "a row that the polytope does not have",
    "polytopes of entries exchanged",
    *TREE,
    "entry_polytope",
    lambda v: 1 - v,
)
put("alpha", EXCLUDED, "slopes of rows complemented", *STEPS, -1, "slopes", "0", "lower", lambda v: 255 - v)
put("alpha", EXCLUDED, "the slopes' places reversed", *STEPS, -1, "slopes", "0", "at", lambda v: v[::-1].copy())
put("alpha", EXCLUDED, "another way to close", *STEPS, -1, "slopes", "interval")
put("alpha", EXCLUDED, "no bounds before", *STEPS, lambda v: v[-1:])
put("alpha", EXCLUDED, "no neuron sharpened", *STEPS, lambda v: [s for s in v if s["do"] != "slopes"])
put("alpha", EXCLUDED, "nothing closed", *STEPS, lambda v: [s for s in v if s["do"] != "close"])
put("l2", EXCLUDED, "intervals alone", *STEPS, lambda v: [{**s, "slopes": "interval"} for s in v if s["do"] == "close"])
put("bab", OPEN, "no CROWN before the tree", *STEPS, lambda v: [s for s in v if s["do"] != "crown"])
put("mip", EXCLUDED, "a tree left out", "cases", 0, "trees", lambda v: v[1:])

# Another claim.

put("bab", f"{OPEN}|{EXCLUDED}", "a wider ball", "property", "eps", lambda v: str(Fraction(v) * Fraction(11, 10)))
put(
    "mip",
    f"{OPEN}|{EXCLUDED}",
    "a ball a little wider",
    "property",
    "eps",
    lambda v: str(Fraction(v) * Fraction(10001, 10000)),
)
put("alpha", EXCLUDED, "a ball a little wider", "property", "eps", lambda v: str(Fraction(v) * Fraction(10001, 10000)))
put("l2", EXCLUDED, "a ball a little wider", "property", "eps", lambda v: str(Fraction(v) * Fraction(10001, 10000)))
put("l2", EXCLUDED, "another norm", "property", "norm", "linf")
put("bab", f"{OPEN}|{EXCLUDED}", "another label", "property", "label", lambda v: (v + 1) % 3)
put("bab", f"{OPEN}|{EXCLUDED}", "another center", "property", "center", lambda v: v[::-1].copy())
put("bab", "4 classes; the model has 20, 3", "a class more", "property", "classes", 4)
put("split", OPEN, "a shifted box", "property", "cases", 0, "lower", lambda v: v - 0.25)
put("split", "shape", "a box of four", "property", "cases", 0, "lower", lambda v: np.append(v, 0.0))


@mutation("split", OPEN)
def offsets_raised_a_little(header: Header) -> None:
    for polytope in header["property"]["cases"][0]["polytopes"]:
        polytope["offset"] = polytope["offset"] + 1e-6


@mutation("split", EXCLUDED)
def a_polytope_more(header: Header) -> None:
    header["property"]["cases"][0]["polytopes"].append({"coeff": np.array([[1.0, 1.0]]), "offset": np.array([-5.0])})


@mutation("split", OPEN)
def rows_of_the_property_negated(header: Header) -> None:
    for polytope in header["property"]["cases"][0]["polytopes"]:
        polytope["coeff"] = -polytope["coeff"]


@mutation("split", EXCLUDED)
def a_polytope_missing_from_the_tree(header: Header) -> None:
    grown = tree_of(header)
    keep_entries(grown, np.flatnonzero(grown["entry_polytope"] == 0))
    grown["polytopes"] = [0]
    grown["entry_mix"] = grown["entry_mix"][:, :2]


@mutation("split", "1 proofs for 2 cases")
def a_case_without_a_proof(header: Header) -> None:
    header["property"]["cases"].append(header["property"]["cases"][0])


put("split", "0 proofs for 1 cases", "no proof at all", "cases", [])
put("alpha", EXCLUDED, "another mean", "model", "mean", 0.25)
put("alpha", EXCLUDED, "another standard deviation", "model", "std", 0.5)
put("alpha", "std", "a negative deviation", "model", "std", -0.75)
put("bab", "nhwc", "another layout", "model", "layout", "nhwc")
put("bab", "softmax", "a softmax that is not there", "model", "softmax", "dropped")
put("split", "softmax", "a softmax dropped from a VNN-LIB property", "model", "softmax", "dropped")
put("bab", "about another model", "another model's hash", "model", "sha256", "0" * 64)
put("bab", "units: the network's are", "units of other sizes", "units", lambda v: [v[0], v[1] + 1])
put("bab", "units|unit", "a unit less", "units", lambda v: v[:1])

# The form.


@mutation("bab", "a child before its parent")
def a_cycle(header: Header) -> None:
    grown = tree_of(header)
    last = int(np.flatnonzero(grown["unit"] != -2)[-1])
    grown["child"] = at(last, 0)(grown["child"])


@mutation("bab", "a child before its parent, or outside")
def a_child_outside(header: Header) -> None:
    grown = tree_of(header)
    last = int(np.flatnonzero(grown["unit"] != -2)[-1])
    grown["child"] = at(last, len(grown["unit"]))(grown["child"])


@mutation("bab", "a node that is no child, or the child of two")
def a_child_of_two(header: Header) -> None:
    grown = tree_of(header)
    inner = np.flatnonzero(grown["unit"] != -2)
    grown["child"] = at(int(inner[0]), grown["child"][inner[1]])(grown["child"])


@mutation("bab", "a node that is no child, or the child of two")
def orphans(header: Header) -> None:
    grown = tree_of(header)
    last = int(np.flatnonzero(grown["unit"] != -2)[-1])
    grown["unit"], grown["child"] = at(last, -2)(grown["unit"]), at(last, 0)(grown["child"])


@mutation("bab", "slopes of unit 0")
def slopes_above_a_relu(header: Header) -> None:
    slopes = tree_of(header)["entry_slopes"]["0"]
    slopes["upper"] = np.zeros(slopes["lower"].shape)


put("bab", "outside of", "a unit out of range", *TREE, "unit", at(0, 2))
put("bab", "a place outside of its unit", "a neuron out of range", *TREE, "place", at(0, 30))
put("bab", "a place outside of its unit", "a negative place", *TREE, "place", at(0, -1))
put("bab", "entry_mix: a number outside of", "a negative weight", *TREE, "entry_mix", lambda v: -v)
put("bab", "not finite", "a weight that is no number", *TREE, "entry_mix", at(0, np.nan))
put("bab", "not finite", "an infinite weight", *TREE, "entry_mix", at(0, np.inf))
put("bab", "not finite", "a multiplier that is no number", *TREE, "multiplier", at(0, np.nan))
put("bab", "not finite", "a cut that is no number", *TREE, "cut", at(0, np.nan))
put("bab", "sharpen_beta: a number outside of", "a negative beta", *TREE, "sharpen_beta", lambda v: -v - 1)
put("bab", "sign: a number outside of", "a plane's sign of 2", *TREE, "planes", "sign", lambda v: 2 * v)
put(
    "bab",
    "polytope that the tree does not have",
    "an entry of another polytope",
    *TREE,
    "entry_polytope",
    lambda v: v + 1,
)
put("bab", "entry_node: not ascending", "entries in another order", *TREE, "entry_node", lambda v: v[::-1].copy())
put(
    "bab",
    "lower: a number outside of",
    "a slope over 1",
    *TREE,
    "entry_slopes",
    "0",
    "lower",
    lambda v: v / 255.0 + 1e-9 + (v < 255),
)
put(
    "bab",
    "lower: a number outside of",
    "a negative slope",
    *TREE,
    "entry_slopes",
    "0",
    "lower",
    lambda v: v / 255.0 - 1.5,
)
put("bab", "numbers of type", "slopes of 16 bits", *TREE, "entry_slopes", "0", "lower", lambda v: v.astype(np.uint16))
put("bab", "numbers of type", "floats for places", *TREE, "place", lambda v: v.astype(np.float64))
put("bab", "numbers of type", "integers for weights", *TREE, "entry_mix", lambda v: v.astype(np.int64))
put("bab", "do not fit the forms", "slopes of an entry less", *TREE, "entry_slopes", "0", "lower", lambda v: v[:-1])
put(
    "bab",
    "do not fit the forms",
    "one row of slopes for all entries",
    *TREE,
    "entry_slopes",
    "0",
    "lower",
    lambda v: v[:1],
)
put("bab", "is missing", "a field less", *TREE, lambda v: {k: w for k, w in v.items() if k != "cut"})
put("bab", "is not known", "a field more", *TREE, lambda v: {**v, "trusted": True})
put("bab", "version", "another version", "version", 1)
put("bab", "eps", "a radius in floats", "property", "eps", 0.05)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_damaged_certificate_is_rejected(name: str) -> None:
    base, change, reason = MUTATIONS[name]
    header, file, _ = BASES[base]()
    made = copy.deepcopy(header)
    change(made)
    error = verdict(made, file)
    assert error is not None, "accepted"
    assert re.search(reason, error.reason), error.reason


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) >= 30
