"""The files of a gate, on reports made by hand: forms that readers take, sizes, and text that could break them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from certify.gate import Conditions, Ruling, parse_share
from certify.gate_baseline import Baseline, Change
from certify.gate_decision import Decision, Gate, decide
from certify.options import format_ids, parse_eps
from certify.report.again import again, named
from certify.report.badge import badge
from certify.report.junit import junit
from certify.report.result import Report
from certify.report.sarif import MOST_RESULTS, sarif
from certify.report.summary import MOST_BYTES, summary
from certify.store import SampleResult
from certify.verdict import Outcome, Verdict, Witness

(EPS,) = parse_eps("2/255")
WITNESS = Witness(np.zeros(2), np.zeros(2))
KINDS = {
    "certified": Outcome(Verdict.VERIFIED, "IBP", lower=0.5, checked="real", seconds={"IBP": 0.25}),
    "falsified": Outcome(Verdict.FALSIFIED, "attack", upper=-0.5, witness=WITNESS),
    "misclassified": Outcome(Verdict.FALSIFIED, "clean", upper=-0.5, witness=WITNESS),
    "unknown": Outcome(Verdict.UNKNOWN, "BaB", "time limit"),
    "error": Outcome(Verdict.ERROR, "decide", "MemoryError"),
}
NASTY = 'a | b `c` <img src=x onerror=1> & "d" \x00\x1b[31m \ud800 ]]> \n\n# title *e* _f_'


def made(*kinds: str, model: str = "models/net.onnx", reason: str | None = None, pending: int = 0) -> Report:
    """Samples 0, 1, ... of these kinds, then some that were not run."""
    results = []
    for number, kind in enumerate(kinds):
        outcome = KINDS[kind]
        if reason is not None:
            outcome = Outcome(outcome.verdict, outcome.stage, reason, witness=outcome.witness)
        results.append(SampleResult(number, 3, 3, EPS, outcome, "witnesses/x.npz" if outcome.witness else None))
    n = len(kinds) + pending
    return Report(
        model=model,
        model_sha256="ab" * 32,
        data="data.npz",
        data_sha256="cd" * 32,
        norm="linf",
        radii=(EPS,),
        input_range=(0.0, 1.0),
        n=n,
        results=tuple(results),
        complete=not pending,
        out=Path("runs/x"),
        options={"ids": format_ids(range(n))},
        command={"--data": "data.npz", "--timeout": 5.0, "--junit": "j.xml"},
    )


def decided(report: Report, baseline: dict[int, Verdict] | None = None, **limits: str) -> Decision:
    asked = Conditions(**{name: parse_share(text, option=name) for name, text in limits.items()})
    old = None
    if baseline is not None:
        old = Baseline(Path("old"), "linf", (0.0, 1.0), "", dict.fromkeys(baseline, 3), {EPS.key: baseline})
    return decide(Gate(asked, old), report)


ALL = ("certified", "falsified", "misclassified", "unknown", "error")


def test_sarif_has_the_form_of_2_1_0() -> None:
    """The schema's demands on what is used of it: names, required ones, and the values of enumerations."""
    report = made(*ALL, model="models/a net.onnx")
    content = json.loads(sarif(report, decided(report, {0: Verdict.VERIFIED, 1: Verdict.VERIFIED}, min_certified="1")))
    assert content.keys() == {"$schema", "version", "runs"}
    assert content["version"] == "2.1.0"
    (run,) = content["runs"]
    assert run.keys() == {"tool", "automationDetails", "invocations", "artifacts", "results"}
    driver = run["tool"]["driver"]
    assert driver.keys() == {"name", "semanticVersion", "rules"}
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", driver["semanticVersion"])
    names = [rule["id"] for rule in driver["rules"]]
    assert len(set(names)) == len(names)
    assert all(rule.keys() == {"id", "shortDescription"} for rule in driver["rules"])
    assert run["invocations"] == [{"executionSuccessful": True}]
    assert run["artifacts"][0]["hashes"] == {"sha-256": "ab" * 32}
    assert len(run["results"]) == 5
    for result in run["results"]:
        assert {"ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"} <= result.keys()
        assert result.keys() - {"baselineState"} <= result.keys()
        assert names[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("note", "warning", "error")
        assert result.get("baselineState", "new") in ("new", "unchanged", "updated", "absent")
        assert result["message"].keys() == {"text"}
        ((location,),) = (result["locations"],)
        physical = location["physicalLocation"]
        assert physical["artifactLocation"] == {"uri": "models/a%20net.onnx"}
        assert physical["region"]["startLine"] >= 1
    assert len({r["partialFingerprints"]["certify/v1"] for r in run["results"]}) == 5
    by_rule = {r["ruleId"]: r["level"] for r in run["results"]}
    assert by_rule == {
        "gate": "error",
        "falsified": "error",
        "error": "warning",
        "misclassified": "note",
        "unknown": "note",
    }, "sample 1 regressed"


def test_sarif_says_the_same_of_the_same_samples_in_the_next_run() -> None:
    def prints(report: Report) -> set[str]:
        results = json.loads(sarif(report, decided(report)))["runs"][0]["results"]
        return {r["partialFingerprints"]["certify/v1"] for r in results}

    assert prints(made("falsified", "certified", "unknown")) & prints(made("falsified", "unknown", "certified"))
    assert prints(made("falsified")) == prints(made("falsified", "certified"))


def test_sarif_of_many_samples_stays_within_what_readers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_RESULTS <= 25_000
    monkeypatch.setattr("certify.report.sarif.MOST_RESULTS", 100)
    report = made(*["unknown"] * 100, "falsified")
    (run,) = json.loads(sarif(report, decided(report)))["runs"]
    assert len(run["results"]) == 100
    assert run["results"][0]["ruleId"] == "falsified", "the grave ones first"
    assert "1 further results are left out" in run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]


