"""The checker reads VNN-LIB 2 as the same set as version 1, and refuses what it does not know."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnn_formulas import FORMULAS, declare, render

from certify.check.content import Case, Cases, Polytope
from certify.check.errors import Rejected
from certify.check.vnnlib import Disjunct, covers, read_spec
from certify.frontends.vnn_spec import parse_property
from certify.property import Box, Property

HEAD = """; version 2
(vnnlib-version <2.0>)
(declare-network net
  (declare-input X float32 [1, 2])
  (declare-output Y float32 [1,2])
)
"""
BOUNDS = "(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0) (>= X[0,1] (- 0.5)) (<= X[0,1] 0.1)))\n"


def read(text: str) -> list[Disjunct]:
    return read_spec(text.encode(), 2, 2)


def values(disjuncts: list[Disjunct]) -> list[tuple[object, ...]]:
    return [(d.lower.tolist(), d.upper.tolist(), d.rows) for d in disjuncts]


def stated(prop: Property) -> Cases:
    cases = []
    for case in prop.cases:
        assert isinstance(case.inputs, Box)
        polytopes = tuple(Polytope(p.coeff, p.offset) for p in case.unsafe)
        cases.append(Case(case.inputs.lower.ravel(), case.inputs.upper.ravel(), polytopes))
    return Cases(None, tuple(cases))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_formulas_are_the_same_set_in_both_versions(data: st.DataObject) -> None:
    parts = [("x", side, i, Fraction(bound)) for i in range(2) for side, bound in ((">=", -4), ("<=", 4))]
    parts += data.draw(st.lists(FORMULAS, max_size=3))
    one = "".join(f"(assert {render(part, data.draw)})\n" for part in parts)
    two = re.sub(r"([XY])_([01])", lambda m: f"{m[1]}{data.draw(st.sampled_from(['', ' ']))}[0 ,{m[2]}]", one)
    try:
        expected = read(declare(2, 2) + one)
    except Rejected:
        with pytest.raises(Rejected):
            read(HEAD + two)
        return
    assert values(read(HEAD + two)) == values(expected)


@pytest.mark.parametrize(
    "unsafe",
    [
        "(assert (or (<= Y[0,0] Y[0,1]) (and (> (* 2.0 Y[0,0]) 3.0) (<= (- Y[0,1] 0.25) -1.5))))",
        "(assert (== Y[0,0] 1.0)) (assert (!= Y[0,1] 1.0))",
        "(assert (or (== Y[0,0] (+ Y[0,1] 0.1 (- 0.3 0.1 0.1))) (!= Y[0,1] 0.7)))",
    ],
)
def test_the_front_ends_property_covers_the_file(unsafe: str) -> None:
    prop = parse_property(HEAD + BOUNDS + unsafe, (2,), 2)
    assert prop.spec == (HEAD + BOUNDS + unsafe).encode()
    cases, disjuncts = stated(prop), read(HEAD + BOUNDS + unsafe)
    covers(cases, disjuncts)
    (case,) = cases.cases
    for k in range(len(case.polytopes)):
        less = Case(case.lower, case.upper, case.polytopes[:k] + case.polytopes[k + 1 :])
        with pytest.raises(Rejected, match="not covered"):
            covers(Cases(None, (less,)), disjuncts)


def test_not_equal_is_either_side() -> None:
    found = read(HEAD + BOUNDS + "(assert (!= Y[0,1] 1.0))")
    assert [d.rows for d in found] == [{((1, Fraction(1)),): Fraction(1)}, {((1, Fraction(-1)),): Fraction(-1)}]


def test_indices_are_row_major_and_names_are_free() -> None:
    text = """(declare-network n (declare-input image real [1, 2, 2]) (declare-output Y float32 []))
        (assert (and (>= image[0,0,0] 0.0) (>= image[0,0,1] 1.0) (>= image[0,1,0] 2.0) (>= image[0,1,1] 3.0)))
        (assert (and (<= image[0,0,0] 9.0) (<= image[0,0,1] 9.0) (<= image[0,1,0] 9.0) (<= image[0,1,1] 9.0)))
        (assert (<= Y 1.0))"""
    (found,) = read_spec(text.encode(), 4, 1)
    assert found.lower.tolist() == [0, 1, 2, 3]
    assert found.rows == {((0, Fraction(1)),): Fraction(1)}


SAFE = "(assert (<= Y[0,0] 1.0))"
REFUSED = {
    "another version": HEAD.replace("2.0>", "2.1>") + BOUNDS + SAFE,
    "a version twice": "(vnnlib-version <2.0>)" + HEAD + BOUNDS + SAFE,
    "no network": "(vnnlib-version <2.0>)" + BOUNDS + SAFE,
    "two networks": HEAD + HEAD.split("\n", 2)[2].replace("net", "two") + BOUNDS + SAFE,
    "a hidden tensor": HEAD.replace("(declare-output", '(declare-hidden H float32 [3] "h") (declare-output')
    + BOUNDS
    + SAFE,
    "an equal network": HEAD.replace("net\n", "net (equal-to other)\n") + BOUNDS + SAFE,
    "two inputs": HEAD.replace("(declare-output", "(declare-input Z real [1]) (declare-output") + BOUNDS + SAFE,
    "one name for both": HEAD.replace("output Y", "output X") + BOUNDS + SAFE,
    "another size": HEAD.replace("[1, 2]", "[1, 3]") + BOUNDS + SAFE,
    "a shape of nothing": HEAD.replace("[1, 2]", "[0, 2]") + BOUNDS + SAFE,
    "no shape": HEAD.replace(" [1, 2]", "") + BOUNDS + SAFE,
    "an index outside": HEAD + BOUNDS + "(assert (<= Y[0,2] 1.0))",
    "a negative index": HEAD + BOUNDS + "(assert (<= Y[0,-1] 1.0))",
    "too few indices": HEAD + BOUNDS + "(assert (<= Y[0] 1.0))",
    "no index": HEAD + BOUNDS + "(assert (<= Y 1.0))",
    "an index that is none": HEAD + BOUNDS + "(assert (<= Y[0,a] 1.0))",
    "undeclared": HEAD + BOUNDS + "(assert (<= Z[0,0] 1.0))",
    "version 1's names": HEAD + BOUNDS + "(assert (<= Y_0 1.0))",
    "version 1's declarations": HEAD + "(declare-const Y_2 Real)" + BOUNDS + SAFE,
    "version 2's comparison in version 1": declare(1, 1) + "(assert (and (>= X_0 0) (<= X_0 1) (== Y_0 1)))",
    "version 2's names in version 1": declare(2, 2) + BOUNDS + SAFE,
    "three sides": HEAD + BOUNDS + "(assert (!= Y[0,0] 1.0 2.0))",
    "not": HEAD + BOUNDS + "(assert (not (<= Y[0,0] 1.0)))",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_rejected(name: str) -> None:
    with pytest.raises(Rejected, match="spec"):
        read(REFUSED[name])
    read(HEAD + BOUNDS + SAFE)


@pytest.mark.parametrize(
    ("shape", "index"), [("1,12", "0, 1 0"), ("1,12", "0,1\n\n0"), ("1 2", "0"), ("1,1  2", "0,1")]
)
def test_two_numbers_of_an_index_are_not_one(shape: str, index: str) -> None:
    """Y[0, 1 0] is not Y[0,10], and [1 2] not [12]."""
    text = HEAD.replace("[1,2]", f"[{shape}]") + BOUNDS + f"(assert (<= Y[{index}] 1.0))"
    with pytest.raises(Rejected, match="spec"):
        read_spec(text.encode(), 2, 12)
    read_spec(text.replace(shape, "1,12").replace(f"Y[{index}]", "Y[ 0 , 010 ]").encode(), 2, 12)
