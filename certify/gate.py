"""Is a network robust enough? Met, not met or undecided, from the verdicts so far and the samples that are left.

    min-certified s   true robust accuracy >= s: met once so many are certified, not met once too many are falsified,
                      undecided where the bracket around it straddles s
    max-falsified s   samples with a witness, misclassified ones among them
    max-unknown s     samples neither certified nor falsified, errors among them
    max-regressed s   samples falsified now that the baseline certified

Each s is a share of the run's n samples, compared exactly; with several eps a gate holds at every one of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fractions import Fraction

from certify.errors import UsageError
from certify.verdict import Verdict


class Ruling(StrEnum):
    """What becomes of a gate."""

    MET = "met"
    NOT_MET = "not met"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Share:
    """An exact share of the samples, 0 to 1; `text` is how it was written (not compared)."""

    value: Fraction
    text: str = field(compare=False)

    def __str__(self) -> str:
        """In percent with the digits that it needs, six at most."""
        return f"{float(100 * self.value):.6g}%"


@dataclass(frozen=True)
class Conditions:
    """What is asked for; None: not asked."""

    min_certified: Share | None = None
    max_falsified: Share | None = None
    max_unknown: Share | None = None
    max_regressed: Share | None = None

    def each(self) -> Iterator[tuple[str, Share, Conditions]]:
        """Every condition that is asked for: its option's name, its limit, and the gate of it alone."""
        for f in fields(self):
            share = getattr(self, f.name)
            if share is not None:
                yield f.name.replace("_", "-"), share, Conditions(**{f.name: share})


@dataclass(frozen=True)
class Tally:
    """Where a run of n samples stands at one eps; what no count names is left to be decided.

    falsified: misclassified ones, too. unknown: errors, too. improvable: those of the unknown that a proof at a larger
    eps may still certify. regressed: falsified, and certified by the baseline; at_risk: left, and certified by it.
    """

    n: int
    certified: int = 0
    falsified: int = 0
    unknown: int = 0
    improvable: int = 0
    regressed: int = 0
    at_risk: int = 0

    def __post_init__(self) -> None:
        assert min(self.certified, self.falsified, self.unknown, self.left) >= 0, self
        assert 0 <= self.improvable <= self.unknown, self
        assert 0 <= self.regressed <= self.falsified, self
        assert 0 <= self.at_risk <= self.left, self

    @property
    def left(self) -> int:
        """Samples that have no verdict yet."""
        return self.n - self.certified - self.falsified - self.unknown

    def count(self, condition: str) -> int:
        """The number that a condition, by its option's name, speaks of."""
        return {
            "min-certified": self.certified,
            "max-falsified": self.falsified,
            "max-unknown": self.unknown,
            "max-regressed": self.regressed,
        }[condition]


def tally(n: int, verdicts: Mapping[Verdict, int], *, larger_left: bool) -> Tally:
    """From counts of verdicts at one eps, without a baseline. larger_left: is anything left at a larger eps?"""
    unknown = verdicts.get(Verdict.UNKNOWN, 0)
    return Tally(
        n,
        certified=verdicts.get(Verdict.VERIFIED, 0),
        falsified=verdicts.get(Verdict.FALSIFIED, 0),
        unknown=unknown + verdicts.get(Verdict.ERROR, 0),
        improvable=unknown if larger_left else 0,
    )


def possible(conditions: Conditions, now: Tally) -> frozenset[Ruling]:
    """The rulings that some verdicts of the samples left lead to at this eps; one only where none are left.

    Exact: of `left`, x become certified, y falsified and z unknown, and r of the improvable become certified; each
    ruling is reached for some x + y + z = left or it is not among these.
    """
    n, left = now.n, now.left
    wanted = _least(conditions.min_certified, n)
    falsified, unknown, regressed = (
        _most(share, n) for share in (conditions.max_falsified, conditions.max_unknown, conditions.max_regressed)
    )
    found = set()
    if (
        now.certified + left + now.improvable >= wanted  # x = left, r = improvable: the best for every condition
        and now.falsified <= falsified
        and now.unknown - now.improvable <= unknown
        and now.regressed <= regressed
    ):
        found.add(Ruling.MET)
    falling = now.falsified + left  # y = left, or z = left: the worst for one condition
    if falling > min(falsified, n - wanted) or now.unknown + left > unknown or now.regressed + now.at_risk > regressed:
        found.add(Ruling.NOT_MET)
    # Neither: x <= wanted - 1 - certified - r, z <= unknown's limit - unknown + r, y within all of its limits.
    short, room = wanted - 1 - now.certified, unknown - now.unknown
    fall = min(falsified, n - wanted) - now.falsified
    if max(0, -room) <= min(now.improvable, short) and fall >= 0 and now.regressed <= regressed:
        fall = min(fall, left - now.at_risk + min(now.at_risk, regressed - now.regressed))
        if short + room + fall >= left:
            found.add(Ruling.UNDECIDED)
    return frozenset(found)


def combined(parts: Iterable[frozenset[Ruling]]) -> frozenset[Ruling]:
    """The rulings possible where all parts must be met, each part's own being free of the others'."""
    sets = list(parts)
    found = set()
    if any(Ruling.NOT_MET in s for s in sets):
        found.add(Ruling.NOT_MET)
    if all(Ruling.MET in s for s in sets):
        found.add(Ruling.MET)
    if all(s - {Ruling.NOT_MET} for s in sets) and any(Ruling.UNDECIDED in s for s in sets):
        found.add(Ruling.UNDECIDED)
    return frozenset(found)


def ruling(rulings: frozenset[Ruling]) -> Ruling:
    """The one that is left; undecided where several are."""
    return next(iter(rulings)) if len(rulings) == 1 else Ruling.UNDECIDED


def parse_share(text: str | float, *, option: str) -> Share:
    """The share of "0.6", 0.6, "3/5" or "60%". Raises UsageError, which names the option."""
    given = str(text).strip()
    found = re.fullmatch(r"(\d{1,9}/\d{1,9}|(?:\d{1,9}\.?\d{0,18}|\.\d{1,18})(?:[eE]-?\d{1,2})?)\s*(%?)", given)
    try:
        value = Fraction(found[1]) / (100 if found[2] else 1) if found else Fraction(-1)
    except ZeroDivisionError:
        value = Fraction(-1)
    if not 0 <= value <= 1:
        raise UsageError(f"{option} {given}: give a share of the samples from 0 to 1, such as 0.6 or 60%")
    return Share(value, given)


def _least(share: Share | None, n: int) -> int:
    """The smallest whole number that is at least this share of n."""
    return 0 if share is None else math.ceil(share.value * n)


def _most(share: Share | None, n: int) -> int:
    """The largest whole number that is at most this share of n."""
    return n if share is None else math.floor(share.value * n)
