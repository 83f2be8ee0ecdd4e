"""What users write is read exactly, or refused with the valid forms."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certify.errors import UsageError
from certify.options import format_ids, parse_eps, parse_floats, parse_ids, parse_range, parse_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2/255", Fraction(2, 255)),
        (" 2 / 255 ", Fraction(2, 255)),
        ("0.03", Fraction(3, 100)),
        ("1e-3", Fraction(1, 1000)),
        (".5", Fraction(1, 2)),
        ("3.", Fraction(3)),
        ("0", Fraction(0)),
        ("+1", Fraction(1)),
        (0.1, Fraction(1, 10)),
        (1, Fraction(1)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_eps_is_exact(text: str | float | Fraction, value: Fraction) -> None:
    (radius,) = parse_eps(text)
    assert radius.value == value


@pytest.mark.parametrize(
    "text", ["", "-1/255", "-0.1", "nan", "inf", "abc", "1/0", "1//2", "2/255;3", "1e99999", "0x1", "1_0", "1,", "²"]
)
def test_bad_eps_is_refused_with_valid_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"valid forms: 2/255, 0\.03"):
        parse_eps(text)


def test_a_list_of_eps_is_ascending_and_without_repetition() -> None:
    radii = parse_eps("4/255,1/255, 2/510,0.5")
    assert [str(r) for r in radii] == ["1/255", "4/255", "0.5"]
    assert parse_eps(["4/255", Fraction(1, 255)]) == parse_eps("1/255,4/255")


@pytest.mark.parametrize(
    ("text", "radii"),
    [
        ("0:0.3:0.1", ["0", "0.1", "0.2", "0.3"]),
        ("0:0.25:0.1", ["0", "0.1", "0.2"]),
        ("1/255:7/255:2/255", ["1/255", "3/255", "5/255", "7/255"]),
        ("0:1/3:1/9", ["0/9", "1/9", "2/9", "3/9"]),
        ("0:0.2:0.1,0.15", ["0", "0.1", "0.15", "0.2"]),
        ("0.1:0.1:1", ["0.1"]),
    ],
)
def test_a_range_holds_what_whole_steps_lead_to(text: str, radii: list[str]) -> None:
    found = parse_eps(text)
    assert [str(r) for r in found] == radii
    assert all(r.value == parse_eps(r.text)[0].value for r in found)


@pytest.mark.parametrize(
    ("text", "why"),
    [("0:1", "not a range"), ("0:1:0", "step is 0"), ("1:0:0.1", "runs backwards"), ("0:1:1e-9", "are the most")],
)
def test_a_range_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_eps(text)


@given(st.fractions(min_value=0, max_value=1000))
def test_a_fraction_survives_being_written(value: Fraction) -> None:
    assert parse_eps(str(value))[0].value == value


@given(st.text(max_size=12))
def test_any_text_gives_a_radius_of_at_least_zero_or_a_usage_error(text: str) -> None:
    try:
        radii = parse_eps(text)
    except UsageError:
        return
    assert all(r.value >= 0 for r in radii)


def test_ranges_numbers_and_ids() -> None:
    assert parse_range("0,255") == (0.0, 255.0)
    assert parse_floats("0.5, 1e-1", option="--mean") == (0.5, 0.1)
    assert parse_ids("3,17,20-22,3") == (3, 17, 20, 21, 22)
    assert format_ids((3, 17, 20, 21, 22, 4)) == "3,17,20-22,4"


@pytest.mark.parametrize("text", ["1,0", "0", "0,1,2", "a,b", "0,inf", "nan,1"])
def test_bad_ranges_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--input-range"):
        parse_range(text)


@pytest.mark.parametrize("text", ["", "1,,2", "5-3", "a", "-1", "0-99999999999"])
def test_bad_ids_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="valid forms: 3,17 or 20-25"):
        parse_ids(text)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_seconds_must_be_positive_and_finite(seconds: float) -> None:
    with pytest.raises(UsageError, match="--timeout"):
        parse_seconds(seconds, option="--timeout")
