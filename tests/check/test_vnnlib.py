"""The checker reads VNN-LIB files as certify's own front end does, and says whether a property covers them."""

from __future__ import annotations

import csv
import gzip
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnn_formulas import EIGHTHS, FORMULAS, declare, holds, render

from certify.check.content import Case, Cases, Polytope
from certify.check.errors import Rejected
from certify.check.vnnlib import Disjunct, covers, read_spec
from certify.errors import PropertyError
from certify.frontends.vnn_spec import parse_property
from certify.property import Box, Property

BENCH = Path(__file__).resolve().parents[3] / "shared" / "bench"
UNIT = "(assert (and (>= X_0 0) (<= X_0 1)))"


def stated(prop: Property) -> Cases:
    """The property as a certificate states it."""
    cases = []
    for case in prop.cases:
        assert isinstance(case.inputs, Box)
        polytopes = tuple(Polytope(p.coeff, p.offset) for p in case.unsafe)
        cases.append(Case(case.inputs.lower.ravel(), case.inputs.upper.ravel(), polytopes))
    return Cases(None, tuple(cases))


def inside(disjunct: Disjunct, x: list[Fraction], y: list[Fraction]) -> bool:
    if not all(low <= v <= high for low, v, high in zip(disjunct.lower, x, disjunct.upper, strict=True)):
        return False
    return all(sum((c * y[i] for i, c in terms), Fraction(0)) <= limit for terms, limit in disjunct.rows.items())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_formulas_are_read_as_the_same_set_and_are_covered(data: st.DataObject) -> None:
    """The unsafe set of the file lies in what is read, which is the set itself but for strictness; the front end's
    property covers it.
    """
    parts = data.draw(st.lists(FORMULAS, max_size=3))
    base = [("x", side, i, Fraction(bound)) for i in range(2) for side, bound in ((">=", -4), ("<=", 4))]
    order = data.draw(st.permutations(base + parts))
    text = declare(2, 2) + "\n".join(f"(assert {render(part, data.draw)})" for part in order)
    try:
        prop = parse_property(text, (2,), 2)
    except PropertyError:
        with pytest.raises(Rejected):
            read_spec(text.encode(), 2, 2)
        return
    disjuncts = read_spec(text.encode(), 2, 2)
    covers(stated(prop), disjuncts)
    weak = weakened(("and", order))
    for _ in range(8):
        x = [data.draw(EIGHTHS) for _ in range(2)]
        y = [data.draw(EIGHTHS) for _ in range(2)]
        found = any(inside(d, x, y) for d in disjuncts)
        assert found or not holds(("and", order), x, y)
        assert holds(weak, x, y) or not found


def weakened(formula: Any) -> Any:
    """With <= for <."""
    if formula[0] in ("and", "or"):
        return formula[0], [weakened(part) for part in formula[1]]
    return formula[0], formula[1][0] + "=", *formula[2:]


@pytest.fixture
def small() -> tuple[Cases, str]:
    text = (
        declare(2, 3)
        + """
        (assert (>= X_0 0.1)) (assert (<= X_0 0.3)) (assert (>= X_1 -1)) (assert (<= X_1 1))
        (assert (or (and (<= Y_0 Y_1) (<= (* 0.1 Y_2) (+ 0.3 (* 0.7 Y_1)))) (>= Y_2 0.5)))"""
    )
    return stated(parse_property(text, (2,), 3)), text


def test_rows_that_the_front_end_scaled_are_recognised(small: tuple[Cases, str]) -> None:
    cases, text = small
    covers(cases, read_spec(text.encode(), 2, 3))


