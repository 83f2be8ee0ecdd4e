"""`certify vnnlib`: VNN-COMP's form, and an answer before the limit whatever happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

import certify.cli.vnnlib_command
from certify.cli.main import cli
from certify.verdict import Outcome, Verdict

TESTS = Path(__file__).resolve().parents[1]
BOX = "\n".join(
    [f"(declare-const X_{i} Real)" for i in range(4)]
    + [f"(declare-const Y_{i} Real)" for i in range(3)]
    + [f"(assert (>= X_{i} 0.4))\n(assert (<= X_{i} 0.6))" for i in range(4)]
)


@pytest.fixture(autouse=True)
def young(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts from the start of the process, which is the test run's here."""
    monkeypatch.setattr(certify.cli.vnnlib_command, "process_age", lambda: 0.0)


@pytest.fixture
def specs(linear: Path) -> Path:
    """safe.vnnlib can never be violated, unsafe.vnnlib by every point."""
    (linear / "safe.vnnlib").write_text(BOX + "\n(assert (>= Y_0 1000))\n")
    (linear / "unsafe.vnnlib").write_text(BOX + "\n(assert (<= Y_0 1000))\n")
    return linear


def call(folder: Path, spec: str, *arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["vnnlib", str(folder / "net.onnx"), str(folder / spec), *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def test_unsat_and_sat_in_the_form_of_the_competition(specs: Path) -> None:
    """With the real pipeline."""
    file = specs / "result.txt"
    result = call(specs, "safe.vnnlib", "--timeout", 30, "--result-file", file)
    assert (result.exit_code, result.stdout, file.read_text()) == (0, "unsat\n", "unsat\n")
    result = call(specs, "unsafe.vnnlib", "--timeout", 30, "--result-file", file)
    assert (result.exit_code, result.stdout) == (0, "sat\n")
    first, witness = file.read_text().split("\n", 1)
    assert first == "sat"
    values = dict(re.findall(r"\((\w_\d) ([-+.\de]+)\)", witness))
    assert sorted(values) == ["X_0", "X_1", "X_2", "X_3", "Y_0", "Y_1", "Y_2"]
    assert all(0.4 <= float(values[f"X_{i}"]) <= 0.6 for i in range(4))


def test_the_import_is_checked_where_the_property_looks(specs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: probes came from [0, 1] wherever the property's boxes lay."""
    from certify.frontends import onnx_import

    seen: list[tuple[object, object]] = []

    def check(graph: object, runtime: object, input_range: tuple[object, object]) -> bool:
        seen.append(input_range)
        return True

    monkeypatch.setattr(onnx_import, "check_import", check)
    first = BOX.replace("0.4", "-7.0").replace("0.6", "-6.0")
    (specs / "far.vnnlib").write_text(first.replace("(assert (<= X_2 -6.0))", "(assert (<= X_2 9.0))"))
    text = (specs / "far.vnnlib").read_text() + "\n(assert (or (and (>= X_0 -6.5) (>= Y_0 1000)) (<= Y_0 -1000)))\n"
    (specs / "far.vnnlib").write_text(text)
    assert call(specs, "far.vnnlib").stdout == "unsat\n"
    ((lower, upper),) = seen
    assert list(lower) == [-7.0] * 4
    assert list(upper) == [-6.0, -6.0, 9.0, -6.0]


def answered(exact: ModuleType, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    monkeypatch.setattr(exact, "decide", lambda *arguments, **named: [outcome])


def test_unknown_exits_with_4_and_its_reason(specs: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(exact, monkeypatch, Outcome(Verdict.UNKNOWN, "CROWN", "open after CROWN"))
    result = call(specs, "safe.vnnlib", "--result-file", specs / "r")
    assert (result.exit_code, result.stdout, result.stderr) == (4, "unknown\n", "open after CROWN\n")
    assert (specs / "r").read_text() == "unknown\n"


def test_no_certificate_of_an_earlier_run_is_left(specs: Path) -> None:
    file = specs / "c.npz"
    assert call(specs, "safe.vnnlib", "--timeout", 30, "--certificate", file).stdout == "unsat\n"
    assert file.is_file()
    assert call(specs, "unsafe.vnnlib", "--timeout", 30, "--certificate", file).stdout == "sat\n"
    assert not file.exists()
    refused = call(specs, "safe.vnnlib", "--certificate", specs)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "is a folder" in refused.stderr


@pytest.mark.parametrize(
    ("checked", "told"),
    [
        ("real", ""),
        ("float32", ""),
        ("", "this unsat is unchecked"),
        ("solver", "this unsat is on a MIP solver's word"),
    ],
)
def test_an_unsat_without_an_accepted_certificate_says_so(
    specs: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch, checked: str, told: str
) -> None:
    answered(exact, monkeypatch, Outcome(Verdict.VERIFIED, "CROWN", lower=1.0, checked=checked))
    result = call(specs, "safe.vnnlib")
    assert (result.exit_code, result.stdout) == (0, "unsat\n")
    assert result.stderr.startswith(told)
    assert bool(result.stderr) is bool(told)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Verdict.FALSIFIED, "attack", upper=-1.0),
        Outcome(Verdict.VERIFIED, "CROWN", lower=float("nan")),
        Outcome(Verdict.ERROR, "CROWN", "broken"),
    ],
)
def test_no_verdict_without_grounds(
    specs: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    answered(exact, monkeypatch, outcome)
    assert call(specs, "safe.vnnlib").stdout == "unknown\n"


def test_a_contradiction_exits_with_3_and_gives_no_verdict(
    specs: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(exact, monkeypatch, Outcome(Verdict.VERIFIED, "CROWN", lower=1.0, upper=-1.0))
    result = call(specs, "safe.vnnlib", "--result-file", specs / "r")
    assert result.exit_code == 3
    assert "soundness alarm" in result.stderr
    assert result.stdout == ""
    assert not (specs / "r").exists()


@pytest.mark.parametrize(
    ("net", "spec", "options", "message"),
    [
        ("net.onnx", "no.vnnlib", (), "no.vnnlib"),
        ("no.onnx", "safe.vnnlib", (), "no such file"),
        ("data.npz", "safe.vnnlib", (), "not an ONNX file"),
        ("net.onnx", "data.npz", (), "data.npz"),
        ("net.onnx", "safe.vnnlib", ("--timeout", "-1"), "--timeout"),
        ("net.onnx", "safe.vnnlib", ("--result-file", "{}"), "is a folder"),
        ("net.onnx", "safe.vnnlib", ("--result-file", "{}/net.onnx/r"), "cannot be written"),
    ],
)
def test_bad_input_leaves_no_result(specs: Path, net: str, spec: str, options: tuple[str, ...], message: str) -> None:
    file = ("--result-file", str(specs / "r")) if "--result-file" not in options else ()
    arguments = [str(specs / net), str(specs / spec), *(o.format(specs) for o in options), *file]
    result = CliRunner().invoke(cli, ["vnnlib", *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert not (specs / "r").exists()


STUCK = """
import sys, time, types
fake = types.ModuleType("certify.pipeline")
def decide(*arguments, **named):
    {stage}
fake.decide = decide
sys.modules["certify.pipeline"] = fake
from certify.cli.main import main
main()
"""


@pytest.mark.parametrize("stage", ["time.sleep(60)", "while True: pass"])
def test_a_stage_that_overruns_is_cut_off_in_time(specs: Path, stage: str) -> None:
    file = specs / "r"
    command = [sys.executable, "-c", STUCK.format(stage=stage), "vnnlib", specs / "net.onnx", specs / "safe.vnnlib"]
    begin = time.monotonic()
    process = subprocess.Popen(
        [*map(str, command), "--timeout", "3", "--result-file", str(file)], stdout=subprocess.PIPE, text=True
    )
    while not (file.exists() and file.read_text() == "timeout\n"):
        assert time.monotonic() - begin < 10
        time.sleep(0.01)
    assert time.monotonic() - begin <= 3.0
    stdout, _ = process.communicate(timeout=10)
    assert stdout == "timeout\n"
    assert process.returncode == 4
    assert not [n for n in os.listdir(specs) if n.startswith(".")], "no temporary file is left"


@pytest.mark.skipif(sys.platform == "win32", reason="the C library is called by name")
def test_a_stage_that_holds_the_interpreter_is_ended_in_time(specs: Path) -> None:
    """No thread of Python can run then, as while a large library is loaded."""
    file = specs / "r"
    stage = "import ctypes; ctypes.PyDLL(None).sleep(60)"
    command = [sys.executable, "-c", STUCK.format(stage=stage), "vnnlib", specs / "net.onnx", specs / "safe.vnnlib"]
    begin = time.monotonic()
    done = subprocess.run([*map(str, command), "--timeout", "3", "--result-file", str(file)], check=False)
    assert time.monotonic() - begin <= 3.0
    assert done.returncode == 1
    assert file.read_text() == "unknown\n"


def test_the_result_file_is_true_from_the_first_moment(specs: Path) -> None:
    file = specs / "r"
    command = [sys.executable, "-c", STUCK.format(stage="time.sleep(60)"), "vnnlib"]
    arguments = [specs / "net.onnx", specs / "safe.vnnlib", "--timeout", 50, "--result-file", file]
    process = subprocess.Popen([*command, *map(str, arguments)])
    begin = time.monotonic()
    while not file.exists():
        assert time.monotonic() - begin < 20
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert file.read_text() == "unknown\n"


def test_process_age_counts_start_up() -> None:
    script = "import time; time.sleep(0.5); from certify.cli.vnnlib_command import process_age; print(process_age())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) >= 0
    if sys.platform == "linux":
        assert 0.4 < float(done.stdout) < 20
