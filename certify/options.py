"""What a user writes on the command line or passes to `certify.run`, read exactly or refused with the valid forms."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from certify.errors import UsageError

NORMS = ("linf", "l2", "l1")
LAYOUTS = ("nchw", "nhwc")
BOUND_METHODS = ("ibp", "crown", "alpha-crown")  # cheap to dear
PROGRAM_METHODS = ("lp", "mip")  # linear programs after CROWN: the relaxation's bound, or a complete search
METHODS = ("auto", "attack", *BOUND_METHODS, *PROGRAM_METHODS)
ARITHMETICS = ("real", "float32")  # what a verdict holds for: real arithmetic, or every float32 execution too
MOST_IDS = 10_000_000  # in one range: a slip of the keyboard shall not fill the memory

EpsLike = str | float | Fraction
_EPS_FORMS = "valid forms: 2/255, 0.03, 1e-3, a list such as 1/255,2/255, or a range FIRST:LAST:STEP"
MOST_RADII = 1000  # in one range: a slip of the keyboard shall not fill the memory


@dataclass(frozen=True, order=True)
class Radius:
    """A perturbation size as an exact rational >= 0; `text` is how the user wrote it (not compared)."""

    value: Fraction
    text: str = field(compare=False)

    @property
    def key(self) -> str:
        """One spelling per value: 2/510 and 1/255 share it."""
        return str(self.value)

    def __str__(self) -> str:
        return self.text

    def __float__(self) -> float:
        return float(self.value)


def parse_eps(given: EpsLike | Sequence[EpsLike]) -> tuple[Radius, ...]:
    """The radii of "2/255", "0.03", "1e-3", a number, a range "0:0.3:0.02", or a list of them; ascending, each once.

    A float is read as the decimal it prints as (0.03 is 3/100). A range holds its last number if whole steps lead
    there. Raises UsageError.
    """
    parts: list[EpsLike]
    if isinstance(given, str):
        parts = list(given.split(","))
    elif isinstance(given, Sequence):
        parts = list(given)
    else:
        parts = [given]
    if not parts:
        raise UsageError(f"eps: the list is empty; {_EPS_FORMS}")
    return tuple(sorted(dict.fromkeys(radius for part in parts for radius in _parse_part(part))))


def _parse_part(given: EpsLike) -> list[Radius]:
    """A radius, or those of a range; they are written as its numbers are, as decimals or over one denominator."""
    if not isinstance(given, str) or ":" not in given:
        return [_parse_radius(given)]
    ends = given.split(":")
    if len(ends) != 3:
        raise UsageError(f"eps {given!r} is not a range; {_EPS_FORMS}, such as 0:0.3:0.02")
    first, last, step = (_parse_radius(end) for end in ends)
    if not step.value:
        raise UsageError(f"eps {given!r}: the step is 0")
    count = (last.value - first.value) // step.value + 1
    if not 1 <= count <= MOST_RADII:
        why = "runs backwards" if count < 1 else f"has {count} radii, {MOST_RADII} are the most"
        raise UsageError(f"eps {given!r}: the range {why}; {_EPS_FORMS}")
    below = [end.text.partition("/")[2] for end in (first, step)]
    over = math.lcm(*(int(b or 1) for b in below))
    radii = []
    for value in (first.value + k * step.value for k in range(count)):
        text = f"{value * over}/{over}" if any(below) and (value * over).denominator == 1 else _decimal(value)
        radii.append(Radius(value, text))
    return radii


def _decimal(value: Fraction) -> str:
    """As a decimal where it is a short one, else as a fraction."""
    text = f"{float(value):.12g}"
    return text if Fraction(text) == value else str(value)


def _parse_radius(given: EpsLike) -> Radius:
    text = str(given).strip()
    if not re.fullmatch(r"[+-]?(\d+\s*/\s*\d+|(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?)", text):
        raise UsageError(f"eps {text!r} is not a number; {_EPS_FORMS}")
    try:
        value = Fraction(text.replace(" ", ""))
    except ZeroDivisionError:
        raise UsageError(f"eps {text!r} divides by zero; {_EPS_FORMS}") from None
    if text.startswith("-"):
        raise UsageError(f"eps {text!r} is negative: eps is a radius, at least 0; {_EPS_FORMS}")
    try:
        finite = math.isfinite(float(value))
    except OverflowError:
        finite = False
    if not finite:
        raise UsageError(f"eps {text!r} is too large; {_EPS_FORMS}")
    return Radius(value, re.sub(r"\s|\+", "", text))


def parse_range(text: str) -> tuple[float, float]:
    """(low, high) of "0,1": the range that inputs live in before any normalisation."""
    values = parse_floats(text, option="--input-range")
    if len(values) != 2 or not values[0] < values[1]:
        raise UsageError(f"--input-range {text!r}: give two numbers, the lower one first, such as 0,1 or 0,255")
    return values[0], values[1]


def parse_floats(text: str, *, option: str) -> tuple[float, ...]:
    """The finite numbers of "0.49,0.48,0.45"; `option` is named in the message."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: give numbers separated by commas, such as 0.5 or 0.49,0.48,0.45"
        ) from None
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option} {text!r}: the numbers must be finite")
    return values


def parse_seconds(value: float | None, *, option: str) -> None:
    """Raises UsageError unless `value` is None or a finite number of seconds > 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"{option} {value}: give a number of seconds above 0")


def parse_ids(text: str) -> tuple[int, ...]:
    """The ids of "3,17,20-25", in the order given, each once; a range is inclusive."""
    ids: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,12})(?:-(\d{1,12}))?\s*", part)
        if found is None:
            raise UsageError(f"--ids {text!r}: {part!r} is not an id; valid forms: 3,17 or 20-25")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + MOST_IDS:
            raise UsageError(f"--ids {part!r}: the range runs backwards or is too long; valid forms: 3,17 or 20-25")
        ids.extend(range(first, last + 1))
    return tuple(dict.fromkeys(ids))


def format_ids(ids: Sequence[int]) -> str:
    """The ids as `parse_ids` reads them: "3,17,20-25"."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
