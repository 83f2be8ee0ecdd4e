"""Laws of the VNN-LIB 2 front end: the same sets as version 1, and clear words on what is not supported."""

from __future__ import annotations

import sys
from fractions import Fraction

import pytest

from certify.errors import PropertyError
from certify.frontends.vnn_spec import parse_property
from certify.property import Box

HEAD = """; version 2
(vnnlib-version <2.0>)
(declare-network net
  (declare-input X float32 [1,2])
  (declare-output Y float32 [1,2])
)
"""
SECOND_NETWORK = "(declare-network two (declare-input U real [1]) (declare-output V real [1]))\n"
BOUNDS = "(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0) (>= X[0,1] (- 0.5)) (<= X[0,1] 0.1)))\n"


def test_hand_worked_file() -> None:
    text = HEAD + BOUNDS + "(assert (or (<= Y[0,0] Y[0,1]) (and (> (* 2.0 Y[0,0]) 3.0) (<= (- Y[0,1] 0.25) -1.5))))"
    (case,) = parse_property(text, (2,), 2).cases
    assert isinstance(case.inputs, Box)
    assert case.inputs.lower.tolist() == [0, -0.5]
    assert Fraction(float(case.inputs.inner_upper[1])) < Fraction("0.1") < Fraction(float(case.inputs.upper[1]))
    first, second = case.unsafe
    assert first.coeff.tolist() == [[1, -1]]
    assert second.coeff.tolist() == [[-2, 0], [0, 1]]
    assert second.offset.tolist() == [-3, -1.25]
    assert second.strict.tolist() == [True, False]


def test_equal_and_not_equal() -> None:
    (case,) = parse_property(HEAD + BOUNDS + "(assert (== Y[0,0] 1.0))(assert (!= Y[0,1] 1.0))", (2,), 2).cases
    assert [p.coeff.tolist() for p in case.unsafe] == [
        [[1, 0], [-1, 0], [0, 1]],
        [[1, 0], [-1, 0], [0, -1]],
    ]
    assert case.unsafe[0].strict.tolist() == [False, False, True]


def test_an_empty_branch_adds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    branches = "(assert (or (>= X[0,1] 2.0)\n (<= Y[0,0] 1.0)\n (and (<= Y[0,0] 2.0) (<= 1.0 0.0))))"
    (case,) = parse_property(HEAD + BOUNDS + branches, (2,), 2).cases
    assert len(case.unsafe) == 1
    assert ["never true" in m for m in caplog.messages] == [True, False]
    assert "the input box is empty" in caplog.messages[1]


def test_literals_are_exact_beyond_float64() -> None:
    digits = "0.1234567890123456789012345"
    (case,) = parse_property(HEAD + BOUNDS + f"(assert (<= Y[0,0] {digits}))", (2,), 2).cases
    inner, outer = (Fraction(float(v[0])) for v in (case.unsafe[0].inner_offset, case.unsafe[0].offset))
    assert inner < Fraction(digits) < outer


def test_multidimensional_indices_are_row_major() -> None:
    text = HEAD.replace("X float32 [1,2]", "X real [1,2,3]")
    bounds = "".join(
        f"(assert (>= X[0,{i},{j}] {3 * i + j}.0))(assert (<= X[0,{i},{j}] 9.0))" for i in range(2) for j in range(3)
    )
    (case,) = parse_property(text + bounds, (2, 3), 2).cases
    assert isinstance(case.inputs, Box)
    assert case.inputs.lower.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_same_set_as_version_1() -> None:
    one = (
        "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1"))
        + """
        (assert (and (>= X_0 0) (<= X_0 1) (>= X_1 -0.5) (<= X_1 0.1))) (assert (>= Y_0 (+ Y_1 0.3)))"""
    )
    two = HEAD + BOUNDS + "(assert (>= Y[0,0] (+ Y[0,1] 0.3)))"
    first, second = (parse_property(text, (2,), 2).cases[0] for text in (one, two))
    assert isinstance(first.inputs, Box)
    assert isinstance(second.inputs, Box)
    for field in ("lower", "upper", "inner_lower", "inner_upper"):
        assert getattr(first.inputs, field).tolist() == getattr(second.inputs, field).tolist()
    for field in ("coeff", "offset", "inner_offset", "strict"):
        assert getattr(first.unsafe[0], field).tolist() == getattr(second.unsafe[0], field).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.replace("2.0>", "2.1>") + BOUNDS, "version 2.1 is not supported"),
        (HEAD.replace("2.0>", "3.0>") + BOUNDS, "version 3.0 is not supported"),
        (HEAD.replace("(vnnlib-version <2.0>)", ""), "begins with"),
        (HEAD + "(assert (<= X[0,0] 1e-3))", "line 7: VNN-LIB 2 has no scientific notation"),
        (HEAD + "(assert (<= X[0,0] 1.0e-3))", "line 7: VNN-LIB 2 has no scientific notation"),
        (HEAD + "(assert (<= X[0,0] 1))", "line 7: Type mismatch.*decimal point"),
        (HEAD + "(assert (<= X[0,7] 1.0))", "line 7: Index out of bounds"),
        (HEAD + "(assert (<= Z[0,1] 1.0))", "line 7: Undeclared variable"),
        (HEAD + "(assert (<= X[0,0] 1.0)", "line 7: .*syntax error"),
        (HEAD + "(assert (not (<= X[0,0] 1.0)))", "line 7: .*syntax error"),
        (HEAD + "(assert (<= (* Y[0,0] Y[0,1]) 1.0))", "line 7: a product of variables"),
        (HEAD + "\n(assert (<= Y[0,0] X[0,1]))", "line 8: inputs and outputs in one comparison"),
        (HEAD + "(assert (<= (+ X[0,0] X[0,1]) 1.0))", "line 7: a linear combination of 2 inputs"),
        (HEAD + "(assert (<= X[0,0] 1.0))", r"line 4: X\[0,0\] has no lower bound"),
        (HEAD + BOUNDS + "(assert (>= X[0,1] 2.0))", r"the input box is empty.*X\[0,1\]"),
        (HEAD + "(assert " + "(and " * 200 + "(<= Y[0,0] 1.0)" + ")" * 201, "line 7: parentheses nested deeper"),
        (HEAD.replace("X float32", "X int8") + "(assert (<= Y[0,0] 1.0))", "element type of X is not supported"),
        (HEAD.replace("X float32", "X Real") + BOUNDS, "lower case"),
        (HEAD.replace("[1,2])\n)", "[1,5])\n)") + BOUNDS, "the network has 2 outputs"),
        (HEAD.replace("X float32 [1,2]", "X float32 [2,2]") + "(assert (<= Y[0,0] 1.0))", r"X has shape \[2, 2\]"),
        (HEAD.replace("(declare-output", '(declare-hidden H float32 [3] "h") (declare-output') + BOUNDS, "hidden"),
        (
            HEAD.replace("(declare-output", "(declare-input Z real [1]) (declare-output") + BOUNDS,
            "2 inputs declared; exactly one",
        ),
        (HEAD + SECOND_NETWORK + BOUNDS, "2 networks declared; exactly one"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(PropertyError, match=message) as caught:
        parse_property(text, (2,), 2, name="spec.vnnlib")
    assert str(caught.value).startswith("spec.vnnlib")


def test_a_missing_package_does_not_matter_for_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vnnlib", None)
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))"
    assert len(parse_property(text, (1,), 1).cases) == 1
