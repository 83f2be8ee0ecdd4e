"""Share of samples against a radius, as steps: one SVG file without scripts, fonts or network, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 410, 58, 62, 20, 54
MARK, LETTER = 48, 7  # of the legend: room around an entry's name, and for each of its letters
TICKS = 5
# Okabe & Ito's colours, which colour-blind readers can tell apart; lines differ in their dashes, too.
# Every selector begins with the picture's own class: a style within a page would else be that of the whole page.
_STYLE = """
.steps{background:#fff;color:#222}.steps .grid{stroke:#8884}.steps .axis{stroke:currentColor}
.steps text{fill:currentColor;font:12px system-ui,sans-serif}.steps .title{font-size:14px;font-weight:600}
.steps path{fill:none;stroke-width:2}.steps .band{fill:#e69f00;fill-opacity:.25;stroke:none}
.steps .s0{stroke:#0072b2}.steps .s1{stroke:#d55e00;stroke-dasharray:6 3}.steps .s2{stroke:#777;stroke-dasharray:2 3}
@media(prefers-color-scheme:dark){.steps{background:#16181d;color:#ddd}
.steps .s0{stroke:#56b4e9}.steps .s1{stroke:#e69f00}.steps .s2{stroke:#aaa}}
"""

Corners = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A step line through its corners (radius, share), radii ascending."""

    name: str
    corners: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Picture:
    """Step lines over radii from 0 to `most`; `band`: what lies between the first two is shaded and has this name."""

    title: str
    label: str
    most: float
    lines: tuple[Line, ...]
    band: str = ""

    def svg(self) -> str:
        """The file's text."""
        parts = [f'<text class="title" x="{WIDTH / 2}" y="20" text-anchor="middle">{_escape(self.title)}</text>']
        parts += self._axes()
        if self.band:
            upper, lower = (self._points(line.corners) for line in (self.lines[1], self.lines[0]))
            parts.append(f'<path class="band" d="M{" L".join([*upper, *reversed(lower)])} Z"/>')
        for number, line in enumerate(self.lines):
            parts.append(f'<path class="s{number}" d="M{" L".join(self._points(line.corners))}"/>')
        parts += self._legend()
        return (
            f'<svg class="steps" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{_escape(self.title)}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
        )

    def _x(self, radius: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(radius, self.most) / (self.most or 1.0)

    def _y(self, share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    def _points(self, corners: Corners) -> list[str]:
        return [f"{self._x(radius):.2f},{self._y(share):.2f}" for radius, share in corners]

    def _axes(self) -> list[str]:
        found = [f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{_escape(self.label)}</text>']
        for tick in range(TICKS + 1):
            part = tick / TICKS
            kind = "axis" if not tick else "grid"
            y = self._y(part)
            found += [
                f'<line class="{kind}" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>',
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{part:.0%}</text>',
            ]
        below = HEIGHT - BOTTOM + 18
        found += [
            f'<text x="{self._x(tick):.1f}" y="{below}" text-anchor="middle">{tick:.4g}</text>'
            for tick in round_numbers(self.most)
        ]
        return found

    def _legend(self) -> list[str]:
        found = []
        entries = [(f"s{n}", line.name) for n, line in enumerate(self.lines)]
        entries += [("band", self.band)] if self.band else []
        x, y = LEFT, TOP - 18
        for kind, name in entries:
            mark = f"M{x},{y - 4} h22" if kind != "band" else f"M{x},{y - 9} h22 v11 h-22 Z"
            found.append(f'<path class="{kind}" d="{mark}"/><text x="{x + 28}" y="{y}">{_escape(name)}</text>')
            x += MARK + LETTER * len(name)
        return found


def falling(steps: Corners, start: float, end: float) -> tuple[tuple[float, float], ...]:
    """Corners of a line that is at `start` from 0 on and falls to each share right after its radius; up to `end`."""
    corners, level = [(0.0, start)], start
    for radius, share in steps:
        corners += [(radius, level), (radius, share)]
        level = share
    return (*corners, (end, level))


def round_numbers(most: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to `most`, at most seven."""
    if not most > 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(most / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= most / 6 * (1 - 1e-9))
    return [step * k for k in range(int(most / step * (1 + 1e-9)) + 1)]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