@pytest.mark.parametrize("strict", [False, True])
def test_junit_counts_are_those_of_its_cases(strict: bool) -> None:
    report = made(*ALL, pending=2)
    root = ElementTree.fromstring(junit(report, decided(report, min_certified="1/7", max_unknown="0"), strict=strict))
    gate, samples = root
    assert [(c.get("name"), [e.tag for e in c]) for c in gate] == [
        ("min-certified 14.2857% at eps 2/255", []),
        ("max-unknown 0% at eps 2/255", ["failure"]),
    ]
    unknown = "failure" if strict else "skipped"
    tags = [[e.tag for e in case] for case in samples]
    assert tags == [[], ["failure"], ["failure"], [unknown], ["error"], ["skipped"], ["skipped"]]
    for suite in root:
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(name, -1)) == len(list(suite.iter(tag)))
        assert int(suite.get("tests", -1)) == len(list(suite))
    assert root.get("tests") == "9"
    assert samples[0].get("time") == "0.250"
    assert samples[1][0].get("type") == "falsified"
    assert samples[2][0].get("type") == "misclassified"
    assert "witness: runs/x/witnesses/x.npz" in str(samples[1][0].text)


def test_text_that_could_break_a_file_does_not() -> None:
    report = made(*ALL, model="a|b`<x>.onnx", reason=NASTY)
    decision = decided(report, min_certified="1")
    root = ElementTree.fromstring(junit(report, decision))
    assert "\x00" not in ElementTree.tostring(root, encoding="unicode")
    json.loads(sarif(report, decision))
    text = summary(report, decision).decode()
    assert "<img" not in text
    assert "\n# title" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count(" | ") for line in rows if line.startswith(("| 1 ", "| 3 "))} == {4}
    assert "certify run 'a|b`<x>.onnx' --data data.npz --timeout 5.0 --eps 2/255 --ids 1" in text


def test_the_summary_of_many_samples_and_long_reasons_stays_small() -> None:
    report = made(*["unknown", "falsified", "error"] * 3000, reason="é" * 5000)
    content = summary(report, decided(report, dict.fromkeys(range(9000), Verdict.VERIFIED)))
    assert len(content) < 100_000
    assert b"and 2950 more" in content


def test_a_cut_summary_closes_what_it_opened() -> None:
    report = made(*["unknown"] * 50, *["falsified"] * 50, reason="é" * 5000)
    many = tuple(replace(r, eps=eps) for eps in parse_eps([f"{i}/255" for i in range(40)]) for r in report.results)
    report = replace(report, radii=parse_eps([f"{i}/255" for i in range(40)]), results=many)
    content = summary(report, decided(report))
    assert len(content) <= MOST_BYTES < 1 << 20
    text = content.decode()
    assert text.endswith("folder.*\n")
    assert text.count("<details>") == text.count("</details>") > 10
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize(
    ("certified", "n", "text"), [(1999, 2000, "99.9%"), (2, 3, "66.6%"), (3, 3, "100.0%"), (0, 7, "0.0%")]
)
def test_a_badge_never_rounds_up(certified: int, n: int, text: str) -> None:
    report = made(*["certified"] * certified, *["falsified"] * (n - certified))
    content = json.loads(badge(report, decided(report, min_certified="0")))
    assert content == {
        "schemaVersion": 1,
        "label": "certified robust",
        "message": f"≥ {text} at linf 2/255",
        "color": "brightgreen",
        "isError": False,
    }


def test_a_decision_about_a_baseline() -> None:
    before = dict(enumerate([Verdict.VERIFIED] * 4 + [Verdict.UNKNOWN] * 2 + [Verdict.FALSIFIED]))
    report = made("certified", "falsified", "misclassified", "unknown", "certified", "error", "certified")
    decision = decided(report, before, max_regressed="1/7")
    comparison = decision.comparisons[EPS]
    assert decision.ruling is Ruling.NOT_MET
    assert {change: comparison.ids(change) for change in Change} == {
        Change.REGRESSED: (1, 2),
        Change.NEWLY_UNKNOWN: (3,),
        Change.NEWLY_FALSIFIED: (),
        Change.FIXED: (6,),
        Change.NEWLY_CERTIFIED: (4,),
    }
    assert "| 2/255 | regressed | 2 | 1-2 |" in summary(report, decision).decode()


def test_ids_and_commands() -> None:
    assert named(range(60)) == "0-49 and 10 more"
    assert named([3, 1]) == "3,1"
    report = made("falsified")
    assert again(report, EPS, [0]) == "certify run models/net.onnx --data data.npz --timeout 5.0 --eps 2/255 --ids 0"
    options: dict[str, Any] = {"norm": "l2", "mean": [0.5, 0.25], "std": None}
    python = Report(**{**vars(report), "command": {}, "data": "arrays", "options": options})
    assert again(python, EPS, [0]) == (
        "certify.run(model, (x[ids], y[ids]), eps='2/255', norm='l2', mean=[0.5, 0.25]) with ids = [0]"
    )
    file = Report(**{**vars(report), "command": {}, "options": options})
    assert again(file, EPS, [0]) == (
        "certify run models/net.onnx --data data.npz --norm l2 --mean 0.5,0.25 --eps 2/255 --ids 0"
    )
