"""The command: a line a file, the reason of every rejection, its exit codes; and the checker stands alone."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_cases import packed
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from certify.check import checker, command
from certify.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
SPEC = """(declare-const X_0 Real) (declare-const X_1 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (>= X_1 0)) (assert (<= X_1 1))
(assert (<= Y_0 Y_1))"""


def network() -> bytes:
    """y_0 = relu(x_0 + x_1) + 1, y_1 = relu(x_0 - x_1): on the unit box y_0 - y_1 >= 1."""
    tensors = {
        "w": np.array([[1, 1], [1, -1]], np.float32),
        "v": np.eye(2, dtype=np.float32),
        "b": np.array([1, 0], np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "b"], ["y"], transB=1),
    ]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2])] for n in ("x", "y")]
    initializers = [numpy_helper.from_array(v, k) for k, v in tensors.items()]
    graph = helper.make_graph(nodes, "net", ends[0], ends[1], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(proto.SerializeToString())


def stated(model: bytes, *, label: int = 0, cases: bool = False) -> bytes:
    """A certificate by CROWN that `label` wins in the unit box."""
    prop: dict[str, Any] = {"kind": "ball", "center": np.full(2, 0.5), "norm": "linf", "eps": "0.5"}
    prop |= {"low": 0.0, "high": 1.0, "label": label, "classes": 2}
    if cases:
        polytope = {"coeff": np.array([[1.0, -1.0]]), "offset": np.zeros(1)}
        prop = {
            "kind": "cases",
            "sha256": None,
            "cases": [{"lower": np.zeros(2), "upper": np.ones(2), "polytopes": [polytope]}],
        }
    steps = [
        {"do": "crown", "units": None, "places": None, "adaptive": True},
        {"do": "close", "polytopes": [0], "rows": [0], "slopes": "adaptive"},
    ]
    sha256 = hashlib.sha256(model).hexdigest()
    return packed(
        {
            "format": "certify.certificate",
            "version": 2,
            "model": {"sha256": sha256, "mean": None, "std": None, "layout": None, "softmax": "kept"},
            "property": prop,
            "units": [2],
            "cases": [{"steps": steps, "trees": []}],
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `certify run --out --certificates` keeps: two good certificates in certificates/, model.onnx above."""
    model = network()
    (tmp_path / "model.onnx").write_bytes(model)
    (tmp_path / "certificates").mkdir()
    for name in ("a", "b"):
        (tmp_path / "certificates" / f"{name}.npz").write_bytes(stated(model))
    return tmp_path


Runner = Callable[..., int]


def by_main(*arguments: object) -> int:
    return command.main([str(a) for a in arguments])


