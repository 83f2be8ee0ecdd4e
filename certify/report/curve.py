"""A run over many radii as one curve: true robust accuracy lies between its two step lines at every eps, not only at
those that were decided: a proof holds in every smaller ball, a witness in every larger one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from certify.disk import write_atomically
from certify.picture import Line, Picture, falling
from certify.report.accounting import Bracket
from certify.report.result import Report
from certify.report.terminal import doubts, errors
from certify.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("eps", "eps_value", "samples", "clean", "attacked", "certified", "gap", "errors", "pending")


def table(report: Report) -> str:
    """curve.csv: one line per eps; clean, attacked, certified and gap are shares of the samples."""
    lines = [",".join(COLUMNS)]
    for eps, b in report.brackets.items():
        shares = [repr(b.rate(count)) for count in (b.clean, b.attacked, b.certified, b.gap)]
        lines.append(",".join([str(eps), repr(float(eps)), str(b.n), *shares, str(b.errors), str(b.pending)]))
    return "\n".join(lines) + "\n"


def picture(report: Report) -> Picture:
    """Certified and attacked accuracy as steps, clean accuracy as a line."""
    radii = [float(eps) for eps in report.radii]
    found = list(report.brackets.values())
    first, last = found[0], radii[-1]
    certified = [b.rate(b.certified) for b in found]
    attacked = [(e, b.rate(b.attacked)) for e, b in zip(radii, found, strict=True)]
    clean = first.rate(first.clean)
    return Picture(
        f"{Path(report.model).name}: {report.n} samples of {Path(report.data).name}",
        f"eps ({report.norm})",
        last,
        (
            Line("certified, at least", falling(list(zip(radii, certified[1:], strict=False)), certified[0], last)),
            Line("under attack, at most", falling(attacked, clean, last)),
            Line("clean", ((0.0, clean), (last, clean))),
        ),
        "not known",
    )


def write_curve(report: Report) -> None:
    """curve.csv and curve.svg into the run's folder; DiskError if the disk refuses."""
    assert report.out is not None, "a report without a folder has no files"
    write_atomically(report.out / "curve.csv", table(report).encode())
    write_atomically(report.out / "curve.svg", picture(report).svg().encode())


def sentences(report: Report) -> Iterator[str]:
    """One line per eps."""
    for eps, b in report.brackets.items():
        yield f"{eps} {b.rate(b.clean):.4f} {b.rate(b.attacked):.4f} {b.rate(b.certified):.4f}"


def decisions(report: Report) -> tuple[int, int]:
    """How many (sample, eps) pairs were worked on, and how many of all follow from those or from the clean input."""
    worked = sum(
        r.outcome.verdict is Verdict.ERROR or any(stage != "clean" for stage in r.outcome.seconds)
        for r in report.results
    )
    return worked, len(report.results) - worked


def show(report: Report, console: Console) -> None:
    """Print the curve as a table, and what is to be said about the run."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    console.print(
        f"\n[bold]{escape(report.model)}[/] on {escape(report.data)}, {report.n} samples, {report.norm} balls"
    )
    for note in report.notes:
        console.print(f"  note: {note}", style="dim", markup=False)
    rates = Table(box=SIMPLE_HEAD)
    for name in ("eps", "clean", "attacked ≤", "certified ≥", "gap", ""):
        rates.add_column(name, justify="left" if name in ("eps", "") else "right", no_wrap=True)
    for eps, b in report.brackets.items():
        shares = (f"{b.rate(count):.2%}" for count in (b.clean, b.attacked, b.certified, b.gap))
        rates.add_row(str(eps), *shares, _bar(b))
    console.print(rates)
    for problem in (*errors(report), *doubts(report)):
        console.print(f"  {problem}", style="yellow", markup=False, highlight=False)
    worked, given = decisions(report)
    console.print(
        f"  time: {report.seconds:.1f} s, {worked} decisions, {given} results follow from others", style="dim"
    )
    if report.out is not None:
        console.print(f"  results: {report.out} (curve.svg, curve.csv)", style="dim", markup=False, soft_wrap=True)


def _bar(b: Bracket, width: int = 16) -> str:
    """Certified in full blocks, what is open in light ones."""
    certified = round(b.rate(b.certified) * width)
    return "█" * certified + "░" * (round(b.rate(b.attacked) * width) - certified)
