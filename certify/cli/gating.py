"""Options of a gate, which `certify gate` and `certify run` share, and what they do before and after the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from certify.disk import disk, write_atomically
from certify.errors import UsageError

if TYPE_CHECKING:
    from certify.gate_decision import Decision, Gate
    from certify.report.result import Report
    from certify.runner import Job

Command = TypeVar("Command", bound=Callable[..., Any])

CONDITIONS = ("min_certified", "max_falsified", "max_unknown", "max_regressed")
OUTPUTS = ("junit", "sarif", "summary", "badge")
DECISION = "gate.json"  # in the folder of the run

_OPTIONS = (
    click.option("--min-certified", metavar="SHARE", help="Gate: robust accuracy, 0.6 or 60%, that must be proved."),
    click.option("--max-falsified", metavar="SHARE", help="Gate: at most so many with a witness or misclassified."),
    click.option("--max-unknown", metavar="SHARE", help="Gate: at most so many undecided, errors among them."),
    click.option("--baseline", metavar="DIR", help="Gate: the folder of an earlier run to compare with."),
    click.option(
        "--max-regressed", metavar="SHARE", help="Gate: at most so many falsified that the baseline certified.  [0]"
    ),
    click.option("--all-samples", is_flag=True, help="Go on when the gate's outcome is settled."),
    click.option("--junit", metavar="FILE", help="Write JUnit XML: falsified fails, unknown is skipped."),
    click.option("--strict", is_flag=True, help="In JUnit XML unknown fails, too."),
    click.option("--sarif", metavar="FILE", help="Write SARIF 2.1.0 for code scanning."),
    click.option("--summary", metavar="FILE", help="Write Markdown for a CI job's page."),
    click.option("--badge", metavar="FILE", help="Write a badge for shields.io."),
)


def gate_options(command: Command) -> Command:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_gate(options: Mapping[str, Any]) -> None:
    """What can be refused before the model is read, is. Raises UsageError."""
    _conditions(options)
    given = {name: Path(options[name]) for name in OUTPUTS if options[name] is not None}
    if given and not any(options[name] is not None for name in (*CONDITIONS, "baseline")):
        raise UsageError(
            f"--{next(iter(given))} tells of a gate: give --min-certified, --max-falsified, --max-unknown or --baseline"
        )
    taken: dict[Path, str] = {}
    for name, path in given.items():
        whole = path.resolve()
        if whole in taken:
            raise UsageError(f"--{name} {path}: is the file of --{taken[whole]}, too; give another one")
        taken[whole] = name
        if path.is_dir():
            raise UsageError(f"--{name} {path}: is a folder; give a file")
        if not os.access(next(p for p in whole.parents if p.exists()), os.W_OK):
            raise UsageError(f"--{name} {path}: its folder cannot be written")


def open_gate(options: Mapping[str, Any], job: Job, out: Path) -> Gate | None:
    """The gate that the options ask for, the baseline read; None where they ask for none. Raises UsageError."""
    from certify.gate_baseline import read_baseline
    from certify.gate_decision import make_gate

    folder = None if options["baseline"] is None else Path(options["baseline"])
    if folder is not None and folder.resolve() == out.resolve():
        raise UsageError(f"--baseline {folder}: is the folder of this run, too; give that of an earlier one")
    baseline = None if folder is None else read_baseline(folder)
    return make_gate(_conditions(options), baseline, job, all_samples=options["all_samples"])


def write_gate(report: Report, decision: Decision, options: Mapping[str, Any]) -> None:
    """The decision beside the results, and the files that were asked for, each whole or not at all."""
    from certify.gate_decision import document
    from certify.report.badge import badge
    from certify.report.junit import junit
    from certify.report.sarif import sarif
    from certify.report.summary import summary

    if report.out is not None:
        write_atomically(report.out / DECISION, (json.dumps(document(decision), indent=2) + "\n").encode())
    makers: dict[str, Callable[[], bytes]] = {
        "junit": lambda: junit(report, decision, strict=options["strict"]),
        "sarif": lambda: sarif(report, decision),
        "summary": lambda: summary(report, decision),
        "badge": lambda: badge(report, decision),
    }
    for name in OUTPUTS:
        if options[name] is not None:
            path = Path(options[name])
            with disk(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, makers[name]())


def show_gate(report: Report, decision: Decision, *, quiet: bool) -> None:
    """Findings, what changed since the baseline, and the outcome in one word at the end."""
    from certify.gate import Ruling
    from certify.gate_baseline import Change
    from certify.report.again import again, named

    for finding in decision.findings:
        if not quiet or finding.ruling is not Ruling.MET:
            click.echo(f"  {finding.sentence}")
    for eps, comparison in decision.comparisons.items():
        for change in Change:
            ids = comparison.ids(change)
            if ids and (not quiet or change is Change.REGRESSED):
                click.echo(f"  eps {eps}: {change}, {len(ids)} of {comparison.common} compared: {named(ids)}")
        if ids := comparison.ids(Change.REGRESSED):
            click.echo(f"  again: {again(report, eps, ids[:50])}")
    rest = ""
    if decision.left and decision.settled:
        rest = f" (settled with {decision.left} samples left; --all-samples decides them, too)"
    click.echo(f"gate: {decision.ruling}{rest}")


def _conditions(options: Mapping[str, Any]) -> Any:
    from certify.gate import Conditions, parse_share

    return Conditions(
        **{
            name: None if options[name] is None else parse_share(options[name], option=f"--{name.replace('_', '-')}")
            for name in CONDITIONS
        }
    )
