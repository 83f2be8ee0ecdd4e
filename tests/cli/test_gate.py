"""`certify gate`: outcomes and exit codes on a linear network of known robustness, baselines, files, bad input."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from certify.cli.main import cli
from certify.verdict import Outcome, Verdict

EPS = "0.1"


@pytest.fixture(autouse=True)
def _away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert "Traceback" not in result.output, result.output
    assert "internal error" not in result.output, result.output
    return result


def gate(*arguments: object, eps: str = EPS) -> Result:
    return call("gate", "net.onnx", "--data", "data.npz", "--eps", eps, *arguments)


def counts(exact: ModuleType) -> dict[str, int]:
    """Of the whole run: the stand-in decides exactly, so robust accuracy is certified / 24."""
    result = call("run", "net.onnx", "--data", "data.npz", "--eps", EPS, "--out", "whole", "--json")
    found: dict[str, int] = json.loads(result.stdout)["brackets"][0]["counts"]
    assert found["unknown"] == 0
    assert found["misclassified"] == 2
    assert found["falsified"] > 2
    assert found["certified"] > 2
    return found


def worsen(folder: Path) -> None:
    """The last class gets a head start: some samples of other classes fall."""
    model = onnx.load(folder / "net.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "b":
            value = numpy_helper.to_array(tensor) + np.array([0, 0, 0.4], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, "b"))
    onnx.save(model, folder / "net.onnx")


def verdicts(out: str) -> dict[int, str]:
    with sqlite3.connect(Path(out) / "results.sqlite") as db:
        rows = db.execute("SELECT s.id, r.verdict FROM results r JOIN samples s USING (position)").fetchall()
    return dict(rows)


def hide(exact: ModuleType, verdict: Verdict) -> None:
    """What would get this verdict stays unknown."""

    def spoil(properties: object, outcomes: list[Outcome]) -> list[Outcome]:
        return [Outcome(Verdict.UNKNOWN, "hidden") if o.verdict is verdict else o for o in outcomes]

    exact.hooks.spoil = spoil


def test_met_not_met_and_undecided(linear: Path, exact: ModuleType) -> None:
    certified = counts(exact)["certified"]
    met = gate("--min-certified", f"{certified}/24")
    assert met.exit_code == 0, met.output
    assert met.stdout.splitlines()[-1] == "gate: met"
    lost = gate("--min-certified", f"{certified + 1}/24")
    assert lost.exit_code == 1
    assert "gate: not met" in lost.stdout
    hide(exact, Verdict.VERIFIED)
    open_ = gate("--min-certified", f"{certified}/24", "--all-samples")
    assert open_.exit_code == 4
    assert open_.stdout.splitlines()[-1] == "gate: undecided"
    assert f"certified 0 of 24 (0.00%), not falsified {certified} of 24" in open_.stdout


def test_limits_on_counts(linear: Path, exact: ModuleType) -> None:
    found = counts(exact)
    fallen = found["falsified"] + found["misclassified"]
    assert gate("--max-falsified", f"{fallen}/24").exit_code == 0
    assert gate("--max-falsified", f"{fallen - 1}/24").exit_code == 1
    assert gate("--max-unknown", "0").exit_code == 0
    hide(exact, Verdict.FALSIFIED)
    assert gate("--max-unknown", f"{found['falsified']}/24").exit_code == 0
    assert gate("--max-unknown", f"{found['falsified'] - 1}/24").exit_code == 1


def test_it_stops_once_the_outcome_is_settled_and_says_so(linear: Path, exact: ModuleType) -> None:
    exact.hooks.batch = 1
    result = gate("--min-certified", "2/24", "--json", "--out", "early")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["brackets"][0]["counts"]["certified"] == 2
    assert told["gate"]["outcome"] == "met"
    assert told["gate"]["settled"]
    assert told["gate"]["left"] == told["brackets"][0]["counts"]["pending"] > 0
    assert json.loads((Path("early") / "gate.json").read_text()) == told["gate"]
    plain = gate("--min-certified", "2/24", "--quiet")
    assert "--all-samples decides them, too" in plain.stdout
    assert "budget" not in plain.output
    whole = json.loads(gate("--min-certified", "2/24", "--json", "--all-samples").stdout)
    assert whole["gate"]["left"] == 0
    assert whole["brackets"][0]["counts"]["certified"] > 2
    going_on = gate("--min-certified", "2/24", "--json", "--all-samples", "--out", "early", "--resume")
    assert json.loads(going_on.stdout)["brackets"] == whole["brackets"], "what was settled early can be gone on with"


def test_the_same_options_of_run_and_no_gate_without_any(linear: Path, exact: ModuleType) -> None:
    assert call("run", "net.onnx", "--data", "data.npz", "--eps", EPS, "--min-certified", "1").exit_code == 1
    assert call("run", "net.onnx", "--data", "data.npz", "--eps", EPS, "--out", "plain").exit_code == 0
    assert not (Path("plain") / "gate.json").exists()


def test_several_eps_must_all_hold(linear: Path, exact: ModuleType) -> None:
    certified = counts(exact)["certified"]
    assert gate("--min-certified", f"{certified}/24", eps="0.01,0.1").exit_code == 0
    result = gate("--min-certified", f"{certified + 1}/24", "--all-samples", eps="0.01,0.1")
    assert result.exit_code == 1
    assert "eps 0.01: certified" in result.stdout


def test_a_worsened_model_fails_and_the_samples_that_regressed_are_named(linear: Path, exact: ModuleType) -> None:
    counts(exact)
    before = verdicts("whole")
    same = gate("--baseline", "whole", "--all-samples")
    assert same.exit_code == 0
    worsen(linear)
    files = ("--junit", "o/j.xml", "--sarif", "o/s.json", "--summary", "o/s.md", "--badge", "o/b.json")
    result = gate("--baseline", "whole", "--all-samples", "--out", "worse", *files)
    assert result.exit_code == 1
    now = verdicts("worse")
    regressed = [i for i in sorted(now) if (before[i], now[i]) == ("verified", "falsified")]
    fixed = [i for i in sorted(now) if (before[i], now[i]) == ("falsified", "verified")]
    assert regressed
    (change,) = json.loads((Path("worse") / "gate.json").read_text())["changes"]
    assert change["regressed"] == regressed
    assert change["fixed"] == fixed
    from certify.options import format_ids

    assert f"regressed, {len(regressed)} of 24 compared: {format_ids(regressed)}\n" in result.stdout
    assert f"--eps 0.1 --ids {format_ids(regressed)}" in result.stdout
    assert format_ids(regressed) in Path("o/s.md").read_text()
    results = json.loads(Path("o/s.json").read_text())["runs"][0]["results"]
    loud = [r["message"]["text"] for r in results if r["level"] == "error" and r["ruleId"] != "gate"]
    assert len(loud) == len(regressed)
    assert {r["baselineState"] for r in results if r["ruleId"] != "gate"} == {"new", "unchanged"}
    assert gate("--baseline", "whole", "--max-regressed", f"{len(regressed)}/24").exit_code == 0
    assert gate("--baseline", "whole", "--max-regressed", f"{len(regressed) - 1}/24").exit_code == 1


def test_lost_proofs_are_newly_unknown_and_no_regression(linear: Path, exact: ModuleType) -> None:
    certified = counts(exact)["certified"]
    hide(exact, Verdict.VERIFIED)
    result = gate("--baseline", "whole", "--all-samples", "--out", "now")
    assert result.exit_code == 0
    assert f"newly unknown, {certified} of 24" in result.stdout
    (change,) = json.loads((Path("now") / "gate.json").read_text())["changes"]
    assert len(change["newly unknown"]) == certified
    exact.hooks.spoil = None
    back = call("run", "net.onnx", "--data", "data.npz", "--eps", EPS, "--baseline", "now", "--all-samples")
    assert f"newly certified, {certified} of 24" in back.stdout


def test_a_baseline_of_fewer_samples_is_compared_where_it_has_any(linear: Path, exact: ModuleType) -> None:
    call("run", "net.onnx", "--data", "data.npz", "--eps", EPS, "--samples", 8, "--out", "few")
    worsen(linear)
    result = gate("--baseline", "few", "--all-samples")
    assert "of 8 compared" in result.stdout


def test_junit(linear: Path, exact: ModuleType) -> None:
    found = counts(exact)
    hide(exact, Verdict.VERIFIED)
    for strict in (False, True):
        gate("--min-certified", "0.5", "--all-samples", "--junit", "j.xml", *(["--strict"] if strict else []))
        root = ElementTree.parse("j.xml").getroot()
        conditions, samples = root
        fallen = found["falsified"] + found["misclassified"]
        assert samples.get("tests") == "24"
        assert int(samples.get("failures", 0)) == fallen + (found["certified"] if strict else 0)
        assert int(samples.get("skipped", 0)) == (0 if strict else found["certified"])
        assert int(root.get("tests", 0)) == 25
        assert len(conditions) == 1
        failure = next(iter(samples.iter("failure")))
        assert "again: certify run net.onnx --data data.npz --eps 0.1 --ids" in str(failure.text)


def test_an_alarm_meets_no_gate(linear: Path, exact: ModuleType) -> None:
    def spoil(properties: object, outcomes: list[Outcome]) -> list[Outcome]:
        return [Outcome(Verdict.VERIFIED, "wrong", lower=1.0, upper=-1.0) for _ in outcomes]

    exact.hooks.spoil = spoil
    result = gate("--max-falsified", "1", "--all-samples", "--badge", "b.json", "--out", "alarmed")
    assert result.exit_code == 3
    assert json.loads(Path("b.json").read_text())["isError"]
    assert json.loads((Path("alarmed") / "gate.json").read_text())["outcome"] == "not met"
    exact.hooks.spoil = None
    refused = gate("--baseline", "alarmed")
    assert refused.exit_code == 2
    assert "soundness alarm" in refused.output


def test_a_budget_that_ends_first_leaves_the_gate_undecided(linear: Path, exact: ModuleType) -> None:
    result = gate("--min-certified", "0.3", "--budget", "0.000001", "--out", "cut")
    assert result.exit_code == 4
    assert "The budget ended first" in result.output
    assert gate("--min-certified", "0.3", "--out", "cut", "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a gate needs a condition"),
        (("--min-certified", "60"), "--min-certified 60: give a share of the samples from 0 to 1"),
        (("--max-unknown", "x"), "--max-unknown x"),
        (("--max-regressed", "0"), "--max-regressed needs --baseline"),
        (("--min-certified", "0.5", "--max-regressed", "0"), "--max-regressed needs --baseline"),
        (("--min-certified", "0.5", "--no-check"), "leave --no-check out"),
        (("--baseline", "nowhere"), "nowhere: holds no run"),
        (("--min-certified", "0.5", "--junit", "."), "is a folder"),
        (("--min-certified", "0.5", "--junit", "a", "--sarif", "./a"), "is the file of --junit, too"),
    ],
)
def test_bad_options(linear: Path, exact: ModuleType, arguments: tuple[str, ...], message: str) -> None:
    result = gate(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not Path("runs").exists()


def test_outputs_without_a_gate_are_refused(linear: Path, exact: ModuleType) -> None:
    result = call("run", "net.onnx", "--data", "data.npz", "--eps", EPS, "--junit", "j.xml")
    assert result.exit_code == 2
    assert "--junit tells of a gate" in result.output


def damage(what: str, data: Path) -> None:
    base = Path("whole/results.sqlite")
    if what == "no database":
        base.write_bytes(b"this is no database" * 100)
    elif what == "empty":
        base.write_bytes(b"")
    elif what == "half":
        base.write_bytes(base.read_bytes()[: base.stat().st_size // 2])
    elif what == "labels":
        stored = np.load(data)
        np.savez(data, x=stored["x"], y=(stored["y"] + 1) % 3)
    elif what == "inputs":
        stored = np.load(data)
        np.savez(data, x=stored["x"] * 0.5, y=stored["y"])
    else:
        with sqlite3.connect(base) as db:
            db.execute(what)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no database", "cannot be written or read: file is not a database"),
        ("empty", "cannot be written or read: no such table"),
        ("half", "cannot be written or read"),
        ("UPDATE meta SET value = '1' WHERE key = 'schema'", "result format 1"),
        ("UPDATE meta SET value = '{}' WHERE key = 'fingerprint'", "is damaged"),
        ("UPDATE meta SET value = '[' WHERE key = 'about'", "is damaged"),
        ("UPDATE results SET verdict = 'fine'", "is damaged"),
        ("UPDATE samples SET id = id + 1000", "has none of the samples"),
        ("labels", "its data's sha256 is"),
        ("inputs", "its data's sha256 is"),
    ],
)
def test_bad_baselines(linear: Path, exact: ModuleType, what: str, message: str) -> None:
    counts(exact)
    damage(what, linear / "data.npz")
    result = gate("--baseline", "whole")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--eps", "0.2"), "has eps 1/10, not 0.2"),
        (("--eps", EPS, "--norm", "l2"), "its norm is linf, this run's is l2"),
        (("--eps", EPS, "--input-range", "0,2"), "its input range is (0.0, 1.0)"),
        (("--eps", EPS, "--out", "whole", "--resume"), "is the folder of this run"),
    ],
)
def test_baselines_that_answer_another_question(
    linear: Path, exact: ModuleType, arguments: tuple[str, ...], message: str
) -> None:
    counts(exact)
    result = call("gate", "net.onnx", "--data", "data.npz", "--baseline", "whole", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_killed_in_the_middle_it_goes_on_to_the_same_outcome(linear: Path, exact: ModuleType) -> None:
    tests = Path(__file__).resolve().parents[1]
    program = (
        f"import sys; sys.path.insert(0, {str(tests)!r}); import exact_pipeline; "
        "sys.modules['certify.pipeline'] = exact_pipeline; from certify.cli.main import main; main()"
    )
    certified = counts(exact)["certified"]
    words = ["net.onnx", "--data", "data.npz", "--eps", EPS, "--min-certified", f"{certified}/24", "--junit", "j.xml"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "gate", *words, "--out", "out"],
        env=os.environ | {"EXACT_DELAY": "0.1"},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not (Path("out/results.sqlite").exists() and len(seen("out")) > 6):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not Path("j.xml").exists()
    assert not Path("out/gate.json").exists()
    cut = seen("out")
    assert 6 < len(cut) < 24
    halfway = gate("--baseline", "out", "--all-samples")
    assert halfway.exit_code == 0, "a run that was killed serves as a baseline with what it committed"
    result = call("gate", *words, "--out", "out", "--resume")
    assert result.exit_code == 0, result.output
    ElementTree.parse("j.xml")
    assert cut.items() <= verdicts("out").items()


def seen(out: str) -> dict[int, str]:
    try:
        return verdicts(out)
    except sqlite3.OperationalError:
        return {}


def test_a_disk_that_fills_up_leaves_whole_files_and_an_outcome_that_can_be_asked_again(
    linear: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import certify.cli.gating
    import certify.disk

    original = certify.cli.gating.write_atomically

    def full(path: Path, content: bytes) -> None:
        def some(temporary: Path) -> None:
            temporary.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        if path.suffix == ".sarif":
            certify.disk.write_atomically_with(path, some)
        original(path, content)

    Path("o").mkdir()
    Path("o/g.sarif").write_text("before")
    files = ("--junit", "o/j.xml", "--sarif", "o/g.sarif", "--summary", "o/s.md")
    with monkeypatch.context() as context:
        context.setattr(certify.cli.gating, "write_atomically", full)
        result = gate("--min-certified", "0.1", "--out", "out", *files)
    assert result.exit_code == 2, "met, but what was asked for could not be written"
    assert "o/g.sarif cannot be written or read: No space left on device" in result.output
    assert sorted(p.name for p in Path("o").iterdir()) == ["g.sarif", "j.xml"]
    assert Path("o/g.sarif").read_text() == "before"
    ElementTree.parse("o/j.xml")
    exact.hooks.calls.clear()
    assert gate("--min-certified", "0.1", "--out", "out", "--resume", *files).exit_code == 0
    assert exact.hooks.calls == []
    json.loads(Path("o/g.sarif").read_text())