def changes(case: Case) -> dict[str, Case]:
    first, second = case.polytopes
    up = np.nextafter
    return {
        "a higher lower bound": replace(case, lower=up(case.lower, np.inf)),
        "a lower upper bound": replace(case, upper=up(case.upper, -np.inf)),
        "a polytope less": replace(case, polytopes=(first,)),
        "another polytope less": replace(case, polytopes=(second,)),
        "a smaller offset": replace(case, polytopes=(first, replace(second, offset=up(second.offset, -np.inf)))),
        "a negated row": replace(case, polytopes=(first, replace(second, coeff=-second.coeff))),
        "another direction": replace(case, polytopes=(replace(first, coeff=up(first.coeff, np.inf)), second)),
        "columns swapped": replace(case, polytopes=(replace(first, coeff=first.coeff[:, [1, 0, 2]]), second)),
        "one more row": replace(
            case, polytopes=(first, Polytope(np.vstack([second.coeff, [1.0, 0, 0]]), np.append(second.offset, 9.0)))
        ),
    }


@pytest.mark.parametrize(
    "what",
    [
        "a higher lower bound",
        "a lower upper bound",
        "a polytope less",
        "another polytope less",
        "a smaller offset",
        "a negated row",
        "another direction",
        "columns swapped",
        "one more row",
    ],
)
def test_a_property_that_claims_less_is_rejected(small: tuple[Cases, str], what: str) -> None:
    cases, text = small
    with pytest.raises(Rejected, match="not covered"):
        covers(Cases(None, (changes(cases.cases[0])[what],)), read_spec(text.encode(), 2, 3))


def test_a_property_that_claims_more_is_accepted(small: tuple[Cases, str]) -> None:
    cases, text = small
    (case,) = cases.cases
    first, second = case.polytopes
    wider = Case(case.lower - 1, case.upper + 1, (second, replace(first, offset=first.offset + 1)))
    covers(Cases(None, (replace(case, polytopes=(second,)), wider)), read_spec(text.encode(), 2, 3))
    alone = Polytope(first.coeff[:1], first.offset[:1])  # a row less is a larger set
    covers(Cases(None, (replace(case, polytopes=(alone, second)),)), read_spec(text.encode(), 2, 3))


def test_bounds_are_rounded_outward() -> None:
    (disjunct,) = read_spec((declare(1, 1) + "(assert (>= X_0 0.1))(assert (<= X_0 0.3))").encode(), 1, 1)
    assert Fraction(disjunct.lower[0]) <= Fraction("0.1") < Fraction(np.nextafter(disjunct.lower[0], 1))
    assert Fraction(np.nextafter(disjunct.upper[0], 0)) < Fraction("0.3") <= Fraction(disjunct.upper[0])


