"""The plugin in suites of its own: what passes, what fails and what it says, and what it costs who does not use it."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from certify import load_model
from certify.pytest_plugin import Certifier

pytest_plugins = ["pytester"]
HEAVY = ("torch", "numpy", "onnxruntime", "onnx", "pandas", "certify.api")
# An environment that was installed before the plugin existed does not load it by itself.
LOADED = [] if "certify" in entry_points(group="pytest11").names else ["-p", "certify.pytest_plugin"]
PLAIN = [*LOADED, "-p", "no:cacheprovider", "-p", "no:xdist"]

CASES = """
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

@pytest.mark.certify("2/255")
def test_positional(certify):
    pass

def test_unchecked(certify):
    certify.assert_certified("net.onnx", "data.npz", eps=0, at_least=0, check=False)

def test_with_the_fixture_alone(certify):
    pass

def test_other():
    pass
"""


def test_a_suite_that_does_not_use_it_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\n\ndef test_light():\n    assert 'certify.pytest_plugin' in sys.modules\n"
        f"    assert [m for m in {HEAVY!r} if m in sys.modules] == []\n"
    )
    pytester.runpytest_subprocess(*PLAIN).assert_outcomes(passed=1)


def test_passing_failing_and_bad_tests(linear: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CASES)
    for name in ("net.onnx", "data.npz"):
        (pytester.path / name).write_bytes((linear / name).read_bytes())
    result = pytester.runpytest_subprocess(*PLAIN)
    result.assert_outcomes(passed=3, failed=4, errors=1)
    text = result.stdout.str()
    assert "at least 50% asked for: not met" in text
    assert re.search(r"falsified at eps 0\.4: [\d,-]+\n", text)
    assert re.search(r"again: certify run net\.onnx --data data\.npz .*--eps 0\.4 --ids \S+\n", text)
    (folder,) = set(re.findall(r"witnesses \(x, y, label; by sample and eps\): (\S+)/witnesses/", text))
    witness = next((Path(folder) / "witnesses").glob("*.npz"))
    with np.load(witness) as stored:
        assert int(np.argmax(stored["y"])) != int(stored["label"])
    assert "at_least is missing, in the call and in the marker" in text
    assert "epsilon: certify.run has no such option; did you mean eps?" in text
    assert "the marker certify takes named options" in text
    assert "leave check=False out" in text
    assert "PytestUnknownMarkWarning" not in text


def test_the_fixture_bears_the_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CASES)
    pytester.runpytest_subprocess(*PLAIN, "-m", "not certify").assert_outcomes(passed=1, deselected=7)


def test_a_loaded_network_and_arrays(linear: Path, tmp_path: Path) -> None:
    with np.load(linear / "data.npz") as stored:
        data = (stored["x"][:6], stored["y"][:6])
    certifier = Certifier({"eps": "0", "device": "cpu"}, lambda: tmp_path)
    with pytest.raises(AssertionError, match=r"certify\.run\(model, \(x\[ids\], y\[ids\]\), eps='0'.*ids = \[5\]"):
        certifier.assert_certified(load_model(linear / "net.onnx"), data, at_least=1)
    report = certifier.assert_certified(load_model(linear / "net.onnx"), data, at_least="5/6", out=tmp_path / "mine")
    assert report.bracket.certified == 5
