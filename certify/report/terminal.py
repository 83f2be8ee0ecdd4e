"""The final table of `certify run`, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from certify.report.accounting import CONFIDENCE, Bracket, stage_seconds
from certify.report.result import ARITHMETIC, CHECKING, Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show(report: Report, console: Console) -> None:
    """Print brackets, counts, population intervals, times, notes, errors and alarms."""
    from rich.markup import escape

    console.print(
        f"\n[bold]{escape(report.model)}[/] on {escape(report.data)}, {report.n} samples, {report.norm} balls"
    )
    for note in report.notes:
        console.print(f"  note: {note}", style="dim", markup=False)
    console.print(_brackets(report))
    console.print(_population(report))
    for eps, bracket in report.brackets.items():
        console.print(f"  {sentence(bracket, several=len(report.radii) > 1)}", markup=False, highlight=False)
        if bracket.errors:
            first = next(r for r in report.results if r.eps == eps and r.outcome.verdict == "error")
            console.print(f"  {_errors(bracket, first.id, first.outcome.reason)}", style="yellow", markup=False)
    times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stage_seconds(report.results).items())
    console.print(f"  time: {report.seconds:.1f} s" + (f" ({times})" if times else ""), style="dim", markup=False)
    console.print(
        f"  certified: {CHECKING} (a float64 bound with outward rounding, no independent checker yet), "
        f"arithmetic level {ARITHMETIC}",
        style="dim",
        markup=False,
    )
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


def running(bracket: Bracket) -> str:
    """The bracket over the samples done so far, for a progress bar."""
    done = bracket.n - bracket.pending
    if not done:
        return ""
    attacked = bracket.attacked - bracket.pending
    clean = bracket.clean - bracket.pending
    return f"clean {clean / done:.1%} · attacked ≤ {attacked / done:.1%} · certified ≥ {bracket.certified / done:.1%}"


def _brackets(report: Report) -> Table:
    from rich.table import Table

    table = Table(title="These samples", title_justify="left", title_style="")
    table.add_column("eps")
    for name in ("clean", "attacked ≤", "certified ≥", "gap", "misclassified", "falsified", "certified", "unknown"):
        table.add_column(name, justify="right")
    optional = [name for name in ("errors", "pending") if any(_count(b, name) for b in report.brackets.values())]
    for name in optional:
        table.add_column({"pending": "not run"}.get(name, name), justify="right")
    for eps, b in report.brackets.items():
        table.add_row(
            str(eps),
            *(_percent(b, count) for count in (b.clean, b.attacked, b.certified, b.gap)),
            *map(str, (b.misclassified, b.falsified, b.certified, b.unknown)),
            *(str(_count(b, name)) for name in optional),
        )
    return table


def _population(report: Report) -> Table:
    from rich.table import Table

    title = f"The population, {CONFIDENCE:.0%} Clopper-Pearson intervals, if these samples are a random draw"
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("eps")
    for name in ("clean", "attacked", "certified"):
        table.add_column(name, justify="right")
    for eps, b in report.brackets.items():
        cells = ("{:.2%} … {:.2%}".format(*b.population(count)) for count in (b.clean, b.attacked, b.certified))
        table.add_row(str(eps), *cells)
    return table


def _count(bracket: Bracket, name: str) -> int:
    return {"errors": bracket.errors, "pending": bracket.pending}[name]


def _errors(bracket: Bracket, sample: int, reason: str) -> str:
    return f"{bracket.errors} sample(s) could not run, first {sample}: {reason}"


def _percent(bracket: Bracket, count: int) -> str:
    return f"{bracket.rate(count):.2%}"