HEAD = declare(1, 1) + UNIT
REFUSED = {
    "nothing": "",
    "no bounds": declare(1, 1),
    "one bound": declare(1, 1) + "(assert (<= X_0 1))",
    "an empty box": HEAD + "(assert (>= X_0 2))",
    "a point without its edge": HEAD + "(assert (< X_0 0))",
    "undeclared": HEAD + "(assert (<= Y_1 0))",
    "too few": "(declare-const X_0 Real)" + UNIT,
    "too many": declare(1, 2) + UNIT,
    "twice": HEAD + "(declare-const X_0 Real)",
    "another type": HEAD.replace("Y_0 Real", "Y_0 Int"),
    "another name": HEAD + "(declare-const Z_0 Real)",
    "a leading zero": HEAD + "(declare-const Y_00 Real)",
    "a function": HEAD.replace("(declare-const Y_0 Real)", "(declare-fun Y_0 (Real) Real)"),
    "a command": HEAD + "(check-sat)",
    "a word": HEAD + "word",
    "not closed": HEAD + "(assert (<= Y_0 1)",
    "closed twice": HEAD + ")",
    "infinity": HEAD + "(assert (<= Y_0 inf))",
    "nan": HEAD + "(assert (<= Y_0 nan))",
    "hexadecimal": HEAD + "(assert (<= Y_0 0x10))",
    "underscores": HEAD + "(assert (<= Y_0 1_0))",
    "a fraction": HEAD + "(assert (<= Y_0 1/2))",
    "a bomb": HEAD + "(assert (<= Y_0 1e9999))",
    "beyond float64": declare(1, 1) + "(assert (>= X_0 0)) (assert (<= X_0 1e400))",
    "a product": HEAD + "(assert (<= (* Y_0 Y_0) 1))",
    "a quotient": HEAD + "(assert (<= (/ 1 Y_0) 1))",
    "by zero": HEAD + "(assert (<= (/ Y_0 0) 1))",
    "not": HEAD + "(assert (not (<= Y_0 1)))",
    "implication": HEAD + "(assert (=> (<= Y_0 1) (<= Y_0 2)))",
    "three sides": HEAD + "(assert (<= 0 Y_0 1))",
    "one side": HEAD + "(assert (<= Y_0))",
    "an empty and": HEAD + "(assert (and))",
    "a bare truth": HEAD + "(assert true)",
    "inputs and outputs": HEAD + "(assert (<= X_0 Y_0))",
    "let": HEAD + "(assert (let ((a 1)) (<= Y_0 a)))",
    "deep": HEAD + "(assert " + "(and " * 200 + "(<= Y_0 1)" + ")" * 201,
    "version 2": "(vnnlib-version <2.0>)",
    "a letter": HEAD + "(assert (<= Y_0 \uff11))",
    "a blank": HEAD + "(assert (<= Y_0\u00a01))",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_rejected(name: str) -> None:
    with pytest.raises(Rejected, match="spec"):
        read_spec(REFUSED[name].encode(), 1, 1)


def test_too_many_disjuncts_are_rejected() -> None:
    with pytest.raises(Rejected, match="too many"):
        read_spec((HEAD + "(assert (or (<= Y_0 1) (<= Y_0 2)))" * 40).encode(), 1, 1)


@given(st.binary(max_size=60), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_damaged_bytes_raise_nothing_but_rejected(noise: bytes, place: int) -> None:
    data = HEAD.encode()
    for damaged in (noise, data[:place] + noise + data[place:], data[:place]):
        with suppress(Rejected):
            read_spec(damaged, 1, 1)


def bench() -> list[tuple[str, Path]]:
    if not (BENCH / "instances.csv").exists():
        return []
    with (BENCH / "instances.csv").open() as rows:
        return sorted({row["vnnlib"]: BENCH / row["vnnlib"] for row in csv.DictReader(rows)}.items())


@pytest.mark.parametrize("path", [p for _, p in bench()], ids=[n for n, _ in bench()])
def test_every_file_of_the_benchmarks_is_covered_by_its_own_property(path: Path) -> None:
    path = path if path.exists() else path.with_name(path.name + ".gz")
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    sizes = [
        len({w for w in data.decode().replace("(", " ").replace(")", " ").split() if w.startswith(k)})
        for k in ("X_", "Y_")
    ]
    disjuncts = read_spec(data, *sizes)
    prop = stated(parse_property(data.decode(), (sizes[0],), sizes[1]))
    covers(prop, disjuncts)
    assert len(disjuncts) == sum(len(c.polytopes) for c in prop.cases)
    smaller = replace(prop.cases[0], polytopes=prop.cases[0].polytopes[1:])
    with pytest.raises(Rejected, match="not covered"):
        covers(Cases(None, (smaller, *prop.cases[1:])), disjuncts)


NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, min_value=-9, max_value=9, places=None).map(str)


@given(st.lists(st.tuples(st.sampled_from(("<=", ">=")), st.integers(0, 1), NUMBERS), max_size=9), st.booleans())
def test_plain_limits_are_what_the_grammar_says(extra: list[tuple[str, int, str]], last: bool) -> None:
    """Read by one expression or as formulas: the same boxes, to the last digit, or the same refusal."""
    whole = [(">=", 0, "-10"), ("<=", 0, "1e1"), (">=", 1, "-10.0"), ("<=", 1, "+10")]
    comparisons = [f"({op} X_{i} {number})" for op, i, number in [*whole[: 4 - last], *extra]]
    plain = "".join(f"( assert{c} )\n" for c in comparisons)
    formulas = "".join(f"(assert (and {c}))" for c in comparisons)
    found = []
    for text in (plain, formulas, plain + formulas):
        try:
            found.append(
                [(d.lower.tolist(), d.upper.tolist()) for d in read_spec(f"{declare(2, 1)}{text}".encode(), 2, 1)]
            )
        except Rejected as error:
            found.append(str(error))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "text",
    [
        "()",
        "()()",
        "(assert ())",
        "(\N{SECTION SIGN})",
        "(assert (or (assert (<= X_0 0)) (<= Y_0 0)))",
        "(assert (and (<= Y_0 0) (assert (<= X_0 0))))",
        "((assert (<= X_0 0)))",
        "(assert (<= X_9 0))",
        "(assert (<= X_00 0))",
        "(assert (<= X_0 Y_0))",
        "(assert (<= X_0 nan))",
        "(assert (<= X_0 1_0))",
        "(assert (<= X_0 1e9999))",
    ],
)
def test_what_only_looks_like_a_limit_is_rejected(text: str) -> None:
    rest = "(assert (<= X_0 1))(assert (>= X_0 -1))"
    assert read_spec(f"{declare(1, 1)}{rest}".encode(), 1, 1)
    with pytest.raises(Rejected):
        read_spec(f"{declare(1, 1)}{rest}{text}".encode(), 1, 1)
    with pytest.raises(Rejected):
        read_spec(f"{declare(1, 1)}{text}{rest}".encode(), 1, 1)