class TestRuns:
    def test_a_folder(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert by_main(folder) == 0
        first, second, summary = capsys.readouterr().out.splitlines()
        assert first.startswith("accepted")
        assert "a.npz" in first
        assert "radius 1/2" in first
        assert "b.npz" in second
        assert summary.startswith("2 of 2 accepted")

    @pytest.mark.parametrize("how", [["--exact"], ["--workers", "2"], []])
    def test_files_and_patterns_each_once(
        self, folder: Path, how: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        inside = folder / "certificates"
        assert by_main(inside / "*.npz", inside / "a.npz", inside, *how) == 0
        assert capsys.readouterr().out.count("accepted  ") == 2

    def test_json(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "certificates" / "c.npz").write_bytes(b"text")
        assert by_main(folder, "--json") == 1
        good, _, bad = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert (good["accepted"], good["reason"], good["arithmetic"], good["exact"]) == (True, None, "float32", False)
        assert good["bytes"] == len(stated(network()))
        assert good["model"] == str(folder / "model.onnx")
        assert not bad["accepted"]
        assert "not a certificate" in bad["reason"]
        assert bad["property"] is None

    def test_a_rejected_one_leaves_the_others_judged(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "certificates" / "a.npz").write_bytes(stated(network(), label=1))
        for workers in (1, 2):
            assert by_main(folder, "--workers", workers) == 1
            first, second, summary = capsys.readouterr().out.splitlines()
            assert first.startswith("rejected")
            assert "polytope 0" in first
            assert second.startswith("accepted")
            assert summary.startswith("1 of 2")

    def test_an_op_that_is_a_command_to_the_terminal_is_printed_as_text(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """ESC [2K ESC [1G would erase the line and write another verdict over it."""
        model = network().replace(b"Relu", b"\x1b[1G")
        (folder / "model.onnx").write_bytes(model)
        (folder / "certificates" / "a.npz").write_bytes(stated(model))
        assert by_main(folder / "certificates" / "a.npz") == 1
        line = capsys.readouterr().out.splitlines()[0]
        assert "?[1G" in line
        assert line.isprintable()

    def test_another_model(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = network()
        other = bytearray(model)
        other[model.index(np.float32(-1).tobytes())] ^= 1
        (folder / "other.onnx").write_bytes(other)
        assert by_main(folder / "certificates" / "a.npz", "--model", folder / "other.onnx") == 1
        line = capsys.readouterr().out.splitlines()[0]
        assert hashlib.sha256(model).hexdigest() in line
        assert hashlib.sha256(other).hexdigest() in line

    def test_gzipped_model_and_property(self, folder: Path) -> None:
        (folder / "net.onnx.gz").write_bytes(gzip.compress(network()))
        (folder / "p.vnnlib.gz").write_bytes(gzip.compress(SPEC.encode()))
        path = folder / "c.npz"
        path.write_bytes(stated(network(), cases=True))
        assert by_main(path, "--model", folder / "net.onnx.gz", "--spec", folder / "p.vnnlib.gz") == 0

    def test_a_property_that_says_more_than_the_certificate(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "p.vnnlib").write_text(SPEC.replace("(<= X_0 1)", "(<= X_0 1.5)"))
        path = folder / "c.npz"
        path.write_bytes(stated(network(), cases=True))
        assert by_main(path, "--spec", folder / "p.vnnlib") == 1
        assert "not covered" in capsys.readouterr().out
        assert by_main(folder / "certificates" / "a.npz", "--spec", folder / "p.vnnlib") == 1

    def test_a_crash_is_no_proof(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def crash(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(command, "check_many", crash)
        assert by_main(folder) == 1
        assert "internal error: ZeroDivisionError: a bug" in capsys.readouterr().out


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["{}/nothing.npz"], "no such file"),
            (["{}/witnesses"], "no .npz file in this folder"),
            (["{}", "--model", "{}/nothing.onnx"], "No such file"),
            (["{}", "--spec", "{}/nothing.vnnlib"], "No such file"),
            (["{}/alone/deep/c.npz"], "--model NET.onnx"),
            (["{}", "--workers", "0"], "at least 1"),
        ],
    )
    def test_says_what_to_do_and_ends_with_2(
        self, folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "witnesses").mkdir()
        (folder / "alone" / "deep").mkdir(parents=True)
        (folder / "alone" / "deep" / "c.npz").write_bytes(b"")
        assert by_main(*(a.format(folder) for a in arguments)) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert said.out == ""

    @pytest.mark.parametrize("arguments", [[], ["x", "--arithmetic", "float16"], ["x", "--trust"]])
    def test_unknown_options(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as end:
            by_main(*arguments)
        assert end.value.code == 2


class TestOurCommand:
    def test_says_and_ends_as_the_module_does(self, folder: Path) -> None:
        found = CliRunner().invoke(cli, ["check", str(folder)])
        assert (found.exit_code, found.output.count("accepted  ")) == (0, 2)
        (folder / "certificates" / "a.npz").write_bytes(b"")
        assert CliRunner().invoke(cli, ["check", str(folder), "--json"]).exit_code == 1
        missing = CliRunner().invoke(cli, ["check", "nothing.npz"])
        assert missing.exit_code == 2
        assert "no such file" in missing.output

    def test_its_options_are_the_modules(self) -> None:
        ours = {o for p in cli.commands["check"].params for o in p.opts if o.startswith("--")} - {"--help"}  # type: ignore[attr-defined]
        for option in ours:
            assert (
                option
                in subprocess.run(
                    [sys.executable, "-m", "certify.check", "-h"], capture_output=True, text=True, check=True, cwd=ROOT
                ).stdout
            )


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        # the package itself names its version
        ours = parts[0] == "certify" and len(parts) > 1 and parts[1] not in ("check", "version")
        if parts[0] in {blocked!r} or ours:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
from certify.check.command import main
code = main(sys.argv[1:])
foreign = sorted(m for m in sys.modules if m.split(".")[0] in {blocked!r})
known = ("certify.check", "certify.version")
ours = sorted(m for m in sys.modules if m.startswith("certify.") and not m.startswith(known))
print(foreign + ours)
sys.exit(code)
"""
BLOCKED = ("torch", "onnxruntime", "highspy", "pandas", "sklearn", "click", "rich", "array_api_compat", "onnxscript")


@pytest.mark.parametrize("how", [[], ["--exact"], ["--arithmetic", "float32"]])
def test_it_runs_where_torch_and_the_rest_of_certify_are_not_installed(folder: Path, how: list[str]) -> None:
    script = ALONE.format(blocked=BLOCKED)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), *how], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "2 of 2 accepted" in done.stdout


def test_as_a_module(folder: Path) -> None:
    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "certify.check", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert run(str(folder)).returncode == 0
    assert run(str(folder / "nothing")).returncode == 2
    assert "exit codes" in run("--help").stdout


def test_one_model_is_read_once_for_all_certificates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = checker.read_network
    monkeypatch.setattr(checker, "read_network", lambda *a, **k: reads.append(1) or real(*a, **k))
    monkeypatch.setattr(checker, "_KEPT", {})
    assert by_main(folder) == 0
    assert len(reads) == 1


def test_ctrl_c_ends_it_with_a_word(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "outcomes_of", interrupted)
    assert by_main(folder) == command.INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_waits_in_processes_that_load() -> None:
    asks = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"

    def waits() -> str:
        return subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True).stdout.strip()

    with command._no_interrupts():
        inside = waits()
    assert (inside, waits()) == ("True", "False")


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    arguments = [sys.executable, "-m", "certify.check", str(folder)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == command.UNREAD
