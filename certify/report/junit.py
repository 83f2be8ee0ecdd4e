"""JUnit XML of a gate: one test case for each condition and each (sample, eps).

    falsified  failure, misclassified samples too      error    error
    unknown    skipped; with strict, failure           not run  skipped

A gate may be met though cases fail: the conditions are cases of their own, in the first suite.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from certify.gate import Ruling
from certify.gate_decision import Decision, Finding
from certify.options import parse_ids
from certify.report.again import again
from certify.report.result import Report, row
from certify.store import SampleResult
from certify.verdict import Verdict

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report, decision: Decision, *, strict: bool = False) -> bytes:
    """The whole file. strict: what is unknown or undecided fails."""
    root = Element("testsuites", name="certify")
    gate = SubElement(root, "testsuite", name=f"{report.model}: gate")
    for finding in decision.findings:
        _condition(gate, finding, strict)
    for alarm in report.alarms:
        _add(SubElement(gate, "testcase", classname="certify.gate", name="alarm"), "error", "soundness alarm", alarm)
    found = {(r.eps, r.id): r for r in report.results}
    ids = parse_ids(str(report.options["ids"]))
    for eps in report.radii:
        suite = SubElement(root, "testsuite", name=f"{report.model}: {report.norm} eps {eps}")
        for sample in ids:
            case = SubElement(
                suite, "testcase", classname=f"certify.{Path(report.model).stem}.eps {eps}", name=f"sample {sample}"
            )
            if (eps, sample) in found:
                _sample(case, report, found[eps, sample], strict)
            else:
                _add(case, "skipped", "not run", "settled before" if decision.settled else "the budget ended before")
    for suite in root:
        cases = list(suite)
        suite.set("tests", str(len(cases)))
        for kind in ("failure", "error", "skipped"):
            name = kind if kind == "skipped" else f"{kind}s"
            suite.set(name, str(sum(case.find(kind) is not None for case in cases)))
        suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in root)))
    root.set("time", f"{report.seconds:.3f}")
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _condition(suite: Element, finding: Finding, strict: bool) -> None:
    name = f"{finding.condition} {finding.limit} at eps {finding.eps}"
    case = SubElement(suite, "testcase", classname="certify.gate", name=name)
    if finding.ruling is Ruling.NOT_MET:
        _add(case, "failure", "not met", finding.sentence)
    elif finding.ruling is Ruling.UNDECIDED:
        _add(case, "failure" if strict else "skipped", "undecided", finding.sentence)


def _sample(case: Element, report: Report, result: SampleResult, strict: bool) -> None:
    case.set("time", f"{sum(result.outcome.seconds.values()):.3f}")
    verdict = result.outcome.verdict
    if verdict is Verdict.VERIFIED:
        return
    what = "misclassified" if verdict is Verdict.FALSIFIED and result.outcome.stage == "clean" else verdict.value
    kind = {Verdict.FALSIFIED: "failure", Verdict.ERROR: "error"}.get(verdict, "failure" if strict else "skipped")
    line = row(report, result)
    text = [
        f"label {line['label']}, class of the clean input {line['predicted']}",
        f"decided by {line['stage']}: {line['reason']}" if line["reason"] else f"decided by {line['stage']}",
    ]
    if line["witness"]:
        text.append(f"witness: {report.out / str(line['witness'])}" if report.out else "witness: not kept")
    _add(case, kind, what, "\n".join([*text, f"again: {again(report, result.eps, [result.id])}"]))


def _add(case: Element, kind: str, what: str, text: str) -> None:
    """What became of a case. A skipped one has a message alone: that is all that its readers show."""
    clean = _NOT_XML.sub("�", text)
    first = clean.split("\n")[0]
    if kind == "skipped":
        SubElement(case, kind, message=f"{what}: {clean}".replace("\n", "; "))
    else:
        SubElement(case, kind, type=what, message=f"{what}: {first}").text = clean