def test_an_output_that_is_named_like_an_input_is_an_output() -> None:
    """Version 2 names variables as it likes: X_0 is the output here, and its limit no limit of the input."""
    head = "(vnnlib-version <2.0>)(declare-network N (declare-input A float32 [1])(declare-output X_0 float32 []))"
    box = "(assert (>= A[0] -10))(assert (<= A[0] 10))"
    plain, formula = (
        read_spec(f"{head}{box}(assert {limit})".encode(), 1, 1) for limit in ("(<= X_0 -5)", "(and (<= X_0 -5))")
    )
    for (found,) in (plain, formula):
        assert (found.lower.tolist(), found.upper.tolist()) == ([-10.0], [10.0])
        assert found.rows == {((0, Fraction(1)),): Fraction(-5)}


def test_a_limit_within_a_declaration_is_rejected() -> None:
    """What stands for a limit that was read must not stand for the arguments of a declaration."""
    rest = "(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= Y_0 0))"
    for text in ("(declare-fun X_0 (assert (<= X_0 1)) Real) () ", "(declare-fun X_0 (assert (<= X_0 1)) Real)"):
        with pytest.raises(Rejected):
            read_spec(f"{text}{rest}".encode(), 1, 1)


def test_limits_are_rounded_outward_whatever_their_length() -> None:
    """0.1 with 40 digits is no float64: the box's ends lie on both sides of it, next to each other."""
    number = "0.1" + 37 * "0" + "1"
    (found,) = read_spec(f"{declare(1, 1)}(assert (<= X_0 {number}))(assert (>= X_0 {number}))".encode(), 1, 1)
    assert Fraction(found.lower[0]) < Fraction(number) < Fraction(found.upper[0])
    assert np.nextafter(found.lower[0], 1) == found.upper[0]
    (found,) = read_spec(f"{declare(1, 1)}(assert (<= X_0 -{number}))(assert (>= X_0 -{number}))".encode(), 1, 1)
    assert Fraction(found.lower[0]) < -Fraction(number) < Fraction(found.upper[0])
    with pytest.raises(Rejected, match="contradict"):
        read_spec(f"{declare(1, 1)}(assert (<= X_0 {number}))(assert (>= X_0 {number}1))".encode(), 1, 1)
