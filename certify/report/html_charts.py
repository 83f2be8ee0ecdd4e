"""Two charts as SVG in the page's colours: the bracket against eps, and how many samples were decided in what time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from certify.report.accounting import Bracket

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40


@dataclass(frozen=True)
class Axis:
    """A scale from low to high, with (value, text) ticks."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what lies outside is at an end."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def linear(title: str, high: float, *, unit: str = "") -> Axis:
    """From 0, with about five round ticks."""
    step = 10.0 ** math.floor(math.log10(high)) if high > 0 else 1.0
    high = high or 1.0
    step = next(s for s in (step / 10, step / 5, step / 4, step / 2, step, 2 * step, 4 * step) if high / s <= 5.5)
    ticks = [k * step for k in range(int(high / step + 1e-9) + 1)]
    return Axis(title, 0.0, high, tuple((t, f"{t:,.10g}{unit}") for t in ticks))


def logarithmic(title: str, low: float, high: float) -> Axis:
    """Whole decades, at least one, with a tick at each or at every few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    step = -(-(last - first) // 5)
    return Axis(
        title, 10.0**first, 10.0**last, tuple((10.0**k, f"{10.0**k:g}") for k in range(first, last + 1, step)), True
    )


def eps_chart(brackets: Sequence[Bracket], norm: str) -> Markup:
    """Certified and attacked accuracy as steps, radii ascending: a proof holds in every smaller ball, a witness in
    every larger one, so true robust accuracy lies between them at every eps."""
    radii = [float(b.eps) for b in brackets]
    last = radii[-1] * 1.04 or 1.0
    x = linear(f"eps ({norm})", last)
    y = Axis("share of samples", 0.0, 1.0, tuple((k / 5, f"{20 * k}%") for k in range(6)))
    certified = [b.rate(b.certified) for b in brackets]
    attacked = [b.rate(b.attacked) for b in brackets]
    clean = brackets[0].rate(brackets[0].clean)
    lower = [(0.0, certified[0])]
    for radius, here, after in zip(radii, certified, [*certified[1:], 0.0], strict=True):
        lower += [(radius, here), (radius, after)]
    upper = [(0.0, clean)]
    for radius, before, here in zip(radii, [clean, *attacked], attacked, strict=False):
        upper += [(radius, before), (radius, here)]
    upper.append((last, attacked[-1]))
    lower.append((last, 0.0))
    points = [
        _point(x, y, radius, rate, f"eps {b.eps}: {name} {rate:.2%}", colour)
        for b, radius, c, a in zip(brackets, radii, certified, attacked, strict=True)
        for rate, name, colour in ((a, "attacked, at most", "falsified"), (c, "certified, at least", "certified"))
    ]
    marks = [
        Markup('<polygon class="gap" points="{}"/>').format(_points(x, y, upper + lower[::-1])),
        _line(x, y, [(0.0, clean), (last, clean)], "misclassified dashed"),
        _line(x, y, upper, "falsified"),
        _line(x, y, lower, "certified"),
        *points,
    ]
    return _chart(x, y, marks, "Bracket of the robust accuracy against eps")


def cactus_chart(series: Sequence[tuple[str, str, Sequence[tuple[int, float]]]]) -> Markup:
    """(name, colour's class, points (k, seconds)): k samples were decided in at most so many seconds each."""
    times = [seconds for _, _, points in series for _, seconds in points if seconds > 0]
    if not times:
        return Markup("")
    x = linear("samples decided", max(k for _, _, points in series for k, _ in points))
    y = logarithmic("seconds per sample", min(times), max(times))
    marks = [_line(x, y, points, colour) for _, colour, points in series if points]
    ends = [
        _point(x, y, *points[-1], f"{name}: {points[-1][0]:,} samples, the slowest in {points[-1][1]:.3g} s", colour)
        for name, colour, points in series
        if points
    ]
    return _chart(x, y, [*marks, *ends], "Samples decided against seconds per sample")


def _chart(x: Axis, y: Axis, marks: Sequence[Markup], title: str) -> Markup:
    grid = [
        *(
            Markup(
                '<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text x="{0}" y="{3}" class="mid">{4}</text>'
            ).format(_x(x, tick), TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 15, text)
            for tick, text in x.ticks
        ),
        *(
            Markup(
                '<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text x="{3}" y="{4}" class="end">{5}</text>'
            ).format(LEFT, WIDTH - RIGHT, _y(y, tick), LEFT - 6, _y(y, tick) + 4, text)
            for tick, text in y.ticks
        ),
    ]
    titles = Markup('<text x="{}" y="{}" class="mid">{}</text><text x="0" y="12">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x.title, y.title
    )
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join([*grid, *marks, titles])
    )


def _line(x: Axis, y: Axis, points: Sequence[tuple[float, float]], colour: str) -> Markup:
    return Markup('<polyline class="line {}" points="{}"/>').format(colour, _points(x, y, points))


def _point(x: Axis, y: Axis, a: float, b: float, text: str, colour: str) -> Markup:
    return Markup('<circle class="point {}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>').format(
        colour, _x(x, a), _y(y, b), escape(text)
    )


def _points(x: Axis, y: Axis, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_x(x, a)},{_y(y, b)}" for a, b in points)


def _x(axis: Axis, value: float) -> str:
    return f"{LEFT + (WIDTH - LEFT - RIGHT) * axis.at(value):.1f}"


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * axis.at(value), 1)
