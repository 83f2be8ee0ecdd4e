"""The gate's mathematics against every possible course of a small run, and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from certify.errors import UsageError
from certify.gate import Conditions, Ruling, Share, Tally, combined, parse_share, possible, ruling

MET, NOT_MET, UNDECIDED = Ruling.MET, Ruling.NOT_MET, Ruling.UNDECIDED


def share(text: str | None) -> Share | None:
    return None if text is None else parse_share(text, option="--share")


def conditions(*texts: str | None) -> Conditions:
    return Conditions(*map(share, texts))


def by_definition(asked: Conditions, n: int, certified: int, falsified: int, unknown: int, regressed: int) -> Ruling:
    """Of a run that has ended: what the four conditions say, in exact shares."""

    def most(limit: Share | None, count: int) -> bool:
        return limit is None or count <= limit.value * n

    robust = asked.min_certified
    if robust is not None and n - falsified < robust.value * n:
        return NOT_MET
    if not (
        most(asked.max_falsified, falsified)
        and most(asked.max_unknown, unknown)
        and most(asked.max_regressed, regressed)
    ):
        return NOT_MET
    return MET if robust is None or certified >= robust.value * n else UNDECIDED


def courses(now: Tally) -> Iterator[tuple[int, int, int, int]]:
    """(certified, falsified, unknown, regressed) at the end, for everything that may become of what is left."""
    others = now.left - now.at_risk
    for better in range(now.improvable + 1):
        for x, y in product(range(now.at_risk + 1), repeat=2):
            for u, v in product(range(others + 1), repeat=2):
                if x + y <= now.at_risk and u + v <= others:
                    rest = now.left - x - y - u - v
                    yield (
                        now.certified + better + x + u,
                        now.falsified + y + v,
                        now.unknown - better + rest,
                        now.regressed + y,
                    )


def tallies(n: int) -> Iterator[Tally]:
    for certified, falsified, unknown in product(range(n + 1), repeat=3):
        if certified + falsified + unknown <= n:
            left = n - certified - falsified - unknown
            for improvable, regressed, at_risk in product({0, unknown}, {0, falsified}, {0, left // 2, left}):
                yield Tally(n, certified, falsified, unknown, improvable, regressed, at_risk)


@pytest.mark.parametrize("robust", [None, "0", "0.4", "3/5", "1"])
@pytest.mark.parametrize("limits", [(None, None, None), ("0.3", None, "0"), ("0.5", "0.2", None), (None, "0", "1/5")])
def test_the_possible_rulings_are_those_of_some_course(robust: str | None, limits: tuple[str | None, ...]) -> None:
    asked = conditions(robust, *limits)
    for now in tallies(5):
        exact = {by_definition(asked, 5, *end) for end in courses(now)}
        assert possible(asked, now) == exact, (now, asked)


def test_by_hand() -> None:
    """60 % of 10 samples: met at six certified, lost at five falsified, undecided for good between."""
    asked = conditions("0.6")
    assert possible(asked, Tally(10, certified=6)) == {MET}
    assert possible(asked, Tally(10, certified=5, falsified=4)) == {MET, NOT_MET, UNDECIDED}
    assert possible(asked, Tally(10, certified=5, falsified=3, unknown=1)) == {MET, UNDECIDED}
    assert possible(asked, Tally(10, falsified=5)) == {NOT_MET}
    assert possible(asked, Tally(10, certified=3, falsified=2, unknown=3)) == {UNDECIDED}
    assert possible(asked, Tally(10, certified=3, falsified=2, unknown=3, improvable=1)) == {UNDECIDED, MET}
    assert possible(asked, Tally(10)) == {MET, NOT_MET, UNDECIDED}


def test_a_share_that_no_binary_fraction_is_counts_exactly() -> None:
    """0.07 of 100 in floats is 7.000000000000001: seven certified would not be enough."""
    assert 0.07 * 100 > 7
    assert possible(conditions("0.07"), Tally(100, certified=7, unknown=93)) == {MET}
    assert possible(conditions(None, "0.29"), Tally(100, certified=71, falsified=29)) == {MET}


def test_an_ended_run_has_one_ruling() -> None:
    for asked in (conditions("0.6", "0.2", "0.1", "0"), conditions("0.5"), conditions(None, "0.4")):
        for now in tallies(6):
            if now.left == 0 and now.improvable == 0:
                assert len(possible(asked, now)) == 1


@pytest.mark.parametrize("first", [{MET}, {NOT_MET}, {UNDECIDED}, {MET, UNDECIDED}, {MET, NOT_MET}, set(Ruling)])
@pytest.mark.parametrize("second", [{MET}, {NOT_MET}, {UNDECIDED}, {NOT_MET, UNDECIDED}])
def test_all_parts_must_be_met(first: set[Ruling], second: set[Ruling]) -> None:
    def both(a: Ruling, b: Ruling) -> Ruling:
        return NOT_MET if NOT_MET in (a, b) else UNDECIDED if UNDECIDED in (a, b) else MET

    assert combined([frozenset(first), frozenset(second)]) == {both(a, b) for a, b in product(first, second)}


def test_several_possible_rulings_are_undecided() -> None:
    assert ruling(frozenset({MET})) is MET
    assert ruling(frozenset({MET, NOT_MET})) is UNDECIDED


@pytest.mark.parametrize(("text", "value"), [("0.6", 3 / 5), ("60%", 3 / 5), ("3/5", 3 / 5), ("1", 1), ("1e-2", 0.01)])
def test_shares_are_read_exactly(text: str, value: float) -> None:
    assert float(parse_share(text, option="--share").value) == value


@pytest.mark.parametrize("text", ["60", "-0.1", "1.01", "101%", "nan", "inf", "", "a", "1/0", "0.6x", "1e999", "1e9"])
def test_what_is_no_share_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"--min-certified.*such as 0\.6"):
        parse_share(text, option="--min-certified")


def test_a_share_reads_as_percent() -> None:
    assert str(parse_share("0.6", option="")) == "60%"
    assert str(parse_share("1/3", option="")) == "33.3333%"
