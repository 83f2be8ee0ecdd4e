"""The final table of `certify run`, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from certify.report.accounting import CONFIDENCE, Bracket, stage_seconds
from certify.report.assurance import Assurance
from certify.report.result import Report
from certify.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


OPTIONAL = {"errors": "errors", "pending": "not run"}  # columns that are left out where all are 0


def show(report: Report, console: Console) -> None:
    """Print brackets, counts, population intervals, times, notes, errors and alarms."""
    from rich.markup import escape

    console.print(
        f"\n[bold]{escape(report.model)}[/] on {escape(report.data)}, {report.n} samples, {report.norm} balls"
    )
    for note in report.notes:
        console.print(f"  note: {note}", style="dim", markup=False)
    for table in _tables(report):
        console.print(table)
    for bracket in report.brackets.values():
        console.print(f"  {sentence(bracket, several=len(report.radii) > 1)}", markup=False, highlight=False)
    for problem in errors(report):
        console.print(f"  {problem}", style="yellow", markup=False, highlight=False)
    times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stage_seconds(report.results).items())
    console.print(f"  time: {report.seconds:.1f} s" + (f" ({times})" if times else ""), style="dim", markup=False)
    if assurance := Assurance.of(report.results).sentence():
        console.print(f"  {assurance}", style="dim", markup=False)
    if report.out is not None:
        console.print(f"  results: {report.out}", style="dim", markup=False, soft_wrap=True)
    for alarm in report.alarms:
        console.print(f"SOUNDNESS ALARM: {alarm}", style="bold white on red", markup=False)
    if report.alarms:
        console.print(
            "A proof and a witness contradict each other: this is a bug in certify and no result of this run should be "
            "trusted. Please report it with the results folder.",
            style="bold red",
            markup=False,
        )


def sentence(bracket: Bracket, *, several: bool) -> str:
    """What is known about the true robust accuracy of these n samples, in one line."""
    if bracket.decided == 0:
        text = "nothing is decided"
    elif bracket.gap == 0:
        text = f"robust accuracy of these {bracket.n} samples: exactly {_percent(bracket, bracket.certified)}"
    else:
        text = (
            f"robust accuracy of these {bracket.n} samples: between {_percent(bracket, bracket.certified)} and "
            f"{_percent(bracket, bracket.attacked)} (verification gap: {bracket.gap} samples)"
        )
    return f"eps {bracket.eps}: {text}" if several else text


def errors(report: Report) -> list[str]:
    """One line for each eps at which samples could not run, with the first reason."""
    lines = []
    for eps, bracket in report.brackets.items():
        if bracket.errors:
            first = next(r for r in report.results if r.eps == eps and r.outcome.verdict is Verdict.ERROR)
            lines.append(
                f"eps {eps}: {bracket.errors} sample(s) could not run; the first is {first.id}: {first.outcome.reason}"
            )
    return lines


def doubts(report: Report) -> list[str]:
    """A line where not all that is called certified was accepted by the checker."""
    parts = Assurance.of(report.results).doubts()
    return [f"of what is certified, {', '.join(parts)}"] if parts else []


def running(bracket: Bracket) -> str:
    """For a progress bar, the bracket of all samples as far as known: clean >= attacked >= robust >= certified."""
    clean, attacked, certified = map(bracket.rate, (bracket.clean, bracket.attacked, bracket.certified))
    return f"{clean:.1%} ≥ {attacked:.1%} ≥ robust ≥ {certified:.1%}"


def _tables(report: Report) -> Iterator[Table]:
    """Rates of these samples, their counts, and, apart from both, what they tell about the population."""
    rates = _table(f"These {report.n} samples", "clean", "attacked ≤", "certified ≥", "gap")
    optional = [name for name in OPTIONAL if any(_count(b, name) for b in report.brackets.values())]
    counts = _table("Counts", "misclassified", "falsified", "certified", "unknown", *(OPTIONAL[n] for n in optional))
    population = _table(
        f"Population, {CONFIDENCE:.0%} Clopper-Pearson, if the samples are a random draw",
        "clean",
        "attacked",
        "certified",
    )
    for eps, b in report.brackets.items():
        rates.add_row(str(eps), *(_percent(b, count) for count in (b.clean, b.attacked, b.certified, b.gap)))
        always = (b.misclassified, b.falsified, b.certified, b.unknown)
        counts.add_row(str(eps), *map(str, (*always, *(_count(b, name) for name in optional))))
        intervals = ("{:.2%} … {:.2%}".format(*b.population(count)) for count in (b.clean, b.attacked, b.certified))
        population.add_row(str(eps), *intervals)
    yield from (rates, counts, population)


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, min_width=len(title) + 2)
    table.add_column("eps")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _count(bracket: Bracket, name: str) -> int:
    return {"errors": bracket.errors, "pending": bracket.pending}[name]


def _percent(bracket: Bracket, count: int) -> str:
    return f"{bracket.rate(count):.2%}"
