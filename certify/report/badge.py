"""A badge as shields.io reads it from an address: certified accuracy of these samples, never rounded up."""

from __future__ import annotations

import json

from certify.gate import Ruling
from certify.gate_decision import Decision
from certify.report.result import Report

_COLORS = {Ruling.MET: "brightgreen", Ruling.NOT_MET: "red", Ruling.UNDECIDED: "yellow"}


def badge(report: Report, decision: Decision) -> bytes:
    """The whole file (https://shields.io/badges/endpoint-badge)."""
    parts = []
    for eps, b in report.brackets.items():
        tenths = 1000 * b.certified // b.n
        parts.append(f"≥ {tenths // 10}.{tenths % 10}% at {report.norm} {eps}")
    content = {
        "schemaVersion": 1,
        "label": "certified robust",
        "message": "soundness alarm" if report.alarms else ", ".join(parts),
        "color": _COLORS[decision.ruling],
        "isError": bool(report.alarms),
    }
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
