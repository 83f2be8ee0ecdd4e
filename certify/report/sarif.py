"""SARIF 2.1.0 of a gate: what code scanning shows beside the model's file, one result for each sample that falls.

Levels: error for a gate that is not met and for samples that regressed, warning for other witnesses and for errors,
note for misclassified and unknown samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from certify.gate import Ruling
from certify.gate_decision import Decision
from certify.report.again import again
from certify.report.result import Report
from certify.store import SampleResult
from certify.verdict import Verdict
from certify.version import __version__

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_RESULTS = 25_000  # GitHub refuses a run with more
RULES = {
    "gate": "A robustness gate is not met, or cannot be decided.",
    "falsified": "An input inside the ball gets another class; onnxruntime confirmed it.",
    "misclassified": "The clean input gets another class than its label.",
    "unknown": "Neither a proof nor a witness was found.",
    "error": "The sample could not be run.",
}
_RULES = list(RULES)
_SEVERITY = ("error", "warning", "note")

Place = dict[str, str]  # an artifactLocation


def sarif(report: Report, decision: Decision) -> bytes:
    """The whole file."""
    place = _place(report.model)
    results = [*_gate(report, decision, place), *_samples(report, decision, place)]
    results.sort(key=lambda result: _SEVERITY.index(result["level"]))
    left_out = len(results) - MOST_RESULTS
    invocation: dict[str, Any] = {"executionSuccessful": not report.alarms}
    told = [f"soundness alarm: {alarm}" for alarm in report.alarms]
    if left_out > 0:
        told.append(f"{left_out} further results are left out: readers take {MOST_RESULTS} at most")
    if told:
        invocation["toolExecutionNotifications"] = [{"level": "error", "message": {"text": text}} for text in told]
    run = {
        "tool": {
            "driver": {
                "name": "certify",
                "semanticVersion": __version__,
                "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in RULES.items()],
            }
        },
        # One category a model and question, or code scanning would close the alerts of one gate with another's.
        "automationDetails": {"id": f"certify/{place['uri']}/{report.norm}/"},
        "invocations": [invocation],
        "artifacts": [{"location": place, "hashes": {"sha-256": report.model_sha256}}],
        "results": results[:MOST_RESULTS],
    }
    content = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return (json.dumps(content, allow_nan=False) + "\n").encode()


def _gate(report: Report, decision: Decision, place: Place) -> Iterator[dict[str, Any]]:
    for f in decision.findings:
        if f.ruling is not Ruling.MET:
            level = "error" if f.ruling is Ruling.NOT_MET else "warning"
            made = _result("gate", level, f"{f.condition}: {f.sentence}", place)
            yield made | _same(report, "gate", f"{f.condition} {f.eps.key}", place)


def _samples(report: Report, decision: Decision, place: Place) -> Iterator[dict[str, Any]]:
    baseline = decision.gate.baseline
    for result in report.results:
        rule = _rule(result)
        if rule is None:
            continue
        before = None if baseline is None else baseline.verdicts[result.eps.key].get(result.id)
        regressed = before is Verdict.VERIFIED and result.outcome.verdict is Verdict.FALSIFIED
        level = "error" if regressed else "warning" if rule in ("falsified", "error") else "note"
        since = "; the baseline certified it" if before is Verdict.VERIFIED else ""
        reason = f": {result.outcome.reason}" if result.outcome.reason else ""
        text = (
            f"Sample {result.id} (label {result.label}) is {rule} at {report.norm} eps {result.eps}{reason}{since}. "
            f"Again: {again(report, result.eps, [result.id])}"
        )
        made = _result(rule, level, text, place) | _same(report, rule, f"{result.id} {result.eps.key}", place)
        if baseline is not None:
            made["baselineState"] = "unchanged" if before is result.outcome.verdict else "new"
        yield made


def _rule(result: SampleResult) -> str | None:
    verdict = result.outcome.verdict
    if verdict is Verdict.FALSIFIED:
        return "misclassified" if result.outcome.stage == "clean" else "falsified"
    return {Verdict.UNKNOWN: "unknown", Verdict.ERROR: "error"}.get(verdict)


def _result(rule: str, level: str, text: str, place: Place) -> dict[str, Any]:
    return {
        "ruleId": rule,
        "ruleIndex": _RULES.index(rule),
        "level": level,
        "message": {"text": text},
        # A model has no lines, but code scanning shows no result without one.
        "locations": [{"physicalLocation": {"artifactLocation": place, "region": {"startLine": 1}}}],
    }


def _same(report: Report, rule: str, what: str, place: Place) -> dict[str, Any]:
    """`what` tells results of a rule apart, so that the next run's is known as the same."""
    same = "\n".join((place["uri"], report.data_sha256, report.norm, rule, what))
    return {"partialFingerprints": {"certify/v1": hashlib.sha256(same.encode()).hexdigest()}}


def _place(model: str) -> Place:
    """The model's address: relative to the working directory where it lies below, or as a file's."""
    path, here = Path(model), Path.cwd()
    whole = path if path.is_absolute() else here / path
    if whole.is_relative_to(here) and ".." not in whole.parts:
        return {"uri": quote(whole.relative_to(here).as_posix())}
    return {"uri": whole.resolve().as_uri()}
