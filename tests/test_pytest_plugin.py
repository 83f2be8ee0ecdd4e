"""The plugin in suites of its own: what passes, what fails and what it says, and what it costs who does not use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from certify.pytest_plugin import Certifier

HEAVY = ("torch", "numpy", "onnxruntime", "onnx", "pandas", "certify.api")


def suite(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *arguments,
        "test_it.py",
    ]
    loaded = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import entry_points as e; print(e(group='pytest11').names)"],
        capture_output=True,
        text=True,
        check=True,
    )
    if "'certify'" not in loaded.stdout:
        command[4:4] = ["-p", "certify.pytest_plugin"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def test_a_suite_that_does_not_use_it_imports_nothing_heavy(tmp_path: Path) -> None:
    done = suite(
        tmp_path,
        f"import sys\n\ndef test_light():\n    assert 'certify.pytest_plugin' in sys.modules\n"
        f"    assert [m for m in {HEAVY!r} if m in sys.modules] == []\n",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_passing_failing_and_bad_tests(linear: Path) -> None:
    """One subprocess for many cases: importing torch takes longer than all of them."""
    done = suite(
        linear,
        """
import pytest

@pytest.mark.certify(eps="0.001", timeout=5, device="cpu")
class TestMarked:
    def test_passes(self, certify):
        report = certify.assert_certified("net.onnx", "data.npz", at_least="50%")
        assert report.bracket.certified >= 12

    @pytest.mark.certify(eps="0.4", at_least=0.5)
    def test_fails(self, certify):
        certify.assert_certified("net.onnx", "data.npz")

    def test_bad(self, certify):
        certify.assert_certified("net.onnx", "data.npz")

    def test_unknown_option(self, certify):
        certify.assert_certified("net.onnx", "data.npz", at_least=0.5, epsilon=1)

def test_other():
    pass
""",
    )
    assert "3 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "at least 50% asked for: not met" in done.stdout
    assert re.search(r"falsified at eps 0\.4: [\d,-]+\n", done.stdout)
    again = re.search(r"again: certify (run net\.onnx --data data\.npz .*--eps 0\.4 --ids \S+)\n", done.stdout)
    assert again
    (folder,) = re.findall(r"witnesses \(x, y, label; by sample and eps\): (\S+)/witnesses/", done.stdout)
    witness = next((Path(folder) / "witnesses").glob("*.npz"))
    with np.load(witness) as stored:
        assert int(np.argmax(stored["y"])) != int(stored["label"])
    assert "at_least is missing, in the call and in the marker" in done.stdout
    assert "epsilon: certify.run has no such option; did you mean eps?" in done.stdout
    assert "PytestUnknownMarkWarning" not in done.stdout


def test_the_fixture_bears_the_marker(linear: Path) -> None:
    text = "def test_a(certify):\n    pass\n\ndef test_b():\n    pass\n"
    assert "test_a" in suite(linear, text, "--collect-only", "-m", "certify").stdout
    assert "test_a" not in suite(linear, text, "--collect-only", "-m", "not certify").stdout


def test_a_module_and_arrays(tmp_path: Path) -> None:
    import torch

    net = torch.nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        net.bias.zero_()
    x, y = np.array([[0.9, 0.1], [0.55, 0.45]], np.float32), np.array([0, 0])
    certifier = Certifier({"eps": "0.1"}, lambda: tmp_path)
    with pytest.raises(AssertionError, match=r"certify\.run\(model, \(x\[ids\], y\[ids\]\), eps='0\.1'.*ids = \[1\]"):
        certifier.assert_certified(net, (x, y), at_least=1)
    assert certifier.assert_certified(net, (x, y), at_least="1/2", out=tmp_path / "mine").bracket.certified == 1
