"""A gate's outcome as Markdown, for a CI job's page: what was asked and found, what changed, what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from certify.gate import Ruling
from certify.gate_baseline import Change
from certify.gate_decision import Decision
from certify.options import Radius
from certify.report.again import again, named
from certify.report.assurance import Assurance
from certify.report.result import Report
from certify.store import SampleResult
from certify.verdict import Verdict
from certify.version import __version__

# GitHub refuses more than 1 MiB for a step, and other steps' output is beside ours in the file.
MOST_BYTES = 1 << 19
MOST_ROWS = 50  # of one table of samples
MOST_REASON = 200  # characters
_MARKS = {Ruling.MET: "✅", Ruling.NOT_MET: "❌", Ruling.UNDECIDED: "❔"}
_CUT = b"*Cut here: the rest is in the results' folder.*\n"


def summary(report: Report, decision: Decision) -> bytes:
    """The whole file, of at most MOST_BYTES; what does not fit is left out by blocks, so that nothing stays open."""
    content = b""
    for block in _blocks(report, decision):
        made = block.encode(errors="replace") + b"\n\n"
        if len(content) + len(made) > MOST_BYTES - len(_CUT):
            return content + _CUT
        content += made
    return content


def _blocks(report: Report, decision: Decision) -> Iterator[str]:
    yield f"## {_MARKS[decision.ruling]} Robustness of {_code(report.model)}: gate {decision.ruling}"
    yield f"{report.n} samples of {_code(report.data)}, {report.norm} balls."
    for alarm in report.alarms:
        yield f"**Soundness alarm, a bug in certify: no result of this run counts.** {_plain(alarm)}"
    if decision.findings:
        yield _table(
            ("eps", "condition", "limit", "found", "outcome"),
            (
                (str(f.eps), f.condition, str(f.limit), f"{f.count} of {f.n} ({f.count / f.n:.2%})", f.ruling.value)
                for f in decision.findings
            ),
        )
    yield _table(
        ("eps", "clean", "attacked ≤", "certified ≥", "misclassified", "falsified", "unknown", "errors", "not run"),
        (
            (
                str(b.eps),
                *(f"{b.rate(count):.2%}" for count in (b.clean, b.attacked, b.certified)),
                *map(str, (b.misclassified, b.falsified, b.unknown, b.errors, b.pending)),
            )
            for b in report.brackets.values()
        ),
    )
    if decision.left:
        why = "the outcome was settled" if decision.settled else "the budget ended"
        yield f"{decision.left} (sample, eps) pairs were not run: {why} before them."
    yield from _changes(report, decision)
    yield _provenance(report)
    yield from _samples(report, "Falsified", Verdict.FALSIFIED)
    yield from _samples(report, "Unknown", Verdict.UNKNOWN)
    yield from _samples(report, "Could not run", Verdict.ERROR)


def _changes(report: Report, decision: Decision) -> Iterator[str]:
    baseline = decision.gate.baseline
    if baseline is None:
        return
    yield f"### Since the baseline {_code(str(baseline.root))}"
    rows = [
        (str(eps), change.value, str(len(ids)), named(ids))
        for eps, comparison in decision.comparisons.items()
        for change in Change
        if (ids := comparison.ids(change))
    ]
    if not rows:
        yield f"No sample changed, of {sum(c.common for c in decision.comparisons.values())} compared."
        return
    yield _table(("eps", "change", "samples", "ids"), rows)
    for eps, ids in decision.changed(Change.REGRESSED).items():
        yield f"The regressed samples again:\n\n{_shell(again(report, eps, ids[:MOST_ROWS]))}"


def _samples(report: Report, title: str, verdict: Verdict) -> Iterator[str]:
    found: dict[Radius, list[SampleResult]] = {}
    for result in report.results:
        if result.outcome.verdict is verdict:
            found.setdefault(result.eps, []).append(result)
    for eps, results in found.items():
        table = _table(
            ("sample", "label", "stage", "reason", "margin within"),
            (
                (str(r.id), str(r.label), r.outcome.stage, r.outcome.reason[:MOST_REASON], _margin(r))
                for r in results[:MOST_ROWS]
            ),
        )
        more = f"… and {len(results) - MOST_ROWS} more.\n\n" if len(results) > MOST_ROWS else ""
        command = _shell(again(report, eps, [r.id for r in results[:MOST_ROWS]]))
        yield (
            f"<details><summary>{title} at eps {eps}: {len(results)}</summary>\n\n{table}\n\n{more}{command}\n\n"
            "</details>"
        )


def _provenance(report: Report) -> str:
    assurance = Assurance.of(report.results).sentence()
    return (
        (f"{_plain(assurance)}.\n\n" if assurance else "")
        + f"<sub>certify {__version__}, {report.seconds:.1f} s; model sha256 {report.model_sha256[:16]}…, "
        f"data sha256 {report.data_sha256[:16]}…</sub>"
    )


def _margin(result: SampleResult) -> str:
    return f"[{result.outcome.lower:.4g}, {result.outcome.upper:.4g}]"


def _table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_plain, cells))} |" for cells in rows)])


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    one = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", lambda m: f"&#{ord(m[0])};", one)


def _code(text: str) -> str:
    return f"<code>{_plain(text)}</code>"


def _shell(command: str) -> str:
    """A block of code, whatever is in the command."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{command}\n{fence}"
