"""Steps are drawn where they are, in valid XML that needs nothing from elsewhere."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from certify.picture import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, Picture, falling, round_numbers

SPACE = "{http://www.w3.org/2000/svg}"


def corners(svg: str, kind: str) -> list[tuple[float, float]]:
    path = next(p for p in ElementTree.fromstring(svg).iter(f"{SPACE}path") if p.get("class") == kind)
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path.get("d") or "")]


def test_a_falling_line_has_a_corner_before_and_after_each_step() -> None:
    assert falling([(1.0, 0.5), (2.0, 0.25)], 0.75, 4.0) == (
        (0.0, 0.75), (1.0, 0.75), (1.0, 0.5), (2.0, 0.5), (2.0, 0.25), (4.0, 0.25),
    )  # fmt: skip


def test_the_ends_of_a_line_lie_at_the_ends_of_the_axes() -> None:
    line = Line("a", ((0.0, 1.0), (0.3, 0.0)))
    svg = Picture("t", "eps", 0.3, (line,)).svg()
    assert corners(svg, "s0") == [(LEFT, TOP), (WIDTH - RIGHT, HEIGHT - BOTTOM)]


def test_names_are_text_and_nothing_is_fetched() -> None:
    line = Line("<b> & co", ((0.0, 1.0), (1.0, 1.0)))
    svg = Picture('a "title" <script>', "eps", 1.0, (line, line), "gap").svg()
    texts = [t.text for t in ElementTree.fromstring(svg).iter(f"{SPACE}text")]
    assert "<b> & co" in texts
    assert 'a "title" <script>' in texts
    assert "<script" not in svg
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", svg) == []


@pytest.mark.parametrize(
    ("most", "numbers"),
    [
        (0.3, ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]),
        (0.175, ["0", "0.05", "0.1", "0.15"]),
        (8 / 255, ["0", "0.01", "0.02", "0.03"]),
        (6.0, ["0", "1", "2", "3", "4", "5", "6"]),
        (0.0, ["0"]),
    ],
)
def test_numbers_below_the_axis_are_round(most: float, numbers: list[str]) -> None:
    assert [f"{tick:.4g}" for tick in round_numbers(most)] == numbers


def test_the_style_stays_within_the_picture() -> None:
    svg = Picture("t", "eps", 1.0, (Line("a", ((0.0, 1.0), (1.0, 1.0))),)).svg()
    style = next(ElementTree.fromstring(svg).iter(f"{SPACE}style")).text or ""
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media\([^)]*\)\{", "", style))
    assert selectors
    assert all(selector.strip().startswith(".steps") for selector in selectors)


def test_a_range_of_one_radius_has_a_picture() -> None:
    assert "nan" not in Picture("t", "eps", 0.0, (Line("a", ((0.0, 1.0), (0.0, 1.0))),)).svg()
